"""Captioners: whatever writes a sentence for an image and a prompt, behind one small interface.

captioner = load_captioner("Salesforce/instructblip-vicuna-7b")    # or a folder, "micro", "tags", "http://HOST:8000/v1:MODEL"
prompt = captioner.prompt_for(["amenity=school"], ["highway=service"], "finland-0001")
captioner.caption([image], [prompt])

Models are transformers' image-text-to-text classes: with a chat template (LLaVA, Qwen-VL, SmolVLM, "micro") or without
(BLIP, BLIP-2 and InstructBLIP as in the paper). Code that comes with a model is never run.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from ucore.compose import TagComposer
from ucore.device import is_out_of_memory, pick_device
from ucore.endpoint import Endpoint, broken_off, is_address
from ucore.errors import CheckpointError, ConfigError, UserError
from ucore.files import content_hash
from ucore.micro_captioner import FOLDER
from ucore.pretrained import describe, find_model, fingerprint, in_one_line, read_model, too_large
from ucore.prompts import PAPER, Prompt, load_prompt
from ucore.weights import quiet
from ucore.workers import Failed

VERSION = 1  # of how prompts are put to a model and answers read; part of the key under which captions are stored
# Their text decoders know positions by number only, so padding would shift the words.
UNPADDED = ("blip", "git")


class Captioner(Protocol):
    """What writes captions. `name` can be part of a file name; `needs_images`: else `caption` takes any images."""

    name: str
    needs_images: bool

    def key(self) -> str:
        """16 hex digits that change with the weights, the prompt and the settings that change the words."""
        ...

    def load(self) -> Any:
        """Make ready now what `caption` needs. Raises UserError where that cannot be used."""
        ...

    def prompt_for(self, tags: Sequence[str], surrounding_tags: Sequence[str] = (), sample_id: str = "") -> str:
        """What to ask about a sample with these "key=value" tags."""
        ...

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str | Failed]:
        """One text for each RGB image and its prompt; `Failed` where an endpoint gave none."""
        ...


def load_captioner(
    spec: str, device: str = "auto", prompt: str = PAPER, max_new_tokens: int = 128, batch_size: int = 8
) -> Captioner:
    """A captioner by name. Weights are read by `load`, or when they are first needed; the key needs none.

    spec: "tags" (sentences from tags, no model), "micro" (bundled), a folder or hub name of an image-text-to-text
        model of transformers, or an OpenAI-compatible endpoint and its model: "http://localhost:8000/v1:llava:7b".
    device: auto, cpu, cuda or cuda:N. prompt: see `prompts.load_prompt`. max_new_tokens: of an answer, 1 to 4096.
    batch_size: images at a time; for an endpoint, requests at a time. Raises ConfigError or CheckpointError.
    """
    if not 1 <= max_new_tokens <= 4096 or batch_size < 1:
        raise ConfigError(
            f"max_new_tokens is {max_new_tokens} and the batch size {batch_size}; they must be at least 1, and "
            "max_new_tokens at most 4096."
        )
    words = load_prompt(prompt)
    if spec == "tags":
        return TagCaptioner()
    if is_address(spec):
        return Endpoint(spec, words, max_new_tokens, concurrency=batch_size)
    return ModelCaptioner(spec, words, pick_device(device), max_new_tokens, batch_size)


class TagCaptioner:
    """`TagComposer` as a captioner: its prompt is the sentence already, and it looks at no image."""

    name, needs_images = "tags", False

    def __init__(self, composer: TagComposer | None = None) -> None:
        self.composer = composer or TagComposer()

    def key(self) -> str:
        """The composer's: 16 hex digits that change with its settings and wording."""
        return self.composer.key()

    def load(self) -> None:
        """Nothing: there is no model."""
        return None

    def prompt_for(self, tags: Sequence[str], surrounding_tags: Sequence[str] = (), sample_id: str = "") -> str:
        """The caption itself, a sentence from the tags."""
        return self.composer.compose(tags, surrounding_tags, sample_id)

    def caption(self, images: Sequence[Any], prompts: Sequence[str]) -> list[str | Failed]:
        """The prompts as they are."""
        return list(prompts)


