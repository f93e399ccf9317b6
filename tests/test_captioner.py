"""Captioners through transformers' real path: save_pretrained, load_captioner, generate. Weights are noise."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ucore.captioner import ModelCaptioner, load_captioner
from ucore.compose import TagComposer
from ucore.endpoint import broken_off
from ucore.errors import CheckpointError, ConfigError, UserError
from ucore.micro_captioner import FOLDER
from ucore.prompts import load_prompt

TEXT_OF_PROMPTS = """please give a comprehensive and detailed description of the satellite image its geographical tags
amenity school road residential surrounded by service building house forest describe this what is seen user assistant"""
WORDS = list(dict.fromkeys(TEXT_OF_PROMPTS.split()))
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 80}
CHAT = (
    "{% for message in messages %}<s>user: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant:{% endif %}"
)
PROMPTS = ["describe this", "what is seen", 'please give a description of "amenity of school, road of residential"']
GENERATIVE = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokenizer(image_token: bool = True):
    """One token a word, made here: nothing is downloaded."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", *(["<image>"] if image_token else [])]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS, ":", ".", ",", '"'])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    extra = {"extra_special_tokens": {"image_token": "<image>"}} if image_token else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", **extra
    )


def clip_pixels():
    from transformers import CLIPImageProcessor

    size = {"height": 32, "width": 32}
    return CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)


def save_llava(folder: Path) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    text = {"model_type": "llama", "intermediate_size": 32, "num_key_value_heads": 2, **TEXT, **GENERATIVE}
    vision = {"model_type": "clip_vision_model", **VISION}
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        image_seq_length=16,
        vision_feature_layer=-1,
        **GENERATIVE,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        clip_pixels(),
        tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)


def save_instructblip(folder: Path, decoder_only: bool = True) -> None:
    from transformers import (
        BlipImageProcessor,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
    )

    text = {"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64, **TEXT}
    if not decoder_only:
        text = {
            "model_type": "t5",
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "vocab_size": 80,
        }
        text |= {"decoder_start_token_id": 3, "is_encoder_decoder": True}
    queries = {**TEXT, "intermediate_size": 32, "encoder_hidden_size": 16, "max_position_embeddings": 64}
    config = InstructBlipConfig(
        vision_config=VISION,
        qformer_config=queries,
        text_config={**text, **GENERATIVE},
        num_query_tokens=3,
        image_token_index=len(tokenizer(False)),
    )
    InstructBlipForConditionalGeneration(config).save_pretrained(folder)
    InstructBlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer(False), tokenizer(False), num_query_tokens=3
    ).save_pretrained(folder)


def save_blip(folder: Path) -> None:
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    special = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3}
    vocabulary = special | {word: number for number, word in enumerate(WORDS, len(special))}
    text = {**TEXT, "intermediate_size": 32, "encoder_hidden_size": 16, "bos_token_id": 1, "sep_token_id": 2}
    BlipForConditionalGeneration(
        BlipConfig(text_config={**text, "pad_token_id": 0}, vision_config=VISION)
    ).save_pretrained(folder)
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), BertTokenizer(vocabulary))
    processor.save_pretrained(folder)


SAVERS = {
    "llava": save_llava,
    "instructblip": save_instructblip,
    "instructblip-t5": lambda folder: save_instructblip(folder, decoder_only=False),
    "blip": save_blip,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, save) in enumerate(SAVERS.items()):
        torch.manual_seed(seed)
        save(folder / name)
    return {name: folder / name for name in SAVERS}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels[:2]] + [Image.fromarray(pixels[2, ..., 0])]  # grey, too


def captioner(folder: Path, **options) -> ModelCaptioner:
    made = load_captioner(str(folder), "cpu", max_new_tokens=options.pop("max_new_tokens", 6), **options)
    assert isinstance(made, ModelCaptioner)
    return made


