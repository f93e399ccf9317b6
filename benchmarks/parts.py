"""What segments, written captions and both bring to a trained model: four arms through `Trainer`, over seeds.

    python benchmarks/parts.py --data DATASET [--seeds 3] [--train 630] [--generator sam-micro] [--captioner micro]
        [-s NAME=VALUE ...] [--cache runs/parts] [--out table.json]

Heads on the frozen towers of the bundled encoder, the method `ucore`; each run chooses its epoch on the whole split
"val" and is scored on the whole split "test", original captions alone, as what is asked. Written captions are more
captions of training images; segments are chosen without any text on every split. Differences of mR to "image only" are
paired by seed and query, and the interval draws both again. "+ another image's captions" is a control: as many words,
of no use but as language.

captioner-micro has learned from all captions of RSICD's training split: there, what it writes brings more to a smaller
--train than those images hold. Pooling is "late", or as -s segments= says.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from ucore.captions import caption_dataset
from ucore.comparison import seeded_difference
from ucore.config import TrainConfig
from ucore.data import read_dataset
from ucore.evaluate import METRICS, Ranks, metrics_from_ranks, retrieval_ranks
from ucore.features import image_tower_features, text_tower_features
from ucore.files import write_json
from ucore.fusion import heads_similarity, segment_sets, with_segments
from ucore.manifest import Manifest, subset
from ucore.model import load_encoder
from ucore.notebooks import parse_parameters
from ucore.origin import machine_facts
from ucore.segment_store import SegmentStore
from ucore.segments import segment_dataset
from ucore.train import Trainer

ARMS = {  # segments, captions
    "image only": (False, "own"), "+ segments": (True, "own"), "+ written captions": (False, "written"),
    "+ another image's captions": (False, "strange"), "+ both": (True, "written"),
}  # fmt: skip
FIXED = ("seed", "tune_epochs", "max_train_images")


def with_captions(train: Manifest, written: Manifest, strange: bool) -> Manifest:
    """The images of `written` with their captions of `train`; `strange`: and with what was written for another."""
    own = dict(zip(train.frame["sample_id"], train.frame["captions"], strict=True))
    frame = written.frame.copy()
    originals = [list(own[sample]) for sample in frame["sample_id"]]
    added = [list(every)[len(of) :] for every, of in zip(frame["captions"], originals, strict=True)]
    order = np.random.default_rng(0).permutation(len(added))  # a neighbour in the list is often of the same scene
    moved = [added[row] if strange else [] for row in order]
    frame["captions"] = [of + more for of, more in zip(originals, moved, strict=True)]
    return Manifest(frame, written.root)


def run(
    train: Manifest, val: Manifest, test: Manifest, store: SegmentStore | None, config: TrainConfig, cache: Path
) -> Ranks:
    """Train heads anew and rank the whole of `test`; segments where there is a `store`."""
    torch.manual_seed(config.seed)
    encoder = load_encoder()
    Trainer(encoder, train, val, config, None, cache, progress=False, segments=store).fit()
    encoder.eval()
    views = image_tower_features(encoder, test, config.test_views, cache, progress=False)
    similarity, texts = heads_similarity(encoder, views, text_tower_features(encoder, test.texts[0], cache, False))
    if store is not None:
        sets = segment_sets(encoder, test, store, config, False)
        similarity = with_segments(encoder, similarity, sets, texts, config.segment_share)
    return retrieval_ranks(similarity, test.texts[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", type=int, help="training images, evenly spread; by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--generator", default="sam-micro")
    parser.add_argument("--captioner", default="micro")
    parser.add_argument("-s", "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of every run")
    parser.add_argument("--cache", type=Path, default=Path("runs/parts"), help="features, segments and captions")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data, started = read_dataset(options.data), time.perf_counter()
    train, val, test = (data.split(name) for name in ("train", "val", "test"))
    train = subset(train, options.train) if options.train else train
    given = parse_parameters(options.set)
    if fixed := sorted(set(given) & set(FIXED)):
        parser.error(f"{fixed[0]} is set here; leave it out")
    pooling = given.pop("segments", "late")
    written = caption_dataset(train, options.captioner, options.cache, into="captions").manifest
    train = with_captions(train, written, False)  # an image that could not be read is nowhere
    sides = {"own": train, "written": written, "strange": with_captions(train, written, True)}
    store = None
    for part in (train, val, test):
        store = segment_dataset(part, options.generator, options.cache)
    label = "SIMULATED" if data.simulated else "Real"
    print(f"{label} data, {data.name}: {len(train):,} training, {len(val):,} validation and {len(test):,} test images")
    found: dict[str, list[Ranks]] = {arm: [] for arm in ARMS}
    for seed, (arm, (with_masks, words)) in product(range(options.seeds), ARMS.items()):
        own = {"segments": pooling if with_masks else "none", "tune_epochs": 0, "max_train_images": None}
        config = TrainConfig.at(options.scale, **{**given, **own, "seed": seed})
        found[arm].append(run(sides[words], val, test, store if with_masks else None, config, options.cache))
    rows = []
    for arm, runs in found.items():
        metrics = [metrics_from_ranks(*ranks) for ranks in runs]
        row = {"arm": arm, **{name: round(float(np.mean([one[name] for one in metrics])), 2) for name in METRICS},
               "mR_seeds": [round(one["mR"], 2) for one in metrics]}  # fmt: skip
        if arm != "image only":
            row["mR_difference"] = [round(x, 2) for x in seeded_difference(runs, found["image only"], test.texts[1])]
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.out:
        facts = {"dataset": data.name, "simulated": data.simulated, "split": "test", "machine": machine_facts()}
        sizes = {"train_images": len(train), "test_images": len(test), "seconds": round(time.perf_counter() - started)}
        how = {"generator": options.generator, "captioner": options.captioner, "scale": options.scale,
               "seeds": options.seeds, "set": options.set}  # fmt: skip
        write_json(options.out, {**facts, **sizes, **how, "rows": rows})


if __name__ == "__main__":
    main()
