"""Two domains while a model adapts: who tells them apart, what chooses the weights, and the clouds of their features.

As HTML that follows the steps (`told_html`, `clouds_html`), and the same as pictures (`plot_adaptation`,
`plot_clouds`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from ucore.live import PAGE, Line, panel
from ucore.picture import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, VERMILLION, WIDTH, Picture, styled
from ucore.visualize import GALLERY, draw_curves

if TYPE_CHECKING:
    from ucore.adapt_probes import Clouds

SIDE = 300  # of a cloud, in pixels
NAMES = {"image": "images", "text": "texts"}
TOLD = "How often the domains are told apart, %"
CHOSEN = "The criterion without pairs, beside what is measured with them, %"
Rows = Sequence[dict[str, Any]]


def told_lines(told: Rows) -> list[Line]:
    """Percent told apart by the method's discriminators and by fresh classifiers; told: as `DomainProbe.told`."""
    lines = []
    for side, colour, dashes in (("image", BLUE, ""), ("text", ORANGE, "7 4")):
        for key, who, width, own_dashes in (
            (side, "its discriminator", 2.2, dashes), (f"fresh_{side}", "a fresh linear classifier", 1.6, "2 4")
        ):  # fmt: skip
            rows = [row for row in told if key in row]
            if rows:
                x, y = ([row[name] for row in rows] for name in ("step", key))
                lines.append(Line(f"{NAMES[side]}, {who}", x, y, colour, width, own_dashes))
    if lines:
        steps = [row["step"] for row in told]
        lines.append(Line("50: a guess", [min(steps), max(steps)], [50, 50], FAINT, 1.2, "5 3"))
    return lines


def chosen_lines(history: Rows) -> list[Line]:
    """The criterion without pairs, and what is measured with the target's pairs to be looked at alone."""
    epochs = [row for row in history if row.get("metrics")]
    names = (
        ("return_probability", "return probability", PURPLE, 2.6, ""),
        ("mR", "mR, of the target's pairs (shown alone)", INK, 2.2, "7 4"),
        ("matching_precision", "likeliest texts that are right (shown alone)", GREEN, 1.8, "2 4"),
    )
    lines = []
    for key, label, colour, width, dashes in names:
        rows = [row for row in epochs if key in row["metrics"]]
        if rows:
            x, y = [row["step"] for row in rows], [row["metrics"][key] for row in rows]
            lines.append(Line(label, x, y, colour, width, dashes))
            if key == "return_probability":
                highest = int(np.argmax(y))
                lines.append(Line("its highest", x[highest : highest + 1], y[highest : highest + 1], VERMILLION, 4))
    return lines


def told_html(told: Rows, history: Rows) -> str:
    """Both questions over the steps: can the domains be told apart, and what chooses the weights."""
    last = max([1.0, *(row["step"] for row in told), *(row["step"] for row in history)])
    above = panel(TOLD, told_lines(told), (0, last), (), 130, "No step yet")
    below = panel(CHOSEN, chosen_lines(history), (0, last), (), 130, "No epoch has ended yet", from_zero=True)
    return f'<div role="img" aria-label="{_told_in_words(told)}" style="{PAGE}">{above}{below}</div>'


def _told_in_words(told: Rows) -> str:
    latest = {key: value for row in told for key, value in row.items()}
    names = {"image": "images", "text": "texts", "fresh_image": "images by a fresh classifier",
             "fresh_text": "texts by a fresh classifier"}  # fmt: skip
    parts = [f"{name} {latest[key]:.0f} %" for key, name in names.items() if key in latest]
    return f"Domains told apart now: {', '.join(parts) or 'not looked at yet'}"


def clouds_html(clouds: "Clouds") -> str:
    """Two frames, images and texts, with the source's points as discs and the target's as squares."""
    frames = []
    for side, name in NAMES.items():
        source, target = (
            [_place(x, y, clouds.reach) for x, y in points] for points in (clouds.source[side], clouds.target[side])
        )
        discs = "".join(f'<circle cx="{x}" cy="{y}" r="3.2"/>' for x, y in source)
        squares = "".join(f'<path d="M{x - 3:.1f} {y - 3:.1f}h6v6h-6z"/>' for x, y in target)
        frames.append(
            f'<figure style="margin: 4px 12px 4px 0"><figcaption>{name}</figcaption><svg role="img" aria-label="'
            f'{len(source)} points of the source and {len(target)} of the target: {name}" viewBox="0 0 {SIDE} {SIDE}" '
            f'style="width: {SIDE}px; max-width: 100%; border: 1px solid #ccc">'
            f'<g fill="{BLUE}" fill-opacity="0.45">{discs}</g><g fill="{VERMILLION}" fill-opacity="0.6">{squares}</g>'
            "</svg></figure>"
        )
    key = f'<span style="color: {BLUE}">● source</span> <span style="color: {VERMILLION}">■ target</span>'
    return (
        f'<div style="{PAGE}"><b>Features after step {clouds.step:,}</b>, in the plane where they spread most; {key}'
        f'<div style="display: flex; flex-wrap: wrap">{"".join(frames)}</div></div>'
    )


