"""Files by path or URL: whole reads, atomic writes, listings. fsspec knows the object stores."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import posixpath
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec

from nst_fast import files, images
from nst_fast.errors import BatchError, ImageError, NstError, one_line, with_kind

# Uncompressed TIFF of the most pixels that are read, in 16 bits with alpha, has 1.4 GB.
MOST_BYTES = 2**31
CHUNK = 2**26  # bytes asked of a store at once; nearly every picture is one request
PAUSES = (0.1, 0.4, 1.6, 6.4)  # seconds before each repetition of a remote request
# Status of a web server that another try would meet again; fsspec knows 404 alone.
LASTING = {401: PermissionError, 403: PermissionError, 410: FileNotFoundError}
Value = TypeVar("Value")


class StorageFullError(BatchError):
    """There is no space left for an output."""


class StorageError(BatchError):
    """A file could not be read or written, for no lasting reason that is known."""


def is_remote(url: str) -> bool:
    """Whether it is a URL; paths are local."""
    return "://" in url


def is_http(url: str) -> bool:
    """Whether it is on a web server, which can be read from, not listed or written to."""
    return url.lower().startswith(("http://", "https://"))


def check_writable(url: str) -> None:
    """Refuse what can only be read; raises BatchError."""
    if is_http(url):
        raise BatchError(
            f"output {url}: http(s):// can only be read; choose a folder or an object store"
        )


def canonical(url: str) -> str:
    """One spelling for each file, as far as names tell."""
    return url if is_remote(url) else os.path.abspath(url)


def join(folder: str, name: str) -> str:
    """``name`` inside ``folder``; itself where it is absolute or a URL."""
    if is_remote(name):
        return name
    return posixpath.join(folder, name) if is_remote(folder) else os.path.join(folder, name)


def parent(url: str) -> str:
    """The folder that it is in."""
    return url.rpartition("/")[0] if is_remote(url) else os.path.dirname(os.path.abspath(url))


@functools.lru_cache(maxsize=64)
def _remote(protocol: str) -> Any:
    """The filesystem of a protocol.

    Raises:
        BatchError: fsspec does not know it, or its package is missing.
    """
    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        extra = {"gcs": "gs", "https": "http"}.get(protocol, protocol)
        raise BatchError(
            f"{protocol}:// cannot be used ({error}); s3, gs and http need an extra: "
            f'pip install "nst-fast[{extra}]"'
        ) from None


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem of a path or URL, and the path on it; raises BatchError."""
    if not is_remote(url):
        return fsspec.filesystem("file"), os.path.abspath(url)
    fs = _remote(url.partition("://")[0].lower())
    return fs, fs._strip_protocol(url)


def _insist(url: str, action: Callable[[], Value]) -> Value:
    """Repeat a remote request that failed for no lasting reason; StorageError if it keeps on."""
    for pause in (*PAUSES, None):
        try:
            return action()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NstError):
            raise
        except Exception as error:  # every store has errors of its own
            lasting = LASTING.get(getattr(error, "status", 0))
            if lasting is not None:
                raise lasting(url) from None
            if pause is None:
                raise StorageError(
                    f"{url}: {with_kind(error)}; see that the store is there"
                ) from None
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


# ---------------------------------------------------------------------------------------- reading


def read(url: str) -> bytes:
    """The bytes of a file.

    Raises:
        ImageError: it is missing, may not be read, is no regular file, or has more than
            ``MOST_BYTES``.
        StorageError: reading failed; another try may succeed.
    """
    try:
        if not is_remote(url):
            images.check_input(Path(url), url)
            if os.stat(url).st_size > MOST_BYTES:
                raise _too_large(url)
            return Path(url).read_bytes()
        fs, path = filesystem(url)
        # A web server is not asked for its size, which it need not know: what comes is read as it
        # comes. A store is asked for all of it at once.
        how = {"block_size": 0, "size": 1} if is_http(url) else {"cache_type": "none"}

        def fetch() -> bytes:
            with fs.open(path, "rb", **how) as file:
                return _all_of(file, url)

        return _insist(url, fetch)
    except PermissionError:
        raise ImageError(f"{url}: permission denied; make the file readable") from None
    except FileNotFoundError:
        raise ImageError(f"{url}: no such file; check the path") from None
    except OSError as error:
        raise StorageError(f"{url} cannot be read ({one_line(error)}); see to its disk") from None


def _all_of(file: IO[bytes], url: str) -> bytes:
    """The rest of a file; raises ImageError once it has more than ``MOST_BYTES``."""
    pieces, had = [], 0
    while piece := file.read(CHUNK):
        had += len(piece)
        if had > MOST_BYTES:
            raise _too_large(url)
        pieces.append(piece)
    return b"".join(pieces)


