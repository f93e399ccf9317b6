"""The stages that a kill must not harm, each at a size of seconds: how it is prepared, and its command.

`torment` kills a stage again and again, at any moment, and lets it go on, until it has ended, and compares.
"""

import random
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Command, content, differences, leftovers

FULL = re.compile(r"^ucore: .*(The disk is full: could not write|No space left on device)")
HOWS = ("group", "main", "self")
DATA = ("ucore.cli", "ucore.data", "ucore.build", "ucore.simulate", "ucore.render", "ucore.describe", "geopandas")
PARTS = (*DATA, "pyarrow.parquet", "ucore.segments", "ucore.classical", "ucore.captions")
TORCH = (*PARTS, "open_clip", "torch.utils.tensorboard", "ucore.tasks", "ucore.adapt", "ucore.embedding")
NOTEBOOKS = ("ucore.cli", "ucore.reproduce", "papermill", "nbconvert.exporters")


@dataclass(frozen=True)
class Stage:
    """A command that may be repeated until it is done.

    prepare: fills a folder that is never changed, `inputs`. code: the command; {inputs} stands for that folder, and
    all that it writes is in the current folder. compared: what of the outcome is compared, by default all files.
    """

    name: str
    prepare: Callable[[Path], None]
    code: str
    imports: tuple[str, ...] = DATA
    compared: Callable[[Path], dict[str, str]] = content
    patience: int = 2  # repeats that may end with a sentence instead of a result, after a worker was killed

    def command(self, inputs: Path, folder: Path, **fault: Any) -> Command:
        return Command(self.code.replace("{inputs}", str(inputs)), folder, imports=self.imports, **fault)


@dataclass
class Tally:
    """What happened to a stage: faults that took place, how many of them it survived, and what went wrong."""

    stage: str
    faults: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    events: int = 0

    @property
    def survived(self) -> int:
        return self.faults - len(self.wrong)


def torment(stage: Stage, place: Path, kills: int, seed: int = 0) -> Tally:
    """Kill `stage` until it was killed `kills` times. Each chain of runs ends with one that nothing happens to.

    The first kill of a chain comes at events that are spread evenly over the whole run, later ones anywhere; every
    fourth comes after a time instead, wherever the command is then.
    """
    chance, tally, began = random.Random(f"{stage.name} {seed}"), Tally(stage.name), time.perf_counter()
    inputs = place / "inputs"
    if not inputs.exists():
        inputs.mkdir(parents=True)
        stage.prepare(inputs)
    out, started = place / "work", time.perf_counter()  # one place for all: some files name it
    outcome = stage.command(inputs, out).wait()
    took, tally.events = time.perf_counter() - started, outcome.events
    assert outcome.status == 0, outcome.printed
    assert tally.events > 2, "nothing was written"
    expected = stage.compared(out)
    shutil.rmtree(out)
    offset, chain = chance.random(), 0
    while tally.faults < kills:
        chain += 1
        spread = int(((chain + offset) * 0.618034 % 1) * tally.events) + 1
        story = _chain(stage, inputs, out, kills - tally.faults, spread, took, chance, tally)
        if out.exists():
            tally.wrong += [f"{story}: {what}" for what in _judged(stage, out, expected)]
            shutil.rmtree(out)
    tally.seconds = time.perf_counter() - began
    return tally


def _chain(
    stage: Stage, inputs: Path, out: Path, most: int, first: int, took: float, chance: random.Random, tally: Tally
) -> str:
    """Kill and repeat in one folder, then finish; a line that tells what happened."""
    story, at, kills = [], first, 0
    while kills < min(most, 4):
        how = HOWS[(tally.faults + kills) % len(HOWS)]
        if (tally.faults + kills) % 4 == 3:
            command, after = stage.command(inputs, out), chance.uniform(0.02, took)
            time.sleep(after)
            command.kill(how)
            told = f"{how} after {after:.2f} s"
        else:
            command = stage.command(inputs, out, at=at, how=how)
            told = f"{how} at event {at}"
        outcome = command.wait()
        orphans = command.orphans()
        met = command.events()[at - 1 : at] if "event" in told else []
        tally.wrong += [f"{told} {met}: {line} lives on" for line in orphans]
        if "Traceback" in outcome.printed and outcome.status >= 0:
            tally.wrong.append(f"{told} {met}: {outcome.printed[-600:]}")
        if outcome.status == 0 and not met:
            break  # it was done before the fault came
        kills += 1
        story.append(f"{told} {met} ended {outcome.status}")
        if outcome.status == 0:
            break
        at = chance.randint(1, tally.events)
    tally.faults += kills
    for _ in range(stage.patience):
        outcome = stage.command(inputs, out).wait()
        if outcome.status == 0:
            break
    if outcome.status != 0:
        tally.wrong.append(f"{story}: does not go on: {outcome.printed[-600:]}")
    return "; ".join(story)


