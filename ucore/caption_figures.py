"""Figures of captions: what was there, what tags and captioners add, how it stands to the tags, what was dropped.

Everything shown comes from strangers or models and is drawn as plain text.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ucore.errors import ConfigError
from ucore.gallery import printable, simulated_note
from ucore.grounding import grounding
from ucore.images import load_image
from ucore.manifest import Manifest
from ucore.picture import (
    BLUE,
    DARK_GREEN,
    DARK_PURPLE,
    DARK_VERMILLION,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH,
    Picture,
    styled,
)
from ucore.refining import Refined, refine

if TYPE_CHECKING:
    from ucore.captions import CaptionRun

CAPTIONS_SHOWN = 2  # of an image
LETTERS, LINE = 84, 0.158  # of a line beside a picture, and its height in inches
LONGEST = 5  # lines of one text
COLOURS = (FAINT, ORANGE, BLUE, GREEN, PURPLE)  # of the original captions, and of captioners in turn
STATES = {"kept": GREEN, "changed": SKY, "dropped": VERMILLION, "without a text": "#d5d5d5"}
MEASURES = {
    "words_per_text": "words a text",
    "tag_recall": "tags mentioned (%)",
    "contradicting": "texts that deny a tag (%)",
    "unsupported": "texts with things no tag knows (%)",
}


class Told(NamedTuple):
    """What one captioner wrote about an image: as it came, what it was asked, and what `refining.refine` left."""

    captioner: str
    raw: str
    prompt: str
    refined: Refined


def told_of(manifest: Manifest, row: int, runs: Mapping[str, "CaptionRun"]) -> list[Told]:
    """What each of `runs` has to say about the image in `row`; nothing of a run that left it out."""
    sample = manifest.frame["sample_id"].iloc[row]
    tags, around = (list(manifest.frame[name].iloc[row]) for name in ("tags", "surrounding_tags"))
    found = []
    for name, run in runs.items():
        if sample in run.texts:
            raw, prompt = run.texts[sample], run.prompts.get(sample, "")
            found.append(Told(name, raw, prompt, refine(raw, prompt, tags, around)))
    return found


def measure_texts(
    manifest: Manifest, texts: Mapping[str, Sequence[Sequence[str]]], seed: int = 0, draws: int = 1000
) -> list[dict[str, Any]]:
    """Rows for `Report.add_rows`: for each domain and each of `texts`, MEASURES with 95 % bootstrap intervals.

    texts: name -> for every image of the manifest its texts, possibly none; an image counts once, by the mean over its
    texts. Shares are percentages; tag_recall is over images with tags. n: images that were counted.
    """
    tags, around, domains = (list(manifest.frame[name]) for name in ("tags", "surrounding_tags", "domain"))
    rows = []
    for name, of_images in texts.items():
        if len(of_images) != len(manifest):
            raise ConfigError(f"{len(of_images)} lists of texts {name!r} for {len(manifest)} images: give one for each")
        values: dict[tuple[str, str], list[float]] = {}
        for row, of_image in enumerate(of_images):
            results = [grounding(text, tags[row], around[row]) for text in of_image]
            of_row = {
                "words_per_text": [len(text.split()) for text in of_image],
                "tag_recall": [100 * result.recall for result in results if result.recall is not None],
                "contradicting": [100 * bool(result.contradicted) for result in results if tags[row]],
                "unsupported": [100 * bool(result.unsupported) for result in results if tags[row]],
            }
            for metric, seen in of_row.items():
                if seen:
                    values.setdefault((domains[row], metric), []).append(float(np.mean(seen)))
        for (domain, metric), seen in sorted(values.items()):
            drawn = np.random.default_rng(seed).choice(np.array(seen), (draws, len(seen))).mean(1)
            low, high = np.percentile(drawn, [2.5, 97.5])
            rows.append({"label": f"{domain}: {name}", "metric": metric, "value": float(np.mean(seen)),
                         "low": float(low), "high": float(high), "n": len(seen)})  # fmt: skip
    return rows


# --- figures ----------------------------------------------------------------------------------------------------


@styled
def plot_captions(manifest: Manifest, rows: Sequence[int], runs: Mapping[str, "CaptionRun"]) -> Picture:
    """The images of `rows`, each beside its tags, its captions and the texts of `runs`, with the tags' verdict."""
    if not len(rows):
        raise ConfigError("There is no image to show; give at least one row.")
    blocks = [_lines(manifest, row, runs) for row in rows]
    side = 2.05
    heights = [max(side, LINE * len(lines)) + 0.22 for lines in blocks]
    high = sum(heights)
    figure, top = Picture(figsize=(WIDTH, high)), high - 0.06
    for row, lines, height in zip(rows, blocks, heights, strict=True):
        axes = figure.add_axes((0.004, (top - side) / high, side / WIDTH, side / high), anchor="NW")
        axes.imshow(np.asarray(load_image(manifest.image_path(int(row)))))
        axes.axis("off")
        for number, (text, style) in enumerate(lines):
            y = (top - LINE * number) / high
            figure.text((side + 0.12) / WIDTH, y, text, va="top", fontsize=8.8, **style)
        top -= height
    figure.alt = f"{len(rows)} images with tags, captions, and the texts of {', '.join(map(printable, runs))}."
    return figure


