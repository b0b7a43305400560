"""What a judge finds in pictures of one pair, by networks in torch; see ``judge.Judge``.

    python -m peers.judged CONTENT STYLE PICTURE... --encoder PACK [--teacher FILE] --size 512

Prints a line of JSON: mean of the style terms, and content loss, of each picture in turn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from judge import Judge, Network, PackNetwork, Teacher
from nst_fast import encoders, images
from nst_fast.images import Picture


def main() -> None:
    """Judge the pictures, each at ``size`` pixels a side."""
    options = _parse()
    torch.set_num_threads(options.threads)
    network: Network = (
        Teacher(options.teacher)
        if options.teacher is not None
        else PackNetwork(encoders.load(options.encoder))
    )
    side = options.size

    def square(path: Path) -> Picture:
        return images.resize(images.load(path), side, side)

    judge = Judge(network, square(options.content), square(options.style))
    found = [judge.score(square(path)) for path in options.pictures]
    print(json.dumps([(score.style, score.content) for score in found]))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("content", type=Path)
    parser.add_argument("style", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
