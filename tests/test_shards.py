"""Sets in shards: what goes in comes out, bytes are read in place, and damage is named."""

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import ucore
from makers import make_rsicd
from PIL import Image

from ucore.data import find_layout, load_image, read_dataset
from ucore.errors import DataError, UserError
from ucore.files import file_hash, safe_join
from ucore.images import ImageError
from ucore.inspection import inspect_path
from ucore.manifest import Manifest
from ucore.sharding import write_shards
from ucore.shards import read_shards
from ucore.spans import part_name


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # the index is written under runs/


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, shade, shade)).save(stream, "PNG")
    return stream.getvalue()


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def parquet_of(path: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def hf_rows(count: int) -> list[dict[str, Any]]:
    return [{"image": {"bytes": png(10 * n), "path": f"{n}.png"}, "caption": [f"shade {n}"]} for n in range(count)]


def test_shards_of_a_set_give_its_rows_and_bytes_back(tmp_path: Path) -> None:
    original = read_dataset(make_rsicd(tmp_path / "set"))
    files = write_shards(original, tmp_path / "shards", images=10)
    assert [file.name for file in files] == [
        "test-00000.tar", "train-00000.tar", "train-00001.tar", "train-00002.tar", "val-00000.tar",
    ]  # fmt: skip
    again = read_dataset(tmp_path / "shards")
    assert sorted(again.frame["sample_id"]) == sorted(original.frame["sample_id"])
    for split in ("train", "val", "test"):  # the order inside a split is kept, so that training sees the same batches
        assert again.split(split).content_key() == original.split(split).content_key()
        first, second = (np.asarray(load_image(set_.split(split).image_path(3))) for set_ in (original, again))
        assert (first == second).all()


def test_places_tags_and_descriptions_survive(tmp_path: Path) -> None:
    from shapely.geometry import box

    make_rsicd(tmp_path / "set")
    rows = [
        {"sample_id": f"tile.{n}", "image": f"0000{n}.png", "captions": ["a", "ä\u2028b"], "domain": "finland",
         "description": "long", "tags": ["building=house"], "surrounding_tags": ["natural=water"], "split": "val",
         "lon": 24.9, "lat": 60.1, "gsd_m": 0.5, "footprint": box(24, 60, 25, 61),
         "source": "simulated", "licence": "x"}
        for n in range(2)
    ]  # fmt: skip
    original = Manifest.from_rows(rows, tmp_path / "set" / "images")
    write_shards(original, tmp_path / "shards")
    again = read_shards(tmp_path / "shards")
    assert again.frame.drop(columns="image").to_dict("records") == original.frame.drop(columns="image").to_dict(
        "records"
    )
    assert again.simulated


def test_equal_content_gives_equal_shards(tmp_path: Path) -> None:
    manifest = read_dataset(make_rsicd(tmp_path / "set"))
    one, two = (write_shards(manifest, tmp_path / name) for name in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_webdataset_members_belong_together_by_name(tmp_path: Path) -> None:
    tar_of(
        tmp_path / "set" / "train" / "part-0.tar",
        {
            "a/7.png": png(1), "a/7.txt": b" a dark tile \n", "a/7.json": b'{"country": "Spain", "lat": 40, "lng": -3}',
            "b/7.JPG": png(2), "b/7.json": b'{"captions": ["one", "two"], "tags": {"building": "yes"}}',
            "__MACOSX/x.png": b"junk", "only_text.txt": b"no picture",
        },
    )  # fmt: skip
    manifest = read_shards(tmp_path / "set")
    first, second = manifest.frame.to_dict("records")
    assert (first["captions"], first["domain"], first["lon"], first["lat"]) == (["a dark tile"], "spain", -3, 40)
    assert (second["captions"], second["tags"], second["domain"]) == (["one", "two"], ["building=yes"], "set")
    assert list(manifest.frame["split"]) == ["train", "train"]
    assert [np.asarray(load_image(path))[0, 0, 0] for path in manifest.image_paths] == [1, 2]


def test_parquet_as_hugging_face_writes_it_is_read_in_any_order(tmp_path: Path) -> None:
    parquet_of(tmp_path / "set" / "train-00000-of-00001.parquet", hf_rows(7), group=3)
    parquet_of(tmp_path / "set" / "validation-0.parquet", [{"jpg": png(200), "text": "bright"}])
    manifest = read_shards(tmp_path / "set")
    assert list(manifest.frame["split"]) == ["train"] * 7 + ["val"]
    order = list(range(8))
    random.Random(0).shuffle(order)
    shades = {row: int(np.asarray(load_image(manifest.image_path(row)))[0, 0, 0]) for row in order}
    assert [shades[row] for row in range(8)] == [0, 10, 20, 30, 40, 50, 60, 200]
    assert [of[0] for of in manifest.frame["captions"]] == [*(f"shade {n}" for n in range(7)), "bright"]
    assert file_hash(manifest.image_path(7)) == hashlib.sha256(png(200)).hexdigest()


def test_names_that_repeat_from_shard_to_shard_become_distinct(tmp_path: Path) -> None:
    for shard in ("train-0.tar", "train-1.tar"):
        tar_of(tmp_path / "set" / shard, {"0.png": png(3), "0.txt": shard.encode()})
    assert list(read_shards(tmp_path / "set").frame["sample_id"]) == ["train-0/0", "train-1/0"]
    parquet_of(tmp_path / "twice" / "train-0.parquet", [*hf_rows(2), hf_rows(1)[0]])
    with pytest.raises(DataError, match=r"Shards in .*twice hold samples of one name: train-0/0\. Give each its own"):
        read_shards(tmp_path / "twice")


def test_shards_on_several_disks_are_listed(tmp_path: Path) -> None:
    for disk in ("disk1", "disk2"):
        tar_of(tmp_path / disk / "train-0.tar", {"0.png": png(9), "0.txt": disk.encode()})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "shards.txt").write_text(f"# mine\n{tmp_path}/disk1/*.tar\n../disk2/train-0.tar\n")
    manifest = read_dataset(tmp_path / "set")
    assert manifest.texts[0] == ["disk1", "disk2"]
    assert load_image(manifest.image_path(1)).size == (8, 6)
    (tmp_path / "set" / "shards.txt").write_text("nowhere.tar\n")
    with pytest.raises(DataError, match=r"nowhere\.tar, which does not exist"):
        read_dataset(tmp_path / "set")
    for line in ("[" * 100_000, "\0" * 100_000, "a\x1b[2J.tar"):  # to look for the first took nine minutes
        (tmp_path / "set" / "shards.txt").write_text(f"# mine\n{line}\n")
        with pytest.raises(DataError, match=r"shards\.txt, line 2, is no path: .{4,100}\. Correct that line\."):
            read_dataset(tmp_path / "set")


def test_without_splits_they_are_drawn_alike_every_time(tmp_path: Path) -> None:
    members = {f"{n}.{kind}": data for n in range(60) for kind, data in (("png", png(n)), ("txt", b"tile"))}
    tar_of(tmp_path / "set" / "a.tar", members)
    with pytest.warns(UserWarning, match="name no split"):
        manifest = read_shards(tmp_path / "set")
    with pytest.warns(UserWarning, match="name no split"):
        val = read_shards(tmp_path / "set", split="val")
    counts = manifest.frame["split"].value_counts()
    assert set(counts.index) == {"train", "val", "test"} and counts["train"] > 40
    assert list(val.frame["sample_id"]) == list(manifest.split("val").frame["sample_id"])


def test_a_shard_is_looked_through_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "set" / "train-0.tar", {"0.png": png(1), "0.txt": b"first"})
    read_shards(tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr("ucore.shards._tar", lambda path: pytest.fail("looked through again"))
        assert read_shards(tmp_path / "set").texts[0] == ["first"]
    tar_of(path, {"0.png": png(1), "0.txt": b"second, and longer"})
    (tmp_path / "other.tar").touch()
    assert read_shards(tmp_path / "set").texts[0] == ["second, and longer"]


def test_bad_pictures_are_named_and_left_out_when_asked(tmp_path: Path) -> None:
    members = {
        "0.png": b"no picture",
        "0.txt": b"bad",
        "1.png": b"",
        "1.txt": b"empty",
        "2.png": png(1),
        "2.txt": b"ok",
    }
    tar_of(tmp_path / "set" / "train-0.tar", members)
    with pytest.raises(DataError, match=r"2 of 3 images .*0\.png@\d+\+10 \(not an image.*1\.png.*zero bytes"):
        read_dataset(tmp_path / "set")
    with pytest.warns(UserWarning, match="Skipped"):
        assert read_dataset(tmp_path / "set", skip_bad=True).texts[0] == ["ok"]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"0.png": png(1), "0.json": b"[1]"}, "no JSON object"),
        ({"0.png": png(1), "0.json": b"{"}, "no json in UTF-8"),
        ({"0.png": png(1), "0.txt": b"\xff"}, "no txt in UTF-8"),
        ({"0.png": png(1), "0.json": b'{"lat": 100, "lon": 0}'}, "no place on Earth"),
        ({"0.png": png(1), "0.json": b'{"lat": 60}'}, "no place on Earth"),
        ({"0.png": png(1), "0.json": b'{"tags": 3}'}, "no list of texts"),
        ({"0.png": png(1), "0.json": b'{"gsd_m": "wide"}'}, "must be a number"),
        ({"0.png": png(1), "0.json": b'{"caption": "c", "footprint": "POLYGON(("}'}, "no geometry"),
        ({"0.png": png(1)}, "no captions"),
        ({"0.txt": b"alone"}, "holds no picture"),
    ],
)
def test_what_a_tar_file_says_wrongly_is_told(tmp_path: Path, members: dict[str, bytes], told: str) -> None:
    tar_of(tmp_path / "set" / "train-0.tar", members)
    with pytest.raises(DataError, match=told):
        read_dataset(tmp_path / "set")


