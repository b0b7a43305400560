"""The state of a run in a file: all that its next step depends on, and what run it is.

A file is an uncompressed ``.npz``, read without pickle: arrays, and JSON beside them. Each member
has its CRC-32, so that damage is found. It appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst_fast.config import StyleSettings
from nst_fast.device import DeviceArray, HostMemory, Memory
from nst_fast.errors import SettingsError, StateError, one_line
from nst_fast.files import open_atomically, sweep, tag_of

FORMAT = 1
ABOUT = "about"  # the member that holds the JSON
# What may be another when a run goes on: the time it has, and, within limits, its steps.
CHANGEABLE = ("steps", "max_seconds")
PATHS = ("style_mask", "style_regions", "content_mask")  # what they lead to is compared
LONGEST = 40  # characters of a value that says more than that it differs

HOST = HostMemory()
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Saving:
    """Where and how often a run saves its state.

    Attributes:
        path: of the file.
        every: steps.

    Raises:
        SettingsError: ``every`` is below 1.
    """

    path: str
    every: int

    def __post_init__(self) -> None:
        """Check the number."""
        if self.every < 1:
            raise SettingsError(f"save_every must be at least 1, not {self.every}")

    def due(self, before: int, now: int) -> bool:
        """Whether the steps since ``before`` came by one to save at; on a GPU there are several."""
        return now // self.every > before // self.every

    def left(self, now: int) -> int:
        """How many steps to the next one to save at."""
        return self.every - now % self.every


@dataclass(frozen=True)
class Course:
    """How far a run is.

    Attributes:
        steps: of the settings.
        taken: steps at each size so far.
        left: steps at the last of them.
        kinds: what the reports at each size are of.
        notes: what could not be done as asked.
        seconds: since it began.
        preparing: of these, until its steps.
        processor: that it ran on.
    """

    steps: int
    taken: Sequence[int]
    left: int
    kinds: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    seconds: float
    preparing: float
    processor: str


@dataclass(frozen=True)
class State:
    """A run on its way.

    Attributes:
        source: the file, as messages name it.
        identity: what the run is, from :func:`identity`.
        course: how far it is.
        arrays: by name; of a loop and of the steps so far.
    """

    source: str
    identity: Mapping[str, Any]
    course: Course
    arrays: Arrays

    def save(self) -> None:
        """Write the file; one that is there is replaced.

        Raises:
            StateError: writing failed; the file is as it was.
        """
        about = {
            "format": FORMAT,
            "identity": self.identity,
            "course": asdict(self.course),
            "arrays": sorted(self.arrays),
        }
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        target = Path(self.source).resolve()
        tag = tag_of(target)
        sweep(target.parent, tag)
        try:
            with open_atomically(target, tag) as file:
                np.savez(file, **{ABOUT: text}, **self.arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise StateError(
                f"the state {self.source} cannot be written ({one_line(error)}); "
                "make room, or choose another folder"
            ) from None

    @classmethod
    def load(cls, source: str) -> State:
        """Read a file.

        Raises:
            StateError: it is missing, damaged, or no state.
        """
        try:
            with open(source, "rb") as file, np.load(file, allow_pickle=False) as members:
                arrays = {name: members[name] for name in members.files}
            about = json.loads(arrays.pop(ABOUT).tobytes())
            if (about["format"], about["arrays"]) != (FORMAT, sorted(arrays)):
                raise ValueError
            return cls(source, dict(about["identity"]), Course(**about["course"]), arrays)
        except OSError as error:
            raise StateError(f"the state {source} cannot be read ({one_line(error)})") from None
        except MemoryError:
            raise
        except Exception:  # whatever the readers of damaged archives and headers raise
            raise StateError(
                f"{source} is no state of a run, damaged, or of another version; start the run anew"
            ) from None

    def check(self, here: Mapping[str, Any]) -> None:
        """Refuse to go on with another run.

        Args:
            here: its identity, or a part of it.

        Raises:
            StateError: something differs; all of it is named in one line.
        """
        differing = list(_differences(self.identity, here))
        if differing:
            raise StateError(f"{self.source} is the state of another run: {'; '.join(differing)}")

    def into(self, arrays: Mapping[str, DeviceArray], memory: Memory = HOST) -> None:
        """Overwrite arrays of ``memory`` with those of the file that have their names.

        Raises:
            StateError: one is missing, or has another shape or type.
        """
        for name, array in arrays.items():
            found = self.arrays.get(name)
            if found is None or (found.shape, found.dtype) != (tuple(array.shape), array.dtype):
                raise StateError(
                    f"{self.source} does not fit this run ({name}); start the run anew"
                )
            memory.upload(found, array)


def discard(path: str) -> None:
    """Remove a state, if there is one, and what a kill left of it half-written."""
    target = Path(path).resolve()
    target.unlink(missing_ok=True)
    sweep(target.parent, tag_of(target))


def identity(
    settings: StyleSettings,
    environment: Mapping[str, Any],
    pictures: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """What makes a run what it is, JSON-able: with the same it takes the same steps.

    Args:
        settings: of the run; ``CHANGEABLE`` are left out, and paths.
        environment: of its workspace.
        pictures: digests of all that were given, by their part; of a start as "init".
    """
    values = settings.as_dict()
    for name in (*CHANGEABLE, *PATHS, *(["init"] if pictures["init"] else [])):
        del values[name]
    versions = {k: v for k, v in environment["versions"].items() if k != "python"}
    found = values | dict(environment) | {"versions": versions, "pictures": dict(pictures)}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """What is another in a file, in words."""
    for name, value in here.items():
        other = there.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            for each in _differences(other, dict.fromkeys(other) | value):
                yield f"{name} {each}"
        elif value != other:
            shown = f"{other} there, {value} here"
            yield f"{name} ({shown})" if len(shown) <= LONGEST else f"{name} (another)"
