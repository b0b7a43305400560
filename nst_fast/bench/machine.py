"""The machine: what the numbers depend on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

import nst_fast
from nst_fast import _core, runtime
from nst_fast.host import cpu_features, cpu_model, usable_cores

PACKAGES = ("numpy", "scipy", "torch")
BUSY = 0.25  # load per core from which other programs disturb


def bf16_features() -> list[str]:
    """The bfloat16 instruction sets of this CPU."""
    return [name for name in runtime.BF16_FEATURES if name in cpu_features()]


def by_amx(with_amx: float, without: float) -> float:
    """Pick the target of this CPU."""
    return with_amx if "amx_bf16" in bf16_features() else without


def facts(threads: int) -> dict[str, Any]:
    """CPU, clocks where readable (MHz), memory (bytes), load of 1, 5 and 15 minutes, versions."""
    clock = psutil.cpu_freq()
    return {
        "cpu": cpu_model(),
        "bf16": bf16_features(),
        "features": sorted(cpu_features()),
        "kernels": _core.path(),
        "cores": usable_cores(),
        "threads": threads,
        "clock": round(clock.current) if clock else None,
        "memory": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "load": load(),
        "revision": _revision(),
        "versions": _versions(),
    }


def load() -> list[float]:
    """Processes that want to run, over the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def _versions() -> dict[str, str]:
    found = {"nst-fast": version("nst-fast"), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | runtime.versions()


def _revision() -> str:
    """Git revision of the checkout, with "+" where files were changed; empty outside of one."""
    folder = Path(nst_fast.__file__).parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
