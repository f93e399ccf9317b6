"""The stepper of an adaptation: its buttons step, its views say what the probe saw, and untrusted text is escaped."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_widgets import FakeTrainer

from ucore.adapt_probes import Clouds, Cycle
from ucore.adaptation_figures import chosen_lines, clouds_html, plot_adaptation, plot_clouds, told_html, told_lines
from ucore.adaptation_stepper import AdaptationStepper
from ucore.curriculum_figures import (
    areas,
    curriculum_html,
    examples,
    marks,
    plot_curriculum,
    scale_length,
    shares,
    shown_cycles,
)
from ucore.data import read_dataset
from ucore.manifest import Manifest


class FakeProbe:
    """Sees ten source images, two of them offered a step, the first one taken; a pass is three steps."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.likeness = trainer, np.arange(10.0)[::-1]
        self.restart()

    def restart(self) -> None:
        self.cycles: list[Cycle] = []
        self.told = [{"step": 0.0, "image": 50.0, "text": 50.0, "fresh_image": 90.0}]
        self.first = self.clouds()

    def observe(self, _: Any = None) -> None:
        step = self.trainer.step_count
        if (step - 1) % 3 == 0:
            self.cycles.append(Cycle(len(self.cycles), np.zeros(10, int), np.zeros(10, int), np.zeros(10)))
        cycle = self.cycles[-1]
        cycle.steps += 1
        cycle.offered[[step % 10, 9]] += 1
        cycle.taken[step % 10] += 1
        cycle.weight[step % 10] += 1.0
        self.told.append({"step": float(step), "image": 50.0 + step, "text": 50.0})

    def clouds(self) -> Clouds:
        source, target = (np.random.default_rng(seed).normal(size=(4, 2)) for seed in (0, 1))
        return Clouds(self.trainer.step_count, *({"image": part, "text": -part} for part in (source, target)), 4.0)


@pytest.fixture(scope="module")
def ten(tiny_rsicd) -> Manifest:
    train = read_dataset(tiny_rsicd, split="train")
    frame: Any = train.frame.iloc[:10].reset_index(drop=True)
    frame["sample_id"] = [f"<i>{number}" for number in range(10)]
    return Manifest(frame, train.root)


@pytest.fixture
def stepper(ten) -> AdaptationStepper:
    trainer: Any = FakeTrainer()
    trainer.train = ten
    trainer.config = SimpleNamespace(curriculum="cosine", segment_weight=0, image_segment_weight=0)
    trainer.criterion = "return_probability"
    for row in trainer.ready:
        if "metrics" in row:
            row["metrics"]["return_probability"] = 5.0 + row["step"]
    return AdaptationStepper(trainer, probe=FakeProbe(trainer))


# --- the widget -----------------------------------------------------------------------------------------------


def test_a_click_steps_and_every_view_follows(stepper):
    views = stepper.domains
    before = views.told.value, views.curriculum.value, views.clouds.value
    assert "no step yet" in before[1]
    stepper.training.step_button.click()
    after = views.told.value, views.curriculum.value, views.clouds.value
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert "Pass 1 through the target (1 step): 50 % of the source samples offered are taken" in after[1]
    assert "images 51 %" in after[0] and "after step 1" in after[2]
    stepper.run(3)
    assert "Pass 2 through the target (1 step)" in views.curriculum.value
    assert len(stepper.probe.told) == 5


def test_the_line_on_progress_names_the_criterion_and_not_the_recall(stepper):
    stepper.run(12)
    said = stepper.training.status.value
    assert "weights kept by return probability at step 4" in said and "best validation mR" not in said
    assert "Recall on the target&#x27;s validation block" in stepper.training.curves.value


def test_a_reset_begins_the_views_anew(stepper):
    fresh = stepper.domains.curriculum.value, stepper.domains.told.value
    stepper.run(5)
    stepper.training.reset_button.click()
    assert (stepper.domains.curriculum.value, stepper.domains.told.value) == fresh
    stepper.training.step_button.click()
    assert stepper.adapter.step_count == 1 and len(stepper.probe.cycles) == 1


