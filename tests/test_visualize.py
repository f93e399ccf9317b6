"""Figures show the numbers they are given: lines, bars, frames and words are read back from what is drawn."""

import io
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from ucore import picture
from ucore.data import caption_groups
from ucore.errors import ConfigError, DataError
from ucore.evaluate import RECALLS, retrieval_ranks
from ucore.gallery import example_queries, plot_gallery, plot_samples
from ucore.manifest import Manifest
from ucore.visualize import Picture, plot_curves, plot_differences, plot_recalls, plot_similarity, smoothed

COLOURS = ((250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0))


def make_history(heads: int, towers: int = 0, per_epoch: int = 2) -> list[dict[str, Any]]:
    """Rows as a Trainer's; mR of the epochs is 10, 30, 30, 20, ... so that two epochs are best."""
    rows, mean = [], [10.0, 30.0, 30.0, 20.0, 25.0, 28.0]
    for phase, steps in (("heads", heads), ("towers", towers)):
        for number in range(1, steps + 1):
            rows.append({"step": len(rows) + 1, "phase": phase, "loss": 5.0 - 0.1 * len(rows)})
            if number % per_epoch == 0:
                middle = mean.pop(0)
                recalls = {name: middle + 2 * place - 5 for place, name in enumerate(RECALLS)}
                rows[-1]["metrics"] = {**recalls, "mR": middle}
    return rows


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines}


def frames(figure: Picture) -> list[Any]:
    return list(figure.axes)


def contrast(colour: Any) -> float:
    """Of a colour on white, by the formula of WCAG 2.1; words need 4.5."""
    parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return 1.05 / (float(np.dot(parts, (0.2126, 0.7152, 0.0722))) + 0.05)


def words(figure: Picture) -> list[str]:
    """Every text of the figure, also in legends and titles."""
    texts: list[Any] = figure.findobj(Text)
    return [text.get_text() for text in texts if text.get_text()]


def size(figure: Picture) -> tuple[int, int]:
    return Image.open(io.BytesIO(figure.png(dpi=100))).size


# --- curves -----------------------------------------------------------------------------------------------------


def test_the_curves_are_the_history():
    history = make_history(heads=4, towers=2)
    figure = plot_curves(history)
    above, below = frames(figure)
    points = [line.get_xydata() for line in above.lines]
    assert points[0].tolist() == [[1, 5.0], [2, 4.9], [3, 4.8], [4, pytest.approx(4.7)]]  # phase heads, each step
    assert points[2][:, 0].tolist() == [5, 6]  # phase towers
    found = lines(below)
    assert found["mR, their mean"].get_xydata().tolist() == [[2, 10], [4, 30], [6, 30]]
    assert found["image → text R@1"].get_ydata().tolist() == [5, 25, 25]
    assert found["text → image R@10"].get_ydata().tolist() == [15, 35, 35]
    assert size(figure)[0] == 800


def test_the_star_is_the_first_of_equal_best_epochs_as_the_trainer_keeps_it():
    figure = plot_curves(make_history(heads=8))
    assert lines(frames(figure)[1])["best mR 30.0"].get_xydata().tolist() == [[4, 30]]
    assert "best mR 30.0 % at step 4" in figure.alt


def test_phases_are_shaded_where_they_ran_and_named():
    figure = plot_curves(make_history(heads=4, towers=2))
    for axes in frames(figure):
        spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
        assert spans == [(0.5, 4.5), (4.5, 6.5)]
        assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()
    assert {"phase: heads", "phase: towers"} <= set(words(figure))


def test_the_smoothed_loss_is_the_mean_of_the_neighbours():
    assert smoothed([1, 2, 6, 4], half=1).tolist() == [1.5, 3.0, 4.0, 5.0]
    assert smoothed([3], half=4).tolist() == [3]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_curves_of_hardly_any_history_say_what_is_missing(steps):
    figure = plot_curves(make_history(heads=steps))
    assert ("No step yet" in words(figure)) == (steps == 0)
    assert ("No epoch has ended yet" in words(figure)) == (steps < 2)
    assert size(figure)[0] == 800


