"""The gallery index: brute force's answers, versions that are whole, and refusals that say what to do."""

import errno
import itertools
import json
import multiprocessing
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from makers_index import (
    CARD,
    DIM,
    change,
    expected_states,
    kill_while_changing,
    make_features,
    make_rows,
    sketch_of,
    state_of,
)
from test_nearest import assert_same, brute_force

from ucore import index_files, index_flat, sketch
from ucore.columns import Columns
from ucore.errors import ConfigError, DataError, UserError
from ucore.files import content_hash
from ucore.filters import Filter
from ucore.index import GalleryIndex

PROCESSES = multiprocessing.get_context("forkserver")
PLACES = st.tuples(st.floats(-90, 90), st.floats(-180, 180))
FILTERS = st.builds(
    Filter,
    domains=st.sets(st.sampled_from(["finland", "germany", "spain"])).map(tuple),
    tags=st.sets(st.sampled_from(["building", "building=school", "leisure=park"]), max_size=2).map(tuple),
    any_tags=st.sets(st.sampled_from(["amenity", "highway=service"])).map(tuple),
    sources=st.sets(st.sampled_from(["simulated", "rsicd"])).map(tuple),
    box=st.none() | st.just((-100.0, -60.0, 60.0, 45.0)) | st.just((150.0, -90.0, -120.0, 90.0)),
    polygon=st.none() | st.just(shapely.Point(10, 10).buffer(80)),
)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """An index of 600 items, written by several adds with some deleted, and what should be in it."""
    index = GalleryIndex.create(tmp_path_factory.mktemp("index") / "gallery", CARD, DIM)
    features, rows = make_features(600), make_rows(600)
    for start in range(0, 600, 50):
        index.add(features[start : start + 50], rows.iloc[start : start + 50])
    gone = [f"i{n}" for n in range(0, 600, 11)]
    index.delete(gone)
    return index, features, rows, ~rows["item_id"].isin(gone).to_numpy()


@settings(max_examples=60, deadline=None)
@given(FILTERS, st.sampled_from(["image", "text"]), st.integers(1, 700), st.sampled_from([1, 20]), st.booleans())
def test_same_answers_as_brute_force_for_any_filter(gallery, where, kind, k, count, exact):
    index, features, rows, alive = gallery
    allowed = np.flatnonzero(where.mask(rows) & alive & (rows["kind"] == kind).to_numpy())
    queries = make_features(count, seed=k)
    hits = index.search(queries, k, where, kind, exact)
    assert_same((hits.positions, hits.scores), brute_force(features, queries, k, allowed))
    assert hits.allowed == len(allowed) and (hits.positions >= 0).sum() == count * min(k, len(allowed))
    assert index.select(kind, where).tolist() == allowed.tolist() and hits.exact


def test_metadata_and_features_come_back(gallery):
    index, features, rows, alive = gallery
    positions = np.array([599, 0, 6, 6])
    got = index.rows(positions)
    wanted = rows.iloc[positions].reset_index(drop=True)
    pd.testing.assert_frame_equal(got[list(wanted.columns)], wanted)
    assert got["image"].tolist() == [""] * 4 and got["mask"].tolist() == [b""] * 4 and isinstance(got["tags"][0], list)
    np.testing.assert_array_equal(index.features(positions), features[positions])
    assert index.find(["i5", "i0", "nobody", "i5"]).tolist() == [5, -1, -1, 5] and len(index) == alive.sum()
    assert index.card == CARD and index.dim == DIM and not index.has_bias
    queries = make_features(3)
    hits = index.search(queries, 5)
    np.testing.assert_array_equal(index.scores(queries, hits.positions[1])[1], hits.scores[1])
    for wrong in ([-1], [600], [[1]], [0.5]):
        with pytest.raises(DataError, match="whole numbers from 0 to 599"):
            index.rows(np.array(wrong))
    assert index.rows([]).empty and index.features([]).shape == (0, DIM)


