"""Interactive views for notebooks, each with a static twin: `TrainingStepper.figure()` is its picture.

stepper = TrainingStepper(trainer, probe=BatchProbe(trainer))
stepper             # buttons Step, Run and Pause over trainer.step(), with live curves
stepper.run(20)     # the same from code; this is what papermill runs
stepper.figure()    # the curves so far, for the page
"""

import asyncio
import html
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as ipw
import numpy as np

from ucore.errors import UserError
from ucore.visualize import WIDTH, Picture, plot_curves, plot_similarity

if TYPE_CHECKING:
    from ucore.train import Trainer

REDRAW_SECONDS = 0.2  # the view changes at most every fifth of a second
REDRAW_SHARE = 4  # pictures rest four times as long as they took, so that training keeps most of the time
DPI = 110

# Gives similarity, real (B, T), and positives, bool (B, T), of a batch.
Probe = Callable[[], tuple[np.ndarray, np.ndarray]]


class BatchProbe:
    """The same few training pairs, compared anew at every call: watch their diagonal light up.

    Calling it gives similarity float32 (size, size) of images and captions and positives bool (size, size), with
    the weights as they are, without dropout or augmentation and with no effect on training.
    """

    def __init__(self, trainer: "Trainer", size: int = 24) -> None:
        from ucore.features import pixel_batches  # here, since a stepper without a probe needs no torch

        rows = np.random.default_rng(trainer.config.seed).permutation(len(trainer.train))[:size]
        texts = trainer.first_text[rows]
        self.encoder, self.positives = trainer.encoder, trainer.positives(rows, texts)
        (self.pixels,) = pixel_batches(self.encoder, trainer.train.image_paths, [rows.tolist()])
        self.tokens = self.encoder.tokenize([trainer.texts[text] for text in texts])

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        with self.encoder.evaluating():
            image, text = self.encoder.encode_image(self.pixels), self.encoder.encode_text(self.tokens)
            return (image @ text.T).cpu().numpy(), self.positives


