"""A whole film: read, repaint, write, and go on after a kill."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from nst_fast import images
from nst_fast.config import StyleSettings
from nst_fast.errors import VideoError, one_line
from nst_fast.files import lock
from nst_fast.images import WRITABLE, Picture
from nst_fast.stylizer import Styles, Stylizer
from nst_fast.video import writing
from nst_fast.video.sequence import Frame, load_styles, stylize_frames
from nst_fast.video.source import Source, open_source
from nst_fast.video.state import Row, State
from nst_fast.video_options import VideoOptions

FRAMES = ".frames"  # added to the name of a film: the folder of its frames while it is made
OTHERS = (".avi", ".webm", ".gif", ".wmv", ".flv", ".mpg", ".mpeg", ".m4v", *WRITABLE)
Observer = Callable[[Row, int, int], None]  # a frame, its number, and how many there will be or 0


@dataclass(frozen=True)
class Summary:
    """What came of a film.

    Attributes:
        frames: that it has; 0 where the film was there already.
        made: in this run.
        cuts: frames that began anew, the first among them.
        flicker: warping error of the frames that follow another, as a root mean square in levels
            of 8 bits; None where there are none.
        alone_flicker: that of the same frames made by themselves; None where it is not measured.
        seconds: of this run.
    """

    frames: int
    made: int
    cuts: int
    flicker: float | None
    alone_flicker: float | None
    seconds: float


def stylize_video(
    stylizer: Stylizer,
    source: str | os.PathLike[str],
    style: Styles,
    output: str | os.PathLike[str],
    settings: StyleSettings | None = None,
    *,
    options: VideoOptions | None = None,
    observer: Observer | None = None,
) -> Summary:
    """Repaint a film or a folder of frames; called again after a stop, go on.

    Args:
        stylizer: that makes the frames.
        source: a film, a folder of frames, or a glob in which they are.
        style: one picture or several, as for ``Stylizer.start``.
        output: a film by its ending, .mp4, .mov or .mkv, or a folder of frames as PNG.
        settings: of a first frame; None for the defaults.
        options: how the frames hang together; None for the defaults.
        observer: called after each frame.

    Raises:
        VideoError: the source cannot be read or the output not written; frames of other settings
            are there; another run makes them.
        ImageError: a picture cannot be used.
        SettingsError: settings that do not fit.
    """
    began = time.perf_counter()
    settings, options = settings or StyleSettings(), options or VideoOptions()
    target = Path(output)
    opened = open_source(os.fspath(source), options.fps)
    styles = load_styles(style)
    digest = _digest(stylizer, opened, styles, settings, options)
    mark = f"{digest}, {options.frames or 'all'} frames"
    film = target.suffix.lower() in writing.ENDINGS
    _check_output(target, film, opened)
    if film and not options.redo and writing.mark_of(target) == mark:
        return Summary(0, 0, 0, None, None, time.perf_counter() - began)
    folder = target.with_name(target.name + FRAMES) if film else target
    with _held(folder):
        state = _begun(folder, digest, options)
        done = len(state.rows)
        state = _make(
            stylizer,
            opened,
            styles,
            folder,
            state,
            settings=settings,
            options=options,
            observer=observer,
        )
        if film:
            shown = [(folder / row.file, row.pts) for row in state.rows[: options.frames]]
            limited = options.frames is not None
            writing.write_film(target, shown, opened, limited=limited, mark=mark)
    if film:
        shutil.rmtree(folder, ignore_errors=True)
    return _summary(state.rows, done, time.perf_counter() - began)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make and hold the folder of the frames, in which nothing else writes meanwhile."""
    try:
        folder.mkdir(exist_ok=True)
        held = lock(folder / ".nst-fast-video.lock")
    except BlockingIOError:
        raise VideoError(f"{folder} is in use by another run; wait for it") from None
    except OSError as error:
        raise VideoError(f"output {folder} cannot be used ({one_line(error)})") from None
    try:
        yield
    except OSError as error:
        raise VideoError(
            f"{folder} cannot be written ({one_line(error)}); see to its disk"
        ) from None
    finally:
        if held is not None:
            held.release()


