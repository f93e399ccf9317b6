"""Interactive views for notebooks, each with a static twin: `TrainingStepper.figure()` is its picture.

stepper = TrainingStepper(trainer, probe=BatchProbe(trainer), query=QueryProbe(trainer))
stepper             # buttons Step, Run, Pause and Reset over trainer.step(), with live views
stepper.run(20)     # the same from code; this is what papermill runs
stepper.figure()    # the curves so far, for the page; also matrix_figure(), query_figure(), attention_figure()
"""

import asyncio
import html
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import ipywidgets as ipw
import numpy as np

from ucore.device import freed_memory_kept
from ucore.errors import ConfigError, UserError
from ucore.gallery import shortened, simulated_note
from ucore.guards import only_trainer
from ucore.live import curves_html, matrix_html, progress_line
from ucore.picture import Picture
from ucore.query_figures import attention_html, found_html, plot_attention, plot_found
from ucore.visualize import GALLERY, plot_curves, plot_similarity

if TYPE_CHECKING:
    from ucore.probes import QueryProbe
    from ucore.train import Trainer

REDRAW_SECONDS = 0.1  # a view changes at most every tenth of a second
REDRAW_SHARE = 4  # a view rests four times as long as it took, so that training keeps most of the time

# Gives similarity, real (B, T), and positives, bool (B, T), of a batch: for example a `probes.BatchProbe`.
Probe = Callable[[], tuple[np.ndarray, np.ndarray]]


class View(Protocol):
    """One more picture below the curves, with what it has to remember of every step."""

    @property
    def widget(self) -> ipw.Widget:
        """What is shown, the same object every time."""
        ...

    def observe(self) -> None:
        """Look at the step that was just made; called after each."""

    def draw(self) -> None:
        """Bring the widget up to date; called as often as the other views are drawn."""

    def restart(self) -> None:
        """Forget: the trainer is back at its start."""


