"""One picture from its bytes to its file, in three parts that can overlap."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nst_fast import images, state
from nst_fast.batch import storage
from nst_fast.batch.jobs import Job
from nst_fast.batch.journal import Row
from nst_fast.errors import BatchError, NstError, StateError, one_line
from nst_fast.images import Picture
from nst_fast.making import Recorder, Recording, draw_losses, side_by_side
from nst_fast.making_options import Kind
from nst_fast.recipe import sidecar
from nst_fast.run import Run
from nst_fast.stylizer import Result, Stylizer

STYLES_KEPT = 16  # decoded; a batch has one or a few
SPOOLED = 2**24  # bytes of a recording that are kept in memory; more go to the temporary folder


@dataclass(frozen=True)
class Loaded:
    """A job with its pictures decoded; ``masks`` by what a Stylizer calls them."""

    job: Job
    content: Picture
    styles: tuple[Picture, ...]
    masks: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Made:
    """A job with its result.

    Attributes:
        job: what was to be made.
        result: that it came to.
        row: lacks what writing adds.
        film: the bytes of the recording; empty where there is none.
        compared: what the result is to be seen beside.
    """

    job: Job
    result: Result
    row: Row
    film: bytes = b""
    compared: tuple[Picture, ...] = ()

    def file(self, kind: Kind, url: str) -> bytes:
        """The bytes of what is written besides the result, for its format."""
        if kind == "record":
            return self.film
        if kind == "plot":
            return draw_losses(self.result.reports, url)
        return images.encode(side_by_side([*self.compared, self.result.picture]), url)


@dataclass
class StyleCache:
    """The decoded styles and masks that were used last; not for several threads."""

    _pictures: OrderedDict[str, Picture] = field(default_factory=OrderedDict)

    def get(self, url: str) -> Picture:
        """Decode one, or take it from before; raises as :func:`load`."""
        picture = self._pictures.pop(url, None) or _from_here(
            images.decode(storage.read(url), name=url)
        )
        self._pictures[url] = picture
        while len(self._pictures) > STYLES_KEPT:
            self._pictures.popitem(last=False)
        return picture


def load(job: Job, styles: StyleCache) -> Loaded:
    """Fetch and decode.

    Raises:
        ImageError: a picture cannot be used.
        StorageError: reading failed; another try may succeed.
    """
    began = time.perf_counter()
    content = _from_here(images.decode(storage.read(job.content), name=job.content))
    decoded = tuple(styles.get(url) for url in job.styles)
    chosen = job.settings
    masks: dict[str, Any] = {"style_mask": tuple(styles.get(url) for url in chosen.style_mask)}
    for name in ("style_regions", "content_mask"):
        url = getattr(chosen, name)
        masks[name] = None if url is None else styles.get(url)
    return Loaded(job, content, decoded, masks, time.perf_counter() - began)


def _from_here(picture: Picture) -> Picture:
    """With a path from the current folder in its origin, where it is below that.

    Searching folders makes paths absolute, which tell more than whoever typed them may mean to.
    """
    origin, here = picture.origin, os.path.join(os.getcwd(), "")
    if origin is None or not origin.path.startswith(here):
        return picture
    return replace(picture, origin=replace(origin, path=origin.path.removeprefix(here)))


def make(stylizer: Stylizer, loaded: Loaded) -> Made:
    """Optimise, from the state that an earlier try has left where the job has it saved.

    Raises:
        NstError: what :meth:`Stylizer.start` raises.
        StorageError: the state's folder cannot be made.
    """
    url = loaded.job.files.get("record")
    every = loaded.job.making.record_every
    with tempfile.SpooledTemporaryFile(SPOOLED) as film, _start(stylizer, loaded) as run:
        with Recording(run, None if url is None else Recorder(url, film), every) as recording:
            for report in run:
                recording.see(report)
        result = run.result()
        film.seek(0)
        return _made(loaded, result, film.read())


def _start(stylizer: Stylizer, loaded: Loaded) -> Run:
    """A run that goes on where one of the same was left, or else begins."""
    job, file = loaded.job, loaded.job.state_file
    given = loaded.content, loaded.styles, job.settings
    start = functools.partial(stylizer.start, *given, **loaded.masks)
    if file is None:
        return start()
    if storage.is_remote(file):
        raise BatchError(
            f"save_every: {job.output} is on an object store, and a state is a local file, for "
            "which a BatchRunner has a folder"
        )
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage.StorageError(
            f"the state {file} cannot be written ({one_line(error)}); choose another folder"
        ) from None
    start = functools.partial(start, save=file, save_every=job.making.save_every)
    if not os.path.exists(file):
        return start()
    try:
        return start(resume=file)
    except StateError as error:
        note = f"begun anew: {error}"
    run = start()  # now that the error has let go of the run that failed, and its memory
    run.notes.append(note)
    return run


def make_together(stylizer: Stylizer, group: Sequence[Loaded]) -> list[Made | NstError]:
    """Optimise pictures of the same styles and settings side by side; errors are data."""
    results = stylizer.stylize_together(
        [loaded.content for loaded in group],
        group[0].styles,
        group[0].job.settings,
        most=len(group),
        **group[0].masks,
    )
    return [
        result if isinstance(result, NstError) else _made(loaded, result)
        for loaded, result in zip(group, results, strict=True)
    ]


def _made(loaded: Loaded, result: Result, film: bytes = b"") -> Made:
    job, timings = loaded.job, result.timings
    row = Row(
        output=job.output,
        content=job.content,
        styles=job.styles,
        status="done",
        digest=job.digest,
        seconds={
            "read": loaded.seconds,
            "prepare": timings["prepare"],
            "optimise": timings["optimise"],
            "finish": timings["total"] - timings["prepare"] - timings["optimise"],
        },
        sha256={"content": result.inputs.content.sha256},
        stamp=job.stamp,
        size=result.picture.size,
        loss=result.loss,
        notes=tuple(result.notes),
    )
    compared = (loaded.content, *loaded.styles) if "compare" in job.files else ()
    return Made(job, result, row, film, compared)


def write(made: Made, tag: str) -> Row:
    """Encode and write, and let go of the run's state.

    Raises:
        ImageError: the format cannot hold the picture.
        StorageFullError: no space is left.
        StorageError: writing failed; another try may succeed.
    """
    began = time.perf_counter()
    job, result = made.job, made.result
    payload = result.encode(job.output, job.saving)
    storage.write(job.output, payload, tag)
    if job.saving.sidecar:
        storage.write(sidecar(job.output), result.sidecar(job.saving), tag)
    besides = {}
    for kind, url in job.files.items():
        data = made.file(kind, url)
        storage.write(url, data, tag)
        besides[url] = len(data)
    if job.state_file is not None:
        with contextlib.suppress(OSError):
            state.discard(job.state_file)
    took = time.perf_counter() - began
    return replace(
        made.row,
        seconds={**made.row.seconds, "write": took},
        sha256={**made.row.sha256, "output": hashlib.sha256(payload).hexdigest()},
        length=len(payload),
        besides=besides,
        finished=time.time(),
    )


def failure(job: Job, error: str, attempts: int) -> Row:
    """The row of a job that is given up."""
    return Row(
        output=job.output,
        content=job.content,
        styles=job.styles,
        status="failed",
        digest=job.digest,
        attempts=attempts,
        error=error,
        finished=time.time(),
    )


def is_final(error: BaseException) -> bool:
    """Whether another try would end the same way."""
    return isinstance(error, NstError) and not isinstance(error, storage.StorageError)
