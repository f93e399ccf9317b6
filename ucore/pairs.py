"""Which texts a training image is shown with, and which texts of a batch belong to it."""

import numpy as np

from ucore.cleaning import split_sentences
from ucore.data import caption_groups
from ucore.errors import ConfigError, DataError
from ucore.manifest import Manifest, few


class TrainingTexts:
    """The texts of N training images, one after another: all captions, and then, where asked for, their descriptions.

    texts: list[str] (T,); first: int64 (N + 1,), where each image's captions begin; owner: int64 (T,), the image of a
    text; groups: int64 (T,), equal for equal texts. An image's description is there as a whole and sentence by
    sentence. Raises ConfigError where descriptions are asked for and no image has any, and DataError, naming them,
    where images have no text.
    """

    def __init__(self, manifest: Manifest, with_descriptions: bool = False) -> None:
        captions = [list(of_image) for of_image in manifest.frame["captions"]]
        more = [_parts(text) if with_descriptions else [] for text in manifest.frame["description"]]
        names = zip(manifest.frame["sample_id"], captions, more, strict=True)
        if bare := [str(name) for name, *texts in names if not any(texts)]:
            raise DataError(
                f"{len(bare):,} of {len(captions):,} training images of {manifest.root} have no caption ({few(bare)}). "
                "Leave them out, or write some: ucore caption --into captions"
            )
        if with_descriptions and not any(more):
            raise ConfigError(
                f"description_share asks for descriptions, and none of the {len(manifest):,} training images has one: "
                "run ucore caption on this data first, or leave description_share at 0"
            )
        self.texts = [text for part in (captions, more) for of_image in part for text in of_image]
        self.first = _ends(captions, 0)
        self.first_more = _ends(more, int(self.first[-1]))
        self.groups = caption_groups(self.texts)
        both = (np.repeat(np.arange(len(manifest)), np.diff(first)) for first in (self.first, self.first_more))
        self.owner = np.concatenate([*both])
        # Padded with -1, which equals no group: which texts (as groups) belong to which image.
        counts = np.diff(self.first) + np.diff(self.first_more)
        self._of_image = np.full((len(manifest), counts.max(initial=0)), -1)
        for image in range(len(manifest)):
            own = [*range(*self.first[image : image + 2]), *range(*self.first_more[image : image + 2])]
            self._of_image[image, : len(own)] = self.groups[own]

    def draw(self, rng: np.random.Generator, description_share: float = 0.0) -> np.ndarray:
        """One text of every image, int64 (N,): a caption or, by that chance, of its description if it has one."""
        counts = np.diff(self.first)
        chosen = self.first[:-1] + (rng.random(len(counts)) * counts).astype(int)
        if description_share:
            counts = np.diff(self.first_more)
            other = self.first_more[:-1] + (rng.random(len(counts)) * counts).astype(int)
            wanted = (rng.random(len(counts)) < description_share) | (np.diff(self.first) == 0)
            chosen = np.where(wanted & (counts > 0), other, chosen)
        return chosen

    def positives(self, rows: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """bool (images, texts): True where the image has that very text, its own or a duplicate's."""
        same = np.zeros((len(rows), len(texts)), bool)
        for column in self._of_image[rows].T:  # not all at once, which takes the memory of as many matrices
            same |= column[:, None] == self.groups[texts][None]
        return same


def _parts(description: str) -> list[str]:
    """The whole and, where there are several, its sentences."""
    sentences = split_sentences(description)
    return [description.strip(), *(sentences if len(sentences) > 1 else [])] if description.strip() else []


def _ends(texts: list[list[str]], start: int) -> np.ndarray:
    return np.cumsum([start, *(len(of_image) for of_image in texts)])
