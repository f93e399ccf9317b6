"""Reads dataset folders into a `Manifest`, and feeds its images and captions to training.

    manifest = read_dataset("data/rsicd", split="train")
    manifest.summary()

Everything after this module sees a `Manifest`, never a dataset's own files. Another layout is one
more (detect, read) pair in `READERS`.
"""

import json
import os
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.errors import DataError
from ucore.files import safe_join
from ucore.images import find_bad_images, load_image
from ucore.manifest import Manifest, Names, few, known_names

if TYPE_CHECKING:
    import torch

__all__ = ["ImageTextDataset", "Manifest", "caption_groups", "load_image", "read_dataset", "read_rsicd"]


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


def caption_groups(captions: Sequence[str]) -> np.ndarray:
    """int64 (T,): equal ids mark equal captions up to case, spacing and trailing punctuation.

    Ids count up in order of first appearance.
    """
    ids: dict[str, int] = {}
    keys = (" ".join(text.lower().split()).rstrip(string.punctuation + " ") for text in captions)
    return np.array([ids.setdefault(key, len(ids)) for key in keys], dtype=np.int64)


def read_dataset(
    path: str | Path | None = None,
    *,
    split: Names | None = None,
    domain: Names | None = None,
    skip_bad: bool = False,
) -> Manifest:
    """Read a dataset folder of any layout in `READERS`, or its `rsicd` subfolder.

    path: the folder; without it, the environment variable UCORE_DATA.
    split: one name or several; images of the other splits need not be there. None: all.
    skip_bad: leave out unreadable images with one warning, instead of DataError.
    """
    path = path or os.environ.get("UCORE_DATA")
    if not path:
        raise DataError("No dataset given. Name its folder with --data FOLDER, or set UCORE_DATA to it.")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"The dataset folder {folder} {kind}. Correct --data (or UCORE_DATA).")
    for place in (folder, folder / "rsicd"):
        for detect, read in READERS:
            if place.is_dir() and detect(place):
                manifest = read(place, split=split, skip_bad=skip_bad)
                return manifest if domain is None else manifest.domain(domain)
    found = few(sorted(entry.name for entry in folder.iterdir())) or "nothing"
    raise DataError(
        f"No dataset of a known layout in {folder}; it holds {found}. Point --data (or UCORE_DATA) to a "
        "folder of the RSICD layout: dataset*.json (images[].filename, split, sentences[].raw) and images/."
    )


def read_rsicd(folder: str | Path, split: Names | None = None, skip_bad: bool = False) -> Manifest:
    """Read the layout shared by RSICD, RSITMD, UCM-Captions and Sydney-Captions.

    `dataset*.json` (or the one other JSON file of that content) lists images[].filename, split and
    sentences[].raw; the pictures lie in images/, imgs/ or beside it. Rows keep the file's order, ids
    are file names without suffix where that leaves all distinct, the split "restval" becomes "train".
    Only captions and images of the asked split(s) are checked. Raises DataError for anything unusable.
    """
    folder = Path(folder)
    index = _find_index(folder)
    if index is None:
        raise DataError(f"There is no dataset*.json in {folder}. Put the dataset's caption file there.")
    content = _load_json(index)
    if not _fits(content):
        raise DataError(f"{index} has no list 'images' of image entries, as the RSICD layout wants. Correct it.")
    entries = [_entry(raw, number, index) for number, raw in enumerate(content["images"])]
    _name_samples(entries, index)
    if split is not None:
        wanted = known_names(split, Counter(entry["split"] for entry in entries), "split", index)
        entries = [entry for entry in entries if entry["split"] in wanted]
    _check_captions(entries, index)

    image_folder = _image_folder(folder, [entry["image"] for entry in entries])
    entries = _usable(entries, image_folder, skip_bad)
    name = content.get("dataset")
    domain = (name if isinstance(name, str) and name.strip() else folder.resolve().name).strip().lower()
    return Manifest.from_rows([{**entry, "domain": domain, "source": index.name} for entry in entries], image_folder)


def _find_index(folder: Path) -> Path | None:
    files = sorted(path for path in folder.glob("*.json") if path.is_file() and not path.name.startswith("."))
    found = [path for path in files if path.name.lower().startswith("dataset")]
    found = found or [path for path in files if _fits(_load_json(path))]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder} holds several caption files: {names}. Keep one of them there.")
    return found[0] if found else None


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise DataError(f"{path} is not valid JSON ({where}). Correct it, or fetch the file again.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON text in UTF-8. Fetch the file again.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error.strerror}). Check its permissions.") from error


