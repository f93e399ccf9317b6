"""What a query finds and which segments it attends to, then and now: as HTML that follows training, and as pictures."""

import base64
import html
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MplPath
from matplotlib.patheffects import withStroke

from ucore.gallery import printable, simulated_note, thumbnail
from ucore.images import load_image
from ucore.live import PAGE
from ucore.manifest import Manifest
from ucore.maps import jpeg_thumbnail
from ucore.masks import Segments
from ucore.picture import BLUE, FAINT, GREEN, VERMILLION, WIDTH, Picture, styled

if TYPE_CHECKING:
    from ucore.probes import Found

SIDE = 320  # pixels of the longer side of a tile with its segments
STRONGEST = 0.65  # opacity of the segment with the largest share


def changed(then: int, now: int) -> str:
    """How a rank changed, in words that need no colour: "rank 12 → 1 ▲"."""
    mark = "▲" if now < then else "▼" if now > then else "="
    return f"rank {then:,} → {now:,} {mark}"


def _told(found: "Found", manifest: Manifest) -> str:
    when = f"after step {found.steps[0]:,} → {found.steps[1]:,}"
    own = f"its own image (framed), of {found.images:,}: {changed(*found.own_ranks)}"
    return f"{when}; {own}{simulated_note(manifest)}"


# --- live -------------------------------------------------------------------------------------------------------


def found_html(found: "Found", manifest: Manifest) -> str:
    """The best images with their ranks then and now, and the caption's own image last where it is not among them."""
    rows = [*found.best.tolist(), *([] if found.own in found.best else [found.own])]
    ranks = [*found.best_then.tolist(), found.own_ranks[0]]
    cards = []
    for place, row in enumerate(rows):
        own = row == found.own
        frame = f"outline: 4px solid {GREEN}" if own else "outline: 1px solid #ccc"
        now = place + 1 if place < len(found.best) else found.own_ranks[1]
        name = html.escape(printable(str(manifest.frame["sample_id"].iloc[row])), quote=True)
        alt = f"Image {name}{', the right one' if own else ''}"
        address = picture_address(manifest.image_path(row), 160)
        cards.append(
            f'<figure style="margin: 6px 12px 4px 4px; width: 112px"><img src="{address}" '
            f'alt="{alt}" style="width: 112px; height: 112px; object-fit: cover; {frame}">'
            f"<figcaption>{changed(ranks[place], now)}{'<br>the right one' if own else ''}</figcaption></figure>"
        )
    told = f"<b>“{html.escape(printable(found.text))}”</b><br>{html.escape(_told(found, manifest))}"
    return f'<div style="{PAGE}">{told}<div style="display: flex; flex-wrap: wrap">{"".join(cards)}</div></div>'


@lru_cache(maxsize=256)
def picture_address(path: Path, size: int) -> str:
    """A small picture as a data address, its longer side at most `size` pixels."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg_thumbnail(path, size)).decode('ascii')}"


def attention_html(found: "Found", manifest: Manifest, segments: Segments) -> str:
    """The caption's own tile, its segments filled the more the larger their share, and the shares as bars."""
    width, height, outlines, places = segment_outlines(segments)
    address = picture_address(manifest.image_path(found.own), SIDE)
    shares = _shares(found, segments)
    shapes, numbers, bars = [], [], []
    for number, (rings, opacity) in enumerate(zip(outlines, _opacity(shares[1]), strict=True)):
        path = "".join(f"M{' '.join(f'{x:g},{y:g}' for x, y in ring)}Z" for ring in rings)
        style = f'fill="{VERMILLION}" fill-opacity="{opacity:.3f}" fill-rule="evenodd" stroke="white"'
        shapes.append(f'<path d="{path}" {style} stroke-width="1.5"/>')
        x, y = places[number]
        numbers.append(f'<text x="{x:g}" y="{y:g}">{number + 1}</text>')
        then, now = (f"{share:.0%}" for share in shares[:, number])
        long = f"display: inline-block; height: 10px; background: {VERMILLION}; width: {160 * shares[1, number]:.0f}px"
        bars.append(f"<div>{number + 1}: {then} → {now} <span style='{long}'></span></div>")
    letters = "font: bold 17px sans-serif; text-anchor: middle; dominant-baseline: central; paint-order: stroke"
    return (
        f'<div style="{PAGE}"><b>Which segments of its own tile the query attends to</b>: shares after step '
        f"{found.steps[0]:,} → {found.steps[1]:,}"
        f'<div style="display: flex; flex-wrap: wrap; gap: 12px; margin-top: 4px"><svg role="img" '
        f'aria-label="Tile with {len(segments)} segments" viewBox="0 0 {width} {height}" '
        f'style="flex: 0 1 {width}px; width: 100%; max-width: {width}px"><image href="{address}" '
        f'width="{width}" height="{height}" preserveAspectRatio="none"/>{"".join(shapes)}'
        f'<g fill="white" stroke="black" stroke-width="3" style="{letters}">{"".join(numbers)}</g></svg>'
        f'<div style="white-space: nowrap">{"".join(bars)}</div></div></div>'
    )


