"""What keeps a training from harm: one run a folder, no step on what is no number, nothing moved by half a step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ucore import distributed
from ucore.checkpoint_files import state_mark
from ucore.errors import UserError
from ucore.files import atomic_path, only_writer
from ucore.manifest import few

if TYPE_CHECKING:
    from ucore.train import Trainer

LISTED = "stopped_at.txt"  # ids of the batch at which a training stopped


@contextmanager
def only_trainer(out: Path | None, written: tuple[int, ...] | None = None) -> Iterator[None]:
    """Keep other processes from training into `out`.

    written: what `state_mark` gave of the state that this run last wrote or read there. Raises UserError while another
    process trains into it, or where one has done so since.
    """
    if out is None:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        if written is not None and state_mark(out) != written:
            raise UserError(
                f"Another run has trained into {out} since this one stopped there. Go on from that one (resume(), or "
                "repeat the command), or choose another --out."
            )
        yield


def require_finite(trainer: "Trainer", what: str, value: float, rows: np.ndarray) -> None:
    """Raise UserError unless `value`, of the batch of the images `rows`, is a number; its ids are kept in `out`."""
    if math.isfinite(value):
        return
    names = [str(name) for name in trainer.train.frame["sample_id"].iloc[rows]]
    listed = ""
    if trainer.out is not None and distributed.is_first():
        trainer.out.mkdir(parents=True, exist_ok=True)
        with atomic_path(trainer.out / LISTED) as path:
            path.write_text("".join(f"{name}\n" for name in names), "utf-8")
        listed = f" (all {len(names)} in {trainer.out / LISTED})"
    raise UserError(
        f"The {what} is {value} at step {trainer.step_count + 1} ({trainer.phase.name} phase); "
        f"the batch begins with {few(names)}{listed}. "
        "The last checkpoint is kept. Lower the learning rates and train into another --out."
    )


@contextmanager
def statistics_kept(encoder: nn.Module) -> Iterator[None]:
    """Within: what fails, or is stopped, leaves the running statistics of layers that normalise as they were."""
    moving = [
        of_layer for layer in encoder.modules() if layer.training and isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for of_layer in layer.buffers()
    ]  # fmt: skip
    before = [of_layer.clone() for of_layer in moving]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for of_layer, value in zip(moving, before, strict=True):
                of_layer.copy_(value)
        raise
