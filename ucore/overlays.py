"""Figures of the augmentation stage: masks over their picture, the filters step by step, crops, words beside segments.

Colours only help the eye: every mask has an outline and, where it is spoken of, a number.
"""

import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from ucore.errors import ConfigError, DataError
from ucore.gallery import printable, shortened
from ucore.manifest import Manifest
from ucore.masks import Segments, label_codes
from ucore.picture import INK, VERMILLION, WIDTH, Picture, styled
from ucore.selection import LARGEST, OVERLAP, candidates, select_segments

SIDE = 420  # pixels of the longer side of a drawn picture
FILL = 0.42  # share of a mask's colour in its ground
MOST_NUMBERS = 40  # masks of one picture that get numbers: more would cover it
PALETTE = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c",
           "#fabebe", "#008080", "#aa6e28")  # fmt: skip


def overlay(image: np.ndarray, segments: Segments, side: int = SIDE) -> np.ndarray:
    """The picture with its masks, uint8 (h, w, 3), the longer side `side` pixels: tinted, outlined, small on top."""
    return _painted(image, segments, side)[0]


def _painted(image: np.ndarray, segments: Segments, side: int) -> tuple[np.ndarray, np.ndarray]:
    """`overlay`, and where the number of each mask belongs, float (N, 2), x and y there; NaN for a hidden one."""
    import cv2

    if image.shape[:2] != segments.size:
        raise DataError(f"The masks are of an image of {segments.size} pixels, this one has {image.shape[:2]}.")
    height, width = (max(1, round(length * side / max(image.shape[:2]))) for length in image.shape[:2])
    enlarges = max(image.shape[:2]) < side
    picture = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC if enlarges else cv2.INTER_AREA)
    top = np.zeros((height, width), np.int32)  # number of the mask that lies on top, from 1
    outlines: list[tuple[Any, tuple[int, ...]]] = []
    shown, colours = picture.astype(np.float32), _colours()
    used = np.zeros(len(segments) + 1, np.int64)
    for row in np.argsort(-segments.areas, kind="stable"):
        mask = segments.masks([row])[0].astype(np.uint8)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR if not enlarges else cv2.INTER_NEAREST)
        around = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0
        beside = np.bincount(used[np.unique(top[around])][1:], minlength=len(colours))
        # The colour least used by what it touches; of equal ones the next in turn.
        turn = (np.arange(len(colours)) - row) % len(colours)
        used[row + 1] = np.lexsort((turn, beside))[0]
        inside, colour = mask > 0, colours[used[row + 1]]
        top[inside] = row + 1
        shown[inside] = (1 - FILL) * picture[inside] + FILL * colour
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outlines.append((contours, tuple(int(value) for value in colour)))
    result = shown.clip(0, 255).astype(np.uint8)
    for contours, colour in outlines:
        cv2.drawContours(result, contours, -1, (20, 20, 20), 3, cv2.LINE_AA)
        cv2.drawContours(result, contours, -1, colour, 1, cv2.LINE_AA)
    return result, _places(top, len(segments))


@cache
def _colours() -> np.ndarray:
    """PALETTE as float32 (12, 3) in [0, 255]."""
    return np.array([[int(code[place : place + 2], 16) for place in (1, 3, 5)] for code in PALETTE], np.float32)


def _places(top: np.ndarray, count: int) -> np.ndarray:
    """The innermost visible pixel of each mask, float (count, 2)."""
    import cv2

    places = np.full((count, 2), np.nan)
    for row in range(count):
        visible = np.pad((top == row + 1).astype(np.uint8), 1)  # the picture's edge is an edge
        if visible.any():
            depth = cv2.distanceTransform(visible, cv2.DIST_L2, 3)[1:-1, 1:-1]
            places[row] = divmod(int(depth.argmax()), top.shape[1])[::-1]
    return places


def true_segments(manifest: Manifest, row: int) -> Segments | None:
    """The true mask of every object on a simulated tile, in the order of its instances; None where there are none."""
    import cv2

    from ucore.files import safe_join

    name = str(manifest.frame["image"].iloc[row])
    if not manifest.simulated or not name.startswith("images/"):
        return None
    path = safe_join(manifest.root, f"masks/{name.removeprefix('images/')}").with_suffix(".png")
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if labels is None or labels.ndim != 2:
        return None
    numbers, codes = label_codes(labels)
    there = [code for number, code in zip(numbers, codes, strict=True) if number > 0]  # 0: no object
    return Segments.from_rles((labels.shape[0], labels.shape[1]), there)


