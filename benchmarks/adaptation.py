"""Adaptation from country to country: every method, every direction, over seeds, on the target's untouched test part.

    python benchmarks/adaptation.py --data DATASET [--directions a-b ...] [--methods ...] [--seeds 3] [--out table.json]
    python benchmarks/adaptation.py --source RSICD --data GEOTILES --targets nepal germany tanzania

Heads of the bundled encoder are trained on the source (scale tiny, the seed's own), then adapted to the target with its
part "finetune" (20 %), and scored on "test" (70 %): whole gallery, plain cosines and, "+qb", with hubs corrected by the
images and texts of "finetune". "zero-shot" is the source's model as it is, "zero-shot +qb" QB-Norm, and "tcr" answers
every test query with a head that moves by the queries alone (`test_time`). Differences of mR to "source-only",
which goes on training on the source for as many steps, are paired by seed and query; the interval draws both again. The
second difference of a row is to "source-only +qb" where the row is "+qb", too.
A method may change settings ("ucore,pseudo_weight=0"), the regime ("ucore,regime=paired,shots=10") and the choice of
weights ("ucore,choose_by=mR": the oracle).
"""

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ucore.adapt import Adapter
from ucore.adapt_config import METHODS, AdaptConfig
from ucore.comparison import seeded_difference
from ucore.config import TrainConfig
from ucore.crossing import target_ranks
from ucore.data import read_dataset
from ucore.evaluate import METRICS, Ranks, metrics_from_ranks, retrieval_ranks, similarity_matrix
from ucore.features import image_tower_features, text_tower_features
from ucore.files import write_json
from ucore.manifest import Manifest
from ucore.model import DualEncoder, load_encoder
from ucore.notebooks import parse_parameters
from ucore.origin import machine_facts
from ucore.splits import adaptation_split
from ucore.test_time import adapt_queries
from ucore.train import Trainer

BASE = "source-only"
WATCHED = ("mR", "return_probability", "discriminator_accuracy", "matching_precision")