def _too_large(url: str) -> ImageError:
    return ImageError(
        f"{url} has more than {MOST_BYTES / 2**20:.0f} MiB; scale it down, or split it"
    )


def head(url: str, count: int) -> bytes:
    """The first ``count`` bytes of a file; raises what its filesystem raises."""
    fs, path = filesystem(url)
    data: bytes = fs.cat_file(path, start=0, end=count)
    return data


def sizes(folder: str) -> dict[str, int]:
    """Bytes of each file directly in a folder, by its path or URL; empty where there is none."""
    try:
        return {url: entry["size"] or 0 for url, entry in _listing(folder)}
    except FileNotFoundError:
        return {}


def _listing(folder: str) -> list[tuple[str, dict[str, Any]]]:
    fs, path = filesystem(folder)
    # A listing from before the files were written would have them made again.
    fs.invalidate_cache(path)
    entries = _insist(folder, lambda: fs.ls(path, detail=True))
    return [(join(folder, posixpath.basename(entry["name"])), entry) for entry in entries]


def stamps(urls: Iterable[str]) -> dict[str, str]:
    """What a file has another one of once it is written again: its size with its time or its ETag.

    Cheap: a stat of each local file, a listing of each remote folder. Files that cannot be seen
    are left out, and so are those behind http(s), which lists nothing.
    """
    found: dict[str, str] = {}
    remote: defaultdict[str, set[str]] = defaultdict(set)
    for url in urls:
        if is_remote(url):
            remote[parent(url)].add(url)
            continue
        with contextlib.suppress(OSError):
            seen = os.stat(url)
            found[url] = f"{seen.st_size}-{seen.st_mtime_ns}"
    for folder, wanted in remote.items():
        if not is_http(folder):
            with contextlib.suppress(OSError, BatchError):
                listed = dict(_listing(folder))
                found |= {url: _stamp(listed[url]) for url in wanted & listed.keys()}
    return found


def _stamp(entry: Mapping[str, Any]) -> str:
    """Every store has names of its own for these; "" where it tells neither."""
    marks = ("ETag", "etag", "mtime", "LastModified")
    mark = next((str(entry[name]) for name in marks if entry.get(name)), "")
    return mark and f"{entry['size']}-{mark}"


# ---------------------------------------------------------------------------------------- writing


def owner_tag(journal: str) -> str:
    """What the temporary files of one journal's runs have in their names."""
    return hashlib.sha256(os.path.realpath(journal).encode()).hexdigest()[:12]


def write(url: str, payload: bytes, tag: str) -> None:
    """Write a file that appears whole or not at all; a folder that is missing is made.

    Args:
        url: where; an existing file is replaced.
        payload: all of it.
        tag: in the name of the temporary file, so that :func:`sweep` finds what a kill left.

    Raises:
        StorageFullError: no space is left.
        StorageError: writing failed; another try may succeed. Nothing is left behind.
    """
    try:
        if is_remote(url):
            # A store shows an object once all of it has arrived, or never.
            fs, path = filesystem(url)
            _insist(url, lambda: fs.pipe_file(path, payload))
        else:
            Path(url).parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(Path(url), payload, tag)
    except OSError as error:
        if error.errno in files.FULL:
            raise StorageFullError(
                f"output {url}: no space left; free some and run the same command again"
            ) from None
        raise StorageError(
            f"output {url} cannot be written ({one_line(error)}); choose another folder"
        ) from None


def sweep(folder: str, tag: str) -> None:
    """Remove what killed runs of this tag left half-written in a folder."""
    if not is_remote(folder):
        files.sweep(Path(folder), tag)


# ---------------------------------------------------------------------------------------- finding


def find(source: str) -> Iterator[tuple[str, str]]:
    """Files that a path, URL, folder or glob stands for, sorted.

    Yields:
        The file's path or URL, and its folder within the folder or glob ("" at the top).

    Raises:
        BatchError: there is no such file or folder.
    """
    if is_http(source):
        yield source, ""
        return
    fs, path = filesystem(source)
    if _insist(source, lambda: fs.isdir(path)):
        top, names = path, _insist(source, lambda: fs.find(path))
    elif _insist(source, lambda: fs.exists(path)):
        top, names = posixpath.dirname(path), [path]
    else:
        # Where there is no wildcard, the glob finds nothing.
        names = [
            n
            for n, e in _insist(source, lambda: fs.glob(path, detail=True)).items()
            if e["type"] == "file"
        ]
        top = posixpath.dirname(re.split(r"[*?[]", path)[0])
    if not names:
        raise BatchError(f"{source}: no such file, and no folder with files; check the path")
    start = source.partition("://")[0] + "://" if is_remote(source) else ""
    for name in sorted(names):
        folder = posixpath.relpath(posixpath.dirname(name), top or "/")
        yield start + name, "" if folder == "." else folder
