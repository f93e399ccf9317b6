"""Results as files: what another program reads from them, and what is refused."""

import json

import geopandas
import pandas as pd
import pytest
import shapely

from ucore.answers import Answer, Hit, save_places
from ucore.errors import ConfigError


def hit(rank: int, lon: float | None = 24.9, text: str = "a lake") -> Hit:
    return Hit(rank, 0.5 / rank, 0.4, f"image:t{rank}", "image", f"t{rank}", f"t{rank}.png", text, "finland",
               ("natural=water", "building=yes"), "survey", lon, None if lon is None else 60.1, 0.6, "test",
               times=2, others=("image:t9",))  # fmt: skip


ANSWER = Answer(
    "a <b>lake</b>", "image", (hit(1), hit(2, None, "=cmd()|'x'"), hit(3, 25.0)), ("A note.",), positions=(1, 2, 3)
)


def test_every_format_holds_the_hits(tmp_path):
    values = json.loads(ANSWER.save(tmp_path / "found.json").read_text("utf-8"))
    assert values["query"] == "a <b>lake</b>" and len(values["hits"]) == 3 and "positions" not in values
    for name in ("found.geojson", "found.parquet"):
        path = ANSWER.save(tmp_path / name)
        frame = geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)
        assert list(frame["sample_id"]) == ["t1", "t3"]  # the second has no place
        assert frame.crs.to_epsg() == 4326
        assert (frame.geometry.iloc[1].x, frame.geometry.iloc[1].y) == (25.0, 60.1)
        assert frame["tags"].iloc[0] == "natural=water, building=yes"
    table = pd.read_csv(ANSWER.save(tmp_path / "found.csv"))
    assert list(table["rank"]) == [1, 2, 3]
    assert table["text"][1] == "'=cmd()|'x'"  # no spreadsheet runs it


def test_footprints_take_the_place_of_points(tmp_path):
    table = pd.DataFrame({"lon": [1.0, 2.0], "lat": [3.0, 4.0], "score": [0.5, float("nan")]})
    box = shapely.box(0, 2, 2, 4)
    save_places(table, tmp_path / "scores.geojson", [box, None])
    frame = geopandas.read_file(tmp_path / "scores.geojson")
    assert frame.geometry.iloc[0].equals(box) and frame.geometry.iloc[1].geom_type == "Point"
    assert pd.isna(frame["score"][1])


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.json, \.geojson, \.parquet or \.csv"):
        ANSWER.save(tmp_path / "found.shp")
    assert list(tmp_path.iterdir()) == []


def test_lines_for_a_terminal_hold_nothing_that_it_would_obey():
    lines = Answer("x", "image", (hit(1, text="red\x1b[31m roof"),), simulated=True).lines()
    assert "SIMULATED" in lines[0] and "\x1b" not in "".join(lines)
    assert "×2" in lines[1] and "sure  40%" in lines[1]
    assert "&lt;b&gt;" in ANSWER._repr_html_() and "<b>" not in ANSWER._repr_html_()
    assert Answer("x", "image", ()).lines()[1] == "Nothing was found."
