"""What a curriculum takes of the source, pass by pass through the target: on the map, by likeness, and as pictures.

Where the source has no places, its samples stand in a row instead, the likest to the target first. `curriculum_html`
follows the steps, `plot_curriculum` is its picture.
"""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from ucore.gallery import printable, simulated_note, thumbnail
from ucore.geo import local_frame
from ucore.live import PAGE
from ucore.manifest import Manifest
from ucore.maps import has_place
from ucore.picture import FAINT, INK, VERMILLION, WIDTH, Picture, styled
from ucore.query_figures import picture_address

if TYPE_CHECKING:
    from ucore.adapt_probes import Cycle

GROUPS = 10  # of the source's samples by likeness
FIRST_CYCLES, LAST_CYCLES = 6, 2  # that the table shows of many: the share taken grows in the first few
MOST_UNSEEN = 400  # samples drawn that the cycle was not offered
MOST_AREAS = 3  # domains of a source that are drawn
REASONS = {
    "none": "this method has no curriculum: all count alike",
    "cosine": "those whose captions are most like the target's",
    "density": "those that are likeliest in the target",
}


class Area(NamedTuple):
    """Where samples are drawn: name, their rows, places float64 (n, 2) in 0 to 1 (y upwards), height over width, and
    the width in metres (0: a row by likeness)."""

    name: str
    rows: np.ndarray
    places: np.ndarray
    shape: float
    metres: float


def areas(manifest: Manifest, likeness: np.ndarray) -> list[Area]:
    """Maps of the source's domains, or one row by likeness where no sample has a place."""
    placed, frame = has_place(manifest), manifest.frame
    if not placed.any():
        order = np.argsort(-likeness, kind="stable")
        across = (np.argsort(order) + 0.5) / len(order)
        return [Area("", np.arange(len(order)), np.stack([across, np.zeros(len(order))], 1), 0.12, 0.0)]
    found = []
    for name in sorted(set(frame["domain"][placed]))[:MOST_AREAS]:
        rows = np.flatnonzero(placed & (frame["domain"] == name).to_numpy())
        degrees = frame[["lon", "lat"]].to_numpy(float)[rows]
        low, high = degrees.min(axis=0), degrees.max(axis=0)
        scale = local_frame(*((low + high) / 2)).scale
        metres = (degrees - low) * scale
        width, height = np.maximum((high - low) * scale, 1.0)
        shape = float(np.clip(height / width, 0.3, 1.5))
        width = max(width, height / shape)
        places = (metres - metres.max(axis=0) / 2) / width + np.array([0.5, shape / 2])
        found.append(Area(str(name), rows, places / np.array([1, shape]), shape, float(width)))
    return found


class Marks(NamedTuple):
    """Of an area's samples, all with places in 0 to 1: those not offered, those left out, those taken and their sizes,
    the root of the weight over the largest."""

    unseen: np.ndarray
    left: np.ndarray
    taken: np.ndarray
    sizes: np.ndarray


def marks(area: Area, cycle: "Cycle | None") -> Marks:
    """What a cycle took, to be drawn; None: nothing was offered yet."""
    nothing = np.zeros(len(area.rows))
    taken, offered, weight = (
        (nothing, nothing, nothing)
        if cycle is None
        else (part[area.rows] for part in (cycle.taken, cycle.offered, cycle.weight))
    )
    unseen = np.flatnonzero(offered == 0)
    unseen = unseen[np.linspace(0, len(unseen) - 1, min(MOST_UNSEEN, len(unseen))).round().astype(int)]
    chosen = np.flatnonzero(taken)
    sizes = np.sqrt(weight[chosen] / max(float(weight[chosen].max(initial=0)), 1e-12))
    left = np.flatnonzero((offered > 0) & (taken == 0))
    return Marks(area.places[unseen], area.places[left], area.places[chosen], sizes)


def shares(likeness: np.ndarray, cycles: Sequence["Cycle"]) -> np.ndarray:
    """Percent of the offered samples that each cycle took, float64 (cycles, GROUPS), the likest tenth first; NaN where
    none was offered."""
    order = np.argsort(-likeness, kind="stable")
    groups = np.array_split(order, GROUPS)
    result = np.full((len(cycles), GROUPS), np.nan)
    for line, cycle in enumerate(cycles):
        for column, group in enumerate(groups):
            if offered := cycle.offered[group].sum():
                result[line, column] = 100 * cycle.taken[group].sum() / offered
    return result


