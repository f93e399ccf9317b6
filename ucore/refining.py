"""Raw captions -> a manifest with refined ones, and a report of what was kept, changed, dropped and why.

refined, report = refine_captions(manifest, {"finland-0001": "Sure! Here is a description: ..."})

Captions that were there are never changed. What was written about an image goes into its description, which is no
query, or beside the captions of images that are trained on: a split that is searched keeps its questions.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ucore.cleaning import MOST_WORDS, clean_caption, split_sentences
from ucore.errors import ConfigError, DataError
from ucore.grounding import Grounding, grounding, summarise
from ucore.manifest import Manifest

Into = Literal["description", "captions", "both"]
Drop = Literal["nothing", "contradicted", "ungrounded"]
TRAINED = ("train", "finetune")  # splits that are learned from; all others are measured on
EXAMPLES = 3  # of everything that the report counts


class Refined(NamedTuple):
    """One text after `refine`, what was found in it, and how it stands to the tags, cleaned and refined."""

    text: str
    problems: tuple[str, ...]
    cleaned: Grounding
    refined: Grounding


def refine(
    text: str,
    prompt: str = "",
    tags: Sequence[str] = (),
    surrounding_tags: Sequence[str] = (),
    drop: Drop = "contradicted",
    most_words: int = MOST_WORDS,
) -> Refined:
    """Clean `text` (`cleaning.clean_caption`) and leave out sentences by what the tags say (`grounding.grounding`).

    drop: sentences to leave out: "contradicted" ones deny a tag for the whole picture, "ungrounded" ones also name a
    distinctive thing that no tag supports. Their names are added to `problems`.
    """
    cleaned = clean_caption(text, prompt, most_words)
    before = after = grounding(cleaned.text, tags, surrounding_tags)
    problems = list(cleaned.problems)
    result = cleaned.text
    wanted = {"nothing": (), "contradicted": ("contradicted",), "ungrounded": ("contradicted", "unsupported")}[drop]
    if any(getattr(before, name) for name in wanted):
        kept = []
        for sentence in split_sentences(cleaned.text):
            of_sentence = grounding(sentence, tags, surrounding_tags)
            wrong = [name for name in wanted if getattr(of_sentence, name)]
            problems += [name for name in wrong if name not in problems]
            kept += [] if wrong else [sentence]
        result = " ".join(kept)
        after = grounding(result, tags, surrounding_tags)
    if not result and "empty" not in problems:
        problems.append("empty")
    return Refined(result, tuple(problems), before, after)


def refine_captions(
    manifest: Manifest,
    texts: Mapping[str, str],
    prompts: Mapping[str, str] | None = None,
    into: Into = "description",
    drop: Drop = "contradicted",
    most_words: int = MOST_WORDS,
    unlike: Collection[str] = (),
) -> tuple[Manifest, dict[str, Any]]:
    """The manifest with `texts` refined, and a report (JSON-able).

    texts, prompts: by sample_id; images without a text stay as they are. See `refine` for `drop`.
    into: "description" (a description that was there moves to the column original_description, unless nothing is left
        of the new text), "captions" (one more caption, only for images of the splits train and finetune, and only
        where it is a new one), or "both".
    unlike: samples whose texts are dropped because they are not like their images (`likeness.filter_captions`).
    Raises DataError for texts of unknown samples.
    """
    for name, value, known in (("into", into, ("description", "captions", "both")),
                               ("drop", drop, ("nothing", "contradicted", "ungrounded"))):  # fmt: skip
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; choose {', '.join(known)}.")
    rows = list(manifest.frame["sample_id"])
    strangers = sorted(set(texts) - set(rows))
    if strangers:
        raise DataError(f"{len(strangers):,} text(s) belong to no sample of the manifest: {strangers[0]!r}, ...")
    columns = ("captions", "description", "tags", "surrounding_tags", "split")
    captions, descriptions, tags, around, splits = (list(manifest.frame[name]) for name in columns)
    done: dict[int, Refined] = {}
    for row, sample in enumerate(rows):
        if sample in texts:
            prompt = (prompts or {}).get(sample, "")
            done[row] = refine(texts[sample], prompt, tags[row], around[row], drop, most_words)
            if sample in unlike:
                done[row] = done[row]._replace(text="", problems=(*done[row].problems, "unlike"))
    frame: Any = manifest.frame.copy()
    given = {row: result.text for row, result in done.items() if result.text}
    if into != "captions":
        before = list(frame["original_description"]) if "original_description" in frame else [""] * len(rows)
        replaced = {row for row, text in given.items() if descriptions[row] not in ("", text) and not before[row]}
        if replaced or "original_description" in frame:
            frame["original_description"] = [
                descriptions[row] if row in replaced else old for row, old in enumerate(before)
            ]
        frame["description"] = [given.get(row, old) for row, old in enumerate(descriptions)]
    if into != "description":
        added = {row: text for row, text in given.items() if splits[row] in TRAINED and text not in captions[row]}
        frame["captions"] = [[*of, added[row]] if row in added else list(of) for row, of in enumerate(captions)]
    raw = {row: texts[rows[row]] for row in done}
    return Manifest(frame, manifest.root), _report(rows, splits, raw, done)


def _report(rows: list[str], splits: list[str], raw: dict[int, str], done: dict[int, Refined]) -> dict[str, Any]:
    state = {row: text_state(raw[row], result.text) for row, result in done.items()}
    findings: dict[str, list[int]] = {}
    for row, result in done.items():
        ground = [name for name in ("contradicted", "unsupported") if getattr(result.cleaned, name)]
        for name in dict.fromkeys((*result.problems, *ground)):
            findings.setdefault(name, []).append(row)
    counts: dict[str, Counter[str]] = {split: Counter() for split in dict.fromkeys(splits)}
    for row, split in enumerate(splits):
        counts[split][state.get(row, "without a text")] += 1
    every = sum(counts.values(), Counter())
    texts = [result.text for result in done.values() if result.text]
    return {
        "images": len(rows),
        **{name: every[name] for name in ("kept", "changed", "dropped", "without a text")},
        "by_split": {split: dict(sorted(of.items())) for split, of in counts.items()},
        "problems": {name: len(of) for name, of in sorted(findings.items())},
        "grounding": {
            "cleaned": summarise([result.cleaned for result in done.values()]),
            "refined": summarise([result.refined for result in done.values() if result.text]),
        },
        "words": {
            "raw": mean([len(text.split()) for text in raw.values()]),
            "refined": mean([len(text.split()) for text in texts]),
        },
        "distinct_texts": len(set(texts)),
        "examples": {
            name: [
                {
                    "sample_id": rows[row],
                    "before": raw[row][:1000],
                    "after": done[row].text,
                    **{what: list(getattr(done[row].cleaned, what)) for what in ("contradicted", "unsupported")},
                }
                for row in of[:EXAMPLES]
            ]
            for name, of in sorted(findings.items())
        },
    }


def text_state(before: str, after: str) -> str:
    """Whether a raw text was "kept", "changed" or "dropped" by `refine`; of a blank one, "without a text"."""
    if not before.strip():
        return "without a text"
    if not after:
        return "dropped"
    before = " ".join(before.split())
    return "kept" if after in (before, f"{before}.") else "changed"


def mean(values: Sequence[float]) -> float | None:
    """The mean for a report; None of nothing."""
    return round(float(np.mean(values)), 4) if len(values) else None
