"""Images as they answer: samples with their captions, by country, and what text queries find."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from ucore.errors import ConfigError
from ucore.evaluate import best_ranks, instance_relevance
from ucore.images import load_image
from ucore.manifest import Manifest
from ucore.picture import GREEN, WIDTH, Picture, styled

if TYPE_CHECKING:
    from ucore.tasks import Scores

MOST_RANKED = 2000  # captions that examples are drawn from
THUMBNAIL = 240  # pixels


@styled
def plot_samples(manifest: Manifest, n: int = 6, seed: int = 0) -> Picture:
    """`n` images drawn at random, each with the first of its captions and how many it has."""
    if n < 1:
        raise ConfigError(f"n is {n}; ask for at least one sample")
    rows = np.sort(np.random.default_rng(seed).permutation(len(manifest))[:n])
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = Picture(figsize=(WIDTH, 3.5 * lines), layout="constrained")
    for axes, row in zip(figure.subplots(lines, columns, squeeze=False).flat, [*rows, *[None] * columns], strict=False):
        axes.axis("off")
        if row is None:
            continue
        axes.imshow(thumbnail(manifest, row))
        captions = manifest.frame["captions"].iloc[row]
        told = textwrap.fill(printable(captions[0]), 36, max_lines=3, placeholder=" …")
        name = f"{printable(manifest.frame['sample_id'].iloc[row])}: first of {len(captions)} captions"
        axes.set_title(f"{name}\n{told}", fontsize=9, fontweight="normal", loc="left")
    figure.alt = f"{len(rows)} sample images, each with its first caption."
    return figure


@styled
def plot_contact_sheet(manifest: Manifest, per_domain: int = 5, seed: int = 0) -> Picture:
    """For each country a row of `per_domain` images drawn at random, each above its first caption."""
    if not 1 <= per_domain <= 8:
        raise ConfigError(f"per_domain is {per_domain}; choose 1 to 8 images a country")
    names = sorted(set(manifest.frame["domain"]))
    wide, text, head = 0.98 * WIDTH / per_domain, 0.72, 0.3  # inches of an image, its caption, a country's name
    high = len(names) * (head + wide + text)
    letters, lines = int(12.5 * wide) + 2, 4
    figure = Picture(figsize=(WIDTH, high))
    grid = figure.add_gridspec(len(names), per_domain, left=0.005, right=0.995, wspace=0.04, top=1 - head / high,
                               bottom=text / high, hspace=(head + text) / wide)  # fmt: skip
    for line, name in enumerate(names):
        rows = np.flatnonzero(manifest.frame["domain"] == name)
        chosen = np.sort(np.random.default_rng([seed, line]).permutation(rows)[:per_domain])
        for column, row in enumerate(chosen):
            axes = figure.add_subplot(grid[line, column], anchor="N")
            axes.imshow(thumbnail(manifest, int(row)))
            axes.axis("off")
            captions = manifest.frame["captions"].iloc[row]
            told = printable(captions[0]) if len(captions) else ""
            shown = textwrap.fill(told, letters, max_lines=lines, placeholder=" …")
            axes.text(0, -0.02, shown, fontsize=8.5, va="top", transform=axes.transAxes)
            if column == 0:
                title = f"{shortened(name, 30)}: {len(chosen)} of {len(rows):,}{simulated_note(manifest)}"
                axes.set_title(title, loc="left", fontsize=11, pad=4)
    figure.alt = f"{per_domain} images of each of {', '.join(map(printable, names))}, each above its first caption."
    return figure


def example_queries(scores: "Scores", n: int = 6, seed: int = 0) -> np.ndarray:
    """Numbers of `n` texts with distinct captions, int64 (n,), from well to badly answered, none picked by hand.

    The distinct captions (of more than 2,000 a random 2,000) are ordered by the rank of their image and cut into
    `n` equal parts; of each part one is drawn at random. So the examples show the whole range as it is: of six,
    three lie above the median rank. Fewer come back where there are fewer distinct captions.
    """
    if n < 1:
        raise ConfigError(f"n is {n}; ask for at least one example")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(scores.groups))  # so that a repeated caption may stand with any of its images
    chosen = shuffled[np.sort(np.unique(scores.groups[shuffled], return_index=True)[1])][:MOST_RANKED]
    ranks = best_ranks(
        scores.similarity.T[chosen], instance_relevance(scores.text_image_index[chosen], len(scores.similarity))
    )
    ordered = chosen[np.lexsort((chosen, ranks))]
    return np.array([rng.choice(part) for part in np.array_split(ordered, min(n, len(ordered)))])


@styled
def plot_gallery(scores: "Scores", queries: Sequence[int] | np.ndarray, k: int = 5) -> Picture:
    """Text to image: for each text of `queries` the first `k` images, and last the image it was written for.

    That image has a solid green frame wherever it stands; a dashed one marks another image with the very same
    caption, which the standard protocol counts as wrong. `queries`: positions of texts, as from `example_queries`.
    Raises ConfigError for a text that is not there.
    """
    texts, n_images = scores.manifest.texts[0], len(scores.manifest)
    wrong = [query for query in queries if not 0 <= query < len(texts)]
    if wrong or not len(queries) or not 1 <= k <= 8:
        what = f"text {wrong[0]} of {len(texts)}" if wrong else f"{len(queries)} queries and k={k}"
        raise ConfigError(f"Cannot show {what}; give at least one text counted from 0, and k from 1 to 8")
    k = min(k, n_images)
    widths = [0.43 * (k + 1.12), *[1.0] * k, 0.12, 1.0]
    head = 0.55  # inches, for the headings and the first ranks; a row is a square thumbnail and its rank
    figure = Picture(figsize=(WIDTH, head + len(queries) * (0.32 + 0.92 * WIDTH / sum(widths))))
    grid = figure.add_gridspec(len(queries), k + 3, width_ratios=widths, left=0.01, right=0.99, bottom=0.01,
                               top=1 - head / figure.get_figheight(), wspace=0.08, hspace=0.3)  # fmt: skip
    told = []
    for row, query in enumerate(queries):
        own = int(scores.text_image_index[query])
        order = ranking(scores.similarity[:, query], own)
        rank = int(np.flatnonzero(order == own)[0]) + 1
        same = set(scores.text_image_index[scores.groups == scores.groups[query]].tolist())
        _draw_caption(figure.add_subplot(grid[row, 0]), texts[query], rank, n_images)
        for place in range(k + 1):
            image = int(order[place]) if place < k else own
            axes = figure.add_subplot(grid[row, 1 + place + (place == k)])
            axes.imshow(thumbnail(scores.manifest, image))
            number = place + 1 if place < k else rank
            axes.set_title(
                f"{number:,} · {scores.similarity[image, query]:.2f}", fontsize=9, fontweight="normal", pad=3
            )
            _frame(axes, "truth" if image == own else "same caption" if image in same else "")
        told.append(rank)
    left = grid.get_grid_positions(figure)[2]
    dashed = any(axes.get_label() == "same caption" for axes in figure.axes)
    title = f"First {k} of {n_images:,}: rank · similarity" + dashed * " (dashed: same caption)"
    for x, text, side in ((left[0], "Text query", "left"), (left[1], title, "left"), (0.99, "Truth", "right")):
        figure.text(x, 1 - 0.12 / figure.get_figheight(), text, ha=side, va="top", fontweight="bold")
    figure.alt = (
        f"{len(told)} text queries, the {k} images each finds first of {n_images}, and the right image, "
        f"which stands at rank {', '.join(map(str, told))}."
    )
    return figure


def ranking(similarity: np.ndarray, own: int) -> np.ndarray:
    """Images from the closest on; among equals the truth comes last, as the metrics count it."""
    images = np.arange(len(similarity))
    return np.lexsort((images, images == own, -similarity))


def _draw_caption(axes: Axes, caption: str, rank: int, n_images: int) -> None:
    axes.axis("off")
    shown = textwrap.fill(printable(caption), 27, max_lines=4, placeholder=" …") or "(an empty caption)"
    # Clipped, since a line of wide letters would run into the images.
    axes.text(0, 1, shown, va="top", fontsize=10, transform=axes.transAxes, clip_on=True)
    axes.text(0, 0, f"truth at rank {rank:,} of {n_images:,}", fontsize=9, color="#555555", transform=axes.transAxes)


def thumbnail(manifest: Manifest, row: int) -> np.ndarray:
    """An image as it is shown small: uint8 (h, w, 3), neither side above THUMBNAIL pixels."""
    picture = load_image(manifest.image_path(row))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)


def _frame(axes: Axes, kind: str) -> None:
    """Frame of a thumbnail: "truth" solid, "same caption" dashed, "" none; `axes.get_label()` is the kind."""
    axes.set(xticks=[], yticks=[])
    axes.set_label(kind)
    axes.spines[:].set_visible(bool(kind))
    axes.spines[:].set(edgecolor=GREEN, linewidth=4, linestyle="-" if kind == "truth" else (0, (1.2, 0.8)))
    if kind != "truth":
        axes.spines[:].set_capstyle("butt")  # the usual caps would close the gaps between dashes


def printable(text: str) -> str:
    """`text` on one line, with a space for every sign that a figure cannot show."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def shortened(text: str, most: int) -> str:
    """`printable`, and at most `most` letters long."""
    text = printable(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def simulated_note(manifest: Manifest) -> str:
    """What a title adds where the images are generated."""
    return " (simulated)" if manifest.simulated else ""
