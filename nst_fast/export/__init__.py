"""From a torch VGG to an encoder pack: the only part of nst-fast that needs torch."""

from nst_fast.export.pack import build_pack

__all__ = ["build_pack"]
