"""A gallery embedded once, and what is found in it: against plain arrays, and for everything that is wrong."""

import json
import os
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from command import ucore
from makers_index import state_of
from makers_maps import make_places
from makers_search import save_checkpoint

from ucore.checkpoint import load_bank, load_checkpoint
from ucore.checkpoint_files import WEIGHTS
from ucore.embedding import build_index, known_items
from ucore.errors import CheckpointError, ConfigError, DataError, UserError
from ucore.explain import explain, explanation_html, plot_explanations
from ucore.features import embed_images, embed_texts
from ucore.files import file_hash, only_writer
from ucore.filters import Filter
from ucore.hubness import hub_bias
from ucore.index import GalleryIndex
from ucore.manifest import Manifest
from ucore.masks import Segments
from ucore.retrieve import Searcher
from ucore.segments import segment_dataset

QUERY = "a red round building stands at the left of green land ."


@pytest.fixture(scope="module")
def searcher(search_place) -> Searcher:
    return Searcher(search_place.index)


@pytest.fixture(scope="module")
def arrays(search_place):
    encoder, _ = load_checkpoint(search_place.checkpoint)
    manifest = search_place.manifest
    return embed_images(encoder, manifest, progress=False), embed_texts(encoder, manifest.texts[0], False), encoder


class TestText:
    def test_finds_what_plain_arrays_find(self, searcher, search_place, arrays):
        images, _, encoder = arrays
        text = embed_texts(encoder, [QUERY], False)
        temperature = searcher.temperature
        scores = (images @ text[0]) + hub_bias(images, load_bank(search_place.checkpoint).texts, temperature)
        order = np.argsort(-scores, kind="stable")[:5]
        answer = searcher.text(QUERY, k=5, group=False)
        assert [hit.sample_id for hit in answer.hits] == [
            search_place.manifest.frame["sample_id"][row] for row in order
        ]
        assert [hit.score for hit in answer.hits] == pytest.approx(scores[order], abs=1e-5)
        assert answer.hubs_corrected and answer.kind == "image" and answer.notes == ()
        plain = searcher.text(QUERY, k=1, correct_hubs=False)
        assert plain.hits[0].score == pytest.approx(float((images @ text[0]).max()), abs=1e-5)

    def test_filters_come_first(self, searcher):
        near = Filter(near=(60.17, 24.94), km=0.3)
        answer = searcher.text(QUERY, k=3, where=near)
        assert [hit.domain for hit in answer.hits] == ["finland"] * 3
        alone = searcher.text(QUERY, k=40, where=Filter(domains=("spain",)), group=False)
        assert len(alone.hits) == 12 and "there are only 12 images within the filter" in alone.notes[0]
        assert searcher.text(QUERY, k=10**20, group=False).hits == searcher.text(QUERY, k=36, group=False).hits
        nothing = searcher.text(QUERY, where=Filter(box=(0, 0, 1, 1)))
        assert nothing.hits == () and "there is no image within the filter" in nothing.notes[0]

    def test_finds_segments_with_their_tiles(self, searcher):
        answer = searcher.text(QUERY, k=4, find="segment")
        assert {hit.kind for hit in answer.hits} == {"segment"}
        assert all(hit.item_id.startswith(f"segment:{hit.sample_id}#") and 0 < hit.area <= 1 for hit in answer.hits)

    def test_a_long_query_is_cut_and_said(self, searcher):
        answer = searcher.text("red house " * 5000, k=1)
        assert "is cut" in answer.notes[0] and len(answer.query.split()) == 126

    @pytest.mark.parametrize(("given", "error"), [
        (dict(text=" "), "query is empty"), (dict(text="a", k=0), "at least one"),
        (dict(text="a", find="text"), "images or segments"),
        (dict(text="a", where=Filter(domains=("finlnd",))), "finland"),
        (dict(text="a", where=Filter(tags=("building=yse",))), "building=yes"),
    ])  # fmt: skip
    def test_what_cannot_be_meant_is_refused(self, searcher, given, error):
        with pytest.raises(ConfigError, match=error):
            searcher.text(**given)

    def test_late_interaction_wants_a_checkpoint_trained_with_segments(self, searcher):
        with pytest.raises(ConfigError, match="trained without segments"):
            searcher.text(QUERY, late=True)


