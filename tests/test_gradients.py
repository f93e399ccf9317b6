"""Batches in parts: the gradients of the whole batch's loss, as autograd has them from one graph."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ucore.alignment import SegmentSets
from ucore.config import TrainConfig
from ucore.data import read_dataset
from ucore.errors import ConfigError
from ucore.gradients import chunked_backward, total
from ucore.losses import clip_loss, triplet_loss
from ucore.model import load_encoder
from ucore.train import Trainer


class Towers(nn.Module):
    """Two towers with dropout, a temperature, and a part that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.4), nn.Linear(16, 5))
        self.text = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.4), nn.Linear(16, 5))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.unused = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("loss", ["clip", "triplet"])
@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_gradients_in_parts_are_those_of_one_graph(loss, size):
    torch.manual_seed(0)
    model, images, texts = Towers(), torch.randn(10, 6), torch.randn(10, 4)
    chunks = [slice(start, min(start + size, 10)) for start in range(0, 10, size)]
    most = 0

    def encode(number):
        nonlocal most
        torch.manual_seed(number)  # dropout
        part = chunks[number]
        most = max(most, len(images[part])) if torch.is_grad_enabled() else most
        return F.normalize(model.image(images[part]), dim=1), F.normalize(model.text(texts[part]), dim=1)

    def losses(image, text):
        if loss == "triplet":
            return {"one": triplet_loss(image, text, margin=1.0)}
        return {"one": clip_loss(image, text, model.logit_scale), "two": 0.1 * (image @ text.T).square().mean()}

    whole = losses(*(torch.cat(side) for side in zip(*(encode(n) for n in range(len(chunks))), strict=True)))
    total(whole).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    most = 0
    parts = chunked_backward(encode, chunks, losses, list(model.parameters()), 5)
    assert most == size  # what backward needs is held of one part at a time
    torch.testing.assert_close(parts, {name: part.detach() for name, part in whole.items()})
    assert expected["unused"] is None
    torch.testing.assert_close({name: p.grad for name, p in model.named_parameters()}, expected)


# --- in the trainer -------------------------------------------------------------------------------------------

SETTINGS = dict(head_epochs=0, tune_epochs=1, tune_batch_size=8, test_views=1, precision="float32")


@pytest.fixture
def new_trainer(tiny_rsicd, tiny_clip_factory):
    manifest = read_dataset(tiny_rsicd, split=("train", "val"))

    def make(**changes):
        config = TrainConfig.at("small", **{**SETTINGS, **changes})
        return Trainer(tiny_clip_factory(), manifest.split("train"), manifest.split("val"), config, progress=False)

    return make


def gradients(trainer):
    return {name: p.grad.clone() for name, p in trainer.encoder.named_parameters() if p.grad is not None}


def losses_of(trainer, rows, texts):
    positives = torch.from_numpy(trainer.positives(rows, texts))

    def losses(image, text):
        torch.manual_seed(7)  # dropout of the segments' head
        return trainer.losses(rows, image, text, positives)

    return losses


def with_segments(trainer):
    """Up to three segments an image, of made-up features; every fourth image has none."""
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(24, 3, trainer.encoder.image_width)))
    present = torch.arange(3) < (torch.arange(24) % 4)[:, None]
    trainer.encoder.add_segments("late")
    trainer._sets["train"] = SegmentSets(features.half(), present)
    return trainer


def without_dropout(trainer):
    for module in trainer.encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def test_a_chunk_changes_the_memory_not_the_gradients(new_trainer):
    results = []
    for chunk in (0, 3):
        trainer = with_segments(new_trainer(chunk=chunk))
        without_dropout(trainer)
        rows, texts = trainer.phase.next_batch()
        parts = trainer.phase.backward(rows, texts, losses_of(trainer, rows, texts))
        results.append((parts, gradients(trainer)))
    assert set(results[0][0]) == {"image_text", "segment_text"}
    torch.testing.assert_close(results[1][0], results[0][0])
    assert results[0][1].keys() == results[1][1].keys()
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-5)


def test_dropout_is_the_same_when_a_part_is_encoded_again(new_trainer):
    trainer = with_segments(new_trainer(chunk=3))
    phase = trainer.phase
    rows, texts = phase.next_batch()
    pixels = phase._next_pixels()
    sides = []
    for number, part in enumerate(phase.chunks):
        torch.manual_seed(phase.dropout_seed(number))
        sides.append(phase._encode(pixels[part], texts[part]))
    total(losses_of(trainer, rows, texts)(*(torch.cat(side) for side in zip(*sides, strict=True)))).backward()
    expected = gradients(trainer)
    trainer.encoder.zero_grad(set_to_none=True)
    phase.close()
    phase.backward(rows, texts, losses_of(trainer, rows, texts))
    torch.testing.assert_close(gradients(trainer), expected, rtol=1e-3, atol=1e-5)


def test_a_chunked_run_resumes_to_the_same_end(new_trainer):
    losses = []
    for stop in (False, True):
        trainer = new_trainer(chunk=5)
        for _ in range(2):
            trainer.step()
            if stop and trainer._phase is not None:
                trainer._phase.close()  # as after a kill: pixels are decoded anew
        losses.append([row["loss"] for row in trainer.history])
    assert losses[0] == losses[1] and len(set(losses[0])) == 2


def test_a_model_that_normalises_over_the_batch_is_not_cut_into_parts(new_trainer):
    trainer = new_trainer(chunk=4)
    trainer.encoder.clip.visual.norm = nn.BatchNorm2d(3)
    with pytest.raises(ConfigError, match=r"normalises over the batch.*leave out -s chunk"):
        trainer.step()


def test_compiling_the_vision_tower_changes_no_loss(new_trainer, monkeypatch):
    compiled = []

    def traced(self):  # dynamo's graph, run as it is: no compiler is needed
        compiled.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", traced)
    losses = []
    for use in (False, True):
        trainer = new_trainer(compile=use, max_train_images=8)
        trainer.step()
        losses.append(trainer.history[0]["loss"])
    assert len(compiled) == 1
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.slow
def test_vit_b_16_trains_from_random_weights(tiny_rsicd):
    manifest = read_dataset(tiny_rsicd, split=("train", "val"))
    encoder = load_encoder("ViT-B-16")
    config = TrainConfig.at(
        "full", **{**SETTINGS, "tune_batch_size": 2, "max_train_images": 4, "frozen_image_stages": 11}
    )
    val = manifest.split("val")
    trainer = Trainer(encoder, manifest.split("train"), val, config, progress=False)
    assert encoder.image_size == (224, 224) and encoder.image_width == 512
    before = encoder.clip.visual.transformer.resblocks[11].mlp.c_fc.weight.detach().clone()
    assert trainer.step() and trainer.step() and np.isfinite([row["loss"] for row in trainer.history]).all()
    assert not torch.equal(encoder.clip.visual.transformer.resblocks[11].mlp.c_fc.weight, before)
