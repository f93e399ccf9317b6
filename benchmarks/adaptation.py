"""Adaptation from country to country: every method, every direction, over seeds, on the target's untouched test part.

    python benchmarks/adaptation.py --data DATASET [--directions a-b ...] [--methods ...] [--seeds 3] [--out table.json]
    python benchmarks/adaptation.py --source RSICD --data GEOTILES --targets nepal germany tanzania
    python benchmarks/adaptation.py --data RSICD --scenes --directions city-nature [--shots 8 32]

Heads of the bundled encoder are trained on the source (scale tiny, the seed's own), then adapted to the target with its
part "finetune" (20 %), and scored on "test" (70 %): whole gallery, plain cosines and, "+qb", with hubs corrected by the
images and texts of "finetune". "zero-shot" is the source's model as it is, "zero-shot +qb" QB-Norm, and "tcr" answers
every test query with a head that moves by the queries alone (`test_time`). Differences of mR to "source-only",
which goes on training on the source for as many steps, are paired by seed and query; the interval draws both again. The
second difference of a row is to "source-only +qb" where the row is "+qb", too. "told apart": of how many images of the
target's "test" and of the source beyond "train" new classifiers know the domain (`adversary.fresh_accuracy`); 50 % is
a guess.
A method may change settings ("ucore,pseudo_weight=0"), the regime ("ucore,regime=paired,shots=10") and the choice of
weights ("ucore,choose_by=mR": the oracle). `--shots 8 32` adds rows with so many images of the target whose texts are
known: alone ("target-only"), with the source's pairs ("joint"), and as "ucore" with both. "control" is ucore with the
texts of the target replaced by texts of other places (domains of --data that are neither side): what it gains it does
not owe to them. `--scenes` makes groups of RSICD's scenes the domains (`rsicd.SCENE_GROUPS`): city, nature, and mixed,
which serves the control. Rows with segments ("ucore,segments=late") need masks: --segments of the source's images and,
where they lie elsewhere, --target-segments; the source's model has none, so they are added to it.

Every run is kept in --runs under a key of the data, the code and the settings, so that a repeated command makes only
what is missing; --out is written after every direction.
"""

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ucore.adapt import Adapter
from ucore.adapt_config import METHODS, AdaptConfig
from ucore.adversary import fresh_accuracy
from ucore.comparison import seeded_difference
from ucore.config import TrainConfig
from ucore.crossing import target_ranks, with_texts_of
from ucore.data import read_dataset
from ucore.evaluate import METRICS, Ranks, metrics_from_ranks, retrieval_ranks, similarity_matrix
from ucore.features import image_tower_features, text_tower_features
from ucore.files import content_hash, read_json, write_json
from ucore.manifest import Manifest
from ucore.model import DualEncoder, load_encoder
from ucore.notebooks import parse_parameters
from ucore.origin import code_key, machine_facts
from ucore.rsicd import by_scenes
from ucore.segment_store import SegmentStore
from ucore.splits import adaptation_split
from ucore.test_time import adapt_queries
from ucore.train import Trainer

BASE, CONTROL = "source-only", "control"
FEW = ("target-only", "joint", "ucore,regime=paired")  # rows of every number of --shots
WATCHED = ("mR", "return_probability", "images_told_apart", "discriminator_accuracy", "matching_precision")


def image_features_of(encoder: DualEncoder, manifest: Manifest, cache: Path) -> np.ndarray:
    """Features of images, one view each, from cached tower features."""
    image = image_tower_features(encoder, manifest, 1, cache, progress=False)[:, 0]
    with torch.no_grad():
        return F.normalize(encoder.image_head(torch.from_numpy(image)), dim=1).numpy()


def text_features_of(encoder: DualEncoder, manifest: Manifest, cache: Path) -> np.ndarray:
    """Features of texts, from cached tower features."""
    text = text_tower_features(encoder, manifest.texts[0], cache, progress=False)
    with torch.no_grad():
        return F.normalize(encoder.text_head(torch.from_numpy(text)), dim=1).numpy()


