"""Masks of a tile under sliders, in a notebook: filters, crops, words, and one click for one mask.

explorer = SegmentExplorer(manifest, encoder=model)
explorer                                             # widgets
explorer.show("finland_0_000_000", keep=6, x=30)     # the same from code
explorer.kept                                        # the Segments that the sliders leave
explorer.figure()                                    # a picture for the page: the static twin
"""

import html
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import ipywidgets as ipw
import numpy as np

from ucore.config import did_you_mean
from ucore.crops import BACKGROUNDS, crop_segments
from ucore.errors import ConfigError, DataError, UserError
from ucore.gallery import printable, simulated_note
from ucore.images import load_image
from ucore.looker import Looker, SamLooker, recent
from ucore.manifest import Manifest, few, subset
from ucore.masks import Segments
from ucore.overlays import draw_overlay
from ucore.picture import FAINT, WIDTH, Picture, styled
from ucore.selection import candidates, quality, select_segments

if TYPE_CHECKING:
    from ucore.model import DualEncoder

TILES_OFFERED = 200  # in the list; `show` finds every tile
CROPS_SHOWN = 10
DPI = 110


class Slider(NamedTuple):
    """A slider: its name, where it starts, its ends and its step, and what it says when pointed at."""

    label: str
    value: float
    low: float
    high: float
    step: float
    tooltip: str


SLIDERS = {
    "points": Slider("points a side", 16, 4, 32, 4, "Clicks on each side of the grid that finds the masks"),
    "smallest": Slider("area at least, %", 0.2, 0, 20, 0.1, "Share of the tile that a mask covers"),
    "largest": Slider("largest masks", 50, 1, 100, 1, "Only so many of the largest go on"),
    "iou": Slider("predicted IoU", 0, 0, 1, 0.01, "How sure the model is of a mask, at least"),
    "overlap": Slider("overlap at most", 0.7, 0, 1, 0.05, "Intersection over union above which two are one thing"),
    "keep": Slider("masks kept", 10, 1, 20, 1, "The best of what is left"),
    "similarity": Slider("similarity", -1, -1, 1, 0.01, "Cosine of a crop and the words, at least"),
    "x": Slider("click, x in %", 50, 0, 100, 1, "From left to right"),
    "y": Slider("click, y in %", 50, 0, 100, 1, "From top to bottom"),
}
WHOLE = {"points", "largest", "keep"}