def test_bias_is_added_and_ranks(tmp_path):
    features, rows = make_features(300), make_rows(300)
    bias = np.random.default_rng(1).normal(-0.5, 0.3, 300).astype(np.float32)
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    index.add(features, rows.assign(hub_bias=bias))
    queries, images = make_features(4, 7), np.flatnonzero(rows["kind"] == "image")
    plain = index.search(queries, 10)
    assert_same((plain.positions, plain.scores), brute_force(features, queries, 10, images))
    corrected = index.search(queries, 10, bias=True)
    widened = [np.column_stack([features, bias]), np.column_stack([queries, np.ones(4, np.float32)])]
    assert_same((corrected.positions, corrected.scores), brute_force(*widened, 10, images))
    np.testing.assert_array_equal(index.features([3]), features[3:4])
    with pytest.raises(DataError, match="lack hub_bias"):
        index.add(make_features(1), make_rows(1, 900))
    index.compact()
    assert index.has_bias and (index.search(queries, 10, bias=True).positions == corrected.positions).all()
    without = GalleryIndex.create(tmp_path / "j", CARD, DIM)
    without.add(features, rows)
    with pytest.raises(DataError, match="no hub_bias"):
        without.search(queries, 3, bias=True)
    with pytest.raises(DataError, match="which this index lacks"):
        without.add(make_features(1), make_rows(1, 900).assign(hub_bias=0.0))


def test_add_delete_replace_compact_are_versions(tmp_path):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    assert index.version == 0 and len(index) == 0 and (index.search(make_features(1), 3).positions == -1).all()
    index.add(make_features(10), make_rows(10))
    reader = GalleryIndex.open(tmp_path / "i")
    before = state_of(reader)
    index.delete(["i3", "i4"])
    index.add(make_features(2, 9), make_rows(4, 2).iloc[[0, 3]], replace=True)  # i2 and i5 anew
    assert index.version == 3 and len(index) == 8 and reader.version == 1
    assert state_of(reader) == before  # its version, whatever is written
    index.compact()
    assert state_of(reader) == before and index.version == 4
    wanted = {name: values for name, values in before.items() if name not in ("i3", "i4")}
    wanted |= dict(zip(("i2", "i5"), map(tuple, make_features(2, 9).tolist()), strict=True))
    assert state_of(index) == wanted == state_of(GalleryIndex.open(tmp_path / "i"))
    reader.delete(["i0"])  # a writer begins with the newest version
    assert len(reader) == 7 and "i3" not in state_of(reader)
    index.refresh()
    assert index.version == reader.version == 5
    index.add(make_features(1), make_rows(1))  # a deleted id is free again
    index.add(np.zeros((0, DIM)), make_rows(0))
    index.delete([])
    assert index.version == 6
    index.delete(list(state_of(index)))
    index.compact()
    assert len(index) == 0 and state_of(GalleryIndex.open(tmp_path / "i")) == {}
    index.add(make_features(3), make_rows(3))
    assert len(index) == 3
    assert len(list((tmp_path / "i").iterdir())) == 3  # index.json, vectors, rows: nothing is left over


def test_many_small_adds_stay_few_files(tmp_path):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    features, rows = make_features(80), make_rows(80)
    for n in range(80):
        index.add(features[n : n + 1], rows.iloc[n : n + 1])
    assert len(list((tmp_path / "i").iterdir())) <= index_flat.MOST_PARTS + 2
    reopened = GalleryIndex.open(tmp_path / "i")
    reopened.verify()
    assert reopened.rows(np.arange(80))["item_id"].tolist() == rows["item_id"].tolist()
    np.testing.assert_array_equal(reopened.features(np.arange(80)), features)


@pytest.fixture
def small_sketches(monkeypatch):
    """Few rows have a sketch, and it is asked, with as many candidates as rows."""
    monkeypatch.setattr(index_flat, "FROM", 30)
    monkeypatch.setattr(sketch, "WORTH", 0)


def test_a_sketch_is_made_when_there_is_enough(tmp_path, small_sketches, monkeypatch):
    monkeypatch.setattr(index_flat, "FROM", 500)
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    index.add(make_features(600), make_rows(600))
    before = state_of(index)
    assert index.search(make_features(1), 5, exact=False).exact  # nothing is learned yet
    index.compact()
    assert state_of(index) == before
    index.add(make_features(100, 5), make_rows(100, 600))
    index.delete(["i600"])
    reopened = GalleryIndex.open(tmp_path / "i")
    queries = reopened.features(reopened.find(["i1", "i601", "i698"]))
    hits = reopened.search(queries, 5, exact=False)
    assert not hits.exact and hits.positions[:, 0].tolist() == reopened.find(["i1", "i601", "i698"]).tolist()
    everything = reopened.search(queries, 650, exact=False)  # more than there are images
    assert (everything.positions >= 0).sum(axis=1).tolist() == [everything.allowed] * 3
    assert sketch_of(reopened).axes.shape == (DIM, 64)
    monkeypatch.setattr(sketch, "WORTH", 25)
    assert reopened.search(queries, 5, exact=False).exact  # of so few it would be slower


