"""Splits without leaks: whole blocks of ground go to one split, with a buffer between splits.

    manifest = spatial_split(manifest, seed=0)                  # train, val, test, and "buffer"
    target = adaptation_split(manifest, seed=0)                 # finetune, val, test

Neighbouring tiles show the same street, so a split by image tests what was trained on. Here every domain is cut
into square blocks, blocks are given to splits, and samples too close to a later-named split are set aside.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ucore.blocks import DomainDraw, block_sides, near, nearest, places
from ucore.duplicates import MAX_DISTANCE, near_duplicates, normal_caption
from ucore.errors import ConfigError, DataError
from ucore.files import content_hash, parse_json, write_json
from ucore.manifest import Manifest, few

FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}
BUFFER = "buffer"  # the split of samples that nobody uses
NAMED_PAIRS = 50  # near duplicates that a report names; it counts them all
Array = np.ndarray


def spatial_split(
    manifest: Manifest,
    fractions: Mapping[str, float] = FRACTIONS,
    block_m: float | None = None,
    buffer_m: float | None = None,
    seed: int = 0,
    regions: bool = False,
) -> Manifest:
    """A copy of `manifest` whose column split is drawn anew, domain by domain, and which has a column block (str).

    fractions: share of each split; they sum to 1. The order matters: of two samples too close together, the one
        whose split is named first gives way, so the last split (test) keeps all its samples.
    block_m: side of the square blocks, metres on the ground. None: such that the ground that a domain's tiles
        cover makes about 24 blocks, but at least three buffers; halved, twice at most, while that is too large to
        fill every split.
    buffer_m: samples of different splits have centres at least so far apart. None: 1.01 times the diagonal of
        the domain's largest tile (its footprint's bounds; 256 m square without one), so that tiles of different
        splits neither overlap nor touch. Between domains the largest value holds. Samples that gave way have the
        split "buffer".
    regions: draw splits that lie side by side, too, which lose less to the buffer; not where domains share ground, as
        one's region may take a whole split from another.

    Samples without lon and lat are grouped when images or all captions are identical, and groups are shuffled.
    Each domain takes the best of several seeded draws of the grid's origin and the blocks' order: the shares
    after the buffer that come closest to `fractions`. The result depends on the samples and the arguments, not on
    the order of the rows. Raises ConfigError for arguments out of range, and DataError naming a domain that has
    too few blocks to fill every split.
    """
    _check(manifest, fractions, block_m, buffer_m, seed)
    order = np.argsort(manifest.frame["sample_id"].to_numpy(dtype=str), kind="stable")
    frame: Any = manifest.frame.iloc[order].reset_index(drop=True)
    (points, sizes), domains = places(frame), frame["domain"].to_numpy(dtype=str)
    splits, blocks = np.empty(len(frame), int), np.empty(len(frame), object)
    settings: dict[str, Any] = {}
    for domain in np.unique(domains):
        rows = np.flatnonzero(domains == domain)
        located = ~np.isnan(points[rows, 0])
        buffer = 1.01 * float(sizes[rows][located].max(initial=0)) if buffer_m is None else float(buffer_m)
        sides = block_sides(sizes[rows][located], buffer) if block_m is None else [float(block_m)]
        part = DomainDraw(Manifest(frame.iloc[rows], manifest.root), points[rows], tuple(fractions.values()), buffer)
        rng = np.random.default_rng([seed, *str(domain).encode()])
        splits[rows], blocks[rows], side = part.best(sides, rng, regions)
        settings[str(domain)] = {"block_m": round(side, 3), "buffer_m": round(buffer, 3)}
    widest = max(values["buffer_m"] for values in settings.values())
    splits = _give_way_between(points, splits, domains, widest, len(fractions))
    _require_all(splits, domains, list(fractions), widest, manifest.root)
    names = np.array([*fractions, BUFFER], object)  # -1 is the last
    back = np.argsort(order)
    result: Any = manifest.frame.copy()
    result["split"], result["block"] = names[splits][back], blocks[back]
    shares = [[name, share] for name, share in fractions.items()]  # a list, since JSON sorts the names
    result.attrs = {"split": {"fractions": shares, "seed": seed, "domains": settings}}
    return Manifest(result, manifest.root)


def adaptation_split(
    manifest: Manifest, finetune: float = 0.2, val: float = 0.1, test: float = 0.7, **settings: Any
) -> Manifest:
    """`spatial_split` of a target domain into finetune, val and test, the protocol of UrbanCross (stage 3).

    Where it is one domain, splits may be regions.
    """
    alone = manifest.frame["domain"].nunique() == 1
    return spatial_split(manifest, {"finetune": finetune, "val": val, "test": test}, **{"regions": alone, **settings})


def repair_duplicates(manifest: Manifest, max_distance: int = MAX_DISTANCE) -> Manifest:
    """A copy without near-duplicate images in different splits: of such a pair, the one whose split is named first
    gives way and gets the split "buffer". The last split (test) keeps all its samples."""
    rank = {name: number for number, name in enumerate(_split_names(manifest))}
    frame: Any = manifest.frame.copy()
    used, paths = np.flatnonzero(frame["split"].isin(rank)), manifest.image_paths
    pairs = used[near_duplicates([paths[row] for row in used], max_distance)[:, :2]]
    ranks = frame["split"].map(rank).to_numpy(float)[pairs]
    gives_way = np.where(ranks[:, 0] < ranks[:, 1], pairs[:, 0], pairs[:, 1])[ranks[:, 0] != ranks[:, 1]]
    frame.loc[frame.index[gives_way], "split"] = BUFFER
    return Manifest(frame, manifest.root)


def split_report(manifest: Manifest, images: bool = True, max_distance: int = MAX_DISTANCE) -> dict[str, Any]:
    """What a split holds and what leaks through it, as a JSON-able dict.

    domains: for each, images and blocks of each split, the buffer among them. nearest_m: the smallest distance
    between the centres of tiles of two splits, in metres, and touching_tiles: pairs of footprints that overlap or
    touch (both over all domains; None without places). repeated_captions: how many captions of a later-named split
    also stand in an earlier one, up to case, spacing and signs at the end. near_duplicates: pairs of images across
    splits, counted and the closest 50 named; left out without `images`, which have to be read.
    """
    frame: Any = manifest.frame
    names = _split_names(manifest)
    domains: dict[str, Any] = {}
    for (domain, split), part in frame.groupby(["domain", "split"]):
        blocks = {"blocks": part["block"].nunique()} if "block" in part else {}
        domains.setdefault(domain, {})[split] = {"images": len(part), **blocks}
    parts = {name: np.flatnonzero(frame["split"] == name) for name in names}
    texts = {
        name: [normal_caption(text) for row in frame["captions"].iloc[rows] for text in row]
        for name, rows in parts.items()
    }
    points = places(frame)[0]
    report: dict[str, Any] = {
        "images": len(frame),
        "buffer": int((frame["split"] == BUFFER).sum()),
        "settings": frame.attrs.get("split", {}),
        "domains": domains,
        "nearest_m": {},
        "touching_tiles": {},
        "repeated_captions": {},
    }
    for early, late in itertools.combinations(names, 2):
        pair, known = f"{late} to {early}", set(texts[early])
        distance = nearest(points[parts[early]], points[parts[late]])
        report["nearest_m"][pair] = None if distance is None else round(distance, 2)
        report["touching_tiles"][pair] = _touching(frame.geometry.iloc[parts[early]], frame.geometry.iloc[parts[late]])
        repeated = {"captions": len(texts[late]), "repeated": sum(text in known for text in texts[late])}
        share = repeated["repeated"] / max(1, repeated["captions"])
        report["repeated_captions"][f"{late} in {early}"] = {**repeated, "share": round(share, 4)}
    if images:
        report["near_duplicates"] = _near_duplicates_across(manifest, names, max_distance)
    return report


def leaks(manifest: Manifest, images: bool = True) -> list[str]:
    """What `split_report` finds to leak from one split into another, a sentence each; empty where nothing does."""
    report = split_report(manifest, images)
    found = []
    for pair, counts in report["repeated_captions"].items():
        if counts["repeated"]:
            late, early = pair.split(" in ")
            found.append(f"{counts['repeated']:,} of {counts['captions']:,} captions of {late} also stand in {early}.")
    for pair, count in report["touching_tiles"].items():
        if count:
            found.append(f"{count:,} pairs of tiles of {pair.replace(' to ', ' and ')} overlap or touch.")
    twins = report.get("near_duplicates", {"across_splits": 0})
    if twins["across_splits"]:
        named = few([f"{of['a']} ({of['split_a']}) and {of['b']} ({of['split_b']})" for of in twins["pairs"]])
        found.append(f"{twins['across_splits']:,} pairs of images in different splits look alike: {named}.")
    return found


def save_split(manifest: Manifest, path: str | Path) -> None:
    """Write domain, split and block of every sample id as JSON, with the settings and a key of the samples' places.

    Small enough to commit with the numbers that were measured on it, and free of images and captions.
    """
    table: dict[str, Any] = {}
    frame = manifest.frame
    blocks = frame["block"] if "block" in frame else [""] * len(frame)
    for name, *keys in sorted(zip(frame["sample_id"], frame["domain"], frame["split"], blocks, strict=True)):
        domain, split, block = keys
        table.setdefault(domain, {}).setdefault(split, {}).setdefault(block, []).append(name)
    settings = frame.attrs.get("split", {})
    write_json(path, {"settings": settings, "content_key": _places_key(manifest), "samples": table})


def load_split(manifest: Manifest, path: str | Path) -> Manifest:
    """A copy of `manifest` with the columns split and block that `save_split` wrote.

    Raises DataError for a file that is none, and naming samples that only one of the two has or that moved.
    """
    settings, key, rows = _read_split(Path(path))
    listed = {name: (split, block) for _, split, block, name in rows}
    frame: Any = manifest.frame.copy()
    missing, extra = sorted(listed.keys() - set(frame["sample_id"])), sorted(set(frame["sample_id"]) - listed.keys())
    if missing or extra:
        found = [
            f"{len(names):,} are only in {where} ({few(names)})"
            for names, where in ((missing, path), (extra, "the dataset"))
            if names
        ]
        raise DataError(
            f"The split {path} does not fit the dataset: of the images, {' and '.join(found)}. Split the dataset anew."
        )
    if key != _places_key(manifest):
        raise DataError(f"Images of {path} have another domain or place in the dataset now. Split the dataset anew.")
    frame["split"] = [listed[name][0] for name in frame["sample_id"]]
    frame["block"] = [listed[name][1] for name in frame["sample_id"]]
    frame.attrs = {"split": settings}
    return Manifest(frame, manifest.root)


def samples_of(path: str | Path) -> dict[tuple[str, str], str]:
    """What `save_split` wrote: the split of every domain's sample id. Raises DataError for a file that is none."""
    return {(domain, name): split for domain, split, _, name in _read_split(Path(path))[2]}


