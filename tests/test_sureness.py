"""How sure a hit is: a known curve is found again, and nothing is said where nothing can be known."""

import numpy as np
import pytest
from makers_index import CARD, DIM

from ucore.checkpoint_files import load_bank
from ucore.errors import DataError
from ucore.index import GalleryIndex
from ucore.sureness import SURENESS, Sureness, ask, calibration_error, fit_sureness, read_sureness, reliability


def made_up(count: int = 2000, k: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, biases and answers that are right with P = 1 / (1 + exp(-(8 score - 3 bias - 1)))."""
    rng = np.random.default_rng(0)
    scores, bias = rng.normal(0, 0.3, (count, k)), rng.normal(0, 0.2, count)
    return scores, bias, rng.random((count, k)) < 1 / (1 + np.exp(-(8 * scores - 3 * bias[:, None] - 1)))


def test_a_known_curve_is_found_again():
    sure = fit_sureness(*made_up())
    assert sure is not None
    assert (sure.slope, sure.own, sure.offset) == pytest.approx((8, -3, -1), abs=0.35)
    assert sure.error < 0.02 and sure.queries == 2000 and sure.hits == 20_000
    assert sure(np.array([1 / 8]), 0.0) == pytest.approx(0.5, abs=0.03)
    assert (np.diff(sure(np.linspace(-1, 1, 50))) > 0).all()


def test_nothing_is_said_where_nothing_can_be_known():
    scores, bias, right = made_up()
    assert fit_sureness(scores[:9], bias[:9], right[:9]) is None  # 90 hits
    assert fit_sureness(scores, bias, np.ones_like(right)) is None
    assert fit_sureness(-scores, bias, right) is None  # higher scores are less often right
    missing = np.where(np.arange(10) < 5, scores, -np.inf)  # fewer hits than asked for
    found = fit_sureness(missing, bias, right)
    assert found is not None and found.hits == 10_000


def test_perfectly_separated_answers_give_finite_numbers():
    scores = np.tile([1.0, 0.0], (200, 5))
    sure = fit_sureness(scores, np.zeros(200), scores > 0.5)
    assert sure is not None and np.isfinite(sure.slope)
    assert sure(np.array([1.0, 0.0])) == pytest.approx([1, 0], abs=0.01)


@pytest.mark.parametrize("engine", ["flat", "lance"])
def test_it_is_kept_with_the_index(tmp_path, engine):
    if engine == "lance":
        pytest.importorskip("lancedb", reason="the extra lance is not installed")
    index = GalleryIndex.create(tmp_path / "i", CARD, DIM, engine)
    assert read_sureness(index) is None
    sure = fit_sureness(*made_up())
    index.keep(SURENESS, sure.to_dict())
    assert read_sureness(index) == sure == read_sureness(GalleryIndex.open(tmp_path / "i"))
    index.keep(SURENESS, None)
    assert read_sureness(index) is None and index.card == CARD
    unmeasured = {**sure.to_dict(), "error": None}
    index.keep(SURENESS, unmeasured)
    assert read_sureness(index).error is None
    for damaged in ({"slope": 1}, {**unmeasured, "offset": None}, {**unmeasured, "own": "1"}):
        index.keep(SURENESS, damaged)
        with pytest.raises(DataError, match="damaged"):
            read_sureness(index)


def test_the_error_is_measured_on_what_the_curve_was_not_fitted_to():
    scores, bias, right = made_up(60)
    owner = np.repeat(np.arange(30), 2)
    sure = fit_sureness(scores, bias, right, owner)
    said = np.empty(right.shape)
    for half in (owner % 2 == 0, owner % 2 == 1):  # by hand: each half's answers by the other half's curve
        said[half] = fit_sureness(scores[~half], bias[~half], right[~half])(scores[half], bias[half][:, None])
    error, bins = calibration_error(said.ravel(), right.ravel())
    assert sure.error == pytest.approx(error) and sure.bins == bins and sum(part[2] for part in bins) == 600
    few = fit_sureness(scores[:12], bias[:12], right[:12])  # halves of 60 hits tell nothing
    assert few is not None and few.error is None and few.bins == ()


def test_calibration_error_by_hand():
    said = np.repeat([0.1, 0.9], 50)
    error, bins = calibration_error(said, np.tile([True, False], 50))  # half of each are right
    assert error == pytest.approx(0.4) and [part[2] for part in bins] == [10] * 10
    assert calibration_error(said, said > 0.5)[0] == pytest.approx(0.1)


def test_reliability_asks_another_split(search_place):
    index = GalleryIndex.open(search_place.index)
    bank, before = load_bank(search_place.checkpoint), index.note(SURENESS)
    given = (index, bank, index.card["temperature"])
    asked = ask(*given, "test")
    try:
        index.keep(SURENESS, Sureness(5.0, 0.0, -1.0, 1, 10, 0.5).to_dict())
        error, bins = reliability(*given, "test")
        said = 1 / (1 + np.exp(1 - 5 * asked.scores.astype(np.float64)))
        assert error == pytest.approx(calibration_error(said.ravel(), asked.right.ravel())[0])
        assert sum(part[2] for part in bins) == asked.scores.size
        assert reliability(*given, "nothing") is None
    finally:
        index.keep(SURENESS, before)
