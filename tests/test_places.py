"""An index in an object store: the same calls and answers, through addresses.

The store is a folder behind Lance's own object store code (file-object-store://), which knows no locks.
"""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from command import ucore
from makers_index import CARD, DIM, make_features, make_rows, state_of

from ucore.embedding import build_index
from ucore.errors import ConfigError, DataError
from ucore.filters import Filter
from ucore.index import ENGINES, Engine, GalleryIndex
from ucore.places import place_of
from ucore.retrieve import Searcher


def test_a_place_is_a_folder_or_an_address():
    assert place_of("runs/index") == Path("runs/index") == place_of(Path("runs/index"))
    assert place_of("file:///a/my%20index") == Path("/a/my index")
    assert place_of("s3://bucket/a/b/") == "s3://bucket/a/b" == place_of(Path("s3://bucket/a/b"))
    assert place_of("az://box/i") == "az://box/i" and place_of("gs://box/i") == "gs://box/i"
    assert place_of("file-object-store:///tmp/i") == "file-object-store:///tmp/i"
    assert place_of("C:/index") == Path("C:/index")  # a drive
    for address, told in (
        ("http://host/index", "in a folder or under s3://, gs://, az://"),
        ("s3a://bucket/index", "did you mean 's3'"),
        ("memory://index", "in a folder or under"),
        ("s3://", "names no bucket"),
    ):
        with pytest.raises(ConfigError, match=told):
            place_of(address)


def test_both_engines_do_all_that_an_engine_does():
    parts = {name for name in (*vars(Engine), *Engine.__annotations__) if not name.startswith("_")}
    assert len(parts) > 18
    for engine in (ENGINES["flat"], ENGINES["lance"]):
        source = inspect.getsource(engine)
        assert [name for name in parts if not hasattr(engine, name) and f"self.{name}" not in source] == []


@pytest.fixture
def address(tmp_path) -> str:
    pytest.importorskip("lancedb", reason="the extra lance is not installed")
    return f"file-object-store://{tmp_path}/store/index"


def test_an_index_in_a_store_gives_the_answers_of_one_in_a_folder(address, tmp_path):
    assert not GalleryIndex.exists(address)
    with pytest.raises(DataError, match="There is no index in file-object-store"):
        GalleryIndex.open(address)
    remote, local = GalleryIndex.create(address, CARD, DIM, "lance"), GalleryIndex.create(tmp_path / "i", CARD, DIM)
    bias = np.random.default_rng(1).normal(0, 0.1, 90).astype(np.float32)
    for index in (remote, local):
        index.add(make_features(90), make_rows(90).assign(hub_bias=bias))
        index.delete([f"i{n}" for n in range(0, 90, 7)])
        index.compact()
        index.keep("known", {"of": "itself"})
    again = GalleryIndex.open(address)
    assert again.place == address and again.note("known") == {"of": "itself"} and again.note("other") is None
    assert again.card == CARD and state_of(again) == state_of(local) and GalleryIndex.exists(address)
    again.verify()
    for where in (None, Filter(domains=("spain",)), Filter(near=(0, 0), km=6000)):
        for asked in (make_features(2, 4), make_features(1, 8)):
            ours, theirs = (index.search(asked, 5, where, bias=True) for index in (again, local))
            names = [
                [i.rows(of)["item_id"].tolist() for of in hits.positions]
                for i, hits in ((again, ours), (local, theirs))
            ]
            assert names[0] == names[1]
            np.testing.assert_array_equal(ours.scores, theirs.scores)
    with pytest.raises(ConfigError, match="choose engine lance"):
        GalleryIndex.create(address + "2", CARD, DIM)


def test_two_writers_lose_nothing_and_what_both_added_is_told(address):
    one = GalleryIndex.create(address, CARD, DIM, "lance")
    other = GalleryIndex.open(address)
    one.add(make_features(4), make_rows(4))
    other.add(make_features(4, 1), make_rows(4, 10))  # of other items: both are there
    assert len(GalleryIndex.open(address)) == 8
    GalleryIndex.open(address).verify()
    engine = other._engine
    engine._items.add(one._engine._items.search().limit(1).to_arrow())  # as one that looked before the other wrote
    with pytest.raises(DataError, match="holds twice: i0"):
        GalleryIndex.open(address).verify()


@pytest.mark.parametrize(("scheme", "told"), [("s3", "does not answer"), ("az", "keys in the environment are missing")])
def test_a_store_that_cannot_be_used_is_told_in_one_sentence(monkeypatch, scheme, told):
    pytest.importorskip("lancedb", reason="the extra lance is not installed")
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "c", "AWS_ALLOW_HTTP": "true"}
    for name, value in {**keys, "AWS_ENDPOINT": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=told) as error:
        GalleryIndex.open(f"{scheme}://bucket/index")
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_build_search_map_info_and_compact_take_an_address(search_place, address, tmp_path):
    given = ("--checkpoint", search_place.checkpoint, "--data", search_place.data, "--out", address)
    refused = ucore("index", "build", *given, "--engine", "flat")
    assert refused.status == 2 and "lance is for object stores" in refused.err
    made = ucore("index", "build", *given)
    assert made.status == 0 and "36 images, 108 texts" in made.out, made.err
    first = GalleryIndex.open(address)
    again = build_index(search_place.checkpoint, search_place.manifest, address, progress=False)
    assert again.version == first.version  # nothing is missing
    plain = Searcher(search_place.index).text("a red house", k=4)
    found = json.loads(ucore("search", "a red house", "--index", address, "--k", 4, "--json").out)
    assert [hit["sample_id"] for hit in found["hits"]] == [hit.sample_id for hit in plain.hits]
    assert [hit["sure"] for hit in found["hits"]] == [hit.sure for hit in plain.hits]
    page = tmp_path / "map.html"
    drawn = ucore("map", "a red house", "--index", address, "--out", page)
    assert drawn.status == 0 and page.stat().st_size > 100_000, drawn.err
    assert json.loads(ucore("index", "info", address).out)["images"] == 36
    assert "144 items" in ucore("index", "compact", address).out
    for command in (("search", "a", "--index"), ("index", "info")):
        wrong = ucore(*command, "ftp://host/index")
        assert wrong.status == 2 and "an index lies in a folder or under" in wrong.err and "Traceback" not in wrong.err