def selection_steps(
    segments: Segments, k: int = 10, largest: int = LARGEST, most_overlap: float = OVERLAP
) -> list[tuple[str, np.ndarray]]:
    """What each filter of `select_segments` leaves, in order: its name and the rows int64."""
    return [
        ("all masks", np.arange(len(segments))),
        (f"the {largest} largest", candidates(segments, largest, 1.0)),
        (f"overlap at most {most_overlap:g}", candidates(segments, largest, most_overlap)),
        (f"{k} by quality", select_segments(segments, k, largest=largest, most_overlap=most_overlap)),
    ]


# --- figures ----------------------------------------------------------------------------------------------------


def draw_overlay(axes: Axes, image: np.ndarray, segments: Segments, title: str = "", numbered: bool = True) -> None:
    """`overlay` in `axes`, numbered from 1 in the order of the segments."""
    picture, places = _painted(image, segments, SIDE)
    axes.imshow(picture)
    axes.axis("off")
    if title:
        axes.set_title(title, fontsize=9.5, fontweight="normal", loc="left", pad=3)
    if numbered and len(segments) <= MOST_NUMBERS:
        for number, (x, y) in enumerate(places, start=1):
            if not np.isnan(x):
                effects = [withStroke(linewidth=2.2, foreground="black")]
                axes.text(x, y, str(number), color="white", fontsize=8.5, fontweight="bold", ha="center", va="center",
                          path_effects=effects, clip_on=True)  # fmt: skip


@styled
def plot_overlays(
    images: Sequence[np.ndarray], columns: Mapping[str, Sequence[Segments | None]], labels: Sequence[str]
) -> Picture:
    """A row an image: the picture, then the masks of each of `columns` over it, with their number and covered share.

    images: uint8 (H, W, 3). columns: title -> masks of each image, None where there is nothing to show.
    labels: of the rows.
    """
    if not images or any(len(of) != len(images) for of in (labels, *columns.values())):
        raise ConfigError(f"{len(images)} images, {len(labels)} labels: give one label and one result for each image.")
    side = WIDTH / (1 + len(columns))
    figure = Picture(figsize=(WIDTH, len(images) * (side + 0.28)), layout="constrained")
    frames = figure.subplots(len(images), 1 + len(columns), squeeze=False)
    for line, (image, label) in enumerate(zip(images, labels, strict=True)):
        frames[line, 0].imshow(image)
        frames[line, 0].axis("off")
        frames[line, 0].set_title(_cut(label, side), fontsize=9.5, loc="left", pad=3)
        for axes, (title, of_images) in zip(frames[line, 1:], columns.items(), strict=True):
            found = of_images[line]
            axes.axis("off")
            if found is not None:
                told = f"{title}: {len(found)}, {found.covered:.0%}"
                draw_overlay(axes, image, found, _cut(told, side), numbered=False)
    counts = [f"{title} {sum(len(found) for found in of if found is not None)}" for title, of in columns.items()]
    figure.alt = f"{len(images)} images beside their masks; number of masks in all: {', '.join(counts)}."
    return figure


@styled
def plot_steps(image: np.ndarray, segments: Segments, steps: Sequence[tuple[str, np.ndarray]]) -> Picture:
    """What each step leaves of the masks of an image, with counts; steps as from `selection_steps`."""
    columns = min(len(steps), 4)
    lines = -(-len(steps) // columns)
    side = WIDTH / columns
    figure = Picture(figsize=(WIDTH, lines * (side + 0.42) + 0.3), layout="constrained")  # the last is for `marked`
    frames = figure.subplots(lines, columns, squeeze=False)
    for axes in frames.flat:
        axes.axis("off")
    for number, (axes, (name, rows)) in enumerate(zip(frames.flat, steps, strict=False)):
        last = number == len(steps) - 1
        title = f"{printable(name)}:\n{len(rows)} masks, {segments.take(rows).covered:.0%} covered"
        draw_overlay(axes, image, segments.take(rows), title, numbered=last)
    told = ", then ".join(f"{name} {len(rows)}" for name, rows in steps)
    figure.alt = f"The masks that each filter leaves: {printable(told)}."
    return figure


@styled
def plot_crops(crops: Mapping[str, np.ndarray], headings: Sequence[str] = ()) -> Picture:
    """Crops of the same segments, a row for each way of cutting them; crops: name -> uint8 (N, S, S, 3).

    headings: above the columns; by default the numbers from 1.
    """
    count = max((len(of) for of in crops.values()), default=0)
    if not count:
        return _nothing("No segment, no crop")
    headings = list(headings) or [str(number + 1) for number in range(count)]
    if len(headings) < count:
        raise ConfigError(f"{len(headings)} headings for {count} crops: give one for each.")
    left = 0.62  # inches for the names
    side = min((WIDTH - left) / count, 1.3)
    figure = Picture(figsize=(WIDTH, 0.3 + len(crops) * (side + 0.06) + 0.2))  # the last is for `marked`
    high = figure.get_figheight()
    for line, (name, of_image) in enumerate(crops.items()):
        bottom = 1 - (0.3 + (line + 1) * (side + 0.06)) / high
        figure.text(0.005, bottom + side / high / 2, printable(name), va="center", fontweight="bold", fontsize=10)
        for column, crop in enumerate(of_image):
            place = ((left + column * side) / WIDTH, bottom, (side - 0.06) / WIDTH, side / high)
            axes = figure.add_axes(place, anchor="N")
            axes.imshow(crop)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, edgecolor="#bbbbbb", linewidth=0.6)  # white crops on a white page
            if line == 0:
                axes.set_title(_cut(headings[column], side), fontsize=9, fontweight="normal", pad=3)
    figure.alt = f"{count} crops, each with these backgrounds: {', '.join(map(printable, crops))}."
    return figure


