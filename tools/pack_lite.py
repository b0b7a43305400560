"""Build the pack that ships, ``nst_fast/data/vgg19-lite``, from trained and pruned weights.

Run: python tools/pack_lite.py PRUNED.safetensors [FOLDER]
where FOLDER, for a trial, takes the place of the one that ships. The style maps and decoders of the
latter are carried over: tools/fit_style_space.py fits the maps to the new weights, and
tools/train_decoders.py the decoders.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from nst_fast.encoders.manifest import OPTIONAL
from nst_fast.export import build_pack

FOLDER = Path(__file__).parent.parent / "nst_fast" / "data" / "vgg19-lite"
SOURCE = (
    "distilled for nst-fast from the compressed VGG-19 of Wang et al., CVPR 2020 (MIT, after "
    "VGG-19, Simonyan and Zisserman 2014, CC BY 4.0)"
)


def bfloat16_exact(value: torch.Tensor) -> torch.Tensor:
    """Round weights so that a bfloat16 provider runs the very network that float32 does."""
    return value.bfloat16().half() if value.ndim == 4 else value


def main(weights: Path, target: Path = FOLDER) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        rounded = Path(temporary) / "weights.safetensors"
        save_file({k: bfloat16_exact(v) for k, v in load_file(weights).items()}, rounded)
        folder = Path(temporary) / FOLDER.name
        folder.mkdir()
        for file in OPTIONAL:
            shutil.copy(FOLDER / file, folder)
        build_pack(
            folder,
            rounded,
            name="vgg19-lite",
            architecture="vgg19-lite",
            half=True,
            source=SOURCE,
            licence="MIT",
        )
        shutil.copytree(folder, target, dirs_exist_ok=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*map(Path, sys.argv[1:]))
