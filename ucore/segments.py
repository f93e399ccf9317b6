"""The segment stage: every image of a manifest cut into segments, at any scale, and features of the chosen crops.

store = segment_dataset(manifest, "sam-micro", "runs/segments")
features, counts = segment_features(encoder, manifest, store, k=10)
"""

import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ucore.config import did_you_mean
from ucore.crop_features import UNHASHED, ImageFile, distinct_images, image_keys, segment_features
from ucore.device import freed_memory_kept, pick_device
from ucore.errors import ConfigError, UserError
from ucore.files import content_hash
from ucore.images import Unreadable, try_image
from ucore.manifest import Manifest, warn_of
from ucore.masks import Segments
from ucore.parallel import Failed, map_stage
from ucore.segment_store import SegmentStore, row_of
from ucore.store import PartStore

__all__ = ["load_generator", "segment_dataset", "segment_features"]

CLASSICAL = ("felzenszwalb", "slic")
SAM_TYPES = ("sam-micro", "vit_h", "vit_l", "vit_b")
VERSION = 1  # of what a row holds
PIXELS_AT_ONCE = 2**25  # of the images that a worker holds: large ones go one by one


class Generator(Protocol):
    """What cuts images into segments: SAM (`mask_generator`) or a classical algorithm (`classical`)."""

    @property
    def name(self) -> str: ...

    def key(self) -> str:
        """16 hex digits that change with weights or settings."""
        ...

    def generate(self, images: Sequence[np.ndarray]) -> list[Segments]:
        """Segments of images uint8 (H, W, 3) of any sizes."""
        ...


def load_generator(spec: str, exact: bool = False, device: str = "auto", like_gpu: bool = False) -> Generator:
    """The generator that `spec` names: sam-micro, vit_h:CHECKPOINT (vit_l, vit_b; file or address), felzenszwalb, slic.

    exact: the mask set of segment_anything's own generator; without it large images are cut into windows (`Mosaic`).
    like_gpu: as of `MaskGenerator`.
    Raises ConfigError for another name, CheckpointError for weights that are absent, damaged or of another type.
    """
    from ucore.mosaic import Mosaic

    kind = spec.partition(":")[0]
    if kind in CLASSICAL:
        if exact:
            raise ConfigError(f"--exact is about Segment Anything's masks; leave it out with {kind}")
        if spec != kind:
            raise ConfigError(f"{kind} takes no checkpoint: write --generator {kind}")
        from ucore.classical import LONGEST, Felzenszwalb, Slic

        return Mosaic(Felzenszwalb() if kind == "felzenszwalb" else Slic(), LONGEST, slack=1.5)
    if kind not in SAM_TYPES:
        known = [*SAM_TYPES, *CLASSICAL]
        raise ConfigError(
            f"Unknown generator {spec!r}{did_you_mean(kind, known) or '.'} "
            f"Choose sam-micro, vit_h:CHECKPOINT, vit_l:CHECKPOINT, vit_b:CHECKPOINT, felzenszwalb or slic"
        )
    from ucore.mask_generator import MaskGenerator
    from ucore.sam import load_sam

    sam = MaskGenerator(load_sam(spec, device), exact=exact, name=kind, like_gpu=like_gpu)
    return sam if exact else Mosaic(sam)


