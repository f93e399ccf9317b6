"""What the small captioner learns from: prompts with some tags, and sentences true of the picture and of these tags.

An answer is one or two of an image's own captions, written as sentences; where the prompt has tags that they do not
name, one more sentence names those, and another what lies around: so are both picture and tags worth reading. Often
some or all tags are withheld. Images without tags get those that their captions imply.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ucore.compose import WORDS, is_plural, listed, phrases
from ucore.grounding import find_mentions
from ucore.kinds import KINDS
from ucore.manifest import Manifest
from ucore.prompts import Prompt, load_prompt
from ucore.things import names_of

PROMPTS = {"urbancross": 0.8, "short": 0.1, "grounded": 0.1}  # and how often each is drawn; the first is the default
NO_TAGS, SOME_TAGS = 0.3, 0.3  # shares of the prompts; the rest has all tags
STRANGE = 0.25  # of the prompts with tags have one or two from anywhere, so that tags are read and not guessed
SECOND = 0.5  # of the answers take a second caption
MOST_ADDED = 4  # tags that an added sentence names


@dataclass(frozen=True)
class Sample:
    """An image, its captions as sentences, and its tags."""

    path: Path
    captions: tuple[str, ...]
    tags: tuple[str, ...]
    surrounding_tags: tuple[str, ...]


def samples_of(manifest: Manifest) -> list[Sample]:
    """Rows with their distinct captions as sentences, without those that name no thing where others do."""
    frame, found = manifest.frame, []
    columns = (frame[name] for name in ("captions", "description", "tags", "surrounding_tags"))
    for path, captions, description, tags, around in zip(manifest.image_paths, *columns, strict=True):
        given = [text for text in (*captions, first_sentence(description)) if text.strip()]
        texts = list(dict.fromkeys(map(sentence, given)))
        telling = [text for text in texts if named(text)]
        own = tuple(tags) or implied_tags(telling)
        if texts:
            found.append(Sample(path, tuple(telling or texts), own, tuple(around)))
    return found


def sentence(text: str) -> str:
    """A tokenised caption as people write it: "a lake , and a road ." becomes "A lake, and a road."."""
    text = re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split())).rstrip(" .,;:") + "."
    return text[:1].upper() + text[1:]


def first_sentence(text: str) -> str:
    """Of a longer description; its later sentences refer back to it."""
    return re.split(r"(?<=[.!?])\s", text.strip())[0]


@cache
def named(text: str) -> frozenset[str]:
    """The things a text names, in the singular."""
    return frozenset(mention.phrase for mention in find_mentions(text) if not mention.denied)


@cache
def _prompts() -> tuple[Prompt, ...]:
    return tuple(map(load_prompt, PROMPTS))


@cache
def _tags_of_nouns() -> dict[str, tuple[str, ...]]:
    """The word for a thing -> the tags that say just this: a lake is natural=water with water=lake."""
    table = {kind.noun: tuple(f"{key}={value}" for key, value in kind.tags.items()) for kind in KINDS.values()}
    for tag in every_tag():
        for phrase in phrases([tag])[:1]:
            for noun in sorted(named(phrase.text)):
                table.setdefault(noun, (tag,))
    return table


@cache
def every_tag() -> tuple[str, ...]:
    """All tags that the composer and the simulator know, the first of each kind."""
    kinds = [f"{key}={value}" for kind in KINDS.values() for key, value in list(kind.tags.items())[:1]]
    return tuple(dict.fromkeys([*kinds, *(tag for tag, word in WORDS.items() if word)]))


def implied_tags(captions: Sequence[str]) -> tuple[str, ...]:
    """Tags of what at least half of an image's captions name, in the order of the words."""
    counts = Counter(noun for caption in captions for noun in named(caption))
    nouns = [noun for noun, count in sorted(counts.items()) if 2 * count >= len(captions)]
    return tuple(dict.fromkeys(tag for noun in nouns for tag in _tags_of_nouns().get(noun, ())))


@dataclass(frozen=True)
class Example:
    """A prompt and the answers that it may get."""

    prompt: str
    answers: tuple[str, ...]


