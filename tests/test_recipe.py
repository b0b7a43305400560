"""How a picture was made, in its file and beside it, and the same picture made from that."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import commanding
import numpy as np
import pytest
from batches import journal_rows
from commanding import QUICK, STYLIZE, assert_fails
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stylizing import quick
from test_settings_file import ENGINES, OUTPUTS, STYLES

from nst_fast import ImageError, OutputOptions, Recipe, RecipeError, Result, images
from nst_fast.images import Origin, Picture
from nst_fast.recipe import FORMAT, NAMESPACE, Inputs

pictures = commanding.pictures
command = commanding.command

ENDINGS = ["png", "jpg", "webp", "tif"]
ORIGINS = st.builds(Origin, st.text(st.characters(), max_size=20), st.text("0123456789abcdef"))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
RECIPES = st.builds(
    Recipe,
    inputs=st.builds(
        Inputs,
        ORIGINS,
        st.lists(ORIGINS, max_size=2).map(tuple),
        st.dictionaries(
            st.sampled_from(["init", "style_mask"]), st.lists(ORIGINS, max_size=2).map(tuple)
        ),
        st.floats(0, 1),
    ),
    settings=STYLES,
    engine=ENGINES,
    output=OUTPUTS,
    environment=st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers()),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    steps=st.integers(0, 9),
    loss=FINITE,
    terms=st.dictionaries(st.text(max_size=5), FINITE, max_size=3),
    losses=st.lists(FINITE, max_size=3).map(tuple),
)
PLAIN = Picture(np.full((16, 20, 3), 0.5, np.float32))


@pytest.fixture(scope="module")
def made(stylizer, content, style) -> Result:
    return stylizer.stylize(content, style, quick(steps=2))


# ------------------------------------------------------------------------------- there and back


@settings(max_examples=60)
@given(RECIPES, st.sampled_from(ENDINGS), st.booleans())
def test_every_format_keeps_a_recipe(tmp_path_factory, recipe, ending, deep):
    """Whatever letters, quotes and bytes that are no text are in its paths."""
    options = OutputOptions(bits=16 if deep and ending in ("png", "tif") else 8)
    path = tmp_path_factory.getbasetemp() / f"kept.{ending}"
    path.write_bytes(images.encode(PLAIN, path.name, options, xmp=recipe.to_xmp()))
    assert Recipe.read(path) == dataclasses.replace(recipe, losses=())
    assert np.abs(images.load(path).pixels - PLAIN.pixels).max() < 0.02
    assert Recipe.from_json(recipe.to_json(), "a") == recipe


def test_other_programs_may_write_the_packet_anew():
    element = (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d xmlns:q="{NAMESPACE}"><q:recipe>'
        f'{{"recipe": {FORMAT + 1}}}</q:recipe></d></x:xmpmeta>'
    )
    path = Path("anew.png").resolve()
    with pytest.MonkeyPatch.context() as patch:
        data = images.encode(PLAIN, "a.png", xmp=element.encode())
        patch.setattr(Path, "read_bytes", lambda _: data)
        patch.setattr(images, "check_input", lambda *_: None)
        with pytest.raises(RecipeError, match="another version of nst-fast"):
            Recipe.read(path)


def refusal(text: str) -> str:
    """What is said of a recipe; its name alone where it is none the worse."""
    try:
        Recipe.from_json(text, "a.json")
    except RecipeError as error:
        return str(error)
    return "a.json"


@settings(max_examples=100)
@given(RECIPES, st.data())
def test_a_damaged_recipe_is_one_line(recipe, data):
    text = recipe.to_json()
    found = json.loads(text)
    keys = sorted(found)
    name = data.draw(st.sampled_from(keys))
    odd = st.none() | st.integers() | st.text(max_size=3) | st.just([[1]]) | st.just({"a": {}})
    found[name] = data.draw(odd)
    cut = text[: data.draw(st.integers(0, len(text)))]
    for damaged in (json.dumps(found), cut, f"[{text}]", "{" + "[" * 100_000):
        told = refusal(damaged)
        assert told.startswith("a.json")
        assert "\n" not in told


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("s3://bucket/a.png", "s3://bucket/a.png"),
        ("https://me:secret@host/a.png?X-Signature=1#x", "https://host/a.png"),
        ("/home/me/what?.png", "/home/me/what?.png"),
        ("a@b.png", "a@b.png"),
    ],
)
def test_secrets_of_urls_are_not_kept(url, kept):
    assert Origin.of(url, b"x").path == kept


# ----------------------------------------------------------------------------------- what is told


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_says_how_it_was_made(tmp_path, made, ending):
    path = tmp_path / f"a.{ending}"
    made.save(path)
    found = Recipe.read(path)
    assert (found.settings, found.steps, found.loss) == (made.settings, 2, made.loss)
    assert dict(found.terms) == dict(made.terms)
    assert found.environment["versions"] == made.environment["versions"]
    assert found.inputs == Inputs(Origin("", ""), (Origin("", ""),))
    assert made.environment["provider"] == found.engine.provider  # what "auto" came to
    made.save(path, OutputOptions(metadata=False))
    with pytest.raises(RecipeError, match="does not say how it was made"):
        Recipe.read(path)
    assert b"nst-fast" not in path.read_bytes()
    assert not list(tmp_path.glob("*.json"))


def test_a_sidecar_has_every_loss(tmp_path, made):
    made.save(tmp_path / "a.png", OutputOptions(sidecar=True, metadata=False))
    found = Recipe.read(tmp_path / "a.png.json")
    assert found.losses == tuple(report.loss for report in made.reports)
    assert found.output == OutputOptions(sidecar=True, metadata=False)


def test_a_picture_is_not_lost_for_its_metadata(tmp_path, made, caplog):
    """A recipe too long for a JPEG; a sidecar where none can be."""
    long = dataclasses.replace(made, environment={**made.environment, "note": "x" * 70_000})
    with caplog.at_level(logging.WARNING):
        long.save(tmp_path / "a.jpg")
    assert "JPEG has no room for how it was made; see --sidecar" in caplog.text
    assert images.load(tmp_path / "a.jpg").size == made.picture.size
    long.save(tmp_path / "a.png")
    assert Recipe.read(tmp_path / "a.png").environment["note"] == "x" * 70_000
    (tmp_path / "b.png.json").mkdir()
    with pytest.raises(ImageError, match=r"b\.png\.json cannot be written"):
        made.save(tmp_path / "b.png", OutputOptions(sidecar=True))
    assert images.load(tmp_path / "b.png").size == made.picture.size


def test_files_without_a_recipe(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.gif")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"name": "x"}')
    (tmp_path / "a.txt").write_text("hello")
    for name in ("a.gif", "a.png", "a.txt"):
        with pytest.raises(RecipeError, match="does not say how it was made"):
            Recipe.read(tmp_path / name)
    with pytest.raises(RecipeError, match="its recipe is damaged"):
        Recipe.read(tmp_path / "a.json")
    with pytest.raises(ImageError, match="no such file"):
        Recipe.read(tmp_path / "none.png")


# ----------------------------------------------------------------------------------------- replay


def test_a_replay_has_the_same_bytes(pictures, command):
    """Of the picture, by itself and by its sidecar."""
    words = ["stylize", "photo.jpg", "paint.jpg", "other.jpg", "--init", "other.jpg", *QUICK]
    words += ["--style-blend", "2,1", "--threads", "1", "--bits", "16", "--sidecar"]
    assert command(*words, "-o", "a.png")[0] == 0
    for source in ("a.png", "a.png.json"):
        code, out, err = command("replay", source, "-o", "b.png")
        assert (code, err) == (0, "")
        assert out.startswith("b.png: 48×34, 3 steps in ")
        for ending in ("", ".json"):
            assert Path(f"a.png{ending}").read_bytes() == Path(f"b.png{ending}").read_bytes()
    assert command("replay", "a.png", "-o", "c.png", "--bits", "8", "--no-sidecar")[0] == 0
    assert Path("c.png").read_bytes()[24] == 8
    assert not Path("c.png.json").exists()


def test_a_run_that_was_ended_early_is_replayed_to_where_it_ended(pictures, stylizer):
    with stylizer.start("photo.jpg", "paint.jpg", quick(size=48, steps=9, max_seconds=900)) as run:
        for report in run:
            if report.step == 4:
                break
        result = run.result()
    result.save("a.png")
    recipe = Recipe.read("a.png")
    assert recipe.steps == 4
    again = stylizer.replay(recipe)
    again.save("b.png", recipe.output)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_temporal_term_is_replayed(pictures, stylizer):
    anchor = {"anchor": "other.jpg", "temporal_weight": 9.0}
    with stylizer.start("photo.jpg", "paint.jpg", quick(size=48, steps=3), **anchor) as run:
        assert len(list(run)) == 3
        run.result().save("a.png")
    recipe = Recipe.read("a.png")
    stylizer.replay(recipe).save("b.png", recipe.output)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    Path("other.jpg").write_bytes(Path("photo.jpg").read_bytes())
    with pytest.raises(RecipeError, match=r"other\.jpg has changed since it was the anchor"):
        stylizer.replay(recipe)


def test_masks_are_replayed_and_must_not_change(pictures, command):
    grey = np.linspace(0, 255, 80 * 56).reshape(56, 80).astype(np.uint8)
    Image.fromarray(grey).save("left.png")
    Image.fromarray(255 - grey).save("right.png")
    Image.fromarray(grey // 2).save("keep.png")
    words = ["stylize", "photo.jpg", "paint.jpg", "other.jpg", "-o", "a.png", *QUICK]
    words += ["--style-mask", "left.png", "--style-mask", "right.png", "--threads", "1"]
    assert command(*words, "--content-mask", "keep.png")[0] == 0
    recipe = Recipe.read("a.png")
    assert [each.path for each in recipe.inputs.others["style_mask"]] == ["left.png", "right.png"]
    assert command("replay", "a.png", "-o", "b.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    for name, role in (("right.png", "style mask"), ("keep.png", "content mask")):
        kept = Path(name).read_bytes()
        Image.fromarray(grey // 3).save(name)
        words = ["replay", "a.png", "-o", "c.png"]
        assert_fails(command, words, 1, f"{name} has changed since it was the {role} picture")
        Path(name).write_bytes(kept)


def test_what_has_changed_is_named(pictures, command):
    assert command(*STYLIZE, "--threads", "1")[0] == 0
    replay = ["replay", "out.png", "-o", "again.png"]
    kept = Path("paint.jpg").read_bytes()
    Path("paint.jpg").write_bytes(Path("other.jpg").read_bytes())
    assert_fails(command, replay, 1, "paint.jpg has changed since it was the style picture")
    assert command(*replay, "--anyway")[0] == 0
    assert Path("again.png").read_bytes() != Path("out.png").read_bytes()
    Path("again.png").unlink()
    Path("paint.jpg").unlink()
    assert_fails(command, replay, 1, "paint.jpg: no such file")
    Path("paint.jpg").write_bytes(kept)
    assert_fails(command, [*replay[:-1], "photo.jpg"], 1, "output photo.jpg is the input photo.jpg")
    assert_fails(command, [*replay[:-1], "out.png"], 1, "output out.png is the input out.png")
    assert_fails(command, [*replay[:-1], "x.jpg", "--bits", 16], 2, "--bits: x.jpg is JPEG")
    assert_fails(command, ["replay", "photo.jpg", "-o", "x.png"], 1, "does not say how it was made")
    recipe = json.loads(Recipe.read("out.png").to_json())
    recipe["environment"]["encoder_digest"] = "0"
    recipe["environment"]["versions"]["numpy"] = "1.0"
    Path("a.json").write_text(json.dumps(recipe))
    replay[1] = "a.json"
    assert command(*replay)[2].splitlines()[-1].endswith("with --anyway")
    _, _, err = command(*replay, "--anyway")
    assert err.startswith("made with other versions, so it may differ: numpy 1.0, now ")


def test_relative_paths_lead_from_here_or_from_the_file(pictures, command, monkeypatch, tmp_path):
    assert command(*STYLIZE, "--threads", "1")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("replay", "../pictures/out.png", "-o", "again.png")[0] == 0
    assert Path("again.png").read_bytes() == Path("../pictures/out.png").read_bytes()


def test_what_was_given_as_pixels_cannot_be_replayed(made, stylizer):
    with pytest.raises(RecipeError, match="the content picture was given as pixels"):
        stylizer.replay(made.recipe())


# ------------------------------------------------------------------------------------------ batch


def test_a_batch_writes_what_each_row_asks_for(pictures, command):
    Path("list.csv").write_text(
        "content,output,bits,quality,sidecar,metadata\n"
        "photo.jpg,a.tif,16,,True,\n"
        "other.jpg,b.webp,,lossless,,false\n"
        "paint.jpg,c.jpg,,30,,\n"
    )
    words = ["batch", "--manifest", "list.csv", "--style", "paint.jpg", "-o", "made", *QUICK]
    words += ["--workers", "1", "--threads", "1"]
    assert command(*words)[0] == 0
    assert len(journal_rows(Path("made"))) == 3
    recipe = Recipe.read("made/a.tif.json")
    assert (recipe.output.bits, recipe.inputs.content.path) == (16, "photo.jpg")
    assert Recipe.read("made/a.tif") == dataclasses.replace(recipe, losses=())
    with pytest.raises(RecipeError, match="does not say"):
        Recipe.read("made/b.webp")
    assert Recipe.read("made/c.jpg").output == OutputOptions(quality=30)
    assert command("replay", "made/a.tif", "-o", "again.tif")[0] == 0
    assert Path("again.tif").read_bytes() == Path("made/a.tif").read_bytes()
    code, _, err = command(*words, "--profile", "keep")
    assert (code, "made with other settings" in err) == (1, True)


def test_a_batch_refuses_what_a_format_lacks_before_it_begins(pictures, command):
    words = ["batch", "photo.jpg", "--style", "paint.jpg", "-o", "made", "--name", "{stem}.jpg"]
    assert_fails(command, [*words, "--bits", "16"], 2, "--bits: made/photo.jpg is JPEG")
    Path("list.jsonl").write_text('{"content": "photo.jpg", "quality": 0}')
    words = ["batch", "--manifest", "list.jsonl", "--style", "paint.jpg", "-o", "made"]
    assert_fails(command, words, 1, "manifest list.jsonl, row 1: quality must be a whole number")
