"""Captions asked for: what goes to a captioner for each image, in which processes, and answers kept as they come."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ucore.captioner import Captioner, load_captioner
from ucore.crop_features import UNHASHED
from ucore.device import pick_device
from ucore.endpoint import is_address
from ucore.errors import ConfigError, UserError
from ucore.files import content_hash, file_hash
from ucore.images import Unreadable, map_files, picture_pixels, try_image
from ucore.manifest import Manifest
from ucore.parallel import Failed, map_stage
from ucore.store import PartStore

MOST_SIGNS = 20_000  # of a text that is stored
LONGEST = 2048  # pixels of a picture's longer side: captioners look at less
LARGE = 2**24  # pixels of a picture that is decoded alone
GIVE_UP = 100  # failures in a row, with nothing between them, after which no more is asked

_one_large = threading.Lock()


class Item(NamedTuple):
    """What a worker gets: the image's path ("" where none is looked at) and what to ask."""

    path: str
    prompt: str


@dataclass
class MakeWorker:
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
        """The captioner on `device`, kept for a call in this process. Raises as `load_captioner`."""
        self.loaded = load_captioner(self.spec, device, self.prompt, self.max_new_tokens, self.batch_size)
        return self.loaded

    def __call__(self) -> Callable[[list[Item]], list[Any]]:
        """The worker, its model in memory. Raises ConfigError where `spec` is another model on this machine."""
        writer = self.loaded or self.load(self.device)
        if self.key and writer.key() != self.key:
            raise ConfigError(
                f"{self.spec} is another model on {socket.gethostname()} than where this command runs; give all "
                "machines the same"
            )
        writer.load()
        return partial(_answers, writer)


def _answers(writer: Captioner, items: list[Item]) -> list[Any]:
    """One answer an item; images are decoded in threads. What a captioner raises is the stage's to try again."""
    images = _images(items)
    good = [place for place, image in enumerate(images) if not isinstance(image, Unreadable)]
    answers: list[Any] = list(images)
    texts = writer.caption([images[place] for place in good], [items[place].prompt for place in good]) if good else []
    for place, text in zip(good, texts, strict=True):
        answers[place] = text
    return answers


def _images(items: list[Item]) -> list[Any]:
    if len(items) == 1:
        return [_image(items[0].path)]
    with ThreadPoolExecutor(min(len(items), 8)) as pool:
        return list(pool.map(_image, [item.path for item in items]))


def _image(path: str) -> Image.Image | Unreadable | None:
    """The picture, its longer side made at most `LONGEST` pixels; None where the captioner looks at none.

    Large ones are decoded one at a time: a dozen of 10,000 x 10,000 pixels would take 4 GB before they are made small.
    """
    if not path:
        return None
    with _one_large if picture_pixels(path) > LARGE else nullcontext():
        image = try_image(path)
        if isinstance(image, Image.Image):
            image.thumbnail((LONGEST, LONGEST))
    return image


def items_of(manifest: Manifest, writer: Captioner) -> list[Item]:
    """What to ask of every image, in the manifest's order."""
    columns = (manifest.frame[name] for name in ("tags", "surrounding_tags", "sample_id"))
    prompts = [writer.prompt_for(tags, around, sample) for tags, around, sample in zip(*columns, strict=True)]
    paths = [str(path) for path in manifest.image_paths] if writer.needs_images else [""] * len(prompts)
    return [Item(path, prompt) for path, prompt in zip(paths, prompts, strict=True)]


def keys_of(items: Sequence[Item], samples: Sequence[str]) -> list[str]:
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


def asked(
    make: MakeWorker, writer: Captioner, items: list[Item], engine: str, address: str | None,
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


def keep(store: PartStore, todo: Sequence[tuple[str, str]], results: Iterator[tuple[int, Any]]) -> dict[str, str]:
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
