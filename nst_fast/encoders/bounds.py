"""How large a pack may be, and where its files lie: beyond, nothing of it is read."""

from __future__ import annotations

import stat
from pathlib import Path

MOST_CHANNELS = 4096
MOST_STRIDE = 256
_MOST_BYTES = {"manifest.json": 1 << 20, "forward.onnx": 1 << 26, "backward.onnx": 1 << 26}
_MOST_WEIGHTS = 1 << 31


def check_file(path: Path) -> None:
    """Raise ValueError unless it is a file of its folder, no link out of it, of a pack's size."""
    most = _MOST_BYTES.get(path.name, _MOST_WEIGHTS)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or path.resolve().parent != path.parent.resolve():
        raise ValueError(f"{path.name} is no file of this folder")
    if status.st_size > most:
        raise ValueError(f"{path.name} is larger than {most >> 20} MiB")
