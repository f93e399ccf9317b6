"""The bundled captioner as anyone loads it, what it learns from, and its training."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import make_rsicd
from PIL import Image, ImageDraw

from ucore import micro_captioner_train
from ucore.data import read_dataset
from ucore.errors import ConfigError, DataError
from ucore.grounding import grounding
from ucore.micro_captioner import (
    ANSWER,
    END,
    FOLDER,
    IMAGE,
    IMAGE_TOKENS,
    build_model,
    build_processor,
    build_tokenizer,
)
from ucore.micro_captioner_data import Sample, example, implied_tags, lesson_texts, pack, samples_of, sentence
from ucore.micro_captioner_train import MicroCaptionerConfig, MicroCaptionerTrainer, train_micro
from ucore.prompts import load_prompt

TINY = MicroCaptionerConfig(steps=4, batch=2, answers=2, warmup=2, check_every=2, tiles=0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tile(water: bool) -> Image.Image:
    """A lake in grass, or rows of red roofs along a street."""
    rng = np.random.default_rng(3)
    ground = np.array([90, 120, 70]) + rng.normal(0, 8, (256, 256, 3))
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    if water:
        draw.ellipse((40, 60, 220, 200), fill=(40, 70, 100))
    else:
        draw.rectangle((0, 118, 256, 138), fill=(110, 110, 112))
        for x in range(8, 240, 40):
            draw.rectangle((x, 70, x + 26, 100), fill=(170, 80, 60))
            draw.rectangle((x, 156, x + 26, 186), fill=(165, 75, 58))
    return image


# --- the model that comes with ucore ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        model = AutoModelForImageTextToText.from_pretrained(FOLDER, local_files_only=True).eval()
        return model, AutoProcessor.from_pretrained(FOLDER, local_files_only=True)


def write(bundled, images, prompts):
    model, processor = bundled
    talks = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in prompts]
    texts = processor.apply_chat_template(talks, add_generation_prompt=True)
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    new = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)


def test_its_files_are_small_whole_and_described():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    for path in files:
        if path.suffix != ".safetensors":
            assert not re.search(r"/(home|tmp|root|work)/", path.read_text("utf-8")), path
    card = (FOLDER / "README.md").read_text("utf-8")
    for said in ("seed", "ucore captions train-micro", "simulated", "RSICD", "Limits"):
        assert said in card


def test_it_writes_finished_sentences_and_the_same_ones_again(bundled):
    images, prompt = [tile(True), tile(False)], load_prompt().fill()
    texts = write(bundled, images, [prompt] * 2)
    for text in texts:
        assert re.match(r"[A-Z].{15,}[.!?]$", text)
        assert "<" not in text
        assert load_prompt().fill()[:20] not in text
    assert texts[0] != texts[1]
    assert write(bundled, images, [prompt] * 2) == texts
    assert [write(bundled, [image], [prompt])[0] for image in images] == texts


def test_tags_change_the_sentence_and_are_named(bundled):
    campus = ["amenity=school", "leisure=park", "leisure=pitch", "highway=residential", "building=house"]
    works = ["landuse=industrial", "building=warehouse", "railway=rail", "highway=secondary", "man_made=storage_tank"]
    none, first, second = write(bundled, [tile(False)] * 3, [load_prompt().fill(tags) for tags in ([], campus, works)])
    assert len({none, first, second}) == 3
    assert grounding(first, campus).mentioned
    assert grounding(second, works).mentioned
    assert len(grounding(second, works).mentioned) > len(grounding(none, works).mentioned)


def test_it_goes_the_way_of_any_other_model():
    from ucore.captioner import load_captioner

    captioner = load_captioner("micro", "cpu")
    prompt = captioner.prompt_for(["amenity=school"], ["highway=service"])
    (text,) = captioner.caption([tile(True).convert("L").resize((9, 30))], [prompt])
    assert isinstance(text, str)
    assert text.endswith(".")


# --- what it learns from ----------------------------------------------------------------------------------------


def test_captions_become_sentences():
    assert sentence("seen from above : a lake , and  a road .") == "Seen from above: a lake, and a road."
    assert sentence("two planes") == "Two planes."


def test_images_without_tags_get_those_that_most_captions_imply():
    captions = ["A lake and a forest.", "A lake lies at the top.", "A school."]
    assert implied_tags(captions) == ("natural=water", "water=lake")
    assert implied_tags(["An empty place."]) == ()


def test_vague_captions_are_left_out_where_others_tell_more(tmp_path):
    manifest = read_dataset(make_rsicd(tmp_path, 1, 1, 1), split="train")
    manifest.frame.at[0, "captions"] = ["a place seen from above .", "a lake near a road .", "a lake near a road ."]
    assert samples_of(manifest)[0].captions == ("A lake near a road.",)
    manifest.frame.at[0, "captions"] = ["a place seen from above ."]
    assert samples_of(manifest)[0].captions == ("A place seen from above.",)


SAMPLE = Sample(
    Path("a.png"),
    ("A football field lies on the left.", "A football field and a main road."),
    ("leisure=pitch", "amenity=school", "highway=secondary"),
    ("natural=beach",),
)


def test_answers_name_the_tags_of_the_prompt_and_no_withheld_ones():
    seen = set()
    for seed in range(60):
        one = example(SAMPLE, np.random.default_rng(seed), 3)
        assert 1 <= len(one.answers) <= 2
        for answer in one.answers:
            assert "football field" in answer
            assert ("school" in answer) == ("amenity of school" in one.prompt)
            assert "beach" not in answer or "natural of beach" in one.prompt
            assert answer.count("main road") <= 1 or answer.count("There is also") == 0
        seen.add("school" in one.prompt)
    assert seen == {True, False}
    again = example(SAMPLE, np.random.default_rng(5), 3)
    assert again == example(SAMPLE, np.random.default_rng(5), 3)


def test_packed_answers_see_the_prompt_and_themselves_only():
    batch = pack([([7, 8], [[1, 2], [3]]), ([9], [[4]])], pad=0)
    assert batch.tokens.tolist() == [[7, 8, 1, 2, 3], [9, 4, 0, 0, 0]]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 2]
    assert batch.mask[0, 0, 4].tolist() == [True, True, False, False, True]
    assert batch.mask[0, 0, 3].tolist() == [True, True, True, True, False]
    assert list(zip(batch.rows.tolist(), batch.columns.tolist(), batch.labels.tolist(), strict=True)) == [
        (0, 1, 1), (0, 2, 2), (0, 1, 3), (1, 0, 4),
    ]  # fmt: skip


# --- training ---------------------------------------------------------------------------------------------------


def test_the_loss_of_packed_answers_is_the_models_own(monkeypatch):
    monkeypatch.setattr(micro_captioner_train, "cpu_has_bf16", lambda: False)
    tokenizer = build_tokenizer(list(lesson_texts([SAMPLE], 0)), 600)
    model, processor = build_model(tokenizer), build_processor(tokenizer)
    pixels = processor.image_processor([tile(True)], return_tensors="pt")["pixel_values"]
    tower = model.model.vision_tower.timm_model.eval()
    with torch.no_grad():
        hidden = tower.bn1(tower.conv_stem(pixels))
        for stage in tower.blocks[: micro_captioner_train.FROZEN]:
            hidden = stage(hidden)
    trainer = MicroCaptionerTrainer(model, tokenizer, [([SAMPLE], hidden.numpy())], TINY, "cpu")
    image, answer, end = tokenizer.convert_tokens_to_ids([IMAGE, ANSWER, END])
    prefix = [image] * IMAGE_TOKENS + tokenizer("Describe it.")["input_ids"] + [answer]
    answers = [[*tokenizer(text)["input_ids"], end] for text in SAMPLE.captions]
    with torch.no_grad():
        packed = trainer.loss(hidden, pack([(prefix, answers)], trainer.pad)).item()
        total = 0.0
        for one in answers:
            ids = torch.tensor([prefix + one])
            labels = ids.clone()
            labels[:, : len(prefix)] = -100
            total += model(input_ids=ids, pixel_values=pixels, labels=labels).loss.item() * len(one)
    assert packed == pytest.approx(total / sum(map(len, answers)), abs=1e-4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_rsicd(tmp_path_factory.mktemp("data") / "set", 6, 2, 2)


def test_a_stopped_training_ends_with_the_same_weights(dataset, tmp_path, monkeypatch):
    whole = train_micro(tmp_path / "whole", [dataset], TINY, "cpu")
    step = MicroCaptionerTrainer.step

    def stops(self):
        if self.step_number == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(MicroCaptionerTrainer, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        train_micro(tmp_path / "parts", [dataset], TINY, "cpu")
    assert not (tmp_path / "parts" / "captioner").exists()
    monkeypatch.setattr(MicroCaptionerTrainer, "step", step)
    parts = train_micro(tmp_path / "parts", [dataset], TINY, "cpu")
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (parts / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()
    log = json.loads((tmp_path / "parts" / "training.json").read_text())["log"]
    assert [entry["step"] for entry in log] == [2, 4]
    with pytest.raises(ConfigError, match="other settings"):
        train_micro(tmp_path / "parts", [dataset], replace(TINY, lr=1e-4), "cpu")


def test_what_cannot_be_learnt_from_is_said(tmp_path):
    with pytest.raises(ConfigError, match="nothing to learn from"):
        train_micro(tmp_path / "out", (), TINY, "cpu")
    with pytest.raises(DataError, match="no split called train"):
        train_micro(tmp_path / "out", [make_rsicd(tmp_path / "set", 0, 2, 2)], TINY, "cpu")
