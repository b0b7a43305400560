"""The ``nst-fast`` command: the only room that prints."""

from nst_fast.cli.app import main

__all__ = ["main"]
