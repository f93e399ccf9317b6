"""Why a hit was found: which words of the query decided, and which segments of the tile fit it.

explanation = explain(searcher, answer, answer.hits[0])
plot_explanations(searcher, answer, [explanation])       # drawn on the tile; `explanation_html` is its twin

A word's weight is what the score loses without it ("leave one out"). That is what the model does, not what is there: a
score may rest on a word that the tile does not show, and two words that say the same hide each other.
"""

import base64
import html
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.answers import Answer, Hit
from ucore.errors import ConfigError, DataError
from ucore.masks import Segments

if TYPE_CHECKING:
    from ucore.picture import Picture
    from ucore.retrieve import Searcher

MOST_WORDS = 40  # words whose weight is asked for: each costs a pass through the text tower
MOST_SEGMENTS = 1000  # of a tile that are looked up
DRAWN = 3  # segments, the best first


@dataclass(frozen=True)
class Part:
    """A segment: its number in the tile, its cosine with the query, and the share of the tile that it covers.

    found: whether it is the very hit.
    """

    number: int
    score: float
    area: float
    found: bool = False


@dataclass(frozen=True)
class Explanation:
    """Words of the query with what the hit's score loses without each, in the query's order; segments, best first,
    but a segment that is the hit before the others of its tile.

    masks: of these segments, in the same order; None where the index has none of the tile. notes: what is missing.
    """

    hit: Hit
    words: tuple[tuple[str, float], ...]
    segments: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    masks: Segments | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the masks."""
        segments = [asdict(part) for part in self.segments]
        words = [{"word": word, "weight": weight} for word, weight in self.words]
        return {"item_id": self.hit.item_id, "words": words, "segments": segments, "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """For a terminal."""
        told = [f"{self.hit.rank}. {self.hit.sample_id}"]
        if self.words:
            told.append("   words: " + ", ".join(f"{word} {weight:+.3f}" for word, weight in self.words))
        if self.segments:
            told += [f"   {self._said(part)}" for part in self.segments if part.found]
            best = ", ".join(self._said(part) for part in self.segments[:DRAWN] if not part.found)
            told += [f"   best segments: {best}"] if best else []
        return told + [f"   {note}" for note in self.notes]

    @staticmethod
    def _said(part: Part) -> str:
        name = f"found: #{part.number} " if part.found else ""
        return f"{name}{part.score:+.3f} ({part.area:.0%} of the tile)"


def explain(searcher: "Searcher", answer: Answer, hit: Hit) -> Explanation:
    """Words and segments behind one hit of an answer to a text. Raises ConfigError for an answer to an image."""
    if answer.asked != "text":
        raise ConfigError("What an image finds has no words to explain; ask with a text")
    places = searcher.index.find([hit.item_id])
    if places[0] < 0:
        raise DataError(f"{hit.item_id!r} is not in {searcher.place} any more. Search again.")
    feature, notes = searcher.index.features(places)[0], []
    words = answer.query.split()
    asked = words[:MOST_WORDS] if len(words) > 1 else []
    if len(words) == 1:
        notes.append("Without its only word the query is empty, so that no word can be weighed.")
    elif len(words) > len(asked):
        notes.append(f"Only the first {MOST_WORDS} of {len(words)} words were weighed.")
    shorter = [" ".join(words[:number] + words[number + 1 :]) for number in range(len(asked))]
    features = searcher.embed([answer.query, *shorter])
    scores = searcher.late_scores.scores(features, int(places[0])) if answer.late else features @ feature
    weights = scores[0] - scores[1:]
    weighed = tuple((word, round(float(weight), 4)) for word, weight in zip(asked, weights, strict=True))
    parts, masks = _segments(searcher, answer.query, hit)
    if masks is None:
        notes.append("The index has no segments of this tile; build it with --segments to see where the query fits.")
    return Explanation(hit, weighed, parts, tuple(notes), masks)


def _segments(searcher: "Searcher", query: str, hit: Hit) -> tuple[tuple[Part, ...], Segments | None]:
    names = [f"segment:{hit.sample_id}#{number}" for number in range(MOST_SEGMENTS)]
    places = searcher.index.find(names)
    places = places[places >= 0]
    if not len(places):
        return (), None
    rows = searcher.index.rows(places)
    scores = searcher.index.features(places) @ searcher.embed([query])[0]
    own = (rows["item_id"] == hit.item_id).to_numpy()
    order = np.lexsort((-scores, ~own))  # stable
    size = (int(rows["mask_height"].iloc[0]), int(rows["mask_width"].iloc[0]))
    numbers = [int(name.rpartition("#")[2]) for name in rows["item_id"]]
    parts = [Part(numbers[row], round(float(scores[row]), 4), round(float(rows["area"].iloc[row]), 4), bool(own[row]))
             for row in order]  # fmt: skip
    return tuple(parts), Segments.from_rles(size, [rows["mask"].iloc[row] for row in order])


def explanation_html(searcher: "Searcher", explanation: Explanation) -> str:
    """The tile with its best segments outlined and numbered, and the words shaded by weight; everything escaped."""
    from ucore.live import PAGE
    from ucore.picture import BLUE, VERMILLION
    from ucore.query_figures import segment_outlines

    most = max([abs(weight) for _, weight in explanation.words], default=0) or 1.0
    shades = []
    for word, weight in explanation.words:
        colour = BLUE if weight >= 0 else VERMILLION
        strength = round(45 * abs(weight) / most)
        style = f"background: color-mix(in srgb, {colour} {strength}%, white); padding: 1px 3px; border-radius: 3px"
        shades.append(f'<span style="{style}" title="{weight:+.3f}">{html.escape(word)}</span>')
    drawn = ""
    if explanation.masks is not None:
        width, height, rings, places = segment_outlines(
            explanation.masks.take(np.arange(min(DRAWN, len(explanation.masks))))
        )
        shapes = []
        for number, of in enumerate(rings):
            path = "".join(f"M{' '.join(f'{x:g},{y:g}' for x, y in ring)}Z" for ring in of)
            shapes.append(f'<path d="{path}" fill="{VERMILLION}" fill-opacity="{0.45 / (number + 1):.2f}" '
                          'stroke="white" stroke-width="2" fill-rule="evenodd"/>')  # fmt: skip
            x, y = places[number]
            shapes.append(f'<text x="{x}" y="{y}" fill="white" stroke="black" stroke-width="3" paint-order="stroke" '
                          f'style="font: bold 16px sans-serif; text-anchor: middle">{number + 1}</text>')  # fmt: skip
        picture = picture_address(searcher, explanation.hit.image, max(width, height))
        image = f'<image href="{picture}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        drawn = (
            f'<svg role="img" aria-label="Tile with its best segments" viewBox="0 0 {width} {height}" '
            f'style="width: {width}px; max-width: 100%">{image}{"".join(shapes)}</svg>'
        )
    told = "".join(f"<div>{html.escape(line)}</div>" for line in explanation.lines()[1:])
    name = html.escape(explanation.hit.sample_id)
    words = " ".join(shades)
    return f'<div style="{PAGE}"><b>Why {name}?</b><div style="margin: 4px 0">{words}</div>{drawn}{told}</div>'


def picture_address(searcher: "Searcher", name: str, size: int) -> str:
    """A gallery image as a data address; a plain one with a cross where it cannot be read."""
    from ucore.maps import jpeg_thumbnail

    data = jpeg_thumbnail(searcher.image_path(name), size)
    if data:
        return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
    cross = "<path d='M0 0L9 9M9 0L0 9' stroke='%23999'/>"
    return f"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'>{cross}</svg>".replace(
        "<", "%3C"
    ).replace(">", "%3E")


def plot_explanations(searcher: "Searcher", answer: Answer, explanations: Sequence[Explanation]) -> "Picture":
    """One row a hit: its tile with the best segments, and the words' weights as bars."""
    from ucore.picture import styled  # which brings matplotlib, and a command-line search needs none

    return styled(_plotted)(searcher, answer, explanations)


