"""Ours on a GPU: what the suites ask of the engine there; the peers have all the rest.

Both functions give nothing until they are filled in, and ``--device cuda`` then measures the peers
alone, with a note that says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nst_fast.bench.peers import GramPeer
from nst_fast.bench.problem import Problem, Step
from nst_fast.config import PrecisionName, ProviderName


def steps(
    problem: Problem, providers: Sequence[ProviderName], precisions: Sequence[PrecisionName]
) -> Mapping[str, tuple[Step, str]]:
    """Loss and gradient on the GPU, prepared: step and precision by name, such as "fp16 cuda".

    Args:
        problem: of one picture or several; its arrays are numpy's.
        providers: that were asked for; what cannot be had is left out.
        precisions: likewise.
    """
    del problem, providers, precisions
    return {}


def grams() -> Mapping[str, GramPeer]:
    """Our Gram kernels on the GPU, by name, such as "CUDA kernel fp16"."""
    return {}