class SegmentExplorer(ipw.VBox):
    """A tile, its masks under the filters of `selection`, their crops, and the mask of one click.

    manifest: whose tiles. encoder: one that has seen image-text pairs, to compare crops with the words typed; None
    leaves them out. looker: what finds masks, by default sam-micro.
    """

    def __init__(self, manifest: Manifest, encoder: "DualEncoder | None" = None, looker: Looker | None = None) -> None:
        self.manifest, self.encoder, self.looker = manifest, encoder, looker or SamLooker()
        self.error = ""
        self._row_of = {name: row for row, name in enumerate(manifest.frame["sample_id"])}
        self._found: OrderedDict[tuple[int, int], Segments] = OrderedDict()
        self._features: OrderedDict[tuple[int, int, str], dict[int, np.ndarray]] = OrderedDict()
        self._view: Picture | None = None
        names = list(subset(manifest, TILES_OFFERED).frame["sample_id"])
        self.tile = ipw.Dropdown(options=[(printable(name), name) for name in names], description="Tile")
        self.background = ipw.Dropdown(options=BACKGROUNDS, description="Crops on")
        self.words = ipw.Text(placeholder="words to compare the crops with", description="Words",
                              continuous_update=False)  # fmt: skip
        self.sliders = {name: _slider(name, slider) for name, slider in SLIDERS.items()}
        self.status, self.image = ipw.HTML(), ipw.Image(format="png")
        self.image.layout = {"width": "100%", "max_width": f"{100 * WIDTH:.0f}px", "object_fit": "contain"}
        for box in self._boxes.values():
            box.observe(self._on_change, "value")
        hidden = {"similarity"} if encoder is None else set()
        top = [self.tile, self.background] + ([] if encoder is None else [self.words])
        bars = [bar for name, bar in self.sliders.items() if name not in hidden]
        rows = [ipw.HBox(part, layout={"flex_flow": "row wrap"}) for part in (top, bars)]
        super().__init__([*rows, self.status, self.image])
        self._update()

    # --- from code --------------------------------------------------------------------------------------------

    def show(
        self, tile: str | None = None, *, words: str = "", background: str = "white", **sliders: float
    ) -> "SegmentExplorer":
        """Set everything at once, what is not given to where it starts, and bring the view up to date.

        tile: a sample_id, by default the one shown. sliders: names and values as in `SLIDERS`.
        Raises DataError for an unknown tile, ConfigError for another name, value or background.
        """
        tile = self.tile.value if tile is None else tile
        if tile not in self._row_of:
            raise DataError(f"There is no tile {tile!r}. There are, for example: {few(list(self._row_of))}.")
        if background not in BACKGROUNDS:
            raise ConfigError(f"There is no background {background!r}; choose {', '.join(BACKGROUNDS)}.")
        if words and self.encoder is None:
            raise ConfigError("Words need an encoder to compare them with crops: SegmentExplorer(manifest, encoder).")
        for name, value in sliders.items():
            if name not in SLIDERS:
                raise ConfigError(f"There is no slider {name!r}{did_you_mean(name, SLIDERS)}.")
            if not SLIDERS[name].low <= value <= SLIDERS[name].high:
                raise ConfigError(f"{name} is {value}; it must be from {SLIDERS[name].low} to {SLIDERS[name].high}.")
        self.tile.options = tuple(dict.fromkeys([*self.tile.options, (printable(str(tile)), tile)]))
        values: dict[str, Any] = {name: sliders.get(name, slider.value) for name, slider in SLIDERS.items()}
        values |= {"tile": tile, "words": words, "background": background}
        for name, box in self._boxes.items():
            box.unobserve(self._on_change, "value")
            box.value = int(values[name]) if name in WHOLE else values[name]
            box.observe(self._on_change, "value")
        self._update()
        if self.error:
            raise UserError(self.error)
        return self

    @property
    def kept(self) -> Segments:
        """The masks that the sliders leave, the most similar to the words first, or the best by quality."""
        return self._kept

    @property
    def clicked(self) -> Segments:
        """The masks that the click may mean, the surest first."""
        return self._clicked

    def figure(self) -> Picture:
        """The view as a figure of its own: the static twin."""
        return self._plot(None)

    # --- live -------------------------------------------------------------------------------------------------

    @property
    def _boxes(self) -> dict[str, Any]:
        return {"tile": self.tile, "words": self.words, "background": self.background, **self.sliders}

    def _on_change(self, _: Any) -> None:
        self._update()

    def _update(self) -> None:
        self.error = ""
        try:
            self._look()
            self._view = self._plot(self._view)
            self.image.value = self._view.png(DPI)
        except UserError as error:
            self.error = str(error)
        role = "alert" if self.error else "status"
        self.status.value = f'<div role="{role}">{html.escape(self.error or self._told)}</div>'

    def _look(self) -> None:
        """Find, filter and cut out the masks for the values of the controls."""
        value = {name: box.value for name, box in self._boxes.items()}
        row, points = self._row_of[value["tile"]], value["points"]
        self._pixels = np.asarray(load_image(self.manifest.image_path(row)))
        height, width = self._pixels.shape[:2]
        if (row, points) not in self._found:
            self._found[row, points] = self.looker.masks(row, self._pixels, points)
        found = recent(self._found, (row, points))
        large = found.areas >= value["smallest"] / 100 * height * width
        sure = large & (found.predicted_iou >= value["iou"])
        rows = np.flatnonzero(sure)
        distinct = rows[candidates(found.take(rows), value["largest"], value["overlap"])]
        told = [f"{len(found)} masks", f"{large.sum()} large enough", f"{len(rows)} sure enough",
                f"{len(distinct)} distinct"]  # fmt: skip
        if value["words"].strip() and self.encoder is not None:
            alike = self._similarities(row, distinct, value)
            told.append(f"{(alike >= value['similarity']).sum()} similar enough")
            order = np.argsort(-alike, kind="stable")
            order = order[alike[order] >= value["similarity"]][: value["keep"]]
            chosen, self._scores = distinct[order], alike[order]
        else:
            limits = {"largest": value["largest"], "most_overlap": value["overlap"]}
            chosen = rows[select_segments(found.take(rows), value["keep"], **limits)]
            self._scores = quality(found.take(chosen))
        self._kept = found.take(chosen)
        self._crops = crop_segments(self._pixels, self._kept.take(np.arange(len(chosen))[:CROPS_SHOWN]),
                                    value["background"])  # fmt: skip
        at = value["x"] / 100 * (width - 1), value["y"] / 100 * (height - 1)
        self._clicked = self.looker.click(row, self._pixels, *at)
        of_click = ""
        if len(self._clicked):
            of_click = f"; the click means {self._clicked.areas[0] / (height * width):.1%} of the tile, predicted IoU "
            of_click += f"{self._clicked.predicted_iou[0]:.2f}"
        self._told = f"{' → '.join(told)} → {len(chosen)} kept{of_click}{simulated_note(self.manifest)}"

    def _similarities(self, row: int, rows: np.ndarray, value: dict[str, Any]) -> np.ndarray:
        """Cosine of the words and the crop of each mask of `rows`, float32 (n,); crops are embedded once."""
        import torch

        from ucore.features import embed_texts

        assert self.encoder is not None
        key = (row, value["points"], value["background"])
        known = recent(self._features, key) if key in self._features else self._features.setdefault(key, {})
        missing = [mask for mask in rows.tolist() if mask not in known]
        if missing:
            some = self._found[key[:2]].take(missing)
            crops = crop_segments(self._pixels, some, value["background"], self.encoder.image_size[0])
            with self.encoder.evaluating():
                features = self.encoder.encode_image(torch.from_numpy(crops).permute(0, 3, 1, 2)).cpu().numpy()
            known |= dict(zip(missing, features, strict=True))
        text = embed_texts(self.encoder, [value["words"]], progress=False)[0]
        return np.array([known[mask] @ text for mask in rows.tolist()], np.float32)

    def _plot(self, figure: Picture | None) -> Picture:
        name = printable(str(self.tile.value)) + simulated_note(self.manifest)
        measure = "similarity" if self.words.value.strip() else "quality"
        return plot_view(self._pixels, self._kept, self._clicked, self._crops, self._scores, name, measure, figure)


