"""One command-line option for each field of a settings class, which stays the only place for it.

Names, types, defaults and descriptions are read from ``StyleSettings``, ``EngineOptions`` and their
docstrings; what is added here is the panel of the help that an option stands in, and how values
are typed that are no single word or number.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer

from nst_fast.batch_options import BatchOptions
from nst_fast.config import PRESETS, EngineOptions, PresetName, StyleSettings
from nst_fast.errors import SettingsError
from nst_fast.making_options import MakingOptions
from nst_fast.output_options import OutputOptions
from nst_fast.video_options import VideoOptions

Settings = TypeVar("Settings")

LOOK, SIZE, LOSS, OPTIMIZER, ENGINE, OUTPUT, MAKING, FILM, PICTURES, COURSE, WORKERS = (
    "Look",
    "Size, steps and start",
    "Loss",
    "Optimiser",
    "Engine",
    "File",
    "Long runs, and how they went",
    "Film",
    "Pictures and results",
    "Course of the run",
    "Workers",
)
PANELS: dict[str, tuple[str, ...]] = {
    LOOK: (
        *("content_weight", "style_weight", "style_scale", "style_blend", "style_mask"),
        *("style_regions", "content_mask", "colour", "shift", "smoothing", "tv_weight"),
    ),
    SIZE: (
        *("size", "steps", "scales", "until", "max_seconds"),
        *("init", "init_noise", "transfer_share", "seed"),
    ),
    LOSS: (
        *("style_loss", "style_space", "style_layers", "content_layers", "normalization"),
        *("range_weight", "margin"),
    ),
    OPTIMIZER: ("optimizer", "learning_rate", "history", "average"),
    ENGINE: ("encoder", "device", "provider", "precision", "plan", "threads", "max_memory"),
    OUTPUT: ("bits", "profile", "quality", "metadata", "sidecar"),
    MAKING: ("plot", "compare", "record", "record_every", "save_every"),
    FILM: ("temporal_weight", "follow_steps", "cut_share", "fps", "frames", "measure"),
    PICTURES: ("name", "include", "exclude", "hidden", "anywhere", "warm_start", "shard"),
    COURSE: ("redo", "retries", "timeout", "max_errors", "metrics_port", "metrics_host"),
    WORKERS: ("workers", "together", "executor", "address"),
}
METAVARS = {
    "size": "PIXELS|none",
    "until": "LEVELS|none",
    "max_seconds": "SECONDS|none",
    "style_layers": "TAP=WEIGHT,…",
    "content_layers": "TAP=WEIGHT,…",
    "style_blend": "SHARE,…",
    "style_scale": "SCALE,…",
    "style_mask": "FILE",
    "style_regions": "FILE|none",
    "content_mask": "FILE|none",
    "init": "content|noise|transfer|IMAGE",
    "encoder": "NAME|DIR",
    "device": "auto|cpu|cuda[:N]",
    "threads": "N|none",
    "max_memory": "AMOUNT|none",
    "quality": "1-100|lossless",
    "plot": "FORMAT|none",
    "compare": "FORMAT|none",
    "record": "FORMAT|none",
    "save_every": "STEPS|none",
    "follow_steps": "N|none",
    "fps": "N|none",
    "frames": "N|none",
    "name": "TEMPLATE",
    "include": "GLOB",
    "exclude": "GLOB",
    "shard": "I/N",
    "timeout": "SECONDS|none",
    "max_errors": "N|none",
    "metrics_port": "PORT|none",
    "metrics_host": "ADDRESS",
    "workers": "N|none",
    "address": "HOST:PORT|none",
}
WHOLE = (
    *("size", "threads", "max_errors", "metrics_port", "workers"),
    *("follow_steps", "frames", "save_every"),
)  # numbers, or none
NUMBERS = ("until", "max_seconds", "timeout", "fps")
WORDS = (
    *("address", "style_regions", "content_mask", "quality", "max_memory"),
    *("plot", "compare", "record"),
)  # or none


def with_options(*classes: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace ``**options`` in a command's signature by one option for each field of the classes.

    The command is called with all of them, None where one is not given; :func:`read` makes the
    classes' values of them.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        made = {item.name: _parameter(kind, item) for kind in classes for item in fields(kind)}
        order = [name for panel in PANELS.values() for name in panel if name in made]
        parameters = [*own, *(made[name] for name in order)]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in parameters}
        return function

    return decorate


def _parameter(kind: type, item: Field[Any]) -> inspect.Parameter:
    assert item.default is not MISSING
    name, annotation = item.name, get_type_hints(kind)[item.name]
    metavar = METAVARS.get(name) or _metavar(annotation)
    if annotation == tuple[str, ...]:
        annotation = list[str]  # given once for each
    elif name in METAVARS:
        annotation = str
    default = _default(name, item.default)
    option = typer.Option(
        # Typer itself would write (96) for a default that is not the parameter's own.
        help=descriptions(kind)[name] + (default and f"\n\n[dim]\\[default: {default}][/dim]"),
        metavar=metavar,
        rich_help_panel=next(panel for panel, names in PANELS.items() if name in names),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation | None, option],
    )


def _metavar(annotation: Any) -> str | None:
    """What stands for a value of a type in the help."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return {int: "N", float: "NUMBER"}.get(annotation)


