"""A stage of a Ray Data pipeline: pictures of a folder in, stylised pictures and errors out.

pip install "nst-fast[cpu,openvino,ray]" pillow
python ray_data.py photos painting.jpg out.parquet
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import ray

from nst_fast import EngineOptions, NstError, StyleSettings, Stylizer


class Stylise:
    """An actor: holds its Stylizer, and gives errors as data so that none stops the pipeline."""

    def __init__(self, style: str) -> None:
        self.stylizer, self.style = Stylizer(EngineOptions(threads=1)), style

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            settings = StyleSettings(size=256, steps=100)
            result = self.stylizer.stylize(np.array(row["image"]), self.style, settings)
        except NstError as error:
            return {"path": row["path"], "picture": None, "error": str(error)}
        pixels = np.rint(result.picture.pixels * 255).astype(np.uint8)
        return {"path": row["path"], "picture": pixels, "error": ""}


def main(source: str, style: str, output: str) -> None:
    pictures = ray.data.read_images(source, mode="RGB", include_paths=True)
    stylised = pictures.map(
        Stylise,
        fn_constructor_args=(style,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
        num_cpus=1,
    )
    stylised.write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
