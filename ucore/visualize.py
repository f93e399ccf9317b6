"""Figures: training curves, a batch's similarity matrix, recalls with intervals, retrieved images.

Every function returns a `Picture`: shown once by a notebook, 800 pixels wide, with a text for those who cannot see
it. No meaning rests on colour alone. Captions and labels are untrusted and drawn as plain text, never as mathematics.
"""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ucore.errors import DataError
from ucore.evaluate import RECALLS
from ucore.picture import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, SHADES, SKY, VERMILLION, WIDTH, Picture, styled

SMOOTHING = 4  # of the loss: steps to either side that its mean takes in
MOST_ROWS = 48  # of a similarity matrix: more cannot be told apart
COLOURS = {"1": BLUE, "5": ORANGE, "10": PURPLE}  # of R@k
# Of the parts of a loss, in their order: colour, and lengths of dashes and gaps in line widths.
PARTS: tuple[tuple[str, tuple[float, ...]], ...] = ((GREEN, (1, 1.5)), (PURPLE, (5, 1.5, 1, 1.5)), (ORANGE, (3.5, 2)))
GALLERY = "the validation gallery"
WANTED = "give the rows of Scores.rows for every label"
LEGEND = 30  # letters a line, beside bars
DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


# --- training ---------------------------------------------------------------------------------------------------


