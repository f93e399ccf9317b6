"""Results of a search as cards with buttons, for a gallery that no map can show."""

import html
from collections.abc import Callable
from typing import TYPE_CHECKING

import ipywidgets as ipw

from ucore.answers import Answer, Hit
from ucore.explain import picture_address
from ucore.gallery import shortened

if TYPE_CHECKING:
    from ucore.retrieve import Searcher

SIDE = 150  # pixels of a card's picture
SAID = 90  # letters of a caption


def card_html(searcher: "Searcher", hit: Hit, right: bool) -> str:
    """A result's picture, rank, score and caption; right: it is known to be what was asked for."""
    sure = "" if hit.sure is None else f", sure {hit.sure:.0%}"
    times = f" ×{hit.times}" if hit.times > 1 else ""
    name = html.escape(hit.sample_id, quote=True)
    return (
        f'<div class="ucore-card" style="font: 12px/1.35 sans-serif; width: {SIDE}px; overflow-wrap: anywhere">'
        f'<img alt="{name}" title="{name}" src="{picture_address(searcher, hit.image, 2 * SIDE)}" '
        f'style="width: {SIDE}px; height: {SIDE}px; object-fit: cover">'
        f"<div><b>{hit.rank}.</b> {hit.score:.3f}{sure}{times}{' ✓' if right else ''}</div>"
        f"<div>{html.escape(shortened(hit.text, SAID))}</div></div>"
    )


def found_cards(
    searcher: "Searcher", answer: Answer, truth: frozenset[str], why: Callable[[str], None], like: Callable[[str], None]
) -> list[ipw.Widget]:
    """A card a hit. why: called with the item's id where an explanation is wanted; like: with the sample's, to search
    for more of it."""
    cards: list[ipw.Widget] = []
    for hit in answer.hits:
        card: list[ipw.Widget] = [ipw.HTML(card_html(searcher, hit, hit.sample_id in truth))]
        asked = [("more like this", like, hit.sample_id)]
        asked += [("why?", why, hit.item_id)] if answer.asked == "text" else []
        for told, call, name in asked:
            button = ipw.Button(description=told, layout={"width": f"{SIDE}px", "margin": "0"})
            button.on_click(lambda _, call=call, name=name: call(name))
            card.append(button)
        cards.append(ipw.VBox(card, layout={"margin": "6px 10px 6px 0"}))
    return cards
