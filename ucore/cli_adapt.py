"""The command that takes a trained model across a border: `ucore adapt`."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ucore.errors import ConfigError, DataError
from ucore.files import require_writable

if TYPE_CHECKING:
    from ucore.manifest import Manifest

Settings = Annotated[
    list[str],
    tyro.conf.arg(name="set", aliases=["-s"], metavar="NAME=VALUE", help="Any setting of AdaptConfig; repeatable."),
    tyro.conf.UseAppendAction,
]


def adapt(
    source: Path,
    target: Path,
    checkpoint: Path,
    target_domain: str | None = None,
    source_domain: str | None = None,
    method: str = "ucore",
    scale: str = "small",
    seed: int = 0,
    out: Path = Path("runs/adapt"),
    settings: Settings = [],  # noqa: B006 - tyro reads the default, nobody changes it
    segments: Path | None = None,
    target_segments: Path | None = None,
    cache: Path = Path("runs/features"),
    device: str = "auto",
    skip_bad: bool = False,
    keep_alike: bool = False,
    restart: bool = False,
) -> None:
    """Adapt a checkpoint to a target domain whose pairs are unknown; a repeated call goes on where it stopped.

    Of the target, 20 % are adapted to and 10 % watched (by -s choose_by=return_probability they choose the
    weights, without their pairs); 70 % are left for `ucore eval --splits OUT/split.json`. Splits go by blocks of
    ground, unless the dataset itself has a split "finetune".

    Args:
        source: Dataset folder whose pairs are known.
        target: Dataset folder to adapt to.
        checkpoint: Folder that `ucore train` wrote for the source.
        target_domain: One domain (country) of the target; needed where it has several.
        source_domain: One domain of the source.
        method: ucore (the best we found), paper (UrbanCross's, its mistakes corrected), dann, cdan, coral, mmd,
            source-only (as many more steps on the source), or, with the target's pairs, target-only and joint.
        scale: small, or tiny (one view an image).
        seed: Of every random choice, the target's splits among them.
        out: Folder for the adapted checkpoint, adaptation.json and split.json.
        segments: Folder of masks that `ucore segment` wrote for the source: wanted by a checkpoint trained with any; to
            another they are added, pooled as -s segments=mean, attention or late says.
        target_segments: The same for the target, where they lie elsewhere.
        cache: Folder for tower features, shared between runs.
        device: auto, cpu, cuda or cuda:N.
        skip_bad: Leave unreadable images out instead of stopping.
        keep_alike: Go on where pictures of both sides look the same and are not the same file.
        restart: Forget an earlier run in OUT.
    """
    from ucore.adapt_config import AdaptConfig, inherited
    from ucore.checkpoint_files import read_card
    from ucore.notebooks import parse_parameters

    started = time.perf_counter()
    if target_segments is not None and segments is None:
        raise ConfigError("--target-segments are of the target alone: name the masks of the source by --segments, too")
    kept = inherited(read_card(checkpoint)["train"])
    if "segments" in kept and segments is None:
        raise ConfigError(
            f"{checkpoint} was trained with segments: name the masks of the source by --segments and those of the "
            "target, where they lie elsewhere, by --target-segments; ucore segment makes them"
        )
    pooled = {} if segments is None else {"segments": "late"}
    values: dict[str, Any] = {"scale": scale, "method": method, "seed": seed, **pooled, **kept}
    values |= parse_parameters(settings)
    config = AdaptConfig.of(str(values.pop("method")), str(values.pop("scale")), **values)
    config.require_masks(segments is not None)
    for folder in (out, cache):
        require_writable(folder)
    if out.resolve() == checkpoint.resolve():
        raise ConfigError(f"--out {out} is the checkpoint to start from; choose another folder")
    from ucore.data import read_dataset

    pairs = read_dataset(source, split="train", domain=source_domain, skip_bad=skip_bad)
    everything = read_dataset(target, domain=target_domain, skip_bad=skip_bad)
    finetune, val = target_parts(everything, target_domain, config.seed)
    refuse_shared(pairs, everything, keep_alike)
    try:  # it chose the checkpoint's weights
        chosen_by = read_dataset(source, split="val", domain=source_domain, skip_bad=skip_bad)
    except DataError as error:
        warnings.warn(f"Whether the source's part val has images of the target is not known: {error}", stacklevel=2)
    else:
        refuse_shared(chosen_by, everything, keep_alike, "the source's part val")
    warn_of_trained(checkpoint, everything)

    import torch

    from ucore.adapt import Adapter
    from ucore.checkpoint import load_checkpoint
    from ucore.device import pick_device
    from ucore.segment_store import SegmentStore
    from ucore.tasks import forget_run, keep_split, score, training_bank, write_metrics

    encoder, card = load_checkpoint(checkpoint, pick_device(device))
    masks = [None if folder is None else SegmentStore(folder) for folder in (segments, target_segments or segments)]
    of_target: dict[str, Any] = {"segments": masks[1], "config": config}
    torch.manual_seed(config.seed)
    before = score(encoder, val, **of_target)
    if restart:
        forget_run(out)
    adapter = Adapter(encoder, pairs, finetune, val, config, out, cache, True, *masks)
    print(
        f"{len(pairs):,} pairs of {pairs.name}; of {val.name} {len(finetune):,} images to adapt to, {len(val):,} to "
        f"choose by; method {config.method}"
    )
    if adapter.resume():
        print(f"Found a run in {out}, {'finished' if adapter.finished else f'at step {adapter.step_count}'}.")
    keep_split(everything, out)
    best = adapter.fit()
    training_bank(encoder, finetune, out, **of_target)
    after = score(encoder, val, **of_target)
    seconds = {**adapter.seconds, "total": time.perf_counter() - started}
    write_metrics(
        out / "adaptation.json",
        [*before.rows("before adaptation", config.seed), *after.rows(f"adapted ({config.method})", config.seed)],
        val, f"ucore adapt --method {config.method} --scale {config.scale} --seed {config.seed}", seed=config.seed,
        simulated=val.simulated or pairs.simulated, split="val", source=pairs.name,
        parameters=config.to_dict(), chosen=best, started_from=card["train"], seconds=seconds, history=adapter.history,
    )  # fmt: skip
    mR = [scores.metrics()[0]["mR"] for scores in (before, after)]
    print(f"Validation mR {mR[0]:.2f} before, {mR[1]:.2f} after (weights of epoch {best['epoch']}: {config.choose_by})")
    epochs = [row["metrics"] for row in adapter.history if "metrics" in row]
    if epochs and best["step"]:
        first, last = epochs[0]["images_told_apart"], best["images_told_apart"]
        said = f"New classifiers tell images of both domains apart in {last:.0f} % (50: a guess)"
        print(f"{said}, {first:.0f} % after the first epoch.{collapsed(epochs)}")
    chosen = f" --domain {target_domain}" if target_domain else ""
    chosen += " --skip-bad" if skip_bad else ""
    chosen += "" if encoder.segments is None else f" --segments {target_segments or segments}"
    print(f"Score the test part: ucore eval --checkpoint {out} --data {target}{chosen} --splits {out / 'split.json'}")


def target_parts(everything: "Manifest", domain: str | None, seed: int) -> "tuple[Manifest, Manifest]":
    """The target's parts finetune and val; splits are drawn, in place, unless it has a split "finetune".

    Raises DataError for several domains, and where no block of ground is left for one of the parts.
    """
    from ucore.splits import adaptation_split

    domains = sorted(set(everything.frame["domain"]))
    if len(domains) > 1:
        raise DataError(f"The target has several domains: {', '.join(domains)}. Choose one with --target-domain.")
    if "finetune" not in set(everything.frame["split"]):
        drawn = adaptation_split(everything, seed=seed)
        places = dict(zip(drawn.frame["sample_id"], zip(drawn.frame["split"], drawn.frame["block"], strict=True),
                          strict=True))  # fmt: skip
        for number, column in enumerate(("split", "block")):
            everything.frame[column] = [places[name][number] for name in everything.frame["sample_id"]]
        everything.frame.attrs = drawn.frame.attrs
    return everything.split("finetune"), everything.split("val")


def refuse_shared(source: "Manifest", target: "Manifest", keep_alike: bool = False, where: str = "the source") -> None:
    """Raise DataError, naming them, for pictures that are in both: what was learned by heart is no adaptation.

    A picture is known again where it was encoded anew, resized, turned or mirrored (`same_pictures`); keep_alike: such
    ones, which might be two places that look alike, are warned of instead. Images of a single colour say nothing that
    could be learned by heart; several countries have the same.
    """
    from ucore.duplicates import same_pictures
    from ucore.files import file_hash
    from ucore.images import load_image, map_files
    from ucore.manifest import few

    names = tuple(part.frame["sample_id"].tolist() for part in (source, target))
    known = dict(zip(map_files(file_hash, source.image_paths, "Hashing images"), names[0], strict=True))
    hashes = map_files(file_hash, target.image_paths, "Hashing images")
    copies = {
        name: known[key]
        for key, name, path in zip(hashes, names[1], target.image_paths, strict=True)
        if key in known and len(load_image(path).getcolors(1) or []) != 1
    }
    pairs = reversed(same_pictures(source.image_paths, target.image_paths))
    alike = {names[1][j]: names[0][i] for i, j in pairs if names[1][j] not in copies}
    found = copies | alike
    shared = [f"{name} ({found[name]})" for name in names[1] if name in found]
    if not shared:
        return
    whole = len(shared) == len(target) == len(source) and where == "the source"
    told = "Source and target are the same" if whole else f"{len(shared):,} of {len(target):,} images of the target"
    told += "" if whole else f" are in {where}, too"
    if keep_alike and not copies:
        warnings.warn(f"{told}, by their looks: {few(shared)}. If they are, results flatter.", stacklevel=2)
        return
    way_out = "" if copies else "; if they only look alike, repeat with --keep-alike"
    raise DataError(f"{told}: {few(shared)}. Choose another --target-domain or --source-domain{way_out}.")


def warn_of_trained(checkpoint: Path, target: "Manifest") -> None:
    """Warn where images of the target are named as images that `checkpoint` learned from, by the splits beside it."""
    from ucore.splits import samples_of

    path = checkpoint / "split.json"
    if not path.is_file():
        return
    known = samples_of(path)
    keys = zip(target.frame["domain"], target.frame["sample_id"], strict=True)
    if seen := sum(known.get(key) in ("train", "val", "finetune") for key in keys):
        warnings.warn(
            f"{seen:,} of the target's {len(target):,} images are named as images that {checkpoint} was trained on or "
            "chosen by. If they are the same, not all is unknown to it: train a checkpoint on the source alone "
            "(--domain)",
            stacklevel=2,
        )


def collapsed(epochs: "list[dict[str, Any]]") -> str:
    """Warnings where a discriminator, in the later half of the epochs, taught nothing that aligns; or nothing.

    epochs: what each showed, "discriminator_accuracy" (of images) and "text_discriminator_accuracy" in percent among
    it: 50 to the decimal is one that says the same of everything, and far below 50 one that takes either domain for the
    other. One that never loses may know its samples by heart: then "images_told_apart" and "texts_told_apart", by new
    classifiers, say whether it aligned anything.
    """
    told = ""
    for side, own in (("image", "discriminator_accuracy"), ("text", "text_discriminator_accuracy")):
        rows = [row for row in epochs if own in row]
        rows = rows[max(1, len(rows) // 2) :]
        if rows and min(row[f"{side}s_told_apart"] for row in rows) >= 80:  # else they are hidden, whatever it says
            told += _of_discriminator(side, [row[own] for row in rows])
    return told


def _of_discriminator(side: str, own: "list[float]") -> str:
    who = f" The adversary's discriminator of {side}s"
    if min(own) > 99:
        return f"{who} never lost: nothing was aligned. Raise adversarial_weight."
    if max(abs(value - 50) for value in own) < 0.5:
        return f"{who} tells nothing apart: it has collapsed, and aligns nothing. Raise adversary_steps."
    if max(own) < 40:
        return (f"{who} takes one for the other: features are driven past each other. Raise adversary_steps, or lower "
                "adversarial_weight.")  # fmt: skip
    return ""


def untouched(
    checkpoint: Path, adapted: bool, scored: "Manifest", split: str, read: "Callable[[], Manifest]"
) -> "Manifest":
    """What to score of a dataset: `scored`, its own `split`, or the adaptation's where `checkpoint` was adapted to it.

    Splits of an adaptation are drawn anew, so that images of the dataset's own test part may have been adapted to.
    adapted: by the checkpoint's card; read: all of the dataset, of the domain that is scored. Where names alone are
    those of the adaptation, and places or the other images are not, the data may be others: a warning says so.
    """
    from ucore.splits import load_split, samples_of

    path = checkpoint / "split.json"
    if not adapted or not path.is_file():
        return scored
    known = samples_of(path)
    keys = list(zip(scored.frame["domain"], scored.frame["sample_id"], strict=True))
    if not any(key in known for key in keys):
        return scored
    try:
        parts = load_split(read(), path)
    except DataError:
        parts = None
    if parts is not None and split in set(parts.frame["split"]):
        own = parts.split(split)
        if list(own.frame["sample_id"]) == list(scored.frame["sample_id"]):
            return scored
        print(f"{checkpoint} was adapted to this data: scoring the part {split!r} of its own split.json.")
        return own
    if used := sum(known.get(key) in ("finetune", "val") for key in keys):
        warnings.warn(
            f"{used:,} of the {len(scored):,} images to be scored are named as ones that {checkpoint} was adapted to "
            "or chosen by. If they are the same, the scores flatter: score the part test, with the whole dataset there",
            stacklevel=2,
        )
    return scored
