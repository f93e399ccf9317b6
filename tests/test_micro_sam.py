"""sam-micro: the shape of a SAM, its training data, its loss, and a training that can be stopped."""

import json

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from ucore.bundled import IMAGE_WEIGHTS
from ucore.click_scores import one_click_iou
from ucore.errors import CheckpointError, ConfigError, DataError
from ucore.micro_sam import IMAGE_SIZE, STRIDE, WIDTH, build_micro_sam, load_micro_sam, weights_path
from ucore.micro_sam_data import (
    CELLS,
    Source,
    centre_clicks,
    choose_objects,
    click,
    known_cells,
    make_window,
    regions,
    simulated_source,
    training_sources,
    windows,
)
from ucore.micro_sam_loss import guide_loss, mask_loss
from ucore.micro_sam_train import (
    STATE,
    MicroSamConfig,
    MicroSamTrainer,
    decode,
    prompts_of,
    train_micro,
)


def squares(count: int = 6, size: int = 96) -> Source:
    """Bright squares on dark ground; label 1 is the left one, label 2 the right one."""
    images, labels = [], []
    for number in range(count):
        label = np.zeros((size, size), np.uint16)
        label[20 : 44 + number, 10:40] = 1
        label[30:80, 56:84] = 2
        image = np.full((size, size, 3), 40, np.uint8)
        image[label == 1], image[label == 2] = (200, 60, 50), (230, 230, 230)
        images.append(image)
        labels.append(label[None])
    return Source("simulated", images, labels)


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_micro_sam()


