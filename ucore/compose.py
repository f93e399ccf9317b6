"""Short sentences from OpenStreetMap tags alone: no model, no picture, the same for the same tags.

TagComposer().compose(["amenity=school", "building=house", "highway=residential"], ["leisure=park"], "nepal-0007")
"A school and houses beside a street; a park lies nearby."

Tags are what strangers typed. Only known keys, with values that look like OpenStreetMap's (a few words of letters),
reach a sentence. Tags do not count, so no sentence names a number.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ucore.errors import ConfigError
from ucore.files import content_hash
from ucore.geo import GENERIC, SMALL
from ucore.kinds import KINDS, WAY, kind_of
from ucore.osm import KEYS, clean_text

VERSION = 1  # of the sentences; part of the key under which they are stored
MOST_WORDS_OF_A_VALUE, MOST_SIGNS_OF_A_VALUE = 4, 40
MOST_THINGS, MOST_WAYS, MOST_AROUND = 3, 2, 2

# Where the painter's kind is another thing to a reader, and what no kind is drawn for. "": says too little.
_WORDS = {
    "landuse": {"grass": "grass", "farmland": "farmland", "village_green": "a village green",
        "recreation_ground": "a recreation ground", "retail": "a shopping area", "railway": "railway land",
        "garages": "garages", "greenfield": "open land", "brownfield": "waste land", "landfill": "a landfill",
        "civil": ""},
    "natural": {"sand": "sand", "scrub": "scrub", "heath": "heath", "grassland": "grassland",
        "bare_rock": "bare rock", "tree": "trees", "tree_row": "a row of trees", "coastline": "the coast",
        "water": "water", "wetland": "wetland"},
    "leisure": {"garden": "a garden", "golf_course": "a golf course", "pitch": "a sports field",
        "common": "common land", "sports_centre": "a sports centre", "track": "a running track"},
    "amenity": {"fuel": "a fuel station", "place_of_worship": "a place of worship", "townhall": "a town hall",
        "public_building": "a public building", "grave_yard": "a graveyard", "grit_bin": "", "toilets": "",
        "shelter": "a shelter", "club": "", "doctors": "a doctor's office"},
    "tourism": {"attraction": "", "yes": ""},
    "historic": {"building": "an old building", "citywalls": "city walls", "ruins": "ruins"},
    "man_made": {"works": "a factory", "silo": "a silo"},
    "power": {"line": "a power line", "minor_line": "a power line", "plant": "a power plant", "generator": "",
        "tower": "a power pylon"},
    "building": {"roof": "a roofed area", "church": "a church", "garages": "garages", "public": "a public building",
        "construction": "a building under construction", "industrial": "an industrial building",
        "commercial": "a commercial building", "residential": "residential buildings",
        "university": "a university building"},
    "highway": {"service": "a service road", "cycleway": "a cycle path", "steps": "steps",
        "pedestrian": "a pedestrian street", "platform": "a platform", "construction": "a road under construction",
        "turning_circle": ""},
    "railway": {"tram": "a tram line", "station": "a train station", "platform": "a platform",
        "disused": "an unused railway line", "construction": "a railway line under construction"},
    "waterway": {"stream": "a stream", "canal": "a canal"},
    "bridge": {"yes": "a bridge"},
    "seamark:type": {"small_craft": "boats"},
    "place": {"square": "a square"},
    "junction": {"roundabout": "a roundabout"},
}  # fmt: skip
WORDS = {f"{key}={value}": text for key, of_key in _WORDS.items() for value, text in of_key.items()}
WORSHIP = {"christian": "a church", "muslim": "a mosque", "jewish": "a synagogue"}
WORSHIP |= {"buddhist": "a temple", "hindu": "a temple"}
# One is rarely alone, and tags do not count: these are named in the plural.
PLURAL = {"house", "terrace", "apartments", "building", "garage", "shed", "greenhouse", "tree", "warehouse"}
GROUND = ("residential", "commercial", "retail", "industrial", "forest", "orchard", "vineyard", "farmland", "military")
WAYS = ("highway", "railway", "waterway")
NAMED_BY_VALUE = (
    *("amenity", "leisure", "tourism", "historic", "aeroway", "man_made", "power", "railway", "waterway", "water"),
    *("natural", "barrier"),
)
# Mostly a business inside a building: said where there is room, after all that is seen from above.
INSIDE = {
    *("restaurant", "cafe", "bar", "pub", "fast food", "ice cream", "nightclub", "bank", "pharmacy", "doctors"),
    *("dentist", "clinic", "taxi", "post office", "social facility", "embassy", "hotel", "hostel", "guest house"),
    *("apartment", "gallery", "museum", "library", "arts centre", "community centre", "cinema", "driving school"),
    *("biergarten", "police", "veterinary", "car rental", "nursing home", "shelter", "viewpoint"),
}
USUAL, UNSEEN = 0.8, 0.05  # weights beside those of `kinds.KINDS`


class Phrase(NamedTuple):
    """What a tag is called in a sentence, and how much it deserves to be in it."""

    text: str  # with its article
    weight: float
    role: str  # thing, way or ground


def is_plural(text: str) -> bool:
    """Whether a phrase with its article takes a plural verb: "houses", but neither "a street of shops" nor "grass"."""
    return text.endswith("s") and not text.endswith("ss") and not text.startswith(("a ", "an ", "the "))


def phrases(tags: Iterable[str]) -> list[Phrase]:
    """What a sentence may say of "key=value" `tags`, the most remarkable first, each once; [] for nothing usable."""
    pairs = list(dict.fromkeys(pair for pair in map(_pair, tags) if pair))
    joint = _joint_kinds(pairs)
    said = {pair for name in joint for pair in KINDS[name].tags.items()}
    found = [_of_kind(name) for name in joint]
    faiths = [value for key, value in pairs if key == "religion"]
    for key, value in pairs:
        if (key, value) == ("amenity", "place_of_worship") and len(faiths) == 1 and faiths[0] in WORSHIP:
            found.append(Phrase(WORSHIP[faiths[0]], KINDS["church"].weight, "thing"))
        elif (key, value) not in said:
            found += _phrase(key, value)
    keys = [key for key, _ in pairs]
    vague = {"buildings"} if keys.count("building") > 1 else set()
    vague |= {"water"} if "water" in keys or "waterway" in keys else set()
    vague |= {f"{phrase.text} building" for phrase in found}  # beside "a school"
    distinct: dict[str, Phrase] = {}
    for phrase in sorted(found, key=lambda phrase: (-phrase.weight, phrase.text)):
        distinct.setdefault(phrase.text, phrase)  # a street may be there as residential and as unclassified
    return [phrase for phrase in distinct.values() if phrase.text not in vague]


def _pair(tag: str) -> tuple[str, str] | None:
    """(key, value) of a tag that may be said, None for any other."""
    key, _, value = (clean_text(part) for part in tag.partition("="))
    name, words = f"{key}={value}", re.split("[_ -]", value)
    if len(value) > MOST_SIGNS_OF_A_VALUE or len(words) > MOST_WORDS_OF_A_VALUE or value == "no":
        return None
    if not all(word.isalpha() and word.islower() for word in words) or (name in SMALL and name not in WORDS):
        return None
    return (key, value) if key in KEYS or name in WORDS or kind_of({key: value}) else None


def _joint_kinds(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Kinds that several tags make together (a pitch and tennis: a tennis court), all of whose tags are there."""
    there = set(pairs)
    return [name for name, kind in KINDS.items() if len(kind.tags) > 1 and there >= set(kind.tags.items())]


