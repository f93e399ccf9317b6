"""Captions of simulated tiles: what is seen, how much of it, where and beside what, in five different sentences.

Everything said is read off the painted instances, so it is true of the picture. One caption of the five is vague on
purpose, as annotators' are: it fits many tiles.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ucore.kinds import AREA, COVER, KINDS, WAY
from ucore.render import Tile

# Share of the tile that a thing must fill to be counted; less where half of the largest of its kind is less.
SEEN, SMALLEST_SEEN = 0.0012, 0.0004
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEVERAL, MANY = 6, 14
CLADDING = {"house", "terrace", "apartments", "warehouse", "retail", "office", "barn", "church", "school", "building"}
MASS = {"forest", "meadow", "scrub", "river", "park", "beach", "railway", "road", "motorway", "street"}
COUNTRYSIDE = {"farmland", "meadow", "scrub", "forest", "orchard", "olive_grove", "vineyard"}
ROADS = {"street", "road", "motorway"}
BUILDINGS = CLADDING | {"hospital_building", "stadium", "train_station"}


@dataclass(frozen=True)
class Group:
    """All visible things of a kind: how many, their share of the tile, middle (right, down; 0..1), colour word."""

    kind: str
    count: int
    share: float
    middle: tuple[float, float]
    colour: str
    score: float

    @property
    def phrase(self) -> str:
        """ "three tennis courts", "many houses with red roofs", "a lake"."""
        kind = KINDS[self.kind]
        large = KINDS[self.kind].layer in (COVER, AREA) and self.share > 0.4
        adjective = "large " if large and self.count == 1 else ""
        if self.colour and self.kind not in CLADDING:
            adjective += f"{self.colour} "
        roof = f" with {_a(f'{self.colour} roof') if self.count == 1 else f'{self.colour} roofs'}"
        roof = roof if self.colour and self.kind in CLADDING else ""
        if self.count == 1 or self.kind in MASS:
            return f"{_a(adjective + kind.noun)}{roof}"
        return f"{count_word(self.count)} {adjective}{kind.plural}{roof}"

    @property
    def plural(self) -> bool:
        """Whether its verb is plural: several things, of a kind that can be counted."""
        return self.count > 1 and self.kind not in MASS


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def count_word(count: int) -> str:
    """three, several, many: counts as people write them."""
    if count < SEVERAL:
        return NUMBERS[count]
    return "several" if count < MANY else "many"


def visible_groups(tile: Tile) -> list[Group]:
    """What is seen in a tile, the most remarkable first."""
    side = tile.instances.shape
    n, flat = len(tile.features), tile.instances.ravel()
    rows, columns = np.divmod(np.arange(flat.size), side[1])
    down = np.bincount(flat, rows, n + 1)[1:] / np.maximum(tile.pixels, 1) / side[0]
    right = np.bincount(flat, columns, n + 1)[1:] / np.maximum(tile.pixels, 1) / side[1]
    by_kind: dict[str, list[int]] = {}
    for position, feature in enumerate(tile.features):
        if KINDS[feature.kind].weight:
            by_kind.setdefault(feature.kind, []).append(position)
    groups = []
    for kind, everyone in by_kind.items():
        enough = max(SMALLEST_SEEN * flat.size, min(SEEN * flat.size, tile.pixels[everyone].max() / 2))
        members = [position for position in everyone if tile.pixels[position] >= enough]
        if not members:
            continue
        pixels = tile.pixels[members]
        share = float(pixels.sum() / flat.size)
        if KINDS[kind].layer == COVER and share < 0.05:
            continue
        middle = (
            float((right[members] * pixels).sum() / pixels.sum()),
            float((down[members] * pixels).sum() / pixels.sum()),
        )
        score = KINDS[kind].weight * (0.3 + min(1.0, 4 * share))
        count = 1 if KINDS[kind].layer == WAY and kind != "bridge" else len(members)
        groups.append(Group(kind, count, share, middle, _colour(tile, members, pixels), score))
    return sorted(groups, key=lambda group: (-group.score, group.kind))


def _colour(tile: Tile, members: Sequence[int], pixels: np.ndarray) -> str:
    """ "red", or "mostly red" where some are not, if most of the group's area has a colour; fields by their crop."""
    area: dict[str, int] = {}
    for position, count in zip(members, pixels, strict=True):
        feature = tile.features[position]
        word = _crop_word(feature.colour) if feature.kind == "farmland" and feature.colour else feature.colour_name
        area[word] = area.get(word, 0) + int(count)
    word, most = max(area.items(), key=lambda item: (item[1], item[0]))
    if not word or most <= 0.55 * pixels.sum():
        return ""
    return word if len(area) == 1 else f"mostly {word}"


