"""Which files of folders, globs and object stores are pictures of the batch, and which are not."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from nst_fast import images
from nst_fast.batch import storage
from nst_fast.batch.manifest import Entry
from nst_fast.batch_options import BatchOptions
from nst_fast.errors import BatchError

# Pictures of formats that the table of images does not have.
OTHERS = (".svg", ".xcf", ".kra", ".ico", ".tga", ".pcx", ".dds", ".eps", ".qoi", ".jxr")
# Folders that systems and storage boxes keep beside pictures: deleted files, previews.
TRASH = (
    *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "lost+found", "__MACOSX"),
    *("#recycle", "#snapshot", "@eaDir", "@Recycle", "@Recently-Snapshot"),
)
HIDDEN = "hidden or in hidden folders, which --hidden takes"


def entries(
    sources: Sequence[str], options: BatchOptions, output: str, left_out: Counter[str]
) -> Iterator[Entry]:
    """The files of paths, URLs, folders and globs; a file named by itself passes every filter.

    Args:
        sources: where to look.
        options: of these ``include``, ``exclude`` and ``hidden``.
        output: folder of the results; where it is inside a folder or glob, its files are none.
        left_out: counts what looks like a picture and is none of them, by the reason.

    Raises:
        BatchError: there is no such file or folder; the results would lie among the inputs.
    """
    endings = images.readable_endings()
    results = storage.canonical(output).rstrip("/")
    for source in sources:
        if storage.canonical(source).rstrip("/") == results:
            raise BatchError(
                f"--output {output} is the folder of the inputs, and a rerun would repaint its own "
                "results; choose another folder, which may be inside it"
            )
        meant = _named(source)
        for url, folder in storage.find(source):
            name = storage.canonical(url)
            top = storage.parent(url).removesuffix(folder).rstrip("/")
            entry = Entry(content=url, folder=folder, top=top)
            if name == storage.canonical(source):
                yield entry
            elif not (results.startswith(f"{top}/") and name.startswith(f"{results}/")):
                reason = _reason(folder, posixpath.basename(url), options, meant, endings)
                if reason is None:
                    yield entry
                elif reason:
                    left_out[reason] += 1


def _reason(
    folder: str, name: str, options: BatchOptions, meant: Sequence[str], endings: tuple[str, ...]
) -> str | None:
    """Why a file is left out, empty where nobody would expect it; None where it is taken."""
    parts = [part for part in folder.split("/") if part]
    excluded = any(fnmatch.fnmatch(p, glob) for p in (*parts, name) for glob in options.exclude)
    if excluded or name.startswith("._"):  # what macOS writes beside a file on other systems
        return ""
    if options.include:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in options.include):
            return ""
    elif not name.lower().endswith(endings):
        return _unread(name.lower())
    if not options.hidden and any(
        (part.startswith(".") or part in TRASH)
        and not any(fnmatch.fnmatchcase(part, pattern) for pattern in meant)
        for part in (*parts, name)
    ):
        return HIDDEN
    return None


def _unread(name: str) -> str:
    """What keeps a picture from being read; empty where it does not look like one."""
    for form in images.FORMATS:
        if name.endswith(form.endings):
            return f"{form.name}: {form.remedy or images.INSTALL}"
    ending = posixpath.splitext(name)[1]
    return f"{ending}, which is not read" if ending in OTHERS else ""


def _named(source: str) -> list[str]:
    """Parts of a glob that name hidden files or folders, which are meant then."""
    return [part for part in re.split(r"[/\\]", source) if part.startswith(".") or part in TRASH]


def told(left_out: Counter[str]) -> str:
    """What was left out, as one line; empty where nothing was."""
    reasons = [f"{count} {reason}" for reason, count in sorted(left_out.items())]
    return f"left out: {'; '.join(reasons)}" if reasons else ""
