"""The caption stage: a captioner writes about every image, its text is refined, and the result is a dataset again.

result = caption_dataset(manifest, "tags", "runs/captions")
read_dataset(result.folder)  # the same images and captions, with descriptions

    OUT/<captioner>-<key>/part-*.parquet, settings.json     what the captioner wrote, never changed (`store.PartStore`)
                          quarantine.jsonl                  images that cannot be read, by name
                          manifest.parquet                  the refined dataset of the last call
                          report.json                       what was kept, changed, dropped and why
                          urbancross/<Country>/instructblip_generation_<country>_refine.csv
"""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ucore.captioner import Captioner, load_captioner
from ucore.cleaning import clean_caption
from ucore.crop_features import UNHASHED
from ucore.device import pick_device
from ucore.endpoint import is_address
from ucore.errors import ConfigError, DataError, UserError
from ucore.files import content_hash, file_hash, write_json
from ucore.grounding import grounding
from ucore.images import Unreadable, map_files, try_image
from ucore.likeness import filter_by_similarity, filter_captions
from ucore.manifest import Manifest, few, warn_of
from ucore.parallel import Failed, map_stage
from ucore.prompts import PAPER
from ucore.refining import Into, refine_captions
from ucore.store import PartStore
from ucore.urbancross import write_urbancross

__all__ = [
    "CaptionRun",
    "caption_dataset",
    "clean_caption",
    "filter_by_similarity",
    "filter_captions",
    "grounding",
    "load_captioner",
    "refine_captions",
    "write_urbancross",
]

MANIFEST_FILE = "manifest.parquet"  # as `data.read_dataset` expects it
MOST_SIGNS = 20_000  # of a text that is stored
VERSION = 1  # of what a row holds
GIVE_UP = 100  # failures in a row, with nothing between them, after which no more is asked


@dataclass(frozen=True, eq=False)
class CaptionRun:
    """What the stage made: its folder, the refined manifest in it, the report; by sample, raw texts and prompts."""

    folder: Path
    manifest: Manifest
    report: dict[str, Any]
    texts: dict[str, str]
    prompts: dict[str, str]


class _Item(NamedTuple):
    """What a worker gets: the image's path ("" where none is looked at) and what to ask."""

    path: str
    prompt: str


def caption_dataset(
    manifest: Manifest,
    captioner: str,
    out: str | Path,
    prompt: str = PAPER,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    batch_size: int = 8,
    max_new_tokens: int = 128,
    into: Into = "description",
    progress: bool = True,
) -> CaptionRun:
    """Texts for every image of `manifest`, refined, in OUT/<captioner>-<key>/; a repeated call does what is missing.

    captioner, prompt, max_new_tokens: as of `captioner.load_captioner`; another prompt or other weights get another
        folder. engine, address, workers, batch_size: as of `parallel.map_stage`. Sentences from tags are made here, and
        an endpoint is asked from here, `batch_size` requests at a time, whatever the engine. By default one process
        holds a large model where there is no GPU. device: "cuda" where only the cluster has GPUs.
    into: as of `refining.refine_captions`.
    An item is known by its image's bytes and its prompt; equal ones are asked once. An image that cannot be read is
    quarantined by name and left out of the refined manifest. One that failed otherwise stays in it with what it had,
    and is tried again by the next call. A warning at the end names both. Raises ConfigError or CheckpointError for a
    captioner that cannot be used, UserError where another process writes there, or where nothing but failures comes.
    """
    # On a cluster this machine may have no GPU; here the captioner only names the folder then.
    make = _MakeWorker(captioner, device, prompt, max_new_tokens, batch_size)
    writer = make.load("cpu" if engine == "ray" else device)
    make.key = writer.key()
    folder = Path(out) / f"{writer.name}-{make.key}"
    if is_address(captioner) and not folder.exists():
        writer.load()  # where no server answers, not even an empty folder is left
    store = PartStore(folder, {"captioner": writer.name, "key": make.key, "version": VERSION})
    started = time.monotonic()
    samples: list[str] = list(manifest.frame["sample_id"])
    items = _items(manifest, writer)
    keys = _keys(items, samples)
    with store.writing():
        done = store.done()
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in done}
        todo = sorted(first.values())
        results = _asked(make, writer, [items[place] for place in todo], engine, address, workers, progress)
        failures = _keep(store, [(keys[place], samples[place]) for place in todo], results)
        asked = {"asked": len(todo), "seconds": round(time.monotonic() - started, 2)}
        stored = store.table(["key", "text"]).to_pydict()
        texts = dict(zip(stored["key"], stored["text"], strict=True))
        bad, failed = (
            {sample: why[key] for sample, key in zip(samples, keys, strict=True) if key in why}
            for why in (store.reasons(), failures)
        )
        rows = {
            sample: (texts[key], item.prompt if writer.needs_images else "")
            for sample, key, item in zip(samples, keys, items, strict=True)
            if key in texts
        }
        about = {
            **{"captioner": writer.name, "key": make.key, "prompt": prompt if writer.needs_images else ""},
            **{"simulated": manifest.simulated, "quarantined": bad, "failed": failed, "this_call": asked},
        }
        run = _written(manifest, folder, rows, bad, into, about)
    warn_of(bad, "cannot be read and were left out")
    warn_of(failed, "failed; repeat the command to retry")
    if failed and not rows:
        raise UserError(f"All {len(failed):,} images failed, the first one: {next(iter(failed.values()))}.")
    return run


