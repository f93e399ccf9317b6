"""Reads the layout that RSICD, RSITMD, UCM-Captions and Sydney-Captions share."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from ucore.errors import DataError
from ucore.manifest import Manifest, Names
from ucore.readers import check_captions, image_folder, load_json, name_samples, of_split, usable

# What an image shows, as the names of RSICD's files tell it ("airport_12.jpg"): three groups without a common scene.
SCENE_GROUPS = {
    "city": (
        *("airport", "baseballfield", "center", "church", "commercial", "denseresidential", "industrial"),
        *("mediumresidential", "parking", "playground", "railwaystation", "school", "square", "stadium"),
        *("storagetanks", "viaduct"),
    ),
    "mixed": ("bridge", "park", "port", "resort", "sparseresidential"),
    "nature": ("bareland", "beach", "desert", "farmland", "forest", "meadow", "mountain", "pond", "river"),
}


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
    content = load_json(index)
    if not _fits(content):
        raise DataError(f"{index} has no list 'images' of image entries, as the RSICD layout wants. Correct it.")
    entries = [_entry(raw, number, index) for number, raw in enumerate(content["images"])]
    name_samples(entries, index)
    entries = check_captions(of_split(entries, split, index), index)

    place = image_folder(folder, [entry["image"] for entry in entries])
    entries = usable(entries, place, skip_bad)
    name = content.get("dataset")
    named = isinstance(name, str) and bool(name.strip()) and name.isprintable()
    domain = (name if named else folder.resolve().name).strip().lower()
    return Manifest.from_rows([{**entry, "domain": domain, "source": index.name} for entry in entries], place)


def by_scenes(manifest: Manifest) -> Manifest:
    """RSICD with its `SCENE_GROUPS` as domains; images whose names tell no scene of them are left out.

    Raises DataError where none is left.
    """
    groups = {scene: group for group, scenes in SCENE_GROUPS.items() for scene in scenes}
    found = [groups.get(scene_of(name), "") for name in manifest.frame["image"]]
    if not any(found):
        raise DataError(f"No image in {manifest.root} is named by its scene (airport_12.jpg). Give RSICD itself.")
    frame: Any = manifest.frame.assign(domain=found)
    return Manifest(frame.loc[frame["domain"] != ""].reset_index(drop=True), manifest.root)


def scene_of(image: str) -> str:
    """ "airport" of "airport_12.jpg"; "" of a name that is a number."""
    match = re.fullmatch(r"([a-z]+)_\d+", PurePosixPath(image).stem)
    return match[1] if match else ""


def is_rsicd(folder: Path) -> bool:
    """Whether `folder` holds a caption file of this layout. Raises DataError where it holds several."""
    return _find_index(folder) is not None


def _find_index(folder: Path) -> Path | None:
    files = sorted(path for path in folder.glob("*.json") if path.is_file() and not path.name.startswith("."))
    found = [path for path in files if path.name.lower().startswith("dataset")]
    found = found or [path for path in files if _fits(load_json(path))]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder} holds several caption files: {names}. Keep one of them there.")
    return found[0] if found else None


def _fits(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("images"), list) and len(content["images"]) > 0


def _entry(raw: Any, number: int, index: Path) -> dict[str, Any]:
    """One row from one item of `images`; captions are only collected, `check_captions` judges them."""
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
