"""Mask generation: segment_anything's SamAutomaticMaskGenerator against ours, exact and fast, side by side in one run.

    python benchmarks/mask_generator.py [--images N] [--rounds R] [--points 32] [--device auto]
    python benchmarks/mask_generator.py --checkpoint vit_h:PATH_OR_URL      # any published weights
    python benchmarks/mask_generator.py --vit-b                             # its size, random weights: speed alone

All three use the same weights, thresholds and images (RSICD's validation tiles where UCORE_DATA is set, simulated ones
otherwise) on the same device. The rounds alternate, so that a drift of the machine's speed meets all. A mask is kept
when one of ours has an intersection over union of at least 0.9 with it; extra masks are ours without such a partner.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import claim
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import Sam

from ucore.data import read_dataset
from ucore.device import pick_device
from ucore.errors import DataError, UserError
from ucore.images import load_image
from ucore.manifest import subset
from ucore.mask_generator import MaskGenerator
from ucore.masks import Segments
from ucore.origin import machine_facts
from ucore.sam import load_sam
from ucore.simulate import simulate_dataset
from ucore.simulated_set import SimulationConfig

KEPT = 0.9


def pictures(count: int) -> tuple[list[np.ndarray], str]:
    """Images uint8 (H, W, 3), spread over the set, and what they are."""
    try:
        manifest = read_dataset(split="val")
        step = max(1, len(manifest) // count)
        paths, what = manifest.image_paths[::step][:count], "RSICD val"
        return [np.asarray(load_image(path)) for path in paths], what
    except DataError:
        with tempfile.TemporaryDirectory() as folder:
            config = SimulationConfig(countries=("finland",), tiles=count, seed=5)
            manifest = subset(simulate_dataset(Path(folder) / "set", config), count)
            return [np.asarray(load_image(path)) for path in manifest.image_paths], "simulated tiles"


def theirs(sam: Sam, ours: MaskGenerator) -> Callable[[Sequence[np.ndarray]], list[list[dict[str, Any]]]]:
    """The original with the thresholds of `ours`."""
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=ours.points_per_side,
        pred_iou_thresh=ours.pred_iou_thresh,
        stability_score_thresh=ours.stability_score_thresh,
        stability_score_offset=ours.stability_score_offset,
        box_nms_thresh=ours.box_nms_thresh,
    )

    return lambda images: [generator.generate(image) for image in images]


def as_segments(records: list[dict[str, Any]], size: tuple[int, ...]) -> Segments:
    """What the original gives for one image, outside the clock."""
    return Segments.from_masks(np.array([record["segmentation"] for record in records], bool).reshape(-1, *size))


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def agreement(wanted: Sequence[Segments], found: Sequence[Segments]) -> tuple[float, float]:
    """Share of the wanted masks that are kept, and masks that are extra as a share of the wanted; percent."""
    total = sum(len(segments) for segments in wanted)
    if not total:
        return float("nan"), float("nan")

    def partners(some: Sequence[Segments], others: Sequence[Segments]) -> int:
        pairs = [(a, b) for a, b in zip(some, others, strict=True) if len(a) and len(b)]
        return sum(int((a.iou(b).max(axis=1) >= KEPT).sum()) for a, b in pairs)

    extra = sum(len(segments) for segments in found) - partners(found, wanted)
    return 100 * partners(wanted, found) / total, 100 * extra / total


def measure(sam: Sam, images: list[np.ndarray], rounds: int, device: str, meaningless: bool, **settings: float) -> None:
    exact, fast = MaskGenerator(sam, exact=True, **settings), MaskGenerator(sam, **settings)  # type: ignore[arg-type]
    ways: dict[str, Callable[[Sequence[np.ndarray]], list[Any]]]
    ways = {"segment_anything": theirs(sam, exact), "ucore exact": exact.generate}
    if not meaningless:  # which clicks it leaves out depends on the masks
        ways["ucore"] = fast.generate
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, list[Any]] = {}
    for way in ways.values() if not meaningless else ():  # a first call is slower; beside vit_b's minutes nothing
        way(images[:1])
    for _ in range(rounds):
        for name, way in ways.items():
            started = clock(device)
            results[name] = way(images)
            seconds[name].append((clock(device) - started) / len(images))
    originals = zip(results["segment_anything"], images, strict=True)
    baseline = results["segment_anything"] = [as_segments(records, image.shape[:2]) for records, image in originals]
    print(f"{'':18}{'s/image':>9}{'ratio':>8}{'masks':>8}{'kept %':>9}{'extra %':>9}   ratios by round")
    for name in ways:
        ratios = [a / b for a, b in zip(seconds["segment_anything"], seconds[name], strict=True)]
        kept, extra = agreement(baseline, results[name])
        quality = f"{'-':>9}{'-':>9}" if meaningless else f"{kept:9.1f}{extra:9.1f}"
        count = sum(len(segments) for segments in results[name]) / len(images)
        speed = f"{statistics.median(seconds[name]):9.3f}{statistics.median(ratios):8.2f}"
        print(f"{name:18}{speed}{count:8.1f}{quality}   {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        if name == "ucore":
            claim("masks: segment_anything's generator / ours, seconds", ratios, 3)
            claim("masks kept of segment_anything's at IoU 0.9 (share)", [kept / 100], 0.95)
        elif name == "ucore exact":
            claim("masks: segment_anything's generator / ours, exact, seconds", ratios, 1)

    if meaningless:
        started = clock(device)
        exact._embed(images[:1])
        encoding = clock(device) - started
        clicks = len(exact.grid)
        each = ", ".join(f"{name} {1000 * (statistics.median(seconds[name]) - encoding) / clicks:.0f}" for name in ways)
        print(f"Encoding takes {encoding:.1f} s of an image; what remains is, in ms a click: {each}.")
        print("Random weights give masks without meaning: agreement says nothing here and is not shown.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=32, help="clicks on a side of the grid")
    parser.add_argument("--device", default="auto")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", default="sam-micro", help="sam-micro, or TYPE:PATH_OR_URL")
    which.add_argument("--vit-b", action="store_true", help="vit_b's size with random weights")
    parser.add_argument("--pred-iou", type=float, help="the model's own threshold by default")
    parser.add_argument("--stability", type=float, help="the model's own threshold by default")
    options = parser.parse_args()
    device = pick_device(options.device)
    images, what = pictures(options.images)
    settings = {"points_per_side": options.points}
    if options.vit_b:
        torch.manual_seed(0)
        sam, name = sam_model_registry["vit_b"]().to(device).eval(), "vit_b's size, random weights"
        settings |= {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.95}  # every click is decoded to its masks
    else:
        sam, name = load_sam(options.checkpoint, device), options.checkpoint
        given = {"pred_iou_thresh": options.pred_iou, "stability_score_thresh": options.stability}
        settings |= {key: value for key, value in given.items() if value is not None}
    facts = machine_facts()
    print(
        f"{name}: {len(images)} images ({what}), {options.points} x {options.points} clicks, on {device}; "
        f"{facts['cpu']}, {facts['cores']} cores, GPU {facts['gpu']}, torch {facts['torch']}"
    )
    measure(sam, images, options.rounds, device, options.vit_b, **settings)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