def examples(likeness: np.ndarray, cycle: "Cycle", most: int = 5, left: int = 3) -> tuple[list[int], list[int]]:
    """Rows of the images that weighed most in a cycle, and of those left out the least like the target."""
    taken = np.flatnonzero(cycle.taken)
    heaviest = taken[np.lexsort((taken, -cycle.weight[taken]))][:most]
    out = np.flatnonzero((cycle.offered > 0) & (cycle.taken == 0))
    return heaviest.tolist(), out[np.lexsort((out, likeness[out]))][:left].tolist()


def told(cycle: "Cycle | None", kind: str, manifest: Manifest) -> str:
    """One line: which pass, how much was taken, and why that."""
    if cycle is None:
        return f"What is taken of the source: no step yet{simulated_note(manifest)}"
    steps = f"{cycle.steps} step{'s' if cycle.steps > 1 else ''}"
    return (
        f"Pass {cycle.number + 1} through the target ({steps}): {cycle.share:.0f} % of the source samples offered "
        f"are taken; {REASONS[kind]}{simulated_note(manifest)}"
    )


def shown_cycles(cycles: Sequence["Cycle"]) -> list["Cycle"]:
    """All, or the first and the last of many."""
    few = len(cycles) <= FIRST_CYCLES + LAST_CYCLES
    return list(cycles) if few else [*cycles[:FIRST_CYCLES], *cycles[-LAST_CYCLES:]]


# --- live -------------------------------------------------------------------------------------------------------


def curriculum_html(manifest: Manifest, likeness: np.ndarray, cycles: Sequence["Cycle"], kind: str) -> str:
    """The present cycle on the map or in a row, its heaviest samples, and what every cycle took by likeness."""
    cycle = cycles[-1] if cycles else None
    marked = areas(manifest, likeness)
    signs = ("●", "larger", "○ left out · not offered") if marked[0].metres else ("▌", "taller", "▖ left out")
    key = f'<span style="color: {VERMILLION}">{signs[0]} taken, {signs[1]}: more weight</span> {signs[2]}'
    parts = [f"<b>{html.escape(told(cycle, kind, manifest))}</b><br>{key}"]
    drawn = "".join(_area_svg(area, marks(area, cycle)) for area in marked)
    parts.append(f'<div style="display: flex; flex-wrap: wrap; gap: 10px">{drawn}</div>')
    if cycle is not None:
        heaviest, out = examples(likeness, cycle)
        total = max(float(cycle.weight.sum()), 1e-12)
        cards = [_card(manifest, row, f"weight {cycle.weight[row] / total:.1%}", True) for row in heaviest]
        cards += [_card(manifest, row, "left out", False) for row in out]
        parts.append(f'<div style="display: flex; flex-wrap: wrap">{"".join(cards)}</div>')
        parts.append(_table(likeness, shown_cycles(cycles)))
    return f'<div style="{PAGE}">{"".join(parts)}</div>'


