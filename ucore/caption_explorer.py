"""Captions of a dataset, tile by tile, in a notebook: before and after, and what the tags say to them.

explorer = CaptionExplorer(manifest, {"tags": tags_run, "micro": micro_run})
explorer                                     # widgets
explorer.show(found="changed")               # the same from code
explorer.figure()                            # a picture for the page: the static twin
"""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw

from ucore.caption_figures import Told, plot_captions, told_of
from ucore.errors import DataError
from ucore.gallery import printable, simulated_note
from ucore.manifest import Manifest, few
from ucore.maps import jpeg_thumbnail
from ucore.picture import Picture
from ucore.refining import text_state

if TYPE_CHECKING:
    from ucore.captions import CaptionRun

TILES_OFFERED = 500  # in the list; the filters bring the others
EVERYTHING = "everything"
CHIPS = {
    "mentioned": ("✓", "#d6f0e6", "#00573f"),
    "missing": ("–", "#ececec", "#555555"),
    "contradicted": ("✗", "#fbdccb", "#8a3b00"),
    "unsupported": ("?", "#f3dfea", "#7a3560"),
}


class CaptionExplorer(ipw.VBox):
    """Choose a tile, or only those whose texts were changed, dropped, or have something against them.

    manifest: the samples. runs: name of a captioner -> its `captions.CaptionRun`.
    """

    def __init__(self, manifest: Manifest, runs: Mapping[str, "CaptionRun"]) -> None:
        self.manifest, self.runs = manifest, runs
        self._told = [told_of(manifest, row, runs) for row in range(len(manifest))]
        self._found = [_findings(of_image) for of_image in self._told]
        self._row_of = {name: row for row, name in enumerate(manifest.frame["sample_id"])}
        names = sorted({name for of_image in self._found for name in of_image})
        counts = {name: sum(name in of_image for of_image in self._found) for name in names}
        domains = sorted(set(manifest.frame["domain"]))
        offered = [(f"{EVERYTHING} ({len(manifest):,})", EVERYTHING)]
        offered += [(f"{name} ({counts[name]:,})", name) for name in names]
        self.found = ipw.Dropdown(options=offered, description="Found")
        self.domain = ipw.Dropdown(options=[("all", ""), *((printable(name), name) for name in domains)],
                                   description="Country")  # fmt: skip
        self.tile = ipw.Dropdown(description="Tile")
        self.status, self.card = ipw.HTML(), ipw.HTML(layout={"width": "100%"})
        for box, action in ((self.found, self._on_filter), (self.domain, self._on_filter), (self.tile, self._on_tile)):
            box.observe(action, "value")
        boxes = ipw.HBox([self.found, self.domain, self.tile], layout={"flex_flow": "row wrap"})
        super().__init__([boxes, self.status, self.card])
        self._filter()

    def show(self, tile: str | None = None, *, found: str = EVERYTHING, domain: str = "") -> "CaptionExplorer":
        """Set the filters, and the tile (by default the first that they leave). Raises DataError for unknown ones."""
        for box, value, what in ((self.found, found, "finding"), (self.domain, domain, "country")):
            known = [option for _, option in box.options]
            if value not in known:
                raise DataError(f"There is no {what} {value!r}. There are: {few(known, 8)}.")
        if tile is not None and tile not in self._row_of:
            raise DataError(f"There is no tile {tile!r}. There are, for example: {few(list(self._row_of))}.")
        for box, value in ((self.found, found), (self.domain, domain)):
            box.unobserve(self._on_filter, "value")
            box.value = value
            box.observe(self._on_filter, "value")
        self._filter(tile)
        return self

    @property
    def rows(self) -> list[int]:
        """Rows of the manifest that the filters leave."""
        domains = self.manifest.frame["domain"]
        return [
            row
            for row, found in enumerate(self._found)
            if self.found.value in (EVERYTHING, *found) and self.domain.value in ("", domains.iloc[row])
        ]

    def figure(self) -> Picture:
        """The tile shown, as a picture: the static twin. Raises DataError when the filters leave none."""
        if self.tile.value is None:
            raise DataError("No tile fits these filters; widen them, or call show() to see all.")
        return plot_captions(self.manifest, [self._row_of[self.tile.value]], self.runs)

    def _on_filter(self, _: Any) -> None:
        self._filter()

    def _on_tile(self, _: Any) -> None:
        self._show()

    def _filter(self, tile: str | None = None) -> None:
        names = [str(self.manifest.frame["sample_id"].iloc[row]) for row in self.rows]
        self.status.value = f'<b role="status">{len(names):,} tiles{simulated_note(self.manifest)}</b>'
        offered = names[:TILES_OFFERED]
        if tile is not None and tile not in offered:
            offered = [tile, *offered]
        self.tile.unobserve(self._on_tile, "value")
        self.tile.options = [(printable(name), name) for name in offered]
        self.tile.value = tile if tile is not None else next(iter(offered), None)
        self.tile.observe(self._on_tile, "value")
        self._show()

    def _show(self) -> None:
        if self.tile.value is None:
            self.card.value = "<p>No tile fits these filters.</p>"
            return
        row = self._row_of[self.tile.value]
        self.card.value = caption_card(self.manifest, row, self._told[row])


