"""The caption stage with a captioner that names colours: every image once, whatever happens on the way."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers_geo import picture
from PIL import Image

from ucore import asking, captions
from ucore.captions import caption_dataset
from ucore.data import read_dataset, read_urbancross
from ucore.errors import ConfigError, DataError, UserError
from ucore.images import Unreadable, load_image
from ucore.manifest import Manifest
from ucore.parallel import Failed
from ucore.urbancross import write_urbancross

TAGS = [["building=house"], ["highway=residential", "building=house"], []]


class Colours:
    """A captioner: "Houses of brightness 123." Fails on prompts that hold one of `fails`."""

    name, needs_images = "colours", True

    def __init__(self, fails: tuple[str, ...] = ()) -> None:
        self.fails, self.asked = fails, list[str]()

    def key(self) -> str:
        return "0123456789abcdef"

    def load(self) -> None:
        return None

    def prompt_for(self, tags: Any, surrounding_tags: Any = (), sample_id: str = "") -> str:
        return f'Describe "{", ".join(tags)}" please, in one sentence.'

    def caption(self, images: list[Image.Image], prompts: list[str]) -> list[str | Failed]:
        self.asked += prompts
        return [
            Failed("busy") if any(word in prompt for word in self.fails)
            else f"{prompt} Houses of brightness {np.asarray(image).mean():.3f}."
            for image, prompt in zip(images, prompts, strict=True)
        ]  # fmt: skip


@pytest.fixture
def colours(monkeypatch) -> Colours:
    captioner = Colours()
    monkeypatch.setattr(asking, "load_captioner", lambda *args, **kwargs: captioner)
    return captioner


def make_manifest(folder: Path, count: int = 6) -> Manifest:
    rows = [
        {"sample_id": f"s{n}", "image": f"images/{n}.png", "captions": [f"caption {n} ."], "domain": "north",
         "split": "train" if n % 2 else "test", "tags": TAGS[n % 3], "source": "survey"}
        for n in range(count)
    ]  # fmt: skip
    for number, row in enumerate(rows):
        picture(folder / row["image"], seed=number)
    return Manifest.from_rows(rows, folder)


def test_the_result_is_a_dataset_with_refined_descriptions(tmp_path, colours):
    manifest = make_manifest(tmp_path / "data")
    run = caption_dataset(manifest, "any", tmp_path / "out", prompt="short")
    assert run.folder == tmp_path / "out" / "colours-0123456789abcdef"
    back = read_dataset(run.folder)
    assert list(back.frame["sample_id"]) == [f"s{n}" for n in range(6)]
    assert list(back.frame["captions"]) == list(manifest.frame["captions"])
    for number, text in enumerate(back.frame["description"]):
        mean = np.asarray(Image.open(manifest.image_path(number))).mean()
        assert text == f"Houses of brightness {mean:.3f}."
    report = json.loads((run.folder / "report.json").read_text("utf-8"))
    assert report == run.report
    assert (report["changed"], report["problems"]["prompt echo"], report["prompt"]) == (6, 6, "short")
    assert report["this_call"]["asked"] == 6
    again = caption_dataset(manifest, "any", tmp_path / "out")
    assert again.report["this_call"]["asked"] == 0 and len(colours.asked) == 6
    assert list(again.manifest.frame["description"]) == list(back.frame["description"])


def test_texts_may_go_beside_the_captions_and_must_then_be_like_their_images(tmp_path, colours, monkeypatch):
    manifest = make_manifest(tmp_path / "data", 6)
    manifest.frame["split"] = ["train"] * 5 + ["test"]
    judged: list[list[str]] = []

    def judge(described: Manifest, encoder: Any, column: str, quantile: float, progress: bool) -> Any:
        judged.append(list(described.frame[column]))
        frame = described.frame.copy()
        frame.loc[2, column] = ""
        return Manifest(frame, described.root), {"dropped": 1, "quantile": quantile}

    monkeypatch.setattr(captions, "filter_captions", judge)
    before = [list(texts) for texts in manifest.frame["captions"]]
    settings: dict[str, Any] = {"into": "both", "judge": object(), "unlike": 0.2}
    run = caption_dataset(manifest, "any", tmp_path / "out", **settings)
    assert len(judged) == 1 and all("Houses of brightness" in text for text in judged[0])
    added = [len(list(now)) - len(then) for now, then in zip(run.manifest.frame["captions"], before, strict=True)]
    assert added == [1, 1, 0, 1, 1, 0]  # neither of the text unlike its image, nor where it would be a query
    assert run.manifest.frame["description"].iloc[2] == manifest.frame["description"].iloc[2]
    assert run.report["unlike"] == [manifest.frame["sample_id"].iloc[2]]
    assert run.report["likeness"] == {"dropped": 1, "quantile": 0.2}
    assert (run.report["changed"], run.report["dropped"], run.report["problems"]["unlike"]) == (5, 1, 1)
    assert run.report["by_split"] == {"train": {"changed": 4, "dropped": 1}, "test": {"changed": 1}}


def test_equal_images_with_equal_tags_are_asked_once(tmp_path, colours):
    manifest = make_manifest(tmp_path / "data")
    (tmp_path / "data/images/3.png").write_bytes((tmp_path / "data/images/0.png").read_bytes())
    run = caption_dataset(manifest, "any", tmp_path / "out")
    assert len(colours.asked) == 5
    assert run.manifest.frame["description"].iloc[0] == run.manifest.frame["description"].iloc[3]


def test_images_that_cannot_be_read_are_named_and_left_out(tmp_path, colours):
    manifest = make_manifest(tmp_path / "data")
    (tmp_path / "data/images/1.png").write_bytes(b"")
    (tmp_path / "data/images/2.png").unlink()
    with pytest.warns(UserWarning, match=r"2 image.s. cannot be read .*s1 .zero bytes., s2 .absent."):
        run = caption_dataset(manifest, "any", tmp_path / "out")
    assert run.report["quarantined"] == {"s1": "zero bytes", "s2": "absent"}
    assert list(read_dataset(run.folder).frame["sample_id"]) == ["s0", "s3", "s4", "s5"]
    picture(tmp_path / "data/images/1.png", seed=1)
    picture(tmp_path / "data/images/2.png", seed=2)
    run = caption_dataset(manifest, "any", tmp_path / "out")
    assert run.report["this_call"]["asked"] == 2 and run.report["quarantined"] == {}
    assert len(run.manifest) == 6
    for path in (tmp_path / "data/images").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="None of the 6"):
        caption_dataset(manifest, "any", tmp_path / "out")


def test_a_worker_with_another_model_or_without_the_images_is_told_apart(tmp_path, colours, monkeypatch):
    make = asking.MakeWorker("any", "cpu", "short", 8, 1, key="of another model")
    with pytest.raises(ConfigError, match="another model"):
        make()
    manifest = make_manifest(tmp_path / "data")
    away = Unreadable("absent", lasting=False)
    monkeypatch.setattr(asking, "try_image", lambda path: away if path.endswith("1.png") else load_image(path))
    with pytest.warns(UserWarning, match="1 image.s. failed"):
        run = caption_dataset(manifest, "any", tmp_path / "out")
    assert run.report["failed"] == {"s1": "absent"} and run.report["quarantined"] == {}


def test_a_large_model_on_a_clusters_processors_asks_how_many(tmp_path, colours):
    with pytest.raises(ConfigError, match="say with --workers how many"):
        caption_dataset(make_manifest(tmp_path / "data", 2), "any", tmp_path / "out", engine="ray", device="cpu")


def test_what_failed_is_done_by_the_next_call(tmp_path, colours):
    manifest = make_manifest(tmp_path / "data")
    colours.fails = ("highway",)
    with pytest.warns(UserWarning, match="2 image.s. failed; repeat the command"):
        run = caption_dataset(manifest, "any", tmp_path / "out", batch_size=2)
    assert run.report["failed"] == {"s1": "busy", "s4": "busy"}
    assert run.report["without a text"] == 2 and len(run.manifest) == 6
    colours.fails = ()
    run = caption_dataset(manifest, "any", tmp_path / "out")
    assert (run.report["this_call"]["asked"], run.report["failed"]) == (2, {})
    assert all(text.startswith("Houses") for text in run.manifest.frame["description"])


def test_nothing_but_failures_ends_the_stage_and_keeps_what_there_is(tmp_path, colours, monkeypatch):
    manifest = make_manifest(tmp_path / "data", 9)
    monkeypatch.setattr(asking, "GIVE_UP", 2)
    colours.fails = ("highway", '""')  # of three images, the second and the third
    with pytest.raises(UserError, match="2 images in a row failed, the last one: busy"):
        caption_dataset(manifest, "any", tmp_path / "out", batch_size=1)
    assert len(colours.asked) == 3
    colours.fails = ()
    assert caption_dataset(manifest, "any", tmp_path / "out").report["this_call"]["asked"] == 8


def test_broken_text_is_stored_and_an_endpoint_needs_no_cluster(tmp_path, colours, monkeypatch):
    monkeypatch.setattr(colours, "caption", lambda images, prompts: ["A house \ud800" + "x" * 50_000] * len(images))
    run = caption_dataset(make_manifest(tmp_path / "data", 2), "http://h:1/v1:m", tmp_path / "out", engine="ray")
    assert run.manifest.frame["description"].iloc[0].startswith("A house ?xxx")


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_captions import Colours, asking, captions, make_manifest
from ucore import store
from ucore.manifest import Manifest
out, most = Path({out!r}), int(sys.argv[1])
store.ROWS, asked = 2, []
class Mortal(Colours):
    def caption(self, images, prompts):
        asked.extend(prompts)
        if len(asked) > most:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().caption(images, prompts)
asking.load_captioner = lambda *args, **kwargs: Mortal()
captions.caption_dataset(make_manifest(Path({data!r}), 12), "any", out, batch_size=1)
"""