def test_the_embedding_has_the_grid_that_segment_anything_expects(sam):
    with torch.no_grad():
        embedding = sam.image_encoder(torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE))
    assert embedding.shape == (2, WIDTH, IMAGE_SIZE // STRIDE, IMAGE_SIZE // STRIDE)
    predictor = SamPredictor(sam)
    predictor.set_image(np.zeros((100, 225, 3), np.uint8))
    masks, scores, low = predictor.predict(np.array([[50.0, 50.0]]), np.array([1]))
    assert masks.shape == (3, 100, 225) and scores.shape == (3,) and low.shape == (3, 128, 128)


def test_the_backbone_is_the_bundled_one():
    from ucore.bundled import weight_file

    original = torch.load(weight_file(*IMAGE_WEIGHTS), map_location="cpu", weights_only=True)
    stem, scale, variance = (list(original.values())[n] for n in (0, 1, 4))
    ours = build_micro_sam(imagenet=True).image_encoder.trunk.conv_stem.weight
    torch.testing.assert_close(ours, stem * (scale / torch.sqrt(variance + 1e-3))[:, None, None, None])


def test_batched_decoding_equals_segment_anythings(sam):
    rng = np.random.default_rng(0)
    embedding = torch.randn(2, WIDTH, 32, 32, generator=torch.Generator().manual_seed(1))
    points = torch.from_numpy(rng.uniform(0, 255, (2, 3, 2, 2)).astype(np.float32))
    labels = torch.ones(2, 3, 2, dtype=torch.long)
    labels[:, 1, 1], labels[:, 2, 1] = 0, -1
    with torch.no_grad():
        logits, scores = decode(sam, embedding, points, labels, np.zeros((2, 2), np.int64))
        for image in range(2):
            for prompt in range(3):
                count = 1 + int(labels[image, prompt, 1] >= 0)
                given = (points[image, prompt, :count][None], labels[image, prompt, :count][None])
                sparse, dense = sam.prompt_encoder(given, None, None)
                pe = sam.prompt_encoder.get_dense_pe()
                if count == 2:  # without a box segment_anything adds an empty point, which decode leaves to its caller
                    sparse = sparse[:, :2]
                expected = sam.mask_decoder.predict_masks(embedding[image : image + 1], pe, sparse, dense)
                torch.testing.assert_close(logits[image * 3 + prompt], expected[0][0], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(scores[image * 3 + prompt], expected[1][0], rtol=1e-4, atol=1e-4)


def test_boxes_are_embedded_as_segment_anything_does(sam):
    boxes = torch.tensor([[[20.0, 30.0], [90.0, 120.0]]])
    embedding = torch.randn(1, WIDTH, 32, 32)
    with torch.no_grad():
        logits, _ = decode(sam, embedding, boxes[None], torch.tensor([[[2, 3]]]), np.zeros((1, 2), np.int64))
        sparse, dense = sam.prompt_encoder(None, boxes.reshape(1, 4), None)
        expected, _ = sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_window_is_told_where_in_the_frame_it_lies(sam):
    embedding = torch.randn(1, WIDTH, 16, 16)
    labels = torch.ones(1, 1, 1, dtype=torch.long)
    whole = sam.prompt_encoder.get_dense_pe()[0]
    seen = []
    handle = sam.mask_decoder.transformer.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    with torch.no_grad():
        decode(sam, embedding, torch.tensor([[[[70.0, 30.0]]]]), labels, np.array([[16, 64]]))
    handle.remove()
    torch.testing.assert_close(seen[0][0], whole[:, 2:18, 8:24])


def test_clicks_lie_inside_their_masks_and_second_clicks_where_their_label_says():
    rng = np.random.default_rng(3)
    label = squares(1).labels[0][0]
    made = click(np.zeros((96, 96, 3), np.uint8), label, np.array([1, 2, 1, 2]), rng)
    for row, number in enumerate([1, 2, 1, 2]):
        (x, y), (x2, y2) = made.points[row].astype(int)
        assert label[y, x] == number
        assert (label[y2, x2] == number) == (made.labels[row, 1] == 1)
        assert made.masks[row].sum() * 4 == (label == number).sum()
    inside = np.abs(made.boxes[0] - [10, 20, 40, 44])
    assert (inside < 0.3 * 30).all()


def test_windows_keep_picture_and_mask_together():
    source = squares()
    source = Source("simulated", [np.where(label[0][..., None] > 0, 220, 30).astype(np.uint8).repeat(3, 2)
                                  for label in source.labels], source.labels)  # fmt: skip
    for window in [next(windows([source], [1.0], 64, 4, np.random.default_rng(seed))) for seed in range(8)]:
        assert window.image.shape == (64, 64, 3) and window.masks.shape == (4, 32, 32)
        bright = window.image.astype(float).mean(2).reshape(32, 2, 32, 2).mean((1, 3))
        for mask in window.masks.astype(float):
            assert bright[mask > 0.99].mean() >= bright.mean()  # objects are bright, the ground is dark


def test_a_window_without_objects_is_none_and_tiny_objects_are_not_chosen():
    rng = np.random.default_rng(0)
    blank = np.zeros((64, 64), np.uint16)
    assert make_window(np.zeros((64, 64, 3), np.uint8), blank, 64, 4, rng) is None
    blank[:4, :4] = 7  # 16 pixels
    assert len(choose_objects(blank, 4, rng)) == 0


def test_centre_clicks_are_innermost():
    label = np.zeros((40, 60), np.uint16)
    label[10:21, 20:51] = 5
    numbers, clicks, areas = centre_clicks(label)
    assert numbers.tolist() == [5] and areas.tolist() == [11 * 31]
    assert clicks[0, 1] == 15 and 25 <= clicks[0, 0] <= 45


def test_more_regions_than_16_bits_hold_stay_apart(monkeypatch):
    many = np.arange(300 * 300).reshape(300, 300)
    monkeypatch.setattr("skimage.segmentation.felzenszwalb", lambda image, **_: many)
    labels = regions(np.zeros((300, 300, 3), np.uint8))
    assert len(np.unique(labels[0])) == 90_000 and labels.min() == 1


def test_classical_regions_follow_edges():
    image = squares(1).images[0]
    fine = regions(image)[0]
    assert fine.min() == 1 and fine[30, 20] != fine[30, 5] and fine[50, 70] != fine[50, 50]


def test_the_loss_is_zero_for_the_right_mask_and_takes_the_best_of_three():
    target = torch.zeros(1, 8, 8)
    target[:, 2:5, 2:5] = 1
    right, wrong = (target * 2 - 1) * 20, (1 - 2 * target) * 20
    logits = torch.stack([wrong, wrong, right, wrong], dim=1)
    scores = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    parts = mask_loss(logits, scores, target, "best")
    assert parts["mask"] < 1e-3 and parts["iou"] == 1 and parts["iou_error"] == 0
    assert mask_loss(logits, scores, target, "first")["mask"] > 0.9
    assert mask_loss(logits, scores, target, "all")["mask"] > 0.9 * 3 / 4
    logits.requires_grad_()
    mask_loss(logits, scores, target, "best")["mask"].backward()
    assert logits.grad is not None and logits.grad[:, [0, 1, 3]].abs().max() == 0


def test_the_iou_it_reports_is_that_of_hand_made_masks():
    target = torch.zeros(1, 4, 4)
    target[0, 0] = 1  # four cells
    guess = torch.full((1, 4, 4), -9.0)
    guess[0, 0, :2] = guess[0, 1, 0] = 9.0  # two right, one wrong, two missed
    parts = mask_loss(guess[:, None].repeat(1, 4, 1, 1), torch.full((1, 4), 0.4), target, "best")
    assert parts["iou"].item() == pytest.approx(2 / 5) and parts["iou_error"].item() == pytest.approx(0, abs=1e-9)


def test_the_guide_wants_an_object_alike_and_the_rest_near_it_unlike():
    objects = torch.full((1, 60, 60), 2)
    objects[:, 5:10, 5:10] = 1
    objects[:, 20:] = 0  # unknown
    cells = torch.tensor([[7 * 60 + 7]])
    inside = (objects == 1).float()
    split = torch.stack([inside, 1 - inside], dim=1)
    likeness = torch.tensor([40.0, 0.5])
    assert guide_loss(split, objects, cells, likeness) < 1e-3
    assert guide_loss(torch.ones(1, 2, 60, 60), objects, cells, likeness) > 1
    far = split.clone()
    far[:, :, :, 40:] = far[:, :, 20:] = torch.tensor([1.0, 0.0])[:, None, None]  # as the object, but far or unknown
    assert guide_loss(far, objects, cells, likeness) < 1e-3


def test_cells_are_drawn_by_area_and_by_object():
    objects = np.zeros((30, 30), np.uint16)
    objects[:20, :20], objects[25, 25] = 3, 9
    cells = known_cells(objects, np.random.default_rng(0))
    labels = objects.ravel()[cells]
    assert len(cells) == CELLS and set(labels) == {3, 9}
    assert 0.1 < (labels == 9).mean() < 0.4  # about half of the half
    assert len(known_cells(np.zeros((4, 4), np.uint16), np.random.default_rng(0))) == CELLS


def test_training_learns_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    config = MicroSamConfig(steps=6, batch=4, prompts=3, save_every=2)
    sources = [squares()]
    train_micro(sources, tmp_path / "whole", config, "cpu")
    step = MicroSamTrainer.step

    def stopped(self, batch):
        if self.step_number == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(MicroSamTrainer, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_micro(sources, tmp_path / "parts", config, "cpu")
    assert (tmp_path / "parts" / STATE).is_file()
    monkeypatch.undo()
    train_micro(sources, tmp_path / "parts", config, "cpu")
    one, two = (load_micro_sam(tmp_path / name / "sam-micro.safetensors").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(ConfigError, match="other settings"):
        train_micro(sources, tmp_path / "parts", MicroSamConfig(steps=7), "cpu")
    with pytest.raises(ConfigError, match="other settings or data"):
        train_micro([squares(3)], tmp_path / "parts", config, "cpu")


def test_the_rate_rises_again_for_whole_pictures():
    trainer = MicroSamTrainer([squares()], MicroSamConfig(steps=1000), "cpu")
    rates, sides = {}, {}
    for step in (0, 149, 500, 999, 1000, 1149, 1399, 1400, 1549, 1649):
        trainer.step_number = step
        trainer._set_rates()
        rates[step], sides[step] = trainer.optimizer.param_groups[1]["lr"] / trainer.config.lr, trainer.side(step)
    assert trainer.last == 1650
    assert rates[0] < 0.01 and rates[149] > 0.9 and 0.4 < rates[500] < 0.6 and rates[999] < 0.02
    assert rates[1000] < 0.01 and 0.25 < rates[1149] < 0.5 and rates[1399] < 0.01
    assert rates[1400] < 0.01 and 0.15 < rates[1549] < 0.5 and rates[1649] < 0.01
    assert sides == dict.fromkeys(sides, 256) | {0: 128, 149: 128, 500: 128}


def test_a_training_can_begin_with_weights_and_the_last_phase(tmp_path):
    sources, config = [squares()], MicroSamConfig(steps=8, batch=4, prompts=3, save_every=1)
    train_micro(sources, tmp_path, config, "cpu", weights_path())
    log = json.loads((tmp_path / "training.json").read_text())["log"]
    assert [entry["step"] for entry in log] == [12, 13]  # the first 8 and the 3 on whole pictures are left out
    before, after = (load_micro_sam(path).state_dict() for path in (None, tmp_path / "sam-micro.safetensors"))
    changes = [(before[name] - after[name]).abs().max() for name in before]
    assert 0 < max(changes) < 0.01
    (tmp_path / "sam-micro.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="other settings or data"):
        train_micro(sources, tmp_path, config, "cpu", tmp_path / "other.safetensors")


def test_a_step_lowers_the_loss_of_its_own_batch():
    trainer = MicroSamTrainer([squares()], MicroSamConfig(steps=400, batch=4, prompts=4), "cpu")
    trainer.step_number = 160  # after the warm-up and after the steps of the encoder alone
    batch = trainer.batch(160)
    losses = [trainer.step(batch)["loss"] for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]


def test_prompts_follow_their_kind_and_the_windows_place():
    made = [click(np.zeros((96, 96, 3), np.uint8), squares(1).labels[0][0], np.array([1]), np.random.default_rng(0))]
    points, labels = prompts_of(made, "click", np.array([[8, 16]]))
    assert labels.tolist() == [[[1, -1]]]
    assert (points[0, 0, 0].numpy() == made[0].points[0, 0] + [16, 8]).all()
    assert prompts_of(made, "box", np.array([[0, 0]]))[1].tolist() == [[[2, 3]]]


def test_one_click_scores_come_in_the_pictures_own_pixels(sam):
    found = one_click_iou(sam, squares(2))
    assert found["picture"].tolist() == [0, 0, 1, 1] and found["area"].tolist() == [720, 1400, 750, 1400]
    assert ((found["iou"] <= found["best"]) & (found["best"] <= 1)).all()


def test_wrong_weights_and_absent_masks_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no weight file"):
        load_micro_sam(tmp_path / "none.safetensors")
    with pytest.raises(DataError, match="nothing to train on"):
        training_sources([], [], tmp_path)
    from ucore.simulate import SimulationConfig, simulate_dataset

    simulate_dataset(tmp_path / "set", SimulationConfig(countries=("spain",), tiles=2, masks=False), workers=1)
    with pytest.raises(DataError, match="--masks"):
        simulated_source([tmp_path / "set"])


def test_the_shipped_weights_segment_a_generated_tile(tmp_path):
    from ucore.simulate import SimulationConfig, simulate_dataset

    assert weights_path().stat().st_size <= 16e6
    simulate_dataset(tmp_path, SimulationConfig(countries=("germany",), tiles=3, seed=4242), workers=1)
    found = one_click_iou(load_micro_sam(), simulated_source([tmp_path]))
    large = found["iou"][found["area"] >= 200]
    assert len(large) > 10 and large.mean() > 0.5  # a click of no use has about 0.05