def _crop_word(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    if green > red + 8:
        return "green"
    return "yellow" if green > 0.84 * red and blue < 0.66 * red else "brown"


# --- sentences --------------------------------------------------------------------------------------------------


def place_word(middle: tuple[float, float]) -> str:
    """upper left, bottom, centre ... of a point (right, down) in 0..1."""
    across = "left" if middle[0] < 0.36 else "right" if middle[0] > 0.64 else ""
    along = "upper" if middle[1] < 0.36 else "lower" if middle[1] > 0.64 else ""
    if across and along:
        return f"in the {along} {across}"
    if across:
        return f"on the {across}"
    return {"upper": "at the top", "lower": "at the bottom", "": "in the centre"}[along]


def relation_word(one: Group, other: Group) -> str:
    """How `one` lies to `other`, as seen in the picture."""
    dx, dy = one.middle[0] - other.middle[0], one.middle[1] - other.middle[1]
    if KINDS[other.kind].layer in (COVER, AREA) and other.share > 0.45 and math.hypot(dx, dy) < 0.2:
        return "surrounded by"
    if math.hypot(dx, dy) < 0.18:
        return "next to"
    if abs(dx) > abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    return "above" if dy < 0 else "below"


def captions(tile: Tile, seed: int, count: int = 5) -> list[str]:
    """`count` sentences about a tile, all different, one of them vague; the same for the same seed."""
    rng = np.random.default_rng(seed)
    groups = visible_groups(tile)
    vague_at = int(rng.integers(0, count))
    writers = [SENTENCES[number] for number in rng.permutation(len(SENTENCES))]
    written: list[str] = []
    for number in range(count):
        if number == vague_at or not groups:
            text = _vague(groups, rng)
        else:
            text = writers[number % len(writers)](_pick(groups, rng), rng)
        while text in written:
            text = _listing(_pick(groups, rng, 0.6), rng) if groups and number != vague_at else _vague(groups, rng)
            if text in written:
                text = f"{OPENINGS[len(written) % len(OPENINGS)]} {text}"
        written.append(text)
    return [f"{text} ." for text in written]


def _pick(groups: list[Group], rng: np.random.Generator, spread: float = 0.25) -> list[Group]:
    """The groups in an order that a person might mention them in: by score, shuffled a little."""
    noisy = [(-group.score * float(np.exp(rng.normal(0, spread))), group.kind, group) for group in groups]
    return [group for _, _, group in sorted(noisy, key=lambda item: item[:2])]


OPENINGS = ("there is", "the picture shows", "seen from above :", "in this place there is", "an aerial view of")


def _opening(group: Group, rng: np.random.Generator) -> str:
    text = OPENINGS[int(rng.integers(0, len(OPENINGS)))]
    return text.replace("there is", "there are") if group.plural else text


def _main(groups: list[Group], rng: np.random.Generator) -> str:
    first = groups[0]
    text = f"{first.phrase} {'lie' if first.plural else 'lies'} {place_word(first.middle)}"
    return f"{text} , {relation_word(first, groups[1])} {groups[1].phrase}" if len(groups) > 1 else text


def _listing(groups: list[Group], rng: np.random.Generator) -> str:
    named = [group.phrase for group in groups[: int(rng.integers(2, 5))]]
    text = named[0] if len(named) == 1 else f"{' , '.join(named[:-1])} and {named[-1]}"
    return f"{_opening(groups[0], rng)} {text}"


def _layout(groups: list[Group], rng: np.random.Generator) -> str:
    wide = sorted(groups[:6], key=lambda group: -group.share)[:2]
    if len(wide) == 1:
        return f"{wide[0].phrase} {'fill' if wide[0].plural else 'fills'} the picture"
    one, other = (place_word(group.middle) for group in wide)
    return f"{one} {wide[0].phrase} {'and' if one == other else f', {other}'} {wide[1].phrase}"


def _related(groups: list[Group], rng: np.random.Generator) -> str:
    if len(groups) < 2:
        return f"{_opening(groups[0], rng)} {groups[0].phrase} {place_word(groups[0].middle)}"
    one, other = groups[0], groups[1]
    text = f"{_opening(one, rng)} {one.phrase} {relation_word(one, other)} {other.phrase}"
    return f"{text} , and {groups[2].phrase}" if len(groups) > 2 and rng.random() < 0.6 else text


def _counted(groups: list[Group], rng: np.random.Generator) -> str:
    many = [group for group in groups if group.count > 1] or groups
    rest = [group for group in groups if group is not many[0]]
    text = f"{many[0].phrase} can be seen"
    return f"{text} {relation_word(many[0], rest[0])} {rest[0].phrase}" if rest else text


def _passing(groups: list[Group], rng: np.random.Generator) -> str:
    ways = [group for group in groups if group.kind in ("road", "motorway", "railway", "river", "street", "track")]
    if not ways:
        return _main(groups, rng)
    beside = [group for group in groups if group.kind != ways[0].kind][:2]
    text = f"{ways[0].phrase} passes"
    return f"{text} {' and '.join(group.phrase for group in beside)}" if beside else f"{text} through the picture"


SENTENCES: tuple[Callable[[list[Group], np.random.Generator], str], ...] = (
    _main, _listing, _layout, _related, _counted, _passing,
)  # fmt: skip


def _vague(groups: list[Group], rng: np.random.Generator) -> str:
    """A sentence that fits many tiles, yet not a wrong one."""
    share = {group.kind: group.share for group in groups}
    count = {group.kind: group.count for group in groups}
    built, buildings = (sum(of[kind] for kind in BUILDINGS & of.keys()) for of in (share, count))
    homes = sum(count.get(kind, 0) for kind in ("house", "terrace", "apartments"))
    green = share.get("forest", 0.0) + share.get("orchard", 0.0)
    green += sum(group.share for group in groups if group.colour == "green" and group.kind == "farmland")
    rural = sum(share.get(kind, 0.0) for kind in COUNTRYSIDE)
    choices = ["an aerial picture of some land", "a place seen from above"]
    if built > 0.04 and buildings >= 3:
        choices += ["a built-up area", "part of a town"]
        choices += ["some buildings and roads"] if ROADS & share.keys() else []
        choices += ["many buildings in a town"] if buildings >= MANY else []
    if homes >= 3:
        choices += ["a residential area", "a neighbourhood where people live"]
    if rural > 0.5 and buildings < SEVERAL:
        choices += ["open land without many buildings"] if share.get("forest", 0.0) < 0.3 else []
        choices += ["a piece of countryside"]
    if green > 0.15:
        choices += ["some green land"] + (["a place with much green"] if green > 0.3 else [])
    return choices[int(rng.integers(0, len(choices)))]