def _shares(found: "Found", segments: Segments) -> np.ndarray:
    """float32 (2, N), then and now."""
    assert found.shares is not None
    return found.shares[:, : len(segments)]


def _opacity(shares: np.ndarray) -> np.ndarray:
    return STRONGEST * shares / max(float(shares.max(initial=0)), 1e-6)


@lru_cache(maxsize=8)
def segment_outlines(segments: Segments) -> tuple[int, int, list[list[np.ndarray]], list[tuple[int, int]]]:
    """Width and height of the drawn tile; each segment's rings, float (n, 2), x and y there; its innermost pixel."""
    import cv2

    scale = SIDE / max(segments.size)
    height, width = (max(1, round(length * scale)) for length in segments.size)
    outlines, places = [], []
    for mask in segments.masks():
        drawn = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(drawn, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        rings = [cv2.approxPolyDP(ring, 0.8, True)[:, 0].astype(float) for ring in contours]
        outlines.append([ring for ring in rings if len(ring) > 2])
        depth = cv2.distanceTransform(np.pad(drawn, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]  # the tile's edge is an edge
        y, x = divmod(int(depth.argmax()), width)
        places.append((x, y))
    return width, height, outlines, places


# --- pictures ---------------------------------------------------------------------------------------------------


@styled
def plot_found(found: "Found", manifest: Manifest) -> Picture:
    """`found_html` as a picture."""
    rows = [*found.best.tolist(), *([] if found.own in found.best else [found.own])]
    ranks = [*zip(found.best_then.tolist(), range(1, len(found.best) + 1), strict=True), found.own_ranks]
    figure = Picture(figsize=(WIDTH, 2.5), layout="constrained")
    for axes, row, pair in zip(figure.subplots(1, max(len(rows), 6))[: len(rows)], rows, ranks, strict=False):
        axes.imshow(thumbnail(manifest, row))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=row == found.own, edgecolor=GREEN, linewidth=4)
        axes.set_title(changed(*pair), fontsize=8.5, fontweight="normal")
        axes.set_xlabel("the right one" if row == found.own else "", fontsize=9)
    for axes in figure.axes[len(rows) :]:
        axes.axis("off")
    text = textwrap.fill(printable(found.text), 95, max_lines=2, placeholder=" …")
    figure.suptitle(f"“{text}”\n{_told(found, manifest)}", x=0.005, ha="left", fontsize=10)
    figure.alt = f"The {len(found.best)} images that a caption finds first; {_told(found, manifest)}."
    return figure


@styled
def plot_attention(found: "Found", manifest: Manifest, segments: Segments) -> Picture:
    """`attention_html` as a picture."""
    width, height, outlines, places = segment_outlines(segments)
    shares = _shares(found, segments)
    figure = Picture(figsize=(WIDTH, 3.6), layout="constrained")
    tile, bars = figure.subplots(1, 2)
    tile.imshow(load_image(manifest.image_path(found.own)).resize((width, height)))
    tile.axis("off")
    for number, (rings, opacity) in enumerate(zip(outlines, _opacity(shares[1]), strict=True)):
        fill = (*to_rgb(VERMILLION), float(opacity))
        path = MplPath.make_compound_path(*(MplPath([*ring, ring[0]], closed=True) for ring in rings))
        tile.add_patch(PathPatch(path, facecolor=fill, edgecolor="white", lw=1.2))
        effects = [withStroke(linewidth=2.2, foreground="black")]
        tile.text(*places[number], str(number + 1), color="white", fontweight="bold", ha="center", va="center",
                  path_effects=effects, clip_on=True)  # fmt: skip
    lines = np.arange(len(segments))
    for row, (when, colour) in enumerate((("then", FAINT), ("now", BLUE))):
        bars.barh(lines + 0.4 * row - 0.2, 100 * shares[row], 0.38, color=colour,
                  label=f"{when}, after step {found.steps[row]:,}")  # fmt: skip
    bars.set_yticks(lines, [str(line + 1) for line in lines])
    bars.invert_yaxis()
    bars.set(xlabel="share (%)", ylabel="segment")
    bars.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # above: bars may be of any length
    text = textwrap.fill(printable(found.text), 95, max_lines=2, placeholder=" …")
    figure.suptitle(f"Segments that a query attends to on its own tile{simulated_note(manifest)}\n“{text}”", x=0.005,
                    ha="left", fontsize=10)  # fmt: skip
    told = ", ".join(f"{place + 1}: {share:.0%}" for place, share in enumerate(shares[1]))
    figure.alt = f"A tile with {len(segments)} segments and the shares that a query gives them now: {told}."
    return figure