def test_killed_at_any_time_nothing_is_lost_or_doubled(tmp_path, colours):
    out = tmp_path / "out"
    script = SCRIPT.format(tests=str(Path(__file__).parent), out=str(out), data=str(tmp_path / "data"))
    command = [sys.executable, "-c", script, "5"]
    assert subprocess.run(command, cwd=Path(captions.__file__).parents[1], check=False).returncode == -signal.SIGKILL
    manifest = make_manifest(tmp_path / "data", 12)
    run = caption_dataset(manifest, "any", out)
    assert run.report["this_call"]["asked"] == 12 - 4  # two parts of two rows were written
    whole = caption_dataset(manifest, "any", tmp_path / "whole")
    assert run.manifest.frame.drop(columns="footprint").equals(whole.manifest.frame.drop(columns="footprint"))
    assert (run.folder / "manifest.parquet").read_bytes() == (whole.folder / "manifest.parquet").read_bytes()


def test_sentences_from_tags_need_no_image(tmp_path):
    manifest = make_manifest(tmp_path / "data", 3)
    for path in manifest.image_paths:
        path.unlink()
    run = caption_dataset(manifest, "tags", tmp_path / "out", engine="ray")
    descriptions = list(run.manifest.frame["description"])
    assert "houses" in descriptions[0].lower() and "street" in descriptions[1].lower()
    assert descriptions[2] == ""  # no tags, nothing to say
    assert (run.report["kept"], run.report["dropped"], run.report["without a text"]) == (2, 0, 1)
    assert run.report["problems"] == {"empty": 1} and run.report["grounding"]["refined"]["tag_recall"] == 1


