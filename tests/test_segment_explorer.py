"""Sliders leave the masks that they say, the click asks for one mask, and the still picture is the live one."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ucore.sam
from ucore.closer import CloserLook
from ucore.errors import ConfigError, DataError, UserError
from ucore.looker import REMEMBERED, SamLooker
from ucore.manifest import Manifest
from ucore.masks import Segments
from ucore.segment_explorer import DPI, SLIDERS, SegmentExplorer

SIDE = 100
# Shares of the tile: 40 %, 20 %, 19 % (nearly the second again), 4 %, 0.04 %.
BOXES = ((0, 0, 100, 40), (0, 40, 50, 80), (0, 40, 50, 78), (80, 80, 100, 100), (60, 60, 62, 62))
SURE = (0.9, 0.8, 0.95, 0.5, 0.99)


class FakeLooker:
    """The same masks for every tile; a click means the first mask under it."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[int, int]] = Counter()
        self.clicks: list[tuple[float, float]] = []

    def masks(self, key: int, image: np.ndarray, points: int) -> Segments:
        self.asked[key, points] += 1
        masks = np.zeros((len(BOXES), *image.shape[:2]), bool)
        for mask, (left, top, right, bottom) in zip(masks, BOXES, strict=True):
            mask[top:bottom, left:right] = True
        return Segments.from_masks(masks, np.array(SURE))

    def click(self, key: int, image: np.ndarray, x: float, y: float) -> Segments:
        self.clicks.append((x, y))
        found = self.masks(-1, image, 0)
        rows = [row for row, (left, top, right, bottom) in enumerate(BOXES) if left <= x < right and top <= y < bottom]
        some = found.take(rows[:1])
        return Segments.from_masks(some.masks(), some.predicted_iou, points=np.tile([x, y], (len(some), 1)))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Manifest:
    folder, rows = tmp_path_factory.mktemp("tiles"), []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(dict(sample_id=f"tile-{number}", image=f"{number}.png", captions=["a"], domain="x", split="val",
                         source="simulated: test"))  # fmt: skip
    return Manifest.from_rows(rows, folder)


@pytest.fixture
def explorer(tiles) -> SegmentExplorer:
    return SegmentExplorer(tiles, looker=FakeLooker())


def shares(explorer: SegmentExplorer) -> list[int]:
    return explorer.kept.areas.tolist()


def test_each_slider_leaves_what_it_says(explorer):
    assert shares(explorer) == [4000, 1900, 400]  # the speck is too small; of the two that overlap the surer is kept
    bars = explorer.sliders
    bars["smallest"].value = 0
    assert shares(explorer) == [4000, 1900, 400, 4]
    bars["smallest"].value = 10
    assert shares(explorer) == [4000, 1900]
    bars["overlap"].value = 1
    assert sorted(shares(explorer)) == [1900, 2000, 4000]
    bars["iou"].value = 0.85
    assert sorted(shares(explorer)) == [1900, 4000]
    bars["keep"].value = 1
    assert shares(explorer) == [4000]
    explorer.show(largest=1)
    assert shares(explorer) == [4000]


def test_the_line_counts_every_step_and_says_what_is_simulated(explorer):
    explorer.show(iou=0.85, x=10, y=60)
    said = explorer.status.value
    assert "5 masks → 4 large enough → 2 sure enough → 2 distinct → 2 kept" in said
    assert "the click means 20.0% of the tile, predicted IoU 0.80 (simulated)" in said
    assert said.startswith('<div role="status">')


def test_the_click_is_where_the_sliders_point(explorer):
    explorer.sliders["x"].value = 100
    explorer.sliders["y"].value = 100
    assert explorer.looker.clicks[-1] == (99, 99)
    assert explorer.clicked.areas.tolist() == [400]
    explorer.show(x=70, y=50)
    assert len(explorer.clicked) == 0
    assert "the click" not in explorer.status.value
    explorer.figure()  # also without a mask


def test_masks_are_found_once_for_a_tile_and_a_grid(explorer):
    for tile in ("tile-1", "tile-0", "tile-1", "tile-0"):
        explorer.tile.value = tile
    explorer.sliders["points"].value = 32
    explorer.sliders["keep"].value = 3
    asked = {key: count for key, count in explorer.looker.asked.items() if key[1]}
    assert asked == {(0, 16): 1, (1, 16): 1, (0, 32): 1}


def test_the_still_picture_is_the_live_one(explorer):
    before = bytes(explorer.image.value)
    explorer.show("tile-2", background="blur", keep=2)
    assert bytes(explorer.image.value) == explorer.figure().png(DPI) != before
    assert "tile-2 (simulated): 2 masks" in explorer.figure().alt


