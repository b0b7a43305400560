"""From folders, globs and manifests to jobs: names of outputs, shards, frames."""

from __future__ import annotations

import itertools
import os
import posixpath
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath, PurePosixPath

from nst_fast.batch import finding, manifest, storage
from nst_fast.batch.jobs import Job, saving_names, with_changes
from nst_fast.batch.manifest import Entry
from nst_fast.batch_options import BatchOptions
from nst_fast.config import StyleSettings
from nst_fast.errors import BatchError, SettingsError
from nst_fast.output_options import OutputOptions


@dataclass(frozen=True)
class Found:
    """The pictures of a batch.

    Attributes:
        jobs: those of this part of the batch.
        left_out: how many files look like pictures and are none of them, by the reason.
    """

    jobs: list[Job]
    left_out: Counter[str] = field(default_factory=Counter)


def find_jobs(
    sources: Sequence[str],
    *,
    output: str,
    styles: Sequence[str] = (),
    manifest_url: str | None = None,
    settings: StyleSettings | None = None,
    options: BatchOptions | None = None,
    saving: OutputOptions | None = None,
) -> Found:
    """The jobs of folders, globs, files and a manifest, in this order.

    Args:
        sources: paths, URLs, folders and globs.
        output: folder of the results.
        styles: of pictures for which the manifest names none.
        manifest_url: a table of pictures; None where there is none.
        settings: of every picture; a manifest may replace some. None for the defaults.
        options: of these all that say which pictures are taken and how results are named.
        saving: how results are written; a manifest may replace some. None for the defaults.

    Raises:
        BatchError: there is nothing to do, or something of it cannot be.
        SettingsError: a setting of a row cannot work.
    """
    options, left_out = options or BatchOptions(), Counter[str]()
    if not sources and manifest_url is None:
        raise BatchError("give INPUTS to repaint, or a --manifest")
    listed = manifest.read(manifest_url) if manifest_url else ()
    found = itertools.chain(finding.entries(sources, options, output, left_out), listed)
    jobs = to_jobs(
        found,
        styles=styles,
        output=output,
        settings=settings or StyleSettings(),
        options=options,
        saving=saving,
    )
    if not jobs:
        where = ", ".join([*sources, *([manifest_url] if manifest_url else [])])
        told = finding.told(left_out)
        raise BatchError(f"{where}: no pictures{told and f'; {told}'}; see --include")
    jobs = as_frames(jobs) if options.warm_start else jobs
    return Found(shard(jobs, options, output=output), left_out)


def to_jobs(
    found: Iterable[Entry],
    *,
    styles: Sequence[str],
    output: str,
    settings: StyleSettings,
    options: BatchOptions,
    saving: OutputOptions | None = None,
) -> list[Job]:
    """Jobs of what was found, in its order.

    Args:
        found: from folders or a manifest.
        styles: of entries that name none.
        output: folder of the results.
        settings: of every job, with the changes of its entry.
        options: of these ``name`` and ``anywhere``.
        saving: of every job, with the changes of its entry; None for the defaults.

    Raises:
        BatchError: an entry without a style, or with an output that cannot be.
        SettingsError: a setting of an entry cannot work.
    """
    listed = list(found)
    common = _common({entry.top for entry in listed})
    jobs = []
    for entry in listed:
        chosen = entry.styles or tuple(styles)
        if not chosen:
            raise BatchError(f"{entry.content} has no style; give --style, or one in the manifest")
        path = entry.output or _fill(options.name, entry, chosen, common)
        target = storage.join(output, path)
        if not (entry.output and options.anywhere) and not _is_inside(target, output):
            advice = ", unless --anywhere is given" if entry.output else ""
            raise BatchError(
                f"{entry.origin or entry.content}: its output {path} would leave {output}{advice}"
            )
        changed = _changed(settings, saving or OutputOptions(), entry)
        jobs.append(Job(entry.content, chosen, target, changed[0], saving=changed[1]))
    return jobs


def _changed(
    settings: StyleSettings, saving: OutputOptions, entry: Entry
) -> tuple[StyleSettings, OutputOptions]:
    """Settings and output options with what an entry gives of them."""
    if not entry.settings:
        return settings, saving
    of_file = {n: value for n, value in entry.settings.items() if n in saving_names()}
    changes = {n: value for n, value in entry.settings.items() if n not in of_file}
    try:
        return with_changes(settings, changes), replace(saving, **of_file)
    except SettingsError as error:
        raise BatchError(f"{entry.origin}: {error}") from None


def _is_inside(target: str, folder: str) -> bool:
    """Whether a path or URL is below a folder, whatever dots it has."""
    one, other = _normal(target), _normal(folder)
    return one != other and one.is_relative_to(other)


def _normal(url: str) -> PurePath:
    if not storage.is_remote(url):
        return PurePath(storage.canonical(url))
    protocol, _, path = url.partition("://")
    return PurePosixPath(f"{protocol.lower()}:", posixpath.normpath(path).lstrip("/"))


def _common(folders: Iterable[str]) -> str:
    """The folder that all of some folders are in; empty where there is none."""
    common: list[str] = []
    for same in map(set, zip(*(folder.split("/") for folder in folders), strict=False)):
        if len(same) > 1:
            break
        common += same
    return "/".join(common)


def _fill(template: str, entry: Entry, styles: Sequence[str], common: str) -> str:
    name = posixpath.basename(entry.content)
    values = {
        "folder": entry.folder,
        "stem": posixpath.splitext(name)[0],
        "name": name,
        "style": "+".join(posixpath.splitext(posixpath.basename(url))[0] for url in styles),
        "path": storage.parent(entry.content).removeprefix(common).replace("://", "/"),
    }
    return posixpath.normpath(template.format(**values)).lstrip("/")


def shard(jobs: Sequence[Job], options: BatchOptions, *, output: str) -> list[Job]:
    """A part of the jobs; by name, so that machines agree whatever else is in a folder.

    Args:
        jobs: all.
        options: of these ``shard``, and ``warm_start``, which keeps a folder together.
        output: folder of the results: names in it count, which machines may reach by other paths.
    """
    index, shards = options.part

    def key(job: Job) -> str:
        by_folder = options.warm_start
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
