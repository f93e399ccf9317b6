"""Type a query or click a tile: what is found, on the map and beside it, in a notebook or as a Voila application.

box = SearchBox(Searcher("runs/index"))
box                                                # a line to type into, filters, the map with numbered results
box.ask("a lake in a forest", domain="finland")    # the same from code; this is what papermill runs
box.figure()                                       # the results as a picture: the static twin
box.map()                                          # the same as a map in a page of its own

The map and the list of results lie in a frame that is loaded once. It reads what is found from this page and writes
what is clicked or drawn into a hidden field of it: that works wherever widgets do, without another extension or a
network. Everything from the data is put into the page as text.
"""

import asyncio
import base64
import html
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as ipw
import numpy as np

from ucore.answers import Answer
from ucore.errors import ConfigError, DataError, UserError
from ucore.explain import explain, explanation_html
from ucore.files import parse_json
from ucore.filters import Filter
from ucore.found_cards import found_cards
from ucore.found_figures import plot_answer
from ucore.heat import SCRIPTS, Layer, heat_map, layer_update, search_page, tile_columns, tile_table
from ucore.maps import blank_map, page_element
from ucore.picture import Picture
from ucore.retrieve import Searcher

if TYPE_CHECKING:
    import folium
    import geopandas

PAUSE_SECONDS = 0.15  # after the last change of a filter, before it is searched again
MOST_TAGS = 300
MOST_RESULTS = 100