def test_show_sets_what_is_not_named_back_and_refuses_what_there_is_not(explorer):
    explorer.show(keep=1, smallest=5)
    explorer.show()
    assert {name: bar.value for name, bar in explorer.sliders.items()} == {k: s.value for k, s in SLIDERS.items()}
    with pytest.raises(DataError, match="no tile 'tile-9'"):
        explorer.show("tile-9")
    with pytest.raises(ConfigError, match="did you mean 'keep'"):
        explorer.show(kepp=3)
    with pytest.raises(ConfigError, match="keep is 99; it must be from 1 to 20"):
        explorer.show(keep=99)
    with pytest.raises(ConfigError, match="Words need an encoder"):
        explorer.show(words="a pond")
    with pytest.raises(ConfigError, match="background 'pink'"):
        explorer.show(background="pink")


def test_nothing_left_is_said_and_drawn(explorer):
    explorer.show(iou=1)
    assert len(explorer.kept) == 0
    assert "0 kept" in explorer.status.value
    assert any("No mask is left" in text.get_text() for text in explorer.figure().texts)


def test_an_image_that_is_gone_is_said_in_one_sentence(tiles, tmp_path):
    rows = [dict(sample_id=name, image=f"{name}.png", captions=[], domain="x", split="val") for name in ("a", "<b>")]
    Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "a.png")
    explorer = SegmentExplorer(Manifest.from_rows(rows, tmp_path), looker=FakeLooker())
    explorer.tile.value = "<b>"
    assert explorer.status.value.startswith('<div role="alert">Cannot read the image')
    assert "<b>" not in explorer.status.value
    with pytest.raises(UserError, match="Cannot read"):
        explorer.show("<b>")
    explorer.show("a")
    assert 'role="status"' in explorer.status.value


def test_words_order_the_masks_by_the_likeness_of_their_crops(tiles, tiny_clip):
    import torch

    from ucore.crops import crop_segments
    from ucore.features import embed_texts
    from ucore.images import load_image
    from ucore.model import load_encoder

    torch.manual_seed(0)
    encoder = load_encoder(tiny_clip)
    explorer = SegmentExplorer(tiles, encoder, FakeLooker()).show(words="a pond", smallest=0, background="box")
    crops = crop_segments(np.asarray(load_image(tiles.image_path(0))), explorer.kept, "box", encoder.image_size[0])
    with encoder.evaluating():
        features = encoder.encode_image(torch.from_numpy(crops).permute(0, 3, 1, 2)).numpy()
    cosines = features @ embed_texts(encoder, ["a pond"], progress=False)[0]
    assert len(cosines) == 4
    assert (np.diff(cosines) <= 1e-6).all()
    explorer.sliders["similarity"].value = round(float(cosines[1]) - 0.005, 2)
    assert 2 <= len(explorer.kept) < 4 or np.ptp(cosines[1:]) < 0.02
    assert "similar enough" in explorer.status.value


# --- Segment Anything -------------------------------------------------------------------------------------------


@pytest.fixture
def looker(monkeypatch) -> Any:
    import torch

    from ucore.micro_sam import build_micro_sam

    torch.manual_seed(0)
    sam, loads, seen = build_micro_sam(), [], []
    monkeypatch.setattr(ucore.sam, "load_sam", lambda *given: loads.append(given) or sam)
    sam.image_encoder.register_forward_hook(lambda *_: seen.append("picture"))
    window = CloserLook._window
    monkeypatch.setattr(CloserLook, "_window", lambda *given: (window(*given), seen.remove("picture"))[0])
    looker: Any = SamLooker(device="cpu")
    looker.loads, looker.seen = loads, seen
    return looker


def test_a_tile_is_embedded_once_for_all_its_clicks_and_the_model_loaded_once(looker):
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    assert looker.loads == []  # only when it is needed
    for x in (5, 40, 79):
        found = looker.click(0, image, x, 30)
        assert found.size == (60, 80)
        assert 1 <= len(found) <= 4  # of a second look, and those of the first that are something else
        assert (np.diff(found.predicted_iou[1:]) <= 0).all()
        assert found.points.tolist() == [[x, 30]] * len(found)
    assert len(looker.seen) == 5  # whole: once for the first look and, mirrored, four times for the second
    looker.click(1, image[::-1], 3, 3)
    assert len(looker.seen) == 10
    assert len(looker.loads) == 1
    for key in range(2, 3 + REMEMBERED):
        looker._predictors[key] = None
    looker.click(1, image[::-1], 3, 3)
    assert len(looker._predictors) == REMEMBERED


def test_the_grid_of_clicks_is_as_fine_as_asked(looker):
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    assert looker.masks(0, image, 4).size == (60, 80)
    looker.masks(0, image, 8)
    assert {points: one.generator.points_per_side for points, one in looker._generators.items()} == {4: 4, 8: 8}