class ModelCaptioner:
    """An image-text-to-text model of transformers, asked in batches; always its likeliest words, so repeatable.

    bfloat16 where the hardware multiplies it and the model is large. Batches are halved when memory runs out.
    """

    needs_images = True

    def __init__(self, spec: str, prompt: Prompt, device: str, max_new_tokens: int, batch_size: int) -> None:
        if spec == "micro" and not FOLDER.is_dir():
            raise CheckpointError(
                f"The bundled captioner is missing from {FOLDER.parent}; install ucore again: make setup"
            )
        self.source = find_model(str(FOLDER) if spec == "micro" else spec)
        self.prompt, self.device = prompt, device
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        # A folder goes by its own name, a model of the hub by its whole one; both become part of file names.
        known = Path(self.source).resolve().name if Path(self.source).is_dir() else self.source
        self.name = "micro" if spec == "micro" else re.sub(r"[^\w.-]+", "-", known).strip("-.") or "model"
        self.config, self.processor = describe(self.source)
        self._model: Any = None
        self._told = False  # that memory is short

    def key(self) -> str:
        """16 hex digits that change with the model's files, the prompt and the longest answer; reads no weights."""
        return content_hash("model", VERSION, fingerprint(self.source), self.prompt.key(), self.max_new_tokens)

    def prompt_for(self, tags: Sequence[str], surrounding_tags: Sequence[str] = (), sample_id: str = "") -> str:
        """The prompt with the tags filled in; the same for every `sample_id`.

        A Q-Former reads a certain number of words: the last tags are left out where all of them are more, those around
        the place first.
        """
        here, around = list(tags), list(surrounding_tags)
        prompt, counted = self.prompt.fill(here, around), getattr(self.processor, "qformer_tokenizer", None)
        while counted and (here or around) and len(counted(prompt)["input_ids"]) > self._positions:
            (around or here).pop()
            prompt = self.prompt.fill(here, around)
        return prompt

    @property
    def _positions(self) -> int:
        """The most tokens that the model's Q-Former reads."""
        return self.config.qformer_config.max_position_embeddings

    def load(self) -> Any:
        """The model, on its device. Raises CheckpointError for weights that are absent, damaged or of another model."""
        if self._model is None:
            model = read_model(self.source, self.device)
            for part in model.modules():
                if hasattr(part, "generation_config"):
                    _always_likeliest(part.generation_config, self.processor.tokenizer)
            try:
                self._model = model.to(self.device).eval()
                self._write([Image.new("RGB", (64, 64), "gray")], [self.prompt.fill(["amenity=school"])], 1)
            except Exception as error:
                self._model = None
                if is_out_of_memory(error):
                    raise UserError(too_large(self.source, self.device)) from error
                raise CheckpointError(
                    f"{self.source} loads, but does not describe a picture ({in_one_line(error)}); "
                    "choose an image-text-to-text model"
                ) from error
        return self._model

    def caption(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str | Failed]:
        """One text for each RGB image and its prompt, in their order; no item is `Failed`.

        Raises as `load`, and UserError where not even one image fits into memory.
        """
        self.load()
        lengths = [len(self.processor.tokenizer(prompt)["input_ids"]) for prompt in prompts]
        waiting = sorted(range(len(prompts)), key=lambda place: lengths[place])  # little padding
        written: dict[int, str] = {}
        while waiting:
            batch = waiting[: self.batch_size]
            if self.config.model_type in UNPADDED:
                batch = [place for place in batch if lengths[place] == lengths[batch[0]]]
            try:
                texts = self._write([images[place] for place in batch], [prompts[place] for place in batch])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                texts = None
            if texts is None:  # outside of the handler, which would keep the tensors alive
                self._halve(len(batch))
                continue
            written |= dict(zip(batch, texts, strict=True))
            waiting = waiting[len(batch) :]
        return [written[place] for place in range(len(prompts))]

    def _halve(self, size: int) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if size == 1:
            raise UserError(too_large(self.source, self.device))
        self.batch_size = size // 2
        if not self._told:
            print(f"Memory is short for {size} images at a time: {self.name} goes on with fewer.", file=sys.stderr)
        self._told = True

    def _write(self, images: list[Image.Image], prompts: list[str], most: int | None = None) -> list[str]:
        """The texts for one batch, without the prompts."""
        with torch.inference_mode(), quiet():
            inputs = self._inputs(images, prompts)
            given = inputs["input_ids"]
            output = self._model.generate(**inputs, max_new_tokens=most or self.max_new_tokens)
            # Decoders repeat what they were given: most all of it, BLIP without its last token and with another first
            # one. Encoder-decoders, and models that were given embeddings, return new tokens only.
            for kept in (given[:, : given.shape[1] - skip] for skip in (0, 1)):
                if kept.shape[1] > 1 and torch.equal(output[:, 1 : kept.shape[1]], kept[:, 1:]):
                    output = output[:, kept.shape[1] :]
                    break
            texts = self.processor.tokenizer.batch_decode(output, skip_special_tokens=True)
            # A text that came to its end has a token behind it that is no word: of the end, or of padding.
            ends = torch.tensor(self.processor.tokenizer.all_special_ids, device=output.device)
            ended = torch.isin(output[:, -1], ends) | (output.shape[1] < (most or self.max_new_tokens))
        return [text.strip() if whole else broken_off(text.strip())
                for text, whole in zip(texts, ended.tolist(), strict=True)]  # fmt: skip

    def _inputs(self, images: list[Image.Image], prompts: list[str]) -> Any:
        """What the model's `generate` takes, on its device: left-padded for decoders, right-padded else."""
        processor: Any = self.processor
        images = [image.convert("RGB") for image in images]
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        if getattr(processor, "chat_template", None):
            asked = [
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
                for prompt in prompts
            ]
            texts = [processor.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in asked]
            start = processor.tokenizer.bos_token
            if start and texts[0].startswith(start):
                options["add_special_tokens"] = False  # the template wrote them
            inputs = processor(text=texts, images=[[image] for image in images], **options)
        else:
            inputs = processor(text=list(prompts), images=images, **options)
        if hasattr(processor, "qformer_tokenizer"):  # reads positions by number, so it is padded on the right
            cut = {"truncation": True, "max_length": self._positions}  # a prompt of one's own may be long without tags
            words = processor.qformer_tokenizer(list(prompts), padding_side="right", **cut, **options)
            inputs["qformer_input_ids"] = words["input_ids"]
            inputs["qformer_attention_mask"] = words["attention_mask"]
        return inputs.to(self.device, self._model.dtype)


def _always_likeliest(generation: Any, tokenizer: Any) -> None:
    """No sampling, no beams; and a padding token, which some old models do not name."""
    generation.do_sample, generation.num_beams = False, 1
    generation.temperature = generation.top_p = generation.top_k = None
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
