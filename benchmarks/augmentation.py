"""What segments and written captions do for retrieval: each choice against the plain pair, over seeds, with intervals.

    python benchmarks/augmentation.py --data DATASET [--eval val] [--train 1500] [--seeds 3] [--out table.json]

Frozen towers of the bundled encoder; heads trained anew for every choice and seed on the split "train", scored on the
whole gallery of another split with the original captions as queries. Image side: the tower features of the picture
beside the mean over its segments' (none: zeros). Segments are chosen without any text, but for one choice: by likeness
to the captions, as the paper does, in training alone. Text side: the original captions, and further sentences for
training only. Likeness is judged by the heads of seed 0 of "image only". Differences: mean over seeds of mR against
"image only" or "original captions" of the same seed; the interval draws test pictures and seeds again.

captioner-micro has learned from the captions of RSICD's training split and was chosen on its validation split: there,
what its sentences add is no news to the heads, and is slightly flattered.
"""

import argparse
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ucore.captions import caption_dataset
from ucore.comparison import seeded_difference
from ucore.crops import crop_segments
from ucore.data import read_dataset
from ucore.evaluate import METRICS, metrics_from_ranks, retrieval_ranks_from_features
from ucore.features import image_tower_features, text_tower_features
from ucore.files import write_json
from ucore.images import load_image
from ucore.losses import clip_loss
from ucore.manifest import Manifest, subset
from ucore.masks import Segments
from ucore.model import DualEncoder, Head, load_encoder
from ucore.segments import segment_dataset, segment_features
from ucore.selection import select_similar

BACKGROUNDS = ("white", "mean", "blur", "box")
EPOCHS, BATCH, LR, WIDTH, TEMPERATURE = 25, 128, 1e-3, 512, 0.05
UNLIKE = 0.1  # share of the added sentences that is left out as unlike the image
EVERY = "+ all of these"
BY_TEXT = "+ segments, box, chosen by the captions in training"
Ranks = tuple[np.ndarray, np.ndarray]
Texts = list[list[str]]  # of every image


class Heads(torch.nn.Module):
    """An image and a text head, and the logit scale."""

    def __init__(self, image_width: int, text_width: int) -> None:
        super().__init__()
        self.image = Head(image_width, WIDTH, 1024, 0.3, residual=False)
        self.text = Head(text_width, WIDTH, 1024, 0.3, residual=False)
        self.logit_scale = torch.nn.Parameter(torch.tensor(1 / TEMPERATURE).log())

    def images(self, features: np.ndarray) -> Tensor:
        return F.normalize(self.image(torch.from_numpy(features)), dim=1)

    def texts(self, features: np.ndarray) -> Tensor:
        return F.normalize(self.text(torch.from_numpy(features)), dim=1)


def train(images: np.ndarray, texts: np.ndarray, owner: np.ndarray, same: np.ndarray, seed: int) -> Heads:
    """Heads trained with one random text an image and epoch.

    images: float32 (N, W); texts: float32 (T, V), of image `owner` (T,); same: (T,), equal for equal texts.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    heads = Heads(images.shape[1], texts.shape[1])
    heads.image.standardise(torch.from_numpy(images))
    heads.text.standardise(torch.from_numpy(texts))
    optimizer = torch.optim.AdamW(heads.parameters(), lr=LR, weight_decay=0.05)
    batch = min(BATCH, len(images))
    steps = EPOCHS * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    of_image = [np.flatnonzero(owner == number) for number in range(len(images))]
    for _ in range(EPOCHS):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            chosen = np.array([rng.choice(of_image[row]) for row in rows])
            positives = torch.from_numpy(same[chosen][:, None] == same[chosen])
            loss = clip_loss(heads.images(images[rows]), heads.texts(texts[chosen]), heads.logit_scale, positives, 0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return heads.eval()


def fixed_windows(encoder: DualEncoder, manifest: Manifest) -> np.ndarray:
    """Control: mean tower features float32 (N, W) of the four quarters and the middle, as if they were segments."""
    result = np.empty((len(manifest), encoder.image_width), np.float32)
    for row, path in enumerate(manifest.image_paths):
        image = np.asarray(load_image(path))
        height, width = image.shape[0] // 2, image.shape[1] // 2
        corners = [(0, 0), (0, width), (height, 0), (height, width), (height // 2, width // 2)]
        masks = np.zeros((5, *image.shape[:2]), bool)
        for mask, (top, left) in zip(masks, corners, strict=True):
            mask[top : top + height, left : left + width] = True
        crops = crop_segments(image, Segments.from_masks(masks), "box", encoder.image_size[0], 0.0)
        with encoder.evaluating():
            result[row] = encoder.image_tower(torch.from_numpy(crops).permute(0, 3, 1, 2)).float().mean(0).numpy()
    return result


def means(features: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean float32 (N, W) over the first `counts` of (N, k, W); zeros where there are none."""
    valid = np.arange(features.shape[1]) < counts[:, None]
    return (features.astype(np.float32) * valid[..., None]).sum(1) / np.maximum(counts, 1)[:, None]