class TestImage:
    def test_finds_captions_and_images_but_not_itself(self, searcher, search_place, arrays):
        images, texts, _ = arrays
        answer = searcher.sample("spain_003", k=3, find="text", correct_hubs=False)
        row = list(search_place.manifest.frame["sample_id"]).index("spain_003")
        best = search_place.manifest.texts[0][int(np.argmax(texts @ images[row]))]
        assert answer.hits[0].text == best and answer.kind == "text"
        others = searcher.sample("spain_003", k=35, group=False)
        assert "spain_003" not in {hit.sample_id for hit in others.hits} and len(others.hits) == 35

    def test_a_file_finds_itself(self, searcher, search_place):
        row = search_place.manifest.frame.iloc[7]
        answer = searcher.file(search_place.data / row["image"], k=1)
        assert answer.hits[0].sample_id == row["sample_id"] and answer.hits[0].score > 0.999

    def test_what_is_no_image_or_no_sample_is_told(self, searcher, tmp_path):
        (tmp_path / "x.png").write_bytes(b"no picture")
        with pytest.raises(DataError, match="Cannot read the image"):
            searcher.file(tmp_path / "x.png")
        with pytest.raises(DataError, match="did you mean 'spain_003'"):
            searcher.sample("spain_03")


def test_repetitions_are_one_hit_with_a_count(encoder_factory, tmp_path):
    manifest = make_places(tmp_path / "data", 5)
    frame = manifest.frame
    first, second = frame["image"][0], frame["image"][1]
    shutil.copy(tmp_path / "data" / first, tmp_path / "data" / second)
    frame.at[1, "captions"] = [text.upper() for text in frame["captions"][0]]
    manifest = Manifest(frame, manifest.root)
    checkpoint = save_checkpoint(tmp_path / "checkpoint", encoder_factory(), manifest)
    build_index(checkpoint, manifest, tmp_path / "index", progress=False)
    searcher = Searcher(tmp_path / "index")
    answer = searcher.text(QUERY, k=14)
    twice = [hit for hit in answer.hits if hit.times == 2]
    assert [{hit.sample_id, *(name.partition(":")[2] for name in hit.others)} for hit in twice] == [
        set(frame["sample_id"][:2])
    ]
    assert len(answer.hits) == 14 and len(searcher.text(QUERY, k=15).hits) == 14
    captions = searcher.sample(frame["sample_id"][0], k=45, find="text")
    assert sum(hit.times for hit in captions.hits) == 45 and sum(hit.times == 2 for hit in captions.hits) >= 3


