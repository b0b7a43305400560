"""What pictures of one Stylizer share: encoder, backend, and the sessions of the shapes in use."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Generic, TypeVar

from nst_fast.backend import Backend
from nst_fast.canvas import Canvas
from nst_fast.config import PlanName
from nst_fast.encoders import Encoder
from nst_fast.errors import DeviceMemoryError, ProviderError
from nst_fast.gpu.plan import DevicePlan
from nst_fast.gradient_check import ensure_gradient
from nst_fast.graph.parts import Shape
from nst_fast.host import Float32
from nst_fast.losses import Objective, Targets, Weights
from nst_fast.plan import Plan, make_plan
from nst_fast.runtime import providers
from nst_fast.targets import TargetExtractor
from nst_fast.tiles import halo, smaller

logger = logging.getLogger(__name__)

LIMIT = 6  # of each kind: content and style at up to three scales
# Pixels of all images: above, sessions are made anew for each use. That takes a second; two of them
# side by side would hold hundreds of megabytes.
LARGE = 2**19
STYLE_LIMIT = 48  # 16 styles at up to three scales; 2.4 MB each with VGG-19
Value = TypeVar("Value")


class _Cache(Generic[Value]):
    """The values used last, at most ``limit``."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def take(self, key: Hashable) -> Value | None:
        """Remove and return a value, so that nobody else gets it meanwhile."""
        return self._values.pop(key, None)

    def put(self, key: Hashable, value: Value) -> None:
        self._values[key] = value
        while len(self._values) > self._limit:
            self._values.popitem(last=False)


class Workspace:
    """Hands out Plans and target extractors, and keeps a bounded number of them.

    Attributes:
        encoder: the pack that everything here runs.
        backend: where it runs.
    """

    def __init__(self, encoder: Encoder, backend: Backend, kind: PlanName) -> None:
        """Start empty; ``kind`` is that of every Plan."""
        self.encoder = encoder
        self.backend = backend
        self._kind = kind
        self._cuda_instead = False
        self._plans: _Cache[Plan | DevicePlan] = _Cache()
        self._targets: _Cache[TargetExtractor] = _Cache()
        self._styles: _Cache[dict[str, Float32]] = _Cache(STYLE_LIMIT)
        # Of windows, by height, width and margin: sides are multiples of the margin.
        self._sides: dict[tuple[int, int, int], int] = {}

    def fit(self, objective: Objective, shape: Shape, make: Callable[[int | None], Value]) -> Value:
        """Make something for images of a shape; in windows where a GPU's memory is too small.

        Args:
            objective: what the windows are to serve.
            shape: N, H, W of the images.
            make: takes the side of the windows in pixels, None for whole images.

        Raises:
            DeviceMemoryError: several images do not fit together, or not even small windows do.
        """
        n, *size = shape
        height, width = size
        margin = halo(self.encoder, objective.taps)
        while True:
            side = self._sides.get((height, width, margin))
            try:
                return make(side)
            except DeviceMemoryError as error:
                less = smaller(side or max(size), margin)
                if n > 1 or less is None:
                    raise
                reason = str(error)
            # Only now: the error holds on to what was allocated before it.
            if self.backend.launcher is not None:
                self.backend.launcher.give_memory_back()
            logger.warning("%s; going on in windows of %d pixels", reason, less)
            self._sides[height, width, margin] = less

    def take_plan(
        self,
        objective: Objective,
        canvas: Canvas,
        pictures: int,
        weighted: bool,
        side: int | None = None,
    ) -> Plan | DevicePlan:
        """A Plan for pictures in a canvas; give it back with :meth:`give_plan`.

        With a ``side`` it is one in windows of so many pixels.

        Raises:
            ProviderError: no session, or a wrong gradient on this provider.
        """
        plan = self._plans.take(_plan_key(objective, canvas, pictures, weighted))
        if plan is not None:
            return plan

        def make() -> Plan | DevicePlan:
            ensure_gradient(self.encoder, objective, self.backend, self._kind, weighted=weighted)
            return make_plan(
                self.encoder,
                objective,
                canvas,
                self.backend,
                self._kind,
                pictures=pictures,
                weighted=weighted,
                side=side,
            )

        return self._or_on_cuda(make)

    def prepare_plan(
        self, objective: Objective, canvas: Canvas, pictures: int, weighted: bool
    ) -> None:
        """Make a Plan for :meth:`take_plan` to find, in a thread of its own beside the targets'.

        Most of that is compiling, which keeps one core busy. Nothing is done where there is one
        thread only, where a Plan would not be kept, or on a GPU.
        """
        height, width = canvas.size
        small = pictures * height * width <= LARGE
        if small and self.backend.launcher is None and self.backend.threads > 1:
            self.give_plan(self.take_plan(objective, canvas, pictures, weighted))

    def _or_on_cuda(self, make: Callable[[], Value]) -> Value:
        """Make something on the backend; where TensorRT fails and CUDA may, from then on there."""
        try:
            return make()
        except DeviceMemoryError:
            raise  # CUDA has no more
        except ProviderError as error:
            if not self._cuda_instead or self.backend.provider != "tensorrt":
                raise
            logger.warning("going on with CUDA: %s", error)
        self.backend = replace(self.backend, provider="cuda")
        return make()

    def allow_cuda_instead(self) -> None:
        """Let CUDA take the place of a TensorRT that fails, where CUDA can be used."""
        (cuda,) = (status for status in providers() if status.name == "cuda")
        self._cuda_instead = cuda.problem is None

    def give_plan(self, plan: Plan | DevicePlan) -> None:
        """Keep a Plan for the next picture of its shape, unless it is large or works in windows."""
        n, _, height, width = plan.image.shape
        if n * height * width <= LARGE and plan.kind != "tiled":
            key = _plan_key(plan.objective, plan.canvas, n, plan.weighted)
            self._plans.put(key, plan)

    def measure(self, image: Float32, objective: Objective, weights: Weights) -> Targets:
        """What canvases (N, 3, H, W) have at the taps; overwritten by the next call of this shape.

        ``weights`` are those of the cells of each tap.
        """
        n, _, height, width = image.shape
        shape = (n, height, width)

        def run(side: int | None) -> Targets:
            key = (tuple(objective.style), tuple(objective.content), image.shape, side)
            extractor = self._targets.take(key) or self._or_on_cuda(
                lambda: TargetExtractor(self.encoder, objective, shape, self.backend, side=side)
            )
            found = extractor(image, weights)
            if n * height * width <= LARGE:
                self._targets.put(key, extractor)
            return found

        return self.fit(objective, shape, run)

    def style_moments(
        self, key: Hashable, compute: Callable[[], dict[str, Float32]]
    ) -> dict[str, Float32]:
        """Moments of a style, computed where ``key`` is new; not to be written to."""
        moments = self._styles.take(key) or compute()
        self._styles.put(key, moments)
        return moments


def _plan_key(objective: Objective, canvas: Canvas, pictures: int, weighted: bool) -> Hashable:
    return objective.key, canvas, pictures, weighted
