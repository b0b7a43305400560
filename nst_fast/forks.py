"""What a forked child may do with the sessions of its parent: nothing, not even destroy them.

The libraries that run the graphs have threads, and a fork copies none of them: whoever runs such a
session, or lets go of it, may wait for them for ever. So in a child everything that its parent held
is kept for good and never run again. New sessions work.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from dataclasses import dataclass, field

from nst_fast.errors import ProviderError


@dataclass
class _Process:
    """What this process has, and what it has from its parent."""

    held: weakref.WeakSet[object] = field(default_factory=weakref.WeakSet)
    used: bool = False
    inherits: bool = False


_here = _Process()


def hold(value: object) -> int:
    """Never destroy it in a forked child, with all that it refers to; returns this process' id."""
    _here.held.add(value)
    _here.used = True
    return os.getpid()


def require(process: int, what: str) -> None:
    """Refuse what another process has made.

    Raises:
        ProviderError: the id is not that of this process.
    """
    if process != os.getpid():
        raise ProviderError(f"{what} was made before a fork; make one in each process")


def inherits() -> bool:
    """Whether this process was forked from one that had used sessions."""
    return _here.inherits


def _in_child() -> None:
    if not _here.used:
        return
    for value in _here.held:
        # One reference that nobody gives back: the interpreter's end, too, leaves it alone.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    if not _here.inherits:
        _leave_early()
    _here.inherits = True


def _leave_early() -> None:
    """End without the libraries' own exit handlers, which wait for their threads.

    Handlers run in the reverse order of their registration: these come before all that were there
    at the fork. Where the C library has no ``on_exit``, a child must leave by ``os._exit``, as
    those of ``multiprocessing`` do.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)
        libc.on_exit(libc.fcloseall, None)  # runs first: what C code has written is not lost


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
