"""Options of a result's file: what it holds, and what it tells of how it was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nst_fast.config import check_choice, shown, whole_number
from nst_fast.errors import SettingsError
from nst_fast.settings_file import Stored

ProfileName = Literal["srgb", "keep"]

BITS = (8, 16)
LOSSLESS = "lossless"


@dataclass(frozen=True)
class OutputOptions(Stored, table="output"):
    """How a result is written.

    Attributes:
        bits: How many bits a colour has, 8, or in PNG and TIFF 16.
        profile: The colour space of the file: "srgb", or that of the content's ICC profile, "keep".
        quality: The quality of JPEG and WebP, from 1 to 100, or "lossless" in WebP; None takes 95.
        metadata: Whether the file says how it was made: the inputs by path as given and SHA-256,
            settings, losses and versions.
        sidecar: Whether the same, with the loss of every step, is written beside it as FILE.json.

    Raises:
        SettingsError: a value cannot work; the message names the option.
    """

    bits: int = 8
    profile: ProfileName = "srgb"
    quality: int | str | None = None
    metadata: bool = True
    sidecar: bool = False

    def __post_init__(self) -> None:
        """Check every value; what a format does not have is found out where the file is known."""
        if isinstance(self.bits, bool) or self.bits not in BITS:
            raise SettingsError(f"bits must be 8 or 16, not {shown(self.bits)}")
        object.__setattr__(self, "bits", int(self.bits))
        check_choice("profile", self.profile, get_args(ProfileName))
        for name in ("metadata", "sidecar"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(
                    f"{name} must be true or false, not {shown(getattr(self, name))}"
                )
        if self.quality is not None and self.quality != LOSSLESS:
            object.__setattr__(self, "quality", _quality(self.quality))


def _quality(value: object) -> int:
    """A whole number, also as the text that a command line has."""
    try:
        return whole_number(
            "quality", int(value) if isinstance(value, str) and value.isdecimal() else value, 1, 100
        )
    except SettingsError as error:
        raise SettingsError(f"{error}; WebP can be {LOSSLESS}, too") from None
