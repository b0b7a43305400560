"""Encoder packs with random weights, pictures and backends that many tests share."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import platform
import secrets
import shutil
import signal
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image
from problems import Problem, clear_image, make_objective, make_problem
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits
from torch_reference import IMAGENET_STD, LITE_POOLED, Network, he_weights

from nst_fast import EngineOptions, Stylizer, encoders, runtime, schedule
from nst_fast.backend import Backend
from nst_fast.encoders import Encoder
from nst_fast.export import build_pack
from nst_fast.export.vgg import ARCHITECTURES
from nst_fast.kernels import Kernels

MANY = 200  # modules, as the exporter of torch imports them when it is first called
frozen = 0  # how many modules no collection looks at
SEED = int(os.environ.get("NST_FAST_TEST_SEED") or secrets.randbits(31))
os.environ["NST_FAST_TEST_SEED"] = str(SEED)  # one seed for all of pytest-xdist's processes
if "PYTEST_XDIST_WORKER" not in os.environ:
    # What tests find out about gradients, and compile, stays with them, and serves all of them.
    os.environ["NST_FAST_CACHE"] = tempfile.mkdtemp(prefix="nst-fast-tests-")
    atexit.register(shutil.rmtree, os.environ["NST_FAST_CACHE"], ignore_errors=True)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Where a shell runs the tests in the background; the programs that they start inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
VGG19_POSITIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)

# On two busy cores, threads that wait for each other cost more than they bring.
torch.set_num_threads(1)
BLAS = threadpool_limits(1, user_api="blas")

# Its log of every traced operator would bury the report of a failure.
logging.getLogger("torch.__trace").propagate = False

settings.register_profile(
    "nst-fast", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nst-fast")


def pytest_report_header() -> list[str]:
    versions = runtime.versions() | {"numpy": np.__version__, "torch": torch.__version__}
    lines = [
        f"versions: {', '.join(f'{k} {v}' for k, v in versions.items())}, {platform.machine()}",
        f"seed: {SEED} (NST_FAST_TEST_SEED={SEED} runs the same again)",
    ]
    return lines + [
        f"provider {s.name}: {', '.join(s.precisions) or s.problem}" for s in runtime.providers()
    ]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for each test and run; shown with a failure."""
    value = (SEED + zlib.crc32(request.node.nodeid.encode())) % 2**31
    print(f"seed {value} from NST_FAST_TEST_SEED={SEED}")
    return value


@dataclass(frozen=True, eq=False)
class Pack:
    """A pack, the checkpoint that it was built from, and its network in float64."""

    encoder: Encoder
    checkpoint: Path
    network: Network


def widths(architecture: str) -> dict[str, int]:
    """Channels of the convolutions of an architecture, by our names."""
    return {layer.conv: layer.out_channels for layer in ARCHITECTURES[architecture].layers()}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders that one of pytest-xdist's processes fills, and all of them read."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, half = root / name, root / f"{name}.half"
        with FileLock(root / f"{name}.lock"):
            if not folder.exists():
                half.mkdir()
                fill(half)
                half.rename(folder)
        return folder

    return make


def random_pack(shared: Callable[..., Path], pooling: str) -> Pack:
    weights = he_weights(widths("vgg19-lite"), seed=SEED)

    def fill(folder: Path) -> None:
        save_file(weights, folder / "weights.safetensors")
        pack = folder / "pack"
        pack.mkdir()
        build_pack(
            pack,
            folder / "weights.safetensors",
            name=f"random-{pooling}",
            architecture="vgg19-lite",
            pooling=pooling,
            source="random weights",
            licence="none",
        )
        rng = np.random.default_rng(SEED)
        # To fewer channels and to more; deeper taps are compared in their own.
        shapes = {"relu1_1": (11, 17), "relu2_1": (40, 33)}
        maps = {tap: rng.standard_normal(shape) / 4 for tap, shape in shapes.items()}
        encoders.write_style_space(pack, maps)

    folder = shared(pooling, fill)
    network = Network(weights, pooling, pooled=LITE_POOLED)
    return Pack(encoders.load(folder / "pack"), folder / "weights.safetensors", network)


@pytest.fixture(scope="session")
def average_pack(shared: Callable[..., Path]) -> Pack:
    return random_pack(shared, "average")


@pytest.fixture(scope="session")
def max_pack(shared: Callable[..., Path]) -> Pack:
    return random_pack(shared, "max")


@pytest.fixture(scope="session", params=["average", "max"])
def pack(request: pytest.FixtureRequest) -> Pack:
    """Either pooling of a random network in the shape of the shipped one."""
    return request.getfixturevalue(f"{request.param}_pack")