@styled
def plot_matches(
    image: np.ndarray,
    segments: Segments,
    crops: np.ndarray,
    words: Sequence[str],
    similarity: np.ndarray,
    chosen: Sequence[int] = (),
) -> Picture:
    """Which segment matches which words: the numbered masks, and cosines of words (rows) and segments (columns).

    crops: uint8 (N, S, S, 3), shown above their columns. similarity: float (P, N). The best segment of each row is
    framed; columns of `chosen` (positions) are marked with a triangle.
    """
    similarity = np.asarray(similarity)
    if similarity.shape != (len(words), len(segments)) or len(crops) != len(segments):
        raise ConfigError(f"{len(words)} words, {len(segments)} segments, {len(crops)} crops and similarities of "
                          f"{similarity.shape} do not fit each other")  # fmt: skip
    if not similarity.size:
        return _nothing("No segment or no words to compare")
    count, line = len(segments), 0.27
    left, wide, head = 2.45, 0.62, 0.5  # inches: the picture, the words beside the matrix, crops above it
    cell = (WIDTH - left - wide - 0.75) / count
    head = min(cell, 0.75) + 0.22
    high = max(head + line * len(words) + 0.15, left + 0.1)
    figure = Picture(figsize=(WIDTH, high))
    axes = figure.add_axes((0.003, (high - left) / high, left / WIDTH - 0.02, left / high - 0.02), anchor="NW")
    draw_overlay(axes, image, segments)
    x = left + wide + 0.6
    matrix = figure.add_axes((x / WIDTH, (high - head - line * len(words)) / high, cell * count / WIDTH,
                              line * len(words) / high))  # fmt: skip
    matrix.imshow(similarity, cmap="cividis", aspect="auto")
    matrix.set_yticks(range(len(words)), [textwrap.shorten(printable(word), 20, placeholder="…") for word in words])
    matrix.set_xticks([])
    matrix.tick_params(length=0, labelsize=9)
    matrix.spines[:].set_visible(False)
    middle = (similarity.min() + similarity.max()) / 2
    for row, column in np.ndindex(*similarity.shape):
        value, best = similarity[row, column], column == int(similarity[row].argmax())
        matrix.text(column, row, f"{value:.2f}".replace("0.", "."), ha="center", va="center",
                    fontsize=min(8.5, 17 * cell), color="white" if value < middle else "black",
                    fontweight="bold" if best else "normal")  # fmt: skip
        if best:
            edges = [column - 0.5, column + 0.5, column + 0.5, column - 0.5, column - 0.5]
            matrix.plot(edges, [row - 0.5, row - 0.5, row + 0.5, row + 0.5, row - 0.5], color=VERMILLION, lw=2.2,
                        clip_on=False)  # fmt: skip
    for column, crop in enumerate(crops):
        small = min(cell, 0.75) - 0.04
        place = (x + column * cell + (cell - small) / 2, high - head)
        axes = figure.add_axes((place[0] / WIDTH, place[1] / high, small / WIDTH, small / high))
        axes.imshow(crop)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, edgecolor="#bbbbbb", linewidth=0.6)
        axes.set_title(f"{column + 1}{' ▼' if column in chosen else ''}", fontsize=8.5, pad=2, color=INK)
    pairs = [f"{printable(word)}: {int(row.argmax()) + 1}" for word, row in zip(words, similarity, strict=True)]
    figure.alt = f"Similarity of {len(words)} words and {count} segments; best segment of each: {', '.join(pairs)}."
    return figure


def _cut(text: str, inches: float) -> str:
    """`text` on one line, as long as fits into so many inches at 9 points."""
    return shortened(text, max(3, int(inches * 13)))


def _nothing(text: str) -> Picture:
    figure = Picture(figsize=(WIDTH, 1.0))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    figure.alt = f"{text}."
    return figure
