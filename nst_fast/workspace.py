"""What pictures of one Stylizer share: encoder, backend, and the sessions of the shapes in use."""

from __future__ import annotations

import functools
import gc
import logging
import math
import os
import platform
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import numpy as np

from nst_fast import encoders, forks
from nst_fast.backend import Backend
from nst_fast.canvas import Canvas
from nst_fast.config import EngineOptions, PlanName, StyleSettings, parse_device
from nst_fast.encoders import Encoder
from nst_fast.errors import DeviceMemoryError
from nst_fast.fallback import Fallback
from nst_fast.gpu.cuda import Cuda
from nst_fast.gpu.footprint import DeviceFootprint
from nst_fast.gradient_check import ensure_gradient
from nst_fast.graph.parts import Shape
from nst_fast.host import Float32, give_memory_back, usable_cores
from nst_fast.kernels import Kernels
from nst_fast.library import GPU_PROVIDERS, versions
from nst_fast.limits import allowed_memory, memory_text
from nst_fast.losses import Objective, Targets, Weights
from nst_fast.masks import Masks
from nst_fast.memory import Budget, Footprint, Size
from nst_fast.plan import AnyPlan, make_plan
from nst_fast.runtime import choose, providers
from nst_fast.targets import TargetExtractor
from nst_fast.transfer import Transfer

logger = logging.getLogger(__name__)
SHAPES = 3  # of pictures whose sessions are kept
SCALES = 4 / 3  # pixels of a picture at all its scales, each a quarter of the next
# Pixels of all images: above, sessions are made anew for each use. That takes a second; two of them
# side by side would hold hundreds of megabytes.
LARGE = 2**19
# Eight pictures of 512²: there it takes several seconds, as cuDNN tries its kernels. Where memory
# is short, what is kept is given back first.
LARGE_ON_GPU = 2**21
STYLE_LIMIT = 48  # 16 styles at up to three scales; 2.4 MB each with VGG-19
Value = TypeVar("Value")


class _Cache(Generic[Value]):
    """The values used last, as many as have room; a fork starts with none of its parent's.

    A value has a size, in any unit; the room is for so many of the largest one.
    """

    def __init__(self, room: float) -> None:
        self._room = room
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._process = os.getpid()

    def take(self, key: Hashable) -> Value | None:
        """Remove and return a value, so that nobody else gets it meanwhile."""
        if self._process != os.getpid():
            self._values.clear()
            self._process = os.getpid()
        value, _ = self._values.pop(key, (None, 0))
        return value

    def put(self, key: Hashable, value: Value, size: int = 1) -> None:
        """Keep a value."""
        if self._process != os.getpid():
            return  # taken before the fork
        self.make_room(size)
        self._values[key] = value, size

    def clear(self) -> bool:
        """Let go of all; whether there were any."""
        had = bool(self._values)
        self._values.clear()
        return had

    def make_room(self, size: int) -> bool:
        """Let go of the oldest until one more fits; whether there were any."""
        had = len(self._values)
        while self._values:
            sizes = [size, *(each for _, each in self._values.values())]
            if sum(sizes) <= self._room * max(sizes):
                break
            self._values.popitem(last=False)
        return len(self._values) < had


