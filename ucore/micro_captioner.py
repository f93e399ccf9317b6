"""The bundled captioner: FastVLM's architecture at 7 million parameters, in transformers' own format.

    model, processor = build_model(tokenizer), build_processor(tokenizer)
    save(model, processor, "runs/captioner")     # AutoModelForImageTextToText and AutoProcessor read that folder

FastVLM (Vasu et al. 2025, https://arxiv.org/abs/2412.13303) puts a convolutional tower's last feature map, one token a
cell, before the words of a decoder-only language model. Here the tower is the ImageNet EfficientNet-Lite0 that ucore
bundles, so training starts from features that are worth something; the language model starts from noise. Nothing of
the architecture is ours: a folder that `save` wrote is loaded as any other model of the hub is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ucore.bundled import IMAGE_WEIGHTS, weight_file
from ucore.files import atomic_path
from ucore.weights import quiet

if TYPE_CHECKING:
    from transformers import FastVlmForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "assets" / "captioner-micro"

IMAGE_SIDE, STRIDE = 160, 32  # pixels of the picture, and of one cell of the tower's last feature map
IMAGE_TOKENS = (IMAGE_SIDE // STRIDE) ** 2
VOCABULARY = 3072
WIDTH, DEPTH, HEADS, INNER = 256, 4, 8, 512  # of the language model
LONGEST = 512  # tokens of picture, prompt and answer together
PAD, END, IMAGE, ANSWER = "<pad>", "</s>", "<image>", "<answer>"

# The picture first, then the words of the prompt; ANSWER says that the description begins.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


def build_tokenizer(texts: Sequence[str], vocabulary: int = VOCABULARY) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer learnt from `texts`, at most `vocabulary` tokens: no word is unknown to it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, IMAGE, ANSWER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE, "answer_token": ANSWER},
        padding_side="left",
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: "PreTrainedTokenizerFast") -> "LlavaProcessor":
    """Pictures to 160 x 160 in -1..1, `<image>` to one token a cell, conversations through CHAT_TEMPLATE."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(
        size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        images, tokenizer, patch_size=STRIDE, vision_feature_select_strategy="full", chat_template=CHAT_TEMPLATE
    )


def build_model(tokenizer: "PreTrainedTokenizerFast", seed: int = 0) -> "FastVlmForConditionalGeneration":
    """The model, float32 on the CPU: ImageNet weights in the tower, noise of `seed` elsewhere.

    Raises CheckpointError when the package with the ImageNet weights is absent.
    """
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration

    ids: Any = tokenizer.convert_tokens_to_ids([PAD, END, IMAGE])
    settings: dict[str, Any] = {"pad_token_id": ids[0], "eos_token_id": ids[1], "bos_token_id": None}
    config = FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "tf_efficientnet_lite0",
            "hidden_size": 1280,
            "do_pooling": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": WIDTH,
            "intermediate_size": INNER,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "max_position_embeddings": LONGEST,
            "tie_word_embeddings": True,
            **settings,
        },
        image_token_index=ids[2],
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
        dtype="float32",
        **settings,
    )
    with torch.random.fork_rng(devices=()), quiet():
        torch.manual_seed(seed)
        model = FastVlmForConditionalGeneration(config)
    tower = tower_of(model)
    original = torch.load(weight_file(*IMAGE_WEIGHTS), map_location="cpu", weights_only=True)
    # Both list the same tensors in the same order under different names; the classifier, the last two, is left out.
    tensors = list(original.values())[: len(tower.state_dict())]
    tower.load_state_dict(dict(zip(tower.state_dict(), tensors, strict=True)))
    return model


def tower_of(model: "FastVlmForConditionalGeneration") -> Any:
    """timm's EfficientNet within the model."""
    return model.model.vision_tower.timm_model


def save(model: "FastVlmForConditionalGeneration", processor: "LlavaProcessor", folder: str | Path) -> None:
    """Write the folder that AutoModelForImageTextToText and AutoProcessor read, whole or not at all.

    Matrices as float16, which halves the file; vectors, among them the tower's batch statistics, some of which
    float16 cannot hold, as float32. The configuration says float32: that is how the model is meant to compute.
    """
    from transformers import GenerationConfig

    halves = {
        name: value.detach().to("cpu", torch.float16 if value.ndim > 1 else None).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"  # the embeddings again
    }
    model.generation_config = GenerationConfig(
        do_sample=False,
        pad_token_id=model.config.pad_token_id,
        eos_token_id=model.config.eos_token_id,
        no_repeat_ngram_size=0,
        max_new_tokens=80,
    )
    with atomic_path(folder) as temporary, quiet():
        model.save_pretrained(temporary, state_dict=halves)
        processor.save_pretrained(temporary)
