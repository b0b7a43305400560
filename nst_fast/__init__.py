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
    RecipeError,
    SettingsError,
    ShapeError,
    StateError,
    VideoError,
)
from nst_fast.images import ImageLike, Origin, Picture
from nst_fast.making import Recorder, compare, plot_losses
from nst_fast.output_options import OutputOptions
from nst_fast.recipe import Inputs, Recipe
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
    "Inputs",
    "LayerWeights",
    "NonFiniteError",
    "NstError",
    "Origin",
    "OutputOptions",
    "Picture",
    "ProviderError",
    "Recipe",
    "RecipeError",
    "Recorder",
    "Report",
    "Result",
    "Run",
    "SettingsError",
    "ShapeError",
    "StateError",
    "StyleSettings",
    "Styles",
    "Stylizer",
    "Tap",
    "VideoError",
    "__version__",
    "compare",
    "plot_losses",
]

__version__ = version("nst-fast")
