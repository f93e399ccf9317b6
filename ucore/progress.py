"""How far a training has come: what a step did, its curves, and the state it goes on from."""

import threading
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucore.checkpoint_files import state_mark
from ucore.config import TrainConfig
from ucore.errors import ConfigError
from ucore.files import content_hash, explained
from ucore.manifest import Manifest
from ucore.origin import code_key

if TYPE_CHECKING:
    from torch import Tensor

    from ucore.segment_store import SegmentStore
    from ucore.train import Trainer

Metrics = dict[str, float]


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
    metrics: Metrics | None = None

    def row(self) -> dict[str, Any]:
        """For the history: what is known, as plain JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class Curves:
    """TensorBoard curves in `folder`: train/loss, train/loss_NAME of its parts, rates and norms, val/METRIC.

    A step that is made again replaces what was drawn of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def add(self, result: StepResult) -> None:
        """Draw a step. Raises UserError where the disk is full: its thread says so when it is next given something."""
        with explained(self.folder):
            self._add(result)

    def _add(self, result: StepResult) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            _hush_its_thread()
            self._writer = SummaryWriter(str(self.folder), purge_step=result.step)
        names = ("loss", "learning_rate", "lr_factor", "grad_norm", "temperature")
        scalars = {name: getattr(result, name) for name in names}
        for name, value in {**scalars, **{f"loss_{part}": value for part, value in result.parts.items()}}.items():
            self._writer.add_scalar(f"train/{name}", value, result.step)
        for name, value in (result.metrics or {}).items():
            self._writer.add_scalar(f"val/{name}", value, result.step)

    def flush(self) -> None:
        """Wait until all that was drawn is in the file. Raises UserError where the disk is full."""
        if self._writer is not None:
            with explained(self.folder):
                self._writer.flush()

    def close(self) -> None:
        """The next step opens them again, and hides what was drawn from it on."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@cache
def _hush_its_thread() -> None:
    """The thread that writes keeps an error for the next call; it shall not print a traceback as well."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__name__ == "_AsyncWriterThread"):
            before(failed)

    threading.excepthook = hook


def made_of(trainer: "Trainer") -> dict[str, Any]:
    """What a run depends on beside its settings, by name, as values that compare: the dataset, the encoder's start.

    Of pictures the sizes of their files count, since to read all of a large set would take longer than many a step.
    """
    encoder, parts = trainer.encoder, {"training": trainer.train, "validation": trainer.val}
    texts = {"training": trainer.texts, "validation": trainer.val.texts[0]}
    return {
        "encoder": encoder.name,
        **asdict(encoder.config),
        "embed_dim": encoder.embed_dim,
        "precision": encoder.precision,
        **trainer.start,
        **{f"{name} images": content_hash(list(part.frame["sample_id"]), _sizes(part)) for name, part in parts.items()},
        **{f"{name} texts": content_hash(of) for name, of in texts.items()},
        "training tags": content_hash(list(map(list, trainer.train.frame["tags"]))) if trainer.config.soft_tags else "",
    }  # fmt: skip


def _sizes(manifest: Manifest) -> list[int]:
    """Bytes of every image file; of one in a shard, whose place is part of its name, 0."""
    return [path.stat().st_size if path.is_file() else 0 for path in manifest.image_paths]


def training_folder(
    place: str | Path,
    name: str,
    config: TrainConfig,
    *data: Manifest,
    start: str | None = None,
    segments: "SegmentStore | None" = None,
) -> Path:
    """`place`/`name`-KEY, with a key of the settings, of images and texts, of the weights to start from, of how the
    segments were made, if there are any, and of the code that trains: what other code has trained, or on other data,
    is neither gone on with nor taken for its own."""
    keys = [part.content_key() for part in data]
    code = code_key(["from ucore.train import Trainer"])
    made = [] if segments is None else [segments.parts.settings]
    return Path(place) / f"{name}-{content_hash(config.to_dict(), keys, start, code, *made)}"


def kept_weights(trainer: "Trainer") -> "dict[str, Tensor]":
    """A copy of all weights of the encoder; of parameters that are not trained, the copy that `best_state` has."""
    before, encoder = trainer.best_state, trainer.encoder
    fixed = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    return {
        name: before[name] if name in fixed and name in before else value.detach().clone()
        for name, value in encoder.state_dict().items()
    }


def run_state(trainer: "Trainer", phase: dict[str, Any] | None) -> dict[str, Any]:
    """All that `restore` needs; `phase` is the state of the phase under way, if one is."""
    return {
        "config": trainer.config.to_dict(), "made_of": trainer.made_of, "phase_number": trainer.phase_number,
        "step_count": trainer.step_count, "best": trainer.best, "history": trainer.history,
        "seconds": trainer.seconds, "finished": trainer.finished, "origin": trainer.origin, "phase": phase,
        "encoder": trainer.encoder.state_dict(), "best_state": trainer.best_state,
        "lr_factor": float(trainer.lr_factor),
    }  # fmt: skip


def refuse_other_run(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Raise ConfigError, naming what differs, where `state` is of a run with other settings or data."""
    mine = trainer.config.to_dict()
    changed = [
        f"{name} {state['config'].get(name)!r} -> {mine[name]!r}"
        for name in mine
        if state["config"].get(name) != mine[name]
    ]
    before = state["made_of"]
    for name in dict.fromkeys([*trainer.made_of, *before]):
        value = trainer.made_of.get(name)
        if before.get(name) != value:
            told = isinstance(value, int | float) or name in ("encoder", "precision")
            changed.append(f"{name} {before.get(name)!r} -> {value!r}" if told else f"other {name}")
    if changed:
        raise ConfigError(
            f"{trainer.out} holds a run with other settings ({'; '.join(changed[:4])}); "
            "choose another --out, or --restart"
        )


def restore(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Bring `trainer` to where `run_state` was taken, but for its phase. Raises as `refuse_other_run`."""
    refuse_other_run(trainer, state)
    trainer.written = None if trainer.out is None else state_mark(trainer.out)
    trainer.phase_number, trainer.step_count = state["phase_number"], state["step_count"]
    trainer.best, trainer.history, trainer.seconds = state["best"], state["history"], state["seconds"]
    trainer.finished, trainer.best_state, trainer.origin = state["finished"], state["best_state"], state["origin"]
    trainer.lr_factor = state.get("lr_factor", 1.0)
    trainer.encoder.load_state_dict(state["encoder"])
    trainer.encoder.eval()  # a phase made before would have left parts of it in training mode
