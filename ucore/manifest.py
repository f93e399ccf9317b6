"""The one table every stage reads: image-text pairs with domain, split, place and licence."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.errors import DataError
from ucore.files import atomic_path, content_hash, file_hash, safe_join
from ucore.images import map_files

if TYPE_CHECKING:
    import geopandas

Names = str | Sequence[str]
SIMULATED = "simulated"  # how the source of a generated sample begins

# Columns of every manifest and the value of a row that does not know better; None: must be given.
COLUMNS: dict[str, Any] = {
    "sample_id": None,
    "image": None,
    "captions": None,
    "description": "",
    "tags": [],
    "surrounding_tags": [],
    "domain": None,
    "split": None,
    "lon": float("nan"),
    "lat": float("nan"),
    "footprint": None,
    "gsd_m": float("nan"),
    "source": "",
    "licence": "",
}
OF_SOURCE, OF_TARGET = {"train", "val"}, {"finetune", "val", "test"}  # splits that a side of a border needs
LISTS = ("captions", "tags", "surrounding_tags")  # columns that hold lists of texts


@dataclass(frozen=True, eq=False)
class Manifest:
    """Image-text pairs, one row an image.

    frame: GeoDataFrame with the columns sample_id (str, unique), image (str, relative to `root`),
        captions (list[str]), description (str, a longer text that is no query, or ""), tags and surrounding_tags
        (list[str] of OpenStreetMap's "key=value", of what the image shows and of what lies around it), domain,
        split (str), lon, lat (degrees, NaN unknown), footprint (geometry in EPSG:4326 or None), gsd_m (metres a
        pixel, NaN unknown), source, licence. A split may add the column block.
    root: folder the image names start from.
    """

    frame: "geopandas.GeoDataFrame"
    root: Path

    @classmethod
    def from_rows(cls, rows: Iterable[dict[str, Any]], root: str | Path) -> "Manifest":
        """Build from one dict an image; absent optional columns mean unknown.

        Raises DataError for repeated ids, and for text that is no Unicode.
        """
        import geopandas

        rows = list(rows)
        table = {name: [row.get(name, default) for row in rows] for name, default in COLUMNS.items()}
        twice = [name for name, count in Counter(table["sample_id"]).items() if count > 1]
        if twice:
            raise DataError(f"Sample ids must be unique; repeated: {few(twice)}. Rename these images.")
        root = Path(root).resolve()
        _require_unicode(table, root)
        return cls(geopandas.GeoDataFrame(table, geometry="footprint", crs="EPSG:4326"), root)

    def __len__(self) -> int:
        return len(self.frame)

    def split(self, name: Names) -> "Manifest":
        """Rows of one split, or of several. Raises DataError naming the splits there are."""
        return self._only("split", name)

    def domain(self, name: Names) -> "Manifest":
        """Rows of one domain, or of several. Raises DataError naming the domains there are."""
        return self._only("domain", name)

    def _only(self, column: str, names: Names) -> "Manifest":
        wanted = known_names(names, Counter(self.frame[column]), column, self.root)
        rows: Any = self.frame.loc[self.frame[column].isin(wanted)]
        return Manifest(rows.reset_index(drop=True), self.root)

    def image_path(self, position: int) -> Path:
        """Path of the image in row `position`. Raises DataError for a name that leaves `root`."""
        return safe_join(self.root, self.frame["image"].iloc[position])

    @property
    def image_paths(self) -> list[Path]:
        """Where each image lies. Raises DataError for a name that leaves `root`."""
        return [safe_join(self.root, name) for name in self.frame["image"]]

    @property
    def texts(self) -> tuple[list[str], np.ndarray]:
        """All captions, image after image, and text_image_index: int64 (T,), the row each belongs to."""
        captions = self.frame["captions"]
        texts = [caption for of_image in captions for caption in of_image]
        return texts, np.repeat(np.arange(len(self)), [len(of_image) for of_image in captions])

    @property
    def text_ids(self) -> list[str]:
        """`{sample_id}#{number}` of every caption, in the order of `texts`."""
        pairs = zip(self.frame["sample_id"], self.frame["captions"], strict=True)
        return [f"{sample_id}#{number}" for sample_id, of_image in pairs for number in range(len(of_image))]

    @property
    def domain_splits(self) -> dict[str, set[str]]:
        """The splits of each domain, in alphabetical order of the domains."""
        return {str(name): set(splits) for name, splits in self.frame.groupby("domain")["split"]}

    @property
    def simulated(self) -> bool:
        """Whether any sample was generated: every number measured on it is then called simulated."""
        return any(str(source).startswith(SIMULATED) for source in self.frame["source"])

    @property
    def name(self) -> str:
        """What a report calls the data: the domains, for example "finland+germany+spain"."""
        return "+".join(sorted(set(self.frame["domain"])))

    def content_key(self) -> str:
        """16 hex digits of ids, image bytes and captions in order; the same wherever the folder lies."""
        try:
            hashes = map_files(file_hash, self.image_paths, "Hashing images")
        except OSError as error:
            raise DataError(f"Cannot read {error.filename} ({error.strerror}). Read the dataset again.") from error
        return content_hash(list(self.frame["sample_id"]), hashes, [list(of) for of in self.frame["captions"]])

    def summary(self) -> dict[str, Any]:
        """Counts of the whole and of each split, words a caption, and a note on repeated captions."""
        words = [len(text.split()) for text in self.texts[0]]
        splits = {name: _counts(self.split(name)) for name in self.frame["split"].unique()}
        notes = [
            f"{name}: {counts['captions']:,} captions, only {counts['distinct_captions']:,} distinct"
            for name, counts in splits.items()
            if counts["distinct_captions"] < counts["captions"]
        ]
        return {
            **_counts(self),
            "splits": splits,
            "domains": {name: len(self.domain(name)) for name in self.frame["domain"].unique()},
            "caption_words": {"mean": round(float(np.mean(words)), 2), "max": max(words)},
            "note": "; ".join(notes) + ". Read the duplicate-aware metrics too." if notes else "",
        }

    def save(self, path: str | Path) -> None:
        """Write as GeoParquet, whole or not at all, with the place of `root` seen from the file."""
        path, root = Path(path).resolve(), self.root.resolve()
        try:
            relative = Path(os.path.relpath(root, path.parent)).as_posix()
        except ValueError:  # another drive of Windows
            relative = root.as_posix()
        frame = self.frame.copy(deep=False)
        frame.attrs = {"root": relative, "absolute_root": root.as_posix()}
        with atomic_path(path) as temporary:
            frame.to_parquet(temporary, index=False)

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read what `save` wrote. The images are looked for from the file, then where they were."""
        import geopandas

        path = Path(path)
        if not path.is_file():
            raise DataError(f"There is no manifest {path}. Write it first with Manifest.save.")
        try:
            frame = geopandas.read_parquet(path)
        except Exception as error:  # pyarrow, pandas, geopandas and pyproj each raise their own on damaged metadata
            raise DataError(f"{path} is not a manifest: it is no whole GeoParquet file. Make it again.") from error
        needed = [name for name, default in COLUMNS.items() if default is None]
        absent = [name for name in (*needed, "root") if name not in frame.columns and name not in frame.attrs]
        if absent:
            raise DataError(f"{path} is not a manifest: it lacks {', '.join(absent)}. Make it again.")
        roots = [str(frame.attrs.get(name, "")).replace("\0", "") for name in ("root", "absolute_root")]
        root = (path.parent / roots[0]).resolve()
        root = root if os.path.isdir(root) else Path(roots[1])  # False for a name that is too long, too
        frame.attrs = {}
        for name in [name for name in COLUMNS if name not in frame.columns]:  # a version without them wrote it
            frame[name] = [COLUMNS[name]] * len(frame)
        wrong = [name for name in COLUMNS if not _is_right(frame, name)]
        if wrong or frame["sample_id"].duplicated().any():
            raise DataError(f"{path} is not a manifest: {few(wrong) or 'sample_id'} holds what it must not. "
                            "Make it again.")  # fmt: skip
        for name in LISTS:
            frame[name] = [list(values) for values in frame[name]]
        return cls(frame, root)


def _require_unicode(table: dict[str, list[Any]], root: Path) -> None:
    """JSON permits halves of a character (lone surrogates), which no file, no table and no tokenizer takes."""
    for column, values in table.items():
        for sample, value in zip(table["sample_id"], values, strict=True):
            for text in value if column in LISTS else (value,) if isinstance(value, str) else ():
                try:
                    str(text).encode()
                except UnicodeEncodeError as error:
                    where = f"The {column} of {sample!r} in {root}"
                    raise DataError(f"{where} is not valid Unicode. Correct that text.") from error


def _is_right(frame: Any, name: str) -> bool:
    """Whether a column holds what `Manifest` says of it."""
    try:
        return _holds(frame, name)
    except Exception:  # pyarrow's own, of bytes that are no UTF-8: it decodes them when they are looked at
        return False


def _holds(frame: Any, name: str) -> bool:
    column = frame[name]
    if name == "footprint":
        return getattr(frame, "active_geometry_name", None) == name and frame.crs == "EPSG:4326"
    if name in ("lon", "lat", "gsd_m"):
        values = column.to_numpy()
        return not len(values) or (values.dtype.kind in "fiu" and not np.isinf(values).any())
    if name in LISTS:
        texts = [value for values in column for value in (values if isinstance(values, list | np.ndarray) else [None])]
    else:
        texts = column.tolist()
    return all(isinstance(text, str) for text in texts)


def statistics(manifest: Manifest) -> dict[str, Any]:
    """What the rows tell about splits, captions, tags, places and cameras, by domain where it differs; JSON-able.

    extent: west, south, east, north of the centres, degrees. gsd_m: smallest, median and largest metres a pixel.
    """
    frame, (texts, _) = manifest.frame, manifest.texts
    tags = Counter(tag for of_image in frame["tags"] for tag in of_image)
    places: dict[str, list[float]] = {}
    pixels: dict[str, list[float]] = {}
    splits: dict[str, dict[str, int]] = {}
    for domain, rows in frame.groupby("domain"):
        lon, lat = rows[["lon", "lat"]].dropna().to_numpy(float).T  # half a place is none
        gsd = rows["gsd_m"].dropna().to_numpy(float)
        found = Counter(rows["split"])
        first = [name for name in ("train", "val", "test") if found[name]]
        splits[str(domain)] = {name: found[name] for name in (*first, *sorted(set(found) - set(first)))}
        if len(lon):
            places[str(domain)] = np.round([lon.min(), lat.min(), lon.max(), lat.max()], 5).tolist()
        if len(gsd):
            pixels[str(domain)] = np.round(np.quantile(gsd, [0, 0.5, 1]), 4).tolist()
    return {
        "images": len(manifest),
        "splits": splits,
        "captions": len(texts),
        "distinct_captions": len(set(texts)),
        "with_description": sum(text != "" for text in frame["description"]),
        "with_tags": sum(len(of_image) > 0 for of_image in frame["tags"]),
        "frequent_tags": dict(tags.most_common(8)),
        "with_place": int(frame[["lon", "lat"]].notna().to_numpy().all(axis=1).sum()),
        "extent": places,
        "gsd_m": pixels,
        "licences": dict(Counter(licence for licence in frame["licence"] if licence)),
        "simulated": manifest.simulated,
    }


def subset(manifest: Manifest, most: int | None) -> Manifest:
    """At most `most` rows, evenly spread over the manifest's order, so that every class keeps its share."""
    if most is None or len(manifest) <= most:
        return manifest
    rows = np.linspace(0, len(manifest) - 1, most).round().astype(int)
    return Manifest(manifest.frame.iloc[rows].reset_index(drop=True), manifest.root)


def known_names(names: Names, counts: Counter[str], what: str, where: Path) -> tuple[str, ...]:
    """`names` as a tuple. Raises DataError, listing `counts`, when one of them counts nothing."""
    wanted = (names,) if isinstance(names, str) else tuple(names)
    for name in wanted:
        if not counts[name]:
            there = ", ".join(f"{key} ({count:,} images)" for key, count in counts.items()) or "none"
            raise DataError(f"There is no {what} {name!r} in {where}. Choose from: {there}.")
    return wanted


def few(items: Sequence[str], most: int = 3) -> str:
    """The first few of `items` for a message, and how many more there are."""
    items = [item if item.isprintable() else ascii(item) for item in items]
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def warn_of(reasons: Mapping[str, str], what: str, level: int = 3) -> None:
    """Warn that the images named (sample -> reason) `what`, where there are any; `level` as in warnings.warn."""
    if reasons:
        told = few([f"{name} ({reason})" for name, reason in reasons.items()])
        warnings.warn(f"{len(reasons):,} image(s) {what}: {told}", stacklevel=level)


def _counts(manifest: Manifest) -> dict[str, int]:
    texts, _ = manifest.texts
    return {"images": len(manifest), "captions": len(texts), "distinct_captions": len(set(texts))}
