"""Tiny datasets in the layouts that ucore reads, with generated pictures that their captions describe."""

import json
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ucore.crop_features import image_keys
from ucore.images import load_image
from ucore.manifest import Manifest
from ucore.masks import Segments
from ucore.segment_store import SegmentStore, row_of

GROUNDS = {"green": (60, 120, 50), "brown": (130, 95, 60), "grey": (120, 120, 120), "sandy": (215, 195, 140)}
COLOURS = {"white": (245, 245, 245), "red": (200, 40, 40), "blue": (40, 80, 200), "black": (20, 20, 20)}
SHAPES = ("square", "round", "striped", "crossed", "ring-shaped")
PLACES = {
    "left": (0.3, 0.5),
    "right": (0.7, 0.5),
    "top": (0.5, 0.3),
    "bottom": (0.5, 0.7),
    "middle": (0.5, 0.5),
}
SENTENCES = (
    "a {colour} {shape} building stands at the {place} of {ground} land .",
    "on {ground} ground there is a {shape} {colour} roof at the {place} .",
    "the {place} of the {ground} field holds one {colour} {shape} object .",
    "{ground} land with a {colour} {shape} house on the {place} .",
    "a {shape} structure , {colour} , lies in the {place} of the {ground} area .",
)


def scenes(count: int, seed: int) -> list[dict[str, str]]:
    """`count` scenes (ground, colour, shape, place), all different up to 400, shuffled by `seed`."""
    every = list(product(GROUNDS, COLOURS, SHAPES, PLACES))
    order = np.random.default_rng(seed).permutation(len(every))
    chosen = [every[order[number % len(every)]] for number in range(count)]
    return [dict(zip(("ground", "colour", "shape", "place"), scene, strict=True)) for scene in chosen]


def draw(scene: dict[str, str], size: int, noise: np.random.Generator) -> Image.Image:
    """The scene as PIL RGB of `size` x `size` pixels, with a little noise so that no two files are equal."""
    y, x = np.mgrid[:size, :size] / size
    centre_x, centre_y = PLACES[scene["place"]]
    across, down = np.abs(x - centre_x), np.abs(y - centre_y)
    inside = np.maximum(across, down) < 0.2
    radius = np.hypot(across, down)
    mask = {
        "square": inside,
        "round": radius < 0.2,
        "striped": inside & (np.floor(x * 16) % 2 == 0),
        "crossed": inside & (np.minimum(across, down) < 0.06),
        "ring-shaped": (radius < 0.24) & (radius > 0.14),
    }[scene["shape"]]
    pixels = np.where(mask[..., None], COLOURS[scene["colour"]], GROUNDS[scene["ground"]])
    pixels = pixels + noise.normal(0, 6, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_rsicd(
    folder: str | Path,
    n_train: int = 24,
    n_val: int = 8,
    n_test: int = 8,
    captions_per_image: int = 5,
    seed: int = 0,
    size: int = 64,
    repeat_captions: bool = False,
) -> Path:
    """Write dataset_rsicd.json and images/00000.png, ... ; return `folder`.

    Every picture's captions name its ground, colour, shape and place, and no other picture's; with
    `repeat_captions` the last one names the ground only, as annotators do, so that it repeats.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True)
    splits = ["train"] * n_train + ["val"] * n_val + ["test"] * n_test
    noise = np.random.default_rng([seed, 1])
    entries: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes(len(splits), seed)):
        captions = [SENTENCES[j % len(SENTENCES)].format(**scene) for j in range(captions_per_image)]
        if repeat_captions:
            captions[-1] = f"this is {scene['ground']} land ."
        name = f"{number:05d}.png"
        draw(scene, size, noise).save(folder / "images" / name)
        entries.append(entry(name, splits[number], captions))
    write_index(folder, entries)
    return folder


def entry(filename: Any, split: Any = "train", captions: Any = ("a house .",)) -> dict[str, Any]:
    """One item of `images` in the RSICD layout."""
    return {"filename": filename, "split": split, "sentences": [{"raw": caption} for caption in captions]}


def write_index(folder: Path, entries: list[Any], name: str = "dataset_rsicd.json", dataset: str = "rsicd") -> Path:
    """Write the JSON file of the RSICD layout; return its path."""
    path = folder / name
    path.write_text(json.dumps({"dataset": dataset, "images": entries}), "utf-8")
    return path


def edit_index(folder: Path, change: Callable[[list[Any]], Any], name: str = "dataset_rsicd.json") -> None:
    """Let `change` alter the list `images` of a written index in place."""
    content = json.loads((folder / name).read_text("utf-8"))
    change(content["images"])
    (folder / name).write_text(json.dumps(content), "utf-8")


def make_halves(folder: Path, manifests: Iterable[Manifest]) -> SegmentStore:
    """Segments of all pictures: the left half and the upper one; the second picture of each manifest has none."""
    store = SegmentStore(folder, {"generator": "halves"})
    with store.parts.writing():
        for manifest in manifests:
            keys = image_keys(manifest)
            store.note(dict(zip(manifest.frame["sample_id"], keys, strict=True)))
            for number, (key, path) in enumerate(zip(keys, manifest.image_paths, strict=True)):
                height, width = np.asarray(load_image(path)).shape[:2]
                masks = np.zeros((2, height, width), bool)
                masks[0, :, : width // 2] = masks[1, : height // 2] = True
                store.parts.append([row_of(key, Segments.from_masks(masks[: 0 if number == 1 else 2]), 0.1)])
    return store
