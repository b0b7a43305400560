"""Fast neural style transfer by optimisation: ONNX Runtime, custom kernels, no torch."""

from importlib.metadata import version

from nst_fast.config import EngineOptions, LayerWeights, StyleSettings
from nst_fast.encoders import Encoder, Tap
from nst_fast.errors import (
    BatchError,
    BenchError,
    DeviceMemoryError,
    EncoderError,
    ImageError,
    NonFiniteError,
    NstError,
    ProviderError,
    SettingsError,
    ShapeError,
    VideoError,
)
from nst_fast.images import ImageLike, Picture
from nst_fast.result import Report, Result
from nst_fast.run import Run
from nst_fast.stylizer import Styles, Stylizer

__all__ = [
    "BatchError",
    "BenchError",
    "DeviceMemoryError",
    "Encoder",
    "EncoderError",
    "EngineOptions",
    "ImageError",
    "ImageLike",
    "LayerWeights",
    "NonFiniteError",
    "NstError",
    "Picture",
    "ProviderError",
    "Report",
    "Result",
    "Run",
    "SettingsError",
    "ShapeError",
    "StyleSettings",
    "Styles",
    "Stylizer",
    "Tap",
    "VideoError",
    "__version__",
]

__version__ = version("nst-fast")
