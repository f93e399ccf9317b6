"""The commands of the augmentation stage: `ucore segment`, `ucore caption`, and the training of the bundled models."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ucore.errors import ConfigError, UserError
from ucore.files import require_writable

if TYPE_CHECKING:
    from ucore.manifest import Manifest

Engine = Literal["local", "ray"]
Train = Annotated[Literal["train-micro"], tyro.conf.Positional]


def segment(
    data: Path | None = None,
    generator: str = "sam-micro",
    out: Path = Path("runs/segments"),
    exact: bool = False,
    engine: Engine = "local",
    address: str | None = None,
    workers: int | None = None,
    split: str | None = None,
    domain: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    skip_bad: bool = False,
) -> None:
    """Cut every image of a dataset into segments; a repeated call goes on where it stopped.

    Args:
        data: Dataset folder; without it, the folder that UCORE_DATA names.
        generator: sam-micro (bundled, no download), vit_h:CHECKPOINT, vit_l:CHECKPOINT or vit_b:CHECKPOINT (Segment
            Anything; a file or an address), felzenszwalb or slic (classical).
        out: Folder under which the masks go, each generator and its settings in a folder of their own.
        exact: The very masks of segment_anything's own generator, large images in one piece; somewhat slower.
        engine: local: processes of this machine. ray: a Ray cluster.
        address: Of a running Ray cluster (auto, HOST:6379); without it, Ray is started here for the time.
        workers: Processes; by default one a GPU, or one a core.
        split: Use the images of one split only.
        domain: Use one domain (country, dataset) only.
        limit: Use at most so many images, evenly spread.
        device: auto, cpu, cuda or cuda:N.
        skip_bad: Leave unreadable images out instead of stopping.
    """
    manifest = _images(data, split, domain, limit, skip_bad, out)
    with _going_on(out):
        from ucore.segments import segment_dataset

        started = time.perf_counter()
        store = segment_dataset(manifest, generator, out, exact, engine, address, workers, device)
        seconds = time.perf_counter() - started
    found = store.summary()
    print(
        f"{len(manifest):,} images in {seconds:.1f} s. The folder holds {found['images']:,}, with "
        f"{found['masks_per_image']:.1f} masks an image that cover {found['covered']:.0%}; an image took a worker "
        f"{found['seconds_per_image']:.2f} s."
    )
    print(f"Masks: {store.folder}")
    bad = store.quarantined()
    _all_done(sum(name not in store and name not in bad for name in manifest.frame["sample_id"]))


def caption(
    data: Path | None = None,
    captioner: str = "tags",
    prompt: str = "urbancross",
    out: Path = Path("runs/captions"),
    engine: Engine = "local",
    address: str | None = None,
    workers: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    split: str | None = None,
    domain: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    skip_bad: bool = False,
    into: Literal["description", "captions", "both"] = "description",
    drop: Literal["nothing", "contradicted", "ungrounded"] = "contradicted",
    like: Path | None = None,
    unlike: float = 0.1,
) -> None:
    """Write a description of every image of a dataset, cleaned and compared with its tags; a repeated call goes on.

    Args:
        data: Dataset folder; without it, the folder that UCORE_DATA names.
        captioner: tags (sentences from the tags alone), micro (bundled, no download), the hub name or local folder of
            a transformers image-text-to-text model, or http://HOST:PORT/v1:MODEL (vLLM, Ollama and others).
        prompt: urbancross (the paper's), the name of another prompt that is bundled, or a text file of your own.
        out: Folder under which the captions go, each captioner and its settings in a folder of their own.
        engine: local: processes of this machine. ray: a Ray cluster.
        address: Of a running Ray cluster (auto, HOST:6379); without it, Ray is started here for the time.
        workers: Processes; by default one a GPU, or one a core.
        batch_size: Images that a model describes at once; requests that an endpoint gets at once.
        max_new_tokens: Longest text that a model may write.
        split: Use the images of one split only.
        domain: Use one domain (country, dataset) only.
        limit: Use at most so many images, evenly spread.
        device: auto, cpu, cuda or cuda:N.
        skip_bad: Leave unreadable images out instead of stopping.
        into: Where texts go: description, which is no query; captions, beside those of training images; or both.
        drop: Sentences to leave out: those that tags contradict, also those with things that no tag supports
            (ungrounded), or nothing.
        like: Checkpoint folder of `ucore train`; of the texts for training images, those least like their image by
            that model are left out.
        unlike: Share of those texts that is left out.
    """
    if like is not None and not 0 <= unlike < 1:
        raise ConfigError(f"--unlike is {unlike}; it is a share, from 0 to less than 1")
    manifest = _images(data, split, domain, limit, skip_bad, out)
    with _going_on(out):
        from ucore.captions import caption_dataset

        judge = None
        if like is not None:
            from ucore.checkpoint import load_checkpoint
            from ucore.device import pick_device

            judge, _ = load_checkpoint(like, pick_device(device))
        run = caption_dataset(
            manifest, captioner, out, prompt, engine, address, workers, device, batch_size, max_new_tokens,
            into, drop=drop, judge=judge, unlike=unlike,
        )  # fmt: skip
    report = run.report
    counts = ", ".join(f"{report[name]:,} {name}" for name in ("kept", "changed", "dropped", "without a text"))
    asked, seconds = report["this_call"]["asked"], report["this_call"]["seconds"]
    each = f", {seconds / asked:.2f} s each" if asked else ""
    print(f"{report['images']:,} images: {counts}; {asked:,} were written in this call{each}.")
    if "unlike" in report:
        print(f"{len(report['unlike']):,} texts were least like their images and were left out.")
    print(f"Dataset with these descriptions, and report.json: {run.folder}")
    _all_done(len(report["failed"]))


def _images(
    data: Path | None, split: str | None, domain: str | None, limit: int | None, skip_bad: bool, out: Path
) -> "Manifest":
    """The images to work on. What cannot end well is refused before any model is loaded."""
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it must be at least 1")
    require_writable(out)
    from ucore.data import read_dataset
    from ucore.manifest import subset

    return subset(read_dataset(data, split=split, domain=domain, skip_bad=skip_bad), limit)


def _all_done(failed: int) -> None:
    """Scripts should not take a part for the whole: images that failed give the command a status of its own."""
    if failed:
        raise UserError(f"{failed:,} image(s) failed, as warned above: repeat the command to try them again.")


@contextmanager
def _going_on(out: Path) -> Iterator[None]:
    """Ctrl-C ends the command with what to do next."""
    try:
        yield
    except KeyboardInterrupt:
        raise UserError(f"Stopped. What was finished is kept in {out}: repeat the command to go on.") from None


# --- training of the bundled models -----------------------------------------------------------------------------


def segments(
    command: Train,
    out: Path = Path("runs/sam-micro"),
    data: tuple[Path, ...] = (),
    tiles: int = 800,
    steps: int = 10_000,
    seed: int = 0,
    start: Path | None = None,
    device: str = "auto",
) -> None:
    """Train the bundled sam-micro anew; a repeated call goes on where it stopped.

    It learns from simulated tiles, whose masks are known, and from classical segments of the real images in DATA.

    Args:
        command: The only one there is.
        out: Folder for the weights, the simulated sets and the training's state.
        data: Dataset folders, of whose splits "train" the images are used.
        tiles: Simulated, of each country and camera.
        steps: Of the training, without the 40 % more on whole pictures and the 25 % on closer ones that follow.
        seed: Of every random choice.
        start: Weights that only the last part, on closer pictures, is still to change.
        device: auto, cpu, cuda or cuda:N.
    """
    require_writable(out)
    with _going_on(out):
        from ucore.micro_sam import load_micro_sam
        from ucore.micro_sam_data import training_sources
        from ucore.micro_sam_train import MicroSamConfig, train_micro
        from ucore.simulate import SimulationConfig, simulate_dataset

        if start is not None:
            load_micro_sam(start)  # a mistake is told now, not after minutes of simulating
        sets = []
        for number, sensor in enumerate(("shared", "per-country")):
            sets.append(out / f"simulated-{sensor}")
            simulate_dataset(sets[-1], SimulationConfig(tiles=tiles, sensor=sensor, seed=11 + 100 * seed + number))
        sources = training_sources(sets, data, out / "regions")
        path = train_micro(sources, out, MicroSamConfig(steps=steps, seed=seed), device, start)
    print(f"Weights: {path}")


def captions(
    command: Train,
    out: Path = Path("runs/captioner-micro"),
    data: tuple[Path, ...] = (),
    tiles: int = 1500,
    steps: int = 1800,
    seed: int = 0,
    device: str = "auto",
    skip_bad: bool = False,
) -> None:
    """Train the bundled small captioner anew; a repeated call goes on where it stopped.

    Args:
        command: The only one there is.
        out: Folder for the model, the simulated set and the training's state.
        data: Dataset folders, of whose splits "train" images and captions are used, too.
        tiles: Simulated, of each country.
        steps: Of the training.
        seed: Of every random choice.
        device: auto, cpu, cuda or cuda:N.
        skip_bad: Leave unreadable images out instead of stopping.
    """
    require_writable(out)
    with _going_on(out):
        from ucore.micro_captioner_train import MicroCaptionerConfig, train_micro

        path = train_micro(out, data, MicroCaptionerConfig(steps=steps, seed=seed, tiles=tiles), device, skip_bad)
    print(f"Model: {path}; use it with: ucore caption --captioner {path}")