def test_several_parts_of_the_loss_are_drawn_with_their_weights():
    history = make_history(heads=6)
    for row in history:
        row["parts"] = {"image_text": row["loss"] - 1, "segment_text": 1.0}
    drawn = lines(frames(plot_curves(history, {"image_text": 1.0, "segment_text": 0.5}))[0])
    assert list(drawn["segment-text, weight 0.5"].get_ydata()) == pytest.approx([1.0] * 6)
    np.testing.assert_allclose(
        drawn["image-text, weight 1"].get_ydata(), smoothed([row["loss"] - 1 for row in history])
    )
    for row in history[:2]:  # found only later
        del row["parts"]["segment_text"]
    late = lines(frames(plot_curves(history))[0])
    assert list(late["segment-text"].get_xdata()) == [3, 4, 5, 6] and len(late["image-text"].get_xdata()) == 6
    for row in history:
        row["parts"].pop("segment_text", None)
    assert "image-text" not in lines(frames(plot_curves(history))[0])  # it is the loss


# --- how pictures are shown -------------------------------------------------------------------------------------


def test_the_notebooks_own_settings_neither_change_a_figure_nor_are_changed():
    expected = plot_curves(make_history(heads=4)).png(50)
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "black", "text.usetex": True, "figure.dpi": 30}):
        assert plot_curves(make_history(heads=4)).png(50) == expected
        assert matplotlib.rcParams["font.size"] == 40


def test_a_picture_of_simulated_data_says_so_once_in_words_and_below_all_else():
    figure = plot_curves(make_history(heads=4))
    known = words(figure), figure.alt
    assert figure.marked(False) is figure and (words(figure), figure.alt) == known
    assert figure.marked(True).marked(True) is figure
    assert sorted(words(figure)) == sorted([*known[0], "SIMULATED data"])
    assert figure.alt == f"SIMULATED data. {known[1]}"
    figure.draw_without_rendering()
    note = next(text for text in figure.findobj(Text) if text.get_text() == "SIMULATED data")
    frame = figure.axes[-1].get_tightbbox()
    assert note.get_window_extent().y0 >= 0 and note.get_window_extent().y1 <= frame.y0
    assert note.get_window_extent().x1 <= figure.bbox.x1


def test_a_notebook_shows_a_picture_once_with_its_words():
    from matplotlib import pyplot

    figure = plot_curves(make_history(heads=4))
    assert pyplot.get_fignums() == []  # else the notebook would show it a second time
    shell: Any = InteractiveShell.instance()
    data, metadata = shell.display_formatter.format(figure)
    assert set(data) == {"image/png", "text/plain"}
    assert metadata["image/png"] == {"alt": figure.alt, "width": 800, "height": 560}
    assert data["text/plain"] == figure.alt


# --- similarity -------------------------------------------------------------------------------------------------


def test_a_similarity_matrix_is_drawn_as_it_is_with_the_positives_outlined():
    similarity = np.arange(12.0).reshape(3, 4)
    positives = np.zeros((3, 4), bool)
    positives[0, 1] = positives[2, 3] = True
    figure = plot_similarity(similarity, positives)
    axes = frames(figure)[0]
    assert np.array_equal(axes.images[0].get_array(), similarity)
    outlined = {(p.get_x(), p.get_y()) for p in axes.patches if isinstance(p, Rectangle)}
    assert outlined == {(0.5, -0.5), (2.5, 1.5)}
    assert "mean of the matching pairs 6.00, of the others 5.40" in figure.alt
    assert "cosine similarity" in words(figure)


def test_a_large_similarity_matrix_is_cut_and_says_so():
    figure = plot_similarity(np.zeros((50, 60)), np.eye(50, 60, dtype=bool))
    axes = frames(figure)[0]
    assert np.shape(axes.images[0].get_array()) == (48, 48)
    assert len(axes.patches) == 48
    assert any("the first 48 x 48 of 50 x 60" in text for text in words(figure))


def test_colours_of_words_can_be_read_on_white():
    assert contrast("white") == pytest.approx(1) and contrast("black") == pytest.approx(21)
    assert contrast("#777777") == pytest.approx(4.48, abs=0.01)  # as the published calculators have it
    for colour in (picture.INK, picture.FAINT, picture.DARK_GREEN, picture.DARK_VERMILLION, picture.DARK_PURPLE):
        assert contrast(colour) >= 4.5


def test_a_similarity_matrix_without_its_positives_is_refused():
    with pytest.raises(DataError, match=r"\(2, 2\) and the positives \(2, 3\)"):
        plot_similarity(np.zeros((2, 2)), np.zeros((2, 3), bool))


