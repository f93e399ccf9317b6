"""Figures of a dataset: where its samples are, what they show, how its countries differ.

Each country keeps its mark (colour, shape, two letters; `maps.domain_marks`) in every figure and on the map.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ucore.basemap import KINDS, background_paths
from ucore.errors import DataError
from ucore.gallery import printable, shortened, simulated_note
from ucore.manifest import Manifest
from ucore.maps import SHAPES, Mark, domain_marks, in_order, located
from ucore.picture import BLUE, FAINT, INK, ORANGE, PURPLE, WIDTH, Picture, styled

if TYPE_CHECKING:
    import geopandas
    import pandas as pd

KM_PER_DEGREE = 111.32
AREA_CELL = 0.1  # degrees: samples in touching cells belong to one area
MOST_PANELS = 6  # countries with a panel of their own
SPLIT_LOOKS = (BLUE, "", "o"), (ORANGE, "////", "s"), (PURPLE, "....", "^"), (FAINT, "xx", "D")


def tag_shares(manifest: Manifest) -> "pd.DataFrame":
    """Share of each domain's images that carry a tag: float64, tags (most frequent first) x domains, in [0, 1]."""
    import pandas as pd

    domains, tags = manifest.frame["domain"], manifest.frame["tags"]
    counts = Counter((tag, name) for name, of_image in zip(domains, tags, strict=True) for tag in set(of_image))
    total = Counter(domains)
    names = sorted(total)
    table = {tag: [counts[tag, name] / total[name] for name in names] for tag in sorted({tag for tag, _ in counts})}
    shares = pd.DataFrame.from_dict(table, orient="index", columns=names, dtype=float)
    order = np.argsort(-shares.to_numpy().mean(axis=1), kind="stable") if len(shares) else []
    return shares.iloc[order]


@styled
def plot_tags(manifest: Manifest, most: int = 12, distinctive: int = 5) -> Picture:
    """Above, the `most` frequent tags and each country's share of images; below, what sets each country apart.

    Distinctive is a tag whose share is furthest above the mean of the other countries (the grey tick).
    """
    shares, marks = tag_shares(manifest), domain_marks(manifest.frame["domain"])
    names = list(shares.columns)[:MOST_PANELS] if len(marks) > 1 and len(shares) else []
    columns = min(3, len(names)) or 1
    rows = -(-len(names) // columns)
    heights = [1.0 + 0.27 * max(3, min(most, len(shares))), rows * (0.9 + 0.33 * distinctive)]
    figure = Picture(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=heights) if names else [figure, figure]
    above, below = parts
    _draw_shares(above.subplots(), shares.iloc[:most], marks)
    if names:
        title = "What sets each apart: % of its images, and of the others' (tick)"
        below.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        panels = below.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(names) :]:
            axes.axis("off")
    told = []
    for number, name in enumerate(names):
        others = shares.drop(columns=name).mean(axis=1)
        excess = (shares[name] - others).to_numpy()
        order = np.argsort(-excess, kind="stable")[:distinctive]
        best = [str(shares.index[row]) for row in order if excess[row] > 0]
        _draw_distinctive(panels[number], name, marks[name], best, shares[name], others)
        told.append(f"{name}: {', '.join(map(printable, best[:3])) or 'none'}")
    figure.alt = f"Share of images with each of the most frequent tags, by country. Distinctive: {'; '.join(told)}."
    return figure


