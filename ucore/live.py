"""Live views of training as HTML: made in milliseconds, so that they can follow it, and readable at any width.

Lines are stretched to the page, letters are not. Whatever comes from data is escaped. `visualize.plot_curves`,
`visualize.plot_similarity` and `query_figures` draw the same as pictures for the page.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ucore.evaluate import RECALLS
from ucore.picture import BLUE, INK, SHADES, VERMILLION
from ucore.visualize import (
    COLOURS,
    DIRECTIONS,
    GALLERY,
    MOST_ROWS,
    PARTS,
    SMOOTHING,
    part_label,
    several_parts,
    smoothed,
)

MOST_POINTS = 400  # of a line: about one for every two pixels
PAGE = f"background: white; color: {INK}; font: 13px/1.35 sans-serif; max-width: 800px; padding: 4px"


class Line(NamedTuple):
    """A line of a `panel`: points, of equally many x and y, and how it is drawn. width: pixels; dashes: as in SVG."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    width: float = 2
    dashes: str = ""
    opacity: float = 1


def progress_line(trainer: Any, running: bool) -> str:
    """Where training stands, and what the last step and the best epoch were like: plain text, in one line."""
    done, last_one = f"{trainer.step_count:,}", f"{trainer.total_steps:,}"
    parts = [f"Finished after {done} steps" if trainer.finished else f"Step {done} of at most {last_one}"]
    if running and not trainer.history and not trainer.finished:
        parts.append("features come first, which can take minutes")
    if trainer.history:
        last = trainer.history[-1]
        parts.append(f"phase {last['phase']}, epoch {last['epoch'] + 1}, loss {last['loss']:.3f}")
        if len(named := last.get("parts", {})) > 1:
            told = [f"{part_label(part, None)} {value:.3f}" for part, value in named.items()]
            parts[-1] += f" ({' + '.join(told)})"
    if trainer.best.get("step"):
        criterion, step = getattr(trainer, "criterion", "mR"), f"at step {trainer.best['step']:,}"
        best = f"best validation mR {trainer.best['mR']:.2f} %"
        if criterion != "mR":  # the mR is looked at alone
            named = criterion.replace("_", " ")
            best = "the last weights are kept, those" if criterion == "last" else f"weights kept by {named}"
        parts.append(f"{best} {step}")
    return " · ".join(parts)


def curves_html(
    history: Sequence[dict[str, Any]], weights: Mapping[str, float] | None = None, gallery: str = GALLERY
) -> str:
    """Loss of every step above, validation recalls of every epoch below, as `visualize.plot_curves` draws them.

    history: `Trainer.history`. weights: of the loss's parts, to be named beside them. gallery: what is validated on.
    """
    losses: list[Line] = []
    shades, steps = [], [row["step"] for row in history]
    for number, (name, grouped) in enumerate(groupby(history, key=lambda row: row["phase"])):
        rows, first = list(grouped), number == 0
        x, y = [row["step"] for row in rows], [row["loss"] for row in rows]
        shades.append((name, x[0] - 0.5, x[-1] + 0.5, SHADES[number % len(SHADES)]))
        losses.append(Line("each step" * first, x, y, BLUE, 1, opacity=0.35))
        losses.append(Line(f"loss, mean of {2 * SMOOTHING + 1} steps" * first, x, list(smoothed(y)), BLUE))
        for (part, (when, values)), (colour, lengths) in zip(several_parts(rows).items(), PARTS, strict=False):
            dashes = " ".join(f"{2 * length:g}" for length in lengths)
            losses.append(Line(part_label(part, weights) * first, when, list(values), colour, 2, dashes))
    epochs = [row for row in history if row.get("metrics")]
    x = [row["step"] for row in epochs]
    recalls = []
    for name in RECALLS:
        direction, k = name.split("_R@")
        dashes = "" if direction == "image_to_text" else "6 4"
        y = [row["metrics"][name] for row in epochs]
        recalls.append(Line(f"{DIRECTIONS[direction]} R@{k}", x, y, COLOURS[k], 1.5, dashes))
    recalls.append(Line("mR, their mean", x, [row["metrics"]["mR"] for row in epochs], INK, 3))
    reach = (min(steps) - 0.5, max(steps) + 0.5) if steps else (0.5, 1.5)
    above = panel("Training loss of each step", losses, reach, shades, 130, "No step yet")
    title = f"Recall on {gallery} after each epoch, %"
    below = panel(title, recalls if epochs else [], reach, shades, 180, "No epoch has ended yet", from_zero=True)
    told = f"Training curves over {len(history)} steps"
    told += f", the loss now {history[-1]['loss']:.3f}" if history else ""
    return f'<div role="img" aria-label="{told}" style="{PAGE}">{above}{below}</div>'


