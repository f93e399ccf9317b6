"""What training leaves behind, step by step: rows of `Trainer.history`, and the same as curves for TensorBoard."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did; `metrics` (validation, percent) only at the end of an epoch."""

    step: int  # counts over both phases, from 1
    phase: str
    epoch: int  # within the phase, from 0
    loss: float
    learning_rate: float  # of the heads
    grad_norm: float  # before clipping
    temperature: float
    parts: dict[str, float] = field(default_factory=dict)  # of the loss, weighted: they add up to it
    lr_factor: float = 1.0  # that all rates of the schedule were multiplied by
    metrics: dict[str, float] | None = None

    def row(self) -> dict[str, Any]:
        """As a plain dictionary, without what is None."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def open_writer(out: Path, step: int) -> Any:
    """TensorBoard's writer into `out`; what an earlier run wrote there from `step` on is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=step)


def write_row(writer: Any, row: dict[str, Any]) -> None:
    """The scalars of one row: train/loss, train/loss_NAME of its parts, rates and norms, val/METRIC."""
    scalars = {name: row[name] for name in ("loss", "learning_rate", "lr_factor", "grad_norm", "temperature")}
    scalars |= {f"loss_{name}": value for name, value in row["parts"].items()}
    for name, value in scalars.items():
        writer.add_scalar(f"train/{name}", value, row["step"])
    for name, value in row.get("metrics", {}).items():
        writer.add_scalar(f"val/{name}", value, row["step"])