def _plotted(searcher: "Searcher", answer: Answer, explanations: Sequence[Explanation]) -> "Picture":
    from ucore.gallery import shortened
    from ucore.picture import BLUE, VERMILLION, WIDTH, Picture

    figure = Picture(figsize=(WIDTH, 0.5 + 2.6 * max(1, len(explanations))), layout="constrained")
    axes = figure.subplots(max(1, len(explanations)), 2, squeeze=False, width_ratios=(1, 1.6))
    for (tile, bars), explanation in zip(axes, explanations, strict=False):
        draw_tile(tile, searcher, explanation)
        if not explanation.words:
            bars.axis("off")
            bars.text(0, 0.5, textwrap.fill(" ".join(explanation.notes), 60), transform=bars.transAxes, fontsize=9)
            continue
        words = [shortened(word, 18) for word, _ in explanation.words]
        weights = np.array([weight for _, weight in explanation.words])
        shown = np.sort(np.argsort(-np.abs(weights), kind="stable")[:10])
        colours = [BLUE if weights[row] >= 0 else VERMILLION for row in shown]
        bars.barh(range(len(shown)), weights[shown], color=colours)
        bars.set_yticks(range(len(shown)), [words[row] for row in shown])
        bars.invert_yaxis()
        bars.axvline(0, color="#444444", lw=0.8)
        bars.set_title("what the score loses without the word", loc="left", fontsize=9, fontweight="normal")
    told = textwrap.fill(shortened(answer.query, 300), 90, max_lines=2, placeholder=" …")
    note = " (simulated data)" if answer.simulated else ""
    figure.suptitle(f"Why these hits? “{told}”{note}", x=0.01, ha="left", fontsize=10)
    figure.alt = f"{len(explanations)} hits with the words and segments that decided."
    return figure


