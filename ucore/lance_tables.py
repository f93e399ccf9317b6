"""What the LanceDB engine of an index needs of Lance: the module, errors in a sentence, vectors, SQL conditions."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from ucore.columns import Columns
from ucore.errors import ConfigError, DataError, UserError
from ucore.filter_sql import boxes, has_any, one_of, quoted
from ucore.filters import Filter

EXTRA = 8  # coordinates behind the features, of which one is used; a table that is there keeps its width

CAUSES = {  # signs in the error of an object store -> what a person can do something about
    "NoSuchBucket|ContainerNotFound": "there is no such bucket",
    "status: 40[13]|InvalidAccessKeyId|SignatureDoesNotMatch|CredentialsError|no storage account|TokenRequest": (
        "the keys in the environment are missing or refused"
    ),
    "RetryError|HttpError|kind: Connect": "the store does not answer",
}


def lancedb_module() -> Any:
    """lancedb, imported when first needed. Raises UserError naming the extra."""
    os.environ.setdefault("LANCEDB_LOG", "error")  # or it warns, for minutes, of the coordinates that are always 0
    try:
        import lancedb
    except ImportError as error:
        raise UserError('This index needs LanceDB: run make setup, or pip install -e ".[lance]"') from error
    return lancedb


RAISED = (ValueError, RuntimeError, OSError, KeyError, TypeError, IndexError, pa.ArrowException)


@contextmanager
def told(uri: str) -> Iterator[None]:
    """Turn what LanceDB raises into one sentence."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, RAISED) and type(error).__name__ != "RustPanic":  # whose class cannot be imported
            raise
        reason = _reason(str(error).strip() or type(error).__name__)
        raise DataError(
            f"The index {uri} cannot be used ({reason}). Build it again, or check that it can be reached."
        ) from error


def _reason(text: str) -> str:
    """The cause, out of what a store's client says: a screen of nested types."""
    for signs, cause in CAUSES.items():
        if re.search(signs, text):
            return cause
    text = re.sub(r"^lance error: |\w+Error\(\w+\): |, /\S*$", "", text.splitlines()[0][:300])  # Lance's own names
    return text[:110]


def opened(database: Any, name: str) -> Any:
    """A table, or None where there is none, or one that a killed process began."""
    try:
        return database.open_table(name)
    except ValueError as error:
        if "not found" in str(error):
            return None
        raise


def with_vectors(features: np.ndarray, table: pa.Table) -> pa.Table:
    """`table` with the columns vector and terms."""
    count, dim = features.shape
    wide = np.zeros((count, dim + EXTRA), np.float32)
    wide[:, :dim], wide[:, dim] = features, table["hub_bias"].to_numpy()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(wide.ravel()), wide.shape[1])
    terms = [sorted({*tags, *(tag.partition("=")[0] for tag in tags)}) for tags in table["tags"].to_pylist()]
    return table.append_column("vector", vectors).append_column("terms", pa.array(terms, pa.list_(pa.string())))


def vectors_of(table: pa.Table, width: int) -> np.ndarray:
    """The column vector, float32 (n, width)."""
    parts = [np.zeros(0, np.float32), *(part.flatten().to_numpy() for part in table["vector"].chunks)]
    return np.concatenate(parts).reshape(len(table), width)


def condition_of(items: Any, kind: str, where: Filter | None) -> str:
    """SQL of kind and filter for the table `items`, with boxes around circles and polygons.

    Raises ConfigError for a name that no row has, offering the nearest one.
    """
    parts = [f"kind = {quoted(kind)}"]
    if where is None:
        return parts[0]
    for column, names in (("domain", where.domains), ("source", where.sources)):
        for name in names:
            _must_occur(items, column, name, f"{column} = {quoted(name)}")
        parts += [one_of(column, names)] * bool(names)
    for tag in (*where.tags, *where.any_tags):
        _must_occur(items, "tags", tag, has_any([tag]))
    parts += [has_any([tag]) for tag in where.tags]
    parts += [has_any(where.any_tags)] * bool(where.any_tags)
    return " AND ".join([*parts, *boxes(where)])


def _must_occur(items: Any, column: str, name: str, condition: str) -> None:
    if not items.count_rows(condition):
        columns = Columns(items.search().select([column]).to_arrow())
        (columns.tagged if column == "tags" else lambda names: columns.named(column, names))((name,))
        raise ConfigError(f"No row has the {column} {name!r}")