def starve(stage: Stage, place: Path, faults: int, seed: int = 0) -> Tally:
    """Let the disk be full from some moment on, spread over the whole run; each time a sentence, then all is well."""
    chance, tally, began = random.Random(f"{stage.name} {seed}"), Tally(stage.name), time.perf_counter()
    inputs, out = place / "inputs", place / "work"
    if not inputs.exists():
        inputs.mkdir(parents=True)
        stage.prepare(inputs)
    outcome = stage.command(inputs, out).wait()
    assert outcome.status == 0, outcome.printed
    expected, tally.events, offset = stage.compared(out), outcome.events, chance.random()
    for number in range(faults):
        shutil.rmtree(out)
        at = int(((number + offset) * 0.618034 % 1) * tally.events) + 1
        command = stage.command(inputs, out, at=at, how="full")
        outcome, orphans, met = command.wait(), command.orphans(), command.events()[at - 1 : at]
        tally.faults += 1
        wrong = [f"{line} lives on" for line in orphans]
        if outcome.status != 0:  # 0: nothing more was written after that moment
            told = outcome.printed.strip().splitlines()[-1]
            if outcome.status != 2 or "Traceback" in outcome.printed or not FULL.search(told):
                wrong.append(f"ended {outcome.status}: {outcome.printed[-900:]}")
            wrong += [f"{name} is left" for name in leftovers(out)]
        again = stage.command(inputs, out).wait()
        wrong += _judged(stage, out, expected) if again.status == 0 else [f"does not go on: {again.printed[-600:]}"]
        tally.wrong += [f"full at event {at} {met}: {what}" for what in wrong[:1]]
    tally.seconds = time.perf_counter() - began
    return tally


def _judged(stage: Stage, out: Path, expected: dict[str, str]) -> list[str]:
    left = [f"{name} is left" for name in leftovers(out)]
    return left + [f"{name} differs" for name in differences(stage.compared(out), expected)]


# --- the stages ---------------------------------------------------------------------------------------------------


def nothing(inputs: Path) -> None:
    pass


def rsicd(inputs: Path) -> None:
    from makers import make_rsicd

    make_rsicd(inputs / "rsicd", 16, 4, 4, captions_per_image=3, size=48)