def _draw_shares(axes: Axes, shares: "pd.DataFrame", marks: dict[str, Mark]) -> None:
    axes.set_title("The most frequent tags", loc="left")
    if not len(shares):
        return _say(axes, "No image has tags")
    values = 100 * shares.to_numpy()
    axes.hlines(range(len(shares)), values.min(axis=1), values.max(axis=1), color="#d5d5d5", lw=3, zorder=1)
    for column, (name, mark) in enumerate(marks.items()):
        axes.scatter(values[:, column], range(len(shares)), 52, mark.colour, marker=SHAPES[mark.shape],
                     edgecolors=INK, linewidths=0.6, label=printable(name), zorder=2)  # fmt: skip
    axes.set_yticks(range(len(shares)), [shortened(str(tag), 34) for tag in shares.index])
    axes.invert_yaxis()
    axes.set(xlim=(-2, 102), xlabel="images of the country that carry the tag (%)")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _draw_distinctive(axes: Axes, name: str, mark: Mark, tags: list[str], here: Any, elsewhere: Any) -> None:
    axes.set_title(shortened(name, 22), loc="left", fontsize=11)
    if not tags:
        return _say(axes, "nothing")
    axes.barh(range(len(tags)), 100 * here[tags], 0.34, color=mark.colour, align="edge")
    ticks = 100 * elsewhere[tags].to_numpy()
    axes.vlines(ticks, np.arange(len(tags)) - 0.05, np.arange(len(tags)) + 0.39, color=INK, lw=2)
    for row, tag in enumerate(tags):
        axes.text(0, row - 0.08, shortened(tag, 30), fontsize=9, va="bottom")
    axes.set(xlim=(0, 100), ylim=(len(tags) - 0.5, -0.6), yticks=[])


# --- places -----------------------------------------------------------------------------------------------------


