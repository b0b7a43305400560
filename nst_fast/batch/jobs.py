"""What a batch is made of: one Job a picture, and the Engine that makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nst_fast import encoders
from nst_fast.batch import storage
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.errors import BatchError, NstError
from nst_fast.images import WRITABLE


@dataclass(frozen=True)
class Engine(EngineOptions):
    """How each worker computes.

    Attributes:
        together: pictures of one size and style that a GPU makes side by side in every step.
    """

    together: int = 1

    def of_worker(self, number: int, gpus: int) -> Engine:
        """That of one of several workers, which share several GPUs out among them."""
        return self if gpus < 2 else replace(self, device=f"cuda:{number % gpus}")


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to make.

    Attributes:
        content: path or URL of the picture to repaint.
        styles: paths or URLs of one or several styles, blended by ``settings.style_blend``.
        output: path or URL of the result; no two jobs of a batch share one.
        settings: of this picture.
        after: output of the job that has to end before this one; "" where there is none. It is
            the picture that ``settings.init`` starts from; where it failed, the content is.
        digest: of all that decides the picture, its content apart; set by ``BatchRunner``.
        stamp: of the content before it is read, see ``storage.stamps``; set by it too.
    """

    content: str
    styles: tuple[str, ...]
    output: str
    settings: StyleSettings = field(default_factory=StyleSettings)
    after: str = ""
    digest: str = ""
    stamp: str = ""


class Digests:
    """Hashes of what decides a picture, so that a rerun notices what has changed."""

    def __init__(self, engine: Engine) -> None:
        """Take what all pictures share; raises EncoderError where there is no such encoder."""
        pack = encoders.load(engine.encoder)
        self._engine = [pack.name, pack.digest, engine.device, engine.provider, engine.precision]
        self._files: dict[str, str] = {}

    def of(self, job: Job) -> str:
        """Of the settings, the encoder, and the bytes of the styles and of a picture to start from.

        A file that cannot be read counts as empty: its job fails when its turn comes.
        """
        settings, init = job.settings.as_dict(), job.settings.init_path
        if init is not None:
            settings["init"] = storage.canonical(str(init))
        start = "" if init is None or job.after else self._file(str(init))
        files = [start, *map(self._file, job.styles)]
        facts = [settings, self._engine, files]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def _file(self, url: str) -> str:
        if url not in self._files:
            try:
                self._files[url] = hashlib.sha256(storage.read(url)).hexdigest()
            except NstError:
                self._files[url] = ""
        return self._files[url]


def check(jobs: Iterable[Job]) -> None:
    """Refuse outputs that could not be written, that are inputs, or that two jobs share.

    Raises:
        BatchError: names the output.
    """
    inputs: set[str] = set()
    outputs: dict[str, str] = {}
    for job in jobs:
        inputs |= {storage.canonical(url) for url in (job.content, *job.styles)}
        if job.settings.init_path is not None and not job.after:
            inputs.add(storage.canonical(str(job.settings.init_path)))
        storage.check_writable(job.output)
        name = storage.canonical(job.output)
        if not job.output.lower().endswith(tuple(WRITABLE)):
            raise BatchError(f"output {job.output} must end in one of {', '.join(WRITABLE)}")
        if name in outputs:
            raise BatchError(
                f"{outputs[name]} and {job.content} would both become {job.output}; "
                "tell them apart by --name, for instance with {folder} or {name}"
            )
        outputs[name] = job.content
    for name in outputs.keys() & inputs:
        raise BatchError(f"output {name} is an input; choose another folder for --output")


def setting_names() -> frozenset[str]:
    """Names of all settings."""
    return frozenset(item.name for item in fields(StyleSettings))


def with_changes(settings: StyleSettings, changes: Mapping[str, Any]) -> StyleSettings:
    """Settings with some replaced; raises SettingsError where a value cannot work."""
    return StyleSettings(**(settings.as_dict() | dict(changes)))
