"""Filters over a dataset in a notebook, with a live map, statistics and sample images.

explorer = SampleExplorer(manifest)
explorer                                             # widgets
explorer.show(domain="finland", text="red roof")     # the same from code
explorer.filtered                                    # the Manifest that the filters leave
explorer.figure()                                    # a picture for the page: the static twin
"""

import asyncio
import base64
import html
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as ipw
import numpy as np

from ucore.atlas import plot_places, plot_statistics
from ucore.errors import DataError
from ucore.gallery import printable, simulated_note
from ucore.manifest import Manifest, Names, known_names
from ucore.maps import domain_marks, has_place, in_order, jpeg_thumbnail, located, sample_map
from ucore.picture import Picture

if TYPE_CHECKING:
    import geopandas
    import pandas as pd

PAUSE_SECONDS = 0.25  # after the last change of a filter, before the views follow
SHOWN = 8  # images of the gallery
TAGS_OFFERED = 200
TAGS_TOLD = 6  # of each country, in the statistics


class SampleExplorer(ipw.VBox):
    """Country, split, tag and text filters over the samples of a manifest.

    The map lies in a frame that is loaded once, so that it keeps its view; the filters tell it which samples to show.
    Samples without a place are in the statistics and the gallery, not on the map.

    manifest: what to explore. features, credit: background of the map, as for `maps.sample_map`.
    """

    _made: ClassVar[int] = 0  # explorers of this kernel: each map follows its own

    def __init__(
        self, manifest: Manifest, features: "geopandas.GeoDataFrame | None" = None, credit: str = "", height: int = 460
    ) -> None:
        self.manifest, self.features = manifest, features
        self._rows = np.ones(len(manifest), dtype=bool)
        self._texts = _searched(manifest)
        self._tags = [set(of_image) for of_image in manifest.frame["tags"]]
        self._table, self._note = _numbers(manifest), simulated_note(manifest)
        self._later: asyncio.TimerHandle | None = None
        self._tag_counts = tags = Counter(tag for of_image in self._tags for tag in of_image)
        offered = _most_frequent(tags, TAGS_OFFERED)
        domains, splits = sorted(set(manifest.frame["domain"])), in_order(manifest.frame["split"])
        self.domain_box = _choices("Country", domains, Counter(manifest.frame["domain"]))
        self.split_box = _choices("Split", splits, Counter(manifest.frame["split"]))
        self.tag_box = _choices("Tag (any)", offered, tags)
        self.text_box = ipw.Text(placeholder="words of a caption", description="Text", continuous_update=True)
        self.reset_button = ipw.Button(description="Show all", icon="undo", layout={"width": "110px"})
        self.status, self.statistics, self.gallery = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.link, self.map = ipw.HTML(layout={"display": "none"}), ipw.HTML(layout={"width": "100%"})
        self._boxes: tuple[Any, ...] = (self.domain_box, self.split_box, self.tag_box, self.text_box)
        for box in self._boxes:
            box.observe(self._on_change, "value")
        self.reset_button.on_click(lambda _: self.show())
        self._placed = has_place(manifest)
        self._draw_map(credit, height)
        lists = ipw.HBox(self._boxes[:3], layout={"flex_flow": "row wrap"})
        search = ipw.HBox([self.text_box, self.reset_button, self.status], layout={"flex_flow": "row wrap"})
        super().__init__([lists, search, self.map, self.link, self.statistics, self.gallery])
        self._update()

    # --- from code --------------------------------------------------------------------------------------------

    def show(
        self, *, domain: Names | None = None, split: Names | None = None, tag: Names | None = None, text: str = ""
    ) -> "SampleExplorer":
        """Set all filters at once, those not given to "all", and bring the views up to date.

        tag: one or several, of which an image has at least one. text: all its words occur in the captions or the id.
        Raises DataError naming what there is, for a domain, split or tag that no sample has.
        """
        frame, root = self.manifest.frame, self.manifest.root
        values = (
            () if domain is None else known_names(domain, Counter(frame["domain"]), "domain", root),
            () if split is None else known_names(split, Counter(frame["split"]), "split", root),
            () if tag is None else self._known_tags(tag),
            text,
        )
        self.tag_box.options = tuple(dict.fromkeys([*self.tag_box.options, *((name, name) for name in values[2])]))
        with self.hold_trait_notifications():
            for box, value in zip(self._boxes, values, strict=True):
                box.unobserve(self._on_change, "value")
                box.value = value
                box.observe(self._on_change, "value")
        self._update()
        return self

    @property
    def filtered(self) -> Manifest:
        """The samples that the filters leave, in the manifest's order."""
        rows: Any = self.manifest.frame.loc[self._rows]
        return Manifest(rows.reset_index(drop=True), self.manifest.root)

    def figure(self) -> Picture:
        """A picture of what the filters leave: its map or, where no place is known, its statistics.

        Raises DataError when nothing is left.
        """
        left = self.filtered
        if not len(left):
            raise DataError("No sample fits these filters; widen them, or call show() to see all.")
        return plot_places(left, self.features) if len(located(left)) else plot_statistics(left)

    # --- live -------------------------------------------------------------------------------------------------

    def _on_change(self, _: Any) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._update()
            return
        if self._later is not None:
            self._later.cancel()
        self._later = loop.call_later(PAUSE_SECONDS, self._update)

    def _update(self) -> None:
        """Apply the filters and bring every view up to date."""
        self._rows = self._matches()
        rows = np.flatnonzero(self._rows)
        shown = f"{len(rows):,} of {len(self._rows):,} samples{self._note}"
        self.status.value = f'<b role="status">{shown}</b>'
        bits = base64.b64encode(np.packbits(self._rows[self._placed]).tobytes()).decode("ascii")
        self.link.value = f'<span data-ucore-map="{self._map_name}" data-rows="{bits}"></span>'
        self.statistics.value = _statistics(self._table.iloc[rows], self._tags, rows)
        self.gallery.value = _gallery(self.manifest, rows[:SHOWN])

    def _matches(self) -> np.ndarray:
        """bool (N,): which rows the four boxes leave."""
        rows = np.ones(len(self.manifest), dtype=bool)
        for box, column in ((self.domain_box, "domain"), (self.split_box, "split")):
            if box.value:
                rows &= self.manifest.frame[column].isin(box.value).to_numpy()
        wanted = set(self.tag_box.value)
        words = self.text_box.value.lower().split()
        for row in np.flatnonzero(rows) if wanted or words else ():
            text = self._texts[row]
            rows[row] = (not wanted or not wanted.isdisjoint(self._tags[row])) and all(word in text for word in words)
        return rows

    def _known_tags(self, tag: Names) -> tuple[str, ...]:
        names = (tag,) if isinstance(tag, str) else tuple(tag)
        for name in names:
            if not self._tag_counts[name]:
                frequent = ", ".join(_most_frequent(self._tag_counts, 5)) or "none"
                raise DataError(f"No sample has the tag {name!r}. The most frequent are: {frequent}.")
        return names

    def _draw_map(self, credit: str, height: int) -> None:
        """Load the map's frame, once."""
        SampleExplorer._made += 1
        self._map_name = f"explorer-{SampleExplorer._made}"
        if not self._placed.any():
            self.map.value = "<p>No sample has coordinates, so there is no map.</p>"
            return
        page = sample_map(self.manifest, self.features, credit=credit, height=height, linked=self._map_name)
        source: Any = page.get_root()
        self.map.value = (
            f'<iframe title="Map of the samples" srcdoc="{html.escape(source.render())}" '
            f'style="width: 100%; height: {height}px; border: 1px solid #c8ced3"></iframe>'
        )


