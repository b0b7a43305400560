"""Options of a batch: which pictures, how their files are named, and how the work is carried out.

Beside the package ``nst_fast.batch``, which needs them, so that the command line can list them
without loading it.
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from typing import Literal, get_args

from nst_fast.config import check_choice
from nst_fast.errors import SettingsError

ExecutorName = Literal["local", "ray"]

NAME_FIELDS = ("folder", "stem", "name", "style", "path")
MOST_WORKERS = 1024
MOST_TOGETHER = 64
MOST_RETRIES = 1000


@dataclass(frozen=True)
class BatchOptions:
    """Which pictures a batch takes, how it names the results, and how it carries out the work.

    Attributes:
        name: The path of a result in the folder of results, made of {folder} (within the input),
            {stem}, {name} (with its ending), {style}, and {path} (the folder below what all inputs
            have in common, which tells folders of the same name apart).
        include: A glob for the names that are taken from folders; by default every name that ends
            like a picture. It may be given several times.
        exclude: A glob for the names of files and folders that are left out. It may be given
            several times.
        hidden: Whether hidden folders and those of deleted files are searched, too.
        anywhere: Whether outputs in a manifest may lie outside the folder of results.
        warm_start: Whether each picture of a folder starts from the result before it, as frames do.
        shard: Which part of the batch is done, as i/n: the i-th of n parts.
        redo: Whether pictures are made again that were made with other settings.
        max_errors: How many pictures may fail before the batch stops; None never stops it.
        retries: How often a picture is tried again after a fault that may pass.
        timeout: The seconds that a picture may take, reading and writing included, before its
            worker is replaced; None is however long it takes.
        workers: How many processes work; None takes as many as cores and memory allow.
        together: How many pictures of one size and style a GPU makes in one step.
        executor: Where the workers are: processes on this machine, "local", or on a cluster, "ray".
        address: The address of the Ray cluster, HOST:PORT; None starts one on this machine.
        metrics_port: The port that serves Prometheus metrics; None serves none.
        metrics_host: The address that the port is bound to; "0.0.0.0" lets other machines ask.

    Raises:
        SettingsError: a value cannot work; the message names the option.
    """

    name: str = "{folder}/{stem}.png"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    hidden: bool = False
    anywhere: bool = False
    warm_start: bool = False
    shard: str = "1/1"
    redo: bool = False
    max_errors: int | None = None
    retries: int = 2
    timeout: float | None = None
    workers: int | None = None
    together: int = 1
    executor: ExecutorName = "local"
    address: str | None = None
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        """Check every value; the first that cannot work raises."""
        for name in ("include", "exclude"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_name(self.name)
        _ = self.part
        check_choice("executor", self.executor, get_args(ExecutorName))
        _check_whole("retries", self.retries, 0, MOST_RETRIES)
        _check_whole("together", self.together, 1, MOST_TOGETHER)
        if self.workers is not None:
            _check_whole("workers", self.workers, 1, MOST_WORKERS)
        if self.max_errors is not None:
            _check_whole("max_errors", self.max_errors, 0, None)
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise SettingsError(f"timeout must be above 0 seconds, not {self.timeout}")
        if self.executor == "ray":
            if self.timeout is not None:
                raise SettingsError("timeout is for --executor local, whose workers can be killed")
            if self.warm_start:
                raise SettingsError("warm_start is for --executor local: frames follow each other")
        elif self.address is not None:
            raise SettingsError("address is that of a Ray cluster: give --executor ray too")

    @property
    def part(self) -> tuple[int, int]:
        """Which of how many parts is done, counted from 0."""
        first, _, count = self.shard.partition("/")
        if not (
            all(part.isascii() and part.isdecimal() for part in (first, count))
            and 1 <= int(first) <= int(count)
        ):
            raise SettingsError(
                f"shard must be i/n with i from 1 to n, such as 1/4, not {self.shard!r}"
            )
        return int(first) - 1, int(count)


def _check_whole(name: str, value: object, least: int, most: int | None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole and least <= value and (most is None or value <= most)):  # type: ignore[operator]
        bound = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise SettingsError(f"{name} must be a whole number {bound}, not {value!r}")


def _check_name(template: str) -> None:
    """Refuse a template with unknown fields, or with none."""
    try:
        named = {
            field for _, field, _, _ in string.Formatter().parse(template) if field is not None
        }
        template.format(**dict.fromkeys(NAME_FIELDS, "x"))
    except (ValueError, KeyError, IndexError, AttributeError):
        named = {""}
    if not named or not named <= set(NAME_FIELDS):
        choices = ", ".join(f"{{{field}}}" for field in NAME_FIELDS)
        raise SettingsError(f"name must be a path with some of {choices}, not {template!r}")
