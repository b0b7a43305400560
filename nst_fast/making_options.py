"""Options of what the making of a picture leaves besides it, in a batch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nst_fast.config import shown, whole_number
from nst_fast.errors import SettingsError

Kind = Literal["plot", "compare", "record"]

RECORD_EVERY = 2  # steps: 48 frames of the default, four seconds
# What is written besides, and in which format where none is named.
FILES: Mapping[Kind, str] = {"plot": "svg", "compare": "jpg", "record": "webp"}
MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class MakingOptions:
    """What the making of each picture of a batch leaves besides it.

    A file is asked for by its format alone, such as "png": then it lies beside the picture, with
    both names, as a.png.compare.png does. Of one picture it can be a path, too.

    Attributes:
        plot: The losses of all steps, drawn, as FILE.plot.svg: svg, png or pdf; None draws none.
        compare: Content, style and result side by side, as FILE.compare.jpg: jpg, png, webp or tif;
            None writes none.
        record: A film of the picture as it is made, as FILE.record.webp: webp, png, apng or mp4;
            None films nothing.
        record_every: The steps from frame to frame.
        save_every: After how many steps the state of a run is saved, as FILE.state, for the batch
            to go on within the picture when it is run again; None saves none.

    Raises:
        SettingsError: a value cannot work; the message names the option.
    """

    plot: str | bool | None = None
    compare: str | bool | None = None
    record: str | bool | None = None
    record_every: int = RECORD_EVERY
    save_every: int | None = None

    def __post_init__(self) -> None:
        """Check every value; True is the usual format, False is None."""
        for name, usual in FILES.items():
            value = getattr(self, name)
            if isinstance(value, bool):
                object.__setattr__(self, name, usual if value else None)
            elif value is not None and not (isinstance(value, str) and value):
                raise SettingsError(f"{name} must be a format or a path, not {shown(value)}")
        every = whole_number("record_every", self.record_every, 1, MOST_STEPS)
        object.__setattr__(self, "record_every", every)
        if self.save_every is not None:
            every = whole_number("save_every", self.save_every, 1, MOST_STEPS)
            object.__setattr__(self, "save_every", every)

    @property
    def paths(self) -> dict[Kind, str]:
        """What names a file of its own, not a format, by its option."""
        return {name: value for name, value in self._given() if not _is_format(value)}

    def files(self, output: str) -> dict[Kind, str]:
        """Paths or URLs of the files of the picture at ``output``, by their options."""
        return self.paths | {
            name: f"{output}.{name}.{value.removeprefix('.').lower()}"
            for name, value in self._given()
            if _is_format(value)
        }

    def _given(self) -> list[tuple[Kind, str]]:
        found = [(name, getattr(self, name)) for name in FILES]
        return [(name, value) for name, value in found if value is not None]

    @property
    def alone(self) -> bool:
        """Whether a picture has to be made by itself, as its run is looked at on the way."""
        return bool(self.record or self.save_every)


def _is_format(value: str) -> bool:
    """Whether it is an ending, with or without its dot."""
    return re.fullmatch(r"\.?\w+", value) is not None