def _most_frequent(counts: Counter[str], most: int) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))[:most]


def _choices(label: str, names: Sequence[str], counts: Counter[str]) -> ipw.SelectMultiple:
    options = [(f"{printable(name) or '(none)'} ({counts[name]:,})", name) for name in names]
    wide: Any = {"width": "31%", "min_width": "215px"}
    return ipw.SelectMultiple(options=options, description=label, rows=5, tooltip="None chosen: all. Ctrl: several.",
                              layout=wide, style={"description_width": "65px"})  # fmt: skip


def _searched(manifest: Manifest) -> list[str]:
    """What the text filter looks into, one lower-case string a row; the page of the map does the same."""
    pairs = zip(manifest.frame["sample_id"], manifest.frame["captions"], strict=True)
    return ["\n".join([sample_id, *captions]).lower() for sample_id, captions in pairs]


def _numbers(manifest: Manifest) -> "pd.DataFrame":
    """What the statistics need of each row: domain, split, captions, words of them all, gsd_m."""
    import pandas as pd

    words = [sum(len(text.split()) for text in captions) for captions in manifest.frame["captions"]]
    table = pd.DataFrame(manifest.frame[["domain", "split", "gsd_m"]])
    return table.assign(captions=manifest.frame["captions"].map(len).to_numpy(), words=words)


