"""``nst-fast info``: what this machine offers."""

from __future__ import annotations

import json
import platform
from typing import Annotated, Any

import numpy as np
import typer

import nst_fast
from nst_fast import encoders, kernels, runtime
from nst_fast.errors import ProviderError
from nst_fast.gpu.cuda import gpu_names
from nst_fast.host import cpu_features, cpu_model, usable_cores
from nst_fast.limits import allowed_memory, memory_text


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show versions, providers, what of this machine may be used, and the encoders at hand."""
    facts = _facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for heading, content in facts.items():
        typer.echo(f"{heading}:")
        for name, value in content.items():
            typer.echo(f"  {name}: {', '.join(value) if isinstance(value, list) else value}")


def _facts() -> dict[str, dict[str, Any]]:
    kernels.Kernels(1)  # says what to do where the compiled module is missing
    from nst_fast import _core

    versions = {"nst-fast": nst_fast.__version__, "python": platform.python_version()}
    return {
        "versions": versions | {"numpy": np.__version__} | runtime.versions(),
        "providers": {p.name: p.problem or list(p.precisions) for p in runtime.providers()},
        "auto": _auto(),
        "cpu": {
            "model": cpu_model(),
            "cores": usable_cores(),
            "memory": memory_text(allowed_memory()),
            "features": sorted(cpu_features()),
            "kernels": _core.path(),
        },
        "gpus": _gpus(),
        "encoders": {e.name: f"{e.state}: {e.path or e.description}" for e in encoders.catalogue()},
    }


def _auto() -> dict[str, Any]:
    """What "auto" takes here, and what would be faster."""
    try:
        taken = " ".join(runtime.choose("auto", "auto"))
    except ProviderError as error:
        taken = str(error)
    advice = runtime.faster()
    return {"takes": taken, "faster": advice} if advice else {"takes": taken}


def _gpus() -> dict[str, str]:
    """Name of each GPU by its device, or why there is none."""
    try:
        return {f"cuda:{index}": name for index, name in enumerate(gpu_names())}
    except ProviderError as error:
        return {"none": str(error)}