def tcr_ranks(encoder: DualEncoder, test: Manifest, cache: Path, seed: int) -> Ranks:
    """Ranks where texts, and then images, move towards the gallery while they are answered."""
    raw = (
        torch.from_numpy(image_tower_features(encoder, test, 1, cache, progress=False)[:, 0]),
        torch.from_numpy(text_tower_features(encoder, test.texts[0], cache, progress=False)),
    )
    image, text = image_features_of(encoder, test, cache), text_features_of(encoder, test, cache)
    temperature, owner = float(torch.exp(-encoder.logit_scale.detach())), test.texts[1]
    images = adapt_queries(encoder.image_head, raw[0], text, temperature, seed=seed)
    texts = adapt_queries(encoder.text_head, raw[1], image, temperature, seed=seed)
    of_images = retrieval_ranks(similarity_matrix(images, text), owner)[0]
    return of_images, retrieval_ranks(similarity_matrix(image, texts), owner)[1]


def directions(data: Manifest, wanted: Sequence[str] | None) -> list[tuple[Manifest, Manifest]]:
    """Pairs of domains, all of them or those named SOURCE-TARGET (a name may hold a hyphen itself)."""
    names = sorted(set(data.frame["domain"]))
    every = {f"{a}-{b}": (a, b) for a in names for b in names if a != b}
    if missing := [one for one in wanted or [] if one not in every]:
        raise SystemExit(f"No direction {missing[0]}: choose from {', '.join(every)}")
    return [(data.domain(a), data.domain(b)) for a, b in (every[one] for one in wanted or every)]


def settings(text: str) -> tuple[str, dict[str, Any]]:
    """ "ucore,pseudo_weight=0" -> ("ucore", {"pseudo_weight": 0})."""
    method, *changes = text.split(",")
    return ("ucore" if method == CONTROL else method), parse_parameters(changes)


def is_control(text: str) -> bool:
    return text.split(",")[0] == CONTROL