@pytest.mark.parametrize("name", SAVERS)
def test_a_saved_model_writes_the_same_alone_and_in_batches(models, pictures, name):
    asked = captioner(models[name])
    texts = asked.caption(pictures, PROMPTS)
    assert all(isinstance(text, str) and text == text.strip() for text in texts) and any(texts)
    alone = captioner(models[name], batch_size=1)
    assert texts == [alone.caption([picture], [prompt])[0] for picture, prompt in zip(pictures, PROMPTS, strict=True)]
    assert texts == captioner(models[name], batch_size=2).caption(pictures, PROMPTS)
    assert not asked._model.training and asked.name == name and asked.needs_images
    assert all(len(text.split()) <= 6 for text in texts if isinstance(text, str))  # none of the prompt's words


@pytest.mark.parametrize("name", SAVERS)
def test_new_words_are_those_that_the_model_would_write_next(models, pictures, name):
    """Against a loop that asks the model itself for one likeliest token after the other."""
    asked = captioner(models[name], max_new_tokens=4)
    text = asked.caption(pictures[:1], PROMPTS[2:])[0]
    inputs = dict(asked._inputs(pictures[:1], PROMPTS[2:]))
    if name == "blip":  # its first token becomes the beginning of a text, its last one, the end, is left out
        inputs["input_ids"], inputs["attention_mask"] = inputs["input_ids"][:, :-1], inputs["attention_mask"][:, :-1]
    decoder = {"decoder_input_ids": torch.tensor([[3]])} if name == "instructblip-t5" else {}
    own, new = ("decoder_input_ids" if decoder else "input_ids"), []
    inputs |= decoder
    with torch.inference_mode():
        for _ in range(4):
            word = asked._model(**inputs).logits[0, -1].argmax()
            new.append(int(word))
            if new[-1] == 2:
                break
            inputs[own] = torch.cat([inputs[own], word.view(1, 1)], 1)
            if not decoder:
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    expected = asked.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert text == (expected if new[-1] == 2 else broken_off(expected))  # which marks what ran into the limit


def test_a_qformer_that_reads_few_words_is_given_the_first_tags(models, pictures):
    asked = captioner(models["instructblip-t5"])
    tags, around = [f"name=school {number}" for number in range(20)], [f"highway=road {number}" for number in range(20)]
    prompt = asked.prompt_for(tags, around)
    assert "school 0" in prompt and "road" not in prompt and "school 19" not in prompt
    assert len(asked.processor.qformer_tokenizer(prompt)["input_ids"]) <= 64
    assert asked.prompt_for(tags[:2], around[:1]) == asked.prompt.fill(tags[:2], around[:1])
    texts = asked.caption(pictures[:2], [prompt, " ".join(["a school"] * 100)])  # of one's own, and longer
    assert all(isinstance(text, str) for text in texts)


def test_sampling_and_beams_of_a_checkpoint_are_off(models, pictures, tmp_path):
    folder = shutil.copytree(models["llava"], tmp_path / "llava")
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) | {"do_sample": True, "temperature": 5.0, "num_beams": 3, "top_p": 0.9}
    path.write_text(json.dumps(settings))
    assert captioner(folder).caption(pictures, PROMPTS) == captioner(models["llava"]).caption(pictures, PROMPTS)


