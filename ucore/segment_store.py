"""The segments of a dataset on disk: run-length masks with their scores, found by sample, in the manifest's order.

OUT/felzenszwalb-0123456789abcdef/
    settings.json, part-*.parquet, quarantine.jsonl     see `store`
    samples.parquet                                     which sample has which image, in order
    summary.json                                        what `summary()` says
OUT/felzenszwalb-0123456789abcdef-features-*/           features of crops, likewise
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ucore.errors import DataError
from ucore.files import atomic_path, content_hash, read_json, write_json
from ucore.masks import Segments
from ucore.store import PartStore

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the image's bytes
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("rles", pa.list_(pa.binary())),
        ("predicted_iou", pa.list_(pa.float32())),
        ("stability", pa.list_(pa.float32())),
        ("points", pa.list_(pa.float32())),  # x, y, x, y, ...
        ("count", pa.int32()),
        ("covered", pa.float32()),  # share of the image that lies in any mask
        ("seconds", pa.float32()),
    ]
)
FEATURES = pa.schema(
    [
        ("key", pa.string()),
        ("rows", pa.list_(pa.int32())),  # of the image's segments, best first
        ("features", pa.binary()),  # float16, one row of them after the other
    ]
)


class SegmentStore:
    """Segments in `folder`, by sample. Equal images, by their bytes, share one row.

    settings: None opens what is there. Raises ConfigError, DataError or UserError like `PartStore`, whose `parts` hold
    the rows (columns: SCHEMA).
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.parts = PartStore(folder, settings, SCHEMA)
        self._keys: dict[str, str] = {}
        path = self.folder / "samples.parquet"
        if path.is_file():
            try:
                table = pq.read_table(path)
                names, keys = table["sample_id"].to_pylist(), table["key"].to_pylist()
                if not all(isinstance(text, str) for text in (*names, *keys)):
                    raise ValueError("a name is no text")
                self._keys = dict(zip(names, keys, strict=True))
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                raise DataError(f"{path} is damaged. Delete it and repeat ucore segment.") from error

    def note(self, keys: Mapping[str, str]) -> None:
        """Remember which sample has which image; those noted before and not named now come first. Needs writing()."""
        merged = {**{sample: key for sample, key in self._keys.items() if sample not in keys}, **keys}
        if list(merged.items()) != list(self._keys.items()):
            with atomic_path(self.folder / "samples.parquet") as temporary:
                pq.write_table(pa.table({"sample_id": list(merged), "key": list(merged.values())}), temporary)
        self._keys = merged

    @property
    def sample_ids(self) -> list[str]:
        """All samples that were asked for, in order, also those that are not done or quarantined."""
        return list(self._keys)

    def key(self, sample_id: str) -> str:
        """Key of a sample's row. Raises DataError for a sample that was never asked for."""
        if sample_id not in self._keys:
            raise DataError(f"There are no segments of {sample_id!r} in {self.folder}: run ucore segment on its data.")
        return self._keys[sample_id]

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._keys and self._keys[sample_id] in self.parts

    def __len__(self) -> int:
        """Number of samples whose segments are here."""
        return sum(1 for sample_id in self._keys if sample_id in self)

    def load(self, sample_id: str) -> Segments:
        """Segments of one sample. Raises DataError saying why there are none."""
        key = self.key(sample_id)
        if key not in self.parts:
            reason = self.parts.reasons().get(key)
            why = f"its image cannot be used ({reason})" if reason else "not done yet; repeat ucore segment"
            raise DataError(f"There are no segments of {sample_id!r} in {self.folder}: {why}.")
        try:
            segments = segments_of(self.parts.row(key))
            segments.require_whole()
        except (DataError, ValueError, TypeError, OverflowError) as error:
            raise DataError(
                f"The segments of {sample_id!r} in {self.folder} are damaged ({error}). Repeat ucore segment with "
                "another --out."
            ) from error
        return segments

    def __iter__(self) -> Iterator[tuple[str, Segments]]:
        """Sample and segments in order; what is not there is passed over. Few parts are in memory at once."""
        for sample_id in self._keys:
            if sample_id in self:
                yield sample_id, self.load(sample_id)

    def quarantined(self) -> dict[str, str]:
        """Sample -> reason, of images that cannot be used."""
        reasons = self.parts.reasons()
        return {sample_id: reasons[key] for sample_id, key in self._keys.items() if key in reasons}

    def feature_store(self, settings: Mapping[str, Any]) -> PartStore:
        """Rows (columns: FEATURES) of features of crops made with `settings`, in a folder of their own beside this."""
        settings = {"segments": self.parts.settings, **settings}
        name = f"{self.folder.name}-features-{content_hash(settings)}"
        return PartStore(self.folder.with_name(name), settings, FEATURES)

    def feature_settings(self) -> list[dict[str, Any]]:
        """Settings of all that `feature_store` has made so far of these segments."""
        found = []
        for path in sorted(self.folder.parent.glob(f"{self.folder.name}-features-*/settings.json")):
            settings = read_json(path)
            if isinstance(settings, dict) and settings.pop("segments", None) == self.parts.settings:
                found.append(settings)
        return found

    def summary(self, sample_ids: Iterable[str] | None = None) -> dict[str, Any]:
        """Counts over samples, JSON-able: masks an image, share of ground covered, seconds, what is quarantined.

        sample_ids: of which; by default of all that were ever segmented into this folder.
        """
        asked = self._keys if sample_ids is None else self._keys.keys() & set(sample_ids)
        wanted = {name: key for name, key in self._keys.items() if name in asked}
        table = self.parts.table(["key", "count", "covered", "seconds"])
        columns = {name: table[name].to_numpy() for name in ("count", "covered", "seconds")}
        number = {key: row for row, key in enumerate(table["key"].to_pylist())}
        rows = np.array([number[key] for key in wanted.values() if key in number], np.int64)
        masks, covered, seconds = (columns[name][rows] for name in ("count", "covered", "seconds"))
        some = len(rows) > 0
        return {
            "generator": self.parts.settings.get("generator"),
            "settings": self.parts.settings,
            "samples": len(wanted),
            "images": len(rows),
            "distinct_images": len(set(rows.tolist())),
            "masks": int(masks.sum()),
            "masks_per_image": round(float(masks.mean()), 2) if some else 0.0,
            "masks_quantiles": np.quantile(masks, [0, 0.25, 0.5, 0.75, 1]).tolist() if some else [],
            "images_without_masks": int((masks == 0).sum()),
            "covered": round(float(covered.mean()), 4) if some else 0.0,
            "seconds_per_image": round(float(seconds.mean()), 4) if some else 0.0,
            "quarantined": {name: why for name, why in self.quarantined().items() if name in wanted},
        }

    def write_summary(self) -> None:
        """Write `summary()` of all samples to summary.json."""
        write_json(self.folder / "summary.json", self.summary())


def row_of(key: str, segments: Segments, seconds: float) -> dict[str, Any]:
    """One image's segments as a row of SCHEMA. seconds: that it took."""
    return {
        "key": key,
        "height": segments.size[0],
        "width": segments.size[1],
        "rles": list(segments.rles),
        "predicted_iou": segments.predicted_iou.tolist(),
        "stability": segments.stability.tolist(),
        "points": segments.points.ravel().tolist(),
        "count": len(segments),
        "covered": segments.covered,
        "seconds": seconds,
    }


def segments_of(row: Mapping[str, Any]) -> Segments:
    """Segments of a row of SCHEMA."""
    scores: Sequence[Any] = (row["predicted_iou"], row["stability"], row["points"])
    return Segments.from_rles((row["height"], row["width"]), row["rles"], *scores)
