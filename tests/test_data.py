import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import edit_index, entry, make_rsicd, write_index
from PIL import Image

from ucore.data import ImageTextDataset, caption_groups, load_image, read_dataset, read_rsicd
from ucore.errors import DataError, UserError

JSON_NAME = "dataset_rsicd.json"


@pytest.fixture(autouse=True)
def no_default_data(monkeypatch, request):
    if "real_data" not in request.fixturenames:
        monkeypatch.delenv("UCORE_DATA", raising=False)


@pytest.fixture
def small(tmp_path) -> Path:
    return make_rsicd(tmp_path / "small", n_train=4, n_val=2, n_test=3, captions_per_image=2, size=16)


@pytest.fixture
def one_image(tmp_path) -> Path:
    """A folder with the picture images/a.png and no JSON yet."""
    (tmp_path / "one" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "one" / "images" / "a.png")
    return tmp_path / "one"


def refusal(path, **arguments) -> str:
    """The one sentence or two with which reading is refused."""
    with pytest.raises(UserError) as caught:
        read_dataset(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_columns_ids_and_order_follow_the_index(small):
    manifest = read_dataset(small)
    assert list(manifest.frame.columns) == [
        *("sample_id", "image", "captions", "description", "tags", "surrounding_tags", "domain", "split"),
        *("lon", "lat", "footprint", "gsd_m", "source", "licence"),
    ]
    assert list(manifest.frame["sample_id"]) == [f"{number:05d}" for number in range(9)]
    assert list(manifest.frame["split"]) == ["train"] * 4 + ["val"] * 2 + ["test"] * 3
    assert set(manifest.frame["domain"]) == {"rsicd"}
    assert manifest.frame["lon"].isna().all() and manifest.frame["footprint"].isna().all()
    assert manifest.frame.crs.to_epsg() == 4326
    assert manifest.image_path(3) == small / "images" / "00003.png" == manifest.image_paths[3]


def test_splits_select_and_name_what_there_is(small):
    manifest = read_dataset(small)
    assert len(manifest.split("val")) == 2 and len(manifest.split(["train", "test"])) == 7
    assert len(read_dataset(small, split=("val", "test"))) == 5
    assert len(read_dataset(small, domain="rsicd")) == 9
    assert list(manifest.split("test").frame.index) == [0, 1, 2]
    for refused in (lambda: manifest.split("dev"), lambda: read_dataset(small, split="dev")):
        with pytest.raises(DataError, match=r"no split 'dev'.*train \(4 images\), val \(2 images\), test \(3"):
            refused()
    assert "no domain 'spain'" in refusal(small, domain="spain")


def test_restval_is_training_and_repeated_stems_keep_their_suffix(one_image):
    Image.new("RGB", (4, 4)).save(one_image / "images" / "a.jpg")
    write_index(one_image, [entry("a.png", "restval"), entry("a.jpg", "train")])
    manifest = read_dataset(one_image, split="train")
    assert list(manifest.frame["sample_id"]) == ["a.png", "a.jpg"]


@pytest.mark.parametrize("place", ["images", "imgs", "."])
@pytest.mark.parametrize("name", ["dataset_RSITMD.json", "dataset.json", "captions.json"])
def test_layout_variants(tmp_path, place, name):
    (tmp_path / place).mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(tmp_path / place / "1.tif")
    write_index(tmp_path, [entry("1.tif")], name, dataset="RSITMD")
    (tmp_path / "licence.json").write_text('{"licence": "CC-BY"}')
    manifest = read_dataset(tmp_path)
    assert manifest.frame["domain"][0] == "rsitmd"
    assert manifest.image_path(0) == tmp_path / place / "1.tif"


def test_byte_order_mark_shadow_file_and_home_folder(small, monkeypatch):
    content = (small / JSON_NAME).read_text()
    (small / JSON_NAME).unlink()
    (small / "captions.json").write_text(content, "utf-8-sig")
    (small / "._captions.json").write_bytes(b"\0\5\x16\7")  # as archives made on macOS leave
    monkeypatch.setenv("HOME", str(small.parent))
    assert len(read_dataset("~/small")) == 9


def test_domain_defaults_to_the_folder_and_data_root_to_the_environment(small, monkeypatch):
    content = json.loads((small / JSON_NAME).read_text())
    (small / JSON_NAME).write_text(json.dumps({"images": content["images"]}))
    moved = small.parent / "data" / "rsicd"
    shutil.copytree(small, moved)
    assert read_dataset(small).frame["domain"][0] == "small"
    (small / JSON_NAME).write_text(json.dumps({**content, "dataset": "\ud800"}))  # a name that nothing could write
    assert read_dataset(small).frame["domain"][0] == "small"
    monkeypatch.setenv("UCORE_DATA", str(moved.parent))
    assert read_dataset().frame["domain"][0] == "rsicd"


def test_images_of_splits_not_asked_for_may_be_elsewhere(small):
    for number in range(6):
        (small / "images" / f"{number:05d}.png").unlink()
    edit_index(small, lambda images: images[0].update(sentences=[]))
    assert len(read_dataset(small, split="test")) == 3
    edit_index(small, lambda images: images[0].update(sentences=[{"raw": "a house ."}]))
    message = refusal(small)
    assert "6 of 9 images" in message and "--split" in message


def test_a_linked_image_folder_is_fine_but_a_link_out_of_it_is_not(small):
    shutil.move(small / "images", small.parent / "elsewhere")
    (small / "images").symlink_to(small.parent / "elsewhere")
    assert len(read_dataset(small)) == 9
    (small.parent / "elsewhere" / "00000.png").unlink()
    (small.parent / "elsewhere" / "00000.png").symlink_to(small / JSON_NAME)
    assert "'00000.png' leaves the folder" in refusal(small)


def test_no_data_named():
    assert "--data" in refusal(None) and "UCORE_DATA" in refusal(None)


def test_folders_without_a_dataset(tmp_path, small):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "is not a folder" in refusal(small / JSON_NAME)
    (tmp_path / "other").mkdir()
    assert "it holds nothing" in refusal(tmp_path / "other")
    (tmp_path / "other" / "tiles.csv").touch()
    message = refusal(tmp_path / "other")
    assert "tiles.csv" in message and "dataset*.json" in message and "sentences[].raw" in message
    with pytest.raises(DataError, match=r"no dataset\*.json"):
        read_rsicd(tmp_path / "other")


def test_several_caption_files_are_listed(small):
    shutil.copy(small / JSON_NAME, small / "dataset_old.json")
    message = refusal(small)
    assert "dataset_old.json, dataset_rsicd.json" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [\n  {"filename": }]}', "line 2, column 16"),
        ("", "line 1, column 1"),
        ("[" * 100_000, "is not JSON text"),
        (b"\xff\xfe\x00{", "is not JSON text in UTF-8"),
        ("[1, 2]", "no list 'images'"),
        ('{"images": {}}', "no list 'images'"),
        ('{"images": []}', "no list 'images'"),
        ('{"images": [3]}', "images[0]"),
        ('{"images": [{"filename": 3, "split": "train", "sentences": []}]}', "'filename'"),
        ('{"images": [{"filename": "a.png", "split": null, "sentences": []}]}', "'split'"),
        ('{"images": [{"filename": "a.png", "split": "train"}]}', "'sentences' as a list"),
        ('{"images": [{"filename": "\\ud800", "split": "train", "sentences": []}]}', "'filename'"),
        ('{"images": [{"filename": "", "split": "train", "sentences": []}]}', "'filename'"),
    ],
)
def test_unusable_json(one_image, text, said):
    (one_image / JSON_NAME).write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(one_image)
    assert JSON_NAME in message and said in message


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        ([], "a.png (no captions)"),
        (["fine", 3], "a.png (caption 2 is not text)"),
        ([None], "a.png (caption 1 is not text)"),
        (["fine", " \n\t"], "a.png (caption 2 is blank)"),
        (["half \ud83d pair"], "a.png (caption 1 is not valid Unicode)"),
    ],
)
def test_unusable_captions_are_named(one_image, captions, said):
    write_index(one_image, [entry("a.png", captions=captions)])
    assert said in refusal(one_image)
    write_index(one_image, [{"filename": "a.png", "split": "train", "sentences": ["no dict"]}])
    assert "a.png (caption 1 is not text)" in refusal(one_image)


