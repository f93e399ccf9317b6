"""The three commands as a user types them."""

import json
import shutil
import subprocess
import sys

import geopandas
import pytest
from command import ucore

from ucore.errors import UserError
from ucore.files import only_writer


def test_an_index_is_built_searched_and_mapped(search_place, tmp_path):
    index = tmp_path / "index"
    made = ucore("index", "build", "--checkpoint", search_place.checkpoint, "--data", search_place.data, "--out", index)
    assert made.status == 0 and "36 images, 108 texts, 0 segments" in made.out, made.err
    again = ucore(
        "index", "build", "--checkpoint", search_place.checkpoint, "--data", search_place.data, "--out", index
    )
    assert again.status == 0
    near = ("--near", "60.17,24.94", "--km", 5, "--k", 10)
    found = ucore("search", "tennis courts beside a school", "--index", index, *near, "--json")
    answer = json.loads(found.out)
    assert len(answer["hits"]) == 10 and {hit["domain"] for hit in answer["hits"]} == {"finland"}
    page = ucore("map", "dense houses with red roofs", "--index", index, "--out", tmp_path / "map.html",
                 "--export", tmp_path / "scores.parquet")  # fmt: skip
    assert page.status == 0 and (tmp_path / "map.html").stat().st_size > 100_000, page.err
    assert len(geopandas.read_parquet(tmp_path / "scores.parquet")) == 36
    told = json.loads(ucore("index", "info", index).out)
    assert (told["images"], told["texts"], told["segments"]) == (36, 108, 0) and told["segment_settings"]["share"] > 0
    assert "approximate_recall@10" not in told
    told = json.loads(ucore("index", "info", index, "--recall").out)
    assert "Searches are exact" in told["approximate_recall@10"]  # so few
    assert "144 items" in ucore("index", "compact", index).out


def test_a_hit_is_explained_and_drawn(search_place, tmp_path):
    given = ("--index", search_place.index, "--k", 2, "--explain", "--out", tmp_path / "found.geojson")
    found = ucore("search", "a red house", *given)
    assert found.status == 0 and found.out.count("words: a ") == 2 and "best segments" in found.out, found.err
    assert (tmp_path / "found-explained.png").read_bytes().startswith(b"\x89PNG")
    assert len(geopandas.read_file(tmp_path / "found.geojson")) == 2


def test_a_sample_and_a_file_are_searched_for(search_place):
    found = ucore("search", "--sample", "spain_001", "--find", "text", "--index", search_place.index, "--k", 2)
    assert found.status == 0 and "text:" in found.out, found.err
    image = search_place.data / search_place.manifest.frame["image"][3]
    found = ucore("search", "--image", image, "--index", search_place.index, "--k", 1)
    assert search_place.manifest.frame["sample_id"][3] in found.out


@pytest.mark.parametrize(("arguments", "told"), [
    (("",), "Ask with one of"), (("a", "--sample", "b"), "Ask with one of"),
    (("a", "--near", "60"), "belong together"), (("a", "--near", "60;24", "--km", 1), "must be LAT,LON"),
    (("a", "--box", "3,2,1,0"), "inverted"), (("a", "--domain", "spian"), "did you mean 'spain'"),
    (("a", "--tag", "buildin"), "building"), (("a", "--out", "found.shp"), "ends in .json"),
    (("a", "--late"), "trained without segments"), (("--sample", "b", "--late"), "ask with words"),
    (("--sample", "b", "--explain"), "ask with words"), (("--image", "nope.jpg"), "absent. Ask with another file"),
    (("a", "--find", "text"), "images or segments"), (("a", "--box", ""), "must be W,S,E,N"),
    (("a", "--near", ""), "belong together"), (("a", "--near", "", "--km", 1), "must be LAT,LON"),
    (("a", "--k", 0), "at least one"),
    (("a", "--checkpoint", "nowhere"), "no checkpoint in nowhere"),
])  # fmt: skip
def test_what_is_wrong_is_told_in_one_sentence(search_place, arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = ucore("search", *arguments, "--index", search_place.index)
    assert outcome.status == 2 and told in outcome.err and len(outcome.err.splitlines()) == 1, outcome.err


def test_other_wrong_input(search_place, tmp_path):
    crossed = tmp_path / "area.geojson"
    crossed.write_text(json.dumps({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]]]}))
    for arguments, told in (
        (("search", "a", "--index", tmp_path), "no index"),
        (("search", "a", "--index", search_place.index, "--polygon", crossed), "crosses itself"),
        (("search", "a", "--index", search_place.index, "--polygon", tmp_path / "no.json"), "no GeoJSON file"),
        (("map", "a", "--index", search_place.index, "--out", tmp_path / "map.png"), "ends in .html"),
        (("map", "a", "--versus-checkpoint", tmp_path, "--index", search_place.index), "names; give both"),
        (("map", "", "--index", search_place.index, "--out", tmp_path / "map.html"), "query is empty"),
        (("app", "--index", search_place.index, "--checkpoint", tmp_path), "no checkpoint"),
        (("index", "build", "--checkpoint", tmp_path, "--out", tmp_path / "x"), "no checkpoint"),
    ):
        outcome = ucore(*arguments)
        assert outcome.status == 2 and told in outcome.err and "Traceback" not in outcome.err, outcome.err


def test_an_index_that_is_being_written_is_refused(search_place):
    from ucore.index import GalleryIndex

    with only_writer(search_place.index):
        with pytest.raises(UserError, match="Another process is writing"):
            GalleryIndex.open(search_place.index).delete(["image:spain_001"])
        busy = ucore("index", "compact", search_place.index)
        assert busy.status == 2 and "Another process is writing" in busy.err and "Traceback" not in busy.err
        assert ucore("search", "a red house", "--index", search_place.index).status == 0  # reading goes on


def test_a_damaged_index_is_told_by_every_command(search_place, tmp_path):
    index = tmp_path / "index"
    shutil.copytree(search_place.index, index)
    vectors = next(index.glob("vectors-*"))
    vectors.write_bytes(vectors.read_bytes()[:-100])
    for command in (("search", "a"), ("map", "a", "--out", tmp_path / "map.html"), ("app",), ("index", "compact")):
        given = (*command, index) if command[0] == "index" else (*command, "--index", index)
        outcome = ucore(*given)
        assert outcome.status == 2 and vectors.name in outcome.err and len(outcome.err.splitlines()) == 1, outcome.err


def test_a_text_query_needs_no_torch(search_place):
    code = (
        "import sys; sys.argv = ['ucore', 'search', 'a red house', '--index', sys.argv[1]]\n"
        "from ucore.cli import main; main()\n"
        "print(sorted({'torch', 'open_clip', 'transformers', 'matplotlib', 'geopandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(search_place.index)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "image:" in done.stdout