def _of_kind(name: str) -> Phrase:
    kind = KINDS[name]
    role = "way" if kind.layer == WAY and name != "bridge" else "ground" if name in GROUND else "thing"
    return Phrase(kind.plural if name in PLURAL else _a(kind.noun), kind.weight or USUAL, role)


def _phrase(key: str, value: str) -> list[Phrase]:
    """The phrase of one tag, none where it would say too little."""
    tag, words = f"{key}={value}", re.sub("[_-]", " ", value)
    name = kind_of({key: value})
    if tag in WORDS:
        text = WORDS[tag]
    elif tag in GENERIC and tag != "building=yes":
        text = ""
    elif name == "church":  # the painter's kind for every house of prayer
        text = _a(words)
    elif name and (name != "building" or value == "yes"):
        text = _of_kind(name).text
    elif key == "landuse" or key == "military":
        text = _a(f"{words} area" if key == "landuse" else "military area")
    elif key in ("building", "shop", "office"):
        text = _a(f"{words} {key}")
    else:
        text = "a road" if key == "highway" else _a(words) if key in NAMED_BY_VALUE else ""
    if not text:
        return []
    weight = KINDS[name].weight if name else 0.0
    if key in WAYS and not value.endswith(("station", "platform")):
        return [Phrase(text, weight or KINDS["street"].weight, "way")]
    if key in ("shop", "office", "barrier") or words in INSIDE:
        return [Phrase(text, UNSEEN, "thing")]
    return [Phrase(text, weight or USUAL, "ground" if key == "landuse" and value in GROUND else "thing")]


def _a(noun: str) -> str:
    if noun.endswith("s") and not noun.endswith(("ss", "us")):
        return noun  # a value in the plural: "toll booths"
    # "university" and "used" begin with a consonant to the ear.
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith(('uni', 'use', 'eu')) else 'a'} {noun}"