@pytest.mark.parametrize("name", ["../a.png", "/etc/hostname", "x/../../a.png", "."])
def test_file_names_that_climb_out(one_image, name):
    write_index(one_image, [entry(name)])
    for skip_bad in (False, True):
        message = refusal(one_image, skip_bad=skip_bad)
        assert repr(name) in message and "leaves the folder" in message


def test_a_file_listed_twice(one_image):
    write_index(one_image, [entry("a.png"), entry("./a.png", "test")])
    assert "more than once: a.png" in refusal(one_image)


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if how == "is a folder":
        path.mkdir()
    elif how != "absent":
        path.write_bytes({"empty": b"", "text": b"<html>not found</html>", "cut": data[: len(data) // 2]}[how])


REASONS = {
    "absent": "absent",
    "empty": "zero bytes",
    "text": "not an image",
    "cut": "truncated",
    "is a folder": "not a file",
}


@pytest.mark.parametrize("how", REASONS)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_unusable_images_are_named_counted_and_skipped_on_request(small, how, suffix):
    names = [f"{number:05d}.png" for number in range(9)]
    if suffix == ".jpg":
        for name in names:
            path = small / "images" / name
            Image.open(path).resize((64, 64)).save(path.with_suffix(".jpg"))
        edit_index(small, lambda images: [item.update(filename=item["filename"][:-4] + ".jpg") for item in images])
        names = [name[:-4] + ".jpg" for name in names]
    for name in names[:5]:
        spoil(small / "images" / name, how)
    message = refusal(small)
    assert f"5 of 9 images in {small / 'images'}" in message and "and 2 more" in message
    assert f"{names[0]} ({REASONS[how]}" in message and names[4] not in message and "--skip-bad" in message

    with pytest.warns(UserWarning, match="Skipped images: 5 of 9") as record:
        manifest = read_dataset(small, skip_bad=True)
    assert len(record) == 1 and record[0].filename.endswith("test_data.py") and names[0] in str(record[0].message)
    assert list(manifest.frame["image"]) == names[5:]
    assert "None is left" in refusal(small, split="train", skip_bad=True)


def test_nothing_to_skip_warns_of_nothing(small):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_dataset(small, skip_bad=True)) == 9


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_absurd_size_is_refused_without_decoding(small, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16 * 16 // 2 - 1)
    assert "00000.png (more pixels than" in refusal(small)


def test_formats_that_start_programs_are_not_read(one_image):
    Image.new("RGB", (4, 4)).save(one_image / "images" / "a.eps")
    write_index(one_image, [entry("a.eps")])
    assert "a.eps (not an image" in refusal(one_image)


def test_a_picture_that_vanished_after_reading(small):
    dataset = ImageTextDataset(read_dataset(small), lambda image: image)
    (small / "images" / "00000.png").unlink()
    with pytest.raises(DataError, match=r"00000.png: absent"):
        dataset[0]


def test_caption_groups():
    captions = ["A Park .", "a  tree", "a park", "a\tpark!? ", "tree", "a tree, green"]
    groups = caption_groups(captions)
    assert groups.dtype == np.int64 and groups.tolist() == [0, 1, 0, 0, 2, 3]
    assert caption_groups([]).shape == (0,) and caption_groups([]).dtype == np.int64


def test_makers_repeat_captions_on_request(tmp_path):
    folder = make_rsicd(tmp_path / "r", n_train=40, captions_per_image=2, size=8, repeat_captions=True)
    manifest = read_dataset(folder, split="train")
    assert manifest.summary()["distinct_captions"] == 40 + 4  # one of each image's own, and four grounds
    assert np.bincount(caption_groups(manifest.texts[0])).max() > 5


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def test_dataset_items_and_batches_through_worker_processes(small):
    manifest = read_dataset(small)
    dataset = pickle.loads(pickle.dumps(ImageTextDataset(manifest, to_tensor)))
    assert len(dataset) == 9
    item = dataset[2]
    assert item["index"] == 2 and item["captions"] == manifest.frame["captions"][2]
    assert torch.equal(item["image"], to_tensor(load_image(manifest.image_path(2))))

    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=dataset.collate)
    batches = list(loader)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert batches[0]["index"].dtype == torch.int64
    assert batches[0]["image"].shape == (4, 3, 16, 16) and torch.equal(batches[0]["image"][2], item["image"])
    assert batches[2]["captions"] == [manifest.frame["captions"][8]]


def test_two_fresh_processes_read_the_same(small):
    code = (
        "import sys; from ucore.data import caption_groups, read_dataset\n"
        "m = read_dataset(sys.argv[1])\n"
        "print(m.content_key(), m.text_ids, m.texts[0], caption_groups(m.texts[0]).tolist(), m.summary())"
    )
    seen = [
        subprocess.run(
            [sys.executable, "-c", code, str(small)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert seen[0] == seen[1] and "00000#0" in seen[0]


def test_importing_the_reader_needs_no_heavy_library():
    code = "import sys, ucore.data; print([n for n in ('torch', 'geopandas', 'matplotlib') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.fixture
def real_data() -> Path:
    root = os.environ.get("UCORE_DATA")
    if not root:
        pytest.skip("UCORE_DATA is not set: set it to a folder that holds rsicd/ to read the real RSICD")
    if not list(Path(root).glob("**/dataset_rsicd.json")):
        pytest.skip(f"UCORE_DATA={root} holds no dataset_rsicd.json")
    return Path(root)


def test_the_real_rsicd(real_data):
    manifest = read_dataset()
    summary = manifest.summary()
    splits = {name: counts["images"] for name, counts in summary["splits"].items()}
    assert (splits["train"], splits["val"]) == (8734, 1094)
    assert set(manifest.frame["captions"].map(len)) == {5}
    assert summary["splits"]["train"]["distinct_captions"] == 12_973
    assert summary["splits"]["val"]["distinct_captions"] == 2_313
    texts, text_image_index = manifest.split("val").texts
    assert len(texts) == 5470 and caption_groups(texts).max() + 1 == 2_312
    assert np.array_equal(text_image_index, np.arange(1094).repeat(5))
