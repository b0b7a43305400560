"""From folders, globs and manifests to jobs: filters, names of outputs, shards, frames."""

from __future__ import annotations

import fnmatch
import os
import posixpath
import string
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nst_fast.batch import storage
from nst_fast.batch.jobs import Job, with_changes
from nst_fast.batch.manifest import Entry
from nst_fast.config import StyleSettings
from nst_fast.errors import BatchError, SettingsError

PICTURES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".jp2"),
)
FIELDS = ("folder", "stem", "name", "style")
DEFAULT_NAME = "{folder}/{stem}.png"


@dataclass(frozen=True)
class Filters:
    """Which files of a folder or glob are taken; patterns are matched with the file's name.

    Attributes:
        include: one of these has to match; empty: every name that ends like a picture.
        exclude: none of these may match.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def accept(self, name: str) -> bool:
        """Whether a file of this name is taken; hidden ones never are."""
        if name.startswith(".") or any(fnmatch.fnmatch(name, p) for p in self.exclude):
            return False
        if self.include:
            return any(fnmatch.fnmatch(name, pattern) for pattern in self.include)
        return name.lower().endswith(PICTURES)


def entries(sources: Sequence[str], filters: Filters, output: str) -> Iterator[Entry]:
    """The files of paths, URLs, folders and globs; a file named by itself passes every filter.

    Args:
        sources: where to look.
        filters: for names in folders and globs.
        output: folder of the results; where it is inside a folder or glob, its files are none.

    Raises:
        BatchError: there is no such file or folder; the results would lie among the inputs.
    """
    results = storage.canonical(output).rstrip("/")
    for source in sources:
        if storage.canonical(source).rstrip("/") == results:
            raise BatchError(
                f"--output {output} is the folder of the inputs, and a rerun would repaint its own "
                "results; choose another folder, which may be inside it"
            )
        for url, folder in storage.find(source):
            name = storage.canonical(url)
            if name == storage.canonical(source):
                yield Entry(content=url, folder=folder)
                continue
            top = storage.parent(url).removesuffix(folder).rstrip("/")
            made = results.startswith(f"{top}/") and name.startswith(f"{results}/")
            if not made and filters.accept(posixpath.basename(url)):
                yield Entry(content=url, folder=folder)


def to_jobs(
    found: Iterator[Entry],
    *,
    styles: Sequence[str],
    output: str,
    name: str,
    settings: StyleSettings,
) -> list[Job]:
    """Jobs of what was found, in its order.

    Args:
        found: from folders or a manifest.
        styles: of entries that name none.
        output: folder of the results.
        name: template of a result's path in it; see :func:`check_name`.
        settings: of every job, with the changes of its entry.

    Raises:
        BatchError: an entry without a style, or with an output that cannot be.
        SettingsError: a setting of an entry cannot work.
    """
    check_name(name)
    jobs = []
    for entry in found:
        chosen = entry.styles or tuple(styles)
        if not chosen:
            raise BatchError(f"{entry.content} has no style; give --style, or one in the manifest")
        path = entry.output or _fill(name, entry, chosen)
        if not entry.output and ".." in path.split("/"):
            raise BatchError(f"{entry.content}: its output {path} would leave {output}")
        changed = _changed(settings, entry)
        jobs.append(Job(entry.content, chosen, storage.join(output, path), changed))
    return jobs


def _changed(settings: StyleSettings, entry: Entry) -> StyleSettings:
    try:
        return with_changes(settings, entry.settings) if entry.settings else settings
    except SettingsError as error:
        raise BatchError(f"{entry.origin}: {error}") from None


def check_name(template: str) -> None:
    """Refuse a template with unknown fields; ``FIELDS`` are those of a content picture.

    Raises:
        SettingsError: names the option.
    """
    try:
        named = {
            field for _, field, _, _ in string.Formatter().parse(template) if field is not None
        }
        template.format(**dict.fromkeys(FIELDS, "x"))
    except (ValueError, KeyError, IndexError, AttributeError):
        named = {""}
    if not named or not named <= set(FIELDS):
        choices = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise SettingsError(f"--name {template!r} must be a path with some of {choices}")


def _fill(template: str, entry: Entry, styles: Sequence[str]) -> str:
    name = posixpath.basename(entry.content)
    values = {
        "folder": entry.folder,
        "stem": posixpath.splitext(name)[0],
        "name": name,
        "style": "+".join(posixpath.splitext(posixpath.basename(url))[0] for url in styles),
    }
    return posixpath.normpath(template.format(**values)).lstrip("/")


def shard(jobs: Sequence[Job], part: str, *, output: str, by_folder: bool = False) -> list[Job]:
    """The part "i/n" of the jobs; by name, so that machines agree whatever else is in a folder.

    Args:
        jobs: all.
        part: "1/4" to "4/4".
        output: folder of the results: names in it count, which machines may reach by other paths.
        by_folder: keep the outputs of a folder together.

    Raises:
        SettingsError: ``part`` is nothing of the kind.
    """
    first, _, count = part.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise SettingsError(f"--shard must be i/n with i from 1 to n, such as 1/4, not {part!r}")
    index, shards = int(first) - 1, int(count)

    def key(job: Job) -> str:
        name = storage.parent(job.output) if by_folder else storage.canonical(job.output)
        return name.removeprefix(storage.canonical(output).rstrip("/"))

    return [job for job in jobs if zlib.crc32(os.fsencode(key(job))) % shards == index]


def as_frames(jobs: Sequence[Job]) -> list[Job]:
    """Let each picture of a folder start from the result of the one before it.

    Raises:
        BatchError: an output is remote: a frame starts from a file.
    """
    last: dict[str, str] = {}
    frames = []
    for job in jobs:
        if storage.is_remote(job.output):
            raise BatchError(f"output {job.output}: --warm-start needs a local --output folder")
        folder = storage.parent(job.content)
        before = last.get(folder, "")
        settings = with_changes(job.settings, {"init": before}) if before else job.settings
        frames.append(replace(job, settings=settings, after=before))
        last[folder] = job.output
    return frames
