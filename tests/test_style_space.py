"""The fit of the style maps, on a teacher with random weights and pictures of noise."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from teacher_file import write_data

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))  # programs, not a package

import fit_style_space
from student import teacher_taps

from nst_fast import encoders, images

SHIPPED = encoders.load("vgg19-lite").path
CHANNELS = {"relu1_1": 16, "relu2_1": 32, "relu3_1": 64, "relu4_1": 128, "relu5_1": 128}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three pictures of each kind, the first of which is held out, and one that is too small."""
    sizes = [(48, 60), (70, 49), (64, 64), (40, 90)]
    return write_data(tmp_path_factory.mktemp("data"), sizes)


class Same:
    """A student whose features are the teacher's, times 3 and mixed."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights
        rng = np.random.default_rng(1)
        self.mixed = {tap: np.linalg.qr(rng.normal(size=(n, n)))[0] for tap, n in CHANNELS.items()}

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = teacher_taps(self.weights, image)
        return {
            tap: torch.einsum("ij,njhw->nihw", torch.from_numpy(q).float(), 3 * found[tap])
            for tap, q in self.mixed.items()
        }


def test_a_student_that_knows_all_gets_the_teachers_heads(data):
    """The exact solution is W Qᵀ / 3; noise of bfloat16 blurs it a little."""
    weights = load_file(data / "teacher.safetensors")
    student = Same(weights)
    moments = fit_style_space.joint_moments(weights, student, sorted((data / "art").iterdir()))
    for tap, head in fit_style_space.heads(weights).items():
        fitted = fit_style_space.fit(moments[tap], head)
        assert fit_style_space.residual(moments[tap], head, fitted) < 1e-5
        exact = np.hstack([head[:, :-1] @ student.mixed[tap].T / 3, head[:, -1:]])
        assert fit_style_space.residual(moments[tap], head, exact) < 1e-10


def test_the_moments_and_the_residual_are_those_of_the_formulas(data):
    """From the features of one picture in float64; the margin does not count."""
    weights = load_file(data / "teacher.safetensors")
    student = Same(weights)
    path = data / "photos" / "2.png"
    moments = fit_style_space.joint_moments(weights, student, [path])
    pixels = images.load(path).pixels
    wide = np.pad(pixels, ((32, 32), (32, 32), (0, 0)), mode="reflect")
    image = torch.from_numpy(images.to_tensor(wide))
    for tap, head in fit_style_space.heads(weights).items():
        cells = []
        for taps in (student(image), teacher_taps(weights, image)):
            cut = 32 * taps[tap].shape[2] // 128
            inner = taps[tap][0, :, cut:-cut, cut:-cut].flatten(1).double().numpy()
            cells.append(np.vstack([inner, np.ones(inner.shape[1])]))
        f, t = cells
        z = np.vstack(cells)
        np.testing.assert_allclose(moments[tap], z @ z.T / z.shape[1], rtol=1e-4, atol=1e-4)
        other = np.random.default_rng(2).normal(size=(len(head), len(f)))
        expected = ((other @ f - head @ t) ** 2).sum() / ((head @ t) ** 2).sum()
        found = fit_style_space.residual(moments[tap], head, other)
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_fit_is_the_least_of_its_residuals():
    """Channels that are silent, and more of them than of the teacher's, do it no harm."""
    rng = np.random.default_rng(3)
    f, t = rng.normal(size=(2, 9, 500))
    f[3] = 0.0
    f[-1] = t[-1] = 1.0
    z = np.vstack([f, t[4:]])
    moments = z @ z.T / 500
    head = rng.normal(size=(7, 5))
    best = fit_style_space.fit(moments, head)
    assert np.isfinite(best).all()
    least = fit_style_space.residual(moments, head, best)
    for _ in range(20):
        near = best + 0.01 * rng.normal(size=best.shape)
        assert fit_style_space.residual(moments, head, near) > least


def test_the_program_gives_a_pack_its_maps(data, tmp_path, monkeypatch, capsys):
    made = []
    for name in ("one", "two"):
        folder = shutil.copytree(SHIPPED, tmp_path / name)
        (folder / "style_space.safetensors").unlink()
        words = ["fit_style_space.py", str(data), "--pack", str(folder), "--pictures", "2"]
        monkeypatch.setattr(sys, "argv", words)
        fit_style_space.main()
        assert [line[:8] for line in capsys.readouterr().out.splitlines()] == [
            f"{tap}:" for tap in CHANNELS
        ]
        encoder = encoders.load(folder)
        for tap in CHANNELS:
            assert encoder.style_map(tap).shape == (8, encoder.taps[tap].channels + 1)
        made.append((folder / "style_space.safetensors").read_bytes())
    assert made[0] == made[1], "the same data give the same maps"