def image_arms(
    encoder: DualEncoder, manifest: Manifest, arguments: argparse.Namespace
) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray] | None]:
    """Image-side features float32 (N, W or 2 W) of every choice; features (N, 2 k, W) and counts of more segments, None
    without any generator."""
    k = arguments.k
    whole = image_tower_features(encoder, manifest, 1, arguments.cache)[:, 0].astype(np.float32)
    if arguments.generator == "none":
        return {"image only": whole}, None
    store = segment_dataset(manifest, arguments.generator, arguments.cache)
    arms = {"image only": whole, "+ five fixed windows": np.hstack([whole, fixed_windows(encoder, manifest)])}
    for background in BACKGROUNDS[:-1]:
        part = means(*segment_features(encoder, manifest, store, k=k, background=background))
        arms[f"+ segments, {background}"] = np.hstack([whole, part])
    features, counts = segment_features(encoder, manifest, store, k=2 * k, background=BACKGROUNDS[-1])
    box = means(features[:, :k], counts.clip(max=k))
    shuffled = np.random.default_rng(0).permutation(len(manifest))
    arms[f"+ segments, {BACKGROUNDS[-1]}"] = np.hstack([whole, box])
    arms["+ another image's segments, box"] = np.hstack([whole, box[shuffled]])
    arms[f"+ {2 * k} segments, box"] = np.hstack([whole, means(features, counts)])
    return arms, (features, counts)


def chosen_by_text(heads: Heads, features: np.ndarray, counts: np.ndarray, texts: np.ndarray, k: int) -> np.ndarray:
    """Mean features float32 (N, W) of the k of each image's segments most like its text (N, D): for training only."""
    with torch.no_grad():
        vectors = heads.images(features.reshape(-1, features.shape[2]).astype(np.float32)).numpy()
    rows, _ = select_similar(vectors.reshape(*features.shape[:2], -1), counts, texts, k, split_role="train")
    taken = np.take_along_axis(features, rows.clip(0)[..., None], axis=1)
    return means(taken, (rows >= 0).sum(1))


def written(manifest: Manifest, captioner: str, cache: Path) -> Texts:
    """The sentence that a captioner writes about each image, as a list of one or none."""
    frame = caption_dataset(manifest, captioner, cache, into="description").manifest.frame
    found = dict(zip(frame["sample_id"], frame["description"], strict=True))
    return [[text] if (text := found.get(sample, "")) else [] for sample in manifest.frame["sample_id"]]


def text_arms(
    manifest: Manifest, arguments: argparse.Namespace, likeness: Callable[[Texts], np.ndarray]
) -> dict[str, Texts]:
    """Training texts of every choice. likeness: float32 (N,) of each image's added sentence, NaN where it has none."""
    own: Texts = [list(texts) for texts in manifest.frame["captions"]]
    arms, every = {"original captions": own}, own
    for captioner in arguments.captioners.split(","):
        sentences = written(manifest, captioner, arguments.cache)
        scores = likeness(sentences)
        likest = scores >= np.nanquantile(scores, UNLIKE)
        arms[f"+ {captioner}"] = joined(own, sentences)
        arms[f"+ {captioner}, likest {1 - UNLIKE:.0%}"] = joined(
            own, [texts if kept else [] for texts, kept in zip(sentences, likest, strict=True)]
        )
        every = joined(every, sentences)
    arms[EVERY] = every
    added = [texts[len(of_image) :] for texts, of_image in zip(every, own, strict=True)]
    order = np.random.default_rng(0).permutation(len(added))  # a neighbour in the list is often of the same scene
    arms["+ another image's sentences"] = joined(own, [added[row] for row in order])
    return arms


def joined(some: Texts, more: Texts) -> Texts:
    return [first + second for first, second in zip(some, more, strict=True)]