def _area_svg(area: Area, drawn: Marks) -> str:
    width = 300 if area.metres else 780
    height = round(width * area.shape)

    def xy(place: np.ndarray) -> tuple[float, float]:
        return round(8 + (width - 16) * place[0], 1), round(height - 8 - (height - 16) * place[1], 1)

    if area.metres:
        unseen = "".join("<circle cx='{}' cy='{}' r='1.5'/>".format(*xy(place)) for place in drawn.unseen)
        left = "".join("<circle cx='{}' cy='{}' r='3'/>".format(*xy(place)) for place in drawn.left)
        sizes = zip(drawn.taken, drawn.sizes, strict=True)
        taken = "".join(f"<circle cx='{xy(p)[0]}' cy='{xy(p)[1]}' r='{2.5 + 5 * size:.1f}'/>" for p, size in sizes)
        length = scale_length(area.metres)
        long = (width - 16) * length / area.metres
        foot = f'<path d="M8 {height - 4}h{long:.1f}" stroke="{INK}" stroke-width="2"/>'
        note = f"{html.escape(printable(area.name))}; the bar: {length:g} m"
    else:
        unseen = ""
        left = "".join(f"<path d='M{xy(place)[0]} {height - 8}v-12'/>" for place in drawn.left)
        sizes = zip(drawn.taken, drawn.sizes, strict=True)
        taken = "".join(f"<path d='M{xy(p)[0]} {height - 8}v-{14 + (height - 30) * size:.1f}'/>" for p, size in sizes)
        foot = f'<path d="M8 {height - 7}H{width - 8}" stroke="{FAINT}"/>'
        note = "all source samples in a row, the likest to the target on the left; no places are known"
    fill = f'fill="{VERMILLION}" fill-opacity="0.7"' if area.metres else f'stroke="{VERMILLION}" stroke-width="1.6"'
    return (
        f'<figure style="margin: 4px 0"><svg role="img" aria-label="{len(drawn.taken)} source samples taken, '
        f'{len(drawn.left)} left out" viewBox="0 0 {width} {height}" style="width: {width}px; max-width: 100%; '
        f'background: #f6f4ef"><g fill="#b0b0b0">{unseen}</g><g fill="white" stroke="{INK}">{left}</g>'
        f"<g {fill}>{taken}</g>{foot}</svg><figcaption>{note}</figcaption></figure>"
    )


def _card(manifest: Manifest, row: int, note: str, taken: bool) -> str:
    name = html.escape(printable(str(manifest.frame["sample_id"].iloc[row])), quote=True)
    frame = f"outline: 3px solid {VERMILLION}" if taken else "outline: 1px dashed #888; opacity: 0.75"
    return (
        f'<figure style="margin: 6px 10px 4px 4px; width: 84px"><img src="'
        f'{picture_address(manifest.image_path(row), 120)}" alt="Image {name}, {note}" title="{name}" '
        f'style="width: 84px; height: 84px; object-fit: cover; {frame}"><figcaption>{note}</figcaption></figure>'
    )


def _table(likeness: np.ndarray, cycles: Sequence["Cycle"]) -> str:
    lines = []
    for cycle, row in zip(cycles, shares(likeness, cycles), strict=True):
        cells = "".join(
            f'<td style="text-align: right; padding: 1px 7px; background: {_shade(share)}">'
            f"{'' if math.isnan(share) else f'{share:.0f}'}</td>"
            for share in row
        )
        lines.append(f'<tr><th scope="row" style="text-align: left">pass {cycle.number + 1}</th>{cells}</tr>')
    head = "".join(
        f'<th scope="col" style="font-weight: normal; padding: 0 4px">{name}</th>'
        for name in ("likest", *[""] * (GROUPS - 2), "least")
    )
    return (
        "<div>Taken of what was offered, %, by likeness to the target (tenths of the source)</div>"
        f'<table style="border-collapse: collapse"><tr><th></th>{head}</tr>{"".join(lines)}</table>'
    )


def _shade(share: float) -> str:
    return "white" if math.isnan(share) else f"rgba(213, 94, 0, {0.75 * share / 100:.2f})"


def scale_length(metres: float) -> float:
    """1, 2 or 5 times a power of ten: the longest that is at most a third of a width in metres."""
    ten = 10.0 ** math.floor(math.log10(metres / 3))
    return max(step * ten for step in (1, 2, 5) if step * ten <= metres / 3)


# --- the picture ------------------------------------------------------------------------------------------------


