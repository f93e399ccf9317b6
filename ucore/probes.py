"""What can be watched while a trainer trains, from cached tower features: a batch, and what one query finds.

probe = BatchProbe(trainer)
similarity, positives = probe()
query = QueryProbe(trainer)
query.texts           # the validation captions to choose from
found = query(3)      # the best images of the fourth, their ranks then and now, the segments it attends to

None of it has an effect on training.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ucore.evaluate import similarity_matrix
from ucore.features import image_tower_features, pixel_batches, text_tower_features
from ucore.fusion import with_segments
from ucore.gallery import ranking
from ucore.masks import Segments
from ucore.phases import HeadPhase
from ucore.selection import select_segments

if TYPE_CHECKING:
    from ucore.model import DualEncoder
    from ucore.train import Trainer


def towers_version(encoder: "DualEncoder") -> int:
    """A number that grows whenever the towers' weights are written to: features of equal numbers are the same."""
    # PyTorch counts the writes to every tensor, as backward needs to know them.
    return sum(tensor._version for tensor in (*encoder.clip.parameters(), *encoder.clip.buffers()))


class BatchProbe:
    """The same few training pairs, compared anew at every call: watch their diagonal light up.

    Calling it gives similarity float32 (size, size) of images and captions and positives bool (size, size), with
    the weights as they are, without dropout or augmentation. The towers compute only after they have changed.
    """

    def __init__(self, trainer: "Trainer", size: int = 24) -> None:
        rows = np.random.default_rng(trainer.config.seed).permutation(len(trainer.train))[:size]
        texts = trainer.first_text[rows]
        self.encoder, self.positives = trainer.encoder, trainer.positives(rows, texts)
        (self.pixels,) = pixel_batches(self.encoder, trainer.train.image_paths, [rows.tolist()])
        self.tokens = self.encoder.tokenize([trainer.texts[text] for text in texts])
        self._version, self._towers = -1, (torch.empty(0), torch.empty(0))

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosines float32 (size, size) of images (rows) and captions, and positives bool (size, size)."""
        encoder, version = self.encoder, towers_version(self.encoder)
        with encoder.evaluating():
            if version != self._version:
                self._version = version
                self._towers = encoder.image_tower(self.pixels), encoder.text_tower(self.tokens)
            image, text = _features(encoder, *self._towers)
            return (image @ text.T).cpu().numpy(), self.positives


@dataclass(frozen=True)
class Found:
    """What a caption finds in the validation images, `then` and `now`; rows count those images from 0."""

    text: str
    own: int  # row of the image that the caption was written for
    steps: tuple[int, int]  # after which the weights of then and now were had
    best: np.ndarray  # int64 (k,), rows of the best images now
    best_then: np.ndarray  # int64 (k,), ranks from 1 that these images had then
    own_ranks: tuple[int, int]  # of the caption's own image, ties against it
    images: int
    shares: np.ndarray | None = None  # float32 (2, K), then and now: of the own image's segments in their score


class QueryProbe:
    """How what a validation caption finds changes, `then` being when this was made or `restart` was called.

    The whole validation gallery is ranked as validation does it: with the averaged weights, and with segments where the
    trainer has them. While the towers are as they were, that is a matter of the heads, on cached features; once they
    are tuned, it is as the last validation saw it. Making one makes the phase that the next step belongs to.
    offered: distinct captions to choose from, evenly spread over the gallery.
    """

    def __init__(self, trainer: "Trainer", offered: int = 100, k: int = 5) -> None:
        self.trainer, self.encoder, self.k = trainer, trainer.encoder, k
        texts, image_of = trainer.val.texts
        distinct = list(dict.fromkeys(texts))
        places = np.linspace(0, len(distinct) - 1, min(offered, len(distinct))).round().astype(int)
        self.texts = [distinct[place] for place in places]
        self.rows = np.array([texts.index(text) for text in self.texts])  # among all captions
        self.own = np.asarray(image_of)[self.rows]
        self._version, self._segments = -1, dict[int, Segments | None]()
        self.restart()

    def restart(self) -> None:
        """From here on, `then` is now."""
        if towers_version(self.encoder) != self._version:
            with self._averaged():
                self._image, self._text = self._tower_features()
        self._version = towers_version(self.encoder)
        self._step, self._ranks, self._shares = self._look(range(len(self.texts)))

    def _tower_features(self) -> tuple[Tensor, Tensor]:
        trainer = self.trainer
        phase = None if trainer.finished else trainer.phase
        if isinstance(phase, HeadPhase):
            return phase.val_image, phase.val_text[self.rows]
        image = image_tower_features(self.encoder, trainer.val, 1, trainer.cache, trainer.progress)
        text = text_tower_features(self.encoder, self.texts, trainer.cache, progress=False)
        return torch.from_numpy(image[:, 0]), torch.from_numpy(text)

    def __call__(self, number: int) -> Found:
        """What caption `number` of `texts` finds."""
        step, (ranks,), shares = self._look([number])
        own = int(self.own[number])
        best = ranks.argsort()[: self.k]
        own_ranks = int(self._ranks[number, own]), int(ranks[own])
        both = None if shares is None or self._shares is None else np.stack([self._shares[number], shares[0]])
        return Found(self.texts[number], own, (self._step, step), best, self._ranks[number, best], own_ranks,
                     len(ranks), both)  # fmt: skip

    def segments(self, number: int) -> Segments | None:
        """The segments of the caption's own image that training knows, in the order of `shares`; None without any."""
        if number not in self._segments:
            self._segments[number] = self._load_segments(number)
        return self._segments[number]

    def _load_segments(self, number: int) -> Segments | None:
        store, name = self.trainer.store, str(self.trainer.val.frame["sample_id"].iloc[self.own[number]])
        if self.encoder.segments is None or store is None or name not in store:
            return None
        found = store.load(name)
        return found.take(select_segments(found, self.trainer.config.segment_count))

    def _look(self, numbers: Sequence[int]) -> tuple[int, np.ndarray, np.ndarray | None]:
        """Step, ranks int64 (Q, N) of all images with these captions, and shares float32 (Q, K) of segments."""
        trainer, chosen, encoder = self.trainer, self.rows[list(numbers)], self.encoder
        seen, device = trainer.validated, encoder.device
        if towers_version(encoder) == self._version:
            with self._averaged(), encoder.evaluating():
                image, text = _features(encoder, self._image.to(device), self._text[list(numbers)].to(device))
                step, texts = trainer.step_count, text.cpu().numpy()
                scores = similarity_matrix(image.cpu().numpy(), texts)
                if encoder.segments is not None:
                    sets, share = trainer.segment_sets("val"), trainer.config.segment_share
                    scores = with_segments(encoder, scores, sets, texts, share)
                shares = self._attention(numbers, text)
            self._version = towers_version(encoder)  # averaged weights were put in, and taken out again
        elif seen:
            step, texts, scores = seen["step"], seen["text"][chosen], seen.get("similarity")
            scores = similarity_matrix(seen["image"], texts) if scores is None else scores[:, chosen]
            with self._averaged(), encoder.evaluating():
                shares = self._attention(numbers, torch.from_numpy(texts).to(device))
        else:  # tuned since, and not validated yet
            shares = None if self._shares is None else self._shares[list(numbers)]
            return self._step, self._ranks[list(numbers)], shares
        pairs = zip(scores.T, self.own[list(numbers)], strict=True)
        return step, np.stack([_ranks(of_text, own) for of_text, own in pairs]), shares

    def _attention(self, numbers: Sequence[int], text: Tensor) -> np.ndarray | None:
        branch = self.encoder.segments
        if branch is None:
            return None
        tower, present = self.trainer.segment_sets("val").take(self.own[list(numbers)], self.encoder.device)
        shares = branch.pool.attention(branch.features(tower, present), present, text)  # (Q, K, Q)
        return shares.diagonal(dim1=0, dim2=2).T.cpu().numpy()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if self.trainer.finished:  # the encoder has the weights kept
            yield
        else:
            with self.trainer.phase.averaged_weights():
                yield


def _features(encoder: "DualEncoder", image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """From tower features to L2-normalised ones."""
    return F.normalize(encoder.image_head(image), dim=1), F.normalize(encoder.text_head(text), dim=1)


def _ranks(scores: np.ndarray, own: int) -> np.ndarray:
    """Rank from 1 of every image, int64 (N,); among equals the own one comes last."""
    ranks = np.empty(len(scores), np.int64)
    ranks[ranking(scores, own)] = np.arange(1, len(scores) + 1)
    return ranks