@dataclass
class Border:
    """What all runs of a direction share. others: of places that are neither side; None where there are none."""

    fresh: DualEncoder
    source: Manifest
    target: Manifest
    others: Manifest | None
    cache: Path
    scale: str
    known: dict[Any, DualEncoder]
    masks: tuple[SegmentStore | None, SegmentStore | None] = (None, None)  # of the source and of the target

    def __post_init__(self) -> None:
        parts = adaptation_split(self.target, seed=0)
        self.finetune, self.val, self.test = (parts.split(name) for name in ("finetune", "val", "test"))
        keys = [part.content_key() for part in (self.source.split("train"), self.source.split("val"), self.finetune,
                                                self.val, self.test)]  # fmt: skip
        weights = [self.fresh.fingerprint(part) for part in ("image", "text")]
        self.key = content_hash(code_key([Path(__file__).read_text("utf-8")]), keys, weights, self.scale)

    @property
    def name(self) -> str:
        return f"{self.source.name} -> {self.target.name}"

    def path(self, runs: Path, text: str, seed: int) -> Path:
        """Where a run is kept."""
        others = self.others.content_key() if self.others is not None and is_control(text) else None
        masks = [store.parts.settings for store in self.masks if store is not None and "segments=" in text]
        return runs / f"{content_hash(self.key, text, seed, others, *masks)}.json"

    def lacking(self, text: str) -> str:
        """Why a row cannot be made; empty where it can."""
        shots = settings(text)[1].get("shots") if text != "tcr" else None
        if shots is not None and shots >= len(self.finetune):
            return f"there are {len(self.finetune)} images to adapt to: without shots all are known"
        if "segments=" in text and self.masks[0] is None:
            return "no --segments are given"
        return "no domain is neither side" if is_control(text) and self.others is None else ""

    def run(self, text: str, seed: int) -> dict[str, Any]:
        """Ranks on the target's test part by label, what every epoch showed, and seconds; JSON-able."""
        start = started(self.fresh, self.source, seed, self.cache, self.known)
        began, shown, finetune = time.perf_counter(), {}, self.finetune
        if text == "tcr":
            ranks = {text: tcr_ranks(start, self.test, self.cache, seed)}
            seconds = time.perf_counter() - began
        else:
            if is_control(text):
                assert self.others is not None
                finetune = with_texts_of(finetune, self.others, seed)
            encoder, config = copy.deepcopy(start), None
            if text != "zero-shot":
                config, shown = self._adapted(encoder, finetune, text, seed)
            seconds = time.perf_counter() - began if shown else 0.0
            shown = shown | {"unseen_told_apart": self._told_apart(encoder)}
            ranks = target_ranks(encoder, self.test, finetune, self.cache, text, self.masks[1], config)
            ranks = {label.replace(", hubs corrected", " +qb"): one for label, one in ranks.items()}
        kept = {label: [way.tolist() for way in one] for label, one in ranks.items()}
        return {"direction": self.name, "method": text, "seed": seed, "ranks": kept, "shown": shown, "seconds": seconds}

    def _told_apart(self, encoder: DualEncoder) -> float:
        """Percent of images that no training saw, of both domains, whose domain new classifiers know."""
        others = self.source.split(sorted(set(self.source.frame["split"]) - {"train"}))
        ours, theirs = (image_features_of(encoder, part, self.cache) for part in (others, self.test))
        return fresh_accuracy(ours, theirs)

    def _adapted(
        self, encoder: DualEncoder, finetune: Manifest, text: str, seed: int
    ) -> tuple[AdaptConfig, dict[str, Any]]:
        """Adapts `encoder`; returns the settings and what every epoch showed."""
        train, (method, changes) = self.source.split("train"), settings(text)
        own = AdaptConfig.of(method, self.scale, **{"seed": seed, "head_batch_size": batch_of(train), **changes})
        adapter = Adapter(encoder, train, finetune, self.val, own, None, self.cache, False, *self.masks)
        best = adapter.fit()
        rows = [row["metrics"] for row in adapter.history if "metrics" in row]
        trace = {name: [round(row[name], 1) for row in rows if name in row] for name in WATCHED}
        encoder.load_state_dict(adapter.best_state)
        encoder.eval()
        return own, {"epoch": best["epoch"], **trace}


def started(fresh: DualEncoder, source: Manifest, seed: int, cache: Path, known: dict[Any, DualEncoder]) -> DualEncoder:
    """Heads trained on the source from `seed` on; kept in `known` for other targets."""
    if (source.root, source.name, seed) not in known:
        torch.manual_seed(seed)
        start = copy.deepcopy(fresh)
        start.new_heads()
        train, val = source.split("train"), source.split("val")
        config = TrainConfig.at("tiny", seed=seed, head_batch_size=batch_of(train), max_train_images=None)
        Trainer(start, train, val, config, None, cache, progress=False).fit()
        known[source.root, source.name, seed] = start
    return known[source.root, source.name, seed]


def batch_of(train: Manifest) -> int:
    return 64 if len(train) < 1000 else 128


Found = dict[str, list[tuple[Ranks, dict[str, Any], float]]]


def direction(border: Border, methods: Sequence[str], seeds: int, runs: Path) -> Found:
    """For every method and seed: ranks on the target's test part, what every epoch showed, seconds."""
    found: Found = {}
    lacking = {text: border.lacking(text) for text in methods}
    for text, why in lacking.items():
        if why:
            print(f"{border.name:24} {text:28} left out: {why}", flush=True)
    for seed in range(seeds):  # all rows of a seed first: of a benchmark that was stopped all rows are there
        for text in (text for text, why in lacking.items() if not why):
            path = border.path(runs, text, seed)
            run = read_json(path)
            if run is None:
                run = border.run(text, seed)
                write_json(path, run)
            for label, (images, texts) in run["ranks"].items():
                ranks = np.array(images), np.array(texts)
                found.setdefault(label, []).append((ranks, run["shown"], run["seconds"]))
    return found


