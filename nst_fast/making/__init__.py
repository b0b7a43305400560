"""How a picture was made, to look at: frames, curves of the loss, a comparison."""

from nst_fast.making.comparison import compare
from nst_fast.making.curves import check_plot, plot_losses
from nst_fast.making.recording import Recorder, check_record

__all__ = ["Recorder", "check_plot", "check_record", "compare", "plot_losses"]