def test_damaged_shards_are_told_from_absent_pictures(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "set" / "train-0.tar", {"0.png": png(1), "0.txt": b"x", "1.png": bytes(5000)})
    manifest_path = tmp_path / "set" / "train-0.tar" / "0.png@512+90"
    assert load_image(manifest_path.with_name(f"0.png@512+{len(png(1))}")).size == (8, 6)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="not a whole, uncompressed tar"):
        read_dataset(tmp_path / "set")
    with pytest.raises(ImageError, match="ends before it"):
        load_image(path / "1.png@2900+5000")
    with pytest.raises(ImageError, match="absent"):
        load_image(tmp_path / "set" / "gone.tar" / "0.png@0+9")
    rotten = tmp_path / "other" / "train.parquet"
    parquet_of(rotten, hf_rows(2))
    with pytest.raises(ImageError, match="ends before it"):
        load_image(rotten / "x@9:0")
    rotten.write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(ImageError, match="damaged"):
        load_image(rotten / "x@0:0")


def test_what_follows_a_tar_files_end_is_damage(tmp_path: Path) -> None:
    one = tar_of(tmp_path / "a.tar", {"0.png": png(1), "0.txt": b"x"}).read_bytes()
    path = tmp_path / "set" / "train-0.tar"
    path.parent.mkdir()
    path.write_bytes(one + one)
    with pytest.raises(DataError, match="follows its end"):
        read_dataset(tmp_path / "set")
    many = bytearray(tar_of(path, {f"{n}.{kind}": png(n) if kind == "png" else b"x" for n in range(4)
                                   for kind in ("png", "txt")}).read_bytes())  # fmt: skip
    many[many.index(b"2.png") + 150] ^= 0xFF  # in the header's checksum
    path.write_bytes(many)
    with pytest.raises(DataError, match="follows its end"):
        read_dataset(tmp_path / "set")