def draw_tile(axes: Any, searcher: "Searcher", explanation: Explanation) -> None:
    """A hit's tile with its best segments filled and numbered; a grey field with its name where it cannot be read."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as MplPath
    from matplotlib.patheffects import withStroke

    from ucore.gallery import printable, shortened
    from ucore.images import load_image
    from ucore.picture import VERMILLION
    from ucore.query_figures import SIDE, segment_outlines

    hit = explanation.hit
    sure = "" if hit.sure is None else f", sure {hit.sure:.0%}"
    sure += ": segment 1" if hit.kind == "segment" else ""
    axes.set_title(f"{hit.rank}. {shortened(hit.sample_id, 24)}\n{hit.score:+.3f}{sure}", fontsize=9, loc="left")
    axes.axis("off")
    try:
        picture = load_image(searcher.image_path(hit.image))
    except DataError:
        axes.text(
            0.5, 0.5, f"{printable(hit.image)}\ncannot be read", ha="center", transform=axes.transAxes, fontsize=8
        )
        return
    if explanation.masks is None:
        picture.thumbnail((SIDE, SIDE))
        axes.imshow(np.asarray(picture))
        return
    width, height, rings, places = segment_outlines(
        explanation.masks.take(np.arange(min(DRAWN, len(explanation.masks))))
    )
    axes.imshow(np.asarray(picture.resize((width, height))))
    for number, of in enumerate(rings):
        if of:
            path = MplPath.make_compound_path(*(MplPath([*ring, ring[0]], closed=True) for ring in of))
            axes.add_patch(PathPatch(path, facecolor=VERMILLION, alpha=0.45 / (number + 1), edgecolor="none"))
            axes.add_patch(PathPatch(path, facecolor="none", edgecolor="white", lw=1.2))
        effects = [withStroke(linewidth=2.2, foreground="black")]
        axes.text(*places[number], str(number + 1), color="white", fontweight="bold", path_effects=effects)
