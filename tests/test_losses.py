import itertools
import math

import numpy as np
import pytest
import torch
from open_clip.loss import ClipLoss
from torch.nn import functional as F

from ucore.losses import clip_loss, contrastive_loss, hinge_loss, sigmoid_loss, triplet_loss

SCALE = torch.tensor(math.log(10.0))


def features(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, columns, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def some_positives(rows: int, columns: int, seed: int, empty: bool = False) -> torch.Tensor:
    """About a third True; without `empty`, at least one in every row and column."""
    positives = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.3
    if not empty:
        positives[torch.arange(columns) % rows, torch.arange(columns)] = True
    return positives


def cross_entropy(logits: np.ndarray, positives: np.ndarray, smoothing: float) -> float:
    """Mean over the rows that have a positive of -sum(target * log_softmax), entry by entry."""
    losses = []
    for row, wanted in zip(logits, positives, strict=True):
        if not wanted.any():
            continue
        log_sum = math.log(sum(math.exp(value) for value in row))
        target = [(1 - smoothing) * w / wanted.sum() + smoothing / len(row) for w in wanted]
        losses.append(-sum(t * (value - log_sum) for t, value in zip(target, row, strict=True)))
    return sum(losses) / len(losses)


# --- clip_loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_one_text_an_image_is_the_loss_of_open_clip(n):
    image, text = features(n, 16, 1), features(n, 16, 2)
    expected = ClipLoss()(image, text, SCALE.exp())
    torch.testing.assert_close(clip_loss(image, text, SCALE), expected)
    torch.testing.assert_close(clip_loss(image, text, SCALE, torch.eye(n, dtype=torch.bool)), expected)


def test_gradients_of_the_plain_case_are_those_of_open_clip():
    leaves = [features(6, 16, 1).requires_grad_(), features(6, 16, 2).requires_grad_(), SCALE.clone().requires_grad_()]
    mine = torch.autograd.grad(clip_loss(leaves[0], leaves[1], leaves[2]), leaves)
    theirs = torch.autograd.grad(ClipLoss()(leaves[0], leaves[1], leaves[2].exp()), leaves)
    torch.testing.assert_close(mine, theirs)


def test_two_positives_by_hand():
    # The features are unit vectors, so that the similarities are 1 on the diagonal and 0 elsewhere, and with
    # scale log(2) the logits are 2 and 0. Image 0 has texts 0 and 1; images 1 and 2 one text each.
    eye = torch.eye(3)
    positives = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    log_sum = math.log(math.exp(2) + 2)
    one = log_sum - 2  # a row whose single positive has the logit 2
    both = log_sum - (2 + 0) / 2  # half the target on the logit 2, half on a logit 0
    image_to_text = (both + one + one) / 3
    text_to_image = (one + both + one) / 3  # text 1 belongs to images 0 and 1
    loss = clip_loss(eye, eye, torch.tensor(math.log(2.0)), positives)
    assert loss.item() == pytest.approx((image_to_text + text_to_image) / 2, abs=1e-6)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_many_positives_against_plain_loops(empty, smoothing):
    image, text = features(5, 8, 3), features(9, 8, 4)
    positives = some_positives(5, 9, seed=5, empty=empty)
    if empty:
        positives[2], positives[:, 4] = False, False
    logits = (10 * image @ text.T).numpy().astype(float)
    expected = (
        cross_entropy(logits, positives.numpy(), smoothing) + cross_entropy(logits.T, positives.numpy().T, smoothing)
    ) / 2
    assert clip_loss(image, text, SCALE, positives, smoothing).item() == pytest.approx(expected, rel=1e-5)


def test_an_image_without_a_text_in_the_batch_is_no_query_but_stays_a_negative():
    image, text = features(3, 8, 6), features(2, 8, 7)
    positives = torch.tensor([[1, 0], [0, 1], [0, 0]], dtype=torch.bool)
    logits = 10 * image @ text.T
    rows = F.cross_entropy(logits[:2], torch.tensor([0, 1]))
    columns = F.cross_entropy(logits.T, torch.tensor([0, 1]))  # over all three images
    torch.testing.assert_close(clip_loss(image, text, SCALE, positives), (rows + columns) / 2)


def test_label_smoothing_is_that_of_torch():
    image, text = features(6, 16, 8), features(6, 16, 9)
    logits, target = 10 * image @ text.T, torch.arange(6)
    expected = (
        F.cross_entropy(logits, target, label_smoothing=0.1) + F.cross_entropy(logits.T, target, label_smoothing=0.1)
    ) / 2
    torch.testing.assert_close(clip_loss(image, text, SCALE, label_smoothing=0.1), expected)


# --- triplet_loss -------------------------------------------------------------------------------------------


def test_hinge_by_hand():
    # S = [[1, 0.6], [0, 0.8]]: image 0 sees text 1 at 0.2 - 1 + 0.6 < 0, nothing; image 1 sees text 0 at
    # 0.2 - 0.8 + 0 < 0, nothing. Text 0 sees image 1 at 0.2 - 1 + 0, nothing; text 1 sees image 0 at
    # 0.2 - 0.8 + 0.6 = 0, nothing. With margin 0.5: image 0 pays 0.1, text 1 pays 0.3, together 0.4 over 2 images.
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert triplet_loss(image, text, margin=0.2).item() == pytest.approx(0, abs=1e-6)
    assert triplet_loss(image, text, margin=0.5).item() == pytest.approx(0.4 / 2)


@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.parametrize("margin", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_hinge_against_plain_loops(seed, margin, few, monkeypatch):
    monkeypatch.setattr("ucore.losses.FEW", few)
    image, text = features(6, 4, seed), features(8, 4, seed + 10)
    positives = some_positives(6, 8, seed + 20)
    similarity = (image @ text.T).numpy().astype(float)
    wanted = positives.numpy()
    total = 0.0
    for i in range(6):
        for j in range(8):
            if not wanted[i, j]:
                continue
            for k in range(8):
                total += 0 if wanted[i, k] else max(0, margin + similarity[i, k] - similarity[i, j])
            for k in range(6):
                total += 0 if wanted[k, j] else max(0, margin + similarity[k, j] - similarity[i, j])
    assert triplet_loss(image, text, positives, margin).item() == pytest.approx(total / 6, rel=1e-5)


def test_a_duplicate_caption_is_no_negative_of_the_hinge():
    # All features are equal, so that every negative costs the whole margin, and positives cost nothing.
    same = torch.tensor([[1.0, 0.0]] * 3)
    positives = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    # Four pairs with one negative on either side, and the pair (2, 2) with two on either side.
    assert triplet_loss(same, same, positives, margin=0.25).item() == pytest.approx((4 * 2 + 4) * 0.25 / 3)


# --- both ---------------------------------------------------------------------------------------------------


def both(image: torch.Tensor, text: torch.Tensor, positives: torch.Tensor | None) -> list[torch.Tensor]:
    return [clip_loss(image, text, SCALE, positives, 0.1), triplet_loss(image, text, positives)]


@pytest.mark.parametrize("number", [0, 1])
def test_gradients_match_finite_differences(number):
    positives = some_positives(3, 4, seed=1)
    inputs = [features(3, 5, 2, torch.float64).requires_grad_(), features(4, 5, 3, torch.float64).requires_grad_()]
    assert torch.autograd.gradcheck(lambda image, text: both(image, text, positives)[number], inputs)


@pytest.mark.parametrize("number", [0, 1])
def test_gradients_stay_finite_at_the_lowest_temperature_and_with_equal_features(number):
    image, text = (torch.tensor([[1.0, 0.0]] * 4).requires_grad_() for _ in range(2))
    coldest = torch.tensor(math.log(100.0), requires_grad=True)
    loss = [clip_loss(image, text, coldest), triplet_loss(image, text)][number]
    loss.backward()
    assert torch.isfinite(loss)
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize("number", [0, 1])
def test_a_loss_does_not_depend_on_the_order_of_the_batch(number):
    image, text, positives = features(5, 8, 1), features(7, 8, 2), some_positives(5, 7, 3)
    rows, columns = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([6, 2, 0, 1, 5, 4, 3])
    shuffled = both(image[rows], text[columns], positives[rows][:, columns])
    torch.testing.assert_close(shuffled[number], both(image, text, positives)[number])


def test_as_many_images_as_texts_are_needed_where_no_positives_are_given():
    for loss in (lambda i, t: clip_loss(i, t, SCALE), triplet_loss):
        with pytest.raises(ValueError, match="as many images as texts"):
            loss(features(3, 4, 1), features(2, 4, 2))


# --- losses of similarities ---------------------------------------------------------------------------------


def test_the_sigmoid_loss_is_that_of_open_clip():
    from open_clip.loss import SigLipLoss

    image, text, bias = features(6, 16, 1), features(6, 16, 2), torch.tensor(-3.0)
    expected = SigLipLoss()(image, text, SCALE.exp(), bias)
    torch.testing.assert_close(sigmoid_loss(image @ text.T, SCALE, bias), expected)


def test_soft_positives_by_hand():
    similarity, weights = torch.tensor([[0.5, 0.1], [0.0, 0.4]]), torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    # Hinge, margin 0.2: pair (0, 0): its row has the half negative 0.1, no violation; its column 0.0, none.
    # Pair (0, 1), weight 0.5: in its row a full positive, no negative; in its column another full positive.
    # Pair (1, 1): row 0.0, none; column: a half negative with 0.1, none. With the margin 0.4:
    # (0, 0): row (0.4 + 0.1 - 0.5) = 0; (1, 1): row 0.4 + 0.0 - 0.4 = 0, column 0.5 * (0.4 + 0.1 - 0.4) = 0.05.
    assert hinge_loss(similarity, weights, 0.2).item() == 0
    assert hinge_loss(similarity, weights, 0.4).item() == pytest.approx(0.05 / 2)
    logits = similarity.numpy().astype(float)
    expected = (cross_entropy(logits, weights.numpy(), 0.0) + cross_entropy(logits.T, weights.numpy().T, 0.0)) / 2
    loss = contrastive_loss(similarity, torch.tensor(0.0), weights)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [lambda s, p: contrastive_loss(s, SCALE, p), hinge_loss])
def test_nothing_that_belongs_together_costs_nothing(loss):
    similarity = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(similarity, torch.zeros(3, 4, dtype=torch.bool))
    value.backward()
    assert value.item() == 0 and (similarity.grad == 0).all()


@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_hinge_of_soft_positives_against_plain_loops(margin, few, monkeypatch):
    monkeypatch.setattr("ucore.losses.FEW", few)  # either way of adding up
    similarity = torch.randn(5, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights = torch.rand(5, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    total = 0.0
    for i, j in itertools.product(range(5), range(7)):
        for k in range(7):
            violation = max(0.0, margin + float(similarity[i, k] - similarity[i, j])) if k != j else 0.0
            total += float(weights[i, j] * (1 - weights[i, k])) * violation
        for k in range(5):
            violation = max(0.0, margin + float(similarity[k, j] - similarity[i, j])) if k != i else 0.0
            total += float(weights[i, j] * (1 - weights[k, j])) * violation
    assert hinge_loss(similarity, weights, margin).item() == pytest.approx(total / 5)
    assert torch.autograd.gradcheck(lambda s: hinge_loss(s, weights, margin), similarity.requires_grad_())
