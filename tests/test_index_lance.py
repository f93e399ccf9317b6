"""The LanceDB engine gives the flat engine's answers, through the same calls."""

import multiprocessing
import random

import numpy as np
import pandas as pd
import pytest
import shapely
from makers_index import CARD, DIM, expected_states, kill_while_changing, make_features, make_rows, state_of
from test_nearest import assert_same, brute_force

from ucore import index_lance, lance_files
from ucore.errors import ConfigError, DataError, UserError
from ucore.files import parse_json
from ucore.filters import Filter
from ucore.index import GalleryIndex
from ucore.index_files import crc_of

pytest.importorskip("lancedb", reason="the extra lance is not installed")
PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    index = GalleryIndex.create(tmp_path_factory.mktemp("index") / "gallery", CARD, DIM, engine="lance")
    features, rows = make_features(600), make_rows(600)
    for start in range(0, 600, 200):
        index.add(features[start : start + 200], rows.iloc[start : start + 200])
    gone = [f"i{n}" for n in range(0, 600, 11)]
    index.delete(gone)
    return index, features, rows, ~rows["item_id"].isin(gone).to_numpy()


WHERES = [
    None,
    Filter(domains=("finland", "spain"), tags="building"),
    Filter(any_tags=("amenity", "highway=service"), sources="rsicd"),
    Filter(box=(-100, -60, 60, 45)),
    Filter(box=(150, -90, -120, 90)),
    Filter(near=(60.0, -179.0), km=4000),
    Filter(near=(89.0, 10.0), km=3000, domains="germany"),
    Filter(near=(0.0, 0.0), km=19000),
    Filter(polygon=shapely.Point(10, 10).buffer(80)),
    Filter(polygon=shapely.box(150, -50, 230, 50), tags="building=school"),
]


@pytest.mark.parametrize("where", WHERES, ids=[str(number) for number in range(len(WHERES))])
def test_same_answers_as_brute_force(gallery, where):
    index, features, rows, alive = gallery
    for kind in ("image", "text"):
        allowed = alive & (rows["kind"] == kind).to_numpy()
        allowed = np.flatnonzero(allowed if where is None else allowed & where.mask(rows))
        queries = make_features(2, seed=5)
        for k in (1, 10, 700):
            hits = index.search(queries, k, where, kind)
            names = [index.rows(of[of >= 0])["item_id"].tolist() for of in hits.positions]
            positions, scores = brute_force(features, queries, k, allowed)
            assert names == [[f"i{n}" for n in of if n >= 0] for of in positions]
            np.testing.assert_array_equal(hits.scores, scores)
            assert hits.allowed == len(allowed) and hits.exact
        assert set(index.rows(index.select(kind, where))["item_id"]) == {f"i{n}" for n in allowed}


def test_metadata_and_features_come_back(gallery):
    index, features, rows, alive = gallery
    names = ["i599", "i5", "i3", "i5"]
    positions = index.find(names)
    number = [599, 5, 3, 5]
    got, wanted = index.rows(positions), rows.iloc[number].reset_index(drop=True)
    pd.testing.assert_frame_equal(got[list(wanted.columns)], wanted)
    assert "vector" not in got and "terms" not in got
    np.testing.assert_array_equal(index.features(positions), features[number])
    assert index.find(["i0", "it's"]).tolist() == [-1, -1] and len(index) == alive.sum() and index.card == CARD
    with pytest.raises(DataError, match="not in this version"):
        index.rows([2**40])
    for wrong, said in (
        (Filter(domains="finnland"), "No row has the domain 'finnland'; did you mean 'finland'"),
        (Filter(tags="bilding"), "tag 'bilding'; did you mean 'building'"),
        (Filter(sources="x' OR '1' = '1"), "No row has the source"),
    ):
        with pytest.raises(ConfigError) as told:
            index.search(make_features(1), 3, wrong)
        assert said in str(told.value)


