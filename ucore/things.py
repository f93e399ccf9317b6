"""What people call the things that tags name: the way from OpenStreetMap's "key=value" to words and back.

    names_of("building=residential")    {"residential building", "house", "apartment block", "building", "roof", ...}

The kinds of `kinds.KINDS` bring their nouns; the table here adds synonyms, what is broader than what, and things that
the simulator does not draw. Words are English; aerial pictures show buildings as roofs, so a roof names a building.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from ucore.kinds import KINDS, kind_of
from ucore.osm import KEYS, clean_text

Phrase = tuple[str, ...]  # lower-case words


class Thing(NamedTuple):
    """words: singular, separated by commas. broader: things that this one is one of. also: things that imply it."""

    words: str
    broader: str = ""
    also: str = ""


THINGS: dict[str, Thing] = {
    # buildings
    "building": Thing("structure, roof, rooftop, edifice, building complex"),
    "home": Thing("residential building, residence, dwelling, housing, home, townhouse", "building"),
    "house": Thing("villa, cottage, bungalow, homestead", "home"),
    "terrace": Thing("terraced house, terrace house", "house"),
    "apartments": Thing(
        "apartment, apartment building, residential block, block of flats, tower block, housing block, tenement, block",
        "home",
    ),
    "office": Thing("office, office building, skyscraper, high rise, commercial building", "building"),
    "retail": Thing("shop, supermarket, mall, shopping centre, shopping center, market", "building"),
    "warehouse": Thing("factory, industrial building, hangar, depot, hall, industrial hall", "building"),
    "school": Thing("school, kindergarten, campus"),
    "school_building": Thing("school building", "building,school"),
    "hospital": Thing("clinic"),
    "hospital_building": Thing("hospital building", "building,hospital"),
    "church": Thing("chapel, cathedral, mosque, temple, synagogue, monastery, place of worship, religious building"),
    "train_station": Thing("railway station, rail station", also="railway"),
    "stadium": Thing("arena, grandstand"),
    "barn": Thing("stable, farm building, cowshed", "building"),
    "garage": Thing("carport", "building"),
    "shed": Thing("hut, shack", "building"),
    "greenhouse": Thing("glasshouse, polytunnel", "building"),
    "farmyard": Thing("farmyard, farmstead"),
    "airport": Thing("airport, airfield, airstrip, runway, taxiway, airplane, aeroplane, aircraft, airport terminal"),
    # ways
    "road": Thing("road, roadway, carriageway, intersection, road junction, crossroad"),
    "motorway": Thing("freeway, expressway, autobahn, highway", "road"),
    "main_road": Thing("main road, avenue, boulevard, highway, main street", "road"),
    "street": Thing("lane, alley, residential road", "road"),
    "roundabout": Thing("traffic circle", "road"),
    "track": Thing("track, dirt road, farm track, unpaved road, trail, path, dirt path", "road"),
    "footway": Thing("footpath, walkway, sidewalk, pavement, trail, cycleway, bike path, cycle path, steps, pathway"),
    "railway": Thing("railway, railroad, railway track, train track, rail track, rail line, train line, rails, train",
                     also="train_station"),
    "bridge": Thing("viaduct, overpass, flyover, footbridge"),
    # green and bare ground
    "vegetation": Thing("vegetation, greenery"),
    "tree": Thing("palm, palm tree, tree canopy, tree crown", "vegetation"),
    "forest": Thing("woodland, woods, wooded area, grove, canopy", "tree"),
    "orchard": Thing("fruit tree", "tree"),
    "olive_grove": Thing("olive tree", "orchard"),
    "scrub": Thing("scrub, scrubland, bush, shrub, shrubbery, shrubland, heath, undergrowth", "vegetation"),
    "meadow": Thing("grass, lawn, grassland, pasture, grassy area, grassy field, green space, field", "vegetation"),
    "farmland": Thing("farmland, crop, cropland, farm, farm field, farm land, agricultural land, arable land, paddy, "
                      "cultivated land, cultivated field, plantation, ploughed land, crop field"),
    "vineyard": Thing("vine"),
    "sand": Thing("sand, sandy area, sandy ground, desert, dune"),
    "beach": Thing("", "sand"),
    "rock": Thing("rock, bare rock, boulder"),
    "quarry": Thing("gravel pit, sand pit, open pit"),
    "park": Thing("public garden"),
    "garden": Thing("garden, vegetable plot, flower bed", "park"),
    "golf_course": Thing("golf course", "park"),
    "square": Thing("plaza, town square, market square"),
    "cemetery": Thing("graveyard, grave"),
    "allotments": Thing("allotment, garden plot", "garden"),
    "residential": Thing("neighbourhood, neighborhood, suburb, housing estate, settlement, village", also="home"),
    "commercial": Thing("shopping area, business district, business park", also="retail,office"),
    "industrial": Thing("industrial site, industrial park, industrial zone, industrial estate, yard", also="warehouse"),
    "construction": Thing("building site, construction, construction work, unfinished building"),
    # water
    "water": Thing("water, body of water, water body"),
    "lake": Thing("pond, lagoon, reservoir", "water"),
    "river": Thing("stream, canal, creek, brook, waterway, riverbank, channel", "water"),
    "basin": Thing("basin", "water"),
    "sea": Thing("sea, ocean, coast, seashore, coastline", "water"),
    "swimming_pool": Thing("pool"),
    "clarifier": Thing("clarifier, settling tank"),
    "wastewater_plant": Thing("wastewater plant, treatment plant, sewage works"),
    "harbour": Thing("harbor, marina, port, dock, wharf", also="pier"),
    "pier": Thing("jetty, dock"),
    "boat": Thing("ship, yacht, vessel"),
    # sport and the rest
    "parking": Thing("parking, car park, parking area, parking space, parked car, parked vehicle"),
    "running_track": Thing("athletics track, athletic track, race track, track"),
    "pitch": Thing("pitch, soccer field, sports field, sport field, sports pitch, playing field, sports ground, court, "
                   "football pitch, baseball field, baseball diamond, sports court, sports facility"),
    "tennis_court": Thing("", "pitch"),
    "basketball_court": Thing("", "pitch"),
    "playground": Thing("play area"),
    "solar_plant": Thing("solar panel, solar farm, solar park, solar array, photovoltaic plant"),
    "storage_tank": Thing("tank, oil tank, silo"),
    "wind_turbine": Thing("windmill, wind farm"),
    "tower": Thing("water tower, mast"),
    "power_line": Thing("power line, pylon, transmission line, overhead line"),
    "fuel": Thing("petrol station, gas station, fuel station, filling station"),
    "wall": Thing("wall, fence, enclosure"),
    # phrases that hold the name of a thing and are something else
    "": Thing("field of view, home to, sea of, school bus, power plant, street light, street lamp, road marking, "
              "amusement park, water park, guard rail, bus station, fire station, police station, roof garden, "
              "building material, court yard, station wagon, parking sign"),
}  # fmt: skip

# Things that a tag stands for where `kind_of`, which thinks of painting, is too coarse.
OF_TAGS = {
    "building=residential": "home", "building=construction": "building,construction",
    "building=school": "school_building",
    "natural=water": "water", "natural=sand": "sand", "natural=bare_rock": "rock", "natural=tree_row": "tree",
    "natural=coastline": "sea", "natural=bay": "sea", "landuse=railway": "railway", "landuse=reservoir": "lake",
    "leisure=garden": "garden", "leisure=golf_course": "golf_course", "junction=roundabout": "roundabout",
    "amenity=kindergarten": "school", "amenity=university": "school", "amenity=college": "school",
    "amenity=clinic": "hospital", "amenity=fuel": "fuel", "power=line": "power_line", "power=tower": "power_line",
    "barrier=wall": "wall", "barrier=fence": "wall", "leisure=sports_centre": "pitch", "landuse=farm": "farmland",
}  # fmt: skip
OF_KEYS = {"aeroway": "airport", "railway": "railway", "waterway": "river", "bridge": "bridge", "religion": "church",
           "shop": "retail", "office": "office"}  # fmt: skip
# Values that say of which kind a thing is, not what it is called.
ADJECTIVES = {
    *("residential", "commercial", "industrial", "public", "civic", "detached", "service", "living street", "primary"),
    *(
        "secondary",
        "tertiary",
        "unclassified",
        "trunk",
        "pedestrian",
        "rail",
        "soccer",
        "tennis",
        "christian",
        "muslim",
    ),
}
MERGED = {"pond": "lake", "school_grounds": "school", "road": "main_road"}  # kinds that share a thing's words here

# Seen from above and nearly always mapped where it is: to name one that no tag knows is a claim without support.
DISTINCTIVE = {
    *("airport", "stadium", "harbour", "railway", "train_station", "river", "lake", "sea", "beach", "bridge"),
    *("church", "school", "hospital", "cemetery", "quarry", "golf_course", "vineyard", "solar_plant", "wind_turbine"),
    *("running_track", "tennis_court", "basketball_court", "wastewater_plant"),
}
# Tags of these things make the other plausible without naming it.
NEARBY = {"sea": "harbour,beach,pier,boat", "harbour": "pier,boat,basin", "beach": "sea",
          "bridge": "river,railway,motorway"}  # fmt: skip


def thing_tags(tags: Sequence[str]) -> list[str]:
    """The distinct tags that name a thing on the ground, in order: no names, surfaces, addresses or "building=no"."""
    return [tag for tag in dict.fromkeys(clean_text(tag) for tag in tags) if things_of(tag) or own_name(tag)]


@cache
def things_of(tag: str) -> frozenset[str]:
    """Names in `THINGS` of what a tag stands for; empty where it is none of them."""
    key, _, value = tag.partition("=")
    if value in ("", "no"):
        return frozenset()
    if tag in OF_TAGS:
        return frozenset(OF_TAGS[tag].split(","))
    kind = kind_of({key: value})
    name = MERGED.get(kind, kind) if kind else OF_KEYS.get(key)
    return frozenset([name]) if name else frozenset()


@cache
def names_of(tag: str) -> frozenset[str]:
    """What a text may call the thing that `tag` stands for: its words, those of broader and of narrower things, and
    the value itself ("amenity=fire_station": "fire station")."""
    things = things_of(tag)
    also = {name for thing in things for name in _thing(thing).also.split(",") if name}
    below = {other for other in _all() if _above(other) & (things | also)}
    return covering_names(tag) | {word for thing in also | below for word in _words(thing)}


@cache
def own_name(tag: str) -> str:
    """The tag's value as words ("fire station"), its key where the value only says yes; "" where that is no name."""
    key, _, value = tag.lower().partition("=")
    if key not in KEYS or value in ("", "no"):
        return ""
    word = key if value in ("yes", "*") else value
    word = " ".join(part for part in word.replace("_", " ").replace("-", " ").split() if part.isalpha())
    return "" if word in ADJECTIVES else word


