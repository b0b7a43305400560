"""Ours on a GPU: what the suites ask of the engine there; the peers have all the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nst_fast.backend import Backend
from nst_fast.bench.method import Route
from nst_fast.bench.peers import REPEATS, GramPeer, GramRoutes
from nst_fast.bench.problem import SETTINGS, Problem
from nst_fast.config import PlanName, PrecisionName, ProviderName
from nst_fast.device import Launcher
from nst_fast.errors import ProviderError
from nst_fast.gpu.cuda import Cuda, find_gpus
from nst_fast.gpu.cutting import STORED, FeatureKind
from nst_fast.gpu.footprint import DeviceFootprint
from nst_fast.gpu.loop import REPORT_EVERY, DeviceLoop
from nst_fast.gpu.plan import DevicePlan
from nst_fast.gpu.taps import Tap, TapKernels
from nst_fast.host import Float32
from nst_fast.kernels import Kernels
from nst_fast.runtime import GPU_PROVIDERS, providers

TapData = tuple[Float32, Float32]  # features and [A b]
KINDS: tuple[FeatureKind, ...] = ("fp32", "tf32", "fp16")
PLANS: tuple[PlanName, ...] = ("split", "fused")
launcher = functools.cache(Cuda)  # one stream for everything; its kernels are compiled once


class GpuStep:
    """Loss and gradient by a DevicePlan, :attr:`plan`."""

    def __init__(self, problem: Problem, backend: Backend, kind: PlanName) -> None:
        """Build the Plan, and let the loss scale settle."""
        assert backend.launcher is not None
        self._launcher, self._backend = backend.launcher, backend
        self._encoder = problem.encoder
        self.plan = DevicePlan(
            problem.encoder,
            problem.objective,
            problem.canvas,
            backend,
            kind,
            pictures=len(problem.image),
        )
        self.plan.set_targets(problem.targets, problem.weights)
        self.plan.set_image(problem.image)
        self.plan.settle_scale()

    def step(self) -> float:
        """Evaluate; waits for the GPU, as the loss is read."""
        self.run()
        return float(sum(self._launcher.download(terms).sum() for terms in self.plan.terms))

    def run(self) -> None:
        """Enqueue an evaluation."""
        self.plan.evaluate_taps()
        self.plan.evaluate_picture()

    def place(self, image: Float32) -> None:
        """Evaluate there from now on."""
        self.plan.set_image(image)

    @property
    def gradient(self) -> Float32:
        """Of the last step, (N, 3, H, W)."""
        found: Float32 = self._launcher.download(self.plan.gradient)
        return found

    def with_lbfgs(self) -> tuple[Route, Route]:
        """``REPORT_EVERY`` whole steps of the engine's own loop, smoothing and all.

        As the engine takes them, with as many under way behind them; and with none, so that the GPU
        waits for the host to read.
        """
        image = self._launcher.download(self.plan.image)
        loop = DeviceLoop(self.plan, SETTINGS, self._backend, image)
        ahead = functools.partial(loop.advance, REPORT_EVERY, REPORT_EVERY)
        for _ in range(2):  # until the history is full
            ahead()
        return ahead, functools.partial(loop.advance, REPORT_EVERY)

    @property
    def planned(self) -> int:
        """Bytes that the engine plans for a run of these pictures."""
        encoder, plan = self._encoder, self.plan
        of = encoder, plan.objective, SETTINGS, plan.canvas, self._backend.precision
        return DeviceFootprint(*of, plan.weighted).needed(plan.image.shape[0])


def steps(
    problem: Problem, asked: Sequence[ProviderName], precisions: Sequence[PrecisionName]
) -> Mapping[str, tuple[Callable[[], GpuStep], str]]:
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


def give_back() -> None:
    """Return to the GPU what is allocated and not in use."""
    launcher().give_memory_back()


def grams() -> Mapping[str, GramPeer]:
    """Our kernels at a tap on the GPU, by name, such as "CUDA kernel fp16"; none without CuPy."""
    return {
        name: GramPeer(kind, functools.partial(_on_gpu, kind)) for name, kind in _kinds().items()
    }


def grams_together(taps: Sequence[TapData]) -> Mapping[str, tuple[FeatureKind, TapRoutes]]:
    """Our kernels at several taps in one launch, as a step has them, by the same names."""
    return {name: (kind, tap_routes(launcher(), kind, taps)) for name, kind in _kinds().items()}


def _kinds() -> dict[str, FeatureKind]:
    try:
        find_gpus()
    except ProviderError:
        return {}
    return {f"CUDA kernel {kind}": kind for kind in KINDS}


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
    made = tap_routes(where, kind, [(F, derivative)], repeats=repeats)
    return GramRoutes(
        made.forward, made.gradient, lambda: made.moments()[0], lambda: made.found()[0], repeats
    )


@dataclass(frozen=True)
class TapRoutes:
    """The work at several taps together: as ``GramRoutes``, with a list of results."""

    forward: Route
    gradient: Route
    moments: Callable[[], list[Float32]]
    found: Callable[[], list[Float32]]


def tap_routes(
    where: Launcher, kind: FeatureKind, taps: Sequence[TapData], *, repeats: int = REPEATS
) -> TapRoutes:
    """The work at taps, each F (C, P) and [A b] (C, C+1) float32, ``repeats`` times in a graph."""
    # Loss scales are for all taps; without one, gradients would vanish in float16.
    factor = 2.0 ** round(np.log2(max(F.size for F, _ in taps)))
    loss_scale = where.put(np.full(1, factor, np.float32))
    made = []
    for F, _ in taps:
        features, gradient = (where.zeros((1, *F.T.shape), STORED[kind]) for _ in range(2))
        where.upload(F.T[None].astype(STORED[kind]), features)
        made.append(Tap(features, gradient, style=True, content=False))
    kernels = TapKernels(where, made, kind, loss_scale)
    where.upload(np.array([[1 / F.size for F, _ in taps]]), kernels.normalizers)
    for (_, derivative), array in zip(taps, kernels.derivatives, strict=True):
        where.upload(derivative[None], array)

    def gradients() -> None:
        kernels.narrow()
        kernels.pull_back()

    def recorded(work: Route) -> Route:
        def several() -> None:
            for _ in range(repeats):
                work()

        return where.capture(several)

    def moments() -> list[Float32]:
        return [where.download(array)[0] for array in kernels.moments]

    def found() -> list[Float32]:
        arrays = [where.download(tap.gradient)[0].T.astype(np.float32) for tap in made]
        return [array / np.float32(factor) for array in arrays]

    return TapRoutes(recorded(kernels.measure), recorded(gradients), moments, found)