def _default(name: str, value: Any) -> str:
    """A default as the help tells it; "" where nothing is typed for it."""
    if isinstance(value, bool):
        return f"--{'' if value else 'no-'}{name.replace('_', '-')}"
    return typed(value)


Preset = Annotated[
    PresetName,
    typer.Option(
        metavar="|".join(get_args(PresetName)),
        help="How fine: a draft to choose a style by, or fine for print; options given win.",
    ),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings", metavar="FILE", help="A TOML file of settings; options given win over it."
    ),
]


def read_all(
    options: Mapping[str, Any], preset: PresetName, path: Path | None
) -> tuple[StyleSettings, EngineOptions, OutputOptions]:
    """The settings of a command: what is typed, then a preset, a file, and the defaults.

    Raises:
        SettingsError: a value cannot work; the message names the option, or the file and its key.
    """
    style, engine, output = (
        {} if path is None else kind.given(path)
        for kind in (StyleSettings, EngineOptions, OutputOptions)
    )
    return (
        read(StyleSettings, options, {**style, **PRESETS[preset]}),
        read(EngineOptions, options, engine),
        read(OutputOptions, options, output),
    )


def descriptions(kind: type) -> dict[str, str]:
    """What the docstring of a settings class says about each field."""
    section = (inspect.getdoc(kind) or "").partition("Attributes:")[2].partition("\n\n")[0]
    entries = re.split(r"\n    (?=\w+: )", section)
    pairs = (entry.split(": ", 1) for entry in entries[1:])
    return {name: _as_typed(text) for name, text in pairs}


def _as_typed(text: str) -> str:
    """A description without markup, its values as they are typed."""
    words = " ".join(text.replace("``", "").replace('"', "").split())
    return re.sub(r"\bNone\b", "none", words)


def typed(value: Any) -> str:
    """A setting as it is typed."""
    if isinstance(value, Mapping):
        return ",".join(f"{tap}={weight:g}" for tap, weight in value.items())
    if isinstance(value, tuple):
        return ",".join(item if isinstance(item, str) else f"{item:g}" for item in value)
    return "none" if value is None else str(value)


def read(
    kind: type[Settings], options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Settings:
    """A settings class from the options that :func:`with_options` added; others are left alone.

    Args:
        kind: the class.
        options: by name; None where one was not given.
        defaults: that take the place of the class's own.

    Raises:
        SettingsError: a value cannot work; the message names the setting.
    """
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    given = {name: _parse(name, options[name]) for name in names if options.get(name) is not None}
    return kind(**(dict(defaults or {}) | given))


def _parse(name: str, value: Any) -> Any:
    """An option's value as its class takes it."""
    if name in ("style_layers", "content_layers"):
        return _parse_layers(name, value)
    if name in ("style_blend", "style_scale"):
        return tuple(_parse_number(name, s, METAVARS[name]) for s in value.split(",") if value)
    if name in WORDS + WHOLE + NUMBERS:
        if value.lower() == "none":
            return None
        if name in WHOLE and not re.fullmatch(r"[+-]?\d{1,9}", value):
            raise SettingsError(f"{name} must be a whole number, or none, not {value!r}")
        if name in NUMBERS:
            return _parse_number(name, value, "a number, or none")
        return int(value) if name in WHOLE else value
    return value


def _parse_layers(name: str, text: str) -> dict[str, float]:
    """Read "relu1_1=1,relu3_1=0.5"; a tap without a weight counts 1; empty text names none."""
    weights: dict[str, float] = {}
    for item in text.split(",") if text else []:
        tap, _, weight = item.strip().partition("=")
        if tap in weights:
            raise SettingsError(f"{name} names {tap} twice")
        weights[tap] = _parse_number(name, weight or "1", "TAP=WEIGHT,TAP=WEIGHT")
    return weights


def _parse_number(name: str, text: str, form: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{name}: {text!r} is not a number; write {form}") from None


def as_option(message: str) -> str:
    """Name a setting at the start of a message as its option is spelled."""
    name = re.match(r"\w*", message)
    assert name is not None
    kinds = (
        *(StyleSettings, EngineOptions, OutputOptions, MakingOptions),
        *(BatchOptions, VideoOptions),
    )
    known = {item.name for kind in kinds for item in fields(kind)}
    return f"--{name[0].replace('_', '-')}{message[name.end() :]}" if name[0] in known else message