class TrainingStepper(ipw.VBox):
    """Step, Run, Pause and Reset over `trainer.step()`, with the loss and its parts, recalls, and what probes see.

    In a live notebook a click trains in the kernel's own event loop, which between two steps attends to Pause and
    to other cells. From code, and where no loop runs, `run` makes the steps at once.
    What the user can put right (UserError) ends a run and is shown as its one sentence.

    trainer: has `step()`, `reset()`, `save()`, `step_count`, `total_steps`, `history`, `best`, `finished`, `lr_factor`.
    run_steps: the most steps that one Run makes; None: until training has finished.
    probe: gives a batch's similarity and positives. query: what a validation caption finds, then and now.
    views: more pictures, below the curves. gallery: what the recalls are measured on, in words.
    """

    # Running a cell again makes a new stepper; the one it replaces must not train on, unseen.
    _latest: ClassVar["TrainingStepper | None"] = None

    def __init__(
        self,
        trainer: "Trainer | Any",
        run_steps: int | None = None,
        probe: Probe | None = None,
        query: "QueryProbe | Any | None" = None,
        views: Sequence[View] = (),
        gallery: str = GALLERY,
    ) -> None:
        self.trainer, self.run_steps, self.probe, self.query = trainer, run_steps, probe, query
        parts = (getattr(trainer, name, None) for name in ("train", "finetune", "val"))
        self._note = next((note for part in parts if part is not None and (note := simulated_note(part))), "")
        self.more, self.gallery = views, gallery + self._note
        self.running, self.error, self._clicked_pause = False, "", False
        self.task: asyncio.Task[None] | None = None
        self._next_line = 0.0
        self._weights = _loss_weights(trainer)

        self.step_button = _button("Step", "step-forward", "Make as many steps as it says beside", self._on_step)
        self.run_button = _button("Run", "play", "Train until Pause or the end", self._on_run)
        self.pause_button = _button("Pause", "pause", "Stop after the present step, and save", self._on_pause)
        self.reset_button = _button("Reset", "undo", "To the start; what is saved stays till a step", self._on_reset)
        wide: Any = {"description_width": "initial"}
        self.steps = ipw.BoundedIntText(1, min=1, max=10**6, description="steps a click", tooltip="Steps of one click",
                                        layout={"width": "170px"}, style=wide)  # fmt: skip
        self.rate = ipw.FloatLogSlider(trainer.lr_factor, base=10, min=-1, max=1, step=0.05, readout_format=".2f",
                                       tooltip="Times what the schedule says, from the next step on", style=wide,
                                       description="learning rate ×", layout={"width": "330px"})  # fmt: skip
        self.rate.observe(self._on_rate, "value")
        self.status, self.curves, self.matrix = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.found, self.attention = ipw.HTML(), ipw.HTML()
        offered = [(shortened(text, 90), number) for number, text in enumerate(query.texts if query else ())]
        self.queries = ipw.Dropdown(options=offered, description="Query", tooltip="A caption to find the image of",
                                    layout={"width": "100%", "max_width": "800px"})  # fmt: skip
        self.queries.observe(lambda _: self._draw_query(), "value")
        # Each view with the time from which it may be drawn again.
        self._views: dict[Callable[[], None], float] = {self._draw_curves: 0.0}
        self._views |= {view.draw: 0.0 for view in views}
        shown: list[Any] = [self.curves, *(view.widget for view in views)]
        if query is not None:
            self._views[self._draw_query] = 0.0
            shown += [self.queries, self.found, self.attention]
        if probe is not None:
            self._views[self._draw_matrix] = 0.0
            shown.append(self.matrix)
        buttons = self.step_button, self.steps, self.run_button, self.pause_button, self.reset_button, self.rate
        super().__init__([ipw.HBox(buttons, layout={"flex_flow": "row wrap"}), self.status, *shown])
        if TrainingStepper._latest is not None:
            TrainingStepper._latest.pause()
        TrainingStepper._latest = self
        self._show()

    # --- from code --------------------------------------------------------------------------------------------

    def run(self, n: int | None = None) -> None:
        """Make `n` steps, `run_steps` by default, fewer when training finishes; returns when they are made.

        Raises UserError as `trainer.step` does, after showing it.
        """
        if self.running:
            raise UserError("A run is on: click Pause, or call pause(), and let its step end before you make others.")
        self._begin()
        try:
            for _ in self._stepping(self.run_steps if n is None else n):
                pass
        finally:
            self._end()

    def pause(self) -> None:
        """Let a run end after the step it is in."""
        self.running = False

    def reset(self) -> None:
        """Back to the start of training; nothing while a run is on. Raises UserError as `trainer.reset` does."""
        if self.running:
            return
        self.trainer.reset()
        self.error, self.rate.value = "", self.trainer.lr_factor
        if self.query is not None:
            self.query.restart()
        for view in self.more:
            view.restart()
        self._show()

    def ask(self, number: int) -> "TrainingStepper":
        """Choose one of the offered queries. Raises ConfigError when there is none of that number."""
        if self.query is None or not 0 <= number < len(self.query.texts):
            has = 0 if self.query is None else len(self.query.texts)
            raise ConfigError(f"There is no query {number} among {has}; give QueryProbe(trainer) and a number from 0")
        self.queries.value = number
        return self

    def figure(self) -> Picture:
        """The curves so far, as a figure of its own: the static twin."""
        return plot_curves(self.trainer.history, self._weights, self.gallery)

    def matrix_figure(self) -> Picture | None:
        """The batch's similarities, as a figure of their own; None without a probe."""
        return None if self.probe is None else plot_similarity(*self.probe(), self._matrix_title)

    def query_figure(self) -> Picture | None:
        """What the chosen query finds, as a figure of its own; None without queries."""
        return None if self.query is None else plot_found(self._asked()[0], self.trainer.val)

    def attention_figure(self) -> Picture | None:
        """What segments the chosen query attends to, as a figure of its own; None where there are none."""
        if self.query is None or not (asked := self._asked())[1]:
            return None
        return plot_attention(asked[0], self.trainer.val, asked[1])

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

    def _on_reset(self, _: Any) -> None:
        try:
            self.reset()
        except UserError as error:
            self.error = f"Not reset: {error}"
            self._show_state()

    def _on_rate(self, _: Any) -> None:
        self.trainer.lr_factor = self.rate.value

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
        """Make steps, yielding after each, until the limit, a pause, the end of training or an error; meanwhile no
        other process trains into the folder."""
        done = 0
        try:
            with only_trainer(*self._folder()), freed_memory_kept():
                while self.running and done != limit and self.trainer.step() is not None:
                    done += 1
                    for view in self.more:
                        view.observe()
                    self._show(all_views=False)
                    yield
        except Exception as error:
            self.error = f"Stopped: {error}" if isinstance(error, UserError) else f"Stopped: {error!r}"
            raise

    def _folder(self) -> tuple[Any, Any]:
        """Where the trainer writes, if anywhere, and the mark of what it wrote or read there last."""
        return getattr(self.trainer, "out", None), getattr(self.trainer, "written", None)

    def _end(self) -> None:
        self.running = False
        self._show()
        if self._clicked_pause:  # that button is disabled now
            self._clicked_pause = False
            self.run_button.focus()

    def _show(self, all_views: bool = True) -> None:
        """Bring the line on progress and the views up to date: all, or those whose rest is over."""
        if all_views or time.perf_counter() >= self._next_line:
            self._show_state()
        for draw, earliest in self._views.items():
            started = time.perf_counter()
            if all_views or started >= earliest:
                draw()
                ended = time.perf_counter()
                self._views[draw] = max(started + REDRAW_SECONDS, ended + REDRAW_SHARE * (ended - started))

    def _draw_curves(self) -> None:
        self.curves.value = curves_html(self.trainer.history, self._weights, self.gallery)

    def _draw_matrix(self) -> None:
        assert self.probe is not None
        self.matrix.value = matrix_html(*self.probe(), self._matrix_title)

    def _draw_query(self) -> None:
        found, segments = self._asked()
        self.found.value = found_html(found, self.trainer.val)
        self.attention.value = attention_html(found, self.trainer.val, segments) if segments else ""

    def _asked(self) -> tuple[Any, Any]:
        """What the chosen query finds, and the segments of its own tile, if any."""
        assert self.query is not None
        number: Any = self.queries.value
        return self.query(number), self.query.segments(number)

    @property
    def _matrix_title(self) -> str:
        when = "with the weights kept" if self.trainer.finished else f"after step {self.trainer.step_count:,}"
        return f"The same training pairs {when}{self._note}"

    def _show_state(self) -> None:
        self._next_line = time.perf_counter() + REDRAW_SECONDS
        finished = bool(self.trainer.finished)
        self.step_button.disabled = self.run_button.disabled = self.running or finished
        self.pause_button.disabled = not self.running
        self.reset_button.disabled = self.running
        role = "alert" if self.error else "status"
        told = self.error or progress_line(self.trainer, self.running)
        self.status.value = f'<div role="{role}">{html.escape(told)}</div>'


def _button(name: str, icon: str, tooltip: str, action: Callable[[Any], None]) -> ipw.Button:
    button = ipw.Button(description=name, icon=icon, tooltip=tooltip, layout={"width": "100px"})
    button.on_click(action)
    return button


def _loss_weights(trainer: Any) -> dict[str, float] | None:
    """What the parts of the trainer's loss weigh; None where it does not say."""
    from ucore.fusion import loss_weights  # here, since importing torch takes seconds

    return loss_weights(trainer.config) if hasattr(trainer, "config") else None