def ranks_of(heads: Heads, images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> Ranks:
    with torch.no_grad():
        return retrieval_ranks_from_features(heads.images(images).numpy(), heads.texts(texts).numpy(), owner)


def compare(
    name: str, arms: dict[str, Callable[[int], Ranks]], seeds: int, owner: np.ndarray, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Ranks of each arm and seed; the first arm is what the others are compared with."""
    found: dict[str, list[Ranks]] = {}
    rows = []
    for arm, run in arms.items():
        found[arm] = [run(seed) for seed in range(seeds)]
        every = np.array([list(metrics_from_ranks(*ranks).values()) for ranks in found[arm]])
        base = found[next(iter(arms))]
        row = {"side": name, "arm": arm, **{m: round(float(v), 2) for m, v in zip(METRICS, every.mean(0), strict=True)},
               "mR_seeds": every[:, METRICS.index("mR")].round(2).tolist()}  # fmt: skip
        if arm != next(iter(arms)):
            row["mR_difference"] = [round(value, 2) for value in seeded_difference(found[arm], base, owner)]
        rows.append(row)
        say(json.dumps(row))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval", default="val", help="splits to score on, separated by commas")
    parser.add_argument("--train", type=int, default=1500, help="training images, evenly spread")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--generator", default="sam-micro", help="of segments; none: sentences alone")
    parser.add_argument("--captioners", default="tags,micro", help="whose sentences are added, separated by commas")
    parser.add_argument("--k", type=int, default=5, help="segments an image")
    parser.add_argument("--cache", type=Path, default=Path("runs/augmentation"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(0)
    encoder = load_encoder()
    training = subset(read_dataset(arguments.data, split="train"), arguments.train)
    testing = read_dataset(arguments.data, split=tuple(arguments.eval.split(",")))
    (images, candidates), (held, _) = (image_arms(encoder, manifest, arguments) for manifest in (training, testing))
    queries, owner = testing.texts
    query_features = text_tower_features(encoder, queries, arguments.cache).astype(np.float32)

    def flat(texts: Texts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tower features of all texts, the image of each, and a number that equal texts share."""
        every = [text for of_image in texts for text in of_image]
        features = text_tower_features(encoder, every, arguments.cache, progress=False).astype(np.float32)
        of_image = np.repeat(np.arange(len(texts)), [len(some) for some in texts])
        return features, of_image, np.array([zlib.crc32(text.encode()) for text in every])

    def run(image_arm: str, text_arm: str) -> Callable[[int], Ranks]:
        parts = flat(texts[text_arm])
        return lambda seed: ranks_of(
            train(images[image_arm], *parts, seed), held[image_arm], query_features, owner
        )  # fmt: skip

    own = flat([list(some) for some in training.frame["captions"]])
    judge = train(images["image only"], *own, seed=0)
    with torch.no_grad():
        whole, captions = judge.images(images["image only"]), judge.texts(own[0])
        sums = torch.zeros_like(whole).index_add_(0, torch.from_numpy(own[1]), captions)

    def likeness(sentences: Texts) -> np.ndarray:
        features, of_image, _ = flat(sentences)
        scores = np.full(len(sentences), np.nan, np.float32)
        with torch.no_grad():
            scores[of_image] = (whole[of_image] * judge.texts(features)).sum(1).numpy()
        return scores

    texts = text_arms(training, arguments, likeness)
    plain_image, plain_text = next(iter(images)), next(iter(texts))
    both = {"image only, original": run(plain_image, plain_text)}
    if candidates is not None:
        by_text = chosen_by_text(judge, *candidates, F.normalize(sums, dim=1).numpy(), arguments.k)
        images[BY_TEXT] = np.hstack([images["image only"], by_text])
        held[BY_TEXT] = held["+ segments, box"]
        both["segments, box + all sentences"] = run("+ segments, box", EVERY)
    print(f"{training.name}: {len(training):,} training and {len(testing):,} test images"
          f"{' (SIMULATED)' if testing.simulated else ''}")  # fmt: skip
    rows = compare("image", {arm: run(arm, plain_text) for arm in images}, arguments.seeds, owner, print)
    rows += compare("text", {arm: run(plain_image, arm) for arm in texts}, arguments.seeds, owner, print)
    rows += compare("both", both, arguments.seeds, owner, print)
    if arguments.out:
        write_json(arguments.out, {"dataset": testing.name, "simulated": testing.simulated, "split": arguments.eval,
                                   "train_images": len(training), "generator": arguments.generator, "rows": rows,
                                   "seconds": round(time.perf_counter() - started, 1)})  # fmt: skip


if __name__ == "__main__":
    main()