def _lines(manifest: Manifest, row: int, runs: Mapping[str, "CaptionRun"]) -> list[tuple[str, dict[str, Any]]]:
    """What stands beside an image: lines and how they are drawn."""
    frame = manifest.frame
    tags, captions = list(frame["tags"].iloc[row]), list(frame["captions"].iloc[row])
    lines: list[tuple[str, dict[str, Any]]] = []

    def add(text: str, most: int = LONGEST, **style: Any) -> None:
        wrapped = textwrap.wrap(printable(text), LETTERS, max_lines=most, placeholder=" …", subsequent_indent="   ")
        lines.extend((part, style) for part in wrapped)

    add(f"{frame['sample_id'].iloc[row]}, {frame['domain'].iloc[row]}{simulated_note(manifest)}", 1, fontweight="bold")
    add(f"tags: {', '.join(tags) or 'none'}", 3, color="#555555")
    for number, caption in enumerate(captions[:CAPTIONS_SHOWN], start=1):
        add(f"caption {number} of {len(captions)}: {caption}", 3)
    for told in told_of(manifest, row, runs):
        why = f" ({', '.join(told.refined.problems)})" if told.refined.problems else ""
        if told.refined.text != told.raw.strip() and told.raw.strip():
            add(f"by {told.captioner}, raw: {told.raw}", 3, color=FAINT, style="italic")
        add(f"by {told.captioner}: {told.refined.text or 'dropped'}{why}", fontweight="bold", color=INK)
        verdict = told.refined.refined if told.refined.text else told.refined.cleaned
        for mark, what, names, colour in (
            ("✓", "mentioned", verdict.mentioned, DARK_GREEN),
            ("–", "missing", verdict.missing, FAINT),
            ("✗", "contradicted", told.refined.cleaned.contradicted, DARK_VERMILLION),
            ("?", "no tag knows", verdict.unsupported, DARK_PURPLE),
        ):
            if names:
                add(f"   {mark} {what}: {', '.join(names)}", 2, color=colour)
    return lines