def segment_dataset(
    manifest: Manifest,
    generator: str,
    out: str | Path,
    exact: bool = False,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    batch_size: int = 8,
    progress: bool = True,
) -> SegmentStore:
    """Segments of every image of `manifest`, in OUT/<generator>-<settings>/; a repeated call does what is missing.

    generator: as of `load_generator`. engine, address, workers, batch_size: as of `parallel.map_stage`.
    device: "cuda" also where only the cluster has GPUs. A worker whose masks would be others, because of its hardware
    or its checkpoint, is refused.
    An image is known by its bytes: a changed one is done again, equal ones once. One that cannot be decoded is
    quarantined by name; one that failed otherwise is tried again by the next call. A warning at the end names both.
    Raises ConfigError, CheckpointError as `load_generator`, UserError where another process writes there, or
    every image failed.
    """
    away = engine == "ray" and device.startswith("cuda") and pick_device("auto") == "cpu"
    if workers is None and generator.startswith("vit_") and not (away or pick_device(device).startswith("cuda")):
        if engine == "ray":  # its workers would be as many as the cluster's processors
            raise ConfigError(
                f"Every worker holds {generator.partition(':')[0]} in memory: say with --workers how many the cluster "
                "has room for, or --device cuda for one on each of its GPUs"
            )
        workers = 1  # with all threads
    make = _MakeWorker(generator, exact, device, away)
    gpus = 1.0 if make.on_gpu else 0.0
    if gpus and device.startswith("cuda:"):  # that very one, by this process; on a cluster every worker sees one
        gpus, workers = (1.0, workers) if engine == "ray" else (0.0, 1)
    settings = {"generator": make.generator.name, "exact": exact, "key": make.generator.key(), "version": VERSION}
    make.key = settings["key"]
    name = re.sub(r"[^\w.-]+", "-", make.generator.name)
    store = SegmentStore(Path(out) / f"{name}-{content_hash(settings)}", settings)
    keys = dict(zip(manifest.frame["sample_id"], image_keys(manifest), strict=True))
    with store.parts.writing():
        store.note(keys)
        done = store.parts.done()
        todo = [item for item in distinct_images(keys, manifest) if item.key not in done]
        paths = [str(item.path) for item in todo]
        results = map_stage(make, paths, engine, workers, batch_size, gpus, address, "Segmenting", progress)
        failed = _keep(store.parts, todo, results if todo else iter(()))
        store.write_summary()
    bad = {name: reason for name, reason in store.quarantined().items() if name in keys}
    warn_of(bad, "cannot be read and have no segments")
    warn_of(failed, "failed; repeat the command to retry")
    if failed and len(failed) == len(todo):
        raise UserError(f"All {len(failed):,} images failed, the first one: {next(iter(failed.values()))}.")
    return store


@dataclass
class _MakeWorker:
    """Makes a worker: from paths to rows of the store without key, or `Unreadable`.

    In this process it lends the generator that was loaded to name the folder; it is pickled without it.
    away: the GPUs are the cluster's, so that here the processor only names the folder, as a GPU would.
    """

    spec: str
    exact: bool
    device: str
    away: bool = False
    key: str = ""
    loaded: Generator | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "device": self.device.partition(":")[0], "away": False, "loaded": None}

    @property
    def generator(self) -> Generator:
        if self.loaded is None:
            here = ("cpu", True) if self.away else (self.device, False)
            self.loaded = load_generator(self.spec, self.exact, *here)
        return self.loaded

    @property
    def on_gpu(self) -> bool:
        inner: Any = getattr(self.generator, "generator", self.generator)
        return hasattr(inner, "device") and (self.away or "cuda" in str(inner.device))

    def __call__(self) -> "_Work":
        if self.key and self.generator.key() != self.key:
            raise ConfigError(
                f"The masks made on {socket.gethostname()} would be others than those of this command: it has another "
                f"{self.spec}, or hardware with or without bfloat16. Use equal machines, or --exact"
            )
        return _Work(self.generator)


@dataclass
class _Work:
    generator: Generator

    def __call__(self, paths: list[str]) -> list[dict[str, Any] | Unreadable]:
        results: list[Any] = [None] * len(paths)
        waiting: dict[int, np.ndarray] = {}
        for number, path in enumerate(paths):
            picture = try_image(path)
            if isinstance(picture, Unreadable):
                results[number] = picture
                continue
            image = np.asarray(picture)
            if sum(other.size for other in waiting.values()) + image.size > 3 * PIXELS_AT_ONCE:
                self._segment(waiting, results)
            waiting[number] = image
        self._segment(waiting, results)
        return results

    def _segment(self, waiting: dict[int, np.ndarray], results: list[Any]) -> None:
        if not waiting:
            return
        start = time.perf_counter()
        with freed_memory_kept():
            segments = self.generator.generate(list(waiting.values()))
        seconds = (time.perf_counter() - start) / len(waiting)
        for number, of_image in zip(waiting, segments, strict=True):
            results[number] = row_of("", of_image, seconds)
        waiting.clear()


def _keep(store: PartStore, todo: Sequence[ImageFile], results: Iterator[tuple[int, Any]]) -> dict[str, str]:
    """Store results as they come, in parts, whatever ends the stage; return sample -> reason of those that failed."""
    failed: dict[str, str] = {}
    with store.in_parts() as add:
        for position, result in results:
            item = todo[position]
            if isinstance(result, Unreadable) and (result.lasting or item.key.startswith(UNHASHED)):
                store.quarantine(item.key, item.sample_id, result.reason)
            elif isinstance(result, Failed | Unreadable):
                failed[item.sample_id] = result.reason
            else:
                add({**result, "key": item.key})
    return failed
