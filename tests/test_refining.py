"""Refined captions beside the originals, the report, and filtering by likeness: small cases checked by hand."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ucore.errors import ConfigError, DataError
from ucore.likeness import filter_by_similarity, filter_captions
from ucore.manifest import Manifest
from ucore.refining import refine, refine_captions

TAGS = ["building=house", "highway=residential", "landuse=grass"]
SPLITS = ("train", "train", "val", "test", "finetune")


def table(tmp_path, **columns) -> Manifest:
    rows = [
        {"sample_id": f"s{n}", "image": f"{n}.png", "captions": [f"caption {n} ."], "domain": "d", "split": split,
         "tags": TAGS, **{name: values[n] for name, values in columns.items()}}
        for n, split in enumerate(SPLITS)
    ]  # fmt: skip
    return Manifest.from_rows(rows, tmp_path)


def test_sentences_that_deny_tags_are_left_out():
    text = "Houses stand along a road. There are no buildings in the image. A stadium lies near."
    refined = refine(text, tags=TAGS)
    assert refined.text == "Houses stand along a road. A stadium lies near."
    assert refined.problems == ("contradicted",)
    assert refined.cleaned.contradicted == ("building=house",)
    assert refined.refined.contradicted == ()
    assert refined.refined.unsupported == ("stadium",)
    assert refine(text, tags=TAGS, drop="ungrounded").text == "Houses stand along a road."
    assert refine(text, tags=TAGS, drop="nothing").text == text
    assert refine("No houses.", tags=TAGS).problems == ("contradicted", "empty")


def test_originals_are_kept_and_the_report_says_what_happened(tmp_path):
    manifest = table(tmp_path, description=["an old one", "", "", "old 3", ""])
    texts = {"s0": "Houses.", "s1": "Sure! Here is a caption: a road", "s2": "No buildings.", "s3": "I'm sorry."}
    refined, report = refine_captions(manifest, texts)
    assert list(refined.frame["captions"]) == list(manifest.frame["captions"])
    assert list(refined.frame["description"]) == ["Houses.", "a road.", "", "old 3", ""]
    assert list(refined.frame["original_description"]) == ["an old one", "", "", "", ""]
    assert [report[name] for name in ("images", "kept", "changed", "dropped", "without a text")] == [5, 1, 1, 2, 1]
    assert report["by_split"]["train"] == {"changed": 1, "kept": 1}
    assert report["problems"] == {"chatter": 1, "contradicted": 1, "empty": 2, "refusal": 1}
    assert report["grounding"]["refined"]["tag_recall"] == pytest.approx(1 / 3, abs=1e-4)
    assert report["examples"]["contradicted"] == [
        {"sample_id": "s2", "before": "No buildings.", "after": "", "contradicted": ["building=house"],
         "unsupported": []}
    ]  # fmt: skip
    assert json.loads(json.dumps(report)) == report
    assert manifest.frame["description"].iloc[0] == "an old one"  # the given manifest is not changed
    again, _ = refine_captions(refined, {"s0": "Roads."})
    assert again.frame["original_description"].iloc[0] == "an old one"


def test_only_images_that_are_trained_on_get_another_caption(tmp_path):
    texts = {f"s{n}": "Houses." for n in range(5)} | {"s1": "caption 1 ."}
    refined, _ = refine_captions(table(tmp_path), texts, into="captions")
    assert [len(of) for of in refined.frame["captions"]] == [2, 1, 1, 1, 2]  # s1's is none new
    assert list(refined.frame["description"]) == [""] * 5


def test_a_refined_manifest_is_saved_and_read(tmp_path):
    refined, _ = refine_captions(table(tmp_path, description=["a"] * 5), {"s0": "Houses."}, {"s0": "What?"}, "both")
    refined.save(tmp_path / "out" / "manifest.parquet")
    back = Manifest.load(tmp_path / "out" / "manifest.parquet")
    assert back.root == tmp_path.resolve()
    assert back.frame["original_description"].iloc[0] == "a"


def test_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match="'x'"):
        refine_captions(table(tmp_path), {"x": "Houses."})
    with pytest.raises(ConfigError, match="into"):
        refine_captions(table(tmp_path), {}, into="title")  # type: ignore[arg-type]


def unit(*angles: float) -> np.ndarray:
    """Points on the circle, degrees."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


