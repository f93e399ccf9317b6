"""Tags named, denied and made up: hand-made cases whose answer a person can read off."""

import pytest

from ucore.compose import TagComposer
from ucore.grounding import find_mentions, grounding, summarise
from ucore.things import covering_names, names_of, plural, thing_tags

TAGS = ["building=house", "highway=residential", "landuse=grass", "natural=water"]


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("building=residential", "Houses stand in rows."),
        ("building=residential", "an apartment block"),
        ("building=house", "many red roofs"),
        ("building=yes", "villas among trees"),
        ("highway=residential", "a road runs through"),
        ("highway=primary", "a wide boulevard"),
        ("natural=water", "a small pond"),
        ("natural=water", "the lakes"),
        ("water=pond", "a dark lake"),
        ("waterway=stream", "a canal crosses"),
        ("landuse=grass", "lawns"),
        ("landuse=farmland", "ploughed fields"),
        ("landuse=residential", "a quiet neighbourhood"),
        ("natural=tree", "a tree-lined street"),
        ("amenity=parking", "a car park"),
        ("amenity=fire_station", "two fire stations"),
        ("amenity=place_of_worship", "a mosque"),
        ("leisure=pitch", "a football field"),
        ("railway=rail", "railway tracks"),
        ("railway=rail", "a train station"),
        ("aeroway=runway", "an airport"),
        ("barrier=wall", "walls"),
        ("building=apartments", "blocks of flats"),
    ],
)
def test_a_thing_has_many_names(tag, text):
    assert grounding(text, [tag]).mentioned == (tag,)


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("leisure=park", "a car park and a solar park"),
        ("natural=water", "a water tower"),
        ("landuse=farmland", "a wide field of view"),
        ("building=house", "an apartment block"),
        ("natural=tree", "grass"),
        ("highway=residential", "a residential area"),
        ("waterway=river", "a road shaped like a river"),
        ("building=house", "there is no house"),
        ("leisure=playground", ""),
    ],
)
def test_what_is_not_a_mention(tag, text):
    assert grounding(text, [tag]).missing == (tag,)


def test_recall_is_the_share_of_tags_that_name_things():
    tags = [*TAGS, "name=Lake View", "surface=asphalt", "building=no", "building=house", "nonsense"]
    result = grounding("Houses along a road; a river bends.", tags)
    assert result.mentioned == ("building=house", "highway=residential", "natural=water")
    assert result.missing == ("landuse=grass",)
    assert result.recall == 0.75
    assert grounding("a house", []).recall is None
    assert grounding("", TAGS).recall == 0


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("There are no buildings in the image.", {"building=house"}),
        ("No houses.", {"building=house"}),
        ("No buildings, roads or water are visible.", {"building=house", "highway=residential", "natural=water"}),
        ("grass without any roads or buildings in this satellite image", {"building=house", "highway=residential"}),
        ("The scene is devoid of buildings", {"building=house"}),
        ("no buildings, and trees line the road", {"building=house"}),
        ("There are no buildings on the left, but houses on the right.", set()),
        ("no buildings near the road", set()),
        ("no tall buildings", set()),
        ("no building materials", set()),
        ("almost no roads", set()),
        ("few or no buildings", set()),
        ("no apartment blocks", set()),  # there may still be houses
        ("no farmland", set()),
        ("The image does not show any houses.", {"building=house"}),
        ("There aren't any houses or roads in this image.", {"building=house", "highway=residential"}),
        ("Houses and roads are absent.", {"building=house", "highway=residential"}),
        ("Water cannot be seen in the picture.", {"natural=water"}),
        ("Zero houses are visible.", {"building=house"}),
        ("There isn\u2019t a house to be seen.", {"building=house"}),
        ("Houses, roads, and water are absent.", {"building=house", "highway=residential", "natural=water"}),
        ("The image shows dense houses, and water is absent.", {"natural=water"}),
        ("Houses line the road, and water is not visible.", {"natural=water"}),
        ("Houses line the road and lakes are absent.", set()),
        ("Water can't be seen in the picture.", {"natural=water"}),
        ("A house that is not a hotel", set()),
        ("Houses that do not have roads in front of them", set()),
        ("Houses are not visible from the road.", set()),
    ],
)
def test_denials_of_the_whole_picture_contradict(text, denied):
    assert set(grounding(text, TAGS).contradicted) == denied


@pytest.mark.parametrize(
    "text",
    [
        "The image does not show any houses.", "There are no large houses here.", "Houses are absent.", "zero houses",
        "We don't see any houses.", "The houses are not visible from above.",
    ],
)  # fmt: skip
def test_what_is_denied_is_not_mentioned(text):
    assert grounding(text, TAGS).mentioned == ()


def test_what_lies_around_may_be_absent():
    assert grounding("no river", ["building=house"], ["waterway=river"]).contradicted == ()


def test_distinctive_things_need_support_when_tags_tell_enough():
    text = "A stadium, an airport and a river beside a car park; no harbour."
    assert grounding(text, TAGS).unsupported == ("airport", "stadium")  # natural=water may be a river
    assert grounding(text, TAGS, ["aeroway=aerodrome"]).unsupported == ("stadium",)
    assert grounding(text, TAGS[:2]).unsupported == ()  # too few tags to know
    assert not grounding(text, TAGS).holds
    assert grounding("houses, a pool, a court and a track", TAGS).holds  # usual, or of two meanings


def test_mentions_come_in_order_and_the_longest_first():
    found = find_mentions("Tennis courts near the football field, no trees; blocks of flats.")
    assert [(mention.phrase, mention.denied) for mention in found] == [
        ("tennis court", ""),
        ("football field", ""),
        ("tree", "whole"),
        ("block of flats", ""),
    ]


def test_tags_are_data_whatever_they_hold():
    tags = ["building=\x00house\n", "=", "", "a=b=c", "amenity=" + "x" * 5000, "amenity=.*(", "highway=residential"]
    assert "highway=residential" in grounding("a road and a house", tags).mentioned
    assert grounding("word " * 5000, tags).recall == 0


def test_a_sum_of_many():
    results = [grounding("a house", TAGS), grounding("no houses", TAGS), grounding("a stadium", []), grounding("", [])]
    assert summarise(results) == {
        "texts": 4,
        "with_tags": 2,
        "tag_recall": 0.125,
        "contradicting": 0.25,
        "unsupported": 0.0,
    }
    assert summarise([])["tag_recall"] is None


def test_names_of_tags():
    assert {"lake", "pond", "river", "water"} <= names_of("natural=water")
    assert "apartment" not in names_of("building=house")
    assert "building" not in names_of("landuse=residential")
    assert covering_names("building=house") >= {"house", "building"}
    assert thing_tags(["name=x", "building=yes", "building=yes"]) == ["building=yes"]
    assert [plural(noun) for noun in ("house", "church", "factory", "bay", "grass")] == [
        *("houses", "churches", "factories", "bays", "grasses")
    ]


def test_sentences_made_of_tags_are_grounded_in_them():
    tags = ["amenity=school", "building=house", "highway=residential", "railway=rail", "natural=tree"]
    text = TagComposer(max_words=60).compose(tags, ["leisure=stadium"], "a")
    result = grounding(text, tags, ["leisure=stadium"])
    assert result.holds
    assert result.recall is not None and result.recall >= 0.8