def test_versions_bias_and_refusals(tmp_path):
    place = tmp_path / "i"
    index = GalleryIndex.create(place, CARD, DIM, engine="lance")
    queries, bias = make_features(3, 7), np.random.default_rng(1).normal(0, 0.3, 100).astype(np.float32)
    assert len(index) == 0 and (index.search(queries, 2).positions == -1).all() and index.rows([]).empty
    rows = make_rows(100).assign(hub_bias=bias)
    index.add(make_features(100), rows)
    reader = GalleryIndex.open(place)
    before = state_of(reader)
    index.delete(["i3", "i4"])
    index.add(make_features(2, 9), rows.iloc[[2, 5]], replace=True)
    index.compact()
    assert state_of(reader) == before and reader.version < index.version
    wanted = {name: values for name, values in before.items() if name not in ("i3", "i4")}
    wanted |= dict(zip(("i2", "i5"), map(tuple, make_features(2, 9).tolist()), strict=True))
    assert state_of(index) == wanted == state_of(GalleryIndex.open(place))
    reader.refresh()
    images = reader.select("image")
    features, of_rows = reader.features(images), reader.rows(images)["hub_bias"].to_numpy()
    hits = reader.search(queries, 10, bias=True)
    widened = [np.column_stack([features, of_rows]), np.column_stack([queries, np.ones(3, np.float32)])]
    positions, scores = brute_force(*widened, 10)
    assert_same((hits.positions, hits.scores), (images[positions], scores))
    np.testing.assert_array_equal(reader.scores(queries, hits.positions[0], bias=True)[0], hits.scores[0])
    for ask, said in (
        (lambda: index.add(make_features(1), make_rows(1, 500)), "lack hub_bias"),
        (lambda: index.add(make_features(1), rows.iloc[:1]), "has these items already: i0"),
        (lambda: index.delete(["i1", "nobody"]), "no item nobody; nothing was deleted"),
        (lambda: GalleryIndex.create(place, CARD, DIM, engine="lance"), "There is an index in"),
    ):
        with pytest.raises(DataError, match=said):
            ask()
    with index_lance.only_writer(place), pytest.raises(UserError, match="Another process is writing"):
        index.delete(["i1"])
    index.verify()


def test_approximate_search_finds_most_under_any_filter(tmp_path, monkeypatch):
    monkeypatch.setattr(index_lance, "FROM", 2000)
    monkeypatch.setattr(index_lance, "LEAST", 400)
    monkeypatch.setattr(index_lance, "NARROW", 400)
    centres = make_features(40, 1, 16)
    number = np.random.default_rng(2).integers(0, 40, 3000)
    features = centres[number] + 0.05 * np.random.default_rng(3).standard_normal((3000, 16)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    index = GalleryIndex.create(tmp_path / "i", CARD, 16, engine="lance")
    rows = make_rows(3000)
    index.add(features, rows)
    index.compact()
    queries = features[::150] + np.float32(0.01)
    for where in (None, Filter(domains="spain"), Filter(box=(-30, -30, 30, 30)), Filter(near=(0, 0), km=9000)):
        right = index.search(queries, 10, where)
        got = index.search(queries, 10, where, exact=False)
        assert got.exact == (right.allowed <= 400) and (got.positions >= 0).all()
        pairs = zip(got.positions, right.positions, strict=True)
        assert np.mean([len(set(a) & set(b)) for a, b in pairs]) >= 9.5
    assert (index.search(queries[:1], 2999, exact=False).positions >= 0).sum() == 2400  # all images


def test_kill_at_any_moment_leaves_a_whole_version(tmp_path):
    PROCESSES.set_forkserver_preload(["pandas", "pyarrow.parquet", "hypothesis", "pytest"])  # and never lancedb
    GalleryIndex.create(tmp_path / "i", CARD, DIM, engine="lance")
    chance = random.Random(0)
    for _ in range(3):
        kill_while_changing(PROCESSES, tmp_path / "i", chance, count=True)
        assert state_of(GalleryIndex.open(tmp_path / "i")) in list(expected_states(100))


@pytest.mark.parametrize("pattern", ["items.lance/data/*.lance", "items.lance/_versions/*", "about.lance/_versions/*"])
def test_damage_is_told_in_one_sentence(tmp_path, pattern):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM, engine="lance")
    index.add(make_features(50), make_rows(50))
    for path in (tmp_path / "i").glob(pattern):
        path.write_bytes(path.read_bytes()[:5])
    for said in (r"is damaged: 5 bytes instead of|cannot be used", r"cannot be used|no index"):
        with pytest.raises(DataError, match=said) as told:
            GalleryIndex.open(tmp_path / "i").verify()
        assert "\n" not in str(told.value)
        (tmp_path / "i" / "checksums.json").unlink(missing_ok=True)  # as before there were any


