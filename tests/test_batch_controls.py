"""Every control from a row of a manifest: it reaches the picture, or its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import picture, write_pictures
from picture_files import matrix_profile
from PIL import Image
from stylizing import SHALLOW, quick

from nst_fast import OutputOptions, Result, StyleSettings
from nst_fast.batch import Job, find_jobs, work

Make = Callable[..., tuple[Job, Result]]
BASE = quick(**SHALLOW, size=40, steps=6)
PATHS = ("init", "style_mask", "style_regions", "content_mask")
TWO = {"style": "style.png|in/p002.png"}

# What a row has besides its content, once without the control and once with it.
CONTROLS: dict[str, tuple[dict[str, Any], Any]] = {
    "size": ({}, 32),
    "steps": ({}, 5),
    "until": ({"steps": 20}, 1e3),
    "max_seconds": ({}, 1e-6),
    "style_weight": ({}, 3),
    "content_weight": ({}, 2),
    "tv_weight": ({}, 1),
    "range_weight": ({"style_weight": 100}, 1e6),
    "style_layers": ({}, {"relu1_1": 2}),
    "content_layers": ({}, {"relu1_2": 1}),
    "style_loss": ({}, "wasserstein"),
    "style_space": ({}, "encoder"),
    "shift": ({}, 0),
    "normalization": ({}, "gram"),
    "smoothing": ({}, 0.05),
    "margin": ({}, 0),
    "colour": ({}, "luminance"),
    "style_blend": (TWO, [3, 1]),
    "style_scale": (TWO, [1, 2]),
    "style_mask": (TWO, "left.png|right.png"),
    "style_regions": (TWO, "left.png"),
    "content_mask": ({}, "left.png"),
    "scales": ({}, 2),
    "init": ({}, "style.png"),
    "init_noise": ({}, 0.2),
    "transfer_share": ({"init": "transfer"}, 0.1),
    "optimizer": ({}, "adam"),
    "learning_rate": ({"optimizer": "adam"}, 0.1),
    "history": ({}, 1),
    "average": ({}, 3),
    "seed": ({"init": "noise"}, 3),
}


@pytest.fixture
def make(tmp_path, stylizer) -> Make:
    """Make the picture of a row; nothing is written."""
    write_pictures(tmp_path / "in", 3)
    left = np.zeros((32, 40), np.uint8)
    left[:, :20] = 255
    Image.fromarray(left).save(tmp_path / "left.png")
    Image.fromarray(255 - left).save(tmp_path / "right.png")

    def make(**columns: Any) -> tuple[Job, Result]:
        row = {"content": "in/p000.png", "style": "style.png"} | columns
        (tmp_path / "list.jsonl").write_text(json.dumps(row))
        (job,) = find_jobs(
            [],
            output=str(tmp_path / "out"),
            manifest_url=str(tmp_path / "list.jsonl"),
            settings=BASE,
        ).jobs
        return job, work.make(stylizer, work.load(job, work.StyleCache())).result

    return make


def test_every_setting_is_a_control():
    assert set(CONTROLS) == {item.name for item in fields(StyleSettings)}


@pytest.mark.usefixtures("small_scales")
@pytest.mark.parametrize("name", CONTROLS)
def test_a_setting_of_a_row_reaches_its_picture(name, make, stylizer, tmp_path):
    """It is another picture than without, and the one that Python makes of these settings."""
    others, value = CONTROLS[name]
    _, without = make(**others)
    job, made = make(**others | {name: value})
    assert not np.array_equal(without.picture.pixels, made.picture.pixels)
    if name in PATHS:
        paths = [str(tmp_path / path) for path in value.split("|")]
        value = paths if name == "style_mask" else paths[0]
    given = {k: v for k, v in others.items() if k != "style"} | {name: value}
    settings = StyleSettings(**(BASE.as_dict() | given))
    assert job.settings == settings
    if name != "max_seconds":
        alone = stylizer.stylize(job.content, list(job.styles), settings)
        assert np.array_equal(made.picture.pixels, alone.picture.pixels)


def test_output_options_of_a_row_reach_its_file(make, tmp_path):
    wide = matrix_profile("bgr", 1.0)
    picture(1).save(tmp_path / "in" / "wide.png", icc_profile=wide)

    def written(**columns: Any) -> bytes:
        job, result = make(**columns)
        work.write(work.Made(job, result, work.failure(job, "", 1)), "tag")
        return Path(job.output).read_bytes()

    def profile(name: str) -> bytes:
        with Image.open(tmp_path / "out" / name) as image:
            return image.info["icc_profile"]

    plain = written(output="a.png")
    assert not (tmp_path / "out" / "a.png.json").exists()
    assert b"recipe" in plain
    assert b"recipe" not in written(output="b.png", metadata=False)
    assert (plain[24], written(output="c.png", bits=16)[24]) == (8, 16)
    assert len(written(output="d.jpg", quality=20)) < len(written(output="e.jpg"))
    written(output="f.png", content="in/wide.png")
    written(output="g.png", content="in/wide.png", profile="keep")
    assert (profile("f.png") == wide, profile("g.png") == wide) == (False, True)
    written(output="h.png", sidecar=True)
    assert json.loads((tmp_path / "out" / "h.png.json").read_text())["settings"]["size"] == 40


def test_a_settings_file_of_a_row_gives_way_to_its_columns(make, tmp_path):
    (tmp_path / "look.toml").write_text(
        "content_weight = 0.7\nshift = 0.0\n[output]\nbits = 16\n[engine]\nthreads = 7\n"
    )
    job, result = make(settings="look.toml", shift=2.0)
    assert job.settings == replace(BASE, content_weight=0.7, shift=2.0)
    assert job.saving == OutputOptions(bits=16)
    assert result.settings == job.settings
    job, _ = make(settings="look.toml", preset="draft", steps=4, bits=8)
    assert job.settings == replace(BASE, content_weight=0.7, shift=0.0, steps=4)
    assert job.saving == OutputOptions()
