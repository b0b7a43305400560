"""Recipe: what a picture was made of and how, as its file or a sidecar tells, to make it again."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from nst_fast import images
from nst_fast.config import EngineOptions, StyleSettings
from nst_fast.errors import ImageError, RecipeError, SettingsError, one_line
from nst_fast.images import Origin, Picture
from nst_fast.output_options import OutputOptions

FORMAT = 1
ENDING = ".json"  # of a sidecar, behind the picture's own
MOST_BYTES = 1 << 26  # of a sidecar: a million steps
NAMESPACE = "http://ns.nst-fast/1.0/"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
    '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    ' xmlns:nst-fast="{namespace}"\n xmp:CreatorTool={tool}\n nst-fast:recipe={recipe}/>\n'
    '</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="r"?>'
)
Read = Callable[[str], Picture]
Options = TypeVar("Options", StyleSettings, EngineOptions, OutputOptions)
NO_FILE = Origin("", "")  # of a picture that was given as pixels


@dataclass(frozen=True)
class Inputs:
    """What a picture was made of; a file without a path was given as pixels.

    Attributes:
        content: the file of the content.
        styles: those of the styles.
        others: those of the other pictures that there were, by their names in ``Stylizer.start``:
            "init", "anchor", "style_mask" and the like.
        temporal_weight: that of the anchor.
    """

    content: Origin
    styles: tuple[Origin, ...]
    others: Mapping[str, tuple[Origin, ...]] = field(default_factory=dict)
    temporal_weight: float = 0.0

    @classmethod
    def of(
        cls,
        content: Picture,
        styles: Sequence[Picture],
        others: Mapping[str, Sequence[Origin | None]],
        temporal_weight: float = 0.0,
    ) -> Inputs:
        """Those of pictures, and of ``others`` by their origins."""
        return cls(
            content.origin or NO_FILE,
            tuple(style.origin or NO_FILE for style in styles),
            {name: tuple(each or NO_FILE for each in files) for name, files in others.items()},
            temporal_weight,
        )

    def paths(self) -> list[str]:
        """Of all files."""
        origins = [self.content, *self.styles, *itertools.chain(*self.others.values())]
        return [origin.path for origin in origins if origin.path]


@dataclass(frozen=True)
class Recipe:
    """What made a picture; with the same inputs, on the same machine, it makes the same file again.

    Attributes:
        inputs: its files.
        settings: of the run, without ``max_seconds``: ``steps`` says where it ended.
        engine: what computed it; "auto" is what it came to.
        output: how it was written.
        environment: encoder, its digest, plan, versions and the like; see ``Result``.
        size: width and height in pixels.
        steps: how many were taken.
        loss: at the end, in float32; see ``Result``.
        terms: its parts.
        losses: of each step; empty in a picture's own metadata.
    """

    inputs: Inputs
    settings: StyleSettings
    engine: EngineOptions
    output: OutputOptions
    environment: Mapping[str, Any]
    size: tuple[int, int]
    steps: int
    loss: float
    terms: Mapping[str, float]
    losses: tuple[float, ...] = field(default=())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """That of a picture, or of the sidecar that was written with it.

        Raises:
            ImageError: the file is missing or cannot be read.
            RecipeError: it tells no recipe, or one of another version.
        """
        file, label = Path(path), os.fspath(path)
        images.check_input(file, label)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ImageError(f"{label} cannot be read ({one_line(error)})") from None
        if data.lstrip()[:1] == b"{" and len(data) <= MOST_BYTES:
            return cls.from_json(data, label)
        found = _of_packet(images.packet(data, label))
        if not found:
            raise RecipeError(
                f"{label} does not say how it was made; name a picture of nst-fast, or its sidecar"
            )
        return cls.from_json(found, label)

    @classmethod
    def from_json(cls, text: str | bytes, label: str) -> Recipe:
        """Read what :meth:`to_json` wrote; errors call it ``label``, and are RecipeErrors."""
        try:
            found = json.loads(text)
            if found["recipe"] != FORMAT:
                raise RecipeError(f"{label} is of another version of nst-fast; use that one")
            return cls._of(found)
        except SettingsError as error:
            raise RecipeError(f"{label}: its recipe cannot be used: {error}") from None
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise RecipeError(f"{label}: its recipe is damaged ({one_line(error)})") from None
        except RecursionError:
            raise RecipeError(f"{label}: its recipe is damaged (nested without end)") from None

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> Recipe:
        width, height = found["size"]
        return cls(
            inputs=Inputs(
                _origin(found["content"]),
                tuple(map(_origin, found["styles"])),
                {str(name): tuple(map(_origin, each)) for name, each in found["others"].items()},
                float(found["temporal_weight"]),
            ),
            settings=_options(StyleSettings, found["settings"]),
            engine=_options(EngineOptions, found["engine"]),
            output=_options(OutputOptions, found["output"]),
            environment=dict(found["environment"]),
            size=(int(width), int(height)),
            steps=int(found["steps"]),
            loss=float(found["loss"]),
            terms={str(name): float(term) for name, term in found["terms"].items()},
            losses=tuple(map(float, found.get("losses", ()))),
        )

    def to_json(self, *, losses: bool = True, indent: int | None = 2) -> str:
        """As text in ASCII, in which bytes of a path that are no text are escaped."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {
            "settings": self.settings.as_dict(),
            "engine": asdict(self.engine),
            "output": asdict(self.output),
            "environment": dict(self.environment),
            "terms": dict(self.terms),
        }
        values = asdict(values.pop("inputs")) | values
        if not losses:
            del values["losses"]
        return json.dumps({"recipe": FORMAT} | values, indent=indent)

    def to_xmp(self) -> bytes:
        """A packet of metadata with the recipe in it, but for the losses of the steps."""
        tool = f"nst-fast {self.environment.get('versions', {}).get('nst-fast', '')}".strip()
        recipe = quoteattr(self.to_json(losses=False, indent=None))
        return _XMP.format(namespace=NAMESPACE, tool=quoteattr(tool), recipe=recipe).encode()

    def pictures(
        self, folder: Path, *, anyway: bool = False, read: Read = images.load
    ) -> tuple[Picture, list[Picture], dict[str, list[Picture]]]:
        """Content, styles and others, read again; see ``Inputs``.

        Args:
            folder: where relative paths lead that lead nowhere from the current folder.
            anyway: whether a file that has changed may be taken.
            read: what reads a path or URL.

        Raises:
            ImageError: one is missing or cannot be used.
            RecipeError: one has changed, or was not read from a file.
        """

        def again(origin: Origin, role: str) -> Picture:
            if not origin.path:
                raise RecipeError(
                    f"the {role} picture was given as pixels, not as a file: "
                    "make the picture again where it was made, in Python"
                )
            picture = read(_found(origin.path, folder))
            assert picture.origin is not None
            if picture.origin.sha256 != origin.sha256 and not anyway:
                raise RecipeError(
                    f"{origin.path} has changed since it was the {role} picture: "
                    "bring back the file as it was, or take it as it is with --anyway"
                )
            return replace(picture, origin=replace(picture.origin, path=origin.path))

        content = again(self.inputs.content, "content")
        styles = [again(style, "style") for style in self.inputs.styles]
        others = {
            name: [again(each, name.replace("_", " ")) for each in files]
            for name, files in self.inputs.others.items()
        }
        return content, styles, others


