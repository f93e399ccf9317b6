"""The caption stage: a captioner writes about every image, its text is refined, and the result is a dataset again.

result = caption_dataset(manifest, "tags", "runs/captions")
read_dataset(result.folder)  # the same images and captions, with descriptions

    OUT/<captioner>-<key>/part-*.parquet, settings.json     what the captioner wrote, never changed (`store.PartStore`)
                          quarantine.jsonl                  images that cannot be read, by name
                          manifest.parquet                  the refined dataset of the last call
                          report.json                       what was kept, changed, dropped and why
                          urbancross/<Country>/instructblip_generation_<country>_refine.csv
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucore.asking import MakeWorker, asked, items_of, keep, keys_of
from ucore.captioner import load_captioner
from ucore.cleaning import clean_caption
from ucore.endpoint import is_address
from ucore.errors import DataError, UserError
from ucore.files import write_json
from ucore.grounding import grounding
from ucore.likeness import filter_by_similarity, filter_captions
from ucore.manifest import Manifest, few, warn_of
from ucore.prompts import PAPER
from ucore.refining import Drop, Into, refine_captions
from ucore.store import PartStore
from ucore.urbancross import write_urbancross

if TYPE_CHECKING:
    from ucore.model import DualEncoder

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

Texts = dict[str, str]  # by sample_id

MANIFEST_FILE = "manifest.parquet"  # as `data.read_dataset` expects it
VERSION = 1  # of what a row holds


@dataclass(frozen=True, eq=False)
class CaptionRun:
    """What the stage made: its folder, the refined manifest in it, the report; by sample, raw texts and prompts."""

    folder: Path
    manifest: Manifest
    report: dict[str, Any]
    texts: dict[str, str]
    prompts: dict[str, str]


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
    drop: Drop = "contradicted",
    judge: "DualEncoder | None" = None,
    unlike: float = 0.1,
) -> CaptionRun:
    """Texts for every image of `manifest`, refined, in OUT/<captioner>-<key>/; a repeated call does what is missing.

    captioner, prompt, max_new_tokens: as of `captioner.load_captioner`; another prompt or other weights get another
        folder. engine, address, workers, batch_size: as of `parallel.map_stage`. Sentences from tags are made here, and
        an endpoint is asked from here, `batch_size` requests at a time, whatever the engine. By default one process
        holds a large model where there is no GPU. device: "cuda" where only the cluster has GPUs.
    into, drop: as of `refining.refine_captions`.
    judge: an encoder that has learned from pairs: of the texts for training images, the share `unlike` that is least
        like its image is left out (`likeness.filter_captions`), and the report says which.
    An item is known by its image's bytes and its prompt; equal ones are asked once. An image that cannot be read is
    quarantined by name and left out of the refined manifest. One that failed otherwise stays in it with what it had,
    and is tried again by the next call. A warning at the end names both. Raises ConfigError or CheckpointError for a
    captioner that cannot be used, UserError where another process writes there, or where nothing but failures comes.
    """
    # On a cluster this machine may have no GPU; here the captioner only names the folder then.
    make = MakeWorker(captioner, device, prompt, max_new_tokens, batch_size)
    writer = make.load("cpu" if engine == "ray" else device)
    make.key = writer.key()
    folder = Path(out) / f"{writer.name}-{make.key}"
    if is_address(captioner) and not folder.exists():
        writer.load()  # where no server answers, not even an empty folder is left
    store = PartStore(folder, {"captioner": writer.name, "key": make.key, "version": VERSION})
    started = time.monotonic()
    samples: list[str] = list(manifest.frame["sample_id"])
    items = items_of(manifest, writer)
    keys = keys_of(items, samples)
    with store.writing():
        done = store.done()
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in done}
        todo = sorted(first.values())
        results = asked(make, writer, [items[place] for place in todo], engine, address, workers, progress)
        failures = keep(store, [(keys[place], samples[place]) for place in todo], results)
        this_call = {"asked": len(todo), "seconds": round(time.monotonic() - started, 2)}
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
            **{"simulated": manifest.simulated, "quarantined": bad, "failed": failed, "this_call": this_call},
        }
        refine = partial(_refined, into=into, drop=drop, judge=judge, unlike=unlike, progress=progress)
        run = _written(manifest, folder, rows, bad, refine, about)
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
    refine: Callable[[Manifest, Texts, Texts], tuple[Manifest, dict[str, Any]]],
    about: dict[str, Any],
) -> CaptionRun:
    """Refine texts (sample -> text, prompt) and write manifest, report and CSV files."""
    if len(bad) == len(manifest):
        raise DataError(f"None of the {len(bad):,} images can be read: {few([f'{k} ({v})' for k, v in bad.items()])}.")
    frame: Any = manifest.frame
    usable = Manifest(frame.loc[~frame["sample_id"].isin(list(bad))].reset_index(drop=True), manifest.root)
    texts, prompts = ({sample: row[part] for sample, row in rows.items()} for part in (0, 1))
    refined, report = refine(usable, texts, prompts)
    report = {**about, **report}
    refined.save(folder / MANIFEST_FILE)
    write_urbancross(refined, folder / "urbancross")
    write_json(folder / "report.json", report)
    return CaptionRun(folder, refined, report, texts, prompts)


def _refined(
    manifest: Manifest, texts: Texts, prompts: Texts, into: Into, drop: Drop, judge: "DualEncoder | None",
    unlike: float, progress: bool,
) -> tuple[Manifest, dict[str, Any]]:  # fmt: skip
    """`refine_captions`, without the texts that the judge finds unlike their images; they count as dropped."""
    refined, report = refine_captions(manifest, texts, prompts, into, drop)
    if judge is None:
        return refined, report
    frame: Any = manifest.frame.assign(description="")  # what was there before is not judged
    blank = Manifest(frame, manifest.root)
    written, _ = refine_captions(blank, texts, prompts, "description", drop)
    before = list(written.frame["description"])
    if not any(before):
        return refined, report
    judged, likeness = filter_captions(written, judge, "description", unlike, progress=progress)
    triples = zip(written.frame["sample_id"], before, judged.frame["description"], strict=True)
    gone = {sample for sample, text, left in triples if text and not left}
    refined, report = refine_captions(manifest, texts, prompts, into, drop, unlike=gone)
    return refined, {**report, "likeness": likeness, "unlike": sorted(gone)}
