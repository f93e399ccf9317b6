"""The command line: `ucore train`, `eval`, `adapt`, `run`, `reproduce`, `data`, `simulate`, `segment`, `caption`,
`index`, `search`, `map`, `app`.

A command imports what it needs.
"""

import errno
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ucore.cli_adapt import adapt, untouched
from ucore.cli_augment import caption, captions, segment, segments
from ucore.cli_data import data, simulate
from ucore.cli_index import index_command
from ucore.cli_reproduce import diff, reproduce
from ucore.cli_search import app, draw_map, search
from ucore.errors import ConfigError, UserError, printable
from ucore.files import explain, require_writable
from ucore.signals import TERMINATED, terminated, termination

if TYPE_CHECKING:
    from ucore.segment_store import SegmentStore

Settings = Annotated[
    list[str],
    tyro.conf.arg(name="set", aliases=["-s"], metavar="NAME=VALUE", help="Any setting of TrainConfig; repeatable."),
    tyro.conf.UseAppendAction,
]
Parameters = Annotated[
    list[str],
    tyro.conf.arg(name="parameter", aliases=["-p"], metavar="NAME=VALUE", help="A notebook parameter; repeatable."),
    tyro.conf.UseAppendAction,
]


def train(
    data: Path | None = None,
    encoder: str = "lite0-minilm",
    pretrained: str | None = None,
    scale: str = "small",
    method: str = "ucore",
    seed: int = 0,
    out: Path = Path("runs/train"),
    domain: str | None = None,
    settings: Settings = [],  # noqa: B006 - tyro reads the default, nobody changes it
    segments: Path | None = None,
    cache: Path = Path("runs/features"),
    device: str = "auto",
    skip_bad: bool = False,
    restart: bool = False,
) -> None:
    """Train on the split "train", choose by mR on the whole split "val"; a repeated call goes on where it stopped.

    Args:
        data: Dataset folder; without it, the folder that UCORE_DATA names.
        encoder: lite0-minilm (bundled, no download) or any open_clip architecture.
        pretrained: open_clip hub tag or local weight file, for open_clip architectures.
        scale: tiny (a minute on two cores), small (forty minutes) or full (GPU).
        method: ucore (the best we found) or paper (UrbanCross as published, its mistakes corrected; needs segments).
        seed: Of every random choice.
        out: Folder for the checkpoint, validation.json, split.json and TensorBoard curves.
        domain: Use one domain (country, dataset) only.
        segments: Folder of masks that `ucore segment` wrote for this data: trains with them, pooled as -s segments=
            mean (of method paper), attention or late (of method ucore) says.
        cache: Folder for tower features, shared between runs.
        device: auto, cpu, cuda or cuda:N. Of processes that torchrun started, each takes a GPU of its own.
        skip_bad: Leave unreadable images out instead of stopping.
        restart: Forget an earlier run in OUT.
    """
    from ucore.config import TrainConfig
    from ucore.notebooks import parse_parameters

    started = time.perf_counter()
    pooled = {} if segments is None or method == "paper" else {"segments": "late"}
    values: dict[str, Any] = {"scale": scale, "method": method, "seed": seed, **pooled}
    values |= parse_parameters(settings)
    config = TrainConfig.at(str(values.pop("scale")), **values)
    config.require_masks(segments is not None)
    seed = config.seed
    for folder in (out, cache):
        require_writable(folder)
    with _progress("Loading libraries and data"):
        from ucore.data import read_dataset

        # Before torch is imported, which takes seconds: a wrong folder is refused at once.
        manifest = read_dataset(data, split=("train", "val"), domain=domain, skip_bad=skip_bad)

        import torch

        from ucore import distributed
        from ucore.model import load_encoder
        from ucore.origin import peak_memory_gb
        from ucore.tasks import metrics_text, ties_text, train_checkpoint, write_metrics

        device = distributed.join(device)
        torch.manual_seed(seed)  # the heads' first weights
        model = load_encoder(encoder, pretrained, device=device)
    train_part, val_part = manifest.split("train"), manifest.split("val")
    texts = val_part.texts[0]
    print(f"{len(train_part):,} training and {len(val_part):,} validation images; {model.precision} on {model.device}")
    print(f"Validation has {len(texts):,} captions, {len(set(texts)):,} of them distinct.")
    trainer, plain, corrected = train_checkpoint(
        model, train_part, val_part, config, out, cache, restart, segments=_store(segments), everything=manifest
    )  # fmt: skip
    if not distributed.is_first():
        return
    seconds = {**trainer.seconds, "evaluation": sum(plain.seconds.values()), "total": time.perf_counter() - started}
    write_metrics(
        out / "validation.json",
        [*plain.rows("cosine", seed), *corrected.rows("hubs corrected", seed)],
        val_part,
        f"ucore train --encoder {encoder} --scale {config.scale} --seed {seed}",
        split="val",
        seed=seed,
        parameters=config.to_dict(),
        encoder=encoder,
        seconds=seconds,
        peak_memory_gb=peak_memory_gb(),
    )
    print("Validation, cosine:\n" + metrics_text(*plain.metrics(seed=seed)))
    print("Validation, hubs corrected:\n" + metrics_text(*corrected.metrics(seed=seed)))
    print(ties_text(corrected, seed))
    print("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    print(f"Peak memory {peak_memory_gb():.2f} GB. Checkpoint and validation.json: {out}")


def _store(folder: Path | None) -> "SegmentStore | None":
    """The masks in a folder, which must be there."""
    from ucore.segment_store import SegmentStore

    return None if folder is None else SegmentStore(folder)


def evaluate(
    checkpoint: Path,
    data: Path | None = None,
    split: str = "test",
    out: Path = Path("scores.npz"),
    domain: str | None = None,
    views: int | None = None,
    correct_hubs: bool = True,
    segments: Path | None = None,
    splits: Path | None = None,
    device: str = "auto",
    skip_bad: bool = False,
) -> None:
    """Score the whole gallery of a split with a checkpoint; writes scores.npz and metrics.json beside it.

    Args:
        checkpoint: Folder that `ucore train` wrote.
        data: Dataset folder; without it, the folder that UCORE_DATA names.
        split: Which split to score; its images alone need to be there.
        out: Where scores.npz goes.
        domain: Score one domain (country, dataset) only.
        views: Dihedral views averaged per image (1, 2, 4, 8); default: as the checkpoint was trained to use.
        correct_hubs: Lower the scores of texts and images that fit much of the training data; otherwise plain cosines.
        segments: Folder of masks that `ucore segment` wrote for these images; wanted by a checkpoint trained with any.
        splits: split.json in place of the dataset's own splits. That of an adaptation to this data is found by itself.
        device: auto, cpu, cuda or cuda:N.
        skip_bad: Leave unreadable images out instead of stopping.
    """
    if views not in (None, 1, 2, 4, 8):
        raise ConfigError(f"--views is {views}; choose 1, 2, 4 or 8")
    if out.is_dir() or out.suffix != ".npz":
        raise ConfigError(f"--out {out} must be a file name that ends in .npz, for example scores.npz")
    require_writable(out.parent)
    with _progress("Loading libraries, data and checkpoint"):
        from ucore.data import read_dataset

        manifest = read_dataset(data, split=None if splits else split, domain=domain, skip_bad=skip_bad)
        if splits is not None:
            from ucore.splits import load_split

            manifest = load_split(manifest, splits).split(split)
        from ucore.checkpoint import load_bank, load_checkpoint
        from ucore.config import TrainConfig
        from ucore.device import pick_device
        from ucore.tasks import metrics_text, score, ties_text, write_metrics

        model, card = load_checkpoint(checkpoint, pick_device(device))
        bank = load_bank(checkpoint) if correct_hubs else None
        if splits is None:
            everything = partial(read_dataset, data, domain=domain, skip_bad=skip_bad)
            scored, manifest = manifest, untouched(checkpoint, "adapt" in card, manifest, split, everything)
            splits = None if manifest is scored else checkpoint / "split.json"
    views = views or int(card["train"]["test_views"])
    if segments is not None and model.segments is None:
        raise ConfigError(f"{checkpoint} was trained without segments: leave --segments out")
    store = _store(segments)
    scores = score(model, manifest, views, segments=store, config=TrainConfig.from_dict(card["train"]))
    started = time.perf_counter()
    scores = scores if bank is None else scores.corrected(model, bank)
    metrics = scores.metrics()
    rows = scores.rows("checkpoint")
    seconds = {**scores.seconds, "metrics": time.perf_counter() - started}
    parts = "" if splits is None else f" --splits {splits.name}"
    scores.save(out)
    write_metrics(
        out.with_name("metrics.json"),
        rows,
        manifest,
        f"ucore eval --split {split} --views {views}{'' if bank is not None else ' --no-correct-hubs'}{parts}",
        split=split,
        seed=int(card["train"]["seed"]),
        parameters={"views": views, "hubs_corrected": bank is not None},
        encoder=card["encoder"],
        trained=card["train"],
        seconds=seconds,
    )
    hubs = "corrected" if bank is not None else "not corrected"
    print(f"{len(manifest):,} images, {scores.similarity.shape[1]:,} texts, {views} view(s) an image; hubs {hubs}.")
    print("Standard protocol:")
    print(metrics_text(*metrics))
    print(ties_text(scores))
    print("Duplicate-aware protocol:")
    print(metrics_text(*scores.metrics(duplicate_aware=True)))
    print("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    print(f"Wrote {out} and {out.with_name('metrics.json')}")


def run(
    notebook: Annotated[str, tyro.conf.Positional],
    parameters: Parameters = [],  # noqa: B006
    out: Path = Path("runs/notebooks"),
    list_parameters: bool = False,
) -> None:
    """Run one notebook with papermill, strictly: an unknown parameter or a failed cell is an error.

    Args:
        notebook: Its number ("04"), name or path.
        out: Folder for the executed notebook and its HTML.
        list_parameters: Print the notebook's parameters and stop.
    """
    from ucore.notebooks import notebook_help, parse_parameters
    from ucore.runner import run_notebook

    if list_parameters:
        print(notebook_help(notebook))
        return
    result = run_notebook(notebook, parse_parameters(parameters), out)
    print(f"{result.path.stem} ran in {result.seconds:.1f} s: {result.path} and {result.html}")


class _progress:
    """Says what takes the next seconds, on a terminal: importing torch alone takes several."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> None:
        if sys.stderr.isatty():
            print(f"{self.text} ...", end="\r", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print(" " * (len(self.text) + 4), end="\r", file=sys.stderr, flush=True)


def main() -> None:
    """Entry point. Exit status: 0 done, 1 a notebook's cell failed, 2 something to put right, 143 ended by SIGTERM."""
    commands = {
        "train": train,
        "eval": evaluate,
        "adapt": adapt,
        "run": run,
        "reproduce": reproduce,
        "diff": diff,
        "data": data,
        "simulate": simulate,
        "segment": segment,
        "caption": caption,
        "segments": segments,
        "captions": captions,
        "index": index_command,
        "search": search,
        "map": draw_map,
        "app": app,
    }
    usual, warnings.formatwarning = warnings.formatwarning, _format_warning
    about = "Cross-domain satellite image-text retrieval."
    try:
        if sum(part.split("=")[0] == "--data" for part in sys.argv) > 1:  # tyro would take the last and say nothing
            raise ConfigError("--data is given twice. Write it once; several folders stand one after the other.")
        with termination():
            tyro.extras.subcommand_cli_from_dict(commands, prog="ucore", description=about, sort_subcommands=False)
    except UserError as error:
        _stop(str(error), 2)
    except KeyboardInterrupt:
        _stop("Stopped.", 2)
    except BrokenPipeError:  # | head
        sys.stderr.close()
    except OSError as error:  # where no writer has said it: a folder that could not be made, for one
        if error.filename is None:
            raise
        place = Path(os.fsdecode(error.filename))
        told = explain(error, place) if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else None
        _stop(str(told or UserError(f"Cannot use {place} ({error.strerror}). Check that path and its rights.")), 2)
    except MemoryError:
        _stop("There is too little memory. Use fewer --workers, fewer images at once, or another machine.", 2)
    except Exception as error:
        if type(error).__name__ != "NotebookError":
            raise
        _stop(str(error), 1)
    finally:
        warnings.formatwarning = usual


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What readers warn of is about the user's data, not about a line of Python."""
    message = printable(str(message))
    return f"Note: {message}\n" if category is UserWarning else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _stop(text: str, status: int) -> None:
    print(f"ucore: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(TERMINATED if terminated() else status)
