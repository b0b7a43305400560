"""From folders, globs and manifests to jobs: names of outputs, shards, frames."""

from __future__ import annotations

import functools
import itertools
import os
import posixpath
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath, PurePosixPath
from typing import Any

from nst_fast.batch import finding, manifest, storage
from nst_fast.batch.jobs import Job, making_names, saving_names, with_changes
from nst_fast.batch.manifest import Entry
from nst_fast.batch_options import BatchOptions
from nst_fast.config import StyleSettings
from nst_fast.errors import BatchError, ImageError, SettingsError
from nst_fast.making import check_format
from nst_fast.making_options import FILES, MakingOptions
from nst_fast.output_options import OutputOptions

Options = tuple[StyleSettings, OutputOptions, MakingOptions]


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
    making: MakingOptions | None = None,
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
        making: what is left besides them, by formats; a manifest may replace some, and name files.
            None for the defaults.

    Raises:
        BatchError: there is nothing to do, or something of it cannot be.
        SettingsError: a setting of a row cannot work, or ``making`` names a file.
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
        making=making,
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
    making: MakingOptions | None = None,
) -> list[Job]:
    """Jobs of what was found, in its order.

    Args:
        found: from folders or a manifest.
        styles: of entries that name none.
        output: folder of the results.
        settings: of every job, with the changes of its entry.
        options: of these ``name`` and ``anywhere``.
        saving: of every job, with the changes of its entry; None for the defaults.
        making: of every job, with the changes of its entry; None for the defaults.

    Raises:
        BatchError: an entry without a style, or with a file that cannot be.
        SettingsError: a setting of an entry cannot work, or ``making`` names a file.
    """
    shared = settings, saving or OutputOptions(), making or MakingOptions()
    for kind, path in shared[2].paths.items():
        raise SettingsError(
            f"{kind}: {path} would be the file of every picture; give a format, such as "
            f"{FILES[kind]}, or name files in a manifest"
        )
    listed = list(found)
    common = _common({entry.top for entry in listed})
    jobs = []
    for entry in listed:
        chosen = entry.styles or tuple(styles)
        if not chosen:
            raise BatchError(f"{entry.content} has no style; give --style, or one in the manifest")
        path = entry.output or _fill(options.name, entry, chosen, common)
        place = functools.partial(_placed, entry, output, options)
        target = place("output", path, listed=bool(entry.output))
        own, saved, made = _changed(shared, entry)
        besides: dict[str, Any] = {kind: place(kind, path) for kind, path in made.paths.items()}
        made = replace(made, **besides)
        job = Job(entry.content, chosen, target, own, saving=saved, making=made)
        _check_formats(job, entry)
        jobs.append(job)
    return jobs


def _placed(
    entry: Entry, output: str, options: BatchOptions, what: str, path: str, *, listed: bool = True
) -> str:
    """Where a file of an entry is written, which only one that is ``listed`` may be outside."""
    target = storage.join(output, path)
    if not (listed and options.anywhere) and not _is_inside(target, output):
        advice = ", unless --anywhere is given" if listed else ""
        raise BatchError(
            f"{entry.origin or entry.content}: its {what} {path} would leave {output}{advice}"
        )
    return target


def _check_formats(job: Job, entry: Entry) -> None:
    """Refuse, by its row, what an entry wants besides its picture and cannot have."""
    for kind, url in job.files.items():
        try:
            if kind in entry.settings:
                check_format(kind, url)
        except ImageError as error:
            raise BatchError(f"{entry.origin}: {kind}: {error}") from None


def _changed(shared: Options, entry: Entry) -> Options:
    """Settings and options with what an entry gives of them."""
    if not entry.settings:
        return shared
    settings, saving, making = shared
    of_file, besides = (
        {name: value for name, value in entry.settings.items() if name in names}
        for names in (saving_names(), making_names())
    )
    others = entry.settings.keys() - of_file.keys() - besides.keys()
    try:
        return (
            with_changes(settings, {name: entry.settings[name] for name in others}),
            replace(saving, **of_file),
            replace(making, **besides),
        )
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
