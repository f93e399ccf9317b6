import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from makers import edit_index, entry, make_rsicd, write_index
from PIL import Image

from ucore.data import Manifest, read_dataset
from ucore.errors import DataError
from ucore.manifest import LISTS, statistics


@pytest.fixture
def small(tmp_path) -> Path:
    return make_rsicd(tmp_path / "small", n_train=4, n_val=2, n_test=3, captions_per_image=2, size=16)


@pytest.fixture
def one_image(tmp_path) -> Path:
    """A folder with the picture images/a.png and no JSON yet."""
    (tmp_path / "one" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "one" / "images" / "a.png")
    return tmp_path / "one"


def test_texts_belong_to_their_image(one_image):
    Image.new("RGB", (4, 4)).save(one_image / "images" / "b.png")
    write_index(one_image, [entry("b.png", captions=["one", " two "]), entry("a.png", captions=["three"])])
    manifest = read_dataset(one_image)
    texts, text_image_index = manifest.texts
    assert texts == ["one", "two", "three"]
    assert text_image_index.dtype == np.int64 and text_image_index.tolist() == [0, 0, 1]
    assert manifest.text_ids == ["b#0", "b#1", "a#0"]


def test_summary_counts_and_names_repeats(tmp_path):
    folder = make_rsicd(tmp_path / "r", n_train=6, n_val=2, n_test=0, captions_per_image=3, size=8)
    summary = read_dataset(folder).summary()
    assert (summary["images"], summary["captions"], summary["distinct_captions"]) == (8, 24, 24)
    assert summary["splits"]["val"] == {"images": 2, "captions": 6, "distinct_captions": 6}
    assert summary["domains"] == {"rsicd": 8} and summary["note"] == ""
    edit_index(folder, lambda images: images[1].update(sentences=[{"raw": "two words"}, {"raw": "two words"}]))
    summary = read_dataset(folder, split="train").summary()
    assert summary["splits"] == {"train": {"images": 6, "captions": 17, "distinct_captions": 16}}
    assert summary["note"].startswith("train: 17 captions, only 16 distinct")
    assert summary["caption_words"]["max"] == max(len(text.split()) for text in read_dataset(folder).texts[0])


@pytest.mark.parametrize("column", ["sample_id", "description", "domain", "source", "captions", "tags"])
def test_halves_of_characters_are_refused_wherever_they_stand(tmp_path, column):
    broken = "caf\u00e9 \ud83d"
    row = {"sample_id": "a", "image": "a.png", "captions": ["a caf\u00e9"], "domain": "d", "split": "train"}
    assert len(Manifest.from_rows([row], tmp_path)) == 1
    with pytest.raises(DataError, match=f"The {column} of .* in {tmp_path} is not valid Unicode"):
        Manifest.from_rows([{**row, column: [broken] if column in LISTS else broken}], tmp_path)


def test_half_a_place_is_none(small):
    manifest = read_dataset(small)
    manifest.frame["lon"] = 25.0
    assert statistics(manifest)["with_place"] == 0 and statistics(manifest)["extent"] == {}
    manifest.frame.loc[0, "lat"] = 60.0
    assert statistics(manifest)["with_place"] == 1
    assert list(statistics(manifest)["extent"].values()) == [[25.0, 60.0, 25.0, 60.0]]


def test_content_key_follows_content_and_not_place(small):
    key = read_dataset(small).content_key()
    shutil.move(small, small.parent / "moved")
    moved = small.parent / "moved"
    assert read_dataset(moved).content_key() == key
    assert read_dataset(moved, split="test").content_key() != key

    frame = read_dataset(moved).frame
    renamed = frame.assign(sample_id=["other", *frame["sample_id"][1:]])
    assert Manifest(renamed, moved / "images").content_key() != key

    path = moved / "images" / "00002.png"
    before = path.read_bytes()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    changed = read_dataset(moved)
    assert changed.content_key() != key
    path.write_bytes(before)
    assert changed.content_key() == key
    edit_index(moved, lambda images: images[8]["sentences"][1].update(raw="another caption"))
    assert read_dataset(moved).content_key() != key
    path.unlink()
    with pytest.raises(DataError, match=r"00002.png"):
        changed.content_key()