def test_a_mask_beside_a_picture_is_not_the_picture(tmp_path: Path) -> None:
    members = {"0.png": png(1), "0.mask.png": png(99), "0.txt": b"x"}
    tar_of(tmp_path / "set" / "train-0.tar", members)
    assert np.asarray(load_image(read_shards(tmp_path / "set").image_path(0)))[0, 0, 0] == 1


def test_zeros_are_values(tmp_path: Path) -> None:
    rows = [{**row, "lat": 0, "lon": 0.0, "id": n} for n, row in enumerate(hf_rows(2))]
    parquet_of(tmp_path / "set" / "train.parquet", rows)
    frame = read_shards(tmp_path / "set").frame
    assert list(frame["lat"]) == [0, 0] == list(frame["lon"]) and list(frame["sample_id"]) == ["0", "1"]


def test_links_are_refused_and_folders_called_like_shards_are_entered(tmp_path: Path) -> None:
    parquet_of(tmp_path / "blobs" / "abc.parquet", hf_rows(2))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").symlink_to(tmp_path / "blobs" / "abc.parquet")
    with pytest.raises(DataError, match="symbolic link"):
        read_dataset(tmp_path / "set")
    parquet_of(tmp_path / "spark.parquet" / "train-0.parquet", hf_rows(2))
    manifest = read_dataset(tmp_path / "spark.parquet")
    assert [load_image(path).size for path in manifest.image_paths] == [(8, 6)] * 2
    place = tmp_path / "s [v2]"
    place.mkdir()
    (place / "shards.txt").write_text("../blobs/a*.parquet\n")
    with pytest.warns(UserWarning, match="name no split"):
        assert len(read_shards(place)) == 2