def _read_split(path: Path) -> tuple[dict[str, Any], str, list[tuple[str, str, str, str]]]:
    """Settings, key of the places, and domain, split, block and sample id of every sample."""
    try:
        content = parse_json(path.read_text("utf-8"))
        settings, key = dict(content["settings"]), content["content_key"]
        rows = [
            (domain, split, block, name)
            for domain, splits in content["samples"].items()
            for split, blocks in splits.items()
            for block, names in blocks.items()
            for name in names
        ]
        names = {name for *_, name in rows}
        if len(names) < len(rows) or not all(isinstance(name, str) for name in names):
            raise ValueError("a name is listed twice, or is not text")
        for name, share in settings.get("fractions", []):
            if not isinstance(name, str) or not 0 < float(share) <= 1:
                raise ValueError("a split has no share")
    except OSError as error:
        raise DataError(f"Cannot read the split {path} ({error.strerror}). Write it with save_split.") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is not a split that save_split wrote. Write it again.") from error
    return settings, key, rows


def _places_key(manifest: Manifest) -> str:
    columns = (manifest.frame[name] for name in ("sample_id", "domain", "lon", "lat"))
    return content_hash(
        sorted([name, domain, f"{lon:.6f}", f"{lat:.6f}"] for name, domain, lon, lat in zip(*columns, strict=True))
    )


