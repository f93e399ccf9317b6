"""Files as documents of lists, dicts and values, and back, so that a damaged field still stands in a whole file."""

import copy
import csv
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from mutations import Evil, deepened


class Shape(NamedTuple):
    """parse: bytes -> document, None where there is none but the bytes; dump: document -> bytes."""

    parse: Callable[[bytes], Any] | None = None
    dump: Callable[[Any], bytes] | None = None


def _json(value: Any) -> bytes:
    return deepened(json.dumps(value)).encode()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _load_lines(data: bytes) -> Any:
    return [json.loads(line) for line in data.decode().splitlines()]


def _load_csv(data: bytes) -> Any:
    return list(csv.reader(io.StringIO(data.decode())))


def _dump_csv(rows: Any) -> bytes:
    stream = io.StringIO()
    table = csv.writer(stream)
    for row in rows if isinstance(rows, list) else [rows]:
        table.writerow([_text(cell) for cell in row] if isinstance(row, list) else [_text(row)])
    return _encoded(stream.getvalue())


def _load_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [{"name": item.filename, "data": archive.read(item), "mode": item.external_attr >> 16, "packed": False}
                for item in archive.infolist()]  # fmt: skip


def _dump_zip(members: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for member in members:
            item = zipfile.ZipInfo()
            item.filename = str(member.get("name", "none"))
            item.external_attr = (int(member.get("mode") or 0) % 2**16) << 16
            item.compress_type = zipfile.ZIP_DEFLATED if member.get("packed") else zipfile.ZIP_STORED
            archive.writestr(item, member.get("data") or b"")
    return stream.getvalue()


def _load_tar(data: bytes) -> Any:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = [(item, archive.extractfile(item)) for item in archive]
        return [{"name": item.name, "data": stream.read() if stream else b"", "type": "0", "link": "", "size": None}
                for item, stream in found]  # fmt: skip


def _dump_tar(members: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            item = tarfile.TarInfo(str(member.get("name", "none")))
            data = member.get("data") or b""
            item.type, item.linkname = _text(member.get("type"))[:1].encode() or b"0", str(member.get("link"))
            item.size = len(data) if member.get("size") is None else abs(int(member["size"])) % 2**40
            archive.addfile(item)
            archive.fileobj.write(data + b"\0" * (-len(data) % 512))  # type: ignore[union-attr]
    return stream.getvalue()


def _load_tensors(data: bytes) -> Any:
    length = int.from_bytes(data[:8], "little")
    return {"header": json.loads(data[8 : 8 + length]), "payload": data[8 + length :]}


def _dump_tensors(document: Any) -> bytes:
    header = _json(document["header"])
    return len(header).to_bytes(8, "little") + header + document["payload"]


def _load_npy(data: bytes) -> Any:
    length = int.from_bytes(data[8:10], "little")
    return {"header": data[10 : 10 + length].decode(), "payload": data[10 + length :]}


def _dump_npy(document: Any) -> bytes:
    header = _encoded(document["header"])
    return b"\x93NUMPY\x01\x00" + (len(header) % 2**16).to_bytes(2, "little") + header + document["payload"]


def _load_npz(data: bytes) -> Any:
    return [{**member, "data": _load_npy(member["data"])} for member in _load_zip(data)]


def _dump_npz(members: Any) -> bytes:
    return _dump_zip([{**member, "data": _dump_npy(member["data"])} for member in members])


def _load_png(data: bytes) -> Any:
    chunks, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append({"kind": data[at + 4 : at + 8], "data": data[at + 8 : at + 8 + length]})
        at += 12 + length
    return chunks


def _dump_png(chunks: Any) -> bytes:
    out = b"\x89PNG\r\n\x1a\n"
    for chunk in chunks:
        body = chunk["kind"] + chunk["data"]
        out += len(chunk["data"]).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return out


def _load_parquet(data: bytes) -> Any:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    whole = {key: json.loads(value) for key, value in metadata.items() if key in ("geo", "PANDAS_ATTRS")}
    return {"columns": table.to_pydict(), "metadata": {**metadata, **whole}}


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and dicts lie in each other more than so many times."""
    inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    return levels < 0 or any(_deeper(one, levels - 1) for one in inner)


def _dump_parquet(document: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(values: Any) -> Any:
        values = values if isinstance(values, list) else [values]
        try:
            if _deeper(values, 32):  # pyarrow would overflow the stack
                raise TypeError
            return pa.array(values)
        except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
            return pa.array([None if value is None else _text(value).encode("utf-8", "replace").decode()
                             for value in values])  # fmt: skip

    columns = {str(name): column(values) for name, values in document["columns"].items()}
    most = max(map(len, columns.values()), default=0)
    padded = {name: pa.concat_arrays([values, pa.nulls(most - len(values), values.type)])
              for name, values in columns.items()}  # fmt: skip
    metadata = {_encoded(key): value if isinstance(value, bytes) else _encoded(_text(value))
                for key, value in document["metadata"].items() if key != "ARROW:schema"}  # fmt: skip
    stream = io.BytesIO()
    pq.write_table(pa.table(padded).replace_schema_metadata(metadata), stream)
    return stream.getvalue()


def _load_torch(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), weights_only=True)


def _dump_torch(document: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save({"run": Evil()} if document == {} else document, stream)
    return stream.getvalue()


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def _as_varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _fields(data: bytes) -> dict[int, Any]:
    """Fields of a message of protocol buffers, whole numbers and bytes."""
    found: dict[int, Any] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _varint(data, at)
        if tag & 7 == 2:
            value, at = data[at : at + value], at + value
        found[tag >> 3] = value
    return found


def _load_pbf(data: bytes) -> Any:
    blobs, at = [], 0
    while at < len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        header = _fields(data[at + 4 : at + 4 + size])
        at += 4 + size
        blob = _fields(data[at : at + header[3]])
        at += header[3]
        blobs.append({"kind": header[1], "data": blob.get(1) or zlib.decompress(blob[3])})
    return blobs


def _dump_pbf(blobs: Any) -> bytes:
    def packed(tag: int, value: bytes) -> bytes:
        return _as_varint(tag << 3 | 2) + _as_varint(len(value)) + value

    out = b""
    for item in blobs:
        blob = packed(1, item["data"])
        header = packed(1, item["kind"]) + _as_varint(3 << 3) + _as_varint(len(blob))
        out += struct.pack(">I", len(header)) + header + blob
    return out


def copied(document: Any) -> Any:
    return copy.deepcopy(document)


BYTES = Shape()
JSON = Shape(json.loads, _json)
LINES = Shape(lambda data: data.decode().split("\n"), lambda lines: _encoded("\n".join(map(_text, lines))))
JSON_LINES = Shape(_load_lines, lambda rows: b"".join(_json(row) + b"\n" for row in rows))
CSV = Shape(_load_csv, _dump_csv)
ZIP = Shape(_load_zip, _dump_zip)
TAR = Shape(_load_tar, _dump_tar)
TENSORS = Shape(_load_tensors, _dump_tensors)
NPY = Shape(_load_npy, _dump_npy)
NPZ = Shape(_load_npz, _dump_npz)
PNG = Shape(_load_png, _dump_png)
PARQUET = Shape(_load_parquet, _dump_parquet)
TORCH = Shape(_load_torch, _dump_torch)
PBF = Shape(_load_pbf, _dump_pbf)
