"""What a row of a gallery index holds, and what is refused before it gets in."""

from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ucore.config import did_you_mean
from ucore.errors import DataError
from ucore.manifest import few

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("image", "segment", "text")
NAN = float("nan")
# Columns of a row: type, and the value of a row that does not know better; None: must be given.
COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "item_id": (pa.string(), None),  # unique in the index
    "kind": (pa.string(), None),
    "sample_id": (pa.string(), None),  # the sample that it is, or is part of, or describes
    "image": (pa.string(), ""),  # relative to card["root"], which it never leaves
    "text": (pa.string(), ""),  # of a text
    "domain": (pa.string(), ""),
    "tags": (pa.list_(pa.string()), []),
    "source": (pa.string(), ""),
    "lon": (pa.float64(), NAN),  # degrees
    "lat": (pa.float64(), NAN),
    "gsd_m": (pa.float64(), NAN),  # metres a pixel
    "split": (pa.string(), ""),
    "footprint": (pa.binary(), b""),  # well-known binary, longitude and latitude
    "mask": (pa.binary(), b""),  # of a segment: run-length code, see `masks`
    "mask_height": (pa.int32(), 0),  # pixels of the mask
    "mask_width": (pa.int32(), 0),
    "area": (pa.float32(), NAN),  # share of the image that the segment covers
    "hub_bias": (pa.float32(), 0.0),  # added to the scores of a search with bias=True
    "content": (pa.string(), ""),  # key of what the item was made of: pixels or words, and their metadata
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
NORM = 1e-3  # by how much a norm may differ from 1


def checked_rows(rows: "pd.DataFrame") -> pa.Table:
    """`rows` as a table with all columns of SCHEMA, absent ones filled in.

    Raises DataError naming what cannot be right: an unknown or missing column, an item_id twice or empty, another
    kind, an image that leaves its folder, a place off the globe.
    """
    unknown = [name for name in rows.columns if name not in COLUMNS]
    if unknown:
        raise DataError(f"An index has no column {unknown[0]!r}{did_you_mean(str(unknown[0]), COLUMNS)}.")
    absent = [name for name, (_, value) in COLUMNS.items() if value is None and name not in rows.columns]
    if absent:
        raise DataError(f"The rows lack the column(s) {', '.join(absent)}.")
    arrays = []
    for name, (kind, default) in COLUMNS.items():
        values = [default] * len(rows) if name not in rows.columns else rows[name].tolist()
        if name == "tags":
            values = [[] if tags is None else list(tags) for tags in values]
        try:
            if pa.types.is_floating(kind):
                arrays.append(pa.array(np.array(values, np.float64), kind))  # None is NaN, too
            else:
                arrays.append(pa.array(values, kind, from_pandas=True))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"The column {name!r} holds values that are not {kind}: {error}.") from error
        if arrays[-1].null_count:
            raise DataError(f"The column {name!r} misses values; give {default!r} where there is none.")
    table = pa.table(arrays, schema=SCHEMA)
    _check_names(table)
    for name, most in (("lon", 180), ("lat", 90)):
        degrees = table[name].to_numpy()
        if (np.abs(degrees) > most).any():
            row = int(np.argmax(np.abs(degrees) > most))
            raise DataError(f"{table['item_id'][row].as_py()!r} has {name} {degrees[row]:g}; it lies within {most}.")
    if not np.isfinite(table["hub_bias"].to_numpy()).all():
        raise DataError("The column 'hub_bias' holds values that are not finite.")
    return table


def _check_names(table: pa.Table) -> None:
    ids = table["item_id"].to_pylist()
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"Item ids must be unique; given twice: {few(twice)}.")
    if "" in ids:
        raise DataError("An item id is empty; every row needs one.")
    for kind in set(table["kind"].to_pylist()) - set(KINDS):
        raise DataError(f"{kind!r} is no kind of item{did_you_mean(kind, KINDS)}; there are {', '.join(KINDS)}.")
    for name in set(table["image"].to_pylist()):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise DataError(f"The image name {name!r} leaves the gallery's folder; give names relative to it.")


def checked_features(features: np.ndarray, count: int, dim: int, item_ids: pa.ChunkedArray) -> np.ndarray:
    """`features` as float32 (count, dim), C-contiguous.

    Raises DataError for another shape, and naming the first item whose features are not finite or have another norm
    than 1.
    """
    array = np.ascontiguousarray(features, np.float32)
    if array.shape != (count, dim):
        raise DataError(f"The features are {array.shape}; {count:,} rows of this index need {(count, dim)}.")
    norms = np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64))
    wrong = ~(np.abs(norms - 1) <= NORM)
    if wrong.any():
        row = int(np.argmax(wrong))
        what = f"norm {norms[row]:.4g}, not 1" if np.isfinite(norms[row]) else "values that are not finite"
        raise DataError(f"The features of {item_ids[row].as_py()!r} have {what} ({wrong.sum():,} such rows). "
                        "Normalise them, or leave these items out.")  # fmt: skip
    return array


def checked_queries(queries: np.ndarray, dim: int) -> np.ndarray:
    """`queries` as float32 (Q, dim); one query may come as (dim,). Raises DataError for another shape or NaN."""
    array = np.atleast_2d(np.asarray(queries, np.float32))
    if array.ndim != 2 or array.shape[1] != dim:
        raise DataError(f"The queries are {array.shape}; this index needs (Q, {dim}).")
    if not np.isfinite(array).all():
        raise DataError("A query has features that are not finite.")
    return np.ascontiguousarray(array)