def _split_names(manifest: Manifest) -> list[str]:
    """The splits of `manifest` without the buffer, from the one that gives way first to the one that never does."""
    drawn = manifest.frame.attrs.get("split", {}).get("fractions", [])
    known = [name for name, _ in drawn] or ["train", "finetune", "val", "test"]
    there = set(manifest.frame["split"]) - {BUFFER}
    return [*sorted(there - set(known)), *(name for name in known if name in there)]


def _touching(tiles: Any, others: Any) -> int | None:
    tiles, others = tiles[tiles.notna()], others[others.notna()]
    return len(tiles.sindex.query(others, predicate="intersects")[0]) if len(tiles) and len(others) else None


def _near_duplicates_across(manifest: Manifest, names: list[str], max_distance: int) -> dict[str, Any]:
    ids, splits = manifest.frame["sample_id"].to_numpy(), manifest.frame["split"].to_numpy()
    used, paths = np.flatnonzero(np.isin(splits.astype(str), names)), manifest.image_paths
    pairs = near_duplicates([paths[row] for row in used], max_distance)
    a, b, distance = used[pairs[:, 0]], used[pairs[:, 1]], pairs[:, 2]
    across = np.flatnonzero(splits[a] != splits[b])
    across = across[np.argsort(distance[across], kind="stable")]
    named = [
        {"a": ids[a[k]], "split_a": splits[a[k]], "b": ids[b[k]], "split_b": splits[b[k]], "distance": int(distance[k])}
        for k in across[:NAMED_PAIRS]
    ]
    return {"max_distance": max_distance, "across_splits": len(across), "pairs": named}


