"""Pictures per minute: a pool of processes, each with a Stylizer and its share of the cores."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from nst_fast.bench.findings import Measurement
from nst_fast.bench.method import Route, interleave
from nst_fast.bench.problem import label, smooth_picture
from nst_fast.bench.session import Bench
from nst_fast.config import PrecisionName, ProviderName, StyleSettings
from nst_fast.encoders import Encoder
from nst_fast.engine import Stylizer

SIZE = 256  # pixels a side
STEPS = 50
EACH = 2  # pictures a worker and round


@dataclass(frozen=True)
class _Work:
    """What a worker makes; it is sent to another process."""

    encoder: str
    provider: ProviderName
    precision: PrecisionName
    threads: int


_ready: dict[str, Stylizer] = {}  # of this worker process, made when it starts


def run(bench: Bench) -> None:
    """Measure every way to share the cores out among workers."""
    for encoder in bench.encoders(("vgg19-lite",)):
        for size in bench.options.sizes or (SIZE,):
            _measure(bench, encoder, size)


def _measure(bench: Bench, encoder: Encoder, size: int) -> None:
    cores, chosen = bench.options.threads, bench.best
    settings = StyleSettings(size=size, steps=STEPS)
    shares = [workers for workers in range(1, cores + 1) if cores % workers == 0]
    context = multiprocessing.get_context("spawn")  # threads do not survive a fork
    routes: dict[str, Route] = {}
    with ExitStack() as stack:
        for workers in shares:
            precision, threads = chosen.precision, cores // workers
            work = _Work(str(encoder.path), chosen.provider, precision, threads)
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, context, initializer=_start, initargs=(work,))
            )
            routes[f"{workers} × {threads}"] = partial(_round, pool, settings, EACH * workers)
        times = interleave(routes, bench.options.repeats)
    task = f"{encoder.name} {size}², {STEPS} steps, {label(chosen)}, a picture"
    found = []
    for workers, (name, seconds) in zip(shares, times.items(), strict=True):
        values = [value / (EACH * workers) for value in seconds]
        facts = {"size": size, "workers": workers, "threads": cores // workers}
        route = f"workers × threads: {name}"
        found.append(bench.keep(Measurement("throughput", task, route, values, facts=facts)))
        bench.say(f"{task}: {name}: {60 / found[-1].middle:.1f} pictures a minute")
    for more in found[1:]:
        bench.row(more, found[0])


def _start(work: _Work) -> None:
    _ready["stylizer"] = Stylizer(
        work.encoder, provider=work.provider, precision=work.precision, threads=work.threads
    )


def _round(pool: ProcessPoolExecutor, settings: StyleSettings, pictures: int) -> None:
    for _ in pool.map(_picture, [settings] * pictures):
        pass


def _picture(settings: StyleSettings) -> None:
    assert settings.size is not None
    content, style = (smooth_picture(settings.size, seed) for seed in (1, 2))
    _ready["stylizer"].stylize(content, style, settings)
