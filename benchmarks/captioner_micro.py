"""What the small captioner says of pictures it never saw, beside sentences from tags alone and the most common caption.

    python benchmarks/captioner_micro.py --data DIR [--split test] [--model FOLDER] [--most 300] [--show 20]

For each way of writing: tag recall (share of an image's tags that its text names), shares of texts that contradict a
tag or name a distinctive thing no tag supports (`ucore.grounding`), and word F1 with the closest of the image's own
captions. "other image" scores the same texts against another image's captions and tags: what is gained by having
looked.
"""

import argparse
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ucore.captioner import load_captioner
from ucore.compose import TagComposer
from ucore.data import read_dataset
from ucore.grounding import grounding, summarise
from ucore.images import load_image
from ucore.manifest import Manifest, subset
from ucore.micro_captioner import FOLDER
from ucore.prompts import load_prompt

SMALL_WORDS = {"a", "an", "the", "of", "in", "on", "at", "to", "and", "is", "are", "with", "by", "there", "it", "its"}


def words(text: str) -> Counter[str]:
    return Counter(word for word in re.findall(r"[a-z]+", text.lower()) if word not in SMALL_WORDS)


def word_f1(text: str, references: list[str]) -> float:
    """F1 of the words, small ones aside, with the closest reference."""
    found, own = [0.0], words(text)
    for reference in references:
        other = words(reference)
        total = own.total() + other.total()
        found.append(2 * (own & other).total() / total if total else 0.0)
    return max(found)


def scores(texts: list[Any], manifest: Manifest, shift: int = 0) -> dict[str, Any]:
    """Scores of `texts`, of which each is held against the image `shift` rows further on."""
    frame = manifest.frame
    places = [(row + shift) % len(manifest) for row in range(len(manifest))]
    found = [
        grounding(text, frame["tags"].iloc[row], frame["surrounding_tags"].iloc[row])
        for text, row in zip(texts, places, strict=True)
    ]
    f1 = [word_f1(text, frame["captions"].iloc[row]) for text, row in zip(texts, places, strict=True)]
    return {
        **{name: value for name, value in summarise(found).items() if name not in ("texts", "with_tags")},
        "word_f1": round(sum(f1) / len(f1), 4),
        "words": round(sum(len(text.split()) for text in texts) / len(texts), 1),
        "distinct": len(set(texts)),
        "unfinished": sum(not text.endswith((".", "!", "?")) for text in texts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", type=Path, default=FOLDER)
    parser.add_argument("--most", type=int, default=300)
    parser.add_argument("--show", type=int, default=0)
    options = parser.parse_args()
    whole = read_dataset(options.data)
    manifest = subset(whole.split(options.split), options.most)
    frame, prompt = manifest.frame, load_prompt()
    pairs = list(zip(frame["tags"], frame["surrounding_tags"], strict=True))
    captioner = load_captioner(str(options.model), "cpu", batch_size=16)
    images = [load_image(path) for path in manifest.image_paths]
    captioner.load()
    started = time.perf_counter()
    given = captioner.caption(images, [prompt.fill(*pair) for pair in pairs])
    seconds = (time.perf_counter() - started) / len(manifest)
    blind = captioner.caption(images, [prompt.fill() for _ in pairs])
    common = Counter(whole.split("train").texts[0]).most_common(1)[0][0] if "train" in set(whole.frame["split"]) else ""
    composed = [TagComposer().compose(*pair, name) for pair, name in zip(pairs, frame["sample_id"], strict=True)]
    table = {
        "micro, tags given": scores(given, manifest),
        "micro, tags given, other image": scores(given, manifest, len(manifest) // 2),
        "micro, no tags": scores(blind, manifest),
        "micro, no tags, other image": scores(blind, manifest, len(manifest) // 2),
        "sentences from tags": scores(composed, manifest),
        "most common caption": scores([common] * len(manifest), manifest),
    }
    print(f"{len(manifest)} images of {manifest.name}, {options.split}; {seconds:.3f} s an image")
    for name, row in table.items():
        print(f"{name:32}", json.dumps(row))
    for row in range(0, len(manifest), max(1, len(manifest) // max(options.show, 1))) if options.show else ():
        print(f"\n{frame['image'].iloc[row]}  {', '.join(pairs[row][0])} | {', '.join(pairs[row][1])}")
        print(f"  given: {given[row]}\n  blind: {blind[row]}\n  own:   {' / '.join(frame['captions'].iloc[row][:2])}")


if __name__ == "__main__":
    main()
