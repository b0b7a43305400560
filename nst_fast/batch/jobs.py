"""What a batch is made of: one Job a picture, and what tells that it was made already."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from typing import Any

from nst_fast import encoders
from nst_fast.batch import storage
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.errors import BatchError, NstError
from nst_fast.images import WRITABLE, check_options
from nst_fast.library import versions
from nst_fast.making import check_format
from nst_fast.making_options import Kind, MakingOptions
from nst_fast.output_options import OutputOptions
from nst_fast.runtime import choose


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to make.

    Attributes:
        content: path or URL of the picture to repaint.
        styles: paths or URLs of one or several styles, blended by ``settings.style_blend``.
        output: path or URL of the result; no two jobs of a batch share one.
        settings: of this picture.
        saving: how the result is written.
        after: output of the job that has to end before this one; "" where there is none. It is
            the picture that ``settings.init`` starts from; where it failed, the content is.
        digest: of all that decides the picture, its content apart; set by ``BatchRunner``.
        stamp: of the content before it is read, see ``storage.stamps``; set by it too.
        making: what is left besides the result.
        state: local file of the run's state, where ``making`` has it saved; "": beside the output.
            For an output on an object store ``BatchRunner`` sets it.
    """

    content: str
    styles: tuple[str, ...]
    output: str
    settings: StyleSettings = field(default_factory=StyleSettings)
    after: str = ""
    digest: str = ""
    stamp: str = ""
    saving: OutputOptions = field(default_factory=OutputOptions)
    making: MakingOptions = field(default_factory=MakingOptions)
    state: str = ""

    @property
    def files(self) -> dict[Kind, str]:
        """Paths or URLs of what is written besides the output, by the option that asks for it."""
        return self.making.files(self.output)

    @property
    def folders(self) -> set[str]:
        """Where something is written."""
        return {storage.parent(url) for url in (self.output, *self.files.values())}

    @property
    def state_file(self) -> str | None:
        """Where the run's state is saved; None: nowhere."""
        return None if self.making.save_every is None else self.state or f"{self.output}.state"


class Digests:
    """Hashes of what decides a picture, so that a rerun notices what has changed."""

    def __init__(self, engine: EngineOptions, *, here: bool = True) -> None:
        """Take what all pictures share.

        Args:
            engine: how they are computed.
            here: whether on this machine, so that "auto" is what it means here; elsewhere it is
                not known.

        Raises:
            EncoderError: there is no such encoder.
            ProviderError: what the engine asks for cannot be had here.
        """
        pack = encoders.load(engine.encoder)
        provider, precision = engine.provider, engine.precision
        if here:
            provider, precision = choose(provider, precision, engine.device)
        # Not numpy's: its sums are in float64, and pictures differ by less than their rounding.
        found = versions() | {name: version(name) for name in ("nst-fast", "pillow")}
        self._engine = [pack.name, pack.digest, provider, precision, _deciding(provider, found)]
        self._files: dict[str, str] = {}

    def of(self, job: Job) -> str:
        """Of settings, output options, encoder, and the bytes of styles, masks and a first picture.

        A file that cannot be read counts as empty: its job fails when its turn comes.
        """
        settings, init = job.settings.as_dict(), job.settings.init_path
        if init is not None:
            settings["init"] = storage.canonical(str(init))
        settings["style_mask"] = [*map(storage.canonical, job.settings.style_mask)]
        for name in ("style_regions", "content_mask"):
            settings[name] = settings[name] and storage.canonical(settings[name])
        start = "" if init is None or job.after else self._file(str(init))
        files = [start, *map(self._file, (*job.styles, *job.settings.mask_paths))]
        facts = [settings, self._engine, files, asdict(job.saving)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def _file(self, url: str) -> str:
        if url not in self._files:
            try:
                self._files[url] = hashlib.sha256(storage.read(url)).hexdigest()
            except NstError:
                self._files[url] = ""
        return self._files[url]


def _deciding(provider: str, found: Mapping[str, str]) -> dict[str, str]:
    """The versions that a picture depends on: those of other providers' packages do not count."""
    others = {"cpu": ("openvino", "cupy", "tensorrt"), "openvino": ("cupy", "tensorrt")}
    left_out = others.get(provider, ())
    return {k: v for k, v in found.items() if not any(part in k for part in left_out)}


def check(jobs: Iterable[Job]) -> None:
    """Refuse files that could not be written, that are inputs, or that two jobs share.

    Raises:
        BatchError: names the file.
        ImageError: one besides an output has no format, or needs a package that is missing.
        SettingsError: the format of an output does not have what is asked for.
    """
    inputs: set[str] = set()
    outputs: dict[str, str] = {}
    besides: dict[str, str] = {}  # what is written besides, and the option that asks for it
    checked: set[tuple[Kind, str]] = set()
    for job in jobs:
        given = job.content, *job.styles, *job.settings.mask_paths
        inputs |= {storage.canonical(url) for url in given}
        if job.settings.init_path is not None and not job.after:
            inputs.add(storage.canonical(str(job.settings.init_path)))
        storage.check_writable(job.output)
        name = storage.canonical(job.output)
        if not job.output.lower().endswith(tuple(WRITABLE)):
            raise BatchError(f"output {job.output} must end in one of {', '.join(WRITABLE)}")
        check_options(job.output, job.saving)
        if name in outputs:
            raise BatchError(_collision(outputs[name], job))
        outputs[name] = job.content
        for kind, url in job.files.items():
            storage.check_writable(url)
            form = kind, posixpath.splitext(url)[1].lower()
            if form not in checked:  # it looks for packages, and there may be millions of jobs
                check_format(kind, url)
                checked.add(form)
            if storage.canonical(url) in besides:
                raise BatchError(f"{kind} {url} is named twice; give each file its own name")
            besides[storage.canonical(url)] = kind
    for name in outputs.keys() & inputs:
        raise BatchError(f"output {name} is an input; choose another folder for --output")
    for name in besides.keys() & (inputs | outputs.keys()):
        what = "an input" if name in inputs else "an output"
        raise BatchError(f"{besides[name]} {name} is {what}; give it another name")


def _collision(other: str, job: Job) -> str:
    """That two jobs have one output, and what tells them apart."""
    if storage.canonical(other) == storage.canonical(job.content):
        return (
            f"{job.content} would become {job.output} twice; "
            "name it once, or give each its own output in a manifest"
        )
    return (
        f"{other} and {job.content} would both become {job.output}; "
        "tell them apart by --name '{path}/{name}.png'"
    )


def setting_names() -> frozenset[str]:
    """Names of all settings."""
    return frozenset(item.name for item in fields(StyleSettings))


def saving_names() -> frozenset[str]:
    """Names of all options of an output."""
    return frozenset(item.name for item in fields(OutputOptions))


def making_names() -> frozenset[str]:
    """Names of all options of what the making leaves."""
    return frozenset(item.name for item in fields(MakingOptions))


def with_changes(settings: StyleSettings, changes: Mapping[str, Any]) -> StyleSettings:
    """Settings with some replaced; raises SettingsError where a value cannot work."""
    return StyleSettings(**(settings.as_dict() | dict(changes)))
