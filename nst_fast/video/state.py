"""What a killed run goes on from: one file, written anew, whole or not at all, after each frame.

It has a row for each frame that is on the disk, and the pictures that the next one needs. A kill
costs the frame that was being made; it is made again to the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nst_fast.errors import VideoError, one_line
from nst_fast.files import write_atomically
from nst_fast.images import Picture
from nst_fast.video.sequence import Before

NAME = ".nst-fast-video.npz"


@dataclass(frozen=True)
class Row:
    """How a frame came about.

    Attributes:
        file: its name in the folder of frames.
        length: of that file in bytes.
        pts: when it is shown, in units of the source's time base.
        cut: whether it is the first of a shot.
        seen: share of it that was seen in the frame before.
        steps: that it took.
        loss: at the end.
        seconds: that it took.
        error: warping error against the frame before, a mean of squares; None after a cut.
        alone_error: that of the same frames made by themselves; None where it is not measured.
    """

    file: str
    length: int
    pts: int
    cut: bool
    seen: float
    steps: int
    loss: float
    seconds: float
    error: float | None
    alone_error: float | None


@dataclass(frozen=True)
class State:
    """The frames made so far, and what the next one follows.

    Attributes:
        digest: of all that decides them.
        rows: in their order.
        before: None where there are none.
    """

    digest: str
    rows: Sequence[Row] = ()
    before: Before | None = None

    def save(self, folder: Path) -> None:
        """Write it; raises OSError."""
        header = json.dumps({"digest": self.digest, "rows": [asdict(row) for row in self.rows]})
        arrays = {"header": np.frombuffer(header.encode(), np.uint8)}
        if self.before is not None:
            parts = {name: getattr(self.before, name) for name in ("content", "painting", "alone")}
            arrays |= {name: part.pixels for name, part in parts.items() if part is not None}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomically(folder / NAME, buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> State | None:
        """Read it; None where there is none.

        Raises:
            VideoError: it is damaged, or a frame that it lists is not there.
        """
        path = folder / NAME
        try:
            with np.load(path, allow_pickle=False) as found:
                header = json.loads(found["header"].tobytes())
                parts = {
                    n: Picture(found[n]) for n in ("content", "painting", "alone") if n in found
                }
            rows = [Row(**row) for row in header["rows"]]
            state = cls(header["digest"], rows, Before(**parts) if parts else None)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise VideoError(
                f"{path} is damaged ({one_line(error)}); give --redo to begin anew"
            ) from None
        for row in rows:
            file = folder / row.file
            if not (file.is_file() and file.stat().st_size == row.length):
                raise VideoError(f"{file} is missing or was changed; give --redo to begin anew")
        return state