def panel(
    title: str,
    lines: Sequence[Line],
    reach: tuple[float, float],
    shades: Sequence[tuple[str, float, float, str]],
    height: int,
    empty: str,
    from_zero: bool = False,
) -> str:
    """One frame of lines with its ticks and, below, its legend.

    reach: of the steps. shades: name, start, stop and colour behind the lines. height: pixels. empty: said where there
    are no lines yet.
    """
    heading = f"<b>{html.escape(title)}</b>"
    if not lines:
        return f'{heading}<div style="height: {height}px; color: #666">{empty}</div>'
    values = np.concatenate([line.y for line in lines])
    low, high = (0.0 if from_zero else float(values.min())), float(values.max())
    ticks = MaxNLocator(4).tick_values(low, high if high > low else low + 1)
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return 1000 * (x - reach[0]) / (reach[1] - reach[0]), 1000 * (high - y) / (high - low)

    drawn = [
        f'<rect x="{place(start, 0)[0]:.1f}" width="{place(stop, 0)[0] - place(start, 0)[0]:.1f}" height="1000" '
        f'fill="{colour}"/>'
        for _, start, stop, colour in shades
    ]
    drawn += [f'<path d="M0 {place(0, tick)[1]:.1f}H1000" stroke="#d5d5d5" {_FIXED}/>' for tick in ticks]
    for line in lines:
        points = [place(x, y) for x, y in zip(*_thinned(line.x, line.y), strict=True)]
        points = points * 2 if len(points) == 1 else points  # a line of no length is drawn as a dot
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        width = line.width if len(points) > 2 or len(set(points)) > 1 else line.width + 4
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="{width}" {_FIXED} '
            f'stroke-dasharray="{line.dashes}" stroke-opacity="{line.opacity}" stroke-linecap="round"/>'
        )
    named = "".join(
        f'<span style="position: absolute; right: calc(100% + 4px); top: {place(0, tick)[1] / 10:.1f}%; '
        f'transform: translateY(-50%)">{tick:g}</span>'
        for tick in ticks
    )
    numbers = f"<span>step {max(1, int(reach[0] + 0.5)):,}</span><span>step {int(reach[1]):,}</span>"
    return (
        f'{heading}<div style="position: relative; height: {height}px; margin: 6px 8px 2px 44px">{named}'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" style="width: 100%; height: 100%; overflow: visible"'
        f' aria-hidden="true">{"".join(drawn)}</svg></div>'
        f'<div style="display: flex; justify-content: space-between; margin: 0 8px 2px 44px">{numbers}</div>'
        f'<div style="margin: 0 8px 8px 44px">{_legend(lines, () if from_zero else shades)}</div>'
    )


_FIXED = 'vector-effect="non-scaling-stroke"'


def _legend(lines: Sequence[Line], shades: Sequence[tuple[str, float, float, str]]) -> str:
    items = []
    for line in lines:
        if line.label:
            bar = f'<path d="M1 5H27" stroke="{line.colour}" stroke-width="{line.width}" '
            bar += f'stroke-dasharray="{line.dashes}" stroke-opacity="{line.opacity}"/>'
            items.append((f'<svg width="28" height="10" aria-hidden="true">{bar}</svg>', line.label))
    for name, _, _, colour in shades:
        ground = f"display: inline-block; width: 28px; height: 10px; background: {colour}; outline: 1px solid #ccc"
        items.append((f'<span style="{ground}"></span>', f"phase: {name}"))
    return " ".join(
        f'<span style="white-space: nowrap; margin-right: 14px">{mark} {html.escape(label)}</span>'
        for mark, label in items
    )


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST_POINTS of a line's points: of each of equal parts the lowest and the highest, and both ends."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(xs) <= MOST_POINTS:
        return xs, ys
    edges = np.linspace(0, len(xs), MOST_POINTS // 2).astype(int)
    kept = {0, len(xs) - 1}
    for start, stop in pairwise(edges):
        kept |= {start + int(ys[start:stop].argmin()), start + int(ys[start:stop].argmax())}
    rows = sorted(kept)
    return xs[rows], ys[rows]


def matrix_html(similarity: np.ndarray, positives: np.ndarray, title: str) -> str:
    """Cosines of a batch's images (rows) and captions (columns), positives outlined: `visualize.plot_similarity`."""
    similarity, positives = np.asarray(similarity)[:MOST_ROWS, :MOST_ROWS], positives[:MOST_ROWS, :MOST_ROWS]
    low, high = float(similarity.min()), float(similarity.max())
    shades = (similarity - low) / (high - low if high > low else 1)
    colours = matplotlib.colormaps["cividis"]
    rows, columns = similarity.shape
    frames = "".join(
        f'<rect x="{column}" y="{row}" width="1" height="1"/>' for row, column in np.argwhere(positives).tolist()
    )
    scale = ", ".join(to_hex(colours(share)) for share in (0.0, 0.5, 1.0))
    bar = f"display: inline-block; width: 90px; height: 10px; background: linear-gradient(to right, {scale})"
    told = f"Similarity matrix of {rows} images and {columns} captions"
    return (
        f'<div style="{PAGE}"><b>{html.escape(title)}</b><br>images (rows) and captions (columns); outlined: they '
        f'belong together. Cosine {low:.2f} <span style="{bar}"></span> {high:.2f}'
        f'<svg role="img" aria-label="{told}" viewBox="0 0 {columns} {rows}" '
        f'style="display: block; width: 100%; max-width: 380px; margin-top: 4px">'
        f'<image href="{_png(colours(shades, bytes=True)[..., :3])}" width="{columns}" height="{rows}" '
        f'preserveAspectRatio="none" style="image-rendering: pixelated"/>'
        f'<g fill="none" stroke="{VERMILLION}" stroke-width="0.12">{frames}</g></svg></div>'
    )


def _png(pixels: np.ndarray) -> str:
    """uint8 (H, W, 3) as a data address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