def test_captions_as_bytes_are_text(tmp_path: Path) -> None:
    parquet_of(tmp_path / "set" / "train.parquet", [{"image": png(1), "caption": "stra\u00dfe".encode()}])
    assert read_shards(tmp_path / "set").texts[0] == ["stra\u00dfe"]


def test_shards_are_not_mixed_with_old_ones(tmp_path: Path) -> None:
    manifest = read_dataset(make_rsicd(tmp_path / "set"))
    write_shards(manifest, tmp_path / "shards", images=10)
    with pytest.raises(UserError, match="holds shards already"):
        write_shards(manifest, tmp_path / "shards", images=20)
    with pytest.raises(UserError, match="holds the dataset itself"):
        write_shards(manifest, tmp_path / "shards" / ".." / "set")
    assert not list((tmp_path / "set").glob("*.tar"))


def test_compressed_tar_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "train.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(DataError, match="uncompressed"):
        read_dataset(tmp_path / "set")


def test_names_in_a_shard_never_leave_it(tmp_path: Path) -> None:
    tar_of(tmp_path / "set" / "train-0.tar", {"../../../x.png": png(4), "../../../x.txt": b"far"})
    manifest = read_shards(tmp_path / "set")
    assert manifest.image_path(0).is_relative_to(tmp_path / "set")
    assert load_image(manifest.image_path(0)).size == (8, 6)
    name = part_name("a.tar", "../b/./c\n.png", 1, "+", 2)
    assert name == "a.tar/b/c_.png@1+2"
    with pytest.raises(DataError, match="leaves the folder"):
        safe_join(tmp_path / "set", "../other.tar/x.png@0+10")


def test_a_folder_called_like_a_shard_stays_a_folder(tmp_path: Path) -> None:
    place = tmp_path / "set.tar" / "0.png@1+2"
    place.parent.mkdir()
    place.write_bytes(png(5))
    assert load_image(place).size == (8, 6)


def test_inspection_and_other_layouts(tmp_path: Path) -> None:
    parquet_of(tmp_path / "set" / "train.parquet", hf_rows(3))
    found = inspect_path(tmp_path / "set")
    assert found.layout == "shards" and "in shards" in found.text()
    parquet_of(tmp_path / "table" / "numbers.parquet", [{"x": 1}])
    assert find_layout(tmp_path / "table") is None


def test_bytes_that_were_read_of_another_file_are_not_taken_again(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "train.parquet", hf_rows(2))
    assert np.asarray(load_image(path / "x@0:1"))[0, 0, 0] == 10
    rows = hf_rows(2)
    rows[1]["image"]["bytes"] = png(77) + b"trailing"
    parquet_of(path, rows)
    assert np.asarray(load_image(path / "x@0:1"))[0, 0, 0] == 77


def test_the_command_makes_shards(tmp_path: Path) -> None:
    make_rsicd(tmp_path / "set")
    done = ucore("data", "shard", "--data", tmp_path / "set", "--out", tmp_path / "shards")
    assert done.status == 0 and "3 shard(s)" in done.out
    told = json.loads(ucore("data", "inspect", tmp_path / "shards", "--json").out)
    assert told["layout"] == "shards" and told["usable"]
    assert ucore("data", "shard", "--data", tmp_path / "set", "--out", tmp_path / "x", "--images", 0).status != 0
