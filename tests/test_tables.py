"""Tables of reports, each kind with its columns; a marked section of a page replaced and nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest

from ucore.errors import DataError
from ucore.evaluate import RECALLS
from ucore.tables import (
    border_tables,
    change_table,
    measure_tables,
    of_other_commits,
    provenance,
    recall_rows,
    recall_table,
    result_tables,
    results_text,
    update_marked_section,
)


def entry(label: str, metric: str, value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"label": label, "metric": metric, "value": value, "low": low, "high": high, "n": None}


def document(**changes: Any) -> dict[str, Any]:
    return {"name": "04_train", "dataset": "RSICD", "simulated": False, "metrics": [], "commit": "c" * 40, **changes}


def recall_text(reports: list[dict[str, Any]], **settings: Any) -> str:
    table = recall_table(reports, **settings)
    assert table
    return table.markdown(title=False)


def test_table_has_a_row_per_label_and_intervals_for_mr() -> None:
    recalls = [entry("fine-tuned", name, value, 0, 99) for name, value in zip(RECALLS, range(6), strict=True)]
    metrics = [entry("zero-shot", "mR", 3.14159), *recalls, entry("fine-tuned", "mR", 21.456, 20, 23.004)]
    other = [entry("only medians", "image_to_text_median_rank", 4.0)]
    reports = [
        document(metrics=metrics + other),
        document(metrics=[entry("zero-shot", "mR", 9)], dataset="city", simulated=True, name="05"),
    ]
    assert recall_text(reports).splitlines() == [
        "| dataset | model | i2t R@1 | i2t R@5 | i2t R@10 | t2i R@1 | t2i R@5 | t2i R@10 | mR | report |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        r"| RSICD | zero-shot | – | – | – | – | – | – | 3.14 | 04\_train |",
        r"| RSICD | fine-tuned | 0.00 | 1.00 | 2.00 | 3.00 | 4.00 | 5.00 | 21.46 [20.00, 23.00] | 04\_train |",
        "| city (simulated) | zero-shot | – | – | – | – | – | – | 9.00 | 05 |",
    ]
    chosen = recall_text(reports[:1], metrics=["image_to_text_median_rank", RECALLS[0]], intervals=[RECALLS[0]])
    assert chosen.splitlines()[0] == "| dataset | model | i2t median rank | i2t R@1 | report |"
    assert chosen.splitlines()[2:] == [
        r"| RSICD | fine-tuned | – | 0.00 [0.00, 99.00] | 04\_train |",
        r"| RSICD | only medians | 4.00 | – | 04\_train |",
    ]


def test_table_shows_hostile_names_as_text() -> None:
    hostile = "a|b<img src=x>\n![t](http://x) *b* `c` <!-- END results -->"
    row = recall_text([document(dataset=hostile, metrics=[entry(hostile, "mR", 1)])]).splitlines()[2]
    assert len(re.findall(r"(?<!\\)\|", row)) == 11  # the columns' own
    assert not re.search(r"<|>|(?<!\\)[\[`*]", row)
    assert row.startswith(r"| a\|b&lt;img src=x&gt; !\[t\](http://x) \*b\* \`c\` &lt;!-- END results --&gt; | a\|b")


def test_table_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match=r"No report holds any of .*mR"):
        results_text([document(metrics=[entry("a", "loss", 1)])])


def test_marked_section_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    page = "# Título\r\n\n<!-- BEGIN results -->\nold\n<!-- END results -->\n<!-- BEGIN other -->x<!-- END other -->"
    path.write_bytes(page.encode())
    for _ in range(2):  # the second time changes nothing
        update_marked_section(path, "results", "\n| a |\n| 1 |\n")
        expected = page.replace("\nold\n", "\n| a |\n| 1 |\n")
        assert path.read_bytes().decode() == expected
    update_marked_section(path, "other", "y")
    assert path.read_bytes().decode() == expected.replace("-->x<!--", "-->\ny\n<!--")
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("page", "text", "words"),
    [
        (None, "new", "Cannot read"),
        (b"\xff\xfe", "new", "Cannot read"),
        (b"no markers", "new", "must hold <!-- BEGIN results -->"),
        (b"<!-- BEGIN results -->", "new", "each once"),
        (b"<!-- END results --><!-- BEGIN results -->", "new", "below it"),
        (b"<!-- BEGIN results --><!-- BEGIN results --><!-- END results -->", "new", "each once"),
        (b"<!-- BEGIN results --><!-- END results -->", "a <!-- END results -->", "holds the marker"),
    ],
)
def test_marked_section_that_cannot_be_replaced(tmp_path: Path, page: bytes | None, text: str, words: str) -> None:
    path = tmp_path / "README.md"
    if page is not None:
        path.write_bytes(page)
    with pytest.raises(DataError, match=words) as error:
        update_marked_section(path, "results", text)
    assert "README.md" in str(error.value)
    assert (path.read_bytes() if path.exists() else None) == page


# --- borders, changes, other measurements -------------------------------------------------------------------------


def gap() -> dict[str, Any]:
    places = [("a -> a, one camera", 50.0), ("a -> b, one camera", 20.0), ("b -> a, one camera", 10.0)]
    metrics = [entry(label, "mR", value, value - 1, value + 1) for label, value in places]
    metrics += [
        entry("a -> a, own cameras", "mR", 40.0),
        entry("lost at a border, percent, one camera", "mR_lost", 61.25),
    ]
    return document(name="05_domain_gap", dataset="a+b test", simulated=True, metrics=metrics)


def ablation() -> dict[str, Any]:
    metrics = [entry("base", "mR", 30.0), entry("base", RECALLS[0], 9.0), entry("ema=0", "mR", 28.0)]
    metrics += [
        entry("ema=0", "mR_difference", -2.0, -3.0, -1.0),
        entry("loss=triplet", "mR_difference", 0.5, -0.25, 1),
    ]
    return document(name="07_ablations", metrics=metrics)


def test_a_gap_is_a_matrix_and_no_row_of_dashes() -> None:
    (table,) = border_tables([gap()])
    assert table.head == ["trained in", "a", "b"]
    assert table.rows == [
        ["a, one camera", "50.00 [49.00, 51.00]", "20.00 [19.00, 21.00]"],
        ["b, one camera", "10.00 [9.00, 11.00]", "–"],
        ["a, own cameras", "40.00", "–"],
    ]
    assert "Lost on average by crossing a border: 61.2 % (one camera)." in table.note
    assert recall_table([gap()]) is None
    assert result_tables([gap()]) == [table]


def test_a_change_has_its_interval_and_says_whether_chance_could_do_it() -> None:
    gain = entry("+ segment", "mR_gain over image only", 1.5, 0.5, 2.5)
    adapted = document(metrics=[entry("source-only", "mR", 9.0), entry("paper", "mR_difference", 0.1)])
    table = change_table([ablation(), adapted, document(name="02", metrics=[gain])])
    assert table
    assert [row[1:6] for row in table.rows] == [
        ["ema=0", "base", "28.00", "-2.00 [-3.00, -1.00]", "yes"],
        ["loss=triplet", "base", "–", "+0.50 [-0.25, +1.00]", "no"],
        ["paper", "source-only", "–", "+0.10", "–"],
        ["+ segment", "image only", "–", "+1.50 [+0.50, +2.50]", "yes"],
    ]
    assert recall_table([ablation()]) is None  # arms are no models to be compared with others
    assert change_table([gap()]) is None


def test_leaked_numbers_are_no_results() -> None:
    leaked = document(
        metrics=[entry("by the answer", "leaked_mR", 99.0), entry("by the answer", "leaked_mR_gain over x", 50.0)]
    )
    assert result_tables([leaked]) == []
    (table,) = measure_tables([leaked])
    assert table.head == ["what", "leaked mR", "leaked mR gain over x"]


def test_what_is_no_result_is_kept_apart_with_its_own_columns() -> None:
    counts = [entry("all", "images", 1200), entry("all", "words", 7.125, 7.0, 7.25), entry("spain", "images", 3)]
    (table,) = measure_tables([document(metrics=[*counts, entry("all", "mR", 1.0)])])
    assert table.head == ["what", "images", "words"]
    assert table.rows == [["all", "1,200", "7.12 [7.00, 7.25]"], ["spain", "3", "–"]]


def test_rows_for_a_plot_name_the_dataset_where_there_are_several() -> None:
    labels = ("m", "m, duplicate-aware", "m, ties at random")
    recalls = [entry(label, name, 1) for label in labels for name in RECALLS]
    one = document(metrics=[*recalls, entry("without recalls", "mR", 3)])
    other = document(dataset="city", simulated=True, metrics=recalls[: len(RECALLS)])
    assert {(row["label"], row.get("gallery")) for row in recall_rows([one, ablation()])} == {("m", None)}
    assert {(row["label"], row["gallery"]) for row in recall_rows([one, other])} == {
        ("m", "RSICD"), ("m", "city (simulated)")}  # fmt: skip


def test_two_reports_that_call_a_model_the_same_are_told_apart_in_a_plot() -> None:
    first, second = (document(name=f"04_train-{seed}", metrics=[entry("m", name, seed) for name in RECALLS])
                     for seed in (1, 2))  # fmt: skip
    shown = {row["label"]: row["value"] for row in recall_rows([first, second])}
    assert shown == {"m (04_train-1)": 1, "m (04_train-2)": 2}


def test_several_tables_have_titles_and_html_escapes_names() -> None:
    text = results_text([document(metrics=[entry("m", "mR", 1.0)]), gap(), ablation()])
    assert re.findall(r"(?m)^\*\*([^*]+)\.\*\*", text) == [
        "Retrieval", "Across borders, a+b test (simulated)", "What changes bring"]  # fmt: skip
    table = recall_table([document(dataset="<img src=x onerror=alert(1)>", metrics=[entry("m", "mR", 1.0)])])
    assert table
    assert "<img" not in table.html() and "&lt;img" in table.html()
    assert table.html().count('<th scope="col"') == len(table.head)


def test_what_is_of_another_commit_than_most_is_named_above_the_tables():
    three = [{**document(metrics=[entry("m", "mR", 1.0)]), "name": name, "commit": commit * 40}
             for name, commit in (("04_a", "a"), ("04_b", "b"), ("05_c", "b"))]  # fmt: skip
    assert of_other_commits(three) == {"04_a": "a" * 12} and of_other_commits(three[1:]) == {}
    assert of_other_commits([three[0], three[1]]) == {}, "no commit has more than half"
    assert results_text(three).startswith(f"Of another commit than most: 04\\_a ({'a' * 12}).\n\n| dataset")
    assert results_text(three[1:]).startswith("| dataset")


def test_a_command_is_shown_as_it_is_and_never_as_markup() -> None:
    from nbconvert.filters import markdown2html

    command = "ucore run 04 -p x`<img src=x onerror=alert(1)>``"
    machine = {"cpu": "a", "cores": 2, "gpu": "none", "torch": "2"}
    line = provenance([document(command=command, machine=machine, seed=0, commit="c" * 40, seconds={"train": 1.0})])
    page = markdown2html(line)
    assert "<img" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