@styled
def plot_curriculum(
    manifest: Manifest, likeness: np.ndarray, cycles: Sequence["Cycle"], kind: str, title: str = ""
) -> Picture:
    """The first and the last cycle on the map or in a row, with the heaviest samples of each, and the table."""
    figure = Picture(figsize=(WIDTH, 8.2), layout="constrained")
    pair = [cycles[0], cycles[-1]] if cycles else [None]
    area = areas(manifest, likeness)[0]
    parts: Any = figure.subfigures(3, 1, height_ratios=(4.2, 2.0 * len(pair) / 2 + 0.4, 2.2))
    above, middle, below = parts
    frames = above.subplots(1, len(pair), squeeze=False) if area.metres else above.subplots(len(pair), 1, squeeze=False)
    for axes, cycle in zip(frames.flat, pair, strict=True):
        _draw_area(axes, area, marks(area, cycle))
        axes.set_title("no step yet" if cycle is None else f"pass {cycle.number + 1}: {cycle.share:.0f} % taken",
                       loc="left", fontsize=10.5)  # fmt: skip
    pictures = middle.subplots(len(pair), 8, squeeze=False)
    for line, cycle in zip(pictures, pair, strict=True):
        _draw_examples(line, manifest, likeness, cycle)
    _draw_table(below.subplots(), likeness, shown_cycles(cycles))
    reason = f"What is taken of the source{simulated_note(manifest)}: {REASONS[kind]}"
    figure.suptitle(f"{title} {reason}".strip(), x=0.005, ha="left", fontsize=11, fontweight="bold")
    passes = "; ".join(told(cycle, kind, manifest) for cycle in pair)
    figure.alt = f"Source samples that the curriculum takes. {passes}."
    return figure


def _draw_area(axes: Axes, area: Area, drawn: Marks) -> None:
    axes.set(xticks=[], yticks=[], facecolor="#f6f4ef", xlim=(-0.04, 1.04))
    if area.metres:
        axes.plot(*drawn.unseen.T, ".", color="#b0b0b0", ms=3)
        axes.plot(*drawn.left.T, "o", color="white", mec=INK, mew=0.8, ms=4.5)
        axes.scatter(*drawn.taken.T, s=10 + 70 * drawn.sizes**2, color=VERMILLION, alpha=0.7, lw=0, zorder=3)
        length = scale_length(area.metres)
        axes.plot([0, length / area.metres], [-0.06, -0.06], color=INK, lw=2.5)
        axes.text(0, -0.1, f"{printable(area.name)}, the bar: {length:g} m", fontsize=8.5, va="top")
        axes.set(ylim=(-0.2, 1.05), aspect=area.shape)
    else:
        axes.vlines(drawn.left[:, 0], 0, 0.25, color=FAINT, lw=0.9)
        axes.vlines(drawn.taken[:, 0], 0, 0.3 + 0.7 * drawn.sizes, color=VERMILLION, lw=1.2)
        axes.set(ylim=(0, 1.05), xlabel="source samples, the likest to the target on the left; taller: more weight")


def _draw_examples(line: Sequence[Axes], manifest: Manifest, likeness: np.ndarray, cycle: "Cycle | None") -> None:
    heaviest, out = ([], []) if cycle is None else examples(likeness, cycle)
    total = 1.0 if cycle is None else max(float(cycle.weight.sum()), 1e-12)
    for axes in line:
        axes.axis("off")
    for axes, row in zip(line, heaviest, strict=False):
        axes.imshow(thumbnail(manifest, row))
        axes.set_title(f"{cycle.weight[row] / total:.1%}" if cycle else "", fontsize=9, fontweight="normal", pad=2)
    for axes, row in zip(line[-3:], out, strict=False):
        axes.imshow(thumbnail(manifest, row), alpha=0.75)
        axes.set_title("left out", fontsize=9, fontweight="normal", pad=2)
    if cycle is not None:
        line[0].text(-0.08, 0.5, f"pass {cycle.number + 1}", rotation=90, ha="right", va="center", fontsize=9,
                     transform=line[0].transAxes)  # fmt: skip


def _draw_table(axes: Axes, likeness: np.ndarray, cycles: Sequence["Cycle"]) -> None:
    axes.set_title("Taken of what was offered, %, by likeness to the target", loc="left", fontsize=10.5)
    values = shares(likeness, cycles)
    if len(values):
        axes.imshow(values, cmap="Oranges", vmin=0, vmax=170, aspect="auto")
    for (line, group), share in np.ndenumerate(values):
        if not math.isnan(share):
            axes.text(group, line, f"{share:.0f}", ha="center", va="center", fontsize=9)
    axes.set_yticks(range(len(cycles)), [f"pass {cycle.number + 1}" for cycle in cycles])
    axes.set_xticks([0, GROUPS - 1], ["likest tenth of the source", "least"])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
