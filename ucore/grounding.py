"""Does a text say what the map says? Tags named, tags denied, and things that no tag knows (`grounding`).

    grounding("Houses along a road; a river bends.", ["building=house", "highway=residential", "landuse=grass"])
    Grounding(mentioned=("building=house", "highway=residential"), missing=("landuse=grass",), contradicted=(),
              unsupported=("river",), recall=0.667)

By words alone, the same on every machine. Its limits: English only; counts, colours and places are not checked; a
word with two meanings ("field", "block") speaks for the text; of denials only plain ones are understood ("no
buildings", "does not show any roads", "houses are absent"), not ironies nor "nothing but sand"; and a text that names
what is there but was never mapped is called unsupported, so that it is a hint and no proof.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ucore.things import (
    Phrase,
    covering_names,
    distinctive_words,
    first_words,
    forms,
    names_of,
    own_name,
    supporting_names,
    thing_tags,
    vocabulary,
)

RICH = 3  # tags that name things from which on the absence of one tells something

TOKEN = re.compile(r"[^\W\d_]+|[.,;:!?()]")
STOPS = set(".,;:!?()")
ARTICLES, VERBS = ("a", "an"), ("show", "contain", "include", "have", "feature", "depict", "see", "reveal")
NEGATIONS = {("no",), ("without",), ("lacks",), ("lacking",), ("lack", "of"), ("absence", "of"), ("devoid", "of"),
             ("free", "of"), ("not", "any"), ("nor",), ("neither",), ("zero",),
             *(("not", word) for word in (*ARTICLES, *VERBS))}  # fmt: skip
NEGATING = {words[0] for words in NEGATIONS}
SOFTENED = {"almost", "nearly", "virtually", "practically", "few", "little"}  # "few or no trees" may leave some
LIGHT = {"any", "a", "an", "single", "visible", "apparent", "obvious", "discernible", "clear", "signs", "sign", "of"}
SEEN = {"are", "is", "can", "be", "visible", "present", "seen", "found", "shown", "apparent", "to", "at", "all",
        "anywhere", "here", "there"}  # fmt: skip
KINDS = {"large", "larger", "small", "tall", "big", "other", "further", "major", "significant", "high", "dense", "more"}
GONE = {("absent",), ("missing",), ("not", "visible"), ("not", "present"), ("not", "seen"), ("not", "shown"),
        ("not", "be", "seen"), ("not", "to", "be", "seen"), ("nowhere", "to", "be", "seen")}  # fmt: skip
WITHIN = {"in", "within", "on", "inside"}
WHOLE = {"image", "picture", "scene", "view", "tile", "photo", "photograph", "area", "frame", "satellite", "aerial"}
SPEAKERS = {*WHOLE, "it", "one", "you", "we", "i"}
CHAIN = {",", "or", "and", "nor"}
CONNECTED = {"near", "nearby", "along", "around", "between", "beside", "besides", "except", "other", "apart", "with",
             "but", "for", "from", "while", "which", "that", "as", "by", "next"}  # fmt: skip


@dataclass(frozen=True)
class Grounding:
    """How a text stands to the tags of its image.

    mentioned, missing: the image's tags that name things, by whether the text names them. contradicted: tags the text
    denies for the whole picture. unsupported: distinctive things, as words in the singular, that the text names and
    no tag of the image or its surroundings makes plausible; empty where fewer than `RICH` tags are known.
    recall: share of the tags mentioned, None without any.
    """

    mentioned: tuple[str, ...]
    missing: tuple[str, ...]
    contradicted: tuple[str, ...]
    unsupported: tuple[str, ...]
    recall: float | None

    @property
    def holds(self) -> bool:
        """Whether nothing is contradicted or unsupported."""
        return not self.contradicted and not self.unsupported


class Mention(NamedTuple):
    """A known phrase in a text. denied: "": named; "part": denied somewhere; "whole": denied of all the picture."""

    phrase: str
    denied: str


def grounding(text: str, tags: Sequence[str], surrounding_tags: Sequence[str] = ()) -> Grounding:
    """Compare `text` with the tags ("key=value") of its image and of what lies around it.

    Tags that name no thing on the ground (names, surfaces, addresses) are left out. What lies around need not be
    mentioned, but supports what is.
    """
    own, around = thing_tags(tags), thing_tags(surrounding_tags)
    mentions = find_mentions(text, (*own, *around))
    named = {mention.phrase for mention in mentions if not mention.denied}
    denied = {mention.phrase for mention in mentions if mention.denied == "whole"}
    mentioned = tuple(tag for tag in own if names_of(tag) & named)
    unsupported = named & distinctive_words()
    for tag in (*own, *around):
        unsupported = unsupported - supporting_names(tag)
    enough = len({*own, *around}) >= RICH
    return Grounding(
        mentioned,
        tuple(tag for tag in own if tag not in mentioned),
        tuple(tag for tag in own if covering_names(tag) & denied),
        tuple(sorted(unsupported)) if enough else (),
        len(mentioned) / len(own) if own else None,
    )


def summarise(results: Sequence[Grounding]) -> dict[str, Any]:
    """Mean recall over the texts with tags, and shares of texts that contradict a tag or claim an unsupported thing."""
    recalls = [result.recall for result in results if result.recall is not None]
    count = max(len(results), 1)
    return {
        "texts": len(results),
        "with_tags": len(recalls),
        "tag_recall": round(sum(recalls) / len(recalls), 4) if recalls else None,
        "contradicting": round(sum(bool(result.contradicted) for result in results) / count, 4),
        "unsupported": round(sum(bool(result.unsupported) for result in results) / count, 4),
    }


def find_mentions(text: str, tags: Sequence[str] = ()) -> list[Mention]:
    """The things that a text names, in order, longest phrases first ("car park" is no park).

    tags: their own values are looked for too.
    """
    plain = re.sub(r"\bcan(not|['\u2019]t)\b", "can not", text.lower())
    plain = re.sub(r"(?<=[a-z])n['\u2019]t\b", " not", plain)
    tokens: list[str] = TOKEN.findall(plain.replace("-", " "))
    known: Mapping[Phrase, str] = vocabulary()
    extra = {words: word for tag in tags if own_name(tag) for words, word in forms(own_name(tag)).items()}
    found: list[tuple[int, int, str]] = []
    begin = first_words() | {words[0] for words in extra}
    place = 0
    while place < len(tokens):
        for size in (4, 3, 2, 1) if tokens[place] in begin else ():
            words = tuple(tokens[place : place + size])
            phrase = known.get(words) or extra.get(words)
            if phrase and len(words) == size:
                if "like" not in tokens[max(place - 2, 0) : place]:  # shaped like a river
                    found.append((place, place + size, phrase))
                place += size
                break
        else:
            place += 1
    denials = _denials(tokens, {start: end for start, end, _ in found})
    return [Mention(phrase, denials.get(start, "")) for start, _, phrase in found]


def _denials(tokens: list[str], ends: Mapping[int, int]) -> dict[int, str]:
    """Start of a denied phrase -> "part" or "whole". ends: start -> end of every phrase found."""
    denied: dict[int, str] = {}
    for place, token in enumerate(tokens):
        if token not in NEGATING:
            continue
        size = next((n for n in (2, 1) if tuple(tokens[place : place + n]) in NEGATIONS), 0)
        if not size:
            continue
        before = tokens[max(place - 4, 0) : place]
        soft = not SOFTENED.isdisjoint(before[-2:])
        if tokens[place + size - 1] in ARTICLES:  # "there is not a house"; of "it is not a house" nothing is said
            if "there" not in before[-2:]:
                continue
        elif tokens[place + size - 1] in VERBS:  # "the image does not show"; "houses that do not have pools"
            soft = soft or SPEAKERS.isdisjoint(before)
        chain: list[int] = []
        here = _skip(tokens, place + size, LIGHT)
        some = _skip(tokens, here, KINDS)  # "no large buildings" leaves small ones
        soft, here = soft or some > here, some
        while here in ends:
            after = ends[here]
            joined = after < len(tokens) and tokens[after] in CHAIN
            whole = _of_all(tokens, after)
            if not joined and whole is None:  # "no building materials": the phrase is part of another
                break
            chain.append(here)
            if not joined:
                for start in chain:
                    denied[start] = "whole" if whole and not soft else "part"
                chain = []
                break
            here = _skip(tokens, _skip(tokens, after, CHAIN), LIGHT)
        for start in chain:  # the chain ran into the next clause: ", and a road ..."
            denied[start] = "part" if soft else "whole"
    return denied | _gone(tokens, ends)


def _gone(tokens: list[str], ends: Mapping[int, int]) -> dict[int, str]:
    """The same of what is denied behind its name: "houses and roads are absent"."""
    denied: dict[int, str] = {}
    for start, end in ends.items():
        after = _skip(tokens, end, {"are", "is", "can"})
        size = next((n for n in (4, 3, 2, 1) if tuple(tokens[after : after + n]) in GONE), 0)
        if after == end or not size:
            continue
        # A clause that goes on ("are not visible from above") may speak of a part.
        denied[start] = "whole" if _of_all(tokens, after + size) else "part"
        if tokens[end] != "is":
            denied |= dict.fromkeys(_list_before(tokens, ends, start), denied[start])
    return denied


def _list_before(tokens: list[str], ends: Mapping[int, int], last: int) -> list[int]:
    """Starts of the phrases that are in one list with the `last`, where that list begins its sentence; else none."""
    found: list[int] = []
    while (
        one := next((start for start, end in ends.items() if end < last == _skip(tokens, end, CHAIN)), None)
    ) is not None:
        found.append(one)
        last = one
    while last and tokens[last - 1] in {"the", "any", "all"}:
        last -= 1
    return found if not last or tokens[last - 1] in STOPS else []


def _skip(tokens: list[str], place: int, words: set[str]) -> int:
    while place < len(tokens) and tokens[place] in words:
        place += 1
    return place


def _of_all(tokens: list[str], place: int) -> bool | None:
    """Whether a denial that ends at `place` is of the whole picture; None where the phrase goes on as another."""
    after = _skip(tokens, place, SEEN)
    if after == len(tokens) or tokens[after] in STOPS | CHAIN:
        return True
    if tokens[after] in WITHIN:
        scope = _skip(tokens, after + 1, {"the", "this", "entire", "whole"})
        return scope < len(tokens) and tokens[scope] in WHOLE
    return False if after > place or tokens[after] in CONNECTED else None
