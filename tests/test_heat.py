"""The scores of a query on a map: what is written, and what is refused."""

import base64
import json
import re
import shutil

import geopandas
import numpy as np
import pandas as pd
import pytest

from ucore.errors import ConfigError, DataError
from ucore.filters import Filter
from ucore.heat import heat_layer, heat_map, layer_titles, quantised, save_scores
from ucore.maps import save_map
from ucore.retrieve import Searcher


@pytest.fixture(scope="module")
def searcher(search_place) -> Searcher:
    return Searcher(search_place.index)


def page_data(path) -> dict:
    page = path.read_text("utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_every_tile_and_the_best(searcher, tmp_path):
    layer = heat_layer(searcher, "a red house", k=5)
    data = page_data(save_map(heat_map([layer]), tmp_path / "map.html"))
    (shown,) = data["layers"]
    assert len(shown["tiles"]["ids"]) == 36 and len(base64.b64decode(shown["scores"])) == 36
    best = [shown["tiles"]["ids"][result["tile"]] for result in shown["results"]]
    assert best == [hit.sample_id for hit in layer.answer.hits] and len(best) == 5
    assert layer.table["score"].max() == pytest.approx(layer.answer.hits[0].score, abs=1e-5)
    assert "http://" not in re.sub(r"http://www.w3.org\S*", "", (tmp_path / "map.html").read_text()).split("<body")[1]


def test_two_queries_stand_side_by_side_and_a_third_is_refused(searcher, tmp_path):
    layers = [heat_layer(searcher, text, Filter(domains=("spain",))) for text in ("a house", "a field")]
    data = page_data(save_map(heat_map(layers), tmp_path / "map.html"))
    assert [layer["title"] for layer in data["layers"]] == ["a house", "a field"]
    with pytest.raises(ConfigError, match="two side by side, not 3"):
        heat_map([*layers, layers[0]])
    frame = geopandas.read_file(save_scores(layers, tmp_path / "scores.geojson"))
    assert len(frame) == 24 and set(frame["query"]) == {"a house", "a field"}
    assert set(frame.geometry.geom_type) == {"Polygon"}
    assert len(geopandas.read_parquet(save_scores(layers, tmp_path / "scores.parquet"))) == 24


def test_hostile_queries_stay_text(searcher, tmp_path):
    hostile = "</script><script>alert(1)</script>{{ 7*7 }}"
    page = save_map(heat_map([heat_layer(searcher, hostile)]), tmp_path / "map.html").read_text("utf-8")
    assert "<script>alert" not in page


def test_without_a_place_there_is_no_map(searcher):
    with pytest.raises(DataError, match="coordinates: no map"):
        heat_layer(searcher, "a house", Filter(box=(0, 0, 1, 1)))


def test_colours_go_from_the_middle_up():
    low, high, code = quantised(np.array([0.0, 1.0, 2.0, np.nan]))
    assert (low, high) == (1.0, 2.0)
    assert list(base64.b64decode(code)) == [0, 0, 254, 255]
    assert quantised(None) == (None, None, "") and quantised(np.array([np.nan])) == (None, None, "")
    assert list(base64.b64decode(quantised(np.array([3.0, 3.0]))[2])) == [0, 0]


def test_two_indexes_are_told_apart(search_place, searcher, tmp_path):
    shutil.copytree(search_place.index, tmp_path / "after" / search_place.index.name)
    other = Searcher(tmp_path / "after" / search_place.index.name, search_place.checkpoint)
    layers = [heat_layer(searcher, "a red house", k=2), heat_layer(other, "a red house", k=2)]
    ends = [f"{search_place.index.parent.name}/{search_place.index.name}", f"after/{search_place.index.name}"]
    assert layer_titles(layers) == [f"a red house ({end})" for end in ends]
    assert layer_titles([layers[0], layers[0]]) == ["a red house"] * 2
    page = save_map(heat_map(layers), tmp_path / "map.html").read_text("utf-8")
    assert all(f"a red house ({end})" in page for end in ends)
    table = pd.read_csv(save_scores(layers, tmp_path / "scores.csv"))
    assert set(table["index"]) == set(ends) and not table.duplicated(["sample_id", "query", "index"]).any()
