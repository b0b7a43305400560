"""Options of a film: how its frames hang together.

Beside the package ``nst_fast.video``, which needs OpenCV and PyAV, so that the command line can
list them without either.
"""

from __future__ import annotations

from dataclasses import dataclass

from nst_fast.config import number, whole_number

LEAST_FPS, MOST_FPS = 0.01, 1000.0


@dataclass(frozen=True)
class VideoOptions:
    """How the frames of a film hang together, and which are made.

    Attributes:
        temporal_weight: The weight of staying close to the frame before, where that moved to
            (squared distance, averaged over the picture), 0 or more; more flickers less, and less
            is painted anew.
        follow_steps: The steps of a frame that follows another; None takes half of those of a first
            frame.
        cut_share: The share of a frame that motion must explain, from 0 to 1; where it explains
            less there was a cut, and the frame starts anew. 0 finds no cuts.
        fps: The frames a second of a film that is made from a folder of frames; None takes 25. A
            film has its own.
        frames: How many frames are made, from the beginning; None makes all of them.
        measure: Whether each frame is also made by itself, for comparison of the flicker; it takes
            about three times as long.
        redo: Whether to begin anew where the folder has frames of other settings.

    Raises:
        SettingsError: a value cannot work; the message names the option.
    """

    temporal_weight: float = 15.0
    follow_steps: int | None = None
    cut_share: float = 0.25
    fps: float | None = None
    frames: int | None = None
    measure: bool = False
    redo: bool = False

    def __post_init__(self) -> None:
        """Check every value; the first that cannot work raises."""
        self._set("temporal_weight", number("temporal_weight", self.temporal_weight))
        self._set("cut_share", number("cut_share", self.cut_share, most=1.0))
        if self.fps is not None:
            self._set("fps", number("fps", self.fps, above=LEAST_FPS, most=MOST_FPS))
        for name in ("follow_steps", "frames"):
            value = getattr(self, name)
            if value is not None:
                self._set(name, whole_number(name, value, 1, 1_000_000))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