class TestBuilding:
    def test_a_repeated_call_does_what_is_missing_and_drops_what_is_gone(self, search_place, tmp_path):
        manifest = search_place.manifest
        half = Manifest(manifest.frame.iloc[:20].reset_index(drop=True), manifest.root)
        index = build_index(search_place.checkpoint, half, tmp_path / "index", progress=False)
        assert len(index) == 20 + 60 and index.version == 2
        again = build_index(search_place.checkpoint, half, tmp_path / "index", progress=False)
        assert again.version == index.version
        later = Manifest(manifest.frame.iloc[5:].reset_index(drop=True), manifest.root)
        later.frame.at[0, "captions"] = ["another caption", *later.frame["captions"][0][1:]]
        grown = build_index(search_place.checkpoint, later, tmp_path / "index", progress=False)
        known = known_items(grown)
        assert len(known) == 31 + 93
        first = later.frame["sample_id"][0]
        assert set(grown.rows(grown.find([f"image:{first}", f"text:{first}#0"]))["text"]) == {"another caption"}
        whole = Searcher(search_place.index).text(QUERY, k=36, group=False)
        part = Searcher(grown).text(QUERY, k=36, group=False)
        kept = [hit for hit in whole.hits if f"image:{hit.sample_id}" in known]
        assert [hit.sample_id for hit in part.hits] == [hit.sample_id for hit in kept]
        assert [hit.score for hit in part.hits] == pytest.approx([hit.score for hit in kept], abs=1e-5)

    def test_other_pixels_tags_or_masks_under_an_old_name_are_noticed(self, search_place, tmp_path, monkeypatch):
        shutil.copytree(search_place.data, tmp_path / "data")
        manifest = Manifest(search_place.manifest.frame.iloc[:6].reset_index(drop=True), tmp_path / "data")
        names, pictures = list(manifest.frame["sample_id"]), list(manifest.frame["image"])
        masks = segment_dataset(manifest, "felzenszwalb", tmp_path / "masks", workers=1, progress=False)
        common = (search_place.checkpoint, manifest, tmp_path / "index")
        index = build_index(*common, masks, 2, progress=False)
        before, was = known_items(index), state_of(index)
        shutil.copy(tmp_path / "data" / pictures[5], tmp_path / "data" / pictures[1])
        with pytest.raises(DataError, match=f"Changed since they were segmented: {names[1]}"):
            build_index(*common, masks, 2, progress=False)
        masks = segment_dataset(manifest, "felzenszwalb", tmp_path / "masks", workers=1, progress=False)
        added = []
        add = GalleryIndex.add
        monkeypatch.setattr(GalleryIndex, "add", lambda *given: (added.extend(given[2]["item_id"]), add(*given)))
        index = build_index(*common, masks, 2, progress=False)
        own = {item for item in before if item.startswith((f"image:{names[1]}", f"segment:{names[1]}"))}
        assert len(own) > 1 and set(added) == own
        now = state_of(index)
        assert now[f"image:{names[1]}"] == pytest.approx(was[f"image:{names[5]}"], abs=1e-5)
        assert {item: now[item] for item in now.keys() - own} == {item: was[item] for item in was.keys() - own}
        (tmp_path / "data" / pictures[0]).rename(tmp_path / "away")
        with pytest.raises(DataError, match=f"images of {names[0]} are not in"):
            build_index(*common, masks, 2, progress=False)  # before anything is taken out
        (tmp_path / "away").rename(tmp_path / "data" / pictures[0])
        assert state_of(GalleryIndex.open(tmp_path / "index")) == now
        added.clear()
        manifest.frame.at[2, "tags"] = ["leisure=park"]
        index = build_index(*common, progress=False)  # without masks, segments stay; those of old pixels do not
        texts = {f"text:{names[2]}#{number}" for number in range(3)}
        assert set(added) == {f"image:{names[2]}", *texts}
        assert index.rows(index.find([f"image:{names[2]}"]))["tags"][0] == ["leisure=park"]
        assert not any(item.startswith(f"segment:{names[2]}") for item in known_items(index))
        added.clear()
        index = build_index(*common, masks, 1, progress=False)  # other segments: one an image
        assert {item.partition(":")[0] for item in added} == {"segment"} and len(added) == 6
        assert len(index.select("segment")) == 6

    def test_another_encoder_is_refused_by_name(self, search_place, encoder_factory, tmp_path):
        other = encoder_factory()
        other.new_heads()
        folder = save_checkpoint(tmp_path / "other", other, search_place.manifest)
        named = rf"weights {file_hash(search_place.checkpoint / WEIGHTS)}.*{file_hash(folder / WEIGHTS)}"
        with pytest.raises(ConfigError, match=f"built with another encoder .*{named}"):
            build_index(folder, search_place.manifest, search_place.index, progress=False)
        with pytest.raises(CheckpointError, match="other weights"):
            Searcher(search_place.index, folder)

    def test_a_checkpoint_or_index_that_is_not_there_is_told(self, search_place, tmp_path):
        moved = tmp_path / "moved"
        shutil.copytree(search_place.index, moved)
        assert Searcher(moved).checkpoint == search_place.checkpoint  # by its absolute name
        manifest = json.loads((moved / "index.json").read_text())
        assert manifest["card"]["checkpoint"] == "../checkpoint"
        with pytest.raises(DataError, match="no index"):
            Searcher(tmp_path)

    @pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody/x", 3, ["a"]])
    def test_a_card_that_names_what_no_folder_can_be_is_told(self, search_place, tmp_path, name):
        shutil.copytree(search_place.index, tmp_path / "index")
        index = GalleryIndex.open(tmp_path / "index")
        index.describe({**index.card, "checkpoint": name, "absolute_checkpoint": name})
        with pytest.raises(CheckpointError, match=r"not in .* any more"):
            Searcher(tmp_path / "index")

    def test_a_checkpoint_without_bank_searches_by_cosine_and_says_so(self, search_place, tmp_path):
        bare = tmp_path / "bare"
        shutil.copytree(search_place.checkpoint, bare)
        (bare / "bank.safetensors").unlink()
        build_index(bare, search_place.manifest, tmp_path / "index", progress=False)
        answer = Searcher(tmp_path / "index").text(QUERY, k=2)
        assert not answer.hubs_corrected and "no bank" in answer.notes[0]