def _statistics(table: "pd.DataFrame", tags: Sequence[set[str]], rows: np.ndarray) -> str:
    """HTML table, one line a country: samples, splits, captions, words, resolution, most frequent tags."""
    if not len(table):
        return "<p>No sample fits these filters.</p>"
    marks, split_of, domain_of = domain_marks(table["domain"]), table["split"].to_numpy(), table["domain"].to_numpy()
    heads = ("country", "samples", "splits", "captions", "words a caption", "m a pixel", "most frequent tags")
    lines = []
    for name, mark in marks.items():
        here = domain_of == name
        part, count = table.loc[here], int(here.sum())
        counts = Counter(tag for row in rows[here] for tag in tags[row])
        splits = Counter(split_of[here])
        gsd, captions, words = part["gsd_m"].dropna(), part["captions"].to_numpy().sum(), part["words"].to_numpy().sum()
        cells = [
            f"{name} ({mark.code})",
            f"{count:,}",
            ", ".join(f"{split} {splits[split]:,}" for split in in_order(splits)),
            f"{captions:,}",
            f"{words / captions:.1f}" if captions else "–",
            f"{gsd.min():.2f}–{gsd.max():.2f}" if len(gsd) else "not known",
            ", ".join(f"{tag} {100 * counts[tag] / count:.0f} %" for tag in _most_frequent(counts, TAGS_TOLD))
            or "no tags",
        ]
        lines.append("".join(f"<td style='text-align: left'>{html.escape(cell)}</td>" for cell in cells))
    head = "".join(f"<th style='text-align: left'>{text}</th>" for text in heads)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table style='width: 100%'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _gallery(manifest: Manifest, rows: np.ndarray) -> str:
    """HTML: the images of `rows` in a line, each above its first caption."""
    cards = []
    for row in rows:
        picture = base64.b64encode(jpeg_thumbnail(manifest.image_path(int(row)))).decode("ascii")
        captions = manifest.frame["captions"].iloc[row]
        said = html.escape(captions[0] if len(captions) else "no caption")
        name = html.escape(str(manifest.frame["sample_id"].iloc[row]), quote=True)
        image = f'<img src="data:image/jpeg;base64,{picture}" alt="Image of {name}" style="width: 100%">'
        cards.append(f'<figure style="margin: 0; width: 140px">{image}<figcaption>{said}</figcaption></figure>')
    return f'<div style="display: flex; flex-wrap: wrap; gap: 8px; line-height: 1.3">{"".join(cards)}</div>'


def count_samples(manifest: Manifest) -> list[dict[str, Any]]:
    """Rows for `Report.add_rows`: descriptive counts of the whole set and of each domain."""
    parts = {"all": manifest, **{name: manifest.domain(name) for name in sorted(set(manifest.frame["domain"]))}}
    rows = []
    for label, part in parts.items():
        texts, n = part.texts[0], len(part)
        values: dict[str, float] = {
            "images": n,
            "captions": len(texts),
            "distinct_caption_share": len(set(texts)) / max(1, len(texts)),
            "words_per_caption": sum(len(text.split()) for text in texts) / max(1, len(texts)),
            "tags_per_image": sum(map(len, part.frame["tags"])) / n,
            "distinct_tags": len({tag for of_image in part.frame["tags"] for tag in of_image}),
            "located_share": float(has_place(part).mean()),
        }
        gsd = part.frame["gsd_m"].to_numpy(float)
        values |= {"median_gsd_m": float(np.nanmedian(gsd))} if np.isfinite(gsd).any() else {}
        rows += [{"label": label, "metric": metric, "value": value, "n": n} for metric, value in values.items()]
    return rows
