"""Evaluation through the index: the same ranks as from arrays, without ever holding all scores; and what tags say.

    ranks = index_ranks(searcher, split="val")               # `evaluate.retrieval_ranks` of the same features
    metrics_from_ranks(*ranks)
    segment_ranks(searcher, split="val")                     # text -> tile by its best segment
    semantic_ndcg(searcher, split="val")                     # other tiles that show the same are right, too
    approximate_recall(searcher.index)                       # of what exact searches find

A search gives float32 scores of the k best. They are computed again exactly (`evaluate`: equal features score exactly
equal, ties count against the model), and k grows until nothing outside can change a rank.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.errors import DataError
from ucore.evaluate import Ranks, similarity_matrix
from ucore.hubness import hub_bias

if TYPE_CHECKING:
    from ucore.answers import Hit
    from ucore.index import GalleryIndex
    from ucore.retrieve import Searcher

BLOCK = 128  # queries at a time
FIRST = 64  # hits of a query that are looked at first
SLACK = 1e-5  # by how much a float32 score of a search may differ from the exact one
MANY = 8  # where a second look would fetch a hit of so many, all are looked at
CUTOFF = 10
ASKED = 200  # captions, to see what an approximate search finds
SEEN = 3  # of what was found instead


def approximate_recall(
    index: "GalleryIndex", k: int = CUTOFF, most: int = ASKED, seed: int = 0
) -> tuple[float, int] | None:
    """Percent of the k best images that approximate searches find for captions of the index itself, and how many asked.

    At most `most` captions, drawn with `seed`. An image that scores as the k-th does counts, whichever it is. None
    where there are no captions, or where searches are exact, because it is as fast.
    """
    texts = index.select("text")
    asked = np.sort(np.random.default_rng(seed).choice(texts, min(most, len(texts)), replace=False))
    queries = index.features(asked)
    if not len(asked) or (near := index.search(queries, k, exact=False)).exact:
        return None
    right = index.search(queries, k).scores
    there = np.isfinite(right)
    return 100 * float((near.scores >= right[:, -1:])[there].mean()), len(asked)


class Gallery:
    """The part of an index that is evaluated. split: None is all of it.

    images, texts: positions int64; image_of: place in `images` of each text's image.
    Raises DataError where there are no texts with their images.
    """

    def __init__(self, index: "GalleryIndex", split: str | None) -> None:
        parts = {}
        for kind in ("image", "text", "segment"):
            positions = index.select(kind)
            rows = index.rows(positions)
            inside = np.ones(len(rows), bool) if split is None else (rows["split"] == split).to_numpy()
            parts[kind] = positions[inside], rows[inside].reset_index(drop=True)
        self.index, (self.images, self.image_rows) = index, parts["image"]
        self.texts, self.text_rows = parts["text"]
        self.segments, segment_rows = parts["segment"]
        self.place = {name: place for place, name in enumerate(self.image_rows["sample_id"])}
        self.image_of = np.array([self.place[name] for name in self.text_rows["sample_id"]], np.int64)
        self.image_of_segment = np.array([self.place[name] for name in segment_rows["sample_id"]], np.int64)
        if not len(self.texts):
            raise DataError(f"The index {index.place} has no captions of the split {split!r} to ask it with.")


def index_ranks(
    searcher: "Searcher", split: str | None = None, correct_hubs: bool = False, same_caption: bool = False
) -> Ranks:
    """(image -> text ranks, text -> image ranks), as `evaluate.retrieval_ranks` of the split's features.

    correct_hubs: with `hubness`, as `Scores.corrected`. same_caption: every image with the very caption is right.
    """
    gallery = Gallery(searcher.index, split)
    groups = np.unique(gallery.text_rows["text"], return_inverse=True)[1] if same_caption else None
    right_of_text = _right(gallery.image_of, groups)
    right_of_image: list[list[int]] = [[] for _ in gallery.images]
    for text, images in enumerate(right_of_text):
        for image in images:
            right_of_image[image].append(text)
    asking = [place for place, texts in enumerate(right_of_image) if texts]
    correct = correct_hubs and searcher.index.has_bias
    to_texts = _ranks(searcher, "text", gallery.texts, np.arange(len(gallery.texts)), gallery.images[asking],
                      [right_of_image[place] for place in asking], correct)  # fmt: skip
    to_images = _ranks(searcher, "image", gallery.images, np.arange(len(gallery.images)), gallery.texts, right_of_text,
                       correct)  # fmt: skip
    return to_texts, to_images


def segment_ranks(searcher: "Searcher", split: str | None = None) -> np.ndarray:
    """Text -> image ranks int64 (T,) where an image scores as the segment of it that fits the text best.

    Images without segments come last. Raises DataError where the index has no segments.
    """
    gallery = Gallery(searcher.index, split)
    if not len(gallery.segments):
        raise DataError(f"The index {searcher.place} has no segments; build it with --segments.")
    right = [[place] for place in gallery.image_of.tolist()]
    return _ranks(searcher, "segment", gallery.segments, gallery.image_of_segment, gallery.texts, right, False,
                  len(gallery.images))  # fmt: skip


def _right(image_of: np.ndarray, groups: np.ndarray | None) -> list[list[int]]:
    """The right images of each text."""
    if groups is None:
        return [[place] for place in image_of.tolist()]
    shared = [np.unique(image_of[groups == group]).tolist() for group in range(int(groups.max()) + 1)]
    return [shared[group] for group in groups]


def _ranks(
    searcher: "Searcher", kind: str, items: np.ndarray, owner: np.ndarray, queries: np.ndarray,
    right: Sequence[Sequence[int]], correct: bool, owners: int | None = None,
) -> np.ndarray:  # fmt: skip
    """Ranks int64 (Q,) of each query's best right owner, ties against the model.

    items: positions of what is searched; owner: whose each is (an owner scores as its best item); queries: positions.
    """
    index, count = searcher.index, owners or len(items)
    own_of = np.full(int(items.max()) + 1, -1, np.int64)
    own_of[items] = owner
    members: list[list[int]] = [[] for _ in range(count)]
    for position, whose in zip(items.tolist(), owner.tolist(), strict=True):
        members[whose].append(position)
    ranks = np.zeros(len(queries), np.int64)
    total = len(index.select(kind))
    for start in range(0, len(queries), BLOCK):
        waiting, k = np.arange(start, min(start + BLOCK, len(queries))), min(FIRST, total)
        while len(waiting):
            features = index.features(queries[waiting])
            bias = index.rows(queries[waiting])["hub_bias"].to_numpy(np.float32) if correct else None
            if k > FIRST and k * MANY >= total:  # a product of matrices is cheaper than so long a list of hits
                known, bound = np.sort(items), np.full(len(waiting), -np.inf)
            else:
                hits = index.search(features, k, kind=kind, bias=correct)
                bound = np.full(len(waiting), -np.inf) if k >= total else hits.scores[:, -1].astype(np.float64) + SLACK
                bound = bound if bias is None else bound + bias
                wanted = [place for query in waiting.tolist() for whose in right[query] for place in members[whose]]
                known = np.unique(np.concatenate([hits.positions[hits.positions >= 0], np.array(wanted, np.int64)]))
                known = known[(known < len(own_of)) & (own_of[np.minimum(known, len(own_of) - 1)] >= 0)]
            best = _best_of_owners(index, features, bias, known, own_of[known], count, kind)
            left = []
            for number, query in enumerate(waiting.tolist()):
                scores, places = best[number], list(right[query])
                top = scores[places].max()
                ranks[query] = 1 + np.count_nonzero(scores >= top) - np.count_nonzero(scores[places] == top)
                if -np.inf < bound[number] and top <= bound[number]:  # something unseen may be as good
                    left.append(query)
            waiting, k = np.array(left, np.int64), min(4 * k, total)
    return ranks


def _best_of_owners(
    index: "GalleryIndex", features: np.ndarray, bias: np.ndarray | None, known: np.ndarray, owner: np.ndarray,
    count: int, kind: str,
) -> np.ndarray:  # fmt: skip
    """Exact scores float32 (Q, count) of the owners of `known` items, -inf for others, as `Scores` adds them up."""
    scores = similarity_matrix(features, index.features(known))
    if bias is not None:
        items = index.rows(known)["hub_bias"].to_numpy(np.float32)
        texts, images = (bias[:, None], items) if kind == "image" else (items, bias[:, None])
        scores = scores + texts + images
    best = np.full((len(features), count), -np.inf, np.float32)
    order = np.argsort(owner, kind="stable")
    owners, starts = np.unique(owner[order], return_index=True)
    if len(owners):
        best[:, owners] = np.maximum.reduceat(scores[:, order], starts, axis=1)
    return best


def semantic_ndcg(
    searcher: "Searcher", split: str | None = None, correct_hubs: bool = False, k: int = CUTOFF
) -> np.ndarray:
    """nDCG@k float64 (T',) of every text whose image has tags: captions repeat, and several tiles show the same.

    Gain of a tile: the share of tags that it has in common with the text's own image (Jaccard). Discount: log2(rank+1)
    (Jarvelin and Kekalainen 2002). Empty where no image has tags.
    """
    gallery = Gallery(searcher.index, split)
    tags = [frozenset(of_image) for of_image in gallery.image_rows["tags"]]
    asked = np.array([number for number, place in enumerate(gallery.image_of) if tags[place]], np.int64)
    place_of = {position: place for place, position in enumerate(gallery.images.tolist())}
    correct = correct_hubs and searcher.index.has_bias
    total = len(searcher.index.select("image"))
    discount = 1 / np.log2(np.arange(2, k + 2))
    gains_of: dict[int, np.ndarray] = {}
    values = []
    for start in range(0, len(asked), BLOCK):
        some = asked[start : start + BLOCK]
        features = searcher.index.features(gallery.texts[some])
        most = k if len(gallery.images) == total else total  # of other splits nothing is counted
        hits = searcher.index.search(features, most, kind="image", bias=correct)
        for row, number in zip(hits.positions, some.tolist(), strict=True):
            own = int(gallery.image_of[number])
            if own not in gains_of:
                gains_of[own] = np.array([overlap(tags[own], of_image) for of_image in tags])
            found = [place_of[position] for position in row.tolist() if position in place_of][:k]
            gains, ideal = gains_of[own][found], np.sort(gains_of[own])[::-1][:k]
            values.append(float((gains * discount[: len(gains)]).sum() / (ideal * discount[: len(ideal)]).sum()))
    return np.array(values)


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Share of all tags of both that both have; 0 where neither has any."""
    return len(one & other) / len(one | other) if one or other else 0.0


def worst_queries(
    searcher: "Searcher", ranks: np.ndarray, split: str | None = None, n: int = 4
) -> list[dict[str, Any]]:
    """The n texts with the highest rank, of different images: query, rank, own and found (hits), and why in words.

    ranks: text -> image, by plain cosines, of `index_ranks`; what was found is by them, too. The reasons are those
    that can be counted; they need not be the only ones.
    """
    gallery = Gallery(searcher.index, split)
    features = searcher.index.features(gallery.texts)
    bank = searcher.bank
    bias = np.zeros(len(features)) if bank is None else hub_bias(features, bank.images, searcher.temperature)
    vague, chosen, seen = float(np.quantile(bias, 0.1)), [], set[int]()
    for number in np.argsort(-ranks, kind="stable").tolist():
        place = int(gallery.image_of[number])
        if place in seen or ranks[number] == 1:
            continue
        seen.add(place)
        answer = searcher.text(str(gallery.text_rows["text"][number]), 10 * SEEN, correct_hubs=False, group=False)
        inside = [hit for hit in answer.hits if split in (None, hit.split)][:SEEN]
        found = [replace(hit, rank=rank) for rank, hit in enumerate(inside, 1)]
        own = searcher.hits(gallery.images[[place]], features[number])[0]
        same = int((gallery.text_rows["text"] == gallery.text_rows["text"][number]).sum())
        why = _why(own, found, same, bank is not None and bool(bias[number] <= vague))
        chosen.append({"query": answer.query, "rank": int(ranks[number]), "own": own, "found": found, "why": why})
        if len(chosen) == n:
            break
    return chosen


def _why(own: "Hit", found: "Sequence[Hit]", same: int, vague: bool) -> str:
    shared = max((overlap(frozenset(own.tags), frozenset(hit.tags)) for hit in found), default=0.0)
    reasons = [f"{same} images have this very caption"] if same > 1 else []
    reasons += ["the caption fits much of everything"] if vague else []
    reasons += [f"what was found shares {shared:.0%} of its tags"] if shared >= 0.5 else []
    return "; ".join(reasons) or "nothing countable: the model does not see what the caption says"
