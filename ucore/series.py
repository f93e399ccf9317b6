"""Which notebooks there are, what each of them needs, and which of them a dataset allows."""

import os
from pathlib import Path
from typing import NamedTuple

from ucore.errors import ConfigError
from ucore.files import content_hash, read_json, write_json
from ucore.manifest import OF_SOURCE, OF_TARGET
from ucore.origin import data_key

SPLITS = {"train", "val", "test"}


class Chapter(NamedTuple):
    """A notebook of the series.

    after: those that must have finished, because it reads their files or would compute the same ones at the same
        time. seconds: about how long it takes at tiny on one core; the longest of those that could start does.
    domains: how many domains with the splits train, val and test it needs. border: whether one such domain will do,
        where another has the splits of a target. alone: nothing else may run beside it.
    """

    name: str
    after: tuple[str, ...] = ()
    seconds: float = 30
    domains: int = 1
    border: bool = False
    alone: bool = False


# A new notebook is a line here. The last one reads the reports of all others.
SERIES = (
    Chapter("00_setup_check", seconds=25, alone=True),  # it measures the machine
    Chapter("01_explore_map", seconds=20),
    Chapter("02_segments", seconds=150),
    Chapter("03_captions", ("02_segments",), 30),  # the same heads
    Chapter("04_train", ("02_segments",), 55),  # the same features of the towers
    Chapter("05_domain_gap", seconds=140, domains=2),
    Chapter("06_adapt", seconds=75, domains=2, border=True),
    Chapter("07_ablations", seconds=300),  # the same features, too; but it would be the last if it waited for them
    Chapter("08_retrieve", ("04_train",), 60),
    Chapter("09_results", seconds=15),
)
RESULTS = SERIES[-1].name


def series_for(dataset: str | Path, memory: str | Path | None = None) -> list[Chapter]:
    """The notebooks that a dataset allows, in order; prints a sentence about each that it does not.

    memory: a folder that keeps what was learned of the dataset under its `data_key`.
    """
    whole, targets = _domains(dataset, memory)
    allowed = []
    for chapter in SERIES:
        if chapter.domains <= max(1, whole) or (chapter.border and targets):
            allowed.append(chapter)
            continue
        needs = f"{chapter.domains} domains or more, all of them with the splits train, val and test"
        also = ", or a second one with finetune, val and test" if chapter.border else ""
        print(f"{chapter.name} is left out: it needs {needs}{also}.")
    return allowed


def known_key(dataset: str | Path, memory: str | Path) -> str:
    """`data_key` of a dataset whose files are remembered in the folder `memory`."""
    return data_key(dataset, Path(memory) / f"files-{content_hash(str(Path(dataset).resolve()))}.json")


def _domains(dataset: str | Path, memory: str | Path | None) -> tuple[int, int]:
    """How many domains have train, val and test, 0 where one of several lacks any; how many can be the target of one
    that has train and val."""
    kept = None if memory is None else Path(memory) / f"{known_key(dataset, memory)}.json"
    known = read_json(kept) if kept is not None else None
    names = ("whole_domains", "targets")
    if not (isinstance(known, dict) and all(type(known.get(name)) is int for name in names)):
        from ucore.data import read_dataset

        splits = list(read_dataset(dataset).domain_splits.values())
        whole = len(splits) if all(own >= SPLITS for own in splits) else 0
        sources = [own for own in splits if own >= OF_SOURCE]
        targets = [own for own in splits if own >= OF_TARGET and any(own is not other for other in sources)]
        known = dict(zip(names, (whole, len(targets)), strict=True))
        if kept is not None:
            write_json(kept, known)
    return int(known["whole_domains"]), int(known["targets"])


def chapter_of(path: Path) -> Chapter:
    """What the series says of a notebook; of one that it does not know, that it needs nothing."""
    return next((chapter for chapter in SERIES if chapter.name == path.stem), Chapter(path.stem))


def dataset_for(
    name: str | None, folder: str | Path | None, scale: str = "tiny", seed: int = 0, out: str | Path = "runs"
) -> Path:
    """The dataset folder of a run, checked to be of the layout `name`, or "simulated": the built-in set in `out`.

    folder: the dataset's, or one that holds it under its name; None: as `data.find_dataset`. Raises ConfigError for a
    set of another layout, and for a folder given beside "simulated".
    """
    from ucore.data import find_dataset, find_layout
    from ucore.simulate import built_in_dataset

    if name == "simulated":
        if folder is not None:
            raise ConfigError(f"--dataset simulated is built in; leave out --data {folder}, or --dataset.")
        print("The built-in SIMULATED set (Finland, Germany, Spain).", flush=True)
        return built_in_dataset(scale, seed, out)
    if name is not None and folder is None and not os.environ.get("UCORE_DATA"):
        raise ConfigError(f"--dataset {name} needs its folder: add --data FOLDER, or set UCORE_DATA.")
    place = find_dataset(folder, scale, seed, out)
    if name is None:
        return place
    place = place / name if (place / name).is_dir() else place
    found = find_layout(place)
    if found is None or found[0].name != name:
        kind = "no dataset of a known layout" if found is None else f"a dataset of the layout {found[0].name}"
        raise ConfigError(f"{place} holds {kind}, not {name}. Correct --data or --dataset; see ucore data help.")
    return found[1]