def caption_card(manifest: Manifest, row: int, told: Sequence[Told]) -> str:
    """HTML of one image: picture, tags, captions, and each captioner's prompt, raw and refined text; all escaped."""
    frame = manifest.frame
    picture = base64.b64encode(jpeg_thumbnail(manifest.image_path(row))).decode("ascii")
    name = html.escape(printable(str(frame["sample_id"].iloc[row])), quote=True)
    tags = ", ".join(html.escape(printable(tag)) for tag in frame["tags"].iloc[row]) or "none"
    captions = "".join(f"<li>{html.escape(printable(text))}</li>" for text in frame["captions"].iloc[row])
    parts = [f"<b>{name}</b><p>Tags: {tags}</p>", f"<ol>{captions}</ol>"]
    for one in told:
        asked = f"<br>asked: <code>{html.escape(printable(one.prompt))}</code>" if one.prompt else ""
        changed = one.raw.strip() != one.refined.text
        raw = f"<br>raw: <i>{html.escape(printable(one.raw))}</i>" if changed and one.raw.strip() else ""
        why = f" ({html.escape(', '.join(one.refined.problems))})" if one.refined.problems else ""
        text = html.escape(printable(one.refined.text)) or "dropped"
        heading = html.escape(printable(one.captioner))
        parts.append(f"<p><b>{heading}</b>{asked}{raw}<br>{text}{why}<br>{_chips(one)}</p>")
    shown = f'<img src="data:image/jpeg;base64,{picture}" alt="Image of {name}" style="width: 240px">'
    body = f'<div style="flex: 1 1 300px; line-height: 1.4">{"".join(parts)}</div>'
    return f'<div style="display: flex; flex-wrap: wrap; gap: 12px">{shown}{body}</div>'


def _chips(told: Told) -> str:
    """The tags' verdict on a text: a mark, a word and a colour each."""
    verdict = told.refined.refined if told.refined.text else told.refined.cleaned
    chips = []
    for what, (mark, ground, ink) in CHIPS.items():
        for tag in getattr(told.refined.cleaned if what == "contradicted" else verdict, what):
            style = f"background: {ground}; color: {ink}; border-radius: 4px; padding: 0 4px; margin-right: 4px"
            chips.append(f'<span title="{what}" style="{style}">{mark} {html.escape(printable(tag))}</span>')
    return "".join(chips)


def _findings(told: Sequence[Told]) -> set[str]:
    """What can be looked for among an image's texts."""
    found = set()
    for one in told:
        state = text_state(one.raw, one.refined.text)
        found |= {f"{one.captioner}: {state}", *one.refined.problems}
        found |= {name for name in ("contradicted", "unsupported") if getattr(one.refined.cleaned, name)}
    return found