@styled
def plot_view(
    image: np.ndarray,
    kept: Segments,
    clicked: Segments,
    crops: np.ndarray,
    scores: np.ndarray,
    name: str,
    measure: str,
    figure: Picture | None = None,
) -> Picture:
    """The kept masks, numbered, beside the surest mask of a click; below them crops with their `scores`."""
    below = 1.15 if len(crops) else 0.3
    figure = figure or Picture(figsize=(WIDTH, WIDTH / 2 + below + 0.25))
    figure.clear()
    high = figure.get_figheight()
    half = (WIDTH / 2 - 0.06) / WIDTH, (WIDTH / 2 - 0.06) / high
    left = figure.add_axes((0.004, 1 - half[1] - 0.28 / high, *half), anchor="NW")
    right = figure.add_axes((0.504, 1 - half[1] - 0.28 / high, *half), anchor="NW")
    draw_overlay(left, image, kept, f"{name}: {len(kept)} masks kept")
    best = clicked.take([0]) if len(clicked) else clicked
    told = f"one click: {best.predicted_iou[0]:.2f} predicted IoU" if len(best) else "the click finds nothing"
    draw_overlay(right, image, best, told, numbered=False)
    if len(best):
        scale = right.images[0].get_size()[1] / image.shape[1]
        right.plot(*(best.points[0] * scale), "P", color="white", mec="black", ms=11)
    if not len(crops):
        figure.text(0.5, 0.15 / high, "No mask is left: widen the filters.", ha="center", color=FAINT)
    side = WIDTH / max(len(crops), CROPS_SHOWN)
    for number, crop in enumerate(crops):
        place = (number * side / WIDTH + 0.004, 0.05 / high, (side - 0.07) / WIDTH, (side - 0.07) / high)
        axes = figure.add_axes(place)
        axes.imshow(crop)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, edgecolor="#bbbbbb", linewidth=0.6)
        axes.set_title(f"{number + 1}: {scores[number]:.2f}", fontsize=9, fontweight="normal", pad=3)
    figure.text(0.004, (side + 0.17) / high, f"Crops: number and {measure}", fontsize=9) if len(crops) else None
    figure.alt = f"{name}: {len(kept)} masks over the tile and their crops; beside them the mask of {told}."
    return figure


def _slider(name: str, slider: Slider) -> Any:
    kind: Any = ipw.IntSlider if name in WHOLE else ipw.FloatSlider
    values = (slider.value, slider.low, slider.high, slider.step)
    value, low, high, step = map(int, values) if name in WHOLE else values
    return kind(value=value, min=low, max=high, step=step, description=slider.label, tooltip=slider.tooltip,
                continuous_update=False, style={"description_width": "110px"}, layout={"width": "315px"})  # fmt: skip