def _fits(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("images"), list) and len(content["images"]) > 0


def _entry(raw: Any, number: int, index: Path) -> dict[str, Any]:
    """One row from one item of `images`; captions are only collected, `_check_captions` judges them."""
    for key in ("filename", "split", "sentences"):
        value = raw.get(key) if isinstance(raw, dict) else None
        # A name that cannot be printed could not be shown in a message or stored either.
        fine = isinstance(value, list) if key == "sentences" else isinstance(value, str) and value.isprintable()
        if not fine or value == "":
            kind = "a list" if key == "sentences" else "printable text"
            raise DataError(f"images[{number}] in {index} needs {key!r} as {kind}. Correct that entry.")
    captions = [item.get("raw") if isinstance(item, dict) else None for item in raw["sentences"]]
    split = "train" if raw["split"] == "restval" else raw["split"]
    return {"image": str(PurePosixPath(raw["filename"])), "split": split, "captions": captions}


def _name_samples(entries: list[dict[str, Any]], index: Path) -> None:
    twice = [name for name, count in Counter(entry["image"] for entry in entries).items() if count > 1]
    if twice:
        raise DataError(f"{index} lists {len(twice):,} file name(s) more than once: {few(twice)}. Keep one entry each.")
    stems = [PurePosixPath(entry["image"]).stem for entry in entries]
    names = stems if len(set(stems)) == len(stems) else [entry["image"] for entry in entries]
    for entry, name in zip(entries, names, strict=True):
        entry["sample_id"] = name


def _check_captions(entries: list[dict[str, Any]], index: Path) -> None:
    bad = []
    for entry in entries:
        problem = "" if entry["captions"] else "no captions"
        for number, caption in enumerate(entry["captions"], start=1):
            problem = problem or _caption_problem(caption, number)
        if problem:
            bad.append(f"{entry['image']} ({problem})")
    if bad:
        raise DataError(f"{len(bad):,} image(s) in {index} lack usable captions: {few(bad)}. Correct these entries.")
    for entry in entries:
        entry["captions"] = [caption.strip() for caption in entry["captions"]]


def _caption_problem(caption: Any, number: int) -> str:
    if not isinstance(caption, str):
        return f"caption {number} is not text"
    if not caption.strip():
        return f"caption {number} is blank"
    # JSON permits lone surrogates, which no tokenizer and no file takes.
    return f"caption {number} is not valid Unicode" if any("\ud800" <= sign <= "\udfff" for sign in caption) else ""


def _image_folder(folder: Path, names: list[str]) -> Path:
    places = [folder / "images", folder / "imgs", folder]
    for place in places:
        if any(os.path.exists(place / name) for name in names):
            return place
    return next(place for place in places if place.is_dir())


def _usable(entries: list[dict[str, Any]], folder: Path, skip_bad: bool) -> list[dict[str, Any]]:
    """The entries whose image can be decoded: all of them, or DataError without `skip_bad`."""
    problems = find_bad_images([safe_join(folder, entry["image"]) for entry in entries])
    if not problems:
        return entries
    named = few([f"{entries[position]['image']} ({problem})" for position, problem in problems.items()])
    count = f"{len(problems):,} of {len(entries):,} images in {folder} cannot be used: {named}."
    if not skip_bad:
        raise DataError(f"{count} Restore them, leave them out with --skip-bad, or choose one --split that is there.")
    if len(problems) == len(entries):
        raise DataError(f"{count} None is left; put the dataset's images there.")
    warnings.warn(f"Skipped images: {count}", stacklevel=4)
    return [entry for position, entry in enumerate(entries) if position not in problems]


def read_manifest(folder: str | Path, split: Names | None = None, skip_bad: bool = False) -> Manifest:
    """Read a folder that `ucore simulate` or `ucore data build` wrote: manifest.parquet and the images it lists."""
    manifest = Manifest.load(Path(folder) / MANIFEST_FILE)
    manifest = manifest if split is None else manifest.split(split)
    rows = _usable(manifest.frame.to_dict("records"), manifest.root, skip_bad)
    return manifest if len(rows) == len(manifest) else Manifest.from_rows(rows, manifest.root)


def _is_manifest(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file()


def _is_rsicd(folder: Path) -> bool:
    return _find_index(folder) is not None


MANIFEST_FILE = "manifest.parquet"
READERS = ((_is_manifest, read_manifest), (_is_rsicd, read_rsicd))