@cache
def covering_names(tag: str) -> frozenset[str]:
    """Words which, denied, deny the tag: of the thing and of broader ones ("no buildings" denies a house)."""
    wanted = {other for thing in things_of(tag) for other in (thing, *_above(thing))}
    own = own_name(tag)
    return frozenset(word for thing in wanted for word in _words(thing)) | (frozenset([own]) if own else frozenset())


@cache
def supporting_names(tag: str) -> frozenset[str]:
    """Words for what a tag makes plausible: what it names, and what is seldom far from it."""
    near = {thing for thing, by in NEARBY.items() if things_of(tag) & set(by.split(","))}
    return names_of(tag) | {word for thing in near for word in _words(thing)}


@cache
def distinctive_words() -> frozenset[str]:
    """Words that mean a distinctive thing and nothing else."""
    known = vocabulary_things()
    return frozenset(word for word, things in known.items() if things and things <= DISTINCTIVE)


@cache
def vocabulary_things() -> dict[str, frozenset[str]]:
    """Every known word or phrase -> the things it may mean."""
    found: dict[str, set[str]] = {}
    for thing in _all():
        for word in _words(thing):
            found.setdefault(word, set()).add(thing)
    return {word: frozenset(thing for thing in things if thing) for word, things in found.items()}


@cache
def vocabulary() -> dict[Phrase, str]:
    """Words of every known phrase, in the singular and in the plural -> the phrase in the singular."""
    table: dict[Phrase, str] = {}
    for word in vocabulary_things():
        table.update(forms(word))
    for kind in KINDS.values():
        if kind.weight:
            table[tuple(kind.plural.split())] = kind.noun
    return table