def test_the_key_follows_weights_prompt_and_settings(models, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("describe {tags}")
    folder = models["llava"]
    base = captioner(folder)
    keys = [base.key(), captioner(folder, prompt=str(prompt)).key(), captioner(folder, max_new_tokens=7).key()]
    keys += [captioner(models["blip"]).key(), load_captioner("tags").key()]
    assert len(set(keys)) == 5 and all(len(key) == 16 for key in keys)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert captioner(moved, batch_size=3).key() == base.key() and base._model is None  # without reading the weights
    from safetensors.torch import load_file, save_file

    state = load_file(moved / "model.safetensors")
    state[min(state)] += 1
    save_file(state, moved / "model.safetensors", {"format": "pt"})
    assert captioner(moved).key() != base.key()
    assert base.prompt_for(["amenity=school"], ["highway=service"]) == load_prompt().fill(
        ["amenity=school"], ["highway=service"]
    )


def test_short_memory_halves_the_batch_and_says_so_once(models, pictures, capsys):
    asked = captioner(models["instructblip"])
    expected = asked.caption(pictures * 2, PROMPTS * 2)
    generate, sizes = asked._model.generate, []

    def poor(**inputs):
        sizes.append(len(inputs["pixel_values"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    asked._model.generate = poor
    assert asked.caption(pictures * 2, PROMPTS * 2) == expected
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1] and capsys.readouterr().err.count("Memory is short") == 1
    asked._model.generate = lambda **_: (_ for _ in ()).throw(
        RuntimeError("DefaultCPUAllocator: can't allocate memory")
    )
    with pytest.raises(UserError, match="does not fit into the memory of cpu, even with one image"):
        asked.caption(pictures, PROMPTS)


@pytest.mark.parametrize("name", SAVERS)
def test_large_models_compute_in_bfloat16_where_the_hardware_does(models, pictures, monkeypatch, name):
    monkeypatch.setattr("ucore.pretrained.has_bf16", lambda _: True)
    small = captioner(models[name])
    assert small.load().dtype == torch.float32
    monkeypatch.setattr("ucore.pretrained.SMALL", 0)
    large = captioner(models[name])
    assert large.load().dtype == torch.bfloat16 and len(large.caption(pictures, PROMPTS)) == 3
    assert large.key() == small.key()


def test_tags_need_no_model_and_no_image():
    asked = load_captioner("tags")
    prompt = asked.prompt_for(["amenity=school"], ["leisure=park"], "a")
    assert prompt == TagComposer().compose(["amenity=school"], ["leisure=park"], "a")
    assert asked.caption([None, None], [prompt, ""]) == [prompt, ""] and not asked.needs_images  # type: ignore[list-item]


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the bundled captioner is not trained yet")
def test_the_bundled_captioner_is_one_of_them(pictures):
    asked = load_captioner("micro", "cpu", max_new_tokens=20)
    prompts = [asked.prompt_for(["amenity=school"]), asked.prompt_for([])]
    first, second = asked.caption(pictures[:2], prompts)
    assert asked.name == "micro" and isinstance(first, str) and isinstance(second, str) and first and second


class Bomb:
    def __reduce__(self):
        return print, ("this code must not run",)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "of the type bert"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nothing"}'), "cannot be loaded"),
        (lambda folder: (folder / "processor_config.json").unlink(), "no processor|cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: cut(folder / "model.safetensors"), "cannot be loaded"),
        (lambda folder: drop_a_weight(folder / "model.safetensors"), "lacks weights of its own architecture"),
        (lambda folder: bomb(folder), "pickled code"),
        (lambda folder: own_code(folder), "needs code of its own"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_one_sentence(models, tmp_path, capsys, harm, message):
    folder = shutil.copytree(models["llava"], tmp_path / "llava")
    harm(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        captioner(folder).load()
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert "must not run" not in capsys.readouterr().out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def drop_a_weight(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    save_file({name: state[name] for name in sorted(state)[1:]}, path, {"format": "pt"})


def bomb(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("print('this code must not run')")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("./nowhere", "no model folder ./nowhere"),
        ("a b c", "no model folder a b c"),
        ("", "no model folder"),
        ("../../etc/passwd", "no model folder"),
        ("nobody/such-a-model", "not in the hub's cache, and the hub cannot be reached"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_sentence(spec, message):
    with pytest.raises(CheckpointError, match=message):
        load_captioner(spec, "cpu")


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"batch_size": 0}, {"prompt": "nope"}, {"device": "tpu"}])
def test_impossible_settings_are_refused(models, options):
    with pytest.raises(ConfigError):
        load_captioner(str(models["blip"]), **{"device": "cpu", **options})


def test_a_model_that_never_describes_is_refused_at_the_start(models, monkeypatch):
    asked = captioner(models["llava"])
    monkeypatch.setattr(asked.processor, "chat_template", None)  # so no place for the image is in the text
    with pytest.raises(CheckpointError, match="does not describe a picture"):
        asked.load()
