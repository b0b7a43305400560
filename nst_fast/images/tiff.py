"""TIFF before Pillow sees it: is it a camera's raw, which page, and none but the tags of pixels.

The directory of the page is written anew over the old one, with fewer entries. Whatever type or
value the others have is no matter then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BYTE, SHORT, LONG, LONG8 = 1, 3, 4, 16  # types
_INTEGERS = {BYTE: "B", SHORT: "H", LONG: "I", 13: "I", LONG8: "Q", 18: "Q"}
_MOST = 64  # directories that are looked at: a chain may be endless

KIND, OLD_KIND, COMPRESSION, PHOTOMETRIC, ORIENTATION, CHILDREN = 254, 255, 259, 262, 274, 330
XMP_TAG = 700
REDUCED, MASK = 1, 4  # bits of KIND
_CFA, _LINEAR_RAW = 32803, 34892  # photometric interpretations of sensor data
_CFA_PATTERN, _LEAF, _DNG_VERSION = 33422, 34310, 50706
_RAW_TAGS = {_CFA_PATTERN, _LEAF, _DNG_VERSION}
# Of Sony, Epson, Samsung, Kodak, Nikon, Pentax
_RAW_COMPRESSIONS = {32767, 32769, 32770, 32772, 32867, 34713, 65000, 65535}
# What decodes pixels: size, layout, strips, tiles, palette, alpha, JPEG, YCbCr, profile, LERC.
_KEPT = (
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324),
    *(325, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 34675, 50674),
)


@dataclass(frozen=True)
class _Layout:
    """Where things are in classic and in big TIFF."""

    order: str
    big: bool

    @property
    def offset(self) -> str:
        return "Q" if self.big else "I"

    @property
    def number(self) -> str:
        return "Q" if self.big else "H"

    @property
    def entry(self) -> int:
        return 20 if self.big else 12

    def size(self, form: str) -> int:
        return struct.calcsize(self.order + form)

    def all_at(self, data: bytes, form: str, place: int) -> tuple[int, ...]:
        """Numbers; raises struct.error where the file ends before them."""
        if place > len(data):  # not left to struct: places of 64 bits overflow in it
            raise struct.error("beyond the end")
        return struct.unpack_from(self.order + form, data, place)

    def at(self, data: bytes, form: str, place: int) -> int:
        return self.all_at(data, form, place)[0]


@dataclass(frozen=True)
class _Directory:
    place: int
    entries: dict[int, bytes]  # by tag, as they are stored
    numbers: dict[int, tuple[int, ...]]  # by tag, of those that are whole numbers
    after: int  # place of the next in the chain, or 0

    def number(self, tag: int) -> int:
        return self.numbers.get(tag, (0,))[0]

    @property
    def reduced(self) -> bool:
        return bool(self.number(KIND) & REDUCED) or self.number(OLD_KIND) == 2

    @property
    def full(self) -> bool:
        return not self.reduced and not self.number(KIND) & MASK


def is_raw(data: bytes) -> bool:
    """Whether a TIFF holds a sensor's data, in whichever directory."""
    found = _layout(data)
    return found is not None and any(
        _RAW_TAGS & directory.entries.keys()
        or directory.number(PHOTOMETRIC) in (_CFA, _LINEAR_RAW)
        or directory.number(COMPRESSION) in _RAW_COMPRESSIONS
        for directory in _directories(data, *found)
    )


def orientation(data: bytes) -> int:
    """Of the first directory, from 1 to 8; 0 where there is none."""
    found = _layout(data)
    first = next(_directories(data, *found), None) if found else None
    turn = first.number(ORIENTATION) if first else 0
    return turn if turn <= 8 else 0


def bare(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """The file with one page and the tags of its pixels; as it is where it is no TIFF.

    The first page that is read; where that is a reduced copy, the first that is none.
    """
    found = _layout(data)
    pages = list(_directories(data, *found)) if found else []
    if not found or not pages:
        return data, {}
    page = pages[0]
    if page.reduced:
        page = next((other for other in pages if other.full), page)
    layout, _ = found
    entries = [page.entries[tag] for tag in _KEPT if tag in page.entries]
    turn = page.number(ORIENTATION)
    if 1 <= turn <= 8:
        one = struct.pack(layout.order + "HH" + layout.offset + "H", ORIENTATION, SHORT, 1, turn)
        entries.append(one.ljust(layout.entry, b"\0"))
    entries.sort(key=lambda entry: layout.at(entry, "H", 0))
    count = struct.pack(layout.order + layout.number, len(entries))
    end = struct.pack(layout.order + layout.offset, 0)
    table = count + b"".join(entries) + end
    place = struct.pack(layout.order + layout.offset, page.place)
    head, view = (8 if layout.big else 4), memoryview(data)  # one copy: the file may be large
    between, behind = view[head + len(place) : page.place], view[page.place + len(table) :]
    return b"".join((view[:head], place, between, table, behind)), {}


def _layout(data: bytes) -> tuple[_Layout, int] | None:
    """Layout of a TIFF and the place of its first directory."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    try:
        if order and struct.unpack_from(order + "H", data, 2)[0] == 42:
            return _Layout(order, False), struct.unpack_from(order + "I", data, 4)[0]
        if order and struct.unpack_from(order + "HHH", data, 2) == (43, 8, 0):
            return _Layout(order, True), struct.unpack_from(order + "Q", data, 8)[0]
    except struct.error:
        pass
    return None


def _directories(data: bytes, layout: _Layout, first: int) -> Iterator[_Directory]:
    """Those of the chain, then those below them; as far as they can be read."""
    todo, seen = [first], {0}
    below: list[int] = []
    while (todo or below) and len(seen) <= _MOST:
        place = todo.pop() if todo else below.pop(0)
        if place in seen:
            continue
        seen.add(place)
        try:
            directory = _read(data, layout, place)
        except struct.error:
            continue
        yield directory
        todo.append(directory.after)
        below += directory.numbers.get(CHILDREN, ())


def _read(data: bytes, layout: _Layout, place: int) -> _Directory:
    start = place + layout.size(layout.number)
    end = start + layout.at(data, layout.number, place) * layout.entry
    entries: dict[int, bytes] = {}
    numbers: dict[int, tuple[int, ...]] = {}
    for at in range(start, min(end, len(data)), layout.entry):
        tag = layout.at(data, "H", at)
        entries.setdefault(tag, data[at : at + layout.entry])
        numbers.setdefault(tag, _numbers(data, layout, at))
    try:
        after = layout.at(data, layout.offset, end)
    except struct.error:  # at the very end of a file some leave it out
        after = 0
    return _Directory(place, entries, {tag: some for tag, some in numbers.items() if some}, after)


def _numbers(data: bytes, layout: _Layout, at: int) -> tuple[int, ...]:
    """The first values of an entry, where they are whole numbers."""
    kind, count = layout.at(data, "H", at + 2), layout.at(data, layout.offset, at + 4)
    if kind not in _INTEGERS:
        return ()
    held = layout.size(layout.offset)
    value = at + 4 + held
    try:
        if count * layout.size(_INTEGERS[kind]) > held:
            value = layout.at(data, layout.offset, value)
        return layout.all_at(data, f"{min(count, _MOST)}{_INTEGERS[kind]}", value)
    except struct.error:
        return ()
