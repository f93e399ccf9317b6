"""How sure a hit is: a known curve is found again, and nothing is said where nothing can be known."""

import numpy as np
import pytest

from ucore.errors import DataError
from ucore.files import write_json
from ucore.sureness import SURENESS, Sureness, fit_sureness, read_sureness


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


def test_it_is_kept_beside_the_index(tmp_path):
    assert read_sureness(tmp_path) is None
    sure = Sureness(1.0, 2.0, 3.0, 4, 5, 0.5, 0.1)
    write_json(tmp_path / SURENESS, sure.to_dict())
    assert read_sureness(tmp_path) == sure
    write_json(tmp_path / SURENESS, None)
    assert read_sureness(tmp_path) is None
    (tmp_path / SURENESS).write_text('{"slope": 1}')
    with pytest.raises(DataError, match="damaged"):
        read_sureness(tmp_path)