def test_saved_and_loaded_manifests_are_equal(small, tmp_path, monkeypatch):
    monkeypatch.chdir(small.parent)
    manifest = read_dataset("small", split=["val", "test"])
    file = tmp_path / "runs" / "a" / "manifest.parquet"
    manifest.save(file)
    monkeypatch.chdir("/")
    loaded = Manifest.load(file)
    assert loaded.root == small / "images" and loaded.content_key() == manifest.content_key()
    assert loaded.frame.to_dict("records")[0]["captions"] == manifest.frame["captions"][0]
    assert all(isinstance(value, list) for name in ("captions", "tags") for value in loaded.frame[name])
    assert loaded.frame.crs == manifest.frame.crs
    for name in set(manifest.frame.columns) - {"footprint"}:
        assert loaded.frame[name].equals(manifest.frame[name]), name
    assert os.listdir(file.parent) == ["manifest.parquet"]


def test_a_manifest_finds_images_that_moved_along_or_stayed(small, tmp_path):
    file = tmp_path / "runs" / "manifest.parquet"
    read_dataset(small).save(file)
    (tmp_path / "copy").mkdir()
    shutil.copytree(tmp_path / "runs", tmp_path / "copy" / "runs")
    assert Manifest.load(tmp_path / "copy" / "runs" / "manifest.parquet").root == small / "images"
    shutil.copytree(small, tmp_path / "copy" / "small")
    assert Manifest.load(tmp_path / "copy" / "runs" / "manifest.parquet").root == tmp_path / "copy/small/images"


def test_a_manifest_file_cannot_point_out_of_its_root(small, tmp_path):
    manifest = read_dataset(small)
    Manifest(manifest.frame.assign(image="../dataset_rsicd.json"), manifest.root).save(tmp_path / "m.parquet")
    loaded = Manifest.load(tmp_path / "m.parquet")
    for look in (lambda: loaded.image_path(0), lambda: loaded.image_paths, loaded.content_key):
        with pytest.raises(DataError, match="leaves the folder"):
            look()


def test_manifest_files_that_are_none(small, tmp_path):
    file = tmp_path / "manifest.parquet"
    with pytest.raises(DataError, match="no manifest"):
        Manifest.load(file)
    manifest = read_dataset(small)
    manifest.save(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="no whole GeoParquet"):
        Manifest.load(file)
    manifest.frame.drop(columns="captions").to_parquet(file)
    with pytest.raises(DataError, match="lacks captions, root"):
        Manifest.load(file)
    with pytest.raises(DataError, match="repeated: a"):
        Manifest.from_rows([{"sample_id": "a"}, {"sample_id": "a"}], tmp_path)


def test_a_manifest_with_bytes_that_are_no_text_is_refused(small, tmp_path):
    import geopandas

    file = tmp_path / "manifest.parquet"
    read_dataset(small).save(file)
    frame = geopandas.read_parquet(file)
    frame.to_parquet(file, index=False, compression=None)
    name = frame["image"][0].encode()
    file.write_bytes(file.read_bytes().replace(name, name[:1] + b"\xdf" + name[2:]))
    with pytest.raises(DataError, match="image holds what it must not"):
        Manifest.load(file)


def test_a_root_that_is_no_possible_path_is_not_found(small, tmp_path):
    import geopandas

    file = tmp_path / "manifest.parquet"
    read_dataset(small).save(file)
    frame = geopandas.read_parquet(file)
    frame.attrs["root"] = "9" * 400
    frame.to_parquet(file, index=False)
    assert Manifest.load(file).root == small / "images"