def example(sample: Sample, draw: np.random.Generator, answers: int) -> Example:
    """A prompt with tags drawn by `draw`, and up to `answers` different answers to it."""
    tags, around = _given(sample, draw)
    prompt = _prompts()[int(draw.choice(len(PROMPTS), p=list(PROMPTS.values())))].fill(tags, around)
    own = sample.captions
    weights = np.array([1.0 + sum(bool(names_of(tag) & named(text)) for tag in tags) for text in own])
    order = draw.choice(len(own), len(own), replace=False, p=weights / weights.sum())
    found = []
    for number in range(min(answers, len(own))):
        text = own[order[number]]
        rest = [own[k] for k in np.roll(order, -number - 1) if named(own[k]) - named(text)]
        if rest and draw.random() < SECOND:
            text = f"{text} {rest[0]}"
        found.append(" ".join([text, *_added(text, tags, around, draw)]))
    return Example(prompt, tuple(dict.fromkeys(found)))


def _given(sample: Sample, draw: np.random.Generator) -> tuple[list[str], list[str]]:
    """The tags of the image and of its surroundings that a prompt shows."""
    mode, keep = draw.random(), draw.uniform(0.3, 0.9)
    if mode < NO_TAGS:
        return [], []
    tags, around = list(sample.tags), list(sample.surrounding_tags)
    if mode < NO_TAGS + SOME_TAGS:
        tags = [tag for tag in tags if draw.random() < keep]
        around = [tag for tag in around if draw.random() < keep]
    if draw.random() < STRANGE:
        into = tags if draw.random() < 0.5 else around
        into += [str(tag) for tag in draw.choice(every_tag(), int(draw.integers(1, 3)), replace=False)]
    return tags, around


def _added(text: str, tags: Sequence[str], around: Sequence[str], draw: np.random.Generator) -> list[str]:
    """Sentences that name what `text` leaves out: things of the place, then things nearby."""
    known = named(text)
    here = [phrase.text for phrase in phrases(tag for tag in tags if not names_of(tag) & known)][:MOST_ADDED]
    said = {phrase.text for phrase in phrases(tags)}
    near = [phrase.text for phrase in phrases(around) if phrase.text not in said and not named(phrase.text) & known][:2]
    found = []
    if here:
        verb = "are" if is_plural(here[0]) else "is"
        found.append(f"There {verb} also {listed(here)}.")
    if near and draw.random() < 0.8:
        verb = "lie" if len(near) > 1 or is_plural(near[0]) else "lies"
        found.append(sentence(f"{listed(near)} {verb} nearby"))
    return found


def lesson_texts(samples: Sequence[Sample], seed: int, most: int = 20_000) -> Iterable[str]:
    """Prompts and answers to learn the words from."""
    draw = np.random.default_rng([seed, 7])
    for number in draw.permutation(len(samples))[:most]:
        one = example(samples[number], draw, 2)
        yield one.prompt
        yield from one.answers
    for tag in every_tag():
        yield " ".join(phrase.text for phrase in phrases([tag])) + f" {tag}"


# --- as numbers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Packed sequences of a step: picture, prompt, then the answers, each of which sees the prompt and itself.

    tokens, positions: int64 (B, L). mask: bool (B, 1, L, L), True where attention may go. rows, columns: int64 (T,),
    the tokens after which a word of an answer is foretold. labels: int64 (T,), those words.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor


def pack(sequences: Sequence[tuple[list[int], list[list[int]]]], pad: int) -> Batch:
    """`sequences`: token ids of the prefix and of each answer to it."""
    length = max(len(prefix) + sum(map(len, answers)) for prefix, answers in sequences)
    tokens = torch.full((len(sequences), length), pad)
    positions, part = torch.zeros_like(tokens), torch.full_like(tokens, -1)
    rows, columns, labels = [], [], []
    for row, (prefix, answers) in enumerate(sequences):
        start = len(prefix)
        tokens[row, :start] = torch.tensor(prefix)
        positions[row, :start], part[row, :start] = torch.arange(start), 0
        for number, answer in enumerate(answers, start=1):
            stop = start + len(answer)
            tokens[row, start:stop] = torch.tensor(answer)
            positions[row, start:stop] = torch.arange(len(prefix), len(prefix) + len(answer))
            part[row, start:stop] = number
            rows += [row] * len(answer)
            columns += [len(prefix) - 1, *range(start, stop - 1)]
            labels += answer
            start = stop
    same = part[:, :, None] == part[:, None, :]
    mask = torch.ones(length, length, dtype=torch.bool).tril() & (same | (part[:, None, :] == 0))
    return Batch(tokens, positions, mask[:, None], *map(torch.tensor, (rows, columns, labels)))