class Workspace:
    """Hands out Plans and target extractors, and keeps a bounded number of them.

    Attributes:
        encoder: the pack that everything here runs.
    """

    def __init__(
        self,
        encoder: Encoder,
        backend: Backend,
        plan: PlanName,
        *,
        cuda_instead: bool = False,
        shapes: int = SHAPES,
        options: EngineOptions | None = None,
    ) -> None:
        """Start empty.

        Args:
            encoder: the pack to run.
            backend: where to compute.
            plan: the kind of every Plan.
            cuda_instead: whether CUDA may take the place of a TensorRT that fails.
            shapes: of pictures for which sessions are kept.
            options: that it was opened with; None for the defaults.
        """
        self.encoder = encoder
        self._options = options or EngineOptions()
        # Pixels of what is kept.
        self._largest = LARGE if backend.launcher is None else LARGE_ON_GPU
        self._fallback = Fallback(encoder, backend, cuda_instead=cuda_instead)
        self._process = os.getpid()
        # Of settings and size: how many pictures were asked about, and fit side by side.
        self._fitting: dict[Hashable, tuple[int, int]] = {}
        self._plan = plan
        self._plans: _Cache[AnyPlan] = _Cache(shapes * SCALES)
        self._targets: _Cache[TargetExtractor] = _Cache(shapes * SCALES)
        self._transfers: _Cache[Transfer] = _Cache(shapes * SCALES)
        self._styles: _Cache[Targets] = _Cache(STYLE_LIMIT)

    @classmethod
    def open(cls, options: EngineOptions, shapes: int = SHAPES) -> Workspace:
        """Load the encoder and find the backend; errors as for ``Stylizer``."""
        encoder = encoders.load(options.encoder)
        provider, precision = choose(options.provider, options.precision, options.device)
        on_gpu = provider in GPU_PROVIDERS
        threads = options.threads or usable_cores()
        backend = Backend(
            provider,
            precision,
            threads,
            Kernels(threads),
            Cuda(parse_device(options.device)[1]) if on_gpu else None,
        )
        may_change = on_gpu and options.provider == "auto" and _usable("cuda")
        return cls(
            encoder,
            backend,
            options.plan,
            cuda_instead=may_change,
            shapes=shapes,
            options=options,
        )

    @property
    def backend(self) -> Backend:
        """Where everything here runs."""
        return self._fallback.backend

    @property
    def engine(self) -> EngineOptions:
        """Options that come to the same again."""
        backend = self.backend
        return replace(
            self._options,
            provider=backend.provider,
            precision=backend.precision,
            threads=backend.threads,
        )

    @property
    def environment(self) -> dict[str, Any]:
        """What a picture depends on besides its settings."""
        return {
            "encoder": self.encoder.name,
            "encoder_digest": self.encoder.digest,
            "device": self.backend.device,
            "provider": self.backend.provider,
            "precision": self.backend.precision,
            "threads": self.backend.threads,
            "versions": _versions(),
        }

    def budget(
        self,
        settings: StyleSettings,
        sizes: Sequence[int],
        *,
        content: Size,
        styles: Sequence[Size],
        others: Sequence[Size],
        anchored: bool = False,
        masks: Masks | None = None,
    ) -> Budget | None:
        """How a run of these longest sides fits into the memory; None on a GPU, which finds out.

        Where something is done to make it fit, no sessions are kept from here on.

        Args:
            settings: of the run.
            sizes: of the run, coarse to fine.
            content: width and height of the picture as it was read.
            styles: those of the styles.
            others: those of what was read besides.
            anchored: whether the picture stays close to another one at every size.
            masks: which style goes where.

        Raises:
            SettingsError: it does not fit; the message names what would.
        """
        backend = self.backend
        if backend.launcher is not None:
            return None
        footprint = Footprint(
            self.encoder,
            settings,
            content=content,
            styles=styles,
            others=others,
            anchored=anchored,
            masks=masks,
            provider=backend.provider,
            precision=backend.precision,
            split=self._plan == "split",
        )
        limit = self._options.memory_limit or int(allowed_memory())
        found = footprint.budget(sizes, limit)
        self._largest = 0 if found.tight else LARGE
        if found.tight:
            self._let_go()
        return found

    def attempt(
        self,
        objective: Objective,
        shape: Shape,
        make: Callable[[int | None], Value],
        side: int | None = None,
    ) -> Value:
        """Make something that may not fit the device; see ``Fallback.attempt``.

        Raises:
            ProviderError: also where this is a fork, and the parent had the GPU.
        """
        if self.backend.launcher is not None:  # CUDA does not survive a fork
            forks.require(self._process, "a Stylizer on a GPU")

        def make_alone(side: int | None) -> Value:
            try:
                return make(side)
            except DeviceMemoryError:
                if not self._let_go():
                    raise
            return make(side)  # only now: the error holds on to what was allocated before it

        return self._fallback.attempt(objective, shape, make_alone, side)

    def together(
        self, settings: StyleSettings, size: Size, most: int, *, weighted: bool = False
    ) -> int:
        """How many pictures a GPU holds side by side: ``most``, or what it is best divided into.

        What is kept of other sizes is let go of before fewer are made at a time; where they are,
        a line says so. It is found out once for each size, as the sessions of a group stay for the
        next.

        Args:
            settings: of the run.
            size: width and height of the pictures.
            most: of them that there are.
            weighted: whether cells have weights whatever the margin.
        """
        launcher = self.backend.launcher
        if launcher is None:
            return 1
        key = settings, size, weighted
        asked, fits = self._fitting.get(key, (0, 0))
        if most > asked and fits == asked:  # else it is known, and was told
            fits = self._fit(settings, size, most, weighted)
            self._fitting[key] = most, fits
        return math.ceil(most / math.ceil(most / min(fits, most)))

    def _fit(self, settings: StyleSettings, size: Size, most: int, weighted: bool) -> int:
        """How many pictures fit, at most ``most``; says so where they are fewer."""
        launcher = self.backend.launcher
        assert launcher is not None
        objective = Objective.from_settings(settings, self.encoder)
        taps = self.encoder.taps
        stride = max(taps[tap].stride for tap in objective.taps)
        canvas = Canvas.around(size[1], size[0], margin=settings.margin, stride=stride)
        seen = weighted or not canvas.whole
        precision = self.backend.precision
        found = DeviceFootprint(self.encoder, objective, settings, canvas, precision, seen)
        needed, free = found.needed(most), launcher.free_memory()
        if needed > free and self._let_go():
            free = launcher.free_memory()
        fits = next((n for n in range(most, 1, -1) if found.needed(n) <= free), 1)
        if fits < most:
            logger.warning(
                "%d pictures of %d×%d pixels take %s of %s, and %s are free: going on with %d at "
                "a time, at most",
                *(most, *size, memory_text(needed), launcher.name, memory_text(free), fits),
            )
        return fits

    def take_plan(
        self,
        objective: Objective,
        canvas: Canvas,
        pictures: int,
        weighted: bool,
        side: int | None = None,
    ) -> AnyPlan:
        """A Plan for pictures in a canvas; give it back with :meth:`give_plan`.

        With a ``side`` it is one in windows of so many pixels.

        Raises:
            ProviderError: no session, or a wrong gradient on this provider.
        """
        plan = self._plans.take(_plan_key(objective, canvas, pictures, weighted))
        if plan is not None:
            return plan
        self._make_room(self._plans, pictures * canvas.size[0] * canvas.size[1])
        kind = self._plan if side is None else "split"
        ensure_gradient(self.encoder, objective, self.backend, kind, weighted=weighted)
        return make_plan(
            self.encoder,
            objective,
            canvas,
            self.backend,
            self._plan,
            pictures=pictures,
            weighted=weighted,
            side=side,
        )

    def prepare_plan(
        self, objective: Objective, canvas: Canvas, pictures: int, weighted: bool
    ) -> None:
        """Make a Plan for :meth:`take_plan` to find, in a thread of its own beside the targets'.

        Most of that is compiling, which keeps one core busy. Nothing is done where there is one
        thread only, where a Plan would not be kept, or on a GPU.
        """
        height, width = canvas.size
        small = pictures * height * width <= self._largest
        if small and self.backend.launcher is None and self.backend.threads > 1:
            self.give_plan(self.take_plan(objective, canvas, pictures, weighted))

    def give_plan(self, plan: AnyPlan) -> None:
        """Keep a Plan for the next picture of its shape, unless it is large or works in windows."""
        n, _, height, width = plan.image.shape
        if n * height * width <= self._largest and plan.kind != "tiled":
            key = _plan_key(plan.objective, plan.canvas, n, plan.weighted)
            self._plans.put(key, plan, n * height * width)

    def measure(
        self,
        image: Float32,
        objective: Objective,
        weights: Weights,
        side: int | None = None,
    ) -> Targets:
        """What canvases (N, 3, H, W) have at the taps; overwritten by the next call of this shape.

        ``weights`` are those of the cells of each tap; with a ``side`` canvases are seen in windows
        of so many pixels.
        """
        n, _, height, width = image.shape
        shape = (n, height, width)

        def run(side: int | None) -> Targets:
            key = (tuple(objective.style), tuple(objective.content), image.shape, side)
            extractor = self._targets.take(key)
            if extractor is None:
                self._make_room(self._targets, n * height * width)
                extractor = TargetExtractor(self.encoder, objective, shape, self.backend, side=side)
            found = extractor(image, weights)
            if n * height * width <= self._largest:
                self._targets.put(key, extractor, n * height * width)
            return found

        return self.attempt(objective, shape, run, side)

    def transfer(self, canvas: Canvas, pictures: int) -> Transfer:
        """What makes starts of so many pictures in a canvas; kept where the canvas is not large.

        Raises:
            SettingsError: the encoder has no decoders.
        """
        key = canvas, pictures
        pixels = pictures * canvas.size[0] * canvas.size[1]
        found = self._transfers.take(key)
        if found is None:
            self._make_room(self._transfers, pixels)
            found = Transfer(self.encoder, canvas, self.backend, pictures)
        if pixels <= self._largest:
            self._transfers.put(key, found, pixels)
        return found

    def _make_room(self, cache: _Cache[Any], pixels: int) -> None:
        """Let go of old sessions before new ones take their memory, not after."""
        if cache.make_room(pixels) or not self._largest:
            _give_back()

    def _let_go(self) -> bool:
        """Give back the memory of all sessions that are kept; whether there were any."""
        caches = (self._plans, self._targets, self._transfers)
        had = [cache.clear() for cache in caches]
        _give_back()
        if self.backend.launcher is not None:
            self.backend.launcher.give_memory_back()
        return any(had)

    def style_targets(self, key: Hashable, compute: Callable[[], Targets]) -> Targets:
        """What a style asks for, computed where ``key`` is new; not to be written to."""
        targets = self._styles.take(key) or compute()
        self._styles.put(key, targets)
        return targets


def _give_back() -> None:
    gc.collect()  # a Plan and what refers to it may be a cycle
    give_memory_back()


def _plan_key(objective: Objective, canvas: Canvas, pictures: int, weighted: bool) -> Hashable:
    return objective.key, canvas, pictures, weighted


def _usable(provider: str) -> bool:
    return any(status.name == provider and status.problem is None for status in providers())


@functools.cache  # looking them up takes 4 ms
def _versions() -> dict[str, str]:
    found = {"nst-fast": version("nst-fast"), "python": platform.python_version()}
    return found | {"numpy": np.__version__, "pillow": version("pillow")} | versions()