@styled
def plot_places(manifest: Manifest, features: "geopandas.GeoDataFrame | None" = None) -> Picture:
    """All located samples at once, the still twin of the map; `features` lie beneath where the extent is a city's.

    Raises DataError when no sample has a place.
    """
    placed = _placed(manifest)
    marks = domain_marks(manifest.frame["domain"])
    lon, lat = placed.frame["lon"].to_numpy(), placed.frame["lat"].to_numpy()
    figure = Picture(figsize=(WIDTH, 4.8), layout="constrained")
    axes = figure.subplots()
    reach = max(np.ptp(lon), np.ptp(lat))
    if features is not None and reach < 0.5:
        _draw_features(axes, features)
    counts = Counter(placed.frame["domain"])
    for name, mark in marks.items():
        here = (placed.frame["domain"] == name).to_numpy()
        if not here.any():
            continue
        axes.scatter(lon[here], lat[here], 44, mark.colour, marker=SHAPES[mark.shape], edgecolors=INK, linewidths=0.5,
                     label=f"{printable(name)} ({mark.code}): {counts[name]:,}", zorder=3)  # fmt: skip
    pad = max(0.08 * reach, 0.002)
    axes.update_datalim([(lon.min() - pad, lat.min() - pad), (lon.max() + pad, lat.max() + pad)])
    axes.autoscale_view()
    axes.set_aspect(1 / np.cos(np.radians(np.clip(np.median(lat), -80, 80))), adjustable="datalim")
    axes.set(xlabel="longitude (°)", ylabel="latitude (°)")
    axes.ticklabel_format(useOffset=False)
    axes.grid(True)
    axes.set_title(f"{len(placed):,} samples{simulated_note(manifest)}", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    listed = ", ".join(f"{printable(name)} {count:,}" for name, count in sorted(counts.items()))
    figure.alt = f"Map of {len(placed)} samples: {listed}."
    return figure


def _draw_features(axes: Axes, features: "geopandas.GeoDataFrame") -> None:
    for kind, paths in background_paths(features).items():
        style = KINDS[kind]
        if style.fill:
            drawn: Any = PolyCollection(paths, facecolors=style.fill, edgecolors=style.line or "none", linewidths=0.3)
        else:
            drawn = LineCollection(paths, colors=style.line if style.line != "#ffffff" else "#dddddd", linewidths=0.6)
        axes.add_collection(drawn, autolim=False)


@styled
def plot_splits(manifest: Manifest) -> Picture:
    """Each country's main area with its footprints (dots where there are none) by split, in kilometres.

    The main area is the connected one with the most samples; the title says how many lie outside it.
    Raises DataError when no sample has a place.
    """
    placed = _placed(manifest)
    names = [name for name, _ in Counter(placed.frame["domain"]).most_common(MOST_PANELS)]
    splits = in_order(manifest.frame["split"])
    looks = {name: SPLIT_LOOKS[min(number, len(SPLIT_LOOKS) - 1)] for number, name in enumerate(splits)}
    columns = min(3, len(names)) if len(names) != 4 else 2
    rows = -(-len(names) // columns)
    figure = Picture(figsize=(WIDTH, 0.5 + rows * (1.2 + 0.9 * WIDTH / columns)), layout="constrained")
    for axes, name in zip(
        figure.subplots(rows, columns, squeeze=False).flat, [*names, *[None] * columns], strict=False
    ):
        if name is None:
            axes.axis("off")
            continue
        _draw_area(axes, placed.domain(name), name, looks)
    bare = placed.frame["footprint"].isna().to_numpy()
    handles = []
    for colour, hatch, marker in looks.values():
        patch = Patch(facecolor=colour, edgecolor=INK, hatch=hatch, lw=0.5)
        dot = Line2D([], [], ls="", marker=marker, color=colour, mec=INK)
        handles.append((patch, dot) if bare.any() and not bare.all() else dot if bare.any() else patch)
    names_shown = [printable(name) or "no split" for name in looks]
    figure.legend(handles, names_shown, loc="outside lower left", ncols=len(handles), handler_map={
        tuple: HandlerTuple(ndivide=None, pad=0.6)})  # fmt: skip
    counts = Counter(manifest.frame["split"])
    figure.suptitle(
        f"Where the splits lie{simulated_note(manifest)}", x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    shown = ", ".join(f"{printable(name)} {counts[name]:,}" for name in splits)
    figure.alt = f"Maps of {', '.join(map(printable, names))} with the samples of each split: {shown}."
    return figure


def _draw_area(axes: Axes, part: Manifest, name: str, looks: dict[str, tuple[str, str, str]]) -> None:
    lon, lat = part.frame["lon"].to_numpy(), part.frame["lat"].to_numpy()
    inside = _main_area(lon, lat)
    centre = np.array([np.median(lon[inside]), np.median(lat[inside])])
    to_km = KM_PER_DEGREE * np.array([np.cos(np.radians(centre[1])), 1.0])
    for split, (colour, hatch, marker) in looks.items():
        rows = inside & (part.frame["split"] == split).to_numpy()
        shapes = [shape for shape in part.frame["footprint"][rows] if shape is not None]
        outlines = [(np.array(largest_outline(shape)) - centre) * to_km for shape in shapes]
        axes.add_collection(PolyCollection(outlines, facecolors=colour, edgecolors=INK, linewidths=0.3, hatch=hatch))
        bare = rows & part.frame["footprint"].isna().to_numpy()
        points = (np.column_stack([lon, lat])[bare] - centre) * to_km
        axes.scatter(points[:, 0], points[:, 1], 26, colour, marker=marker, edgecolors=INK, linewidths=0.4)
    axes.autoscale_view()
    axes.margins(0.05)
    axes.set_aspect("equal", adjustable="datalim")
    outside = f", {int((~inside).sum()):,} elsewhere" if not inside.all() else ""
    place = f"{abs(centre[1]):.2f}° {'NS'[int(centre[1] < 0)]} {abs(centre[0]):.2f}° {'EW'[int(centre[0] < 0)]}"
    axes.set_title(f"{shortened(name, 18)}: {int(inside.sum()):,}{outside}\n{place}", loc="left", fontsize=10)
    axes.set_xlabel("km to the east")
    axes.set_ylabel("km to the north")


def largest_outline(shape: Any) -> list[tuple[float, float]]:
    """Outer ring, lon and lat, of a polygon or of the largest part of several."""
    return list(max(getattr(shape, "geoms", [shape]), key=lambda part: part.area).exterior.coords)


def _main_area(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """bool (N,): the samples of the largest group of touching cells."""
    import shapely

    cells, cell_of = np.unique(np.floor(np.column_stack([lon, lat]) / AREA_CELL), axis=0, return_inverse=True)
    low, high = cells - 0.01, cells + 1.01
    merged = shapely.union_all(shapely.box(*low.T, *high.T))
    areas = np.array(getattr(merged, "geoms", [merged]))
    area_of = np.array([int(np.argmax(shapely.contains_xy(areas, *(cell + 0.5)))) for cell in cells])[cell_of.ravel()]
    return area_of == np.bincount(area_of).argmax()


# --- numbers ---------------------------------------------------------------------------------------------------


@styled
def plot_statistics(manifest: Manifest) -> Picture:
    """Samples of each country and split, words of the captions, and ground resolution."""
    marks, splits = domain_marks(manifest.frame["domain"]), in_order(manifest.frame["split"])
    figure = Picture(figsize=(WIDTH, 2.6 + 0.34 * len(marks)), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    start = np.zeros(len(marks))
    frame = manifest.frame
    for number, split in enumerate(splits):
        colour, hatch, _ = SPLIT_LOOKS[min(number, len(SPLIT_LOOKS) - 1)]
        counts = Counter(frame["domain"][frame["split"] == split])
        wide = np.array([counts[name] for name in marks])
        left.barh(
            range(len(marks)),
            wide,
            0.6,
            start,
            color=colour,
            hatch=hatch,
            ec="white",
            label=printable(split) or "no split",
        )
        start += wide
    left.set_yticks(range(len(marks)), [shortened(name, 12) for name in marks])
    left.invert_yaxis()
    left.set_title("Samples", loc="left")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, columnspacing=1)
    words = {name: [len(text.split()) for text in manifest.domain(name).texts[0]] for name in marks}
    longest = max([1, *(max(each, default=1) for each in words.values())])
    bins = np.linspace(0, longest + 1, min(longest + 2, 25))
    styles = ("-", "--", "-.", ":")
    for number, (name, mark) in enumerate(marks.items()):
        weights = np.full(len(words[name]), 100 / max(1, len(words[name])))
        middle.hist(words[name], bins.tolist(), weights=weights, histtype="step", color=mark.colour, lw=1.8,
                    ls=styles[number % len(styles)], label=shortened(name, 14))  # fmt: skip
    middle.set_title("Words a caption", loc="left")
    middle.set_ylabel("% of captions")
    middle.legend(handles=[Line2D([], [], color=mark.colour, ls=styles[n % 4], lw=1.8, label=shortened(name, 14))
                           for n, (name, mark) in enumerate(marks.items())][:8],
                  loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, columnspacing=1)  # fmt: skip
    _draw_resolution(right, manifest, marks)
    means = ", ".join(f"{printable(name)} {np.mean(each or [0]):.0f}" for name, each in words.items())
    figure.alt = f"Samples per country and split, caption lengths (mean words: {means}) and metres a pixel."
    return figure


def _draw_resolution(axes: Axes, manifest: Manifest, marks: dict[str, Mark]) -> None:
    axes.set_title("Ground resolution", loc="left")
    gsd = manifest.frame["gsd_m"].to_numpy(float)
    known = np.isfinite(gsd)
    if not known.any():
        return _say(axes, "not known")
    for row, (name, mark) in enumerate(marks.items()):
        here = known & (manifest.frame["domain"] == name).to_numpy()
        values, counts = np.unique(gsd[here].round(3), return_counts=True)
        sizes = 30 + 170 * counts / max(1, here.sum())
        axes.scatter(values, np.full(len(values), row), sizes, mark.colour, marker=SHAPES[mark.shape], ec=INK, lw=0.5)
    axes.set(ylim=(len(marks) - 0.5, -0.5), xlabel="metres a pixel (size: share)")
    axes.set_yticks(range(len(marks)), [mark.code for mark in marks.values()])
    axes.set_xlim(0, 1.15 * np.nanmax(gsd))
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _placed(manifest: Manifest) -> Manifest:
    placed = located(manifest)
    if not len(placed):
        raise DataError(f"None of the {len(manifest):,} samples has coordinates, so there is no map to draw.")
    return placed


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT)
    axes.set(xticks=[], yticks=[])
