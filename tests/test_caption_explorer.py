"""Captions beside their tags: counts by hand, strangers' text as plain text, filters that leave what they name."""

import html
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from test_visualize import contrast, frames, size, words

from ucore.caption_explorer import CaptionExplorer, caption_card
from ucore.caption_figures import measure_texts, plot_captions, plot_dropped, plot_measures, told_of
from ucore.errors import ConfigError, DataError
from ucore.manifest import Manifest
from ucore.refining import refine_captions

HOSTILE = "A $x_1$ <script>alert(1)</script> school."
SCHOOL, ROAD = "amenity=school", "highway=residential"
TEXTS = {  # of the four tiles below
    "a-0": "A school beside a road.",
    "a-1": "Sure! A house stands in a field. There is no school in the image.",
    "b-0": "As an AI language model I cannot see images.",
}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Manifest:
    folder, rows = tmp_path_factory.mktemp("tiles"), []
    tags = {"a-0": [SCHOOL, ROAD], "a-1": [SCHOOL, "building=house", "landuse=farmland"], "b-0": [ROAD], "b-1": []}
    for number, (name, of_tile) in enumerate(tags.items()):
        Image.new("RGB", (16, 16), (60 * number, 90, 90)).save(folder / f"{name}.png")
        rows.append(dict(sample_id=name, image=f"{name}.png", captions=[HOSTILE, "a road here"], tags=of_tile,
                         domain="<i>" if name[0] == "a" else "b", split="train", source="simulated: test"))  # fmt: skip
    return Manifest.from_rows(rows, folder)


@pytest.fixture
def runs(tiles) -> dict[str, Any]:
    prompts = dict.fromkeys(TEXTS, 'Describe it: "<b>".')
    refined, report = refine_captions(tiles, TEXTS, prompts)
    return {"micro": SimpleNamespace(manifest=refined, report=report, texts=TEXTS, prompts=prompts)}


def test_words_beside_a_tile_can_be_read(tiles, runs):
    shown = [text for text in plot_captions(tiles, range(4), runs).findobj(Text) if text.get_text().strip()]
    assert any("contradicted" in text.get_text() for text in shown)
    assert min(contrast(text.get_color()) for text in shown) >= 4.5


# --- counting ---------------------------------------------------------------------------------------------------


def test_what_was_told_is_refined_as_the_stage_did(tiles, runs):
    (told,) = told_of(tiles, 1, runs)
    assert told.raw == TEXTS["a-1"]
    assert told.refined.text == runs["micro"].manifest.frame["description"][1] == "A house stands in a field."
    assert told.refined.cleaned.contradicted == (SCHOOL,)
    assert told_of(tiles, 3, runs) == []


def test_measures_are_means_over_images_with_intervals(tiles):
    texts = [["A school beside a road.", "a road"], ["houses"], [], ["sand", "sand and sand"]]
    rows = measure_texts(tiles, {"x": texts}, seed=1)
    found = {(row["label"], row["metric"]): row for row in rows}
    assert found["<i>: x", "words_per_text"]["value"] == pytest.approx((3.5 + 1) / 2)
    # Image a-0: both tags and one of two; a-1: one of three.
    assert found["<i>: x", "tag_recall"]["value"] == pytest.approx(((100 + 50) / 2 + 100 / 3) / 2)
    assert found["<i>: x", "tag_recall"]["n"] == 2
    assert found["b: x", "words_per_text"]["value"] == 2  # of the one image that has texts
    assert ("b: x", "tag_recall") not in found  # it has no tags
    row = found["<i>: x", "tag_recall"]
    assert 100 / 3 - 1e-6 <= row["low"] <= row["value"] <= row["high"] <= 75 + 1e-6
    assert measure_texts(tiles, {"x": texts}, seed=1) == rows
    with pytest.raises(ConfigError, match="1 lists of texts 'x' for 4 images"):
        measure_texts(tiles, {"x": [[]]})


# --- figures ----------------------------------------------------------------------------------------------------


