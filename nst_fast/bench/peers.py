"""Finding the peers: what a user would run instead lives in a checkout, under ``bench/peers``.

They need torch, which nst-fast does not; an installed wheel has none of them and is measured alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import nst_fast
from nst_fast.bench.findings import Device
from nst_fast.bench.method import Route
from nst_fast.bench.problem import Problem, Step
from nst_fast.errors import BenchError
from nst_fast.host import Float32, Float64

REPEATS = 20  # of a GPU's work at a tap in one graph: its kernels are shorter than their launch
CHECKOUT = Path(nst_fast.__file__).parents[1] / "bench" / "peers"
Evaluate = Callable[[Float32], tuple[float, Float64]]


@dataclass(frozen=True)
class GramRoutes:
    """The work at one tap, prepared: ``nst_fast.losses.moments`` has its equations.

    Attributes:
        forward: moments of the features, all weights 1.
        gradient: the way back, A F + b 1ᵀ.
        moments: that forward left, (C+1, C+1) float32.
        found: the gradient (C, P) float32.
        repeats: how often a call of forward or gradient does its work.
    """

    forward: Route
    gradient: Route
    moments: Callable[[], Float32]
    found: Callable[[], Float32]
    repeats: int = 1


@dataclass(frozen=True)
class GramPeer:
    """Another way to do the work of the kernels at a tap.

    Attributes:
        precision: of its products, and of its features where they are stored so.
        make: prepares it for F (C, P), [A b] (C, C+1) float32 and a number of threads.
    """

    precision: str
    make: Callable[[Float32, Float32, int], GramRoutes]


@dataclass(frozen=True)
class StepPeer:
    """Another way to compute loss and gradient.

    Attributes:
        precision: of its products.
        make: prepares it; everything that can be done before the clock starts is done here.
        compiled: whether the preparation takes a minute a shape.
        several: whether it takes several pictures at once.
    """

    precision: str
    make: Callable[[Problem], Step]
    compiled: bool = False
    several: bool = True


class Gpu(Protocol):
    """The GPU as the peers see it."""

    @staticmethod
    def facts() -> dict[str, Any]:
        """What the numbers depend on, "gpu" its name; raises BenchError where there is none."""

    @staticmethod
    def wait() -> None:
        """Return when it has done all that it was given."""

    @staticmethod
    def peak_routes() -> dict[str, Route]:
        """A product of matrices of side ``SIDE`` by precision, and a copy of ``COPIED`` bytes."""

    SIDE: int
    COPIED: int


class Peers(Protocol):
    """What the package of the peers offers.

    Attributes:
        STEPS: loss and gradient, by device and name.
        GRAMS: the work of the kernels at a tap, by device and name.
        MINIMIZERS: other L-BFGS, by name; each takes a function of the flat picture (D,) that
            gives loss and gradient, the picture to start from, and the number of evaluations.
        CLASSIC: module of the script that makes a whole picture the classic way.
        CLASSICS: ways to run it, by name: the precision of its products, and its arguments.
        JUDGED: module of the program that judges pictures.
        MEMORY: arguments of that script by name, for its peak of memory.
        gpu: the GPU, if there is one.
    """

    STEPS: Mapping[Device, Mapping[str, StepPeer]]
    GRAMS: Mapping[Device, Mapping[str, GramPeer]]
    MINIMIZERS: Mapping[str, Callable[[Evaluate, Float32, int], object]]
    CLASSIC: str
    CLASSICS: Mapping[str, tuple[str, tuple[str, ...]]]
    JUDGED: str
    MEMORY: Mapping[str, tuple[str, ...]]
    gpu: Gpu

    @staticmethod
    def random_vgg19(folder: Path) -> Path:
        """Build VGG-19 with random weights in ``folder``; return its pack."""


def load(folder: Path | None) -> tuple[Peers | None, Path, str]:
    """Import the peers: themselves, the folder to import them from, and why there are none.

    Args:
        folder: that holds them; None: the checkout that nst-fast runs from, if it is one.

    Raises:
        BenchError: ``folder`` holds none.
    """
    place = (folder or CHECKOUT).resolve()
    if not (place / "__init__.py").is_file():
        if folder is not None:
            raise BenchError(f"--peers: {folder} holds no peers; name bench/peers of a checkout")
        return None, place.parent, "no peers: they come with a checkout; see --peers"
    sys.path.insert(0, str(place.parent))
    try:
        found = cast(Peers, importlib.import_module(place.name))
    except ImportError as error:
        reason = f'no peers: {error.name} is missing; run: pip install "nst-fast[bench]"'
        if folder is not None:
            raise BenchError(reason) from None
        return None, place.parent, reason
    finally:
        sys.path.remove(str(place.parent))
    return found, place.parent, ""