@styled
def plot_curves(
    history: Sequence[dict[str, Any]], weights: Mapping[str, float] | None = None, gallery: str = GALLERY
) -> Picture:
    """Loss of every step above, validation mR and recalls (percent) of every epoch below, the best mR starred.

    history: `Trainer.history`, one dict a step with `step`, `phase`, `loss`, where it has several `parts`, these, and,
    where an epoch ended, `metrics`. weights: of the parts (`fusion.loss_weights`). gallery: what is validated on.
    """
    figure = Picture(figsize=(WIDTH, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    told = draw_curves(above, below, history, weights, gallery)
    figure.alt = f"Training curves over {len(history)} steps: loss of each step; validation recalls, {told}."
    return figure


def draw_curves(
    above: Axes,
    below: Axes,
    history: Sequence[dict[str, Any]],
    weights: Mapping[str, float] | None = None,
    gallery: str = GALLERY,
) -> str:
    """`plot_curves` within two frames of a larger figure; returns what is best, in words."""
    above.set_title("Training loss of each step", loc="left")
    above.set_ylabel("loss")
    below.set_title(f"Recall on {gallery} after each epoch", loc="left")
    below.set_ylabel("recall (%)")
    below.set_xlabel("step (one update of the weights)")
    epochs = [row for row in history if row.get("metrics")]
    for axes, rows, empty in ((above, history, "No step yet"), (below, epochs, "No epoch has ended yet")):
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        if not rows:
            axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", color=FAINT)
            axes.set(xticks=[], yticks=[])
    told = "no epoch has ended yet"
    if history:
        _draw_loss(above, below, history, weights)
    if epochs:
        best = _draw_recalls(below, epochs)
        told = f"best mR {best['metrics']['mR']:.1f} % at step {best['step']}"
    return told


def smoothed(values: Sequence[float], half: int = SMOOTHING) -> np.ndarray:
    """Mean over the `half` values before, the value itself and the `half` after; fewer at the ends. float64 (N,)."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    place = np.arange(len(values))
    start, stop = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)


def several_parts(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], np.ndarray]]:
    """Steps and smoothed values of the loss's parts, each from its first step on; none where one is the loss itself."""
    found = dict[str, tuple[list[float], np.ndarray]]()
    for name in dict.fromkeys(name for row in rows for name in row.get("parts", ())):
        those = [row for row in rows if name in row.get("parts", ())]
        found[name] = [row["step"] for row in those], smoothed([row["parts"][name] for row in those])
    return found if len(found) > 1 else {}


def part_label(part: str, weights: Mapping[str, float] | None) -> str:
    """What a part of the loss is called: "segment-text, weight 0.5"."""
    weight = (weights or {}).get(part)
    return part.replace("_", "-") + ("" if weight is None else f", weight {weight:g}")


def _draw_loss(
    above: Axes, below: Axes, history: Sequence[dict[str, Any]], weights: Mapping[str, float] | None
) -> None:
    """The loss and its parts in the upper frame, and the phases as shades behind both."""
    for number, (name, grouped) in enumerate(groupby(history, key=lambda row: row["phase"])):
        rows, first = list(grouped), number == 0
        steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
        above.plot(steps, losses, color=BLUE, alpha=0.35, lw=1, marker=".", ms=5, label="each step" * first)
        # Within a phase only: the batch size, and with it the level of the loss, changes between phases.
        mean = f"mean of {2 * SMOOTHING + 1} steps"
        above.plot(steps, smoothed(losses), color=BLUE, lw=2, label=mean * first)
        for (part, (when, values)), (colour, dashes) in zip(several_parts(rows).items(), PARTS, strict=False):
            above.plot(when, values, color=colour, ls=(0, dashes), lw=1.8, label=part_label(part, weights) * first)
        for axes in (above, below):
            shade = axes.axvspan(steps[0] - 0.5, steps[-1] + 0.5, color=SHADES[number % len(SHADES)], lw=0, zorder=0)
            shade.set_label(f"phase: {name}" if axes is above else "")
    above.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    below.set_xlim(history[0]["step"] - 0.5, history[-1]["step"] + 0.5)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _draw_recalls(axes: Axes, epochs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seven lines; returns the row of the best epoch, the first of equals, as the trainer keeps it."""
    steps = [row["step"] for row in epochs]
    for name in RECALLS:
        direction, k = name.split("_R@")
        colour = COLOURS[k]
        style, marker = ("-", "o") if direction == "image_to_text" else ("--", "s")
        values = [row["metrics"][name] for row in epochs]
        axes.plot(steps, values, style, color=colour, lw=1.3, marker=marker, ms=3.5,
                  label=f"{DIRECTIONS[direction]} R@{k}")  # fmt: skip
    values = [row["metrics"]["mR"] for row in epochs]
    axes.plot(steps, values, color=INK, lw=2.6, marker="o", ms=5, label="mR, their mean")
    place = int(np.argmax(values))
    best = f"best mR {values[place]:.1f}"
    axes.plot(
        steps[place], values[place], "*", color=VERMILLION, mec="white", ms=17, label=best, zorder=5, clip_on=False
    )
    # Recalls fall with the cutoff in the legend as they do in the picture: R@10 lies on top.
    handles, labels = axes.get_legend_handles_labels()
    order = [6, 7, 2, 5, 1, 4, 0, 3]
    axes.legend([handles[i] for i in order], [labels[i] for i in order], loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_ylim(0, max(1.0, 1.08 * max(max(row["metrics"][name] for name in RECALLS) for row in epochs)))
    return epochs[place]


@styled
def plot_similarity(similarity: np.ndarray, positives: np.ndarray, title: str = "") -> Picture:
    """Cosine similarities of a batch's images (rows) and captions (columns), the positive pairs outlined.

    similarity: real (B, T); positives: bool (B, T). The first 48 rows and columns are drawn.
    Raises DataError when the shapes disagree.
    """
    similarity, positives = np.asarray(similarity), np.asarray(positives)
    if similarity.ndim != 2 or not similarity.size or positives.shape != similarity.shape:
        raise DataError(
            f"The similarity matrix is {similarity.shape} and the positives {positives.shape}; "
            "give both as images x captions of one batch."
        )
    whole = similarity.shape
    similarity, positives = similarity[:MOST_ROWS, :MOST_ROWS], positives[:MOST_ROWS, :MOST_ROWS]
    rows, columns = similarity.shape
    figure = Picture(figsize=(WIDTH, 5.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(similarity, cmap="cividis", interpolation="nearest")
    for row, column in np.argwhere(positives):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=VERMILLION, lw=1.4))
    told = f"Similarity of {rows} images and {columns} captions"
    if whole != similarity.shape:  # short, since a longer title would be cut off
        told = f"Similarity, the first {rows} x {columns} of {whole[0]} x {whole[1]}"
    axes.set_title(title or told, loc="left")
    axes.set_xlabel("caption, number in the batch (outlined: it describes the image)")
    axes.set_ylabel("image, number in the batch")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.9)
    gap = f"{similarity[positives].mean():.2f}" if positives.any() else "none"
    rest = f"{similarity[~positives].mean():.2f}" if not positives.all() else "none"
    figure.alt = (
        f"Similarity matrix of {rows} images and {columns} captions; "
        f"mean of the matching pairs {gap}, of the others {rest}."
    )
    return figure


@styled
def plot_differences(rows: Sequence[dict[str, Any]], unit: str = "points of mR") -> Picture:
    """A forest plot: each row's difference as a dot on its interval, beside a line at 0.

    rows: dicts with `arm`, `difference`, `low`, `high`; those without a difference are the base, and passed over.
    An interval that lacks 0 is drawn strong, and its dot filled. Raises DataError where no row has a difference.
    """
    shown = [row for row in rows if "difference" in row]
    if not shown:
        raise DataError("No row has a difference to plot; give at least one arm beside the base.")
    figure = Picture(figsize=(WIDTH, 1.3 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(shown):
        sure = row["low"] > 0 or row["high"] < 0
        colour = FAINT if not sure else BLUE if row["difference"] > 0 else VERMILLION
        axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=2.2 if sure else 1.4)
        axes.plot(row["difference"], place, "o", ms=7, mec=colour, mew=1.5, color=colour if sure else "white")
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(shown)), [f"{row['arm']}  {row['difference']:+.2f}" for row in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"difference from the base in {unit}")
    axes.set_title("Lines: 95 % intervals; filled where they lack 0", loc="left")
    figure.alt = "Differences from the base. " + "; ".join(
        f"{row['arm']} {row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]" for row in shown
    )
    return figure


# --- results ----------------------------------------------------------------------------------------------------


@styled
def plot_recalls(rows: Sequence[dict[str, Any]], labels: Sequence[str] | None = None) -> Picture:
    """The six recalls (percent) as bars with their intervals, one colour a label.

    rows: a report's, dicts with `label`, `metric`, `value`, `low`, `high` (None: no interval), `n` (queries) and, where
    there are several, `gallery`: each gets a frame of its own, since their recalls do not compare; metrics but the
    recalls and mR are passed over. labels: which to show, in this order; by default all with recalls.
    Raises DataError for a label that the rows lack or that lacks a recall.
    """
    known: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        known.setdefault((row["label"], row.get("gallery", "")), {})[row["metric"]] = row
    if labels is None:
        labels = list(dict.fromkeys(row["label"] for row in rows if row["metric"] in RECALLS))
    frames: dict[str, dict[str, Mapping[str, dict[str, Any]]]] = {}
    for label in labels:
        for gallery in [place for of, place in known if of == label] or [""]:
            of = known.get((label, gallery), {})
            if missing := [metric for metric in RECALLS if metric not in of]:
                raise DataError(f"There is no {missing[0]} of {label!r} to plot; {WANTED}.")
            frames.setdefault(gallery, {})[label] = of
    if not frames:
        raise DataError(f"There are no rows to plot; {WANTED}.")
    figure = Picture(figsize=(WIDTH, 4.0 if len(frames) == 1 else 0.3 + 2.9 * len(frames)), layout="constrained")
    told = []
    for axes, (gallery, of) in zip(figure.subplots(len(frames), squeeze=False).flat, frames.items(), strict=True):
        told.append(_draw_bars(axes, of))
        if gallery:
            axes.set_title(textwrap.shorten(gallery, 80, placeholder=" …"), loc="left")
            told[-1] = f"{gallery}: {told[-1]}"
    whole = "Recall on the whole gallery; lines: 95 % intervals"
    figure.suptitle(whole, x=0, ha="left", size="large", weight="bold")
    figure.alt = f"Recall bars. {'. '.join(told)}."
    return figure


def _draw_bars(axes: Axes, models: Mapping[str, Mapping[str, dict[str, Any]]]) -> str:
    """Bars of every label's rows by metric, the legend beside them; returns labels and mR in words."""
    wide = 0.84 / len(models)
    colours, hatches = (SKY, ORANGE, BLUE, GREEN, PURPLE, VERMILLION, FAINT), ("", "//", "..")
    told = []
    for number, (label, of) in enumerate(models.items()):
        found = [of[metric] for metric in RECALLS]
        centres = np.arange(len(RECALLS)) + (number - (len(models) - 1) / 2) * wide
        values = np.array([row["value"] for row in found])
        told.append(f"{label} (mR {of['mR']['value']:.1f})" if "mR" in of else label)
        look: dict[str, Any] = {
            "color": colours[number % len(colours)],
            "hatch": hatches[number // len(colours) % len(hatches)],
        }
        axes.bar(centres, values, 0.94 * wide, label=textwrap.fill(told[-1], LEGEND), edgecolor="white", lw=0, **look)
        low, high = (np.array([row[end] for row in found], float) for end in ("low", "high"))  # NaN: no interval
        axes.errorbar(centres, values, (values - low, high - values), fmt="none", ecolor=INK, elinewidth=1.2, capsize=2)
        if len(models) <= 2:  # numbers above more bars would run into each other
            for x, row in zip(centres, found, strict=True):
                place = x, row["value"] if row["high"] is None else row["high"]
                axes.annotate(f"{row['value']:.1f}", place, (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(RECALLS)), [f"R@{name.split('@')[1]}" for name in RECALLS])
    for number, (direction, shown) in enumerate(DIRECTIONS.items()):
        asked = sorted({of[f"{direction}_R@1"]["n"] for of in models.values()})
        queries = f"{asked[0]:,}" if len(asked) == 1 else f"{asked[0]:,} to {asked[-1]:,}"
        place = {"xy": (3 * number + 1, 0), "xycoords": axes.get_xaxis_transform(), "xytext": (0, -22)}
        axes.annotate(
            f"{shown}, {queries} queries", **place, textcoords="offset points", ha="center", va="top", fontsize=9
        )
    axes.axvline(2.5, color=FAINT, lw=0.8, ls=":")
    axes.set(ylabel="recall (%)", ylim=(0, max(1.0, 1.12 * axes.dataLim.ymax)))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return "; ".join(told)