def sidecar(path: str) -> str:
    """The path or URL of the sidecar of a picture."""
    return f"{path}{ENDING}"


def _found(path: str, folder: Path) -> str:
    if "://" in path or os.path.exists(path):
        return path
    beside = folder / path
    return os.fspath(beside) if beside.exists() else path


def _origin(found: Mapping[str, Any]) -> Origin:
    path, sha256 = found["path"], found["sha256"]
    if not isinstance(path, str) or not isinstance(sha256, str):
        raise TypeError("paths and SHA-256 are texts")
    return Origin(path, sha256)


def _options(kind: type[Options], found: Mapping[str, Any]) -> Options:
    unknown = found.keys() - {item.name for item in fields(kind)}
    if unknown:
        raise SettingsError(f"{min(unknown)}: this version of nst-fast does not know it")
    return kind(**found)


def _of_packet(packet: bytes) -> str:
    """The recipe in a packet of metadata, also where another program wrote that anew."""
    try:
        root = ElementTree.fromstring(packet.rstrip(b"\0")) if packet else None
    except ElementTree.ParseError:
        return ""
    name = f"{{{NAMESPACE}}}recipe"
    for element in () if root is None else root.iter():
        found = element.get(name) or (element.text if element.tag == name else None)
        if found:
            return found
    return ""
