"""How a picture was made, to look at: frames, curves of the loss, a comparison."""

from nst_fast.making.comparison import compare, side_by_side
from nst_fast.making.curves import draw_losses, plot_losses
from nst_fast.making.formats import FILM, check_file, check_format
from nst_fast.making.recording import Recorder, Recording

__all__ = [
    "FILM",
    "Recorder",
    "Recording",
    "check_file",
    "check_format",
    "compare",
    "draw_losses",
    "plot_losses",
    "side_by_side",
]