def _written(
    manifest: Manifest,
    folder: Path,
    rows: dict[str, tuple[str, str]],
    bad: dict[str, str],
    into: Into,
    about: dict[str, Any],
) -> CaptionRun:
    """Refine texts (sample -> text, prompt) and write manifest, report and CSV files."""
    if len(bad) == len(manifest):
        raise DataError(f"None of the {len(bad):,} images can be read: {few([f'{k} ({v})' for k, v in bad.items()])}.")
    frame: Any = manifest.frame
    usable = Manifest(frame.loc[~frame["sample_id"].isin(list(bad))].reset_index(drop=True), manifest.root)
    texts, prompts = ({sample: row[part] for sample, row in rows.items()} for part in (0, 1))
    refined, report = refine_captions(usable, texts, prompts, into)
    report = {**about, **report}
    refined.save(folder / MANIFEST_FILE)
    write_urbancross(refined, folder / "urbancross")
    write_json(folder / "report.json", report)
    return CaptionRun(folder, refined, report, texts, prompts)


# --- asking -------------------------------------------------------------------------------------------------------


@dataclass
class _MakeWorker:
    """Makes a worker: from items to texts, `Unreadable` or `Failed`. It is pickled without the captioner."""

    spec: str
    device: str
    prompt: str
    max_new_tokens: int
    batch_size: int
    key: str = ""
    loaded: Captioner | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "device": self.device.partition(":")[0], "loaded": None}

    def load(self, device: str) -> Captioner:
        self.loaded = load_captioner(self.spec, device, self.prompt, self.max_new_tokens, self.batch_size)
        return self.loaded

    def __call__(self) -> Callable[[list[_Item]], list[Any]]:
        writer = self.loaded or self.load(self.device)
        if self.key and writer.key() != self.key:
            raise ConfigError(
                f"{self.spec} is another model on {socket.gethostname()} than where this command runs; give all "
                "machines the same"
            )
        writer.load()
        return partial(_answers, writer)


def _answers(writer: Captioner, items: list[_Item]) -> list[Any]:
    """One answer an item; images are decoded in threads. What a captioner raises is the stage's to try again."""
    images = _images(items)
    good = [place for place, image in enumerate(images) if not isinstance(image, Unreadable)]
    answers: list[Any] = list(images)
    texts = writer.caption([images[place] for place in good], [items[place].prompt for place in good]) if good else []
    for place, text in zip(good, texts, strict=True):
        answers[place] = text
    return answers


