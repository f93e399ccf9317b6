"""The two sides of a border: a control that takes the target's texts away, groups of scenes, the benchmark of both."""

import importlib.util
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from makers import edit_index, make_rsicd

from ucore.crossing import with_texts_of
from ucore.data import read_dataset
from ucore.errors import DataError
from ucore.rsicd import SCENE_GROUPS, by_scenes, scene_of

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "adaptation.py"


def test_the_control_changes_the_captions_and_nothing_else(sides):
    _, finetune, others = sides
    control = with_texts_of(finetune, others, seed=3)
    columns = [name for name in finetune.frame.columns if name != "captions"]
    assert control.frame[columns].equals(finetune.frame[columns])
    assert control.root == finetune.root and control.image_paths == finetune.image_paths
    sets = [tuple(of_image) for of_image in others.frame["captions"]]
    given = Counter(tuple(of_image) for of_image in control.frame["captions"])
    assert set(given) == set(sets)  # 8 others for 12 images: each once before any comes twice
    assert Counter(given.values()).keys() <= {count * k for count in Counter(sets).values() for k in (1, 2)}
    assert control.texts[0] == with_texts_of(finetune, others, seed=3).texts[0]
    assert control.texts[0] != with_texts_of(finetune, others, seed=4).texts[0]
    assert finetune.texts[0] != control.texts[0]


def test_groups_of_scenes_are_sorted_and_disjoint():
    every = [scene for scenes in SCENE_GROUPS.values() for scene in scenes]
    assert len(set(every)) == len(every) == 30
    assert all(list(scenes) == sorted(scenes) for scenes in SCENE_GROUPS.values())
    names = {"airport_12.jpg": "airport", "denseresidential_7.jpg": "denseresidential", "00012.jpg": "", "a.jpg": ""}
    assert {name: scene_of(name) for name in names} == names


@pytest.fixture
def scenes(tmp_path) -> Path:
    """A set in RSICD's layout of 20 airports, 20 beaches, 8 ports and 4 numbers."""
    folder = make_rsicd(tmp_path / "set", 44, 8, 0)
    names = [f"{scene}_{n}.jpg" for n in range(20) for scene in ("airport", "beach")]
    names += [*(f"port_{n}.jpg" for n in range(8)), *(f"{n}.jpg" for n in range(4))]

    def rename(entries):
        for entry, name in zip(entries, names, strict=True):
            shutil.move(folder / "images" / entry["filename"], folder / "images" / name)
            entry.update(filename=name, split="val" if name[-5] == "9" else "train")

    edit_index(folder, rename)
    return folder


def test_scenes_become_domains(scenes, tiny_rsicd):
    manifest = by_scenes(read_dataset(scenes))
    assert Counter(manifest.frame["domain"]) == {"city": 20, "nature": 20, "mixed": 8}
    assert set(manifest.domain("nature").frame["image"]) == {f"beach_{n}.jpg" for n in range(20)}
    with pytest.raises(DataError, match="named by its scene"):
        by_scenes(read_dataset(tiny_rsicd))


def test_the_benchmark_goes_on_where_it_stopped(scenes, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("adaptation_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, benchmark)
    spec.loader.exec_module(benchmark)
    short = "head_epochs=1"
    monkeypatch.setattr(benchmark, "BASE", f"source-only,{short}")
    monkeypatch.setattr(benchmark, "FEW", (f"target-only,{short}", f"ucore,regime=paired,{short}"))
    arguments = ["adaptation", "--data", scenes, "--scenes", "--directions", "city-nature", "--seeds", "1", "--cache",
                 tmp_path / "cache", "--runs", tmp_path / "runs", "--out", tmp_path / "table.json", "--methods",
                 f"control,{short}", f"ucore,{short}", "--shots", "2", "8"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(one) for one in arguments])
    benchmark.main()
    told = capsys.readouterr().out
    assert told.count("left out: there are 4 images to adapt to") == 2  # 8 are not there
    first = json.loads((tmp_path / "table.json").read_text())["rows"]
    rows = {row["method"]: row for row in first}
    assert {f"control,{short}", f"target-only,{short},shots=2", f"ucore,regime=paired,{short},shots=2 +qb"} <= set(rows)
    assert {row["direction"] for row in first} == {"city -> nature"} and rows[benchmark.BASE]["mR_difference"][0] == 0
    assert len(list((tmp_path / "runs").glob("*.json"))) == 6
    monkeypatch.setattr(benchmark, "Trainer", lambda *_, **__: pytest.fail("trained again"))
    benchmark.main()
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == first
    kept = {json.loads(path.read_text())["method"]: path for path in (tmp_path / "runs").glob("*.json")}
    kept[f"control,{short}"].write_text("{")  # half a file is none
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        benchmark.main()
    assert np.isfinite([row["mR"] for row in first]).all()
