"""Files that appear whole or not at all, and locks that keep a second process out.

Both on shares, too, whose file system lacks a part of it: some cannot flush a folder, and some have
no locks, and each says so by an error of its own choice.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from filelock import BaseFileLock

FULL = (errno.ENOSPC, errno.EDQUOT)
# "This file system does not do that." ENOTSUP and EOPNOTSUPP differ on some systems.
UNSUPPORTED = frozenset(
    getattr(errno, name)
    for name in ("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOTTY")
    if hasattr(errno, name)
)
# Of folders besides: CIFS takes them for files that are not open, others for read-only ones.
FOLDER_UNSUPPORTED = UNSUPPORTED | {
    *(errno.EBADF, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EISDIR),  # from opening it, on Windows among others
}
LOCK_UNSUPPORTED = UNSUPPORTED | {errno.ENOLCK}

logger = logging.getLogger(__name__)


def write_atomically(target: Path, payload: bytes, tag: str = "", *, durable: bool = True) -> None:
    """Write a file of which all is there; arguments and errors as for :func:`open_atomically`."""
    with open_atomically(target, tag, durable=durable) as file:
        file.write(payload)


@contextlib.contextmanager
def open_atomically(target: Path, tag: str = "", *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file to write: aside, flushed to the disk in the end, then renamed.

    Args:
        target: where, in a folder that exists; an existing file is replaced.
        tag: in the temporary file's name, which :func:`sweep` finds it by after a kill.
        durable: whether it outlasts a power cut; what can be made again need not be waited for.

    Raises:
        OSError: writing failed; nothing is left behind, as after any error inside.
    """
    temporary = target.parent / temporary_name(tag)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            if durable:
                sync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(target.parent)


def temporary_name(tag: str = "") -> str:
    """A name of a hidden file that no other process takes."""
    return f".nst-fast-{tag and f'{tag}-'}{secrets.token_hex(8)}.tmp"


def tag_of(target: Path) -> str:
    """A tag for the file of this name, which one process writes at a time."""
    return hashlib.blake2b(target.name.encode(), digest_size=8).hexdigest()


def sweep(folder: Path, tag: str) -> None:
    """Remove what killed processes of this tag left half-written in a folder, as far as it can."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f".nst-fast-{tag}-*.tmp"):
            path.unlink(missing_ok=True)


def sync(handle: int) -> None:
    """Flush a file to the disk, where its file system can; raises OSError on a fault."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where folders can be flushed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in FOLDER_UNSUPPORTED:
            raise


def lock(path: Path) -> BaseFileLock | None:
    """Take a lock that ends with this process, or with its ``release()``.

    Args:
        path: of a file for it, which is made and stays.

    Returns:
        The lock; None where the file system has none, which is logged as a warning: the caller goes
        on, and nothing keeps a second process out.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be made, or a fault.
    """
    from filelock import FileLock, Timeout

    # A soft lock would outlive a process that is killed.
    taken = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        taken.acquire()
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, "another process holds the lock", str(path)) from None
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in LOCK_UNSUPPORTED:
            raise
        logger.warning(
            "%s: this file system has no locks, and nothing keeps a second process out; "
            "let only one run there at a time",
            path.parent,
        )
        return None
    return taken
