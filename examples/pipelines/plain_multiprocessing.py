"""Pictures of a folder with nothing but multiprocessing: one Stylizer a process, one thread each.

    python plain_multiprocessing.py photos painting.jpg out

No journal, no retries: for those use nst_fast.batch.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

from nst_fast import EngineOptions, NstError, StyleSettings, Stylizer

SETTINGS = StyleSettings(size=256, steps=100)
stylizer: Stylizer


def start() -> None:
    global stylizer  # noqa: PLW0603 - each process has its own
    stylizer = Stylizer(EngineOptions(threads=1))


def make(paths: tuple[Path, Path, Path]) -> str:
    content, style, output = paths
    try:
        stylizer.stylize(content, style, SETTINGS).save(output)
    except NstError as error:
        return f"failed: {error}"
    return str(output)


def main(source: str, style: str, output: str) -> None:
    Path(output).mkdir(parents=True, exist_ok=True)
    files = sorted(Path(source).glob("*.jpg"))
    tasks = [(path, Path(style), Path(output) / f"{path.stem}.png") for path in files]
    with multiprocessing.get_context("spawn").Pool(initializer=start) as pool:
        for line in pool.imap_unordered(make, tasks):
            print(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