def _give_way_between(points: Array, splits: Array, domains: Array, buffer: float, n_splits: int) -> Array:
    """`give_way` across domains: one's test tile may be another's training tile."""
    splits, names = splits.copy(), np.unique(domains)
    for split, name in itertools.product(range(n_splits - 2, -1, -1), names if len(names) > 1 else ()):
        mine = np.flatnonzero((splits == split) & (domains == name))
        splits[mine[near(points[mine], points[(splits > split) & (domains != name)], buffer)]] = -1
    return splits


def _check(manifest: Manifest, fractions: Mapping[str, float], block_m: Any, buffer_m: Any, seed: int) -> None:
    shares = list(fractions.values())
    if len(shares) < 2 or min(shares) <= 0 or not abs(sum(shares) - 1) < 1e-6 or BUFFER in fractions:
        raise ConfigError(
            f"The fractions {dict(fractions)} do not describe splits; name two or more (but none {BUFFER!r}) with "
            "shares above 0 that sum to 1"
        )
    if block_m is not None and not 0 < block_m < np.inf:
        raise ConfigError(f"block_m is {block_m!r}; it must be a number of metres above 0")
    if buffer_m is not None and not 0 <= buffer_m < np.inf:
        raise ConfigError(f"buffer_m is {buffer_m!r}; it must be a number of metres from 0")
    if not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; it must be a whole number from 0")
    if not len(manifest):
        raise DataError(f"The manifest of {manifest.root} lists no images, so there is nothing to split.")


def _require_all(splits: Array, domains: Array, names: list[str], buffer: float, root: Path) -> None:
    """Every domain has every split still, after domains gave way to each other."""
    for domain, (number, name) in itertools.product(np.unique(domains).tolist(), enumerate(names)):
        if not (splits[domains == domain] == number).any():
            raise DataError(
                f"All {name!r} images of the domain {domain!r} of {root} lie closer than {buffer:,.0f} m to later "
                "splits of another domain. Choose a smaller buffer_m, or make one domain of the two."
            )