def features_of(encoder: DualEncoder, manifest: Manifest, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features of images, one view each, and texts, from cached tower features."""
    image = image_tower_features(encoder, manifest, 1, cache, progress=False)[:, 0]
    text = text_tower_features(encoder, manifest.texts[0], cache, progress=False)
    with torch.no_grad():
        image, text = (F.normalize(head(torch.from_numpy(part)), dim=1).numpy()
                       for head, part in ((encoder.image_head, image), (encoder.text_head, text)))  # fmt: skip
    return image, text


def tcr_ranks(encoder: DualEncoder, test: Manifest, cache: Path, seed: int) -> Ranks:
    """Ranks where texts, and then images, move towards the gallery while they are answered."""
    raw = (
        torch.from_numpy(image_tower_features(encoder, test, 1, cache, progress=False)[:, 0]),
        torch.from_numpy(text_tower_features(encoder, test.texts[0], cache, progress=False)),
    )
    image, text = features_of(encoder, test, cache)
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
    return method, parse_parameters(changes)


Found = dict[str, list[tuple[Ranks, dict[str, Any], float]]]


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


def direction(
    fresh: DualEncoder,
    source: Manifest,
    target: Manifest,
    methods: Sequence[str],
    seeds: int,
    cache: Path,
    scale: str,
    known: dict[Any, DualEncoder],
) -> Found:
    """For every method and seed: ranks on the target's test part, what every epoch showed, seconds."""
    train = source.split("train")
    target = adaptation_split(target, seed=0)
    finetune, choose, test = (target.split(name) for name in ("finetune", "val", "test"))
    found: Found = {}

    def keep(name: str, encoder: DualEncoder, shown: dict[str, Any], seconds: float) -> None:
        for label, ranks in target_ranks(encoder, test, finetune, cache, name).items():
            found.setdefault(label.replace(", hubs corrected", " +qb"), []).append((ranks, shown, seconds))

    for seed in range(seeds):
        start = started(fresh, source, seed, cache, known)
        keep("zero-shot", start, {}, 0.0)
        if "tcr" in methods:
            began = time.perf_counter()
            found.setdefault("tcr", []).append((tcr_ranks(start, test, cache, seed), {}, time.perf_counter() - began))
        for text in (name for name in methods if name != "tcr"):
            method, changes = settings(text)
            encoder, began = copy.deepcopy(start), time.perf_counter()
            own = AdaptConfig.of(method, scale, **{"seed": seed, "head_batch_size": batch_of(train), **changes})
            adapter = Adapter(encoder, train, finetune, choose, own, None, cache, progress=False)
            best = adapter.fit()
            rows = [row["metrics"] for row in adapter.history if "metrics" in row]
            trace = {name: [round(row.get(name, float("nan")), 1) for row in rows] for name in WATCHED}
            encoder.load_state_dict(adapter.best_state)
            keep(text, encoder.eval(), {"epoch": best["epoch"], **trace}, time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="another dataset whose pairs are the source")
    parser.add_argument("--targets", nargs="+", help="domains of --data; by default all")
    parser.add_argument("--directions", nargs="+", help="SOURCE-TARGET within --data; by default all")
    parser.add_argument("--methods", nargs="+", default=["tcr", *METHODS], help="names, or name,setting=value,...")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--trace", action="store_true", help="print what every epoch showed")
    options = parser.parse_args()
    data = read_dataset(options.data)
    if options.source is not None:
        source = read_dataset(options.source, split=("train", "val"))
        pairs = [(source, data.domain(name)) for name in options.targets or sorted(set(data.frame["domain"]))]
    else:
        pairs = directions(data, options.directions)
    methods = list(dict.fromkeys([BASE, *options.methods]))
    print(f"{'SIMULATED' if data.simulated else 'Real'} data; {json.dumps(machine_facts())}")
    fresh, rows, gains, known = load_encoder(), [], {}, {}
    for source, target in pairs:
        name = f"{source.name} -> {target.name}"
        found = direction(fresh, source, target, methods, options.seeds, options.cache, options.scale, known)
        owner = adaptation_split(target, seed=0).split("test").texts[1]
        bases = {how: [ranks for ranks, _, _ in found[BASE + how]] for how in ("", " +qb")}
        for method, runs in found.items():
            metrics = [metrics_from_ranks(*ranks) for ranks, _, _ in runs]
            ours = [ranks for ranks, _, _ in runs]
            difference = seeded_difference(ours, bases[""], owner)
            alike = seeded_difference(ours, bases[" +qb"], owner) if method.endswith(" +qb") else difference
            means = {metric: float(np.mean([one[metric] for one in metrics])) for metric in METRICS}
            seconds = float(np.mean([seconds for _, _, seconds in runs]))
            row = {"direction": name, "method": method, "test_images": int(owner.max()) + 1, **means,
                   "mR_difference": difference, "mR_difference_alike": alike, "seconds": seconds}  # fmt: skip
            rows.append(row)
            gains.setdefault(method, []).append((row["mR"], difference[0], alike[0]))
            shown = "  ".join(f"{mean:+6.2f} [{low:+.2f}, {high:+.2f}]" for mean, low, high in (difference, alike))
            print(f"{name:24} {method:28} mR {row['mR']:6.2f}  {shown}  {row['seconds']:5.1f} s", flush=True)
            if options.trace:
                print("   ", runs[0][1], flush=True)
    for method, values in gains.items():
        mean, gain, alike = np.mean(values, axis=0)
        print(f"{'mean of directions':24} {method:28} mR {mean:6.2f}  {gain:+6.2f}  {alike:+6.2f}")
    if options.out:
        write_json(options.out, {"command": " ".join(map(str, vars(options).items())), "rows": rows})


if __name__ == "__main__":
    main()