def places(inputs: Path) -> None:
    """Imagery and map of a place, and an archive."""
    import json

    import numpy as np
    import rasterio
    import shapely
    from makers_geo import make_country, zip_folder
    from rasterio.transform import from_origin

    row, column = np.mgrid[:300, :300]
    pixels = np.dstack([40 + column * 200 // 300, 40 + row * 200 // 300, 50 + 100 * ((row // 8 + column // 8) % 2)])
    options: dict[str, Any] = dict(driver="GTiff", height=300, width=300, count=3, dtype="uint8", crs="EPSG:4326")
    options["transform"] = from_origin(24.93, 60.18, 0.00006, 0.00003)
    with rasterio.open(inputs / "a.tif", "w", **options) as file:
        file.write(np.moveaxis(pixels.astype(np.uint8), -1, 0))
    road = shapely.geometry.mapping(shapely.LineString([(24.93, 60.175), (24.948, 60.175)]))
    feature = {"type": "Feature", "properties": {"highway": "residential"}, "geometry": road}
    (inputs / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    make_country(inputs / "country", n=12)
    zip_folder(inputs / "country" / "Finland", inputs / "country.zip")


def trained(inputs: Path) -> None:
    """A dataset, a set to adapt to, and a checkpoint."""
    from makers_geo import make_geotiles

    rsicd(inputs)
    make_geotiles(inputs / "tiles", side=16, columns=("x", "y", "z"))
    train = TRAIN.replace("head_epochs=2", "head_epochs=1").replace("{inputs}", str(inputs))
    outcome = Command(train, inputs / "start", imports=TORCH).wait()
    assert outcome.status == 0, outcome.printed


SIMULATE = """
from ucore import simulate
simulate.PART = 4
ucore("simulate", "--countries", "finland,spain", "--tiles", 12, "--workers", 2, "--out", "set")
"""
BUILD = """
ucore("data", "build", "--imagery", "{inputs}/a.tif", "--osm", "{inputs}/a.geojson", "--bounds",
      "24.934,60.1725,24.944,60.1775", "--country", "finland", "--gsd", 3.0, "--tile-size", 32, "--keep-untagged",
      "--split", "test", "--out", "set")
"""
UNPACK = """
from ucore import cli
from ucore.archives import unpack_zip
cli.simulate = lambda: print(unpack_zip("{inputs}/country.zip", "country"))
ucore("simulate")
"""
SEGMENT = """
from ucore import store
store.ROWS = 4
ucore("segment", "--data", "{inputs}/rsicd", "--generator", "slic", "--workers", WORKERS, "--out", "segments")
"""
CAPTION = """
from ucore import store
store.ROWS = 4
ucore("caption", "--data", "{inputs}/rsicd", "--captioner", "CAPTIONER", "--workers", 1, "--limit", 16,
      "--batch-size", 4, "--out", "captions")
"""
TRAIN = """
ucore("train", "--data", "{inputs}/rsicd", "--scale", "tiny", "-s", "head_epochs=2", "-s", "head_batch_size=8", "-s",
      "tune_epochs=0", "--cache", "cache", "--out", "run")
"""
ADAPT = """
ucore("adapt", "--source", "{inputs}/rsicd", "--target", "{inputs}/tiles", "--checkpoint", "{inputs}/start/run",
      "--cache", "cache", "--out", "adapted", "--scale", "tiny", "-s", "head_epochs=2", "-s", "head_batch_size=8")
"""
INDEX = """
from ucore import embedding
embedding.AT_ONCE = 8
build = ("index", "build", "--checkpoint", "{inputs}/start/run", "--data", "{inputs}/rsicd", "--out", "index")
for split in ("train", "val", "train"):
    ucore(*build, "--split", split, *ENGINE)
ucore("index", "compact", "index")
"""


SAVES = """import json, pathlib
from ucore.files import write_json
folder = pathlib.Path(out) / name
folder.mkdir(parents=True, exist_ok=True)
steps = [path for path in sorted(folder.glob("step*.json"))]
for step in range(len(steps), 3):
    write_json(folder / f"step{step}.json", {"step": step, "seed": seed})
print("steps", len(list(folder.glob("step*.json"))))
"""
REPRODUCE = """
from ucore.reproduce import reproduce
from ucore import cli
names = ["{inputs}/a.ipynb", "{inputs}/b.ipynb"]
cli.reproduce = lambda: reproduce({"seed": 3}, names, "out", progress=False, jobs=2) and None
ucore("reproduce")
"""


def notebooks(inputs: Path) -> None:
    """Two small notebooks that keep what they have done, as the series' do."""
    for name in "ab":
        notebook(inputs / f"{name}.ipynb", SAVES, f"name = {name!r}\nseed = 0\nout = 'kept'")


def notebook(path: Path, code: str, parameters: str = "seed = 0") -> Path:
    """A notebook of a parameters cell, and one code cell for each part of `code` between lines of dashes."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    cells = [new_markdown_cell("# Does it go on?"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[*cells, *map(new_code_cell, code.split("---\n"))]), path)
    return path


def index_state(folder: Path) -> dict[str, str]:
    """What can be found in an index, each item with its feature and its row, once; and that its files are whole."""
    import hashlib

    import numpy as np

    from ucore.index import GalleryIndex

    index = GalleryIndex.open(folder / "index")
    index.verify()
    found = np.concatenate([index.select(kind) for kind in ("image", "text", "segment")])
    rows, features = index.rows(found), index.features(found)
    assert rows["item_id"].is_unique
    told = zip(rows["item_id"], rows.map(str).agg("|".join, axis=1), features, strict=True)
    return {name: hashlib.sha256(row.encode() + feature.tobytes()).hexdigest() for name, row, feature in told}


def notebook_state(folder: Path) -> dict[str, str]:
    """What the notebooks kept, and what their cells printed; a run that is recorded as finished has all its files."""
    import json

    from ucore.files import file_hash

    found = content(folder / "kept")
    for name in "ab":
        record = json.loads((folder / "out" / name / "run.json").read_text())
        assert len(record["files"]) >= 2 and all(
            file_hash(folder / each) == told for each, told in record["files"].items()
        )
        cells = json.loads((folder / "out" / name / f"{name}.ipynb").read_text())["cells"]
        found[name] = json.dumps([cell.get("outputs") for cell in cells])
    return found


STAGES = (
    Stage("simulate", nothing, SIMULATE),
    Stage("data build", places, BUILD),
    Stage("archive", places, UNPACK),
    Stage("segment", rsicd, SEGMENT.replace("WORKERS", "1"), PARTS),
    Stage("segment, 2 workers", rsicd, SEGMENT.replace("WORKERS", "2"), PARTS),
    Stage("caption", rsicd, CAPTION.replace("CAPTIONER", "tags"), PARTS),
    Stage("caption, model", rsicd, CAPTION.replace("CAPTIONER", "micro"), TORCH),
    Stage("train", rsicd, TRAIN, TORCH),
    Stage("adapt", trained, ADAPT, TORCH),
    Stage("index", trained, INDEX.replace("*ENGINE", ""), TORCH, index_state),
    Stage("index, lance", trained, INDEX.replace("*ENGINE", "'--engine', 'lance'"), TORCH, index_state),
    Stage("reproduce", notebooks, REPRODUCE, NOTEBOOKS, notebook_state, patience=3),
)
