"""What sam-micro learns from: pictures with label maps, cut into windows with clicks and the masks they mean.

Simulated tiles have the true mask of every object. Real tiles get the regions of a classical segmentation at several
scales: coarse and without names, but of real edges, real light and real cameras.
"""

import multiprocessing
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

from ucore.errors import DataError
from ucore.files import atomic_path, content_hash
from ucore.images import load_image, someone_looks
from ucore.manifest import Manifest, subset
from ucore.micro_sam import IMAGE_SIZE, STRIDE
from ucore.processes import death_told

SCALES = (60.0, 250.0)  # of felzenszwalb: single roofs and trees; fields and blocks
SMALLEST = 24  # pixels of a mask in a window: below, there is nothing to learn from a click
ZOOM = 2.4  # at most, of a window
LARGEST = 0.6  # share of the window
CELLS = 64  # of a window, whose likeness to the cells around them is learned
MASK_STRIDE = STRIDE // 4  # pixels of the window a pixel of the decoder's masks


@dataclass(frozen=True)
class Source:
    """Pictures with label maps. images: uint8 (H, W, 3); labels: uint16, uint32 where they are many, (L, H, W), 0 where
    nothing is labelled."""

    name: str
    images: list[np.ndarray]
    labels: list[np.ndarray]


@dataclass(frozen=True)
class Window:
    """image uint8 (S, S, 3); masks float16 (P, S / 2, S / 2), the covered share of each cell; points float32 (P, 2, 2)
    and labels int64 (P, 2): clicks x, y in pixels of the window, 1 inside, 0 outside, -1 none; boxes float32 (P, 4);
    objects int64 (S / 2, S / 2): the label of each cell, 0 unknown; cells int64 (CELLS,): flat positions of known
    ones, half of them drawn by area and half by object."""

    image: np.ndarray
    masks: np.ndarray
    points: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    objects: np.ndarray
    cells: np.ndarray


def simulated_source(folders: Sequence[str | Path], splits: tuple[str, ...] | None = None) -> Source:
    """Tiles and object masks of datasets that `ucore simulate` wrote with masks. Raises DataError without them."""
    images, labels = [], []
    for folder in folders:
        manifest = Manifest.load(Path(folder) / "manifest.parquet")
        manifest = manifest if splits is None else manifest.split(splits)
        for row in range(len(manifest)):
            name = manifest.frame["image"].iloc[row]
            path = (Path(folder) / "masks" / Path(name).relative_to("images")).with_suffix(".png")
            label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
            if label is None:
                raise DataError(f"There is no mask {path}. Make the set again with: ucore simulate --masks")
            images.append(np.asarray(load_image(manifest.image_path(row))))
            labels.append(label.astype(np.uint16)[None])
    return Source("simulated", images, labels)


def distilled_source(manifest: Manifest, cache: str | Path, most: int | None = None, workers: int = 2) -> Source:
    """Real pictures with the regions of `felzenszwalb` at SCALES; label maps are kept under `cache`."""
    manifest = subset(manifest, most)
    images = [np.asarray(load_image(path)) for path in manifest.image_paths]
    path = Path(cache) / f"regions-{content_hash(manifest.content_key(), SCALES)}.npz"
    labels = _kept_labels(path, images)
    if labels is None:
        quiet = not someone_looks()
        # Not forked: a thread of OpenCV or torch may hold a lock at that moment.
        with death_told(), ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            labels = list(tqdm(pool.map(regions, images, chunksize=8), total=len(images), desc="Classical regions",
                               unit="img", disable=quiet))  # fmt: skip
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, **{f"{n:06d}": label for n, label in enumerate(labels)})  # type: ignore[reportArgumentType]
    return Source("distilled", images, labels)