class TestExplaining:
    def test_a_word_weighs_what_the_score_loses_without_it(self, searcher, arrays):
        _, _, encoder = arrays
        answer = searcher.text("red house", k=1)
        found = explain(searcher, answer, answer.hits[0])
        place = searcher.index.find([answer.hits[0].item_id])
        feature = searcher.index.features(place)[0]
        full, house, red = embed_texts(encoder, ["red house", "house", "red"], False) @ feature
        assert [word for word, _ in found.words] == ["red", "house"]
        assert [weight for _, weight in found.words] == pytest.approx([full - house, full - red], abs=1e-4)

    def test_the_only_word_cannot_be_weighed(self, searcher):
        answer = searcher.text("house", k=1)
        found = explain(searcher, answer, answer.hits[0])
        assert found.words == () and "no word can be weighed" in found.lines()[-1]
        assert "no word can be weighed" in explanation_html(searcher, found)
        drawn = plot_explanations(searcher, answer, [found]).axes[1].texts[0].get_text()
        assert "no word can be weighed" in " ".join(drawn.split())

    def test_a_formula_in_a_query_is_drawn_as_it_stands(self, searcher):
        answer = searcher.text(r"house $\foo$ sign", k=1)  # unknown to matplotlib's own formulae
        figure = plot_explanations(searcher, answer, [explain(searcher, answer, answer.hits[0])])
        assert r"$\foo$" in figure.get_suptitle()
        assert figure.png().startswith(b"\x89PNG")

    def test_segments_beyond_the_fortieth_are_seen(self, searcher, search_place, tmp_path):
        shutil.copytree(search_place.index, tmp_path / "index")
        index = GalleryIndex.open(tmp_path / "index")
        answer = searcher.text(QUERY, k=1)
        name = answer.hits[0].sample_id
        row = index.rows(index.find([f"segment:{name}#0"])).assign(item_id=f"segment:{name}#57")
        index.add(searcher.embed([QUERY]), row)
        own = Searcher(tmp_path / "index", search_place.checkpoint)
        assert explain(own, answer, answer.hits[0]).segments[0].number == 57

    def test_a_segment_that_was_found_is_the_one_that_is_shown(self, searcher, tmp_path):
        answer = searcher.text(QUERY, k=36, find="segment", group=False)
        hit = next(hit for hit in answer.hits[1:] if hit.sample_id == answer.hits[0].sample_id)
        found = explain(searcher, answer, hit)
        number = int(hit.item_id.rpartition("#")[2])
        assert (found.segments[0].number, found.segments[0].found) == (number, True)
        assert sum(part.found for part in found.segments) == 1 and f"found: #{number} " in found.lines()[2]
        index = searcher.index
        row = index.rows(index.find([hit.item_id])).iloc[0]
        rows, columns = np.nonzero(
            Segments.from_rles((row["mask_height"], row["mask_width"]), [row["mask"]]).masks()[0]
        )
        height, width = row["mask_height"], row["mask_width"]
        box = columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height
        assert hit.box == pytest.approx(box, abs=1e-4)
        west, south, east, north = shapely.from_wkb(row["footprint"]).bounds
        ground = (west + box[0] * (east - west), north - box[3] * (north - south),
                  west + box[2] * (east - west), north - box[1] * (north - south))  # fmt: skip
        assert hit.bounds == pytest.approx(ground, abs=1e-6)
        kept = geopandas.read_file(answer.save(tmp_path / "segments.geojson"))
        assert set(kept.geom_type) == {"Polygon"}
        assert kept.geometry[hit.rank - 1].bounds == pytest.approx(hit.bounds, abs=1e-6)

    def test_segments_come_best_first_and_are_drawn(self, searcher):
        answer = searcher.text(QUERY, k=2)
        found = [explain(searcher, answer, hit) for hit in answer.hits]
        scores = [part.score for part in found[0].segments]
        assert scores == sorted(scores, reverse=True) and len(found[0].masks) == len(scores) > 0
        assert plot_explanations(searcher, answer, found).png().startswith(b"\x89PNG")
        page = explanation_html(searcher, found[0])
        assert "<svg" in page and "building" in page

    def test_hostile_words_stay_words(self, searcher):
        answer = searcher.text("<script>alert(1)</script> house", k=1)
        page = explanation_html(searcher, explain(searcher, answer, answer.hits[0]))
        assert "<script>" not in page and "&lt;script&gt;" in page

    def test_an_answer_to_an_image_has_no_words(self, searcher):
        answer = searcher.sample("spain_003", k=1)
        with pytest.raises(ConfigError, match="no words"):
            explain(searcher, answer, answer.hits[0])

    def test_a_missing_image_is_a_named_placeholder(self, searcher, search_place, monkeypatch):
        monkeypatch.setattr(searcher, "root", Path("/nowhere"))
        answer = searcher.text(QUERY, k=1)
        found = explain(searcher, answer, answer.hits[0])
        assert "%3Csvg" in explanation_html(searcher, found)
        figure = plot_explanations(searcher, answer, [found])
        assert any("cannot be read" in text.get_text() for text in figure.axes[0].texts)