def _place(x: float, y: float, reach: float) -> tuple[float, float]:
    half = SIDE / 2
    return round(half + 0.96 * half * x / reach, 1), round(half - 0.96 * half * y / reach, 1)


# --- pictures ---------------------------------------------------------------------------------------------------


@styled
def plot_adaptation(
    history: Rows, told: Rows, weights: Mapping[str, float] | None = None, gallery: str = GALLERY, title: str = ""
) -> Picture:
    """Loss and its parts, who tells the domains apart, what chooses the weights, and the recalls, below each other."""
    figure = Picture(figsize=(WIDTH, 9.4), layout="constrained")
    loss, apart, chosen, recalls = figure.subplots(4, 1, sharex=True, height_ratios=(4, 4, 4, 5))
    best = draw_curves(loss, recalls, history, weights, gallery)
    draw_lines(apart, told_lines(told), TOLD)
    draw_lines(chosen, chosen_lines(history), CHOSEN)
    chosen.set_ylim(bottom=0)
    if history:
        recalls.set_xlim(-0.5, history[-1]["step"] + 0.5)
    figure.suptitle(title, x=0.005, ha="left", fontweight="bold")
    figure.alt = f"{title} Adaptation over {len(history)} steps. {_told_in_words(told)}; recall: {best}.".strip()
    return figure


def draw_lines(axes: Axes, lines: Sequence[Line], title: str) -> None:
    """Lines as `live.panel` draws them, with their legend beside the frame."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_ylabel("%")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    for line in lines:
        gaps = tuple(float(length) / line.width for length in line.dashes.split())
        marker = "o" if len(line.x) < 30 and line.label[:2] != "50" else ""
        size = 3.5 if len(line.x) > 1 else 8
        axes.plot(line.x, line.y, color=line.colour, lw=line.width, ls=(0, gaps) if gaps else "-", marker=marker,
                  ms=size, label=line.label)  # fmt: skip
    if lines:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8.5)
    else:
        axes.text(0.5, 0.5, "Nothing yet", transform=axes.transAxes, ha="center", va="center", color=FAINT)


@styled
def plot_clouds(moments: Sequence[tuple[str, "Clouds"]], title: str = "") -> Picture:
    """Each moment, named, as a row of two frames: its images and its texts, of the source and of the target."""
    figure = Picture(figsize=(WIDTH, 0.7 + 3.6 * len(moments)), layout="constrained")
    frames: Any = figure.subplots(len(moments), len(NAMES), squeeze=False)
    for row, (name, clouds) in zip(frames, moments, strict=True):
        for axes, (side, named) in zip(row, NAMES.items(), strict=True):
            axes.plot(*clouds.source[side].T, "o", color=BLUE, ms=4, alpha=0.45, mew=0, label="source")
            axes.plot(*clouds.target[side].T, "s", color=VERMILLION, ms=4, alpha=0.6, mew=0, label="target")
            middles = (clouds.source[side], BLUE, "o", 15), (clouds.target[side], VERMILLION, "s", 8)
            for points, colour, marker, size in middles:
                axes.plot(*np.mean(points, axis=0), marker, color=colour, ms=size, mec="white", mew=1.5)
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.set(xlim=(-clouds.reach, clouds.reach), ylim=(-clouds.reach, clouds.reach))
            axes.spines[:].set_visible(True)
            axes.set_title(f"{named}, {name}", loc="left", fontsize=10.5)
    frames[0][0].legend(loc="upper left", fontsize=9, frameon=True)
    figure.suptitle(title, x=0.005, ha="left", fontweight="bold")
    told = ", ".join(f"{name}: {_distances(clouds)}" for name, clouds in moments)
    figure.alt = f"{title} Two clouds of features, source and target, in a plane. {told}.".strip()
    return figure


def _distances(clouds: "Clouds") -> str:
    """How far apart the middles of both domains lie in the plane, in words."""
    far = {
        name: float(np.linalg.norm(clouds.source[side].mean(axis=0) - clouds.target[side].mean(axis=0)))
        for side, name in NAMES.items()
    }
    return " and ".join(f"middles of the {name} {value:.2f} apart" for name, value in far.items())
