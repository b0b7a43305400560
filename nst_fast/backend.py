"""Backend: where a Plan computes."""

from __future__ import annotations

from dataclasses import dataclass

from nst_fast.device import Launcher
from nst_fast.kernels import Kernels
from nst_fast.library import Precision, Provider


@dataclass(frozen=True)
class Backend:
    """Where a Plan computes.

    Attributes:
        provider: that runs the encoder.
        precision: of the encoder.
        threads: for the provider, and the kernels' own, on the CPU.
        kernels: of the CPU.
        launcher: the GPU that the provider runs on; None on the CPU.
    """

    provider: Provider
    precision: Precision
    threads: int
    kernels: Kernels
    launcher: Launcher | None = None

    @property
    def device(self) -> str:
        """Name of the device: "cpu", or that of the GPU."""
        return "cpu" if self.launcher is None else self.launcher.name