def _images(items: list[_Item]) -> list[Any]:
    if len(items) == 1:
        return [_image(items[0].path)]
    with ThreadPoolExecutor(min(len(items), 8)) as pool:
        return list(pool.map(_image, [item.path for item in items]))


def _image(path: str) -> Image.Image | Unreadable | None:
    """The picture; None where the captioner looks at none."""
    return try_image(path) if path else None


def _items(manifest: Manifest, writer: Captioner) -> list[_Item]:
    columns = (manifest.frame[name] for name in ("tags", "surrounding_tags", "sample_id"))
    prompts = [writer.prompt_for(tags, around, sample) for tags, around, sample in zip(*columns, strict=True)]
    paths = [str(path) for path in manifest.image_paths] if writer.needs_images else [""] * len(prompts)
    return [_Item(path, prompt) for path, prompt in zip(paths, prompts, strict=True)]


def _keys(items: Sequence[_Item], samples: Sequence[str]) -> list[str]:
    """Key of each item, made of the image's bytes and the prompt; of the sample's name where there is no file."""

    def image_hash(path: Path) -> str:
        try:
            return file_hash(path)
        except OSError:
            return ""

    seen = [Path(item.path) for item in items if item.path]
    hashes = map_files(image_hash, seen, "Hashing images") if seen else ["-"] * len(items)
    return [
        content_hash(image, item.prompt) if image else UNHASHED + content_hash(sample, item.prompt)
        for image, item, sample in zip(hashes, items, samples, strict=True)
    ]


def _asked(
    make: _MakeWorker, writer: Captioner, items: list[_Item], engine: str, address: str | None,
    workers: int | None, progress: bool,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """(position, answer) of each item, in this process or in others."""
    size, gpus = make.batch_size, 0.0
    if not writer.needs_images or is_address(make.spec):
        # Many requests are begun before the slowest of the last is waited for.
        engine, address, workers, size = "local", None, 1, 4 * size
    elif engine == "ray":
        make.loaded = None  # it was loaded for this machine's device
        gpus = 1.0 if pick_device("auto") == "cuda" or make.device.startswith("cuda") else 0.0
        if workers is None and make.spec != "micro" and (not gpus or make.device == "cpu"):
            raise ConfigError(
                f"Every worker holds {make.spec} in memory: say with --workers how many the cluster has room for, or "
                "--device cuda for one on each of its GPUs"
            )
    else:
        on_gpu = pick_device(make.device) == "cuda"
        gpus = 1.0 if on_gpu and items else 0.0
        workers = 1 if make.device.startswith("cuda:") else workers  # that very GPU, by this process
        workers = workers or (None if on_gpu or make.spec == "micro" else 1)
    if make.device == "cpu":
        gpus = 0.0
    return map_stage(make, items, engine, workers, size, gpus, address, "Captioning", progress)


def _keep(store: PartStore, todo: Sequence[tuple[str, str]], results: Iterator[tuple[int, Any]]) -> dict[str, str]:
    """Store (key, sample) answers as they come, in parts, whatever ends the stage; return key -> reason of failures.

    Raises UserError after `GIVE_UP` failures in a row: a server that is down would take hours to fail for each item.
    """
    failures: dict[str, str] = {}
    in_a_row = 0
    with store.in_parts() as add:
        for position, answer in results:
            key, sample = todo[position]
            if isinstance(answer, Unreadable) and (answer.lasting or key.startswith(UNHASHED)):
                store.quarantine(key, sample, answer.reason)
                in_a_row = 0
            elif isinstance(answer, Failed | Unreadable):
                failures[key] = answer.reason
                in_a_row += 1
                if in_a_row >= GIVE_UP:
                    raise UserError(
                        f"{in_a_row} images in a row failed, the last one: {answer.reason}. What was finished is kept "
                        f"in {store.folder}: put that right and repeat the command."
                    )
            else:
                in_a_row = 0
                # Half of a surrogate pair, as a broken server may send, cannot be stored.
                add({"key": key, "text": answer[:MOST_SIGNS].encode("utf-8", "replace").decode()})
    return failures
