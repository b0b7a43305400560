"""The only onnxruntime: which providers are usable, and sessions bound to fixed buffers."""

from nst_fast.library import GPU_PACKAGES, GPU_PROVIDERS, Precision, Provider, versions
from nst_fast.runtime.choice import ProviderStatus, choose, faster, providers
from nst_fast.runtime.openvino import BF16_FEATURES
from nst_fast.runtime.session import Session

__all__ = [
    "BF16_FEATURES",
    "GPU_PACKAGES",
    "GPU_PROVIDERS",
    "Precision",
    "Provider",
    "ProviderStatus",
    "Session",
    "choose",
    "faster",
    "providers",
    "versions",
]