def test_an_image_stands_beside_its_tags_captions_and_the_verdict(tiles, runs):
    figure = plot_captions(tiles, [1, 2], runs)
    seen = " ".join(" ".join(words(figure)).split())
    assert f"tags: {SCHOOL}, building=house, landuse=farmland" in seen
    assert f"caption 1 of 2: {HOSTILE}" in seen
    assert "by micro, raw: Sure! A house stands" in seen
    assert "by micro: A house stands in a field. (" in seen
    assert f"✗ contradicted: {SCHOOL}" in seen
    assert "✓ mentioned: building=house, landuse=farmland" in seen
    assert "by micro: dropped (refusal" in seen
    assert "(simulated)" in seen
    assert [len(axes.images) for axes in frames(figure)] == [1, 1]
    assert size(figure)[0] == 800
    with pytest.raises(ConfigError, match="at least one row"):
        plot_captions(tiles, [], runs)


def test_bars_are_the_rows_and_empty_tags_leave_measures_out(tiles, runs):
    rows = measure_texts(tiles, {"original": list(tiles.frame["captions"]), "micro": [[t] for t in "abcd"]})
    figure = plot_measures(rows)
    axes = frames(figure)[0]
    heights = [bar.get_height() for container in axes.containers for bar in getattr(container, "patches", [])]
    table = {(row["label"], row["metric"]): row["value"] for row in rows}
    labels = ("<i>: original", "b: original", "<i>: micro", "b: micro")
    assert heights == [table[label, "words_per_text"] for label in labels]
    assert {"<i>", "b", "original", "micro"} <= set(words(figure))
    untagged = plot_measures([row for row in rows if row["metric"] == "words_per_text"])
    assert sum(bool(axes.patches) for axes in frames(untagged)) == 1
    with pytest.raises(ConfigError, match="nothing to plot"):
        plot_measures([])


def test_what_became_of_texts_is_counted(runs):
    report = runs["micro"].report
    assert [report[state] for state in ("kept", "changed", "dropped", "without a text")] == [1, 1, 1, 1]
    figure = plot_dropped({"micro": report, "none": {"problems": {}, "kept": 4}})
    above, below = frames(figure)
    assert [bar.get_width() for bar in above.patches[:4]] == [1, 1, 1, 1]
    names = [label.get_text() for label in below.get_yticklabels()]
    assert {"refusal", "chatter", "contradicted"} <= set(names)
    plot_dropped({"none": {"problems": {}, "kept": 4}}).png(50)


# --- explorer ---------------------------------------------------------------------------------------------------


def test_filters_leave_what_they_name(tiles, runs):
    explorer = CaptionExplorer(tiles, runs)
    assert explorer.rows == [0, 1, 2, 3]
    explorer.found.value = "micro: dropped"
    assert explorer.rows == [2]
    assert explorer.tile.value == "b-0"
    assert "1 tiles (simulated)" in explorer.status.value
    explorer.domain.value = "<i>"
    assert explorer.rows == []
    assert "No tile fits" in explorer.card.value
    with pytest.raises(DataError, match="No tile fits"):
        explorer.figure()
    explorer.show(found="contradicted")
    assert explorer.tile.value == "a-1"
    explorer.show("b-1")
    assert "b-1" in explorer.card.value
    assert explorer.figure().png(50) == plot_captions(tiles, [3], runs).png(50)
    for given, told in ((("x",), "no tile 'x'"), ((), "no finding 'nothing'")):
        with pytest.raises(DataError, match=told):
            explorer.show(*given, found="everything" if given else "nothing")


def test_a_card_shows_strangers_text_as_text(tiles, runs):
    card = caption_card(tiles, 1, told_of(tiles, 1, runs))
    assert html.escape(HOSTILE) in card
    assert "<script" not in card
    assert "asked: <code>Describe it: &quot;&lt;b&gt;&quot;.</code>" in card
    assert f"✗ {SCHOOL}" in card
    assert "✓ building=house" in card
    assert "raw: <i>Sure!" in card


def test_tags_with_markup_and_control_characters_stay_data(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    name = '"><img onerror=x>'
    row = dict(sample_id=name, image="0.png", captions=[], tags=["name=<b>\x1b[31m", "amenity=school"],
               domain="x", split="train")  # fmt: skip
    tiles = Manifest.from_rows([row], tmp_path)
    run: Any = SimpleNamespace(texts={name: "A school."}, prompts={}, manifest=tiles, report={})
    card = CaptionExplorer(tiles, {"<u>": run}).card.value
    for bad in ("<img onerror", "<b>\x1b", "\x1b", "<u>"):
        assert bad not in card
    assert all("\x1b" not in text for text in words(plot_captions(tiles, [0], {"<u>": run})))
