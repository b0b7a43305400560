"""What a run is given, what the optimiser sees of it, and how its pictures are handed out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nst_fast import colour, images
from nst_fast.config import Colour
from nst_fast.images import Picture
from nst_fast.masks import Masks
from nst_fast.recipe import Inputs


@dataclass(frozen=True)
class Given:
    """The pictures of a run.

    Attributes:
        contents: of one size; more than one on a GPU only, and not where the colours of the styles
            depend on the content.
        styles: of all of them.
        start: what all of them start from, resized to their size; None for what ``settings.init``
            says.
        masks: which style goes where; None: all of them everywhere.
        anchor: where it is opaque, what all of them start from at every size, and stay close to;
            resized to their size.
    """

    contents: Sequence[Picture]
    styles: Sequence[Picture]
    start: Picture | None = None
    masks: Masks | None = None
    anchor: Picture | None = None

    @property
    def others(self) -> dict[str, Picture]:
        """The pictures besides contents and styles, by their names in ``Stylizer.start``."""
        found = {"init": self.start, "anchor": self.anchor}
        return {name: picture for name, picture in found.items() if picture is not None}

    def digests(self) -> dict[str, list[str]]:
        """Of all that is given, by part."""
        parts: dict[str, Sequence[Picture | Masks | None]] = {
            "content": self.contents,
            "style": self.styles,
            "init": [self.start],
            "anchor": [self.anchor],
            "masks": [self.masks],
        }
        return {
            part: [each.digest for each in given if each is not None]
            for part, given in parts.items()
        }

    def inputs(self, temporal_weight: float) -> list[Inputs]:
        """What each picture is made of, as its recipe tells."""
        others = {name: [picture.origin] for name, picture in self.others.items()}
        others |= {} if self.masks is None else self.masks.origins
        return [Inputs.of(each, self.styles, others, temporal_weight) for each in self.contents]

    def seen(self, how: Colour) -> Given:
        """The same as the optimiser sees it: ``how`` says what is done to the colours."""
        contents = [colour.seen(content, how) for content in self.contents]
        others = {name: colour.seen(picture, how) for name, picture in self.others.items()}
        return Given(
            contents, self._coloured(how), others.get("init"), self.masks, others.get("anchor")
        )

    def _coloured(self, how: Colour) -> list[Picture]:
        """The styles with the colours that go with the content, or with their places in it."""
        content = self.contents[0]
        places = [content] * len(self.styles)
        if self.masks is not None and how in colour.BY_CONTENT:
            places = self.masks.seen(content)
        return [colour.of_style(*pair, how) for pair in zip(self.styles, places, strict=True)]

    def finished(self, index: int, found: Picture, size: tuple[int, int], how: Colour) -> Picture:
        """What the optimiser ``found`` for a content as a picture to look at.

        It has that ``size``, and its colours and transparency.
        """
        pixels = images.resize(Picture(found.pixels), *size).pixels
        # From the content: no scale before has made it coarser.
        content = images.resize(self.contents[index], *size)
        pixels = colour.finished(pixels, content.pixels, how)
        # Without what was painted where nothing shows: programs that scale it would see it.
        picture = images.resize(Picture(pixels, content.alpha), *size)
        return replace(picture, profile=self.contents[index].profile)
