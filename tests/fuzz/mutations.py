"""Damage to files: bytes flipped, cut, moved; fields of what they hold exchanged for what nobody would write.

An edit is a tuple of small numbers, so that it means something for every file: a place is a share of its length, a
field is counted through the document. The same edits do the same, always.
"""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

DEEP = "@deep@"  # becomes brackets within brackets, deeper than any parser goes
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 255, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, -(10**400)),
    *(0.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 180.0, 91.0),
    *("", " ", "\0", "a\0b", "../../outside", "/etc/passwd", "C:\\x", "..", ".", "~", "-", "x" * 70_000, "\ud800"),
    *("\u202egnp.exe", "\x1b[31mred", "\n\r\n", "nan", "1e999", "-1", "9" * 5000, "=cmd()", "Ünïcödé 🛰", "\u2028"),
    *("<img src=x onerror=alert(1)>", "{tags}", "{0.__class__}", "%s%n", "a=b=c", "[1,", '"', DEEP, "file:///etc"),
    *([], {}, [[]], [None], {"": ""}, [0] * 2000, [1, "a", None], {"a": {"b": []}}, [1e999, -1e999]),
]
TOKENS = (
    *(b"\0", b"\0" * 64, b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\n", b"\r", b'"', b"'", b",", b"\\"),
    *(b"{", b"[", b"]", b"}", b"NaN", b"Infinity", b"-1e999", b"1" * 5000, b"null", b"../../x", b"\x1b[2J", b"<!--"),
    *(b"\xff" * 8, b"\x7f\xff\xff\xff", b"PK\x03\x04", b"\x80\x04", b"\x93NUMPY", b"PAR1", b"A" * 3000),
)
WORDS = (0, 1, -1, 2**7, 2**15 - 1, 2**31 - 1, -(2**31), 2**32, 2**40, 2**63 - 1, -(2**63))
Edit = tuple[Any, ...]


class Evil:
    """Makes a folder when it is unpickled by code that runs what a pickle says."""

    canary = ""

    def __reduce__(self) -> Any:
        return os.mkdir, (self.canary,)


@cache  # Hypothesis takes longer to make it than to draw from it
def edits(structured: bool) -> st.SearchStrategy[list[Edit]]:
    """Up to four edits of one file; `structured`: mostly of the fields of its document."""
    place, small = st.integers(0, 9999), st.integers(0, 2**16)
    kinds = [
        st.tuples(st.just("cut"), place),
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("set"), place, st.integers(0, 255)),
        st.tuples(st.just("delete"), place, st.integers(1, 64)),
        st.tuples(st.just("insert"), place, small),
        st.tuples(st.just("repeat"), place, st.integers(1, 256), place),
        st.tuples(st.just("word"), place, st.sampled_from((2, 4, 8)), small),
    ]
    fields = [
        st.tuples(st.just("put"), small, small),
        st.tuples(st.just("put"), small, small),
        st.tuples(st.just("drop"), small),
        st.tuples(st.just("twice"), small),
        st.tuples(st.just("swap"), small, small),
        st.tuples(st.just("rename"), small, small),
        st.tuples(st.just("inside"), small, st.integers(0, 6), place, small),
    ]
    whole = st.lists(st.tuples(st.just("whole"), st.integers(0, 11)), min_size=1, max_size=1)
    in_bytes = st.lists(st.one_of(kinds), min_size=1, max_size=4)
    if not structured:
        return st.integers(0, 29).flatmap(lambda n: whole if n == 0 else in_bytes)
    in_fields = st.lists(st.one_of(fields), min_size=1, max_size=3)
    return st.integers(0, 29).flatmap(lambda n: whole if n == 0 else in_bytes if n < 9 else in_fields)