def _make(
    stylizer: Stylizer,
    source: Source,
    styles: Sequence[Picture],
    folder: Path,
    state: State,
    *,
    settings: StyleSettings,
    options: VideoOptions,
    observer: Observer | None,
) -> State:
    """Make the frames that are not there."""
    first, most = len(state.rows), options.frames
    total = source.length if most is None else min(most, source.length or most)
    taken = islice(source.frames(first), None if most is None else max(0, most - first))
    times: list[int] = []

    def pictures() -> Iterator[Picture]:
        for each in taken:
            times.append(each.pts)
            yield each.picture

    began = time.perf_counter()
    made = stylize_frames(stylizer, pictures(), styles, settings, options, before=state.before)
    for number, frame in enumerate(made, first):
        file = folder / f"{source.stem(number)}.png"
        images.save(frame.result.picture, file)
        row = _row(file, frame, times[number - first], time.perf_counter() - began)
        began = time.perf_counter()
        state = replace(state, rows=[*state.rows, row], before=frame.before)
        state.save(folder)
        if observer is not None:
            observer(row, number + 1, total)
    if not state.rows:
        raise VideoError(f"{source.name} has no frames")
    return state


def _row(file: Path, frame: Frame, pts: int, seconds: float) -> Row:
    """What the state keeps of a frame that is written."""
    return Row(
        file=file.name,
        length=file.stat().st_size,
        pts=pts,
        cut=frame.cut,
        seen=frame.seen,
        steps=len(frame.result.reports),
        loss=frame.result.loss,
        seconds=seconds,
        error=frame.error,
        alone_error=frame.alone_error,
    )


def _begun(folder: Path, digest: str, options: VideoOptions) -> State:
    """What an earlier run has made of the same film."""
    if options.redo:
        return State(digest)
    state = State.load(folder)
    if state is not None and state.digest != digest:
        raise VideoError(
            f"{folder} has frames of another film, style or other settings; give --redo to make "
            "them again, or another --output"
        )
    return state or State(digest)


def _check_output(target: Path, film: bool, source: Source) -> None:
    """Refuse what could not be written, before any work is done."""
    if film and target.is_dir():
        raise VideoError(f"output {target} is a folder; name a film in it")
    if not film and not target.is_dir() and target.suffix.lower() in OTHERS:
        endings = ", ".join(writing.ENDINGS)
        raise VideoError(f"output {target} must end in one of {endings}, or be a folder")
    if not film and target.exists() and not target.is_dir():
        raise VideoError(f"output {target} is a file; name a folder, or a film")
    if not target.resolve().parent.is_dir():
        raise VideoError(f"output {target}: there is no folder {target.parent}; create it first")
    given = Path(source.name)
    inputs = given if film or given.is_dir() else given.parent
    if target.exists() and inputs.exists() and target.samefile(inputs):
        raise VideoError(f"output {target} is the input; choose another")


def _digest(
    stylizer: Stylizer,
    source: Source,
    styles: Sequence[Picture],
    settings: StyleSettings,
    options: VideoOptions,
) -> str:
    """Of all that decides the frames, the number of threads apart."""
    init = settings.init_path
    facts = {
        "source": source.identity,
        "styles": [style.digest for style in styles],
        "init": None if init is None else images.load(init).digest,
        "masks": [images.load(path).digest for path in settings.mask_paths],
        "settings": settings.as_dict() | {"init": str(settings.init)},
        "options": {k: v for k, v in asdict(options).items() if k not in ("redo", "frames")},
        "environment": {k: v for k, v in stylizer.environment.items() if k != "threads"},
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return f"nst-fast {hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _summary(rows: Sequence[Row], done: int, seconds: float) -> Summary:
    return Summary(
        frames=len(rows),
        made=len(rows) - done,
        cuts=sum(row.cut for row in rows),
        flicker=_levels([row.error for row in rows]),
        alone_flicker=_levels([row.alone_error for row in rows]),
        seconds=seconds,
    )


def _levels(errors: Sequence[float | None]) -> float | None:
    """The root of their mean, in levels of 8 bits; those that are none, or NaN, are left out."""
    known = [error for error in errors if error is not None and not math.isnan(error)]
    return 255 * (sum(known) / len(known)) ** 0.5 if known else None