class TrainingStepper(ipw.VBox):
    """Step, Run and Pause over `trainer.step()`, with the loss, the validation recalls and a line on progress.

    In a live notebook a click trains in the kernel's own event loop, which between two steps attends to Pause and
    to other cells. From code, and where no loop runs, `run` makes the steps at once.
    What the user can put right (UserError) ends a run and is shown as its one sentence.

    trainer: has `step()`, `step_count`, `total_steps`, `history`, `best`, `finished` and `save()`.
    run_steps: the most steps that one Run makes; None: until training has finished.
    probe: gives a batch's similarity and positives, drawn below the curves; for example a `BatchProbe`.
    """

    # Running a cell again makes a new stepper; the one it replaces must not train on, unseen.
    _latest: ClassVar["TrainingStepper | None"] = None

    def __init__(self, trainer: "Trainer | Any", run_steps: int | None = None, probe: Probe | None = None) -> None:
        self.trainer, self.run_steps, self.probe = trainer, run_steps, probe
        self.running, self.error, self._clicked_pause = False, "", False
        self.task: asyncio.Task[None] | None = None
        self._curves: Picture | None = None
        self._matrix: Picture | None = None
        self._next_draw = self._next_line = 0.0

        self.step_button = _button("Step", "step-forward", "Make the number of steps given beside", self._on_step)
        self.run_button = _button("Run", "play", "Train until Pause or the end", self._on_run)
        self.pause_button = _button("Pause", "pause", "Stop after the present step, and save", self._on_pause)
        self.steps = ipw.BoundedIntText(1, min=1, max=10**6, description="steps a click", tooltip="Steps of one click",
                                        layout={"width": "170px"}, style={"description_width": "initial"})  # fmt: skip
        self.status = ipw.HTML()
        wide = {"width": "100%", "max_width": f"{100 * WIDTH:.0f}px", "object_fit": "contain"}
        self.curves_image = ipw.Image(format="png", layout=wide)
        self.matrix_image = ipw.Image(format="png", layout=wide)
        controls = ipw.HBox([self.step_button, self.steps, self.run_button, self.pause_button])
        pictures = [self.curves_image, self.matrix_image] if probe else [self.curves_image]
        super().__init__([controls, self.status, *pictures])
        if TrainingStepper._latest is not None:
            TrainingStepper._latest.pause()
        TrainingStepper._latest = self
        self._show()

    # --- from code --------------------------------------------------------------------------------------------

    def run(self, n: int | None = None) -> None:
        """Make `n` steps, `run_steps` by default, fewer when training finishes; returns when they are made.

        Raises UserError as `trainer.step` does, after showing it.
        """
        self._begin()
        try:
            for _ in self._stepping(self.run_steps if n is None else n):
                pass
        finally:
            self._end()

    def pause(self) -> None:
        """Let a run end after the step it is in."""
        self.running = False

    def figure(self) -> Picture:
        """The curves so far, as a figure of its own: the static twin."""
        return plot_curves(self.trainer.history)

    # --- buttons ----------------------------------------------------------------------------------------------

    def _on_step(self, _: Any) -> None:
        self._start(self.steps.value)

    def _on_run(self, _: Any) -> None:
        self._start(self.run_steps)
        if self.running:
            self.pause_button.focus()  # a disabled button loses the keyboard's focus

    def _on_pause(self, _: Any) -> None:
        if not self.running:
            return
        self.pause()
        self._clicked_pause = True
        try:
            self.trainer.save()  # the click is attended to between two steps
        except UserError as error:
            self.error = f"Not saved: {error}"

    def _start(self, limit: int | None) -> None:
        if self.running:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            with suppress(UserError):  # shown
                self.run(limit)
            return
        self._begin()
        self.task = loop.create_task(self._run_between_messages(limit))

    async def _run_between_messages(self, limit: int | None) -> None:
        try:
            with suppress(UserError):  # shown
                for _ in self._stepping(limit):
                    await asyncio.sleep(0)
        finally:
            self._end()

    # --- one run ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.running, self.error = True, ""
        self._show_state()

    def _stepping(self, limit: int | None) -> Iterator[None]:
        """Make steps, yielding after each, until the limit, a pause, the end of training or an error."""
        done = 0
        try:
            while self.running and done != limit and self.trainer.step() is not None:
                done += 1
                now = time.perf_counter()
                if now >= self._next_draw:
                    self._show()
                elif now >= self._next_line:
                    self._show_state()
                yield
        except Exception as error:
            self.error = f"Stopped: {error}" if isinstance(error, UserError) else f"Stopped: {error!r}"
            raise

    def _end(self) -> None:
        self.running = False
        self._show()
        if self._clicked_pause:  # that button is disabled now
            self._clicked_pause = False
            self.run_button.focus()

    def _show(self) -> None:
        """Bring the line on progress and the pictures up to date."""
        started = time.perf_counter()
        self._show_state()
        # Drawn into the same two figures for ever, so that memory does not grow.
        self._curves = plot_curves(self.trainer.history, self._curves)
        self.curves_image.value = self._curves.png(DPI)
        if self.probe is not None:
            when = "with the weights kept" if self.trainer.finished else f"after step {self.trainer.step_count:,}"
            self._matrix = plot_similarity(*self.probe(), f"The same training pairs {when}", self._matrix)
            self.matrix_image.value = self._matrix.png(DPI)
        ended = time.perf_counter()
        self._next_draw = ended + max(REDRAW_SECONDS, REDRAW_SHARE * (ended - started))

    def _show_state(self) -> None:
        self._next_line = time.perf_counter() + REDRAW_SECONDS
        finished = bool(self.trainer.finished)
        self.step_button.disabled = self.run_button.disabled = self.running or finished
        self.pause_button.disabled = not self.running
        role = "alert" if self.error else "status"
        self.status.value = f'<div role="{role}">{html.escape(self.error or self._progress())}</div>'

    def _progress(self) -> str:
        """One line: where training stands and what the last step and the best epoch were like."""
        trainer = self.trainer
        parts = [f"Step {trainer.step_count:,} of at most {trainer.total_steps:,}"]
        if trainer.finished:
            parts = [f"Finished after {trainer.step_count:,} steps"]
        elif self.running and not trainer.history:
            parts.append("features come first, which can take minutes")
        if trainer.history:
            last = trainer.history[-1]
            parts.append(f"phase {last['phase']}, epoch {last['epoch'] + 1}, loss {last['loss']:.3f}")
        if trainer.best.get("step"):
            parts.append(f"best validation mR {trainer.best['mR']:.2f} % at step {trainer.best['step']:,}")
        return " · ".join(parts)


def _button(name: str, icon: str, tooltip: str, action: Callable[[Any], None]) -> ipw.Button:
    button = ipw.Button(description=name, icon=icon, tooltip=tooltip, layout={"width": "100px"})
    button.on_click(action)
    return button