IMAGES = unit(0, 0, 0, 0)
TEXTS = unit(10, 60, 80, 20, 85, 30)  # the least like their image: 85 (val), 80, 60
OWNERS = np.array([0, 0, 1, 1, 2, 3])
FOUR = ["train", "train", "val", "finetune"]


def test_the_least_similar_quantile_of_training_texts_goes():
    result = filter_by_similarity(IMAGES, TEXTS, OWNERS, FOUR, quantile=0.25)
    assert result.keep.tolist() == [True, True, False, True, True, True]  # one of four in train
    assert result.similarity == pytest.approx(np.cos(np.radians([10, 60, 80, 20, 85, 30])), abs=1e-6)
    assert result.threshold == pytest.approx(np.cos(np.radians(60)), abs=1e-6)
    assert filter_by_similarity(IMAGES, TEXTS, OWNERS, FOUR, quantile=0.0).keep.all()
    assert filter_by_similarity(IMAGES, unit(*[5] * 6), OWNERS, FOUR, quantile=0.9).keep.all()  # all equal


def test_a_threshold_is_a_cosine():
    result = filter_by_similarity(IMAGES, TEXTS, OWNERS, FOUR, threshold=0.9, filtered=("train", "finetune"))
    assert result.keep.tolist() == [True, False, False, True, True, False]


def test_hard_pairs_of_measured_splits_stay():
    for split in ("val", "test", "unlisted"):
        with pytest.raises(ConfigError, match="flatter"):
            filter_by_similarity(IMAGES, TEXTS, OWNERS, FOUR, filtered=("train", split))
    result = filter_by_similarity(IMAGES, TEXTS, OWNERS, ["val"] * 4)
    assert result.keep.all() and np.isnan(result.threshold)


@pytest.mark.parametrize(
    "change",
    [
        dict(image_features=2 * IMAGES),
        dict(text_features=np.full_like(TEXTS, np.nan)),
        dict(text_image_index=OWNERS + 1),
        dict(text_image_index=OWNERS[:2]),
        dict(splits=FOUR[:3]),
        dict(quantile=1.0),
        dict(threshold=3.0),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change):
    given = dict(image_features=IMAGES, text_features=TEXTS, text_image_index=OWNERS, splits=FOUR) | change
    with pytest.raises(ConfigError):
        filter_by_similarity(**given)


def test_captions_that_are_unlike_their_images_are_dropped(tmp_path, monkeypatch):
    features = SimpleNamespace(  # instead of the module, which takes torch and a model to load
        embed_images=lambda encoder, manifest, progress: unit(*[0] * len(manifest)),
        embed_texts=lambda encoder, texts, progress: unit(*[float(text.split()[0]) for text in texts]),
    )
    monkeypatch.setitem(sys.modules, "ucore.features", features)
    captions = [["10 a", "80 b"], ["85 c"], ["89 d"], ["0 e"], ["88 f"]]
    manifest = table(tmp_path, captions=captions, description=["10 a; 20 b.", "80 c", "89 d", "", "88"])
    encoder: Any = object()
    result, report = filter_captions(manifest, encoder, "captions", threshold=0.5)
    assert list(result.frame["sample_id"]) == ["s0", "s2", "s3", "s4"]  # s1 had no other caption
    assert list(result.frame["captions"]) == [["10 a"], *captions[2:]]
    assert (report["texts"], report["compared"], report["dropped"], report["images_left_out"]) == (6, 3, 2, 1)
    assert [example["text"] for example in report["examples"]] == ["85 c", "80 b"]
    result, report = filter_captions(manifest, encoder, threshold=0.5)
    assert list(result.frame["description"]) == ["10 a; 20 b.", "", "89 d", "", "88"]
    assert report["similarity"]["train"] == pytest.approx(
        (np.cos(np.radians(15)) + np.cos(np.radians(80))) / 2, abs=1e-3
    )
    assert json.loads(json.dumps(report)) == report
    with pytest.raises(DataError, match="ucore caption"):
        filter_captions(table(tmp_path), encoder)