# --- recalls ----------------------------------------------------------------------------------------------------


def report_rows(label: str, start: float) -> list[dict[str, Any]]:
    names = [*RECALLS, "mR", "image_to_text_median_rank"]
    return [
        {"label": label, "metric": name, "value": start + i, "low": start + i - 1, "high": start + i + 3, "n": 10 + i}
        for i, name in enumerate(names)
    ]


def test_bars_and_intervals_are_the_reports_rows():
    figure = plot_recalls(report_rows("heads", 5) + report_rows("$heads$ + _towers_", 20))
    axes = frames(figure)[0]
    assert [bar.get_height() for bar in axes.containers[0]] == [5, 6, 7, 8, 9, 10]
    segments = axes.collections[0].get_segments()
    assert [tuple(segment[:, 1]) for segment in segments] == [(4 + i, 8 + i) for i in range(6)]
    for bar, segment in zip(axes.containers[0], segments, strict=True):
        assert segment[0, 0] == pytest.approx(bar.get_x() + bar.get_width() / 2)
    seen = words(figure)
    assert "heads (mR 11.0)" in seen
    assert "$heads$ + _towers_ (mR 26.0)" in seen
    assert "image → text, 10 queries" in seen
    assert "text → image, 13 queries" in seen
    assert size(figure)[0] == 800


def test_bars_without_an_interval_stand_beside_others():
    without = [{**row, "low": None, "high": None} for row in report_rows("index", 20)]
    figure = plot_recalls([*report_rows("heads", 5), *without])
    bars = frames(figure)[0].containers
    assert [bar.get_height() for bar in bars[2]] == [20, 21, 22, 23, 24, 25]
    lines = [collection.get_segments() for collection in frames(figure)[0].collections[:2]]
    assert [sum(len(line) > 0 and bool(np.isfinite(line).all()) for line in of) for of in lines] == [6, 0]
    assert "25.0" in words(figure)


def test_each_gallery_has_a_frame_with_its_own_queries():
    home = [{**row, "gallery": "home", "n": 30} for row in report_rows("heads", 5)]
    away = [{**row, "gallery": "$away$", "n": 1000} for row in [*report_rows("heads", 50), *report_rows("towers", 60)]]
    figure = plot_recalls([*home, *away])
    first, second = frames(figure)
    assert [[bars[0].get_height() for bars in axes.containers[::2]] for axes in (first, second)] == [[5], [50, 60]]
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["home", "$away$"]
    asked = [[text.get_text() for text in axes.texts if "queries" in text.get_text()] for axes in (first, second)]
    assert asked == [[f"{way}, {n} queries" for way in ("image → text", "text → image")] for n in ("30", "1,000")]
    assert figure.alt == ("Recall bars. home: heads (mR 11.0). $away$: heads (mR 56.0); towers (mR 66.0).")


def test_galleries_of_several_sizes_in_one_frame_say_so():
    other = [{**row, "n": 1000} for row in report_rows("towers", 60)]
    assert "image → text, 10 to 1,000 queries" in words(plot_recalls([*report_rows("heads", 5), *other]))


def test_nothing_of_many_models_runs_into_something_else():
    rows = [{**row, "gallery": f"a gallery with a long name {at % 3}"} for at in range(12)
            for row in report_rows(f"lite0-minilm, trained (small), hubs corrected, {at}", at)]  # fmt: skip
    figure = plot_recalls(rows)
    FigureCanvasAgg(figure).draw()
    shown = [text for axes in frames(figure) for text in (
        axes._left_title, *axes.get_xticklabels(), *axes.texts, *axes.get_legend().get_texts())]  # fmt: skip
    boxes = [text.get_window_extent() for text in shown]
    assert len(boxes) == 3 * (1 + 6 + 2 + 4)
    assert not [1 for at, one in enumerate(boxes) for other in boxes[:at] if one.overlaps(other)]


def test_labels_are_chosen_and_ordered_and_an_unknown_one_is_refused():
    rows = report_rows("a", 1) + report_rows("b", 40) + report_rows("c", 60)
    bars = frames(plot_recalls(rows, ["c", "a"]))[0].containers
    assert [bars[0][0].get_height(), bars[2][0].get_height()] == [60, 1]
    with pytest.raises(DataError, match="no image_to_text_R@1 of 'd'"):
        plot_recalls(rows, ["a", "d"])
    with pytest.raises(DataError, match="no rows"):
        plot_recalls([])


