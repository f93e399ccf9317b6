"""A gallery of many real rows from few pictures, for `search.py`: features of windows of each, and of captions to ask.

The bundled encoder sees a picture as 7 x 7 cells. A window of w x w of them has the features that a picture of that
ground would have, were it not for what its cells know of their surroundings: every level of the tower is averaged over
the window instead of the picture, and passes through the trained head. 87 windows a picture, of 2, 3, 4, 5 and 7 cells:
neighbours overlap, as tiles of a city do. Captions of pictures of val and test ask, some of which describe training
pictures, too. Places are made up: a picture lies anywhere, its windows beside each other.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a contender's memory is measured, which torch would double
    import torch

CELLS, SIDES, AT_ONCE = 7, (2, 3, 4, 5, 7), 32
WINDOWS = [(y, x, side) for side in SIDES for y in range(CELLS + 1 - side) for x in range(CELLS + 1 - side)]


def means(levels: "torch.Tensor") -> "torch.Tensor":
    """Of maps float (B, C, H, W): the mean of each window, float (B, len(WINDOWS), C)."""
    import torch
    from torch.nn import functional as F

    scale = levels.shape[2] // CELLS
    sums = F.pad(levels.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
    found = []
    for y, x, side in WINDOWS:
        top, left, bottom, right = (scale * edge for edge in (y, x, y + side, x + side))
        inner = sums[:, :, bottom, right] - sums[:, :, top, right] - sums[:, :, bottom, left] + sums[:, :, top, left]
        found.append(inner / (scale * side) ** 2)
    return torch.stack(found, 1).float()


def window_features(encoder: Any, images: "torch.Tensor") -> "torch.Tensor":
    """Image features float32 (B, len(WINDOWS), D) of images uint8 (B, 3, H, W)."""
    import torch
    from torch.nn import functional as F

    from ucore.bundled import IMAGE_LEVELS

    trunk = encoder.clip.visual.trunk
    features, levels = trunk.bn1(trunk.conv_stem(encoder._normalised(images))), []
    for number, stage in enumerate(trunk.blocks):
        features = stage(features)
        if number in IMAGE_LEVELS:
            levels.append(means(features))
    tower = torch.cat([*levels, means(trunk.bn2(trunk.conv_head(features)))], dim=2)
    return F.normalize(encoder.image_head(tower.flatten(0, 1)), dim=1).unflatten(0, tower.shape[:2])


class Windows:
    """The gallery that `make` has written, as `search.Mixture` gives its own.

    rows: float32 (N, D), mapped. captions: float32 (T, D). homes: float64 (P, 2), longitude and latitude.
    """

    def __init__(self, place: Path) -> None:
        self.rows = np.load(place / "windows.npy", mmap_mode="r").reshape(-1, np.load(place / "captions.npy").shape[1])
        self.captions = np.load(place / "captions.npy")
        pictures = len(self.rows) // len(WINDOWS)
        self.homes = np.random.default_rng(0).uniform((-10, 35), (30, 70), (pictures, 2))

    def sample(self, count: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows first and following, float32 (count, D), and their places, float64 (count, 2)."""
        rows = np.arange(first, first + count)
        home, window = self.homes[rows // len(WINDOWS)], np.array(WINDOWS)[rows % len(WINDOWS)]
        middle = (window[:, [1, 0]] + window[:, [2]] / 2) / CELLS - 0.5
        return np.array(self.rows[first : first + count]), home + 0.02 * middle * [1, -1]

    def queries(self, count: int) -> np.ndarray:
        """Captions drawn at random, float32 (count, D)."""
        return self.captions[np.random.default_rng(7).choice(len(self.captions), count, replace=False)]


def make(place: Path, checkpoint: Path, data: Path, rows: int) -> int:
    """Write windows.npy, float32 (P, 87, D), and captions.npy, float32 (T, D), if they are not there; how many rows.

    Raises SystemExit where `place` holds others.
    """
    from tqdm.auto import tqdm

    from ucore.checkpoint import load_checkpoint
    from ucore.checkpoint_files import WEIGHTS
    from ucore.data import read_dataset
    from ucore.features import embed_texts, pixel_batches
    from ucore.files import file_hash, read_json, write_json

    origin = {"checkpoint": file_hash(checkpoint / WEIGHTS), "data": str(data.resolve()), "rows": rows}
    if (place / "captions.npy").exists():
        if read_json(place / "origin.json") != origin:
            raise SystemExit(f"{place} has windows of other --checkpoint, --data or --rows. Take another --folder.")
        return min(rows, len(Windows(place).rows))
    encoder, _ = load_checkpoint(checkpoint)
    manifest = read_dataset(data)
    paths = manifest.image_paths[: -(-rows // len(WINDOWS))]
    out = np.lib.format.open_memmap(place / "windows.npy", "w+", np.float32,
                                    (len(paths), len(WINDOWS), encoder.embed_dim))  # fmt: skip
    batches = [range(start, min(start + AT_ONCE, len(paths))) for start in range(0, len(paths), AT_ONCE)]
    with encoder.evaluating():
        for pictures, pixels in zip(batches, tqdm(pixel_batches(encoder, paths, batches), "Windows"), strict=True):
            out[list(pictures)] = window_features(encoder, pixels).numpy()
    out.flush()
    held = manifest.split([name for name in ("val", "test") if name in set(manifest.frame["split"])])
    write_json(place / "origin.json", origin)
    np.save(place / "captions.npy", embed_texts(encoder, sorted(set(held.texts[0]))))
    return min(rows, len(Windows(place).rows))
