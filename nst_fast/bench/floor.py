"""The floor: what the machine could do at best, measured in the same rounds.

Peak rates come from a large matrix product in each precision and a large copy, which take their
turns among the routes of a task: what slows the machine down for a while slows both. A task needs
at least flops / peak seconds for its arithmetic and bytes / bandwidth for its traffic; the larger
of the two is its floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from nst_fast.bench.method import Route, Times, interleave, nothing
from nst_fast.bench.peers import Gpu
from nst_fast.encoders import Encoder
from nst_fast.graph.graph import Graph
from nst_fast.host import aligned_zeros
from nst_fast.losses import Objective
from nst_fast.runtime import Session, providers

SIDE = 2048  # of the matrices
COPIED = 128 << 20  # bytes: beyond every cache
ITEM = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}  # bytes of a value


@dataclass(frozen=True)
class Probe:
    """Work at the peak: flops of a product, or bytes of a copy, read and written, in each call."""

    route: Route
    amount: float


Probes = Mapping[str, Probe]  # by precision, and "copy"


def probes(pool: ThreadPoolExecutor, threads: int, rounds: int) -> Probes:
    """The fastest way to multiply in each precision, and a copy by the threads of the pool."""
    routes: dict[str, Route] = {"numpy fp32": _numpy_product()}
    for status in providers():
        for precision in status.precisions:
            session = Session(
                _product_graph(), provider=status.name, precision=precision, threads=threads
            )
            for array in session.inputs.values():
                array[:] = 1.0
            routes[f"{status.name} {precision}"] = session.run
    times = interleave(routes, rounds)
    best: dict[str, str] = {}
    for name in sorted(routes, key=lambda name: min(times[name])):
        best.setdefault(name.split()[1], name)
    found = {kind: Probe(routes[name], 2.0 * SIDE**3) for kind, name in best.items()}
    return found | {"copy": Probe(_copy(pool, threads), 2.0 * COPIED)}


def gpu_probes(gpu: Gpu) -> Probes:
    """The same on a GPU."""
    routes = dict(gpu.peak_routes())
    copy = Probe(routes.pop("copy"), 2.0 * gpu.COPIED)
    return {kind: Probe(route, 2.0 * gpu.SIDE**3) for kind, route in routes.items()} | {
        "copy": copy
    }


def peaks(probes: Probes, rounds: int, wait: Route = nothing) -> dict[str, float]:
    """Measure flops/s by precision, and bytes/s as "copy"."""
    routes = {kind: probe.route for kind, probe in probes.items()}
    return rates(probes, interleave(routes, rounds, wait))


def rates(probes: Probes, times: Times) -> dict[str, float]:
    """Peaks by the best of all rounds: a floor must not be beaten by luck."""
    return {kind: probe.amount / min(times[kind]) for kind, probe in probes.items()}


def _numpy_product() -> Route:
    A, B, out = (np.ones((SIDE, SIDE), np.float32) for _ in range(3))
    return partial(np.matmul, A, B, out=out)


def _product_graph() -> Graph:
    shape = (SIDE, SIDE)
    graph = Graph([], {}, {"a": shape}, {"product": shape})
    # A constant operand is packed once, as weights are.
    weights = graph.constant(np.ones(shape, np.float32))
    graph.add("MatMul", ["a", weights], "product")
    return graph


def _copy(pool: ThreadPoolExecutor, threads: int) -> Route:
    source, target = (np.array_split(aligned_zeros((COPIED // 4,)), threads) for _ in range(2))
    for part in source:
        part[:] = 1.0  # a page of zeros that was never written has no memory
    return lambda: list(pool.map(np.copyto, target, source))


def seconds(peaks: Mapping[str, float], precision: str, flops: float, moved: float) -> float:
    """Least seconds for a task at these peaks; 0 where none is known."""
    if precision not in peaks:
        return 0.0
    return max(flops / peaks[precision], moved / peaks["copy"])


def step_work(
    encoder: Encoder, objective: Objective, size: int, batch: int, precision: str
) -> tuple[float, float]:
    """Flops and bytes of one loss and gradient on ``batch`` pictures of ``size``² pixels.

    Convolutions count 2·9·C_in·C_out a pixel, forward and again backward; a style term what
    :func:`tap_flops` says, and 4·(C+1)³ for the loss between them, which is two products of small
    matrices. Bytes: each activation is written once and read once by the backward pass, each weight
    read twice.
    """
    flops = activations = weights = 0.0
    channels = 3
    for tap in _reached(encoder, objective.taps):
        info = encoder.taps[tap]
        pixels = batch * (size // info.stride) ** 2
        kernel = 9 * channels * info.channels
        flops += 2 * 2 * kernel * pixels
        if tap in objective.style:
            flops += sum(tap_flops(info.channels, pixels)) + batch * 4 * (info.channels + 1) ** 3
        activations += info.channels * pixels
        weights += kernel
        channels = info.channels
    return flops, 2 * ITEM[precision] * (activations + weights)


def tap_flops(channels: int, pixels: int) -> tuple[float, float]:
    """Flops of the moments, (C+1)²·P as they are symmetric, and of the way back, 2·C·(C+1)·P."""
    side = channels + 1
    return float(side * side * pixels), float(2 * channels * side * pixels)


def _reached(encoder: Encoder, taps: Iterable[str]) -> list[str]:
    """Every layer up to the deepest tap."""
    names = list(encoder.taps)
    return names[: 1 + max(map(names.index, taps))]
