"""The size of a JPEG XL picture by its header: its reader decodes before it can be asked."""

from __future__ import annotations

_CODESTREAM = b"\xff\x0a"
_RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height
_WIDTHS = (9, 13, 18, 30)  # bits of a side, by the two before it


def size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels (ISO 18181-1, SizeHeader).

    Raises:
        ValueError: there is no such header.
    """
    start = data.find(_CODESTREAM)  # the boxes of a container before it hold no such bytes
    if start < 0 or len(data) < start + 12:
        raise ValueError("no JPEG XL header")
    bits = int.from_bytes(data[start + 2 : start + 12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take(_WIDTHS[take(2)])

    height = side()
    above, below = _RATIOS[take(3)]
    return (height * above // below if above else side()), height
