"""Films: frames in order, each held to the one before where that one moved to.

Needs the [video] extra: OpenCV for the flow, PyAV for reading and writing.

>>> from nst_fast.video import stylize_video                                  # doctest: +SKIP
>>> stylize_video(Stylizer(), "clip.mp4", "painting.jpg", "out.mp4")          # doctest: +SKIP
"""

from nst_fast.errors import VideoError

try:
    import av as av
    import cv2 as cv2
except ImportError as error:
    raise VideoError(
        f'films need the [video] extra ({error}): pip install "nst-fast[video]"'
    ) from None

from nst_fast.video.flow import Motion, motion, warped, warping_error
from nst_fast.video.making import Summary, stylize_video
from nst_fast.video.sequence import Before, Frame, stylize_frames
from nst_fast.video.state import Row
from nst_fast.video_options import VideoOptions

__all__ = [
    "Before",
    "Frame",
    "Motion",
    "Row",
    "Summary",
    "VideoOptions",
    "motion",
    "stylize_frames",
    "stylize_video",
    "warped",
    "warping_error",
]
