"""Reads dataset folders into a `Manifest`, and feeds its images and captions to training.

    manifest = read_dataset("data/rsicd", split="train")
    manifest.summary()

Everything after this module sees a `Manifest`, never a dataset's own files. Another layout is one
more `Layout` in `LAYOUTS`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ucore.errors import DataError
from ucore.files import typed_path
from ucore.geotiles import is_geotiles, read_geotiles
from ucore.images import load_image
from ucore.manifest import Manifest, Names, few
from ucore.readers import caption_groups, usable
from ucore.rsicd import is_rsicd, read_rsicd
from ucore.shards import is_shards, read_shards
from ucore.skyscript import is_skyscript, read_skyscript
from ucore.urbancross import is_urbancross, read_urbancross

if TYPE_CHECKING:
    import torch

__all__ = [
    "LAYOUTS",
    "ImageTextDataset",
    "Layout",
    "Manifest",
    "caption_groups",
    "find_dataset",
    "find_layout",
    "load_image",
    "read_dataset",
    "read_geotiles",
    "read_manifest",
    "read_rsicd",
    "read_shards",
    "read_skyscript",
    "read_urbancross",
]

MANIFEST_FILE = "manifest.parquet"


class ImageTextDataset:
    """Map-style dataset for torch's DataLoader; picklable when `transform` is.

    Item: index (int, row of the manifest), image (what `transform` makes of the RGB picture; for
    `collate` a float32 (3, H, W) tensor), captions (list[str]).
    """

    def __init__(self, manifest: Manifest, transform: Callable[[Any], Any]):
        self.paths = manifest.image_paths
        self.captions = [list(of_image) for of_image in manifest.frame["captions"]]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.transform(load_image(self.paths[index]))
        return {"index": int(index), "image": image, "captions": self.captions[index]}

    @staticmethod
    def collate(items: list[dict[str, Any]]) -> "dict[str, torch.Tensor | list[list[str]]]":
        """Batch of items: index int64 (B,), image (B, 3, H, W), captions: one list an image."""
        import torch

        return {
            "index": torch.tensor([item["index"] for item in items]),
            "image": torch.stack([item["image"] for item in items]),
            "captions": [item["captions"] for item in items],
        }


def read_manifest(folder: str | Path, split: Names | None = None, skip_bad: bool = False) -> Manifest:
    """Read a folder that `ucore simulate` or `ucore data build` wrote: manifest.parquet and the images it lists."""
    manifest = Manifest.load(Path(folder) / MANIFEST_FILE)
    manifest = manifest if split is None else manifest.split(split)
    names = [{"row": row, "image": name} for row, name in enumerate(manifest.frame["image"])]
    rows = [entry["row"] for entry in usable(names, manifest.root, skip_bad)]
    frame: Any = manifest.frame.iloc[rows].reset_index(drop=True)
    return Manifest(frame, manifest.root)


def _is_manifest(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file()


class Layout(NamedTuple):
    """One kind of dataset folder: how it is called, which files it has, how it is known and read."""

    name: str
    files: str
    detect: Callable[[Path], bool]
    read: Callable[..., Manifest]


LAYOUTS = (
    Layout("ucore", f"{MANIFEST_FILE} (written by ucore simulate or ucore data build)", _is_manifest, read_manifest),
    Layout(
        "urbancross",
        "COUNTRY/images.zip or images/ with instructblip_generation_COUNTRY_refine.csv (image_name, description)",
        is_urbancross,
        read_urbancross,
    ),
    Layout("skyscript", "a CSV file with filepath, title, title_multi_objects", is_skyscript, read_skyscript),
    Layout("geotiles", "metadata.csv (file, ...) and captions.jsonl", is_geotiles, read_geotiles),
    Layout("rsicd", "dataset*.json (images[].filename, split, sentences[].raw) and images/", is_rsicd, read_rsicd),
    Layout("shards", "*.tar (WebDataset) or *.parquet with a column image, or shards.txt", is_shards, read_shards),
)
SUBFOLDERS = ("", "rsicd", "urbancross", "skyscript", "geotiles", "shards")


def find_layout(folder: str | Path) -> tuple[Layout, Path] | None:
    """The layout of `folder`, or of the subfolder named after its set, and the place it lies in; None: unknown."""
    for place in (Path(folder) / name for name in SUBFOLDERS):
        for layout in LAYOUTS:
            if place.is_dir() and layout.detect(place):
                return layout, place
    return None


def find_dataset(path: str | Path | None = None, scale: str = "tiny", seed: int = 0, out: str | Path = "runs") -> Path:
    """The dataset folder of a run: `path`, else the folder that UCORE_DATA names, else the built-in simulated set.

    The simulated set is made in `out` on first use and said to be what it is; see `simulate.built_in_dataset`.
    Raises DataError when a given folder does not exist.
    """
    given = path or os.environ.get("UCORE_DATA")
    if given:
        folder = typed_path(given, Path.is_dir)
        if folder is None:
            shown = str(given)[:300]
            raise DataError(f"The dataset folder {shown} does not exist. Correct --data (or UCORE_DATA).")
        return folder
    from ucore.simulate import built_in_dataset

    print("No dataset given: using the built-in SIMULATED set (Finland, Germany, Spain).", flush=True)
    return built_in_dataset(scale, seed, out)


def read_dataset(
    path: str | Path | None = None,
    *,
    split: Names | None = None,
    domain: Names | None = None,
    skip_bad: bool = False,
) -> Manifest:
    """Read a dataset folder of any layout in `LAYOUTS`, or its subfolder rsicd, urbancross, skyscript, geotiles or
    shards.

    path: the folder; without it, the environment variable UCORE_DATA.
    split: one name or several; where the dataset itself says which image is in which split, images of the other
        splits need not be there. None: all.
    skip_bad: leave out unreadable images with one warning, instead of DataError.
    """
    path = path or os.environ.get("UCORE_DATA")
    if not path:
        raise DataError(
            "No dataset given. Name its folder with --data FOLDER, or set UCORE_DATA to it; "
            "ucore simulate --out FOLDER makes a simulated one."
        )
    folder = Path(path).expanduser()
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"The dataset folder {folder} {kind}. Correct --data (or UCORE_DATA).")
    found = find_layout(folder)
    if found is None:
        there = few(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        known = "; ".join(f"{layout.name}: {layout.files}" for layout in LAYOUTS)
        raise DataError(
            f"No dataset of a known layout in {folder}; it holds {there}. Point --data (or UCORE_DATA) to a folder of "
            f"one of these layouts, which `ucore data help` explains: {known}."
        )
    layout, place = found
    manifest = layout.read(place, split=split, skip_bad=skip_bad)
    return manifest if domain is None else manifest.domain(domain)
