"""Settings in a TOML file: those of a picture at the top, others in tables of their own.

    size = 1024
    style_layers = { relu1_1 = 1.0, relu3_1 = 0.5 }

    [engine]
    threads = 4

    [output]
    bits = 16

Names and values are those of the classes; "none" stands for None, which TOML does not have.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_type_hints

from nst_fast.errors import SettingsError, one_line
from nst_fast.files import write_atomically

TABLES = ("engine", "output")
ENDING = ".toml"
NONE = "none"


class Stored:
    """A dataclass of settings that can be read from a TOML file and written to one."""

    _table: ClassVar[str] = ""

    def __init_subclass__(cls, table: str = "") -> None:
        """Set the table of the file that the class is in; "" is its top."""
        cls._table = table

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Self:
        """The settings of a file; what it does not name is at its default.

        Raises:
            SettingsError: it cannot be read, has a key without meaning, or a value that cannot
                work; the message names file and key.
        """
        return cls(**cls.given(path))

    @classmethod
    def given(cls, path: str | os.PathLike[str]) -> dict[str, Any]:
        """What a file gives of these settings, checked; errors as for :meth:`from_toml`."""
        found = _read(path)
        if cls._table:
            found = found.get(cls._table, {})
        else:
            found = {name: value for name, value in found.items() if name not in TABLES}
        where = f"settings {path}:" + (f" [{cls._table}]" if cls._table else "")
        if not isinstance(found, dict):
            raise SettingsError(f"{where} must be a table")
        try:
            values = cls._expanded(found)
            hints = get_type_hints(cls)
            _check_names(values, hints)
            values = {
                name: None if _is_none(value) and type(None) in get_args(hints[name]) else value
                for name, value in values.items()
            }
            cls(**values)
        except SettingsError as error:
            raise SettingsError(f"{where} {error}") from None
        return values

    def to_toml(self, path: str | os.PathLike[str]) -> None:
        """Write all of them to a file, which is replaced; :meth:`from_toml` gives them back.

        Raises:
            SettingsError: it cannot be written, or its name does not end in .toml.
        """
        write(path, [self])

    @classmethod
    def _expanded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by field, of what a file has."""
        return dict(values)


def write(path: str | os.PathLike[str], stored: Iterable[Stored]) -> None:
    """Write settings of different classes to one file; errors as for ``Stored.to_toml``."""
    import tomli_w

    check_target(path)
    document: dict[str, Any] = {}
    for each in stored:
        values = {item.name: _plain(getattr(each, item.name)) for item in fields(each)}  # type: ignore[arg-type]
        document |= {each._table: values} if each._table else values
    try:
        write_atomically(Path(path).resolve(), tomli_w.dumps(document).encode())
    except (OSError, ValueError) as error:  # ValueError: bytes of a name that are no text
        raise SettingsError(
            f"settings {path} cannot be written ({one_line(error)}); choose another name"
        ) from None


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a file that settings are not to be written to.

    Raises:
        SettingsError: its name does not end in .toml, it is a folder, or lies in none.
    """
    target = Path(path)
    if target.suffix.lower() != ENDING:  # a picture typed in its place would be lost
        raise SettingsError(f"settings {path} must end in {ENDING}")
    if target.is_dir():
        raise SettingsError(f"settings {path} is a folder; name a file in it")
    if not target.resolve().parent.is_dir():
        raise SettingsError(f"settings {path}: there is no such folder; create it first")


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"settings {path}: no such file; check the path") from None
    except OSError as error:
        raise SettingsError(
            f"settings {path} cannot be read ({one_line(error)}); name a TOML file"
        ) from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or one without end
        raise SettingsError(
            f"settings {path} is no TOML ({one_line(error)}); correct it there"
        ) from None


def _check_names(values: Iterable[str], known: Iterable[str]) -> None:
    names = sorted(name for name in known if not name.startswith("_"))
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            advice = f"did you mean {near[0]}?" if near else "see nst-fast stylize --help"
            raise SettingsError(f"there is no setting {name!r}; {advice}")


def _is_none(value: object) -> bool:
    return isinstance(value, str) and value.lower() == NONE


def _plain(value: Any) -> Any:
    """A value as TOML has it."""
    if isinstance(value, Mapping):
        return dict(value)
    return NONE if value is None else value
