"""The box does what is typed, drawn and clicked, and shows what is wrong in one sentence."""

import base64
import json
import re

import numpy as np
import pytest

from ucore.errors import ConfigError, DataError
from ucore.index import GalleryIndex
from ucore.retrieve import Searcher
from ucore.search_box import SearchBox


@pytest.fixture
def box(search_place) -> SearchBox:
    return SearchBox(Searcher(search_place.index), ["a red house"], k=6)


def sent(box: SearchBox) -> dict:
    """What the map reads."""
    return json.loads(base64.b64decode(re.search('data-update="(.*?)"', box.link.value)[1]))


def say(to: SearchBox, /, **message) -> None:
    """What the map writes."""
    to.message.value = json.dumps(message)


def test_nothing_is_asked_at_first(box):
    assert "36 images" in box.status.value and sent(box)["results"] == []
    with pytest.raises(DataError, match="Nothing was asked"):
        box.figure()


def test_typing_searches_and_the_map_hears_of_it(box):
    box.text_box.value = "a red house"
    assert "6 results for “a red house”" in box.status.value
    update = sent(box)
    assert [result["rank"] for result in update["results"]] == [1, 2, 3, 4, 5, 6]
    assert len(base64.b64decode(update["scores"])) == 36 and all(result["picture"] for result in update["results"])
    box.domain_box.value = "spain"
    assert {result["domain"] for result in sent(box)["results"]} == {"spain"}
    assert list(base64.b64decode(sent(box)["scores"])).count(255) == 24
    box.tag_box.value = "natural=wood"
    assert "there is no image within the filter" in box.status.value
    box.tag_box.options = (*box.tag_box.options, "sport=table tennis")
    box.tag_box.value = "sport=table tennis"
    where = box.where()
    assert where is not None and where.tags == ("sport=table tennis",)
    box.tag_box.value = "natrual"
    assert 'role="alert"' in box.status.value and "natural" in box.status.value


def test_a_caption_marks_the_images_it_was_written_for(box, search_place):
    caption = search_place.manifest.frame["captions"][20][2]
    box.ask(caption, k=36)
    own = search_place.manifest.frame["sample_id"][20]
    assert box.truth == {own} and "caption of 1 image(s), 1 of them found" in box.status.value
    assert [result["id"] for result in sent(box)["results"] if result["right"]] == [own]


def test_clicks_and_drawings_on_the_map(box):
    box.ask("a red house")
    say(box, like="finland_001", count=1)
    assert "image finland_001" in box.status.value
    say(box, read="finland_001", count=2)
    assert box.why.value.count("<li>") == 5
    box.ask("a red house")
    say(box, why=sent(box)["results"][0]["item"], count=3)
    assert "Why " in box.why.value
    say(box, box=[24.0, 60.0, 25.0, 61.0], count=4)
    assert {result["domain"] for result in sent(box)["results"]} == {"finland"}
    ring = [[-1, 39], [0, 39], [0, 40], [-1, 39]]
    say(box, polygon=ring, count=5)
    assert {result["domain"] for result in sent(box)["results"]} <= {"spain"}
    say(box, polygon=[[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]], count=6)
    assert 'role="alert"' in box.status.value and "crosses itself" in box.status.value
    say(box, box=None, count=7)
    assert len({result["domain"] for result in sent(box)["results"]}) >= 1 and 'role="status"' in box.status.value


@pytest.mark.parametrize("message", ["", "no json", "[1]", '{"like": 3}', '{"why": "nothing"}', '{"box": "x"}'])
def test_what_a_page_should_not_say_does_no_harm(box, message):
    box.ask("a red house")
    box.message.value = message
    assert box.answer is None or len(box.answer.hits) == 6


def test_from_code_an_error_is_raised_and_shown(box):
    with pytest.raises(ConfigError, match="query is empty"):
        box.ask(" ")
    assert "query is empty" in box.status.value


def test_the_static_twins(box):
    box.ask("a <b>red</b> house", domain="finland")
    assert box.figure().png().startswith(b"\x89PNG")
    assert "&lt;b&gt;" in box.status.value
    assert box.map().get_root().render().count("ucoreSearch(") == 2  # the function and its call


def test_a_gallery_without_places_shows_its_results_as_cards(search_place, tmp_path):
    placed = GalleryIndex.open(search_place.index)
    positions = np.concatenate([placed.select("image"), placed.select("text")])
    rows = placed.rows(positions).assign(lon=np.nan, lat=np.nan, footprint=b"")
    rows.loc[rows["kind"] == "image", "text"] = "<i>red</i> house"
    index = GalleryIndex.create(tmp_path / "i", placed.card, placed.dim)
    index.add(placed.features(positions), rows)
    box = SearchBox(Searcher(index), k=4)
    assert "no map" in box.map_view.value and box.cards.children == () and "click a tile" not in box.status.value
    box.ask("a red house")
    hits = [card.children for card in box.cards.children]
    assert [hit[0].value.count("data:image/jpeg") for hit in hits] == [1] * 4
    assert all("<i>" not in hit[0].value and "&lt;i&gt;red" in hit[0].value for hit in hits)
    like, why = hits[1][1:]
    why.click()
    assert "Why " in box.why.value
    like.click()
    assert f"image {box._query[1]}" in box.status.value and box._query == ("sample", box._query[1])
    assert all(len(card.children) == 2 for card in box.cards.children)  # a picture has no words to explain


def test_as_many_results_as_there_is_room_for(box):
    with pytest.raises(ConfigError, match="from 1 to 100 results"):
        box.ask("a red house", k=500)


def test_what_an_image_finds_has_no_words_to_ask_about(box):
    for ask, said in (("ask", "text"), ("like", "image")):
        getattr(box, ask)("a red house" if ask == "ask" else "spain_001")
        code = re.search('data-update="([^"]+)"', box.link.value)
        assert code and json.loads(base64.b64decode(code.group(1)))["asked"] == said