def test_the_engine_on_disk_gives_the_same_answers(search_place, searcher, tmp_path):
    pytest.importorskip("lancedb")
    build_index(search_place.checkpoint, search_place.manifest, tmp_path / "lance", engine="lance", progress=False)
    again = build_index(search_place.checkpoint, search_place.manifest, tmp_path / "lance", progress=False)
    assert len(again) == 36 + 108
    other, where = Searcher(tmp_path / "lance"), Filter(domains=("spain",))
    assert not other.exact and Searcher(tmp_path / "lance", exact=True).exact
    for given in ({}, {"where": where}):
        ours, theirs = (each.text(QUERY, k=5, **given).hits for each in (searcher, other))
        assert [hit.sample_id for hit in ours] == [hit.sample_id for hit in theirs]
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)


def test_a_build_that_was_stopped_gets_its_sketch_from_the_next(search_place, tmp_path, monkeypatch):
    for name, value in (("embedding.FROM", 30), ("index_flat.FROM", 30), ("embedding.AT_ONCE", 30)):
        monkeypatch.setattr(f"ucore.{name}", value)
    given = search_place.checkpoint, search_place.manifest, tmp_path / "index"

    def stop(maker):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("ucore.embedding._Maker.add_texts", stop)
        with pytest.raises(KeyboardInterrupt):
            build_index(*given, progress=False)
    index = GalleryIndex.open(tmp_path / "index")
    assert len(index) == 36 and index.note("changed") is None
    monkeypatch.setattr("ucore.embedding.REBUILT", 0.9)  # more than the texts that are missing are of all
    index = build_index(*given, progress=False)
    assert len(index) == 144 and index.note("changed") == 0 and list((tmp_path / "index").glob("codes-*"))
    version = index.version
    index.delete(["image:" + str(search_place.manifest.frame["sample_id"].iloc[0])])
    build_index(*given, progress=False)
    assert GalleryIndex.open(tmp_path / "index").version == version + 2  # too little for a new sketch
    assert index.note("changed") == 1
    assert "144 items" in ucore("index", "compact", tmp_path / "index").out and index.note("changed") == 0


