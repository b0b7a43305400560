"""The classic script: Gatys et al. on eager torch with torch.optim.LBFGS, one size, 500 steps.

    python -m peers.classic CONTENT STYLE OUTPUT --encoder PACK [--size 512] [--steps 500]

A step is an evaluation of loss and gradient, as in the tutorials. It prints the seconds of each, in
JSON. With ``--keep`` it also writes the picture as it was at so many of them, as OUTPUT with the
number at the end of its name; that takes no time of a step, and is printed as the time of writing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nst_fast import encoders
from peers.torch_step import Network, gram

STYLE = [f"relu{block}_1" for block in range(1, 6)]
CONTENT = "relu4_2"


def main() -> None:
    """Parse, optimise, write the picture."""
    options = _parse()
    torch.set_num_threads(options.threads)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    kind = torch.bfloat16 if options.bf16 else torch.float32
    network = Network(encoders.load(options.encoder), [*STYLE, CONTENT], kind, layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
        content, style = (_read(path, options.size) for path in (options.content, options.style))
        seconds, writing = _optimise(network, content, style, options)
    _write(content, options.output)
    print(json.dumps({"seconds": seconds, "writing": writing}))


def _optimise(
    network: Network, image: Tensor, style: Tensor, options: argparse.Namespace
) -> tuple[list[float], float]:
    """Move the image in place.

    Returns:
        Seconds of each evaluation with the optimiser's work before it, and of what is kept.
    """
    steps, output, weight = options.steps, options.output, options.content_weight
    with torch.no_grad():
        kept = network(image)[CONTENT]
        grams = {tap: gram(network(style)[tap]) for tap in STYLE}
    image.requires_grad_()
    optimizer = torch.optim.LBFGS([image], max_iter=steps, max_eval=steps)
    ends = [time.perf_counter()]
    writing = 0.0  # seconds

    def measure(x: Tensor) -> Tensor:
        taps = network(x)
        loss = weight * (taps[CONTENT] - kept).square().mean() / kept.square().mean()
        for tap, target in grams.items():
            loss = loss + 0.2 * (gram(taps[tap]) - target).square().sum() / target.square().sum()
        return loss

    evaluate = torch.compile(measure) if options.compile else measure

    def closure() -> Tensor:
        nonlocal writing
        optimizer.zero_grad()
        loss = evaluate(image)
        loss.backward()
        ends.append(time.perf_counter() - writing)
        if len(ends) - 1 in options.keep:
            _write(image, output.with_stem(f"{output.stem}_{len(ends) - 1}"))
            writing = time.perf_counter() - ends[-1]
        return loss

    optimizer.step(closure)
    return np.diff(ends).tolist(), writing


def _write(image: Tensor, path: Path) -> None:
    pixels = image.detach().clamp(0, 1)[0].permute(1, 2, 0).numpy()
    Image.fromarray((255 * pixels).round().astype(np.uint8)).save(path)


def _read(path: Path, size: int) -> Tensor:
    pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size)), np.float32) / 255
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("content", "style", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--content-weight", type=float, default=5e-3)
    parser.add_argument("--keep", type=int, nargs="*", default=[], metavar="STEP")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
