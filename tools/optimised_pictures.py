"""Make pictures as an optimiser makes them with an encoder: training data that shows its faults.

An optimised picture satisfies the encoder, whatever its teacher thinks of it; training on such
pictures takes away what an optimiser exploits (as in DAgger: Ross et al., 2011).

Run: python tools/optimised_pictures.py --data DIR --encoder PACK --out DIR --count N
where --data holds photos/ and art/; the pictures that training leaves out are left out here, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from student import training_pictures

from nst_fast import EngineOptions, StyleSettings, Stylizer

STEPS = (30, 160)  # least and most, of a picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", required=True, help="name or folder of a pack")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--size", type=int, default=320, help="longest side of a picture")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    photos, art = (training_pictures(options.data, kind) for kind in ("photos", "art"))
    stylizer = Stylizer(EngineOptions(options.encoder, threads=options.threads))
    for index in range(options.count):
        content = photos[rng.integers(len(photos))]
        style = art[rng.integers(len(art))] if rng.random() < 0.8 else rng.choice(photos)
        settings = StyleSettings(
            size=options.size,
            steps=int(rng.integers(*STEPS)),
            content_weight=float(10 ** rng.uniform(-3.5, -1.7)),
            init="noise" if rng.random() < 0.15 else "content",
            seed=index,
        )
        result = stylizer.stylize(content, style, settings)
        result.save(options.out / f"{options.seed}-{index:04}.png")
        print(index, f"{result.loss:.4f}", content.name, style.name, flush=True)


if __name__ == "__main__":
    main()
