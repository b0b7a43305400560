"""One command-line option for each of StyleSettings, which stays the only place that names them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer

from nst_fast.config import StyleSettings
from nst_fast.errors import SettingsError

DEFAULTS = StyleSettings()


def _descriptions() -> dict[str, str]:
    """What the docstring of StyleSettings says about each setting."""
    section = (inspect.getdoc(StyleSettings) or "").partition("Attributes:")[2]
    entries = re.split(r"\n    (?=\w+: )", section.partition("\n\n")[0])
    pairs = (entry.split(": ", 1) for entry in entries[1:])
    return {name: " ".join(text.replace("``", "").split()) for name, text in pairs}


_METAVARS = {
    "size": "PIXELS|none",
    "style_layers": "TAP=WEIGHT,…",
    "content_layers": "TAP=WEIGHT,…",
    "style_blend": "SHARE,…",
    "init": "content|noise|IMAGE",
}


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Replace ``**settings`` in a command's signature by one option for each of StyleSettings.

    Types, defaults and descriptions are read from there, so that a setting is written once.
    """
    descriptions, hints = _descriptions(), get_type_hints(StyleSettings)
    signature = inspect.signature(function, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for name in (item.name for item in fields(StyleSettings)):
        metavar, default = _METAVARS.get(name), getattr(DEFAULTS, name)
        option = typer.Option(help=descriptions.get(name), metavar=metavar)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_text(default) if metavar else default,
                annotation=Annotated[str if metavar else hints[name], option],
            )
        )
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


def _text(value: Any) -> str:
    """A setting as it is typed."""
    if isinstance(value, Mapping):
        return ",".join(f"{tap}={weight:g}" for tap, weight in value.items())
    if isinstance(value, tuple):
        return ",".join(f"{share:g}" for share in value)
    return str(value).lower()


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


def _parse(name: str, value: Any) -> Any:
    """An option's value as StyleSettings takes it."""
    if name in ("style_layers", "content_layers"):
        return _parse_layers(name, value)
    if name == "style_blend":
        return tuple(_parse_number(name, s, "SHARE,SHARE") for s in value.split(",") if value)
    if name == "size":
        if value.lower() == "none":
            return None
        if not re.fullmatch(r"[+-]?\d{1,9}", value):
            raise SettingsError(f"size must be a whole number of pixels, or none, not {value!r}")
        return int(value)
    return value


def read_settings(options: Mapping[str, Any]) -> StyleSettings:
    """Settings from the options that :func:`with_settings` added.

    Raises:
        SettingsError: a value cannot work; the message names the setting.
    """
    return StyleSettings(**{name: _parse(name, value) for name, value in options.items()})


def as_option(message: str) -> str:
    """Name a setting at the start of a message as its option is spelled."""
    name = re.match(r"\w*", message)
    assert name is not None
    known = {item.name for item in fields(StyleSettings)} | {"threads", "device"}
    return f"--{name[0].replace('_', '-')}{message[name.end() :]}" if name[0] in known else message
