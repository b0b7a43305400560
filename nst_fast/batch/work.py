"""One picture from its bytes to its file, in three parts that can overlap."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nst_fast import images
from nst_fast.batch import storage
from nst_fast.batch.jobs import Job
from nst_fast.batch.journal import Row
from nst_fast.errors import NstError, one_line
from nst_fast.images import Picture
from nst_fast.recipe import sidecar
from nst_fast.stylizer import Result, Stylizer

STYLES_KEPT = 16  # decoded; a batch has one or a few


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
    """A job with its result; ``row`` lacks what writing adds."""

    job: Job
    result: Result
    row: Row


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
    """Optimise; raises what :meth:`Stylizer.stylize` raises."""
    settings = loaded.job.settings
    result = stylizer.stylize(loaded.content, loaded.styles, settings, **loaded.masks)
    return _made(loaded, result)


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


def _made(loaded: Loaded, result: Result) -> Made:
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
    return Made(job, result, row)


def write(made: Made, tag: str) -> Row:
    """Encode and write.

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
    took = time.perf_counter() - began
    return replace(
        made.row,
        seconds={**made.row.seconds, "write": took},
        sha256={**made.row.sha256, "output": hashlib.sha256(payload).hexdigest()},
        length=len(payload),
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


def describe(error: BaseException) -> str:
    """An error in one line; those that nst-fast did not raise with their kind."""
    text = one_line(error)
    return text if isinstance(error, NstError) else f"{type(error).__name__}: {text}"


def is_final(error: BaseException) -> bool:
    """Whether another try would end the same way."""
    return isinstance(error, NstError) and not isinstance(error, storage.StorageError)