def test_one_bit_of_any_file_is_noticed_before_lance_sees_it(tmp_path, monkeypatch):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM, engine="lance")
    index.add(make_features(50), make_rows(50))
    index.delete(["i3"])
    files = [path for path in (tmp_path / "i").rglob("*") if path.is_file() and path.suffix != ".json"]
    assert {path.suffix for path in files} >= {".lance", ".manifest", ".txn", ".arrow"}
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
        with pytest.raises(DataError, match=f"{path.name} is damaged: its checksum differs"):
            GalleryIndex.open(tmp_path / "i")
        path.write_bytes(whole)
    data = next(path for path in files if path.suffix == ".lance" and "items" in str(path))
    monkeypatch.setattr(lance_files, "CHECKED", data.stat().st_size - 1)  # larger ones: when that is asked for
    data.write_bytes(data.read_bytes()[:100] + b"\xff" + data.read_bytes()[101:])
    opened = GalleryIndex.open(tmp_path / "i")
    with pytest.raises(DataError, match=f"{data.name} is damaged"):
        opened.verify()


def test_checksums_follow_every_change_and_are_no_condition(tmp_path, monkeypatch):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM, engine="lance")
    index.add(make_features(50), make_rows(50))
    noted = tmp_path / "i" / "checksums.json"
    for text in (None, "{", "[]", '{"a": 1}', '{"items.lance/../../x": [1, 2]}', '{"about.lance/gone": [1, 2]}'):
        noted.unlink() if text is None else noted.write_text(text)
        GalleryIndex.open(tmp_path / "i").verify()
    index.compact()
    files = {path for path in (tmp_path / "i").rglob("*") if path.is_file() and path.suffix != ".json"}
    assert {tmp_path / "i" / name for name in parse_json(noted.read_text())} == files
    read = []
    monkeypatch.setattr(lance_files, "crc_of", lambda path: read.append(path.name) or crc_of(path))
    index.add(make_features(60)[50:], make_rows(60)[50:])
    assert 0 < len(read) == len(set(read))  # what was read through before is not read again
    GalleryIndex.open(tmp_path / "i").verify()


def test_an_object_store_gets_no_checksums(monkeypatch):
    monkeypatch.setattr(lance_files, "write_json", lambda *_: pytest.fail("written"))
    files = lance_files.LanceFiles("s3://bucket/index")
    files.check(whole=True)
    files.note()


def test_damage_that_lance_takes_on_trust_is_told_too(tmp_path):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM, engine="lance")
    index.add(make_features(50), make_rows(50))
    (tmp_path / "i" / "checksums.json").unlink()
    newest = min((tmp_path / "i" / "items.lance" / "_versions").iterdir())  # Lance counts them backwards
    whole, refused = newest.read_bytes(), []
    for start in range(200, 240, 3):
        newest.write_bytes(whole[:start] + whole[start + 56 :])
        try:
            GalleryIndex.open(tmp_path / "i").verify()
        except DataError as error:
            refused.append(error)
    assert refused and all("cannot be used" in str(error) for error in refused)


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[lance\]"'):
        GalleryIndex.create(tmp_path / "i", CARD, DIM, engine="lance")
