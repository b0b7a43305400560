"""Packs of random bytes, in a cache of their own."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from nst_fast import encoders
from nst_fast.encoders import Tap
from nst_fast.errors import EncoderError

FILES = ("forward.onnx", "backward.onnx", "weights.safetensors")
TAPS = {"relu1_1": Tap(16, 1), "relu2_1": Tap(32, 2), "relu2_2": Tap(32, 2)}


def fill(folder: Path, name: str = "tiny", seed: int = 0, **changes) -> encoders.Encoder:
    """Write a pack of random bytes."""
    rng = np.random.default_rng(seed)
    for file in FILES:
        (folder / file).write_bytes(rng.bytes(rng.integers(50, 200)))
    fields = {
        "name": name,
        "pooling": "average",
        "mean": (0.485, 0.456, 0.406),
        "taps": TAPS,
        "source": "random bytes",
        "licence": "none",
        "created_with": {"numpy": np.__version__},
    }
    return encoders.write_manifest(folder, **(fields | changes))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("NST_FAST_CACHE", str(folder))
    return folder


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    folder.mkdir()
    fill(folder)
    return folder


def error_of(name_or_path: str | Path) -> str:
    with pytest.raises(EncoderError) as caught:
        encoders.load(name_or_path)
    message = str(caught.value)
    assert message.isprintable(), "a message is one line"
    return message


quick = settings(max_examples=100, deadline=None)
