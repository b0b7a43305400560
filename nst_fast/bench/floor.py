"""The floor: what the machine could do at best, measured in the same run.

Peak rates come from a large matrix product in each precision and a large copy. A task needs at
least flops / peak seconds for its arithmetic and bytes / bandwidth for its traffic; the larger of
the two is its floor.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from nst_fast.bench.method import Route, interleave
from nst_fast.bench.peers import Gpu
from nst_fast.device import aligned_zeros
from nst_fast.encoders import Encoder
from nst_fast.graphs import Graph
from nst_fast.losses import Objective
from nst_fast.runtime import Session, providers

SIDE = 2048  # of the matrices
COPIED = 128 << 20  # bytes: beyond every cache
ITEM = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}  # bytes of a value


def peaks(threads: int, rounds: int) -> dict[str, float]:
    """Measure peak flops/s by precision, and the bytes/s of a copy, read and written, as "copy".

    The best of all rounds and of every way to multiply counts: a floor must not be beaten by luck.
    """
    routes: dict[str, Route] = {"numpy fp32": _numpy_product()}
    for status in providers():
        for precision in status.precisions:
            session = Session(
                _product_graph(), provider=status.name, precision=precision, threads=threads
            )
            for array in session.inputs.values():
                array[:] = 1.0
            routes[f"{status.name} {precision}"] = session.run
    with ThreadPoolExecutor(threads) as pool:
        times = interleave(routes | {"copy": _copy(pool, threads)}, rounds)
    found = {"copy": 2 * COPIED / min(times.pop("copy"))}
    for name, values in times.items():
        kind = name.split()[1]
        found[kind] = max(found.get(kind, 0.0), 2 * SIDE**3 / min(values))
    return found


def gpu_peaks(gpu: Gpu, rounds: int) -> dict[str, float]:
    """Measure the same on a GPU."""
    times = interleave(gpu.peak_routes(), rounds, gpu.wait)
    found = {"copy": 2 * gpu.COPIED / min(times.pop("copy"))}
    return found | {kind: 2 * gpu.SIDE**3 / min(values) for kind, values in times.items()}


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


def seconds(peaks: dict[str, float], precision: str, flops: float, moved: float) -> float:
    """Least seconds for a task at these peaks; 0 where none is known."""
    if precision not in peaks:
        return 0.0
    return max(flops / peaks[precision], moved / peaks["copy"])


def step_work(
    encoder: Encoder, objective: Objective, size: int, batch: int, precision: str
) -> tuple[float, float]:
    """Flops and bytes of one loss and gradient on ``batch`` pictures of ``size``² pixels.

    Convolutions count 2·9·C_in·C_out a pixel, forward and again backward; a Gram matrix C²·P (it is
    symmetric), its gradient 2·C²·P. Bytes: each activation is written once and read once by the
    backward pass, each weight read twice.
    """
    flops = activations = weights = 0.0
    channels = 3
    for tap in _reached(encoder, objective.taps):
        info = encoder.taps[tap]
        pixels = batch * (size // info.stride) ** 2
        kernel = 9 * channels * info.channels
        flops += 2 * 2 * kernel * pixels
        if tap in objective.style:
            flops += 3 * info.channels**2 * pixels
        activations += info.channels * pixels
        weights += kernel
        channels = info.channels
    return flops, 2 * ITEM[precision] * (activations + weights)


def _reached(encoder: Encoder, taps: Iterable[str]) -> list[str]:
    """Every layer up to the deepest tap."""
    names = list(encoder.taps)
    return names[: 1 + max(map(names.index, taps))]