def test_urbancross_files_are_read_back_and_safe_in_spreadsheets(tmp_path):
    names = ["images/a.png", "images/-b.png", "images/c.png", "images/d.png"]
    texts = ["A house, and a road.", "=HYPERLINK(1)", '"Quoted" text.', ""]
    rows = [{"sample_id": name, "image": name, "captions": ["x"], "description": text, "domain": "north land",
             "split": "train"} for name, text in zip(names, texts, strict=True)]  # fmt: skip
    for number, name in enumerate(names):
        picture(tmp_path / "North-Land" / name, seed=number)
    files = write_urbancross(Manifest.from_rows(rows, tmp_path / "North-Land"), tmp_path / "made")
    assert files == [tmp_path / "made/North-Land/instructblip_generation_north-land_refine.csv"]
    with open(files[0], encoding="utf-8", newline="") as stream:
        cells = list(csv.reader(stream))
    assert cells[0] == ["image_name", "description"]
    assert not any(cell.startswith(tuple("=+-@\t\r")) for row in cells for cell in row)
    files[0].rename(tmp_path / "North-Land" / files[0].name)
    back = read_urbancross(tmp_path / "North-Land", keep=False)
    assert dict(zip(back.frame["image"], back.frame["captions"], strict=True)) == {
        "a.png": ["A house, and a road."],
        "-b.png": ["HYPERLINK(1)"],
        "c.png": ['"Quoted" text.'],
    }


def test_large_pictures_are_decoded_one_at_a_time_and_made_small(tmp_path, monkeypatch):
    at_once, most, decode = 0, 0, asking.try_image

    def watched(path):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.02)
        at_once -= 1
        return decode(path)

    monkeypatch.setattr(asking, "LARGE", 5000)
    monkeypatch.setattr(asking, "LONGEST", 64)
    monkeypatch.setattr(asking, "try_image", watched)
    for number in range(6):
        Image.new("RGB", (100, 80)).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    os.mkfifo(tmp_path / "pipe.png")  # which nobody writes to
    paths = [*(str(tmp_path / f"{number}.png") for number in range(6)), str(tmp_path / "bad.png"), ""]
    images = asking._images([asking.Item(path, "") for path in paths])
    assert [image.size for image in images[:6]] == [(64, 51)] * 6 and most <= 2  # the damaged one is not large
    assert isinstance(images[6], Unreadable) and images[7] is None
    assert isinstance(asking._image(str(tmp_path / "pipe.png")), Unreadable)
