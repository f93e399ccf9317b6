"""What every figure is drawn on: a picture for a page, its style and its colours.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which colour-blind readers tell apart.
"""

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, Self

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, FAINT = "#222222", "#6b6b6b"
# The same three, dark enough for words on white (4.5 to 1 and more).
DARK_GREEN, DARK_VERMILLION, DARK_PURPLE = "#00704F", "#A84A00", "#9A3F74"
SHADES = ("#e8f1f8", "#fbf1dc")  # behind the phases, in turn
SIMULATED = "SIMULATED data"
WIDTH = 8.0  # inches; 800 pixels where a page shows 100 an inch
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold",
    "axes.labelsize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "text.color": INK,
    "axes.grid": False, "grid.color": "#d5d5d5", "grid.linewidth": 0.6, "figure.facecolor": "white",
    "axes.facecolor": "white", "text.parse_math": False, "text.usetex": False, "legend.frameon": False,
}  # fmt: skip

P = ParamSpec("P")


@contextmanager
def _style() -> Iterator[None]:
    """Within: STYLE over matplotlib's defaults, whatever a notebook has set for figures of its own."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def styled(function: Callable[P, "Picture"]) -> Callable[P, "Picture"]:
    """Decorator: what makes a picture does so in STYLE, whatever a notebook has set for figures of its own."""

    @wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Picture:
        with _style():
            return function(*args, **kwargs)

    return drawn


def ink_on(colour: Any) -> str:
    """What can be read on a colour of matplotlib's, "black" or "white": a contrast of 4.5 or more (WCAG 2.2, 1.4.3)."""
    channels = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


class Picture(Figure):
    """A matplotlib figure apart from pyplot: a notebook shows it once and nothing keeps it alive.

    `alt` says in words what is seen; notebooks exported to HTML give it to screen readers.
    """

    alt = ""

    def draw(self, renderer: Any) -> None:
        """As matplotlib's, in STYLE."""
        with _style():  # ticks take their settings only now
            super().draw(renderer)

    def png(self, dpi: float = 150) -> bytes:
        """The figure as a PNG file's bytes."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi, metadata={"Description": self.alt})
        return buffer.getvalue()

    def marked(self, simulated: bool) -> Self:
        """The picture itself; of simulated data, it says so in its lowest line and first in its `alt`."""
        if simulated and not self.alt.startswith(SIMULATED):
            with _style():
                self.supxlabel(SIMULATED, x=0.995, ha="right", fontsize=9, fontweight="bold")
            self.alt = f"{SIMULATED}. {self.alt}"
        return self

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        width, height = (round(inches * 100) for inches in self.get_size_inches())
        shown = {"alt": self.alt, "width": width, "height": height}
        png = base64.b64encode(self.png()).decode("ascii")
        return {"image/png": png, "text/plain": self.alt}, {"image/png": shown}
