"""Search a `GalleryIndex`: text -> images or segments, image -> captions or images.

    searcher = Searcher("runs/index")                    # the folder alone: its card names the checkpoint
    answer = searcher.text("tennis courts beside a school", k=10, where=Filter(near=(60.17, 24.94), km=5))
    answer.table(); answer.save("found.geojson")

A text query needs the text tower alone, and of the bundled encoder without torch (`bundled_text`), so that the first
answer of a new process comes in seconds.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ucore.answers import Answer, Hit, hit_of, near_features, same_words, there_are
from ucore.checkpoint_files import WEIGHTS, load_bank, read_card
from ucore.errors import CheckpointError, ConfigError, DataError, printable
from ucore.files import file_hash, safe_join, typed_path
from ucore.filters import Filter
from ucore.hubness import Bank, hub_bias
from ucore.index import GalleryIndex
from ucore.late import LateScores
from ucore.queries import TextEncoder, checked_query, open_text_encoder, read_part
from ucore.sureness import Sureness, read_sureness

if TYPE_CHECKING:
    import pandas as pd

    from ucore.model import DualEncoder

Kind = Literal["image", "text", "segment"]
RERANKED = 200  # images, at least, whose segments are compared with the query
MOST_KEPT = 256  # queries whose features are kept


class Searcher:
    """Queries over an index.

    index: an open one, its folder or address. checkpoint: where its encoder's weights are, if not where the card says.
    device: of the image tower, for queries that are files. exact: whether a search scores every row exactly, see
    `GalleryIndex.search`; None: in folders (engine flat) it does, beyond memory (lance) it does not.
    Raises DataError, CheckpointError: no index, or not the weights that it was built with.
    """

    def __init__(
        self, index: "GalleryIndex | str | Path", checkpoint: str | Path | None = None, device: str = "cpu",
        exact: bool | None = None,
    ) -> None:  # fmt: skip
        self.index = index if isinstance(index, GalleryIndex) else GalleryIndex.open(index)
        self.exact = self.index.engine != "lance" if exact is None else exact
        self.device = device
        self.place = self.index.place
        self.checkpoint = self._find_checkpoint(checkpoint)
        self.root = self._find("root", "relative_root")
        self._features: dict[str, np.ndarray] = {}
        self.thumbnails: dict[str, bytes] = {}  # of images that were shown

    # --- what it was built with -------------------------------------------------------------------------------

    def _find(self, absolute: str, relative: str) -> Path:
        """A folder that the card names: seen from the index, else where it was."""
        card, near = self.index.card, None
        if isinstance(self.place, Path) and card.get(relative):
            near = typed_path(f"{self.place}/{card[relative]}", Path.is_dir)
        far = str(card.get(absolute, ""))
        found = near or typed_path(far, Path.is_dir)
        return found.resolve() if found else Path(printable(far)[:200])  # a name that no folder can have, perhaps

    def _find_checkpoint(self, given: str | Path | None) -> Path:
        place = Path(given) if given else self._find("absolute_checkpoint", "checkpoint")
        card = self.index.card
        if not given and not place.is_dir():
            raise CheckpointError(
                f"The checkpoint that {self.place} was built with is not in {place} any more. "
                "Name its folder with --checkpoint, or build the index again"
            )
        name, weights = read_card(place)["encoder"]["name"], place / WEIGHTS
        if not weights.is_file() or file_hash(weights) != card.get("weights"):
            raise CheckpointError(
                f"{self.place} was built with other weights of {card.get('name')} than {place} holds ({name}). "
                "Name the right folder with --checkpoint, or build the index again: ucore index build"
            )
        return place

    @property
    def simulated(self) -> bool:
        """Whether the gallery is generated."""
        return bool(self.index.card.get("simulated"))

    @property
    def temperature(self) -> float:
        """Of the encoder's softmax, from the card. Raises DataError where that names none."""
        value = self.index.card.get("temperature")
        if not isinstance(value, int | float) or not 0 < value < 1e6:
            raise DataError(f"The index {self.place} does not say its encoder's temperature. Build it again.")
        return float(value)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """Embeds queries; opened when first needed. Raises as `queries.open_text_encoder`."""
        return open_text_encoder(self.checkpoint)

    @cached_property
    def bank(self) -> Bank | None:
        """The checkpoint's training features, for hubs; None where it has none."""
        return load_bank(self.checkpoint, self.index.card["weights"])

    @cached_property
    def sureness(self) -> Sureness | None:
        """What turns scores into probabilities; None where the index has none. Raises DataError for a damaged one."""
        return read_sureness(self.index)

    @cached_property
    def encoder(self) -> "DualEncoder":
        """The whole encoder: for queries that are files."""
        from ucore.checkpoint import load_checkpoint

        return load_checkpoint(self.checkpoint, self.device)[0]

    @cached_property
    def late_scores(self) -> LateScores:
        """Weighs images with their segments. Raises as `late.LateScores`."""
        return LateScores(self.index, self.checkpoint, self.bank)

    # --- queries ----------------------------------------------------------------------------------------------

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Features float32 (T, D) of texts; those of late are kept."""
        new = [text for text in dict.fromkeys(texts) if text not in self._features]
        if new:
            if len(self._features) + len(new) > MOST_KEPT:
                self._features.clear()
                new = list(dict.fromkeys(texts))
            self._features |= dict(zip(new, self.text_encoder.embed(new), strict=True))
        return np.stack([self._features[text] for text in texts])

    def read(self, text: str) -> tuple[str, list[str]]:
        """The part of a query that is read, and notes on what is not. Raises ConfigError for an empty one."""
        reading = read_part(checked_query(text), self.text_encoder.fits)
        return reading.text, [reading.note] if reading.note else []

    def text(
        self,
        text: str,
        k: int = 10,
        find: Kind = "image",
        where: Filter | None = None,
        correct_hubs: bool = True,
        late: bool = False,
        group: bool = True,
    ) -> Answer:
        """The k images, or segments, that fit a text best.

        where: searched within it alone; never fewer than k where k exist. correct_hubs: lower what fits everything.
        late: images and their segments in one score, as trained (`late`). group: near repetitions as one hit.
        """
        started = time.perf_counter()
        if find not in ("image", "segment"):
            raise ConfigError(f"A text finds images or segments, not {find!r}")
        if late and find != "image":
            raise ConfigError("late weighs images with their segments; leave it out where segments are to be found")
        query, notes = self.read(text)
        vector = self.embed([query])[0]
        correct = correct_hubs and self.index.has_bias
        if correct_hubs and not correct:
            notes.append("The checkpoint has no bank, so hubs are not corrected; ucore train makes one.")
        own = float(hub_bias(vector[None], self.bank.images, self.temperature)[0]) if correct and self.bank else 0.0
        sure = self.sureness if find == "image" and not late and correct == self.index.has_bias else None
        asked = _Asked(query, "text", vector, find, k, where, correct, group, notes, started)
        return self._answer(replace(asked, late=late, own=own, sure=sure))

    def sample(
        self, sample_id: str, k: int = 10, find: Kind = "image", where: Filter | None = None,
        correct_hubs: bool = True, group: bool = True,
    ) -> Answer:  # fmt: skip
        """The k other images, or the captions, that are closest to an image of the gallery.

        Raises DataError, with the nearest name, for one that is not in it.
        """
        started = time.perf_counter()
        position = self.position(sample_id)
        vector = np.asarray(self.index.features(np.array([position]))[0], np.float32)
        asked = self._image(f"image {sample_id}", vector, find, k, where, correct_hubs, group, started)
        return self._answer(replace(asked, without=(position,)))

    def file(
        self, path: str | Path, k: int = 10, find: Kind = "image", where: Filter | None = None,
        correct_hubs: bool = True, group: bool = True,
    ) -> Answer:  # fmt: skip
        """The k images, or captions, that are closest to a picture of your own. Raises DataError where it is none."""
        from ucore.features import embed_images
        from ucore.images import Unreadable, try_image

        started, path = time.perf_counter(), Path(path)
        picture = try_image(path)
        if isinstance(picture, Unreadable):
            raise DataError(f"Cannot read the image {path}: {picture.reason}. Ask with another file.")
        views = int(read_card(self.checkpoint)["train"]["test_views"])  # as the index was built
        vector = embed_images(self.encoder, [path], views, False)[0]
        name = path.name.encode("utf-8", "replace").decode("utf-8")  # which a file's name need not be
        return self._answer(self._image(f"image {name}", vector, find, k, where, correct_hubs, group, started))

    def position(self, sample_id: str) -> int:
        """Place in the index of a sample's image. Raises DataError, with the nearest name, where there is none."""
        found = self.index.find([f"image:{sample_id}"])
        if found[0] < 0:
            from ucore.config import did_you_mean

            names = self.index.rows(self.index.select("image"))["sample_id"]
            raise DataError(f"There is no sample {sample_id!r} in {self.place}{did_you_mean(sample_id, names)}")
        return int(found[0])

    def scores(
        self, text: str, where: Filter | None = None, correct_hubs: bool = True
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Positions int64 (N,) of all images within `where`, their scores float32 (N,) with a text, and notes."""
        query, notes = self.read(text)
        vector = self.embed([query])[0]
        positions = self.index.select("image", where)
        return positions, self.index.scores(vector[None], positions, correct_hubs and self.index.has_bias)[0], notes

    def hits(self, positions: np.ndarray, vector: np.ndarray) -> list[Hit]:
        """Given items as hits of a query's features, with plain cosines, in the order given."""
        table, scores = self.index.rows(positions), self.index.scores(vector[None], positions)[0]
        return [_hit(number + 1, table, [number], float(score), None) for number, score in enumerate(scores)]

    # --- answers ----------------------------------------------------------------------------------------------

    def _image(
        self, told: str, vector: np.ndarray, find: Kind, k: int, where: Filter | None, correct_hubs: bool, group: bool,
        started: float,
    ) -> "_Asked":  # fmt: skip
        if find not in ("image", "text"):
            raise ConfigError(f"An image finds images or captions, not {find!r}")
        correct = correct_hubs and find == "text" and self.index.has_bias
        return _Asked(told, "image", vector, find, k, where, correct, group, [], started)

    def _answer(self, asked: "_Asked") -> Answer:
        """Search until there are k groups, or everything that passes has been seen."""
        if asked.k < 1:
            raise ConfigError(f"k is {asked.k}; ask for at least one result")
        fetch = max(2 * asked.k + 10, RERANKED if asked.late else 0)
        while True:
            most = min(fetch, len(self.index) or 1)
            hits = self.index.search(asked.vector[None], most, asked.where, asked.kind, self.exact, asked.correct)
            positions, scores = hits.positions[0], hits.scores[0]
            exhausted = bool((positions < 0).any()) or fetch >= hits.allowed
            kept = (positions >= 0) & ~np.isin(positions, asked.without)
            positions, scores = positions[kept], scores[kept]
            if asked.late:
                positions, scores = self.late_scores.rerank(asked.vector, positions, asked.correct)
            table, alone = self.index.rows(positions), [[number] for number in range(len(positions))]
            groups = self._groups(table, positions, asked.kind) if asked.group else alone
            if exhausted or len(groups) >= asked.k:
                break
            fetch *= 2
        groups, notes = groups[: asked.k], list(asked.notes)
        inside = " within the filter" if asked.where and not asked.where.empty else ""
        if len(groups) < asked.k:
            notes.append(f"{asked.k:,} were asked for; there {there_are(len(groups), asked.kind)}{inside}.")
        chances = None if asked.sure is None else asked.sure(scores, asked.own)
        if not hits.exact:
            notes.append(
                "Searched approximately: a closer one may have been missed. exact=True (--knn exact) misses none."
            )
        found = tuple(
            _hit(rank, table, members, float(scores[members[0]]), None if chances is None else chances[members[0]])
            for rank, members in enumerate(groups, 1)
        )
        places = tuple(int(positions[members[0]]) for members in groups)
        seconds = time.perf_counter() - asked.started
        return Answer(asked.told, asked.kind, found, tuple(notes), asked.by, asked.correct, asked.late, self.simulated,
                      seconds, places)  # fmt: skip

    def _groups(self, table: "pd.DataFrame", positions: np.ndarray, kind: Kind) -> list[list[int]]:
        """Rows of hits by likeness, each group led by its best: equal captions, or features that are nearly one."""
        if kind == "text":
            return same_words(table["text"])
        return near_features(np.asarray(self.index.features(positions), np.float32))

    def image_path(self, name: str) -> Path:
        """Path of an image by its name in the index. Raises DataError for a name that leaves the images' folder."""
        return safe_join(self.root, name)


@dataclass(frozen=True, eq=False)
class _Asked:
    """A query in full. by: "text" or "image". own: the query's own bias, for `sure`. without: positions left out."""

    told: str
    by: str
    vector: np.ndarray
    kind: Kind
    k: int
    where: Filter | None
    correct: bool
    group: bool
    notes: Sequence[str]
    started: float
    late: bool = False
    own: float = 0.0
    sure: Sureness | None = None
    without: tuple[int, ...] = ()


def _hit(rank: int, table: "pd.DataFrame", members: list[int], score: float, sure: float | None) -> Hit:
    row: Any = table.iloc[members[0]]
    return hit_of(row, rank, score, sure, [str(table["item_id"].iloc[other]) for other in members[1:]])
