"""The errors that users meet.

Each message is one line that names the file or option and the remedy.
"""

from __future__ import annotations

import textwrap

LONGEST = 600  # characters of an error that is not ours


class NstError(Exception):
    """Base of every error that nst-fast raises on purpose."""


class SettingsError(NstError, ValueError):
    """A setting or command-line option has a value that cannot work."""


class ImageError(NstError):
    """An image cannot be read or written; the message names its path."""


class RecipeError(NstError):
    """A picture cannot be made again: what made it is not known, cannot be read, or has changed."""


class EncoderError(NstError):
    """An encoder is unknown, damaged, or cannot be downloaded or built."""


class ProviderError(NstError):
    """The asked-for provider or precision cannot be had, or computes a wrong gradient."""


class DeviceMemoryError(ProviderError):
    """A GPU's memory does not hold what was asked for; a smaller size or batch may fit."""


class ShapeError(NstError, ValueError):
    """Arrays do not fit each other; the message gives both shapes."""


class BatchError(NstError):
    """A batch cannot start or go on; the message names the file and the remedy."""


class VideoError(NstError):
    """A film cannot be read, made or written; the message names the file and the remedy."""


class NonFiniteError(NstError, ArithmeticError):
    """The loss or the picture became infinite or NaN; the message names the step."""


class StateError(NstError):
    """The saved state of a run is damaged, or of another run; the message says what differs."""


class BenchError(NstError):
    """A benchmark cannot run here, or its findings cannot be read; the message says which."""


def one_line(error: BaseException | str) -> str:
    """What an error says, in one line: its text, the system's words for it, or else its kind."""
    text = str(getattr(error, "strerror", None) or error)
    if not isinstance(error, NstError):
        text = textwrap.shorten(text, LONGEST, placeholder=" …")
    return " ".join(text.split()) or type(error).__name__


def with_kind(error: BaseException) -> str:
    """The same; before errors that nst-fast did not raise, their kind."""
    text, kind = one_line(error), type(error).__name__
    return text if isinstance(error, NstError) or text == kind else f"{kind}: {text}"
