"""Measure flicker and work of a film against the same frames made one by one.

    python bench/flicker.py [--style STYLE] [--width 256] [--frames 36] [--out DIR]

The film is that of ``film.py``, 3 seconds of 12 frames, whose flow is known; so flicker is the
warping error (Lai et al. 2018) along the true flow, over what was truly seen before. Work is
counted in evaluations at full size, those of half the size as a quarter, and in seconds of CPU of
the whole process, which another load on the machine hardly stretches. Frames are written to DIR.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from film import EXAMPLES, Film
from nst_fast import Result, StyleSettings, Stylizer
from nst_fast.images import Picture
from nst_fast.video import Motion, VideoOptions, stylize_frames, warping_error


@dataclass(frozen=True)
class Found:
    """Warping error (a mean of squares), evaluations at full size, seconds of CPU."""

    error: float
    work: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--style", default=str(EXAMPLES / "style_swirls.jpg"))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--frames", type=int, default=36)
    parser.add_argument("--temporal-weight", type=float, default=VideoOptions().temporal_weight)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    film = Film(given.width, given.width * 9 // 16)
    frames = [Picture(film.frame(t)) for t in range(given.frames)]
    stylizer, settings = Stylizer(), StyleSettings(size=given.width)
    options = VideoOptions(temporal_weight=given.temporal_weight)

    def alone() -> Iterator[Result]:
        return (stylizer.stylize(frame, given.style, settings) for frame in frames)

    def held() -> Iterator[Result]:
        made = stylize_frames(stylizer, frames, given.style, settings, options)
        return (frame.result for frame in made)

    stylizer.stylize(frames[0], given.style, settings)  # sessions and moments are there for both
    found = {}
    for name, make in {"alone": alone, "held": held}.items():
        found[name] = measure(film, make, given.out and given.out / name)
        each = found[name]
        rms = 255 * each.error**0.5
        print(
            f"{name}: warping error {each.error:.2e} ({rms:.1f} levels), "
            f"{each.work:.0f} evaluations at full size, {each.cpu:.1f} s of CPU",
            flush=True,
        )
    one, other = found["held"], found["alone"]
    print(
        f"held / alone: warping error {one.error / other.error:.3f} "
        f"(in levels {(one.error / other.error) ** 0.5:.3f}), "
        f"evaluations {one.work / other.work:.2f}, CPU {one.cpu / other.cpu:.2f}"
    )


def measure(film: Film, make: Callable[[], Iterable[Result]], out: Path | None) -> Found:
    """Make the frames one after another, and keep none but the last two."""
    before, errors, work, began = None, [], 0.0, time.process_time()
    cpu = 0.0
    for t, result in enumerate(make()):
        cpu += time.process_time() - began
        full = result.size[0] * result.size[1]
        work += sum(r.size[0] * r.size[1] / full for r in result.reports)
        if before is not None:
            flow, seen = film.flow(t)
            truth = Motion(flow, seen.astype(np.float32), 1.0)
            errors.append(warping_error(before, result.picture, truth))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            result.save(out / f"{t:03d}.png")
        before, began = result.picture, time.process_time()
    return Found(float(np.mean(errors)), work, cpu)


if __name__ == "__main__":
    main()