def damage_bytes(data: bytes, changes: Sequence[Edit]) -> bytes:
    """`data` after the edits of bytes; those of fields change nothing here."""
    out = bytearray(data)
    for kind, place, *rest in changes:
        at = place * len(out) // 10_000 if isinstance(place, int) else 0
        if kind == "cut":
            del out[at:]
        elif kind == "flip" and out:
            out[at] ^= 1 << rest[0]
        elif kind == "set" and out:
            out[at] = rest[0]
        elif kind == "delete":
            del out[at : at + rest[0]]
        elif kind == "insert":
            out[at:at] = TOKENS[rest[0] % len(TOKENS)]
        elif kind == "repeat":
            to = rest[1] * len(out) // 10_000
            out[to:to] = out[at : at + rest[0]]
        elif kind == "word":
            size = rest[0]
            value = WORDS[rest[1] % len(WORDS)] % 2 ** (8 * size)
            out[at : at + size] = value.to_bytes(size, "big" if rest[1] % 2 else "little")
    return bytes(out)


def damage_document(document: Any, changes: Sequence[Edit]) -> Any:
    """`document`, changed in place where it is a list or a dict, after the edits of fields."""
    for kind, *rest in changes:
        spots = list(_spots(document))
        if not spots:
            return document
        holder, key = spots[rest[0] % len(spots)]
        value = holder[key]
        if kind == "put":
            holder[key] = NASTY[rest[1] % len(NASTY)]
        elif kind == "drop":
            del holder[key]
        elif kind == "twice" and isinstance(holder, list):
            holder.insert(key, value)
        elif kind == "twice":
            holder[f"{key}_"] = value
        elif kind == "swap":
            other, where = spots[rest[1] % len(spots)]
            if not _within(value, other) and not _within(other[where], holder):
                holder[key], other[where] = other[where], value
        elif kind == "rename" and isinstance(holder, dict):
            names = [text for text in NASTY if isinstance(text, str)]
            holder[names[rest[1] % len(names)]] = holder.pop(key)
        elif kind == "inside" and isinstance(value, str | bytes):
            name = ("cut", "flip", "set", "delete", "insert", "repeat", "word")[rest[1]]
            edit = (name, rest[2], *((8, rest[3]) if name == "word" else (rest[3] % 8, rest[2])))
            raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
            raw = damage_bytes(raw, [edit])
            holder[key] = raw.decode("utf-8", "replace") if isinstance(value, str) else raw
    return document


def _spots(document: Any, most: int = 3000) -> Iterator[tuple[Any, Any]]:
    """Every place of a document that holds a value: (list or dict, position or key), breadth first."""
    queue = [document]
    for holder in queue:
        keys = range(len(holder)) if isinstance(holder, list) else list(holder) if isinstance(holder, dict) else ()
        for key in keys:
            most -= 1
            if most < 0:
                return
            yield holder, key
            if isinstance(holder[key], list | dict):
                queue.append(holder[key])


def _within(value: Any, holder: Any) -> bool:
    """Whether `holder` is `value` or lies in it: exchanging them would tie a knot."""
    return value is holder or any(child is holder or _within(child, holder) for child in _children(value))


def _children(value: Any) -> list[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in inside if isinstance(child, list | dict)]


def deepened(text: str) -> str:
    """JSON text with `DEEP` as it was meant."""
    return text.replace(json.dumps(DEEP), "[" * 20_000 + "]" * 20_000)


def put_whole(path: Path, number: int, canary: Path) -> None:
    """Instead of the file at `path`: another kind of file, an empty one, a folder, a link to nowhere, or nothing."""
    path.unlink()
    Evil.canary = str(canary)
    if number == 0:
        path.mkdir()
    elif number == 1:
        path.symlink_to(path.with_name("nowhere"))
    elif number != 2:
        path.write_bytes(_other_files()[number % 9])


def _other_files() -> list[bytes]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
        archive.writestr("archive/version", "3")
        archive.writestr("zeros", b"\0" * 2_000_000)
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    huge = (
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }".ljust(127) + b"\n"
    )
    return [b"", b"\0" * 100_000, pickle.dumps(Evil()), packed.getvalue(), header + pickle.dumps(Evil()), huge,
            b"<!DOCTYPE html><title>404</title>", b"[" * 100_000, b"\xff\xfe" + "text".encode("utf-16-le")]  # fmt: skip
