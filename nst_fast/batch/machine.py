"""How many workers and threads suit this machine.

One thread a worker: threads of one picture wait for each other at every operator, workers never do,
and reading and writing then overlap too. ``nst-fast bench throughput`` times every way to share out
the cores; where another one wins on a machine, ``--workers`` and ``--threads`` ask for it. Memory
is the limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from nst_fast import encoders
from nst_fast.batch.jobs import Job
from nst_fast.batch.shapes import probe
from nst_fast.batch_options import BatchOptions
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.errors import SettingsError
from nst_fast.gpu.cuda import gpu_names
from nst_fast.host import usable_cores
from nst_fast.limits import SPARE, free_memory, memory_text
from nst_fast.making import FILM
from nst_fast.memory import Footprint
from nst_fast.runtime import GPU_PACKAGES, GPU_PROVIDERS, choose, versions
from nst_fast.workspace import LARGE

THREADS = 1  # of a worker; the best share in `nst-fast bench throughput`
# What a worker takes beside the picture that it makes: for what sixty shapes of pictures leave
# behind, and, a pixel, for the pictures that are read and written meanwhile.
BESIDE = 210e6  # bytes
BESIDE_PER_PIXEL = 60.0  # bytes
RECORDED = {"animation": 130e6, "film": 300e6}  # bytes: frames that wait, or those x264 looks at
KEPT_PER_PIXEL = 700.0  # bytes, of sessions that wait for another picture of their shape
SMALL = 64  # pixels: the longest side of pictures for which there is memory, or no worker starts
UNKNOWN_PIXELS = 2**20  # of a picture of its own size, where its first bytes do not tell it


@dataclass(frozen=True)
class Layout:
    """Worker processes, and threads and memory of each.

    Attributes:
        workers: how many.
        threads: of each.
        memory: bytes that each may take to make a picture; None: what the machine allows it.
    """

    workers: int
    threads: int
    memory: int | None = None

    @classmethod
    def choose(
        cls,
        engine: EngineOptions,
        options: BatchOptions,
        jobs: Sequence[Job] | None = None,
    ) -> Layout:
        """What is not given is chosen: ``THREADS`` a worker, as many as cores and memory allow.

        Cores that memory leaves without a worker go to the threads of the others. A GPU has one.

        Args:
            engine: of these ``threads`` and the device.
            options: of these ``workers`` and ``executor``: on a cluster a worker has ``THREADS``
                unless told otherwise, and their number is the cluster's.
            jobs: every picture; None where they are not known yet.

        Raises:
            ProviderError: what the engine asks for cannot be had.
            SettingsError: ``max_memory`` is less than workers take for any picture.
        """
        cores, workers, threads = usable_cores(), options.workers, engine.threads
        if options.executor == "ray":
            return cls(workers or 1, threads or THREADS, engine.memory_limit)
        gpus, most = gpus_of(engine), max(1, cores if jobs is None else len(jobs))
        if workers is None and gpus:
            workers = min(gpus, most)
        memory = engine.memory_limit or SPARE * free_memory()
        pixels, recorded = largest(jobs), recording(jobs)
        if workers is None:
            room = int(memory / (worker_memory(engine, pixels) + recorded))
            workers = max(1, min(cores // (threads or THREADS), room, most))
        beside = BESIDE + BESIDE_PER_PIXEL * pixels + recorded
        share, least = memory / workers - beside, _footprint(engine, SMALL).least(SMALL)
        if engine.memory_limit is None:
            # What nobody limits is not refused to pictures of a common size.
            share = max(share, _picture_memory(engine, min(pixels, LARGE)))
        elif share < least and not gpus:
            needed = memory_text(workers * (beside + least))
            raise SettingsError(f"max_memory: {workers} workers take {needed} at least; give that")
        return cls(workers, threads or max(1, cores // workers), max(1, int(share)))

    def engine(self, engine: EngineOptions) -> EngineOptions:
        """That of a worker."""
        return replace(engine, threads=self.threads, max_memory=self.memory)


def gpus_of(engine: EngineOptions) -> int:
    """How many GPUs an engine's workers share here; 0 where it computes on the CPU.

    Raises:
        ProviderError: what the engine asks for cannot be had.
    """
    if not GPU_PACKAGES & versions().keys() and not engine.device.startswith("cuda"):
        return 0  # without loading any provider
    provider, _ = choose(engine.provider, engine.precision, engine.device)
    if provider not in GPU_PROVIDERS:
        return 0
    return 1 if ":" in engine.device else len(gpu_names())


def of_worker(engine: EngineOptions, number: int, gpus: int) -> EngineOptions:
    """The engine of one of several workers, which share several GPUs out among them."""
    return engine if gpus < 2 else replace(engine, device=f"cuda:{number % gpus}")


def largest(jobs: Sequence[Job] | None) -> float:
    """Pixels of the largest picture or style among the jobs; of the default size without any.

    Pictures that keep their own size are looked at.
    """
    found = [_pixels(StyleSettings(), 1.0)] if not jobs else []
    own = [job for job in jobs or () if job.settings.size is None]
    with ThreadPoolExecutor(8) as threads:
        for job, (width, height) in zip(own, threads.map(probe, own), strict=True):
            found.append(_pixels(job.settings, width * height or UNKNOWN_PIXELS))
    found += [_pixels(job.settings, 1.0) for job in jobs or () if job.settings.size is not None]
    return max(found)


def recording(jobs: Sequence[Job] | None) -> float:
    """Bytes that a worker takes more where pictures are filmed as they are made."""
    endings = {job.files["record"][-4:].lower() for job in jobs or () if job.making.record}
    if not endings:
        return 0.0
    return RECORDED["film" if FILM in endings else "animation"]


def _pixels(settings: StyleSettings, own: float) -> float:
    pixels = own if settings.size is None else float(settings.size) ** 2
    scale = settings.style_scale
    return pixels * max(1.0, *(scale if isinstance(scale, tuple) else [scale])) ** 2


def worker_memory(engine: EngineOptions, pixels: float, shapes: int = 1) -> float:
    """Bytes that a worker takes at most, for pictures of so many pixels.

    ``shapes``: for how many of them it keeps sessions, which it does up to ``LARGE`` pixels.
    """
    kept = KEPT_PER_PIXEL * (shapes - 1) * min(pixels, LARGE)
    return BESIDE + BESIDE_PER_PIXEL * pixels + _picture_memory(engine, pixels) + kept


def _picture_memory(engine: EngineOptions, pixels: float) -> float:
    """Bytes of a process that makes a picture of so many pixels as a whole."""
    side = max(1, math.ceil(math.sqrt(pixels)))
    return _footprint(engine, side).whole(side)


def _footprint(engine: EngineOptions, side: int) -> Footprint:
    """Of square pictures with the default settings, on the provider that takes the most.

    Where the workers will be, another one may be at hand than here.
    """
    return Footprint(
        encoders.load(engine.encoder),
        StyleSettings(),
        content=(side, side),
        styles=[(side, side)],
        provider="openvino",
        precision="fp32",
    )
