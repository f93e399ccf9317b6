"""Pictures inside shards: where one lies is its path, and its bytes are read without unpacking the rest.

    train-00.tar/tile7.jpg@512+20480        the 20,480 bytes from byte 512 on
    train-00.parquet/tile7.jpg@3:17         row 17 of row group 3

Whatever takes the path of an image file takes such a path, too.
"""

import re
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from ucore.errors import DataError

PART = re.compile(r".+\.(?:tar|parquet)/.+@(?P<first>\d{1,18})(?P<sign>[+:])(?P<second>\d{1,18})")
BORDER = re.compile(r"(?<=\.tar)(/)|(?<=\.parquet)(/)")
MOST = 2**30  # bytes of one picture
_turn = threading.Lock()  # pyarrow's readers are not made for several threads


def part_bytes(path: str | Path) -> bytes | None:
    """The bytes of a picture in a shard; None where `path` is no such path.

    Raises OSError where the shard cannot be read, DataError where it ends before the picture does.
    """
    name = Path(path).as_posix()
    found = PART.fullmatch(name)
    if found is None:
        return None
    first, second = int(found["first"]), int(found["second"])
    shards = (Path(name[: end.start()]) for end in BORDER.finditer(name))
    shard = next((shard for shard in shards if not shard.is_dir()), None)  # a folder may be called like one
    if shard is None:
        return None
    return _span(shard, first, second) if found["sign"] == "+" else _cell(shard, first, second)


def part_name(shard: str, key: str, first: int, sign: str, second: int) -> str:
    """The path of a picture in `shard`, from the same folder as the shard's; `key` is there to be read by people."""
    readable = "/".join(piece for piece in key.replace("\\", "/").split("/") if piece not in ("", ".", ".."))
    readable = "".join(sign if sign.isprintable() else "_" for sign in readable)[-100:].strip("/")
    return f"{shard}/{readable or 'image'}@{first}{sign}{second}"


def image_column(schema: Any) -> str | None:
    """The column of a Parquet file (pyarrow schema) that holds pictures as bytes, as a dotted path; None: none does."""
    import pyarrow as pa

    for name in ("image", "img", "jpg", "png", "jpeg", "webp", "tif", "image_bytes", "bytes"):
        position = schema.get_field_index(name)
        if position < 0:
            continue
        kind = schema.field(position).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            name, kind = f"{name}.bytes", kind.field("bytes").type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return name
    return None


def _span(shard: Path, start: int, size: int) -> bytes:
    if size > MOST:
        raise DataError(f"it claims {size:,} bytes")
    with open(shard, "rb") as stream:
        stream.seek(start)
        data = stream.read(size)
    if len(data) < size:
        raise DataError(f"{shard.name} ends before it")
    return data


def _cell(shard: Path, group: int, row: int) -> bytes:
    info = shard.stat()
    with _turn:
        cells = _row_group(str(shard), info.st_mtime_ns, info.st_size, group)
    if row >= len(cells):
        raise DataError(f"{shard.name} ends before it")
    value = cells[row].as_py()
    return (value.get("bytes") if isinstance(value, dict) else value) or b""


@lru_cache(maxsize=4)
def _row_group(shard: str, changed: int, size: int, group: int) -> Any:
    """The pictures of a row group, which are only packed together. changed, size: what was read of another file is
    not this one's."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(shard) as file:
            name = image_column(file.schema_arrow)
            if name is None or group >= file.num_row_groups:
                raise DataError(f"{Path(shard).name} ends before it")
            column = file.read_row_group(group, columns=[name]).column(0)
    except (ValueError, OSError) as error:  # pyarrow's own errors are of these kinds
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{Path(shard).name} is damaged") from error
    return column