def told(apart: Sequence[float]) -> str:
    return f"told apart {np.mean(apart):.0f} %" if apart else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="another dataset whose pairs are the source")
    parser.add_argument("--targets", nargs="+", help="domains of --data; by default all")
    parser.add_argument("--directions", nargs="+", help="SOURCE-TARGET within --data; by default all")
    parser.add_argument("--methods", nargs="+", default=["tcr", *METHODS], help="names, or name,setting=value,...")
    parser.add_argument("--shots", nargs="+", type=int, default=[], help="few-shot rows with so many known images")
    parser.add_argument("--scenes", action="store_true", help="the domains are groups of RSICD's scenes")
    parser.add_argument("--segments", type=Path, help="masks of the source's images, as ucore segment makes them")
    parser.add_argument("--target-segments", type=Path, help="of the target's, where they lie elsewhere")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--runs", type=Path, default=Path("runs/adaptation"), help="where runs are kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--trace", action="store_true", help="print what every epoch showed")
    options = parser.parse_args()
    data = read_dataset(options.data)
    data = by_scenes(data) if options.scenes else data
    if options.source is not None:
        source = read_dataset(options.source, split=("train", "val"))
        pairs = [(source, data.domain(name)) for name in options.targets or sorted(set(data.frame["domain"]))]
    else:
        pairs = directions(data, options.directions)
    few = [f"{name},shots={count}" for count in options.shots for name in FEW]
    methods = list(dict.fromkeys(["zero-shot", BASE, *options.methods, *few]))
    print(f"{'SIMULATED' if data.simulated else 'Real'} data; {json.dumps(machine_facts())}")
    fresh, rows, gains, ends, known = load_encoder(), [], {}, {}, {}
    domains = sorted(set(data.frame["domain"]))
    folders = (options.segments, options.target_segments or options.segments)
    of_source, of_target = (None if folder is None else SegmentStore(folder) for folder in folders)
    for source, target in pairs:
        neither = [name for name in domains if name not in {source.name, target.name}]
        others = data.domain(neither) if neither else None
        border = Border(fresh, source, target, others, options.cache, options.scale, known, (of_source, of_target))
        name = border.name
        found = direction(border, methods, options.seeds, options.runs)
        owner = border.test.texts[1]
        bases = {how: [ranks for ranks, _, _ in found[BASE + how]] for how in ("", " +qb")}
        for method, runs in found.items():
            metrics = [metrics_from_ranks(*ranks) for ranks, _, _ in runs]
            ours = [ranks for ranks, _, _ in runs]
            difference = seeded_difference(ours, bases[""], owner)
            alike = seeded_difference(ours, bases[" +qb"], owner) if method.endswith(" +qb") else difference
            means = {metric: float(np.mean([one[metric] for one in metrics])) for metric in METRICS}
            seconds = float(np.mean([seconds for _, _, seconds in runs]))
            apart = [shown["unseen_told_apart"] for _, shown, _ in runs if shown]
            row = {"direction": name, "method": method, "test_images": int(owner.max()) + 1, **means,
                   "mR_difference": difference, "mR_difference_alike": alike, "unseen_told_apart": apart,
                   "seconds": seconds}  # fmt: skip
            rows.append(row)
            gains.setdefault(method, []).append((row["mR"], difference[0], alike[0]))
            ends.setdefault(method, []).extend(apart)
            shown = "  ".join(f"{mean:+6.2f} [{low:+.2f}, {high:+.2f}]" for mean, low, high in (difference, alike))
            shown += f"  {row['seconds']:5.1f} s {told(apart)}"
            print(f"{name:24} {method:28} mR {row['mR']:6.2f}  {shown}", flush=True)
            if options.trace:
                print("   ", runs[0][1], flush=True)
        if options.out:
            write_json(options.out, {"command": " ".join(map(str, vars(options).items())), "rows": rows})
    for method, values in gains.items():
        mean, gain, alike = np.mean(values, axis=0)
        print(f"{'mean of directions':24} {method:28} mR {mean:6.2f}  {gain:+6.2f}  {alike:+6.2f} {told(ends[method])}")


if __name__ == "__main__":
    main()