@cache
def first_words() -> frozenset[str]:
    """Words that a known phrase begins with."""
    return frozenset(words[0] for words in vocabulary())


def forms(phrase: str) -> dict[Phrase, str]:
    """A phrase and its plural, as words -> the phrase: of "block of flats", both ends may be many."""
    words = phrase.split()
    head = words.index("of") - 1 if "of" in words[1:] else len(words) - 1
    many = [*words[:head], plural(words[head]), *words[head + 1 :]]
    return {tuple(words): phrase, tuple(many): phrase}


def plural(noun: str) -> str:
    """The regular plural: house -> houses, factory -> factories, church -> churches."""
    if noun.endswith("y") and noun[-2:-1] not in ("a", "e", "o", "u", ""):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "z", "ch", "sh")) else f"{noun}s"


def _thing(name: str) -> Thing:
    return THINGS.get(name, Thing(""))


@cache
def _all() -> tuple[str, ...]:
    kinds = [name for name, kind in KINDS.items() if name not in MERGED and (kind.weight or name in THINGS)]
    return tuple(dict.fromkeys([*THINGS, *kinds]))


@cache
def _above(thing: str) -> frozenset[str]:
    """All broader things."""
    parents = [name for name in _thing(thing).broader.split(",") if name]
    return frozenset(parents).union(*(_above(name) for name in parents))


@cache
def _words(thing: str) -> frozenset[str]:
    words = {word.strip() for word in _thing(thing).words.split(",") if word.strip()}
    merged = [kind for kind, into in MERGED.items() if into == thing]
    kinds = [*merged, *([thing] if thing in KINDS and thing not in MERGED else [])]
    return frozenset(words | {KINDS[kind].noun for kind in kinds})
