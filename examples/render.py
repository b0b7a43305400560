"""Render the example pictures: ``python examples/render.py [NAME ...]``, all of them by default.

Everything is computed from seeds with numpy and Pillow, so the pictures are free of other people's
rights. The styles take seconds, the lake, the canal and the still life some minutes each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pictures import dusk, glass, landscape, masks, mosaic, still_life, strokes, town, woodcut

PICTURES = {
    "content_lake": landscape.lake,
    "content_still_life": still_life.still_life,
    "content_canal": town.canal,
    "content_dusk": dusk.hills,
    "style_swirls": strokes.starry,
    "style_glass": glass.window,
    "style_woodcut": woodcut.waves,
    "style_mosaic": mosaic.floor,
}
MASKS = {"mask_land": masks.land, "mask_water": masks.water, "mask_island": masks.island}
MAX_BYTES = 240_000  # of one picture in the repository


def main(names: list[str]) -> None:
    for name in names or (*PICTURES, *MASKS):
        if name in MASKS:
            grey = np.rint(MASKS[name]() * 255).astype(np.uint8)
            Image.fromarray(grey).save(Path(__file__).parent / f"{name}.png", optimize=True)
            continue
        picture = np.rint(np.clip(PICTURES[name](), 0, 1) * 255).astype(np.uint8)
        path = Path(__file__).parent / f"{name}.jpg"
        for quality in range(92, 60, -2):
            Image.fromarray(picture).save(path, quality=quality, optimize=True)
            if path.stat().st_size <= MAX_BYTES:
                break
        print(f"{path.name}: {picture.shape[1]}×{picture.shape[0]}, quality {quality}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