@pytest.fixture(scope="session")
def vgg19_pack(shared: Callable[..., Path]) -> Pack:
    """VGG-19 from a checkpoint in torchvision's layout, classifier and all."""
    weights = he_weights(widths("vgg19"), seed=SEED + 1)

    def fill(folder: Path) -> None:
        state = {
            f"features.{position}.{part}": torch.from_numpy(weights[f"{conv}.{part}"])
            for position, conv in zip(VGG19_POSITIONS, widths("vgg19"), strict=True)
            for part in ("weight", "bias")
        }
        state |= {"classifier.0.weight": torch.ones(4, 7), "classifier.6.bias": torch.ones(10)}
        torch.save(state, folder / "vgg19-random.pth")
        pack = folder / "pack"
        pack.mkdir()
        build_pack(
            pack,
            folder / "vgg19-random.pth",
            name="vgg19-random",
            architecture="vgg19",
            source="random weights",
            licence="none",
        )

    folder = shared("vgg19", fill)
    network = Network(weights, std=IMAGENET_STD)
    return Pack(encoders.load(folder / "pack"), folder / "vgg19-random.pth", network)


@pytest.fixture(scope="session")
def shipped() -> Pack:
    """The pack that nst-fast ships."""
    encoder = encoders.load("vgg19-lite")
    weights = encoder.path / "weights.safetensors"
    network = Network(load_file(weights), encoder.pooling, encoder.mean, pooled=LITE_POOLED)
    return Pack(encoder, weights, network)


@pytest.fixture(scope="session")
def backend() -> Callable[[str, str], Backend]:
    """Backend of a provider and precision; skips where this machine does not have it."""

    def make(provider: str, precision: str) -> Backend:
        (status,) = (s for s in runtime.providers() if s.name == provider)
        if precision not in status.precisions:
            pytest.skip(f"{provider} has no {precision} here: {status.problem or 'CPU lacks it'}")
        return Backend(status.name, precision, 1, Kernels(2))

    return make


@pytest.fixture(scope="session")
def photo() -> Callable[..., np.ndarray]:
    """Photographs of scikit-image, resized: (H, W, 3) uint8."""
    from skimage import data

    def make(name: str, width: int, height: int) -> np.ndarray:
        picture = Image.fromarray(getattr(data, name)())
        return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))

    return make


@pytest.fixture(scope="session")
def batch(photo: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Photographs as an encoder sees them: (N, 3, H, W) float32 in [0, 1]."""

    def make(names: str, width: int, height: int) -> np.ndarray:
        pictures = [photo(name, width, height) for name in names.split()]
        return np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)

    return make


@pytest.fixture(scope="session")
def stylizer() -> Stylizer:
    """The shipped encoder on the provider that is the same everywhere."""
    return Stylizer(EngineOptions(provider="cpu", threads=1))


@pytest.fixture(scope="session")
def content(photo) -> np.ndarray:
    return photo("chelsea", 64, 48)


@pytest.fixture(scope="session")
def style(photo) -> np.ndarray:
    return photo("coffee", 64, 48)


@pytest.fixture
def small_scales(monkeypatch) -> None:
    """Let pictures of 64 pixels have scales of 32 and 16."""
    monkeypatch.setattr(schedule, "SMALLEST", 16)


@pytest.fixture(scope="session")
def photos(batch):
    """Photographs of odd size, (N, 3, 45, 61); contrasty, so that pixels leave [0, 1]."""

    def make(names: str) -> np.ndarray:
        return (batch(names, 61, 45) - np.float32(0.5)) * np.float32(1.2) + np.float32(0.5)

    return make


@pytest.fixture(scope="session")
def problem(photos):
    """Problems by pack and normalisation, solved once; each image has targets of its own."""

    @cache
    def make(pack, normalization: str = "relative", swapped: bool = False) -> Problem:
        objective = make_objective(pack.encoder, normalization=normalization)
        image = clear_image(pack, objective, photos("astronaut coffee"), seed=1)
        content, style = photos("chelsea astronaut"), photos("coffee chelsea")
        if swapped:
            content, style = style, content
        return make_problem(pack, objective, image, content, style)

    return make


def freeze() -> None:
    """What was imported is there to stay: no collection of garbage need look at it again."""
    global frozen  # noqa: PLW0603
    gc.collect()
    gc.freeze()
    frozen = len(sys.modules)


def pytest_collection_finish() -> None:
    freeze()


def pytest_runtest_teardown() -> None:
    if len(sys.modules) > frozen + MANY:
        freeze()