# --- sentences --------------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """The phrases chosen for one sentence."""

    things: list[str] = field(default_factory=list)
    ways: list[str] = field(default_factory=list)
    ground: list[str] = field(default_factory=list)  # one at most
    around: list[str] = field(default_factory=list)

    def settled(self) -> "Parts":
        """The same with something to begin with: where there is no thing, ways or the ground take its place."""
        if self.things:
            return self
        return Parts(self.ways, [], self.ground, self.around) if self.ways else Parts(self.ground, [], [], self.around)


def listed(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _verb(items: Sequence[str], one: str, many: str) -> str:
    return many if len(items) > 1 or is_plural(items[0]) else one


def _before(word: str, items: Sequence[str]) -> str:
    return f" {word} {listed(items)}" if items else ""


def _beside(parts: Parts) -> str:
    text = f"{listed(parts.things)}{_before('beside', parts.ways)}{_before('in', parts.ground)}"
    return f"{text}; {listed(parts.around)} {_verb(parts.around, 'lies', 'lie')} nearby" if parts.around else text


def _inside(parts: Parts) -> str:
    verb = "are" if is_plural(parts.things[0]) else "is"
    place = f"in {parts.ground[0]} there {verb}" if parts.ground else f"there {verb}"
    text = f"{place} {listed(parts.things)}{_before('by', parts.ways)}"
    return f"{text}, with {listed(parts.around)} not far away" if parts.around else text


def _passing(parts: Parts) -> str:
    if not parts.ways:
        return _from_above(parts)
    verb = _verb(parts.ways, "passes", "pass")
    text = f"{listed(parts.ways)} {verb} {listed(parts.things)}{_before('in', parts.ground)}"
    return text + _before(", close to", parts.around).replace(" ,", ",")


def _view(parts: Parts) -> str:
    text = f"an aerial view of {listed([*parts.things, *parts.ways])}{_before('in', parts.ground)}"
    return text + _before(", near", parts.around).replace(" ,", ",")


def _from_above(parts: Parts) -> str:
    text = f"seen from above: {listed(parts.things)}{_before('along', parts.ways)}{_before('in', parts.ground)}"
    return f"{text}; nearby {_verb(parts.around, 'is', 'are')} {listed(parts.around)}" if parts.around else text


SENTENCES: tuple[Callable[[Parts], str], ...] = (_beside, _inside, _passing, _view, _from_above)
NEARBY = ("a place near", "a place close to", "land not far from")


@dataclass(frozen=True)
class TagComposer:
    """Sentences from tags, at most `max_words` long. seed: other wordings of the same content."""

    max_words: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if not 8 <= self.max_words <= 200:
            raise ConfigError(f"max_words is {self.max_words}; it must be from 8 to 200.")

    def key(self) -> str:
        """16 hex digits that change with the settings and with the wording."""
        return content_hash("tags", VERSION, self.max_words, self.seed)

    def compose(self, tags: Sequence[str], surrounding_tags: Sequence[str] = (), sample_id: str = "") -> str:
        """One sentence of "key=value" `tags` and of those around the place; "" where they hold nothing to say.

        The wording, not the content, is chosen by `sample_id`. What is in the place is not repeated around it.
        """
        here = phrases(tags)
        names = {phrase.text for phrase in here}
        around = [phrase.text for phrase in phrases(surrounding_tags) if phrase.text not in names]
        draw = zlib.crc32(f"{self.seed}:{sample_id}".encode())
        if not here:
            return _sentence(f"{NEARBY[draw % len(NEARBY)]} {listed(around[:MOST_AROUND])}") if around else ""
        write = SENTENCES[draw % len(SENTENCES)]
        parts, text = Parts(), ""
        for slot, phrase in _turns(here, around):
            getattr(parts, slot).append(phrase)
            longer = write(parts.settled()) if parts.things or parts.ways or parts.ground else ""
            if text and len(longer.split()) > self.max_words:
                getattr(parts, slot).pop()
            else:
                text = longer
        return _sentence(text)


def _turns(here: list[Phrase], around: list[str]) -> list[tuple[str, str]]:
    """(slot of `Parts`, phrase) in the order in which a sentence takes them in while it has room."""
    by_role = {role: [phrase.text for phrase in here if phrase.role == role] for role in ("thing", "way", "ground")}
    grounds = by_role["ground"]
    queues = {
        "things": (by_role["thing"] + grounds[1:])[:MOST_THINGS],
        "ways": by_role["way"][:MOST_WAYS],
        "ground": grounds[:1],
        "around": around[:MOST_AROUND],
    }
    order = ("things", "ways", "ground", "things", "around", "things", "ways", "around")
    return [(slot, queues[slot].pop(0)) for slot in order if queues[slot]]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