class SearchBox(ipw.VBox):
    """Queries over an index, with filters and a map.

    searcher: what is searched. examples: queries to choose from. features, credit: background of the map, as for
    `maps.sample_map`. k: results.
    What the user can put right (UserError) is shown as its one sentence.
    """

    _made: ClassVar[int] = 0  # boxes of this kernel: each map follows its own

    def __init__(
        self,
        searcher: Searcher,
        examples: Sequence[str] = (),
        features: "geopandas.GeoDataFrame | None" = None,
        credit: str = "",
        k: int = 12,
        height: int = 560,
    ) -> None:
        self.searcher, self.features, self.credit = searcher, features, credit
        self.answer: Answer | None = None
        self.error, self.seconds, self._version, self._setting = "", 0.0, 0, False
        self._later: asyncio.TimerHandle | None = None
        self._query: tuple[str, str] = ("text", "")  # what is asked: a text, or the id of a sample
        self._area: dict[str, Any] = {}  # box or polygon, as drawn
        SearchBox._made += 1
        self._link = f"ucore-search-{SearchBox._made}"
        self._read_gallery()
        self._make_boxes(examples, k)
        self.status, self.why, self.link = ipw.HTML(), ipw.HTML(), ipw.HTML(layout={"display": "none"})
        self.message = ipw.Text(continuous_update=True, layout={"display": "none"})
        self.message.add_class(self._link)
        self.message.observe(self._on_message, "value")
        self.map_view = ipw.HTML(layout={"width": "100%"})
        self.cards = ipw.Box(layout={"flex_flow": "row wrap", "width": "100%"})  # where there is no map
        self._draw_map(height)
        row: Any = {"flex_flow": "row wrap", "align_items": "center"}
        asked = ipw.HBox([self.text_box, self.search_button, self.examples_box], layout=row)
        filters = ipw.HBox([self.domain_box, self.tag_box, self.k_box, self.hubs_box], layout=row)
        super().__init__([asked, filters, self.status, self.map_view, self.cards, self.why, self.link,
                          self.message])  # fmt: skip
        self._show()

    # --- from code --------------------------------------------------------------------------------------------

    def ask(
        self, query: str, *, domain: str | None = None, tag: str = "", box: Sequence[float] | None = None,
        polygon: Any = None, k: int | None = None,
    ) -> "SearchBox":  # fmt: skip
        """Search for a text and bring the views up to date; filters that are not given are taken off.

        Raises UserError as `Searcher.text` and `Filter` do, after showing it.
        """
        if k is not None and not 1 <= k <= MOST_RESULTS:
            raise ConfigError(f"k is {k!r}; the box shows from 1 to {MOST_RESULTS} results")
        self._quietly(text_box=query, domain_box=domain or "", tag_box=tag, **({} if k is None else {"k_box": k}))
        self._area = {} if box is None else {"box": list(box)}
        self._area |= {} if polygon is None else {"polygon": polygon}
        self._query = ("text", query)
        self._search(raising=True)
        return self

    def like(self, sample_id: str) -> "SearchBox":
        """Search for what looks like a sample."""
        self._query = ("sample", sample_id)
        self._search(raising=True)
        return self

    @property
    def truth(self) -> frozenset[str]:
        """Samples that are known to be right: those that have the very query as a caption, if any."""
        return (
            self._owners.get(" ".join(self._query[1].split()), frozenset()) if self._query[0] == "text" else frozenset()
        )

    def figure(self) -> Picture:
        """The results as a picture. Raises DataError before anything was asked."""
        return plot_answer(self.searcher, self._answered(), self.truth, self._tiles)

    def map(self) -> "folium.Map":
        """The results and every tile's score as a map of its own. Raises DataError before anything was asked."""
        answer = self._answered()
        layer = Layer(answer.query, self._tiles.assign(score=self._scores()), answer, answer.notes, self.searcher)
        return heat_map([layer], self.features, credit=self.credit)

    def _answered(self) -> Answer:
        if self.answer is None:
            raise DataError('Nothing was asked yet: call ask("a lake in a forest") first.')
        return self.answer

    # --- what there is ----------------------------------------------------------------------------------------

    def _read_gallery(self) -> None:
        """Tiles with a place, in the map's order, and who has which caption."""
        index = self.searcher.index
        positions = index.select("image")
        tiles: Any = tile_table(self.searcher, positions)
        placed = (tiles["lon"].notna() & tiles["lat"].notna()).to_numpy()
        self._positions = positions[placed]
        self._tiles: Any = tiles[placed].reset_index(drop=True)
        self._row_of = {name: row for row, name in enumerate(self._tiles["sample_id"])}
        self._images = len(positions)
        self._domains = sorted(set(tiles["domain"]))
        tags = Counter(tag for of_image in index.rows(positions)["tags"] for tag in of_image)
        self._tags = [name for name, _ in tags.most_common(MOST_TAGS)]
        rows, owners = index.rows(index.select("text")), dict[str, set[str]]()
        for text, name in zip(rows["text"], rows["sample_id"], strict=True):
            owners.setdefault(" ".join(text.split()), set()).add(name)
        self._owners = {text: frozenset(names) for text, names in owners.items()}

    def _make_boxes(self, examples: Sequence[str], k: int) -> None:
        wide: Any = {"description_width": "initial"}
        self.text_box = ipw.Text(placeholder="tennis courts beside a school", description="Query", style=wide,
                                 continuous_update=False, layout={"width": "480px", "max_width": "100%"})  # fmt: skip
        self.search_button = ipw.Button(description="Search", icon="search", layout={"width": "100px"})
        self.search_button.on_click(lambda _: self._on_query())
        offered = [("examples …", ""), *((text if len(text) < 60 else text[:59] + "…", text) for text in examples)]
        self.examples_box = ipw.Dropdown(options=offered, layout={"width": "260px"}, tooltip="A query to start from")
        self.domain_box = ipw.Dropdown(options=[("everywhere", ""), *((name, name) for name in self._domains)],
                                       description="Country", style=wide, layout={"width": "200px"})  # fmt: skip
        self.tag_box = ipw.Combobox(options=tuple(self._tags), placeholder="building=school",
                                    description="Tag", style=wide, continuous_update=False,
                                    layout={"width": "240px"})  # fmt: skip
        self.k_box = ipw.BoundedIntText(
            k, min=1, max=MOST_RESULTS, description="results", style=wide, layout={"width": "130px"}
        )
        self.hubs_box = ipw.Checkbox(True, description="correct hubs", indent=False, layout={"width": "130px"})
        self.text_box.observe(lambda _: self._on_query(), "value")
        self.examples_box.observe(self._on_example, "value")
        for box in (self.domain_box, self.tag_box, self.k_box, self.hubs_box):
            box.observe(self._on_filter, "value")

    def _draw_map(self, height: int) -> None:
        """Load the map's frame, once."""
        if not len(self._tiles):
            self.map_view.value = "<p>No tile has coordinates, so there is no map.</p>"
            return
        page = search_page(self.features, False, self.credit, self.searcher.simulated, self._link)
        page["layers"] = [{"tiles": tile_columns(self._tiles), **layer_update(self.searcher, None, None, self._row_of)}]
        made = blank_map("Where is it like this?", height)
        made.add_child(page_element(page, False, SCRIPTS, "ucoreSearch"))
        source: Any = made.get_root()
        self.map_view.value = (
            f'<iframe title="Search results on the map" srcdoc="{html.escape(source.render())}" '
            f'style="width: 100%; height: {height}px; border: 1px solid #c8ced3"></iframe>'
        )

    # --- live -------------------------------------------------------------------------------------------------

    def _on_query(self) -> None:
        if self._setting:
            return
        self._query = ("text", self.text_box.value)
        self._search()

    def _on_example(self, _: Any) -> None:
        if self.examples_box.value:
            self.text_box.value = self.examples_box.value

    def _on_filter(self, _: Any) -> None:
        if self._setting or not self._query[1]:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._search()
            return
        if self._later is not None:
            self._later.cancel()
        self._later = loop.call_later(PAUSE_SECONDS, self._search)

    def _on_message(self, _: Any) -> None:
        """What was clicked or drawn on the map; the text comes from a page, so that nothing of it is taken on trust."""
        try:
            said = parse_json(self.message.value)
            self._obey(said if isinstance(said, dict) else {})
        except UserError as error:
            self.error = str(error)
            self._show()
        except (ValueError, TypeError):
            return

    def _obey(self, said: dict[str, Any]) -> None:
        if isinstance(said.get("like"), str):
            self._like(said["like"])
        elif isinstance(said.get("read"), str):
            captions = self.searcher.sample(said["read"], k=5, find="text")
            lines = "".join(f"<li>{html.escape(hit.text)} ({hit.score:.3f})</li>" for hit in captions.hits)
            self.why.value = f"<b>Captions that fit {html.escape(said['read'])} best</b><ol>{lines}</ol>"
        elif isinstance(said.get("why"), str):
            self._explain(said["why"])
        elif "box" in said or "polygon" in said:
            polygon = said.get("polygon")
            area = {} if said.get("box") is None else {"box": said["box"]}
            self._area = area if polygon is None else {"polygon": {"type": "Polygon", "coordinates": [polygon]}}
            self._on_filter(None)

    def _like(self, sample_id: str) -> None:
        self._query = ("sample", sample_id)
        self._search()

    def _explain(self, item_id: str) -> None:
        hit = next((hit for hit in self.answer.hits if hit.item_id == item_id), None) if self.answer else None
        if hit is None or self.answer is None:
            return
        self.why.value = explanation_html(self.searcher, explain(self.searcher, self.answer, hit))

    def _quietly(self, **values: Any) -> None:
        """Set boxes without searching."""
        self._setting = True
        try:
            for name, value in values.items():
                getattr(self, name).value = value
        finally:
            self._setting = False

    def where(self) -> Filter | None:
        """The filters as they are set. Raises ConfigError for what cannot be meant."""
        domains = (self.domain_box.value,) if self.domain_box.value else ()
        typed = str(self.tag_box.value).strip()  # several may be typed; one that is offered may have a space in it
        tags = (typed,) if typed in self.tag_box.options else tuple(typed.replace(",", " ").split())
        where = Filter(domains=domains, tags=tags, box=self._area.get("box"), polygon=self._area.get("polygon"))
        return None if where.empty else where

    def _search(self, raising: bool = False) -> None:
        started = time.perf_counter()
        self.why.value, self.error = "", ""
        try:
            kind, asked = self._query
            common: dict[str, Any] = {"k": self.k_box.value, "where": self.where()}
            search = self.searcher.text if kind == "text" else self.searcher.sample
            self.answer = search(asked, correct_hubs=self.hubs_box.value, **common)
        except UserError as error:
            self.answer, self.error = None, str(error)
            if raising:
                self._show()
                raise
        self._show()
        self.seconds = time.perf_counter() - started

    def _scores(self) -> np.ndarray:
        """Of the tiles of the map, float32 (N,), NaN for those that the filter leaves out."""
        scores = np.full(len(self._positions), np.nan, np.float32)
        if self.answer is None or not len(scores):
            return scores
        index, where = self.searcher.index, self.where()
        chosen = np.ones(len(scores), bool) if where is None else np.isin(self._positions, index.select("image", where))
        kind, asked = self._query
        if kind == "text":
            vector = self.searcher.embed([self.answer.query])
        else:
            vector = index.features(np.array([self.searcher.position(asked)]))
        scores[chosen] = index.scores(vector, self._positions[chosen], self.answer.hubs_corrected)[0]
        return scores

    def _show(self) -> None:
        """Tell the map, and this page, what was found."""
        note = " (SIMULATED data)" if self.searcher.simulated else ""
        click = ", or click a tile of the map" if len(self._tiles) else ""
        told = f"{self._images:,} images{note}. Type a query{click}."
        if self.answer is not None:
            right, hits = self.truth, self.answer.hits
            told = f"{len(hits)} results for “{self.answer.query}”{note}"
            found = sum(hit.sample_id in right for hit in hits)
            told += f"; it is a caption of {len(right)} image(s), {found} of them found (✓)" if right else ""
            told += "".join(f". {note}" for note in self.answer.notes)
        role = "alert" if self.error else "status"
        self.status.value = f'<div role="{role}">{html.escape(self.error or told)}</div>'
        if not len(self._tiles):
            self.cards.children = (
                found_cards(self.searcher, self.answer, self.truth, self._explain, self._like) if self.answer else []
            )
        update = layer_update(self.searcher, self.answer, self._scores(), self._row_of, self.truth)
        update |= {"notes": [], "zoom": bool(self.answer)}
        code = base64.b64encode(json.dumps(update, allow_nan=False).encode()).decode("ascii")
        self._version += 1
        self.link.value = (
            f'<span data-ucore-search="{self._link}" data-version="{self._version}" data-update="{code}"></span>'
        )
