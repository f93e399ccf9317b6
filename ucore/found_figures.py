"""Pictures of what a search found: a gallery beside its map, and the queries that a model answers worst."""

import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from ucore.answers import Answer, Hit
from ucore.errors import DataError
from ucore.gallery import printable, shortened
from ucore.images import load_image
from ucore.picture import BLUE, FAINT, GREEN, INK, ORANGE, WIDTH, Picture, styled

if TYPE_CHECKING:
    import pandas as pd

    from ucore.retrieve import Searcher
    from ucore.sureness import Bin

SHOWN = 10
COLUMNS = 5
SIDE = 200
MOST_AREAS = 3  # domains with a map


@styled
def plot_answer(
    searcher: "Searcher", answer: Answer, truth: Collection[str] = (), tiles: "pd.DataFrame | None" = None
) -> Picture:
    """The first hits, numbered, with scores and marks of what is known to be right; below, where they lie.

    truth: samples that are right. tiles: with columns lon and lat, of all the gallery.
    """
    hits = answer.hits[:SHOWN]
    placed = [hit for hit in hits if hit.lon is not None and hit.lat is not None]
    lines = max(1, -(-len(hits) // COLUMNS))
    areas = _areas(placed, tiles)
    figure = Picture(figsize=(WIDTH, 0.7 + 2.2 * lines + 3.2 * bool(areas)), layout="constrained")
    grid = figure.add_gridspec(lines + bool(areas), 1, height_ratios=[2.2] * lines + [3.2] * bool(areas))
    for line in range(lines):
        cells = grid[line].subgridspec(1, COLUMNS)
        for column in range(COLUMNS):
            axes, number = figure.add_subplot(cells[column]), line * COLUMNS + column
            if number < len(hits):
                _draw_hit(axes, searcher, hits[number], hits[number].sample_id in truth)
            else:
                axes.axis("off")
    cells = grid[-1].subgridspec(1, max(1, len(areas)))
    for column, (name, own, around) in enumerate(areas):
        _draw_places(figure.add_subplot(cells[column]), name, own, around)
    told = textwrap.fill(printable(answer.query), 90, max_lines=2, placeholder=" …")
    note = " (simulated data)" if answer.simulated else ""
    known = f"\n✓ framed: known to be right ({len(truth)} in the gallery)" if truth else ""
    figure.suptitle(f"“{told}”{note}{known}", x=0.01, ha="left", fontsize=10)
    figure.alt = f"The {len(hits)} first results, numbered on a map where their places are known."
    return figure


def _areas(hits: Sequence[Hit], tiles: "pd.DataFrame | None") -> list[tuple[str, list[Hit], Any]]:
    """The domains with the most hits, each with its hits and all its tiles."""
    if tiles is None:
        return []
    names = [name for name, _ in Counter(hit.domain for hit in hits).most_common(MOST_AREAS)]
    return [(name, [hit for hit in hits if hit.domain == name], tiles[tiles["domain"] == name]) for name in names]


def _draw_hit(axes: Axes, searcher: "Searcher", hit: Hit, right: bool, rank: str = "") -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=right, edgecolor=GREEN, linewidth=4)
    sure = "" if hit.sure is None else f", sure {hit.sure:.0%}"
    times = f" ×{hit.times}" if hit.times > 1 else ""
    axes.set_title(
        f"{rank or hit.rank}. {hit.score:+.3f}{sure}{times}{' ✓' if right else ''}", fontsize=8.5, loc="left"
    )
    axes.set_xlabel(shortened(hit.sample_id, 22), fontsize=8)
    draw_image(axes, searcher, hit.image)


def draw_image(axes: Axes, searcher: "Searcher", name: str) -> None:
    """An image of the gallery; a field with its name where it cannot be read."""
    try:
        picture = load_image(searcher.image_path(name))
    except DataError:
        axes.text(0.5, 0.5, textwrap.fill(f"{printable(name)} cannot be read", 18), ha="center", va="center",
                  fontsize=8, color=FAINT, transform=axes.transAxes)  # fmt: skip
        return
    picture.thumbnail((SIDE, SIDE))
    axes.imshow(np.asarray(picture))


def _draw_places(axes: Axes, name: str, hits: Sequence[Hit], tiles: "pd.DataFrame") -> None:
    lon, lat = tiles["lon"].to_numpy(float), tiles["lat"].to_numpy(float)
    axes.scatter(lon, lat, 8, "#c3cbd1", linewidths=0)
    for hit in reversed(hits):
        x: Any = hit.lon
        y: Any = hit.lat
        axes.scatter([x], [y], 190, "white", edgecolors=INK, linewidths=1.2, zorder=3)
        axes.text(x, y, str(hit.rank), ha="center", va="center", fontsize=8, fontweight="bold", zorder=4)
    axes.set(xlabel="longitude (°)", ylabel="latitude (°)")
    axes.set_aspect(1 / np.cos(np.radians(np.clip(np.median(lat), -80, 80))), adjustable="datalim")
    axes.ticklabel_format(useOffset=False)
    axes.locator_params(nbins=4)
    axes.set_title(f"{shortened(name, 18)}: {len(hits)} hits of {len(tiles):,} tiles", fontsize=9, loc="left")


@styled
def plot_reliability(asked: "Mapping[str, tuple[float, Sequence[Bin]]]", simulated: bool = False) -> Picture:
    """What was said of hits against how many were right; on the diagonal a probability is one.

    asked: by whose captions were asked, the mean distance to the diagonal and the parts (`sureness.reliability`).
    """
    figure = Picture(figsize=(0.62 * WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    most = max([said for _, bins in asked.values() for part in bins for said in part[:2]], default=1.0)
    axes.plot([0, most], [0, most], color=FAINT, label="right as often as said")
    known = ((name, *told) for name, told in asked.items() if told[1])
    for (name, error, bins), color, mark in zip(known, (BLUE, ORANGE), "os", strict=False):
        said, so, hits = zip(*bins, strict=True)
        label = f"{printable(name)}:\noff by {100 * error:.1f} % ({sum(hits):,} hits)"
        axes.plot(said, so, mark + "-", color=color, markersize=4, label=label)
    axes.set(xlabel="said: sure", ylabel="so: share that was right", title="simulated data" if simulated else None)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, 0))
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.alt = "; ".join(f"{name}: off by {100 * error:.1f} %" for name, (error, _) in asked.items())
    return figure


@styled
def plot_failures(searcher: "Searcher", failures: Sequence[dict[str, Any]]) -> Picture:
    """Queries answered worst: the right image, then what was found instead, and why.

    failures: as from `index_evaluation.worst_queries`.
    """
    rows = max(1, len(failures))
    figure = Picture(figsize=(WIDTH, 0.4 + 2.3 * rows), layout="constrained")
    table = figure.subplots(rows, 5, squeeze=False, width_ratios=(1.6, 1, 1, 1, 1))
    for cells, failure in zip(table, failures, strict=False):
        told = textwrap.fill(printable(failure["query"]), 30, max_lines=4, placeholder=" …")
        cells[0].axis("off")
        why = textwrap.fill(failure["why"], 34)
        cells[0].text(0, 1, f"“{told}”\n\n{why}", va="top", fontsize=8.5, transform=cells[0].transAxes)
        _draw_hit(cells[1], searcher, failure["own"], True, f"rank {failure['rank']:,}")
        for axes, hit in zip(cells[2:], failure["found"], strict=False):
            _draw_hit(axes, searcher, hit, False)
    figure.suptitle(f"The worst answers{' (simulated data)' if searcher.simulated else ''}: the right image, and what "
                    "was found instead", x=0.01, ha="left", fontsize=10)  # fmt: skip
    figure.alt = f"{len(failures)} queries with the image they were written for and what was found instead."
    return figure