@pytest.mark.parametrize("pattern", ["vectors-*", "codes-*"])
@pytest.mark.parametrize("left", [None, 7])
def test_a_file_that_went_while_the_index_was_open_is_not_filled_with_zeros(tmp_path, small_sketches, pattern, left):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    index.add(make_features(50), make_rows(50))
    index.compact()
    (path,) = (tmp_path / "i").glob(pattern)
    before, data = index.version, path.read_bytes()
    path.unlink()
    if left:
        path.write_bytes(data[:left])
    with pytest.raises(DataError, match=path.name):
        index.add(make_features(5), make_rows(5, 50))
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    again = GalleryIndex.open(tmp_path / "i")
    again.verify()
    assert again.version == before and len(again) == 50


def test_rows_lie_by_kind_and_place_once_there_is_a_sketch(tmp_path, small_sketches):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    rows = make_rows(200)
    index.add(make_features(200), rows)
    index.compact()
    found = index.rows(np.arange(200))
    assert [kind for kind, _ in itertools.groupby(found["kind"])] in (["text", "image"], ["image", "text"])
    for kind in ("image", "text"):
        own = found[found["kind"] == kind]
        along = Columns.of(own).along
        assert (np.diff(along.astype(float)) >= 0).all() and own["lon"].isna().tolist() == sorted(own["lon"].isna())
        expected = [interleaved(lon, lat) for lon, lat in own[["lon", "lat"]].to_numpy()]
        assert along.tolist() == expected


def interleaved(lon: float, lat: float) -> int:
    """Bit by bit: 32 of each, the latitude's before the longitude's."""
    if np.isnan(lon) or np.isnan(lat):
        return 2**64 - 1
    x, y = (int((degrees / most + 1) * (2**31 - 1)) for degrees, most in ((lon, 180), (lat, 90)))
    return int("".join(a + b for a, b in zip(f"{y:032b}", f"{x:032b}", strict=True)), 2)


@pytest.mark.parametrize("exact", [True, False])
def test_a_bias_counts_in_a_sketch_as_it_does_without(tmp_path, small_sketches, exact):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    bias = np.random.default_rng(1).uniform(-0.5, 0, 120)
    index.add(make_features(100), make_rows(100).assign(hub_bias=bias[:100]))
    index.compact()
    index.add(make_features(20, 7), make_rows(20, 100).assign(hub_bias=bias[100:]))
    names = index.rows(np.arange(120))["item_id"]
    own = np.array([bias[int(name[1:])] for name in names])
    assert sketch_of(index) is not None
    query = make_features(3, 9)
    scores = query @ index.features(np.arange(120)).T + own
    scores[:, index.rows(np.arange(120))["kind"] != "image"] = -9
    hits = index.search(query, 5, exact=exact, bias=True)
    assert hits.exact == exact and hits.positions.tolist() == np.argsort(-scores, axis=1)[:, :5].tolist()


@pytest.mark.parametrize(("bias", "more"), [(True, 0), (None, 8), (None, 0), (1.5, 8)])
def test_a_manifest_whose_width_and_bias_disagree_is_damaged(tmp_path, bias, more):
    GalleryIndex.create(tmp_path / "i", CARD, DIM).add(make_features(5), make_rows(5))
    manifest = index_files.read_manifest(tmp_path / "i") | {"bias": bias, "width": DIM + more}
    index_files.write_json(tmp_path / "i" / index_files.NAME, {**manifest, "checksum": content_hash(manifest)})
    with pytest.raises(DataError, match="is damaged"):
        GalleryIndex.open(tmp_path / "i")


def test_kill_at_any_moment_leaves_a_whole_version(tmp_path):
    PROCESSES.set_forkserver_preload(["ucore.index", "pandas", "pyarrow.parquet", "hypothesis", "pytest"])
    GalleryIndex.create(tmp_path / "i", CARD, DIM)
    chance, sketched = random.Random(0), 0
    for _ in range(10):
        kill_while_changing(PROCESSES, tmp_path / "i", chance)
        index = GalleryIndex.open(tmp_path / "i")
        index.verify()
        sketched += sketch_of(index) is not None
        assert state_of(index) == list(expected_states(index.version))[-1]
    assert sketched
    with index_files.writing(tmp_path / "i") as manifest:  # what the killed left behind is gone
        there = {path.name for path in (tmp_path / "i").iterdir()}
    assert there == {"index.json", *index_files.named(manifest)}