# --- gallery ----------------------------------------------------------------------------------------------------


def make_scores(folder: Any, similarity: Any, captions: list[list[str]]) -> Any:
    """Stand-in for tasks.Scores: four plain pictures told apart by colour."""
    rows = []
    for number, texts in enumerate(captions):
        Image.new("RGB", (8, 8), COLOURS[number]).save(folder / f"{number}.png")
        rows.append(dict(sample_id=str(number), image=f"{number}.png", captions=texts, domain="x", split="test"))
    manifest = Manifest.from_rows(rows, folder)
    texts, index = manifest.texts
    return SimpleNamespace(
        manifest=manifest,
        similarity=np.array(similarity, np.float32),
        text_image_index=index,
        groups=caption_groups(texts),
    )


CAPTIONS = [["a red field", "a field"], ["a green field"], ["a blue field", "a field"], ["a yellow field"]]
SIMILARITY = [  # images x texts; text 1 is "a field" of image 0, text 4 the same words of image 2
    [0.9, 0.4, 0.1, 0.1, 0.4, 0.5],
    [0.1, 0.9, 0.7, 0.1, 0.9, 0.5],
    [0.2, 0.8, 0.9, 0.1, 0.8, 0.5],
    [0.3, 0.1, 0.8, 0.1, 0.1, 0.5],
]


def shown(figure: Picture) -> list[list[tuple[int, str, str]]]:
    """For each query its thumbnails: which picture, how it is framed as drawn, the words above."""
    rows: dict[int, list[tuple[int, str, str]]] = {}
    for axes in frames(figure):
        if not axes.images:
            continue
        image = COLOURS.index(tuple(axes.images[0].get_array()[0, 0].tolist()))
        spine = axes.spines["left"]
        frame = "none" if not spine.get_visible() else "solid" if spine.get_linestyle() in ("-", "solid") else "dashed"
        rows.setdefault(axes.get_subplotspec().rowspan.start, []).append((image, frame, axes.get_title()))
    return list(rows.values())


def test_the_gallery_shows_the_first_images_in_order_and_frames_exactly_the_truth(tmp_path):
    rows = shown(plot_gallery(make_scores(tmp_path, SIMILARITY, CAPTIONS), [0, 2, 3], k=2))
    assert rows[0] == [(0, "solid", "1 · 0.90"), (3, "none", "2 · 0.30"), (0, "solid", "1 · 0.90")]
    # The truth of text 2 is third, beyond k: it stands only at the end, with its rank.
    assert rows[1] == [(2, "none", "1 · 0.90"), (3, "none", "2 · 0.80"), (1, "solid", "3 · 0.70")]
    # All images tie for text 3: the truth is placed last, as the metrics count it.
    assert rows[2][-1] == (2, "solid", "4 · 0.10")
    assert [image for image, _, _ in rows[2][:2]] == [0, 1]


def test_another_image_with_the_same_caption_is_framed_otherwise_and_explained(tmp_path):
    scores = make_scores(tmp_path, SIMILARITY, CAPTIONS)
    figure = plot_gallery(scores, [1], k=3)
    assert [row[:2] for row in shown(figure)[0]] == [(1, "none"), (2, "dashed"), (0, "solid"), (0, "solid")]
    assert any("dashed: same caption" in text for text in words(figure))
    assert not any("dashed" in text for text in words(plot_gallery(scores, [0], k=3)))


def test_the_rank_beside_a_query_is_the_one_the_metrics_count(tmp_path):
    similarity = np.random.default_rng(3).integers(0, 3, (4, 6))  # many ties
    scores = make_scores(tmp_path, similarity, CAPTIONS)
    expected = retrieval_ranks(scores.similarity, scores.text_image_index)[1]
    figure = plot_gallery(scores, range(6), k=1)
    ranks = [text for text in words(figure) if text.startswith("truth at rank")]
    assert ranks == [f"truth at rank {rank} of 4" for rank in expected]


