"""Published weights that packs are built from: their addresses, and a download that resumes."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType

from nst_fast.encoders.cache import cache_dir, sha256, writing
from nst_fast.errors import EncoderError

_TIMEOUT = 30.0  # seconds without a byte from the server
_CHUNK = 1 << 20  # bytes between two calls of a progress callback


@dataclass(frozen=True)
class Checkpoint:
    """Published weights that a pack can be built from.

    Attributes:
        url: their address.
        sha256: of the whole file, in hex.
        size: of the file in bytes; a server that sends more is not listened to.
        description: one line.
        licence: of the weights.
    """

    url: str
    sha256: str
    size: int
    description: str
    licence: str

    @property
    def filename(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


_TORCHVISION = "BSD-3-Clause (torchvision); trained on ImageNet"
CHECKPOINTS: Mapping[str, Checkpoint] = MappingProxyType(
    {
        "vgg19": Checkpoint(
            "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
            "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
            574_673_361,
            "VGG-19 of torchvision, a download of 548 MB",
            _TORCHVISION,
        ),
        "vgg16": Checkpoint(
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            553_433_881,
            "VGG-16 of torchvision, a download of 528 MB",
            _TORCHVISION,
        ),
    }
)


def download_checkpoint(name: str, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Download the checkpoint of an encoder, or find it in the cache.

    A download that stops is continued by the next call. The file is complete and its hash
    checked before it gets its name.

    Args:
        name: a key of ``CHECKPOINTS``.
        progress: called with bytes done and bytes in all (0 where the server does not say).

    Returns:
        The file in the cache.

    Raises:
        EncoderError: the name is unknown, the address cannot be reached, the connection was cut,
            the hash is wrong, or the cache cannot be written.
    """
    if name not in CHECKPOINTS:
        raise EncoderError(f"no checkpoint for {name!r}: there are {', '.join(CHECKPOINTS)}")
    checkpoint = CHECKPOINTS[name]
    target = cache_dir() / "checkpoints" / checkpoint.filename
    partial = target.with_name(f"{target.name}.partial")
    with writing(target.parent, target.name):
        if _matches(target, checkpoint):
            return target
        if not _matches(partial, checkpoint):
            _fetch(checkpoint, partial, progress)
        if not _matches(partial, checkpoint):
            partial.unlink()
            raise EncoderError(
                f"{checkpoint.url} came damaged: its SHA-256 is not {checkpoint.sha256};"
                " it was removed: run again, or give a local file with --checkpoint FILE"
            )
        partial.replace(target)
    return target


def _matches(path: Path, checkpoint: Checkpoint) -> bool:
    if not path.is_file() or path.stat().st_size != checkpoint.size:
        return False
    return sha256(path) == checkpoint.sha256


def _fetch(
    checkpoint: Checkpoint, partial: Path, progress: Callable[[int, int], None] | None
) -> None:
    """Append to ``partial`` what it lacks, or start over if the server cannot resume."""
    url = checkpoint.url
    have = partial.stat().st_size if partial.exists() else 0
    if have >= checkpoint.size:
        have = 0  # it is none of ours
    with _network(url):
        response = _request(url, have)
    with response:
        done = have if response.status == HTTPStatus.PARTIAL_CONTENT else 0
        total = 0 if response.length is None else done + response.length
        with partial.open("ab" if done else "wb") as file:
            while True:
                with _network(url):
                    chunk = response.read(_CHUNK)
                if not chunk:
                    break
                done += len(chunk)
                if done > checkpoint.size:
                    break  # the hash will be wrong
                file.write(chunk)
                if progress:
                    progress(done, total)
    with _network(url):
        if done < min(total, checkpoint.size):
            raise ConnectionError(f"the connection was cut after {done} of {total} bytes")


def _request(url: str, have: int) -> http.client.HTTPResponse:
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _request(url, 0)
        raise
    return response


@contextmanager
def _network(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(error, urllib.error.HTTPError):
            reason = f"HTTP {error.code} {error.reason}"
        # A server's words may hold line ends and terminal codes.
        words = "".join(c if c.isprintable() else " " for c in str(reason)).strip()
        raise EncoderError(
            f"cannot download {url} ({words}): run again to continue, or download it elsewhere"
            " and give it with --checkpoint FILE"
        ) from error