def test_a_real_adapter_steps_with_its_own_probe(sides, tmp_path, tiny_clip_factory):
    from ucore.adapt import Adapter
    from ucore.adapt_config import AdaptConfig

    config = AdaptConfig.of("paper", "tiny", head_epochs=1, head_batch_size=8, target_batch_size=4)
    adapter = Adapter(tiny_clip_factory(), *sides, config, None, tmp_path / "cache", progress=False)
    stepper = AdaptationStepper(adapter)
    stepper.run()
    assert adapter.finished and stepper.training.status.value.count("Finished after 3 steps") == 1
    assert "in a row" in stepper.domains.curriculum.value  # this set has no places
    for picture in (stepper.figure(), stepper.curriculum_figure(), stepper.clouds_figure()):
        assert picture.png(40).startswith(b"\x89PNG") and picture.alt


# --- who tells the domains apart, and what chooses -------------------------------------------------------------


def test_lines_are_drawn_of_what_was_told_with_the_guess_beside():
    told = [{"step": 0.0, "fresh_text": 70.0}, {"step": 1.0, "image": 60.0}, {"step": 4.0, "image": 55.0}]
    lines = {line.label: (list(line.x), list(line.y)) for line in told_lines(told)}
    assert lines == {
        "images, its discriminator": ([1, 4], [60, 55]), "texts, a fresh linear classifier": ([0], [70]),
        "50: a guess": ([0, 4], [50, 50]),
    }  # fmt: skip
    assert told_lines([{"step": 0.0}]) == []
    assert "No step yet" in told_html([], [])


def test_the_criterion_stands_beside_the_recall_with_its_highest_marked():
    history = [dict(step=step, metrics=dict(mR=9.0 - step, return_probability=rp)) for step, rp in ((1, 2.0), (2, 5.0))]
    lines = {line.label: (list(line.x), list(line.y)) for line in chosen_lines([{"step": 0}, *history])}
    assert lines["its highest"] == ([2], [5.0])
    assert lines["return probability"] == ([1, 2], [2.0, 5.0])
    assert lines["mR, of the target's pairs (shown alone)"] == ([1, 2], [8.0, 7.0])


def test_pictures_say_in_words_what_they_show(stepper):
    stepper.run(4)
    assert "images 54 %" in plot_adaptation(stepper.adapter.history, stepper.probe.told).alt
    clouds = Clouds(3, {"image": np.zeros((2, 2)), "text": np.zeros((2, 2))},
                    {"image": np.full((2, 2), 3.0), "text": np.zeros((2, 2))}, 4.0)  # fmt: skip
    assert "middles of the images 4.24 apart and middles of the texts 0.00 apart" in plot_clouds([("now", clouds)]).alt
    page = clouds_html(clouds)
    assert page.count("<circle") == 4 and page.count("h6v6h-6z") == 4


# --- what the curriculum takes ---------------------------------------------------------------------------------


def cycle(number: int, offered: list[int], taken: list[int], weights: list[float]) -> Cycle:
    counts = [np.bincount(rows, minlength=10) for rows in (offered, taken)]
    weight = np.zeros(10)
    weight[taken] = weights
    return Cycle(number, *counts, weight, 1)


def test_shares_are_of_what_was_offered_by_tenths_of_the_likeness():
    likeness = np.array([0, 9, 8, 7, 6, 5, 4, 3, 2, 1.0])  # tenths: rows 1, 2, ..., 9, 0
    found = shares(likeness, [cycle(0, [1, 1, 2, 0], [1, 2], [0.5, 0.5]), cycle(1, [0], [0], [1.0])])
    assert found.shape == (2, 10)
    assert found[0, :2].tolist() == [50, 100] and found[0, 9] == 0 and np.isnan(found[0, 2:9]).all()
    assert found[1, 9] == 100 and np.isnan(found[1, :9]).all()
    assert shares(likeness, []).shape == (0, 10)