def _kept_labels(path: Path, images: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """The label maps of `images` in a file; None where there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            labels = [stored[name] for name in sorted(stored.files)]
    except Exception:  # numpy, zipfile and zlib each raise their own on damaged bytes
        return None
    fit = len(labels) == len(images) and all(
        label.ndim == 3 and label.shape[1:] == image.shape[:2] and label.dtype.kind == "u"
        for label, image in zip(labels, images, strict=True)
    )
    return labels if fit else None


def training_sources(
    simulated: Sequence[str | Path], real: Sequence[str | Path], cache: str | Path, most: int = 1500
) -> list[Source]:
    """Every tile of the simulated folders, and at most `most` pictures of the split "train" of each real dataset."""
    from ucore.data import read_dataset

    sources = [simulated_source(simulated)] if simulated else []
    sources += [distilled_source(read_dataset(folder, split="train"), cache, most) for folder in real]
    if not sources:
        raise DataError("There is nothing to train on: name a simulated or a real dataset")
    return sources


def regions(image: np.ndarray) -> np.ndarray:
    """Label maps (len(SCALES), H, W) of a classical segmentation, from 1; uint16, or uint32 where that is too small."""
    from skimage.segmentation import felzenszwalb

    labels = np.stack([felzenszwalb(image, scale=scale, sigma=0.8, min_size=30) + 1 for scale in SCALES])
    return labels.astype(np.uint16 if labels.max() <= np.iinfo(np.uint16).max else np.uint32)


def fingerprint(sources: Sequence[Source]) -> str:
    """16 hex digits that change with any pixel or label."""
    return content_hash(
        [[source.name, [zlib.crc32(part.tobytes()) for part in [*source.images, *source.labels]]] for source in sources]
    )


def windows(
    sources: Sequence[Source],
    shares: Sequence[float],
    side: int,
    prompts: int,
    rng: np.random.Generator,
    zoom: float = ZOOM,
) -> Iterator[Window]:
    """Endless training windows of `side` pixels with `prompts` clicks each, drawn from the sources by `shares`."""
    chances = np.asarray(shares) / np.sum(shares)
    while True:
        source = sources[int(rng.choice(len(sources), p=chances))]
        number = int(rng.integers(len(source.images)))
        layer = int(rng.integers(len(source.labels[number])))
        window = make_window(source.images[number], source.labels[number][layer], side, prompts, rng, zoom)
        if window is not None:
            yield window


def make_window(
    image: np.ndarray, label: np.ndarray, side: int, prompts: int, rng: np.random.Generator, most_zoom: float = ZOOM
) -> Window | None:
    """A random cut, zoomed, flipped, turned and re-coloured; None where it shows no object to click on."""
    height, width = label.shape
    zoom = float(np.exp(rng.uniform(0, np.log(most_zoom))))
    cut = max(8, min(round(min(height, width) * side / IMAGE_SIZE / zoom), height, width))
    top, left = int(rng.integers(height - cut + 1)), int(rng.integers(width - cut + 1))
    place = (slice(top, top + cut), slice(left, left + cut))
    shrinks = cut > side
    picture = cv2.resize(image[place], (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    objects = cv2.resize(label[place], (side, side), interpolation=cv2.INTER_NEAREST)
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    picture, objects = (
        np.ascontiguousarray(np.rot90(part[:, ::-1] if flip else part, turns)) for part in (picture, objects)
    )
    chosen = choose_objects(objects, prompts, rng)
    if len(chosen) == 0:
        return None
    return click(recolour(picture, rng), objects, chosen, rng)


def choose_objects(objects: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` labels to click on: half of the draws by number, half by area; repeated where there are few."""
    areas = np.bincount(objects.ravel())
    areas[0] = 0
    known = np.flatnonzero((areas >= SMALLEST) & (areas <= LARGEST * objects.size))
    if len(known) == 0:
        return known
    chance = 0.5 / len(known) + 0.5 * areas[known] / areas[known].sum()
    return rng.choice(known, count, replace=len(known) < count, p=chance)


def click(picture: np.ndarray, objects: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> Window:
    """The masks of `chosen`, a click well inside each, a second click (inside or close outside) and a box."""
    side = len(objects)
    cells = side // MASK_STRIDE
    masks = np.empty((len(chosen), cells, cells), np.float16)
    points = np.zeros((len(chosen), 2, 2), np.float32)
    labels = np.ones((len(chosen), 2), np.int64)
    boxes = np.empty((len(chosen), 4), np.float32)
    for row, number in enumerate(chosen):
        mask = (objects == number).astype(np.uint8)
        masks[row] = mask.reshape(cells, MASK_STRIDE, cells, MASK_STRIDE).mean((1, 3))
        ys, xs = np.nonzero(mask)
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)
        boxes[row] = box + rng.normal(0, 0.05, 4) * np.tile(box[2:] - box[:2], 2)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
        inside = np.flatnonzero(depth >= rng.uniform(0, 0.7) * depth.max())
        inside = inside[mask.ravel()[inside] > 0]
        points[row, 0] = divmod(int(rng.choice(inside)), side)[::-1]
        around = np.flatnonzero(cv2.dilate(mask, np.ones((9, 9), np.uint8)).ravel() > mask.ravel())
        if len(around) and rng.random() < 0.5:
            points[row, 1], labels[row, 1] = divmod(int(rng.choice(around)), side)[::-1], 0
        else:
            points[row, 1] = divmod(int(rng.choice(inside)), side)[::-1]
    coarse = np.ascontiguousarray(objects[MASK_STRIDE // 2 :: MASK_STRIDE, MASK_STRIDE // 2 :: MASK_STRIDE])
    return Window(picture, masks, points, labels, boxes, coarse.astype(np.int64), known_cells(coarse, rng))


def known_cells(objects: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """CELLS flat positions int64 of labelled cells of `objects`, half drawn by area and half by object."""
    flat = objects.ravel()
    known = np.flatnonzero(flat)
    if not len(known):
        return np.zeros(CELLS, np.int64)  # whatever lies there, nothing is counted
    order = known[np.argsort(flat[known], kind="stable")]
    starts = np.flatnonzero(np.diff(flat[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    which = rng.integers(len(starts), size=CELLS // 2)
    by_object = order[rng.integers(starts[which], ends[which])]
    return np.concatenate([rng.choice(known, CELLS - CELLS // 2), by_object])


def recolour(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another camera, light and season: gains, gamma, saturation, blur and noise, each mild; uint8 (S, S, 3)."""
    values = picture.astype(np.float32) / 255
    values = values ** np.exp(rng.normal(0, 0.2)) * np.exp(rng.normal(0, [0.08] * 3)).astype(np.float32)
    grey = values.mean(2, keepdims=True)
    values = grey + (values - grey) * rng.uniform(0, 1.5)
    values = (values - values.mean()) * np.exp(rng.normal(0, 0.15)) + values.mean() + rng.normal(0, 0.05)
    if rng.random() < 0.3:
        values = cv2.GaussianBlur(values.astype(np.float32), (0, 0), rng.uniform(0.3, 1.2))
    if rng.random() < 0.3:
        values = values + rng.normal(0, rng.uniform(0, 0.05), values.shape)
    return (values.clip(0, 1) * 255).astype(np.uint8)


def centre_clicks(label: np.ndarray, smallest: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For scoring: the objects of a label map, uint16 (H, W), and the innermost pixel of each.

    Returns the numbers int64 (N,), clicks float32 (N, 2) as x, y, and areas int64 (N,); objects below `smallest`
    pixels or above LARGEST of the picture are left out.
    """
    areas = np.bincount(label.ravel())
    areas[0] = 0
    numbers = np.flatnonzero((areas >= smallest) & (areas <= LARGEST * label.size))
    clicks = np.zeros((len(numbers), 2), np.float32)
    for row, number in enumerate(numbers):
        padded = np.pad((label == number).astype(np.uint8), 1)  # the picture's edge is an edge
        depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
        clicks[row] = divmod(int(depth.argmax()), label.shape[1])[::-1]
    return numbers, clicks, areas[numbers]
