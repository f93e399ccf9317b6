"""Feature extraction: our path against the plain eager loop over timm's own model, side by side in one run.

    python benchmarks/feature_extraction.py [--images N] [--rounds R]      (or: make bench)

Both decode the same files (RSICD's validation images where UCORE_DATA is set, generated JPEGs otherwise), resize,
normalise and embed them in batches of 64 on the same cores. The rounds alternate, so that a drift of the machine's
speed meets both; the ratio is taken round by round.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from claims import claim
from PIL import Image
from torchvision.transforms import v2

from ucore import bundled
from ucore.data import read_dataset
from ucore.errors import DataError
from ucore.features import embed_images
from ucore.manifest import Manifest, subset
from ucore.model import load_encoder
from ucore.origin import machine_facts


def plain_tower() -> torch.nn.Module:
    """timm's own model as it comes: BatchNorm unfolded, float32, default memory layout."""
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    weights = torch.load(bundled.weight_file(*bundled.IMAGE_WEIGHTS), weights_only=True)
    tensors = list(weights.values())[: len(model.state_dict())]
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))
    return model


def plain_transform() -> v2.Compose:
    return v2.Compose(
        [v2.Resize(224, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.PILToTensor(),
         v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3)]
    )  # fmt: skip


def plain_loop(model: torch.nn.Module, paths: list[Path]) -> None:
    transform = plain_transform()
    with torch.no_grad():
        for start in range(0, len(paths), 64):
            model(torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[start : start + 64]]))


def images(count: int, folder: Path) -> tuple[Manifest, str]:
    try:
        return subset(read_dataset(split="val"), count), "RSICD val"
    except DataError:
        rng = np.random.default_rng(0)
        rows = []
        for number in range(count):
            pixels = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((224, 224)).save(folder / f"{number}.jpg")
            row = {"sample_id": str(number), "image": f"{number}.jpg", "captions": [f"noise {number}"]}
            rows.append({**row, "domain": "generated", "split": "val"})
        return Manifest.from_rows(rows, folder), "generated JPEGs"


def options_of(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def against_plain_loop(
    ours: Callable[[Manifest], object], manifest: Manifest, rounds: int, name: str, what: str
) -> list[float]:
    """Time `ours` and the plain loop in turn, print a table, and give the ratios of images/s, one a round.

    name: of `ours`; what: the images.
    """
    plain, paths = plain_tower(), manifest.image_paths
    ours(subset(manifest, 64))
    plain_loop(plain, paths[:64])
    speeds: list[tuple[float, float]] = []
    for _ in range(rounds):
        started = time.perf_counter()
        ours(manifest)
        middle = time.perf_counter()
        plain_loop(plain, paths)
        speeds.append((len(manifest) / (middle - started), len(manifest) / (time.perf_counter() - middle)))
    facts = machine_facts()
    ratios = [mine / theirs for mine, theirs in speeds]
    print(f"{len(manifest)} images ({what}), batch 64, {facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}")
    print(f"{'plain eager timm loop':<24}{statistics.median(theirs for _, theirs in speeds):7.1f} images/s (float32)")
    print(f"{name:<24}{statistics.median(mine for mine, _ in speeds):7.1f} images/s")
    print(f"{'ratio':<24}{statistics.median(ratios):7.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    return ratios


def main() -> None:
    options = options_of(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        manifest, what = images(options.images, Path(folder))
        encoder = load_encoder()

        def ours(part: Manifest) -> None:
            embed_images(encoder, part, progress=False)

        ratios = against_plain_loop(ours, manifest, options.rounds, f"embed_images, {encoder.precision}", what)
    claim("features of images: ours / plain timm loop, images/s", ratios, 1)


if __name__ == "__main__":
    main()