def test_examples_are_the_heaviest_taken_and_the_least_like_left_out():
    one = cycle(0, [1, 2, 3, 4, 5], [1, 2, 3], [0.2, 0.5, 0.3])
    assert examples(np.arange(10.0), one, most=2) == ([2, 3], [4, 5])
    assert examples(-np.arange(10.0), one, left=1) == ([2, 3, 1], [5])


def test_places_become_a_map_to_scale_and_none_a_row_by_likeness(ten):
    (row,) = areas(ten, np.array([5, 9, *range(8)], float))
    assert row.metres == 0 and row.places[1, 0] == pytest.approx(0.05)  # the likest of ten stands first
    assert np.sort(row.places[:, 0]) == pytest.approx((np.arange(10) + 0.5) / 10)
    frame: Any = ten.frame.copy()
    frame["lon"], frame["lat"] = 25 + 0.002 * np.arange(10), 60 + 0.001 * (np.arange(10) % 2)
    (area,) = areas(Manifest(frame, ten.root), np.zeros(10))
    assert area.metres == pytest.approx(0.018 * 111_320 * np.cos(np.radians(60)), rel=0.005)
    assert area.places.min() >= 0 and area.places.max() <= 1
    assert np.ptp(area.places[:, 1]) * area.shape * area.metres == pytest.approx(0.001 * 111_400, rel=0.01)
    drawn = marks(area, cycle(0, [0, 1, 2], [0, 1], [0.8, 0.2]))
    assert len(drawn.unseen) == 7 and np.array_equal(drawn.left, area.places[[2]])
    assert drawn.sizes == pytest.approx([1, 0.5])
    assert len(marks(area, None).unseen) == 10 and len(marks(area, None).taken) == 0


def test_what_comes_from_data_is_escaped(ten):
    frame: Any = ten.frame.copy()
    frame["lon"], frame["lat"], frame["domain"] = 25 + 0.001 * np.arange(10), 60.0, "<script>x"
    page = curriculum_html(Manifest(frame, ten.root), np.arange(10.0), [cycle(0, [1, 2], [1], [1.0])], "cosine")
    assert "<script>" not in page and "<i>" not in page
    assert "&lt;script&gt;x" in page and "Image &lt;i&gt;1, weight 100.0%" in page
    assert page.count("<img") == 2 and "left out" in page


def test_a_method_without_curriculum_says_so_and_no_cycle_is_no_error(ten):
    page = curriculum_html(ten, np.arange(10.0), [cycle(0, [1, 2], [1, 2], [0.5, 0.5])], "none")
    assert "this method has no curriculum" in page and "100 % of the source samples" in page
    empty = plot_curriculum(ten, np.arange(10.0), [], "cosine")
    assert "no step yet" in empty.alt and empty.png(40)


def test_of_many_passes_the_first_and_the_last_are_shown():
    cycles = [cycle(number, [1], [1], [1.0]) for number in range(40)]
    assert [one.number for one in shown_cycles(cycles)] == [*range(6), 38, 39]
    assert [one.number for one in shown_cycles(cycles[:3])] == [0, 1, 2]
    assert len(shown_cycles(cycles[:8])) == 8


@pytest.mark.parametrize(("metres", "length"), [(100, 20), (3100, 1000), (6, 2), (5999, 1000), (15001, 5000)])
def test_the_bar_of_a_map_has_a_round_length_of_at_most_a_third(metres, length):
    assert scale_length(metres) == length


def test_the_present_pass_is_the_one_on_the_map(stepper):
    stepper.run(4)
    found = re.search(r"(\d+) source samples taken, (\d+) left out", stepper.domains.curriculum.value)
    assert found and (found[1], found[2]) == ("1", "1")