def test_a_picture_whose_name_is_no_unicode_is_asked_with(search_place, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    shutil.copy(search_place.manifest.image_paths[0], path)
    found = ucore("search", "--image", path, "--index", search_place.index, "--k", 1)
    own = search_place.manifest.frame["sample_id"].iloc[0]
    assert found.status == 0 and own in found.out and "caf?.png" in found.out, found.err


def test_a_large_index_is_searched_approximately_where_asked_for(search_place, tmp_path, monkeypatch):
    for name, value in (("embedding.FROM", 30), ("index_flat.FROM", 30), ("sketch.WORTH", 0)):  # there are 144 rows
        monkeypatch.setattr(f"ucore.{name}", value)
    index = build_index(search_place.checkpoint, search_place.manifest, tmp_path / "index", progress=False)
    assert len(index) == 144 and index.search(np.ones((1, index.dim)) / index.dim**0.5, 1, exact=False).exact is False
    version = index.version
    again = build_index(search_place.checkpoint, search_place.manifest, tmp_path / "index", progress=False)
    assert again.version == version  # nothing has changed: no sketch is made anew
    whole, some = Searcher(index), Searcher(index, exact=False)
    assert whole.exact and not whole.text(QUERY, k=3).notes
    answer = some.text(QUERY, k=3)
    assert len(answer.hits) == 3 and "Searched approximately" in answer.notes[0]
    assert answer.hits[0] == whole.text(QUERY, k=3).hits[0]
    typed = ucore("search", QUERY, "--index", tmp_path / "index", "--knn", "approximate")
    assert typed.status == 0 and "Searched approximately" in typed.out, typed.err
    assert "approximately" not in ucore("search", QUERY, "--index", tmp_path / "index").out
    told = json.loads(ucore("index", "info", tmp_path / "index", "--recall").out)
    assert told["approximate_recall@10"] == {"percent": 100.0, "captions": 108}


class TestMoving:
    """What a repeated build finds moved is written down anew; what cannot be is told before anything is embedded."""

    @pytest.fixture
    def copies(self, search_place, tmp_path):
        for name, place in (("index", search_place.index), ("data", search_place.data),
                            ("checkpoint", search_place.checkpoint)):  # fmt: skip
            shutil.copytree(place, tmp_path / name)
        return tmp_path

    @pytest.mark.parametrize("engine", ["flat", "lance"])
    def test_checkpoint_images_and_dataset_are_those_of_the_last_build(self, search_place, copies, engine):
        if engine == "lance":
            pytest.importorskip("lancedb")
        small = Manifest(search_place.manifest.frame.iloc[:4].reset_index(drop=True), search_place.data)
        build_index(search_place.checkpoint, small, copies / engine, engine=engine, progress=False)
        moved = small.frame.assign(source="simulated", domain="mars")
        index = build_index(copies / "checkpoint", Manifest(moved, copies / "data"), copies / engine, progress=False)
        again = Searcher(copies / engine)
        assert again.simulated and again.checkpoint == copies / "checkpoint" and again.root == copies / "data"
        assert again.index.card["dataset"] == "mars" == index.card["dataset"]
        version = index.version
        same = build_index(copies / "checkpoint", Manifest(moved, copies / "data"), copies / engine, progress=False)
        assert same.card == index.card and (engine == "lance" or same.version == version)

    def test_what_makes_a_build_impossible_is_told_first(self, search_place, copies, monkeypatch):
        monkeypatch.setattr("ucore.embedding.Contents", None)  # which hashes every image
        given = (search_place.checkpoint, search_place.manifest, copies / "index")
        with pytest.raises(ConfigError, match="of the engine flat; leave --engine out"):
            build_index(*given, engine="lance", progress=False)
        next((copies / "index").glob("vectors-*")).write_bytes(b"")
        with pytest.raises(DataError, match="remove the folder and build the index again"):
            build_index(*given, progress=False)

    def test_two_builds_at_once_are_told_as_such(self, search_place, copies):
        (copies / "index" / ".building").mkdir()
        with only_writer(copies / "index" / ".building"), pytest.raises(UserError, match="is building"):
            build_index(search_place.checkpoint, search_place.manifest, copies / "index", progress=False)
        build_index(search_place.checkpoint, search_place.manifest, copies / "index", progress=False)
        assert not (copies / "index" / ".building").exists()


def test_a_country_that_was_taken_out_is_unknown(search_place, tmp_path):
    shutil.copytree(search_place.index, tmp_path / "index")
    index = GalleryIndex.open(tmp_path / "index")
    rows = index.rows(np.concatenate([index.select(kind) for kind in ("image", "text", "segment")]))
    index.delete(rows.loc[rows["domain"] == "spain", "item_id"])
    for where, told in ((Filter(domains=("spain",)), "finland"), (Filter(tags=("leisure=swimming_pool",)), "tag")):
        with pytest.raises(ConfigError, match=told) as refused:
            index.select("image", where)
        assert "did you mean 'spain'" not in str(refused.value)
    assert len(index.select("image", Filter(tags=("building",)))) == 24


def test_the_index_is_a_plain_gallery_index(search_place):
    index = GalleryIndex.open(search_place.index)
    counts = {kind: len(index.select(kind)) for kind in ("image", "text", "segment")}
    assert counts["image"] == 36 and counts["text"] == 108 and counts["segment"] > 36
    assert index.card["name"] == "lite0-minilm" and index.card["simulated"] is False
