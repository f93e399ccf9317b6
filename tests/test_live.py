"""The live views hold what they are given, whatever its size, and nothing that was not meant as HTML."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from test_visualize import make_history

from ucore.live import MOST_POINTS, curves_html, matrix_html


def polylines(page: str) -> list[list[tuple[float, float]]]:
    """The points of every line, in order; that the page is well formed is checked, too."""
    root = ElementTree.fromstring(page)
    return [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in root.iter("polyline")
    ]


def test_the_lines_are_the_losses_and_recalls():
    history = make_history(heads=6)
    losses, mean, *recalls = polylines(curves_html(history))
    assert len(losses) == len(mean) == 6 and [len(line) for line in recalls] == [3] * 7
    assert losses[0] == pytest.approx((1000 * 0.5 / 6, losses[0][1]), abs=0.06)  # the middle of the first of six
    ys = [y for _, y in losses]
    np.testing.assert_allclose(np.diff(ys), np.diff(ys)[0], atol=0.11)  # the losses fall evenly, by 0.1
    assert ys == sorted(ys)  # down the page
    assert [y for _, y in recalls[-1]] == pytest.approx([recalls[-1][0][1], *[recalls[-1][1][1]] * 2])  # 10, 30, 30


def test_no_step_and_one_step_are_shown():
    assert "No step yet" in curves_html([]) and "No epoch has ended yet" in curves_html([])
    (single, *_) = polylines(curves_html(make_history(heads=1)))
    assert len(set(single)) == 1 and len(single) == 2


def test_parts_are_named_with_their_weights():
    history = make_history(heads=4)
    for row in history:
        row["parts"] = {"image_text": 3.0, "segment_text": 1.0}
    page = curves_html(history, {"image_text": 1.0, "segment_text": 0.25})
    assert "segment-text, weight 0.25" in page and "image-text, weight 1" in page
    assert len(polylines(page)) == len(polylines(curves_html(make_history(heads=4)))) + 2


def test_a_long_history_keeps_its_extremes_and_a_bounded_size():
    history = [{"step": step, "phase": "heads", "loss": 1.0} for step in range(1, 20_001)]
    history[7_777]["loss"], history[12_345]["loss"] = 9.0, 0.0
    page = curves_html(history)
    line = polylines(page)[0]
    assert len(line) <= MOST_POINTS + 2
    assert min(y for _, y in line) < 200 and max(y for _, y in line) == 1000.0  # 9 of at most 10, and 0
    assert len(page) < 40_000
    assert len(curves_html(history[:10_000])) == pytest.approx(len(page), rel=0.1)


def test_the_matrix_outlines_the_positives():
    page = matrix_html(np.array([[0.5, -0.25], [0.0, 0.75]]), np.array([[True, False], [True, True]]), "step <1>")
    root = ElementTree.fromstring(page.replace("<br>", "<br/>"))
    places = {(rect.attrib["y"], rect.attrib["x"]) for rect in root.iter("rect")}
    assert places == {("0", "0"), ("1", "0"), ("1", "1")}
    assert "-0.25" in page and "0.75" in page and "step &lt;1&gt;" in page
    assert re.search(r'aria-label="Similarity matrix of 2 images and 2 captions"', page)
