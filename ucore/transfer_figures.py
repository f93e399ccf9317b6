"""Figures of the border: what a model loses there, and what adaptation wins back."""

from collections.abc import Sequence

import numpy as np

from ucore.picture import WIDTH, Picture, ink_on, styled


@styled
def plot_gap(domains: Sequence[str], mean_recall: np.ndarray, title: str = "") -> Picture:
    """What a model of each domain (row) reaches in each domain (column): mR in percent, darker the better.

    mean_recall: float (N, N). Read a column: its diagonal is the model at home, the others came from elsewhere.
    """
    side = len(domains)
    figure = Picture(figsize=(min(WIDTH, 2.6 + 1.1 * side), 1.6 + 0.62 * side), layout="constrained")
    axes = figure.subplots()
    shades = axes.imshow(mean_recall, cmap="Blues", vmin=0, vmax=1.25 * mean_recall.max())
    for source, target in np.ndindex(side, side):
        home = source == target
        value = f"{mean_recall[source, target]:.1f}"
        colour = ink_on(shades.to_rgba(mean_recall[source, target])[:3])
        axes.text(target, source, value, ha="center", va="center", color=colour, weight="bold" if home else "normal")
    axes.set_xticks(range(side), domains)
    axes.set_yticks(range(side), domains)
    axes.set_xlabel("scored in")
    axes.set_ylabel("trained in")
    axes.set_title(title or "mR in percent; bold: at home", loc="left")
    axes.grid(False)
    figure.alt = "Mean recall, trained in and scored in. " + "; ".join(
        f"{source} in {target} {mean_recall[row, column]:.1f}"
        for row, source in enumerate(domains) for column, target in enumerate(domains)
    )  # fmt: skip
    return figure
