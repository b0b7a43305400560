"""Ours on a GPU: what the suites ask of the engine there; the peers have all the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nst_fast.backend import Backend
from nst_fast.bench.method import Route
from nst_fast.bench.peers import REPEATS, GramPeer, GramRoutes
from nst_fast.bench.problem import Problem, Step
from nst_fast.config import PlanName, PrecisionName, ProviderName
from nst_fast.device import Launcher
from nst_fast.errors import ProviderError
from nst_fast.gpu.cuda import Cuda, find_gpus
from nst_fast.gpu.cutting import STORED, FeatureKind
from nst_fast.gpu.plan import DevicePlan
from nst_fast.gpu.taps import Tap, TapKernels
from nst_fast.host import Float32
from nst_fast.kernels import Kernels
from nst_fast.runtime import GPU_PROVIDERS, providers

KINDS: tuple[FeatureKind, ...] = ("fp32", "tf32", "fp16")
PLANS: tuple[PlanName, ...] = ("split", "fused")
launcher = functools.cache(Cuda)  # one stream for everything; its kernels are compiled once


class GpuStep:
    """Loss and gradient by a DevicePlan."""

    def __init__(self, problem: Problem, backend: Backend, kind: PlanName) -> None:
        """Build the Plan, and let the loss scale settle."""
        assert backend.launcher is not None
        self._launcher, self.image = backend.launcher, problem.image
        self._plan = DevicePlan(
            problem.encoder,
            problem.objective,
            problem.canvas,
            backend,
            kind,
            pictures=len(problem.image),
        )
        self._plan.set_targets(problem.targets, problem.weights)
        self._plan.set_image(problem.image)
        self._plan.settle_scale()

    def step(self) -> float:
        """Evaluate; waits for the GPU, as the loss is read."""
        self._plan.evaluate_taps()
        self._plan.evaluate_picture()
        return float(sum(self._launcher.download(terms).sum() for terms in self._plan.terms))

    def place(self, image: Float32) -> None:
        """Evaluate there from now on."""
        self._plan.set_image(image)

    @property
    def gradient(self) -> Float32:
        """Of the last step, (N, 3, H, W)."""
        found: Float32 = self._launcher.download(self._plan.gradient)
        return found


def steps(
    problem: Problem, asked: Sequence[ProviderName], precisions: Sequence[PrecisionName]
) -> Mapping[str, tuple[Callable[[], Step], str]]:
    """Loss and gradient on the GPU: what prepares it, and precision, by name as "fp16 cuda split".

    Args:
        problem: of one picture or several; its arrays are numpy's.
        asked: providers; what cannot be had is left out.
        precisions: likewise; "auto" stands for all of either.
    """
    backends = [
        Backend(status.name, precision, problem.threads, Kernels(problem.threads), launcher())
        for status in providers()
        for precision in status.precisions
        if status.name in GPU_PROVIDERS
        and {"auto", status.name} & set(asked)
        and {"auto", precision} & set(precisions)
    ]
    return {
        f"{backend.precision} {backend.provider} {kind}": (
            functools.partial(GpuStep, problem, backend, kind),
            backend.precision,
        )
        for backend in backends
        for kind in PLANS
    }


def grams() -> Mapping[str, GramPeer]:
    """Our kernels at a tap on the GPU, by name, such as "CUDA kernel fp16"; none without CuPy."""
    try:
        find_gpus()
    except ProviderError:
        return {}
    return {
        f"CUDA kernel {kind}": GramPeer(kind, functools.partial(_on_gpu, kind)) for kind in KINDS
    }


def _on_gpu(kind: FeatureKind, F: Float32, derivative: Float32, threads: int) -> GramRoutes:
    del threads
    return gram_routes(launcher(), kind, F, derivative)


def gram_routes(
    where: Launcher,
    kind: FeatureKind,
    F: Float32,
    derivative: Float32,
    *,
    repeats: int = REPEATS,
) -> GramRoutes:
    """The work at one tap by our kernels: F (C, P) and [A b] (C, C+1) float32."""
    C, P = F.shape
    features, gradient = (where.zeros((1, P, C), STORED[kind]) for _ in range(2))
    where.upload(F.T[None].astype(STORED[kind]), features)
    # A loss scale as a run finds one: without, the gradient would vanish in float16.
    factor = 2.0 ** round(np.log2(C * P))
    loss_scale = where.put(np.full(1, factor, np.float32))
    tap = Tap(features, gradient, style=True, content=False)
    kernels = TapKernels(where, [tap], kind, loss_scale)
    where.upload(np.full((1, 1), 1 / (C * P)), kernels.normalizers)
    where.upload(derivative[None], kernels.derivatives[0])

    def gradients() -> None:
        kernels.narrow()
        kernels.pull_back()

    def recorded(work: Route) -> Route:
        def several() -> None:
            for _ in range(repeats):
                work()

        return where.capture(several)

    def moments() -> Float32:
        array: Float32 = where.download(kernels.moments[0])[0]
        return array

    def found() -> Float32:
        array: Float32 = where.download(gradient)[0].T.astype(np.float32) / np.float32(factor)
        return array

    return GramRoutes(recorded(kernels.measure), recorded(gradients), moments, found, repeats)
