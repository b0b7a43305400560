"""Fast neural style transfer by optimisation: ONNX Runtime, custom kernels, no torch."""

from importlib.metadata import version

from nst_fast.config import StyleSettings
from nst_fast.errors import NstError
from nst_fast.stylizer import Report, Result, Run, Stylizer

__all__ = ["NstError", "Report", "Result", "Run", "StyleSettings", "Stylizer", "__version__"]

__version__ = version("nst-fast")