def test_one_writer_and_readers_beside_it(tmp_path):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    index.add(make_features(20), make_rows(20))
    with index_files.writing(tmp_path / "i"):
        for act in (
            lambda: index.add(make_features(1), make_rows(1, 50)),
            lambda: index.delete(["i1"]),
            index.compact,
        ):
            with pytest.raises(UserError, match="Another process is writing"):
                act()
        assert len(GalleryIndex.open(tmp_path / "i").select()) == 16
    assert index.version == 1


def test_more_hits_than_can_be_held_are_refused(tmp_path):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    index.add(make_features(5), make_rows(5))
    assert index.search(make_features(2), 1000).positions.shape == (2, 1000)
    for k in (10**8, 10**12, 2**64):
        with pytest.raises(ConfigError, match="hits at once"):
            index.search(make_features(2), k)


@pytest.mark.parametrize("pattern", ["vectors-*", "rows-*", "gone-*", "axes-*", "codes-*", "index.json"])
@pytest.mark.parametrize("how", ["cut", "flip", "remove", "empty"])
def test_damaged_files_are_named(tmp_path, small_sketches, pattern, how):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    index.add(make_features(50), make_rows(50))
    index.compact()
    index.delete(["i7"])
    (path,) = (tmp_path / "i").glob(pattern)
    data = bytearray(path.read_bytes())
    if how == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"cut": data[: len(data) // 3], "flip": data, "empty": b""}[how])
    with pytest.raises(DataError) as told:
        GalleryIndex.open(tmp_path / "i")
    assert path.name in str(told.value)
    anew = "ucore index build" if (pattern, how) == ("index.json", "remove") else "remove the folder and build"
    assert anew in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("key", ["vectors", "gone", "sketch", "parts", "rows", "width", "bias", "card"])
def test_a_manifest_that_lacks_a_part_is_damaged_whatever_its_checksum(tmp_path, key):
    GalleryIndex.create(tmp_path / "i", CARD, DIM)
    manifest = index_files.read_manifest(tmp_path / "i")
    del manifest[key]
    index_files.write_json(tmp_path / "i" / index_files.NAME, {**manifest, "checksum": content_hash(manifest)})
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        GalleryIndex.open(tmp_path / "i")


def test_a_root_that_is_no_name_is_told_with_the_index(tmp_path):
    index = GalleryIndex.create(tmp_path / "i", {**CARD, "root": "a\0b"}, DIM)
    index.add(make_features(1), make_rows(1).assign(image="a.png"))
    with pytest.raises(DataError, match=rf"no folder; correct it in the data of the index {tmp_path / 'i'}"):
        index.image_path(0)


def test_large_files_are_checked_by_size_when_opened_and_wholly_by_verify(tmp_path, monkeypatch):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    for start in (0, 50):
        index.add(make_features(50), make_rows(50, start))
    (path,) = (tmp_path / "i").glob("vectors-*")
    data = bytearray(path.read_bytes())
    data[60 * 4 * DIM] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(index_files, "CHECKED", 100)
    index = GalleryIndex.open(tmp_path / "i")
    with pytest.raises(DataError, match=r"vectors-000001\.f32 is damaged: its checksum differs"):
        index.verify()
    path.write_bytes(data[:-4])
    with pytest.raises(DataError, match="bytes instead of"):
        GalleryIndex.open(tmp_path / "i")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop(columns="kind"), "lack the column(s) kind"),
        (lambda rows: rows.assign(domian="x"), "no column 'domian'; did you mean 'domain'"),
        (lambda rows: rows.assign(kind="picture"), "'picture' is no kind of item"),
        (lambda rows: rows.assign(item_id="twin"), "given twice: twin"),
        (lambda rows: rows.assign(item_id=["a", "", "c"]), "An item id is empty"),
        (lambda rows: rows.assign(item_id=["a", None, "c"]), "'item_id' misses values"),
        (lambda rows: rows.assign(item_id=[1, 2, 3]), "'item_id' holds values that are not string"),
        (lambda rows: rows.assign(image="../../etc/passwd"), "leaves the gallery's folder"),
        (lambda rows: rows.assign(image="/etc/passwd"), "leaves the gallery's folder"),
        (lambda rows: rows.assign(lon=[1.0, 181.0, 2.0]), "'i1' has lon 181"),
        (lambda rows: rows.assign(hub_bias=[0.0, np.nan, 1.0]), "not finite"),
    ],
)
def test_rows_that_cannot_be_right_are_refused(tmp_path, change, said):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    with pytest.raises(DataError) as told:
        index.add(make_features(3), change(make_rows(3)))
    assert said in str(told.value)
    assert index.version == 0