@styled
def plot_measures(rows: Sequence[dict[str, Any]]) -> Picture:
    """Words a text and its standing to the tags, a group of bars a domain, with intervals; rows: of `measure_texts`."""
    if not rows:
        raise ConfigError("There is nothing to plot: give the rows of measure_texts.")
    table = {(*row["label"].split(": ", 1), row["metric"]): row for row in rows}
    domains, names = (list(dict.fromkeys(key[place] for key in table)) for place in (0, 1))
    measures = [name for name in MEASURES if any(key[2] == name for key in table)]
    columns = min(2, len(measures))
    figure = Picture(figsize=(WIDTH, 0.5 + 2.5 * -(-len(measures) // columns)), layout="constrained")
    frames = figure.subplots(-(-len(measures) // columns), columns, squeeze=False)
    wide = 0.8 / len(names)
    for axes, measure in zip(frames.flat, [*measures, *[""] * 2], strict=False):
        if not measure:
            axes.axis("off")
            continue
        for number, name in enumerate(names):
            found = [(place, table[domain, name, measure]) for place, domain in enumerate(domains)
                     if (domain, name, measure) in table]  # fmt: skip
            x = np.array([place for place, _ in found]) + (number - (len(names) - 1) / 2) * wide
            values = np.array([row["value"] for _, row in found])
            label = printable(name) if measure == measures[0] else None
            axes.bar(x, values, 0.92 * wide, color=COLOURS[number % len(COLOURS)], label=label)
            reach = [values - [row["low"] for _, row in found], [row["high"] for _, row in found] - values]
            axes.errorbar(x, values, reach, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2)
        axes.set_title(MEASURES[measure], loc="left", fontsize=11)
        axes.set_xticks(
            range(len(domains)), [textwrap.shorten(printable(name), 14, placeholder="…") for name in domains]
        )
        if axes.dataLim.ymax > 0:
            axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
            axes.grid(axis="y")
        else:
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=FAINT)
            axes.set(ylim=(0, 1), yticks=[])
        axes.set_axisbelow(True)
    figure.legend(loc="outside lower left", ncols=min(4, len(names)))
    told = [f"{key[1]} in {key[0]} {row['value']:.0f}" for key, row in table.items() if key[2] == "tag_recall"]
    figure.alt = f"Words a text and grounding, by country. Tags mentioned in percent: {', '.join(told) or 'no tags'}."
    return figure


@styled
def plot_dropped(reports: Mapping[str, Mapping[str, Any]]) -> Picture:
    """What became of the texts of each captioner, and what was found in them; reports: as of `refine_captions`."""
    problems = list(dict.fromkeys(name for report in reports.values() for name in report["problems"]))
    figure = Picture(figsize=(WIDTH, 1.7 + 0.3 * len(reports) * (1 + 0.6 * len(problems))), layout="constrained")
    shares = (1 + len(reports), 0.8 + 0.6 * len(problems) * len(reports))
    above, below = figure.subplots(2, 1, height_ratios=shares)
    for line, report in enumerate(reports.values()):
        start = 0
        for state, colour in STATES.items():
            count = report.get(state, 0)
            above.barh(line, count, 0.62, start, color=colour, label=state if line == 0 else None)
            if count:
                above.text(start + count / 2, line, f"{count:,}", ha="center", va="center", fontsize=9)
            start += count
    above.set_yticks(range(len(reports)), [textwrap.shorten(printable(name), 24, placeholder="…") for name in reports])
    above.invert_yaxis()
    above.set_title("What became of the texts (images)", loc="left", fontsize=11)
    above.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    wide = 0.8 / max(1, len(reports))
    for number, (name, report) in enumerate(reports.items()):
        y = np.arange(len(problems)) + (number - (len(reports) - 1) / 2) * wide
        counts = [report["problems"].get(problem, 0) for problem in problems]
        below.barh(y, counts, 0.9 * wide, color=COLOURS[1 + number % (len(COLOURS) - 1)], label=printable(name))
        for place, count in zip(y, counts, strict=True):
            below.text(count, place, f" {count:,}", va="center", fontsize=9)
    below.set_yticks(range(len(problems)), [printable(name) for name in problems])
    below.invert_yaxis()
    below.set_title("What was found in them (texts)" if problems else "Nothing was found in them", loc="left",
                    fontsize=11)  # fmt: skip
    if problems:
        below.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        below.axis("off")
    counts = [f"{name}: " + ", ".join(f"{report.get(state, 0)} {state}" for state in STATES)
              for name, report in reports.items()]  # fmt: skip
    figure.alt = f"What became of the texts. {'; '.join(map(printable, counts))}."
    return figure
