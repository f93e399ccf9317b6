"""The commands that make and keep what is searched: `ucore index build`, `info` and `compact`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ucore.errors import ConfigError
from ucore.files import require_writable
from ucore.places import place_of


def build(
    checkpoint: Path,
    out: str,
    data: Path | None = None,
    split: str | None = None,
    domain: str | None = None,
    segments: Path | None = None,
    segment_count: int = 10,
    engine: Literal["auto", "flat", "lance"] = "auto",
    device: str = "auto",
    skip_bad: bool = False,
) -> None:
    """Embed a dataset once, so that it can be searched; a repeated call adds what is missing and drops what is gone.

    Args:
        checkpoint: Folder that `ucore train` wrote.
        out: Folder of the index, or its address in an object store: s3://BUCKET/INDEX, gs://, az:// (engine lance).
        data: Dataset folder; without it, the folder that UCORE_DATA names.
        split: One split only; default: all that there are.
        domain: One domain (country, dataset) only.
        segments: Folder of masks that `ucore segment` wrote for this data: segments can be searched, too.
        segment_count: The most segments of an image, the best first.
        engine: auto; flat: exact, memory-mapped, in folders; lance: beyond memory, object stores (the extra "lance").
        device: auto, cpu, cuda or cuda:N.
        skip_bad: Leave unreadable images out instead of stopping.
    """
    from ucore.checkpoint_files import read_card

    read_card(checkpoint)
    place = place_of(out)
    if isinstance(place, Path):
        require_writable(place)
    elif engine == "flat":
        raise ConfigError(f"{out} is not a local folder; leave --engine flat out, lance is for object stores")
    from ucore.data import read_dataset

    manifest = read_dataset(data, split=split, domain=domain, skip_bad=skip_bad)
    from ucore.segment_store import SegmentStore

    store = None if segments is None else SegmentStore(segments)
    from ucore.device import pick_device
    from ucore.embedding import build_index
    from ucore.images import someone_looks
    from ucore.sureness import read_sureness

    index = build_index(checkpoint, manifest, place, store, segment_count, engine, pick_device(device), someone_looks())
    counts = {kind: len(index.select(kind)) for kind in ("image", "text", "segment")}
    told = ", ".join(f"{count:,} {kind}s" for kind, count in counts.items())
    print(f"{out}: {told} of {manifest.name}{' (SIMULATED data)' if manifest.simulated else ''}.")
    sure = read_sureness(index)
    if sure is None:
        print("How sure a hit is cannot be said: there are too few validation captions, or they are not found.")
    else:
        print(f"How sure a hit is was learned from {sure.queries:,} validation captions (error {sure.told}).")
    print(f'Search it: ucore search "a sentence" --index {out}')


def info(path: Annotated[str, tyro.conf.Positional], recall: bool = False) -> None:
    """Say what is in an index, how sure its hits are and how far that is off, and check its files.

    Args:
        path: Folder of the index, or its address.
        recall: Ask 200 of its captions for ten images, approximately and exactly: how many of these are found?
    """
    from ucore.index import GalleryIndex
    from ucore.index_evaluation import approximate_recall
    from ucore.sureness import read_sureness

    found = GalleryIndex.open(path)
    sure = read_sureness(found)
    found.verify()
    counts = {f"{kind}s": len(found.select(kind)) for kind in ("image", "text", "segment")}
    facts = {"segment_settings" if name == "segments" else name: value for name, value in found.card.items()}
    card = {"version": found.version, **facts, **counts, "sureness": None if sure is None else sure.to_dict()}
    if recall:
        both = approximate_recall(found)
        card["approximate_recall@10"] = (
            "Searches are exact: there are no captions to ask, or too few images for a sketch to be faster."
            if both is None
            else dict(zip(("percent", "captions"), both, strict=True))
        )
    print(json.dumps(card, indent=2, ensure_ascii=False))


def compact(path: Annotated[str, tyro.conf.Positional]) -> None:
    """Give back the room of what was deleted.

    Args:
        path: Folder of the index, or its address.
    """
    from ucore.embedding import CHANGED
    from ucore.index import GalleryIndex

    found = GalleryIndex.open(path)
    found.compact()
    found.keep(CHANGED, 0)
    print(f"{path}: version {found.version}, {len(found):,} items.")


# One line a command of `ucore index`: its name and the function behind it.
IndexCommand = (
    Annotated[Any, tyro.conf.subcommand("build", constructor=build)]
    | Annotated[Any, tyro.conf.subcommand("info", constructor=info)]
    | Annotated[Any, tyro.conf.subcommand("compact", constructor=compact)]
)


def index_command(command: tyro.conf.OmitSubcommandPrefixes[IndexCommand]) -> None:
    """Build an index of a dataset, look at it, or compact it."""