def test_features_that_cannot_be_right_are_refused(tmp_path):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    features = make_features(3)
    broken = features.copy()
    broken[1, 2] = np.nan
    for given_features, said in (
        (features * 2, "'i0' have norm 2, not 1 (3 such rows)"),
        (broken, "'i1' have values that are not finite (1 such rows)"),
        (features[:2], "3 rows of this index need (3, 8)"),
        (features[:, :4], "need (3, 8)"),
    ):
        with pytest.raises(DataError) as told:
            index.add(given_features, make_rows(3))
        assert said in str(told.value)
    index.add(features, make_rows(3))
    with pytest.raises(DataError, match=r"has these items already: i1, i2\. Delete them, or add with replace"):
        index.add(features, make_rows(3, 1))
    with pytest.raises(DataError, match="no item nobody; nothing was deleted"):
        index.delete(["i1", "nobody"])
    assert index.version == 1 and len(index) == 3


def test_questions_that_cannot_be_meant(tmp_path):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    index.add(make_features(10), make_rows(10))
    query = make_features(1)
    for ask, error, said in (
        (lambda: index.search(query, 0), ConfigError, "k is 0"),
        (lambda: index.search(query, 2.0), ConfigError, r"k is 2\.0"),
        (lambda: index.search(query, 3, kind="imge"), ConfigError, "kind 'imge'; did you mean 'image'"),
        (lambda: index.search(query, 3, Filter(domains="finnland")), ConfigError, "did you mean 'finland'"),
        (lambda: index.search(query[:, :5], 3), DataError, r"need.* \(Q, 8\)"),
        (lambda: index.search(query * np.nan, 3), DataError, "not finite"),
        (lambda: GalleryIndex.open(tmp_path), DataError, "There is no index in"),
        (lambda: GalleryIndex.create(tmp_path / "i", CARD, DIM), DataError, "There is an index in"),
        (lambda: GalleryIndex.create(tmp_path / "j", CARD, DIM, "falt"), ConfigError, "did you mean 'flat'"),
        (lambda: GalleryIndex.create(tmp_path / "j", CARD, 0), ConfigError, "dim is 0"),
        (lambda: index.require({**CARD, "fingerprint": "f2"}), ConfigError, "built with another encoder"),
    ):
        with pytest.raises(error, match=said):
            ask()
    index.require({**CARD, "root": "elsewhere"})
    assert index.search(query[0], 3).positions.shape == (1, 3)  # one query may come alone
    assert (index.search(query, 3, kind="segment").positions == -1).all()


def test_a_full_disk_is_told_and_changes_nothing(tmp_path, monkeypatch):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    index.add(make_features(10), make_rows(10))
    before = state_of(index)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for act in (lambda: index.add(make_features(5), make_rows(5, 10)), lambda: index.delete(["i1"]), index.compact):
        with monkeypatch.context() as patched:
            patched.setattr(index_files.os, "fsync", full)
            with pytest.raises(UserError, match="The disk is full"):
                act()
        assert index.version == 1 and state_of(GalleryIndex.open(tmp_path / "i")) == before
    index.add(make_features(5), make_rows(5, 10))
    GalleryIndex.open(tmp_path / "i").verify()
    assert len(index) == 15


def test_readers_see_whole_versions_while_a_writer_works(tmp_path):
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM)
    seen: list[tuple[int, dict]] = []

    def read():
        while not seen or seen[-1][0] < 24:
            reader = GalleryIndex.open(tmp_path / "i")
            seen.append((reader.version, state_of(reader)))

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        change(index, 24)
        reading.result(timeout=100)
    states = list(expected_states(24))
    assert len(seen) > 1 and all(state == states[version] for version, state in seen)


def test_another_format_is_told(tmp_path):
    GalleryIndex.create(tmp_path / "i", CARD, DIM)
    path = tmp_path / "i" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(DataError, match="format 99, this ucore reads 3"):
        GalleryIndex.open(tmp_path / "i")


def test_images_stay_in_their_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (tmp_path / "data" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    index = GalleryIndex.create(tmp_path / "i", {**CARD, "root": str(tmp_path / "data")}, DIM)
    index.add(make_features(2), make_rows(2).assign(image=["a.jpg", "link.jpg"]))
    assert index.image_path(0) == tmp_path / "data" / "a.jpg"
    with pytest.raises(DataError, match="leaves the folder"):
        index.image_path(1)