@pytest.mark.parametrize(
    "caption", ["$a_b$ <img onerror>", r"$\frac{$", "x" * 500, "\x1b[31m\x00 bell \x07", "  ", r"\alpha ${"]
)
def test_any_caption_is_drawn_as_plain_text_beside_the_images(tmp_path, caption):
    scores = make_scores(tmp_path, np.eye(2), [[caption], ["b"]])
    figure = plot_gallery(scores, [0])
    assert size(figure)[0] == 800  # it draws at all: mathematics would fail or vanish
    (text,) = [text for text in frames(figure)[0].texts if not text.get_text().startswith("truth")]
    assert text.get_parse_math() is False
    assert text.get_clip_on()
    assert all(letter.isprintable() or letter == "\n" for letter in text.get_text())
    assert len(text.get_text().splitlines()) <= 4
    if caption.startswith("$a"):
        assert text.get_text() == caption


def test_a_query_that_is_not_there_is_refused_in_one_sentence(tmp_path):
    scores = make_scores(tmp_path, SIMILARITY, CAPTIONS)
    for queries, k, message in (([6], 5, "text 6 of 6"), ([-1], 5, "text -1"), ([], 5, "0 queries"), ([0], 0, "k=0")):
        with pytest.raises(ConfigError, match=message):
            plot_gallery(scores, queries, k)


# --- example queries --------------------------------------------------------------------------------------------


def ranked_scores(ranks: list[int], groups: list[int]) -> Any:
    """Text t belongs to image t, which takes rank ranks[t] among all images."""
    count = len(ranks)
    similarity = np.zeros((count, count), np.float32)
    for text, rank in enumerate(ranks):
        others = [image for image in range(count) if image != text]
        for place, image in enumerate([*others[: rank - 1], text, *others[rank - 1 :]]):
            similarity[image, text] = -place
    return SimpleNamespace(similarity=similarity, text_image_index=np.arange(count), groups=np.array(groups))


def test_examples_are_drawn_at_random_one_from_each_part_of_the_ranks():
    ranks = [5, 12, 1, 8, 3, 10, 2, 7, 4, 11, 6, 9]
    scores = ranked_scores(ranks, list(range(12)))
    drawn = [example_queries(scores, 4, seed).tolist() for seed in range(40)]
    parts = [{ranks[queries[part]] for queries in drawn} for part in range(4)]
    # Every member of a part comes up in some draw, and none of another part.
    assert parts == [{1, 2, 3}, {4, 5, 6}, {7, 8, 9}, {10, 11, 12}]
    assert example_queries(scores, 4, 7).tolist() == drawn[7]


def test_examples_never_repeat_a_caption_and_any_of_its_images_may_stand_for_it():
    scores = ranked_scores([1, 2, 3, 4, 5, 6], groups=[0, 1, 0, 1, 0, 2])
    drawn = [example_queries(scores, 6, seed) for seed in range(40)]
    assert all(sorted(scores.groups[queries]) == [0, 1, 2] for queries in drawn)
    assert {int(query) for queries in drawn for query in queries} == set(range(6))


def test_no_example_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        example_queries(ranked_scores([1, 2], [0, 1]), 0)


def test_samples_show_each_image_with_its_own_first_caption(tiny_rsicd):
    from ucore.data import read_dataset

    manifest = read_dataset(tiny_rsicd, split="val")
    figure = plot_samples(manifest, n=4, seed=1)
    said = " ".join(words(figure)).replace("\n", " ")
    shown = [row for row in range(len(manifest)) if f"{manifest.frame['sample_id'][row]}:" in said]
    assert len(shown) == 4
    assert all(manifest.frame["captions"][row][0][:25] in said for row in shown)
    with pytest.raises(ConfigError, match="at least one"):
        plot_samples(manifest, n=0)


# --- differences ------------------------------------------------------------------------------------------------


def test_a_forest_shows_each_difference_on_its_interval():
    rows = [
        {"arm": "base"},
        {"arm": "a=1", "difference": 1.5, "low": 0.5, "high": 2.5},
        {"arm": "b=2", "difference": -0.5, "low": -1.5, "high": 0.25},
    ]
    figure = plot_differences(rows)
    (axes,) = frames(figure)
    spans = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2][:2]
    assert spans == [[0.5, 2.5], [-1.5, 0.25]]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == [1.5, -0.5]
    assert [line.get_color() == "white" for line in dots] == [False, True]  # hollow where the interval holds 0
    assert {"a=1  +1.50", "b=2  -0.50"} <= set(words(figure))
    assert "a=1 +1.50 [+0.50, +2.50]" in figure.alt and "base" not in figure.alt.split(". ")[1]
    assert size(figure)[0] == 800
    with pytest.raises(DataError, match="No row has a difference"):
        plot_differences(rows[:1])
