"""The stepper trains as its buttons say, answers while it runs, and shows what the trainer says."""

import asyncio
import gc
import re
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_visualize import make_history

import ucore.widgets
from ucore.data import read_dataset
from ucore.errors import CheckpointError, ConfigError, UserError
from ucore.guards import only_trainer
from ucore.live import curves_html
from ucore.probes import Found
from ucore.visualize import plot_curves
from ucore.widgets import TrainingStepper


class FakeTrainer:
    """Steps through a ready history; `fails_at` raises `error` in place of that step."""

    def __init__(self, steps: int = 12, fails_at: int = 0, error: Exception | None = None) -> None:
        self.ready = make_history(heads=steps, per_epoch=max(2, steps // 5))
        self.fails_at, self.error = fails_at, error
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"mR": -1.0}
        self.total_steps, self.saved, self.lr_factor = steps, 0, 1.0
        for row in self.ready:
            row["epoch"] = (row["step"] - 1) // 2

    @property
    def step_count(self) -> int:
        return len(self.history)

    @property
    def finished(self) -> bool:
        return self.step_count == self.total_steps

    def step(self) -> dict[str, Any] | None:
        if self.finished:
            return None
        if self.step_count + 1 == self.fails_at and self.error:
            raise self.error
        self.history.append(self.ready[self.step_count])
        metrics = self.history[-1].get("metrics")
        if metrics and metrics["mR"] > self.best["mR"]:
            self.best = {**metrics, "step": self.step_count}
        return self.history[-1]

    def save(self) -> None:
        self.saved += 1

    def reset(self) -> None:
        self.history, self.best, self.lr_factor = [], {"mR": -1.0}, 1.0


def said(stepper: TrainingStepper) -> str:
    """The status line as it is read, and that its role fits."""
    found = re.fullmatch(r'<div role="(status|alert)">(.*)</div>', stepper.status.value)
    assert found
    assert (found[1] == "alert") == bool(stepper.error)
    return found[2]


def enabled(stepper: TrainingStepper) -> list[str]:
    buttons = (stepper.step_button, stepper.run_button, stepper.pause_button, stepper.reset_button)
    return [button.description for button in buttons if not button.disabled]


async def until(condition: Any) -> None:
    """Let the loop turn until `condition()`, or fail."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never came true")


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by hand."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(ucore.widgets.time, "perf_counter", lambda: clock.now)
    return clock


# --- without an event loop: scripts, papermill ------------------------------------------------------------------


def test_a_click_on_step_makes_as_many_steps_as_asked():
    trainer = FakeTrainer()
    stepper = TrainingStepper(trainer)
    assert trainer.step_count == 0
    stepper.step_button.click()
    assert trainer.step_count == 1
    stepper.steps.value = 4
    stepper.step_button.click()
    assert trainer.step_count == 5
    assert "Step 5 of at most 12 · phase heads, epoch 3, loss 4.600" in said(stepper)
    assert "best validation mR 30.00 % at step 4" in said(stepper)
    assert enabled(stepper) == ["Step", "Run", "Reset"]


def test_run_from_code_makes_that_many_steps_and_ends_with_training():
    trainer = FakeTrainer()
    stepper = TrainingStepper(trainer, run_steps=3)
    stepper.run(2)
    assert trainer.step_count == 2
    stepper.run()
    assert trainer.step_count == 5
    stepper.run(0)
    assert trainer.step_count == 5
    stepper.run(100)
    assert trainer.step_count == 12
    assert said(stepper).startswith("Finished after 12 steps")
    assert enabled(stepper) == ["Reset"]
    stepper.run(1)
    assert trainer.step_count == 12


def test_the_live_view_and_the_static_twin_show_the_whole_history():
    trainer = FakeTrainer()
    stepper = TrainingStepper(trainer)
    before = stepper.curves.value
    stepper.run(7)
    assert stepper.curves.value == curves_html(trainer.ready[:7]) != before
    assert stepper.figure().png(50) == plot_curves(trainer.ready[:7]).png(50)
    assert stepper.matrix_figure() is stepper.query_figure() is stepper.attention_figure() is None


def test_reset_begins_anew_and_takes_the_rate_back():
    trainer = FakeTrainer()
    stepper = TrainingStepper(trainer)
    fresh = stepper.curves.value, stepper.status.value
    stepper.rate.value = 3.0
    assert trainer.lr_factor == 3.0
    stepper.run(12)
    stepper.reset_button.click()
    assert (stepper.curves.value, stepper.status.value) == fresh
    assert stepper.rate.value == trainer.lr_factor == 1.0
    assert enabled(stepper) == ["Step", "Run", "Reset"]
    stepper.step_button.click()
    assert trainer.step_count == 1


def test_a_reset_that_fails_says_so():
    trainer = FakeTrainer()

    def reset() -> None:
        raise UserError("No <room>.")

    trainer.reset = reset
    stepper = TrainingStepper(trainer)
    stepper.reset_button.click()
    assert said(stepper) == "Not reset: No &lt;room&gt;."


def test_the_line_on_progress_names_the_parts_of_the_loss():
    trainer = FakeTrainer()
    trainer.ready[0]["parts"] = {"image_text": 4.0, "segment_text": 1.0}
    stepper = TrainingStepper(trainer)
    stepper.run(1)
    assert "loss 5.000 (image-text 4.000 + segment-text 1.000)" in said(stepper)
    stepper.run(1)
    assert "loss 4.900" in said(stepper) and "image-text" not in said(stepper)


def test_a_mistake_of_the_user_is_shown_as_its_sentence_and_reaches_the_caller_of_run():
    trainer = FakeTrainer(fails_at=3, error=UserError("The loss is nan at <step> 3. Lower the rates."))
    stepper = TrainingStepper(trainer)
    with pytest.raises(UserError, match="loss is nan"):
        stepper.run(5)
    assert trainer.step_count == 2
    assert said(stepper) == "Stopped: The loss is nan at &lt;step&gt; 3. Lower the rates."
    assert enabled(stepper) == ["Step", "Run", "Reset"]
    trainer.fails_at = 0
    stepper.run(1)  # the sentence goes with the next run
    assert said(stepper).startswith("Step 3")


def test_while_another_trains_into_the_folder_no_step_is_made(tmp_path):
    trainer = FakeTrainer()
    trainer.out = tmp_path / "run"  # type: ignore[attr-defined]
    stepper = TrainingStepper(trainer)
    with only_trainer(tmp_path / "run"):
        with pytest.raises(UserError, match="Another process is writing into"):
            stepper.run(2)
        assert trainer.step_count == 0
        assert "Another process" in said(stepper)
    stepper.run(2)
    assert trainer.step_count == 2
    with only_trainer(tmp_path / "run"):  # and the stepper lets go of it
        pass


def test_a_click_shows_the_mistake_and_raises_nothing():
    stepper = TrainingStepper(FakeTrainer(fails_at=1, error=UserError("No space left.")))
    stepper.run_button.click()
    assert said(stepper) == "Stopped: No space left."


def test_a_defect_is_not_hidden():
    stepper = TrainingStepper(FakeTrainer(fails_at=1, error=ValueError("bad shape")))
    with pytest.raises(ValueError, match="bad shape"):
        stepper.run(1)
    assert said(stepper) == "Stopped: ValueError(&#x27;bad shape&#x27;)"
    assert enabled(stepper) == ["Step", "Run", "Reset"]


def test_controls_have_names_and_say_what_they_do():
    stepper = TrainingStepper(FakeTrainer())
    for control in (*stepper.children[0].children, stepper.queries):
        assert control.description
        assert control.tooltip


def test_a_thousand_steps_redraw_often_enough_and_leave_nothing_behind(clock, monkeypatch):
    trainer = FakeTrainer(1000)
    make_step, drawn = trainer.step, []
    monkeypatch.setattr(ucore.widgets, "curves_html", lambda *given: drawn.append(clock.now) or curves_html(*given))

    def step() -> Any:
        clock.now += 0.0025
        return make_step()

    trainer.step = step
    stepper = TrainingStepper(trainer)
    drawn.clear()
    gc.collect()
    tracemalloc.start()
    try:
        stepper.run(300)
        early = tracemalloc.get_traced_memory()[0]
        stepper.run()
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert late - early < 300_000  # 700 steps; ten views of 40 kB that stayed would be more
    assert trainer.step_count == 1000
    assert 5 * 2.5 <= len(drawn) <= 10 * 2.5 + 3  # two and a half seconds
    assert drawn[-1] == clock.now  # the last step is in the view


def test_a_slow_view_is_drawn_less_often_so_that_training_keeps_most_of_the_time(clock, monkeypatch):
    trainer = FakeTrainer(200)
    make_step, spent = trainer.step, []

    def step() -> Any:
        clock.now += 0.1
        return make_step()

    def draw(*given: Any) -> str:
        clock.now += 2.0
        spent.append(2.0)
        return curves_html(*given)

    trainer.step = step
    monkeypatch.setattr(ucore.widgets, "curves_html", draw)
    stepper = TrainingStepper(trainer)
    spent.clear()
    stepper.run()
    assert 2 <= len(spent) <= 1 + 20 / 8  # twenty seconds of steps, eight at least between pictures, one at the end


# --- in the kernel's event loop ---------------------------------------------------------------------------------


def test_run_answers_other_work_and_pause_stops_it_and_saves():
    async def live() -> None:
        trainer = FakeTrainer(500)
        stepper = TrainingStepper(trainer)
        stepper.run_button.click()
        assert trainer.step_count == 0  # the click has returned before the first step
        assert enabled(stepper) == ["Pause"]
        await until(lambda: trainer.step_count >= 3)
        stepper.step_button.click()  # nothing: a run is on
        with pytest.raises(UserError, match="A run is on: click Pause"):
            stepper.run(5)
        assert stepper.running
        stepper.pause_button.click()
        assert trainer.saved == 1
        await until(lambda: stepper.task and stepper.task.done())
        stopped = trainer.step_count
        assert 3 <= stopped < 500
        for _ in range(20):
            await asyncio.sleep(0)
        assert trainer.step_count == stopped
        assert said(stepper).startswith(f"Step {stopped} of at most 500")
        assert enabled(stepper) == ["Step", "Run", "Reset"]
        stepper.step_button.click()
        await until(lambda: not stepper.running)
        assert trainer.step_count == stopped + 1
        assert trainer.saved == 1

    asyncio.run(live())


def test_a_mistake_during_a_live_run_ends_it_with_its_sentence():
    async def live() -> None:
        stepper = TrainingStepper(FakeTrainer(fails_at=4, error=UserError("No space left.")))
        stepper.run_button.click()
        await until(lambda: stepper.task and stepper.task.done())
        assert stepper.trainer.step_count == 3
        assert said(stepper) == "Stopped: No space left."
        assert enabled(stepper) == ["Step", "Run", "Reset"]
        assert stepper.task
        assert stepper.task.exception() is None

    asyncio.run(live())


def test_a_pause_that_cannot_save_says_so():
    async def live() -> None:
        trainer = FakeTrainer(500)

        def save() -> None:
            raise CheckpointError("The disk is full.")

        trainer.save = save
        stepper = TrainingStepper(trainer)
        stepper.run_button.click()
        await until(lambda: trainer.step_count >= 1)
        stepper.pause_button.click()
        await until(lambda: not stepper.running)
        await until(lambda: stepper.task and stepper.task.done())
        assert said(stepper) == "Not saved: The disk is full."

    asyncio.run(live())


def test_a_new_stepper_pauses_the_one_it_replaces():
    async def live() -> None:
        first = TrainingStepper(FakeTrainer(500))
        first.run_button.click()
        await until(lambda: first.trainer.step_count >= 2)
        TrainingStepper(FakeTrainer())
        await until(lambda: first.task and first.task.done())
        assert first.trainer.step_count < 500

    asyncio.run(live())


# --- the batch beside the curves --------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["train", "finetune", "val", ""])
def test_what_is_trained_on_simulated_images_says_so_live_and_as_a_picture(part):
    trainer, simulated = FakeTrainer(), part != ""
    for name in ("train", "finetune", "val"):
        setattr(trainer, name, SimpleNamespace(simulated=name == part))
    stepper = TrainingStepper(trainer, probe=lambda: (np.zeros((3, 3)), np.eye(3, dtype=bool)))
    stepper.run(6)
    twins = stepper.figure(), stepper.matrix_figure()
    titles = [axes.get_title(loc="left") for twin in twins for axes in twin.axes]
    shown = (stepper.curves.value, stepper.matrix.value, *(title for title in titles if "loss" not in title and title))
    assert len(shown) == 4 and all(("(simulated)" in text) == simulated for text in shown)


def test_the_probes_matrix_is_drawn_only_when_there_is_a_probe():
    answers = []

    def probe() -> tuple[np.ndarray, np.ndarray]:
        answers.append(np.full((3, 3), len(answers) / 10))
        return answers[-1], np.eye(3, dtype=bool)

    stepper = TrainingStepper(FakeTrainer(), probe=probe)
    assert stepper.matrix in stepper.children
    before = stepper.matrix.value
    stepper.run(1)
    assert len(answers) >= 2
    assert "after step 1" in stepper.matrix.value != before
    twin = stepper.matrix_figure()
    assert twin and "3 images and 3 captions" in twin.alt
    without = TrainingStepper(FakeTrainer())
    assert without.matrix not in without.children


class FakeQueries:
    """Two captions of three images; the second caption finds nothing new."""

    texts = ("a <b>house</b>", "a lake")

    def __init__(self) -> None:
        self.restarted, self.asked = 0, []

    def restart(self) -> None:
        self.restarted += 1

    def __call__(self, number: int) -> Found:
        self.asked.append(number)
        best = np.array([2, 0])
        return Found(self.texts[number], 1, (0, 4), best, np.array([3, 1]), (2, 3), 3)

    def segments(self, number: int) -> None:
        return None


def test_the_chosen_query_is_shown_and_a_reset_begins_its_ranks_anew(tiny_rsicd):
    trainer, queries = FakeTrainer(), FakeQueries()
    trainer.val = read_dataset(tiny_rsicd, split="val")
    stepper = TrainingStepper(trainer, query=queries)
    assert "a &lt;b&gt;house&lt;/b&gt;" in stepper.found.value and "<b>house" not in stepper.found.value
    stepper.queries.value = 1
    assert queries.asked[-1] == 1 and "a lake" in stepper.found.value
    assert stepper.attention.value == ""
    twin = stepper.query_figure()
    assert twin and "rank 2 → 3" in twin.alt
    stepper.reset()
    assert queries.restarted == 1
    stepper.ask(0)
    assert "house" in stepper.found.value
    with pytest.raises(ConfigError, match="no query 2 among 2"):
        stepper.ask(2)
