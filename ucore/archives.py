"""Zip archives of strangers, unpacked safely, once, and resumably.

folder = unpack_zip("images.zip", "images")      # at once when it was done before
folder = open_folder("data/Finland", "images")   # images/, else images.zip unpacked beside it or under runs/
"""

import lzma
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from ucore.errors import DataError, UserError
from ucore.files import atomic_path, content_hash, only_writer, parse_json, require_writable, safe_join, write_json
from ucore.images import someone_looks
from ucore.manifest import few

STAMP = ".unpacked.json"  # inside the folder: which archive it came from, and whether all of it is there
SPARE = Path("runs/unpacked")  # where archives in places that cannot be written are unpacked
JUNK = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|\._[^/]*$|Thumbs\.db$)")
SMALL = 2**20  # bytes; a text this short may compress as well as it likes
CHUNK = 2**20
LONGEST_PART, LONGEST_NAME = 240, 2000  # bytes; file systems allow 255 and 4096, and the folder has a name, too
# What zipfile and the decoders behind it raise on damaged bytes.
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, ValueError,
          OverflowError, OSError)  # fmt: skip


def unpack_zip(
    archive: str | Path,
    into: str | Path,
    *,
    max_total: int = 10**12,
    max_file: int = 2 * 10**10,
    max_files: int = 5_000_000,
    max_ratio: float = 200.0,
) -> Path:
    """Unpack `archive` into the folder `into` and return it; nothing is done when that was finished before.

    max_total, max_file: bytes of all files and of one, unpacked. max_files: how many files.
    max_ratio: unpacked bytes a packed byte, of any file above 1 MB and of the whole; pictures stay near 1.
    All names, sizes and kinds are judged before the first byte is written: names that leave `into`, links, devices,
    encrypted and repeated entries are refused. After a kill, files that are whole (size and CRC-32) are kept.
    Raises DataError for an archive that is damaged or refused, UserError where the disk has no room for it.
    """
    archive, into = Path(archive), Path(into)
    if not archive.is_file():
        raise DataError(f"There is no archive {archive}. Put it there, or correct the path.")
    info = archive.stat()
    stamp = {"archive": archive.name, "bytes": info.st_size, "mtime_ns": info.st_mtime_ns, "complete": True}
    noted = read_stamp(into)
    if noted.get("complete") and (stamp.items() <= noted.items() or noted.get("key") == archive_key(archive)):
        return into
    stamp["key"] = archive_key(archive)
    require_writable(into)
    with open_zip(archive) as content:
        members = check_members(content, archive, max_total, max_file, max_files, max_ratio)
        into.mkdir(parents=True, exist_ok=True)
        with only_writer(into, wait=True):  # who comes second finds all of it there
            if read_stamp(into) != stamp:
                write_json(into / STAMP, {**stamp, "complete": False})
                _extract(content, members, archive, into)
                write_json(into / STAMP, stamp)
    return into


@contextmanager
def open_zip(archive: str | Path) -> Iterator[zipfile.ZipFile]:
    """An archive to read from. Raises DataError where it is damaged, then or within."""
    try:
        with zipfile.ZipFile(archive) as content:
            yield content
    except BROKEN as error:
        reason = " ".join(str(error).split()) or "it ends early"
        raise DataError(f"{archive} is not a whole zip archive ({reason}). Fetch it again.") from error


def open_folder(place: str | Path, name: str, spare: str | Path = SPARE) -> Path | None:
    """The folder `place/name`, or what `place/name.zip` unpacks to; None where there is neither.

    A folder that the user unpacked is taken as it is. The archive is unpacked beside itself, or under
    `spare/<key of its contents>` where its place cannot be written. A second folder of the same name inside, as many
    archives have, is entered.
    """
    place = Path(place)
    folder, archive = place / name, place / f"{name}.zip"
    filled = folder.is_dir() and any(folder.iterdir())
    if archive.is_file() and (not filled or read_stamp(folder)):
        if not os.access(place, os.W_OK | os.X_OK) and not read_stamp(folder).get("complete"):
            folder = Path(spare) / archive_key(archive) / name
        folder = unpack_zip(archive, folder)
    elif not filled:
        return None
    return folder / name if (folder / name).is_dir() else folder


def archive_key(archive: str | Path) -> str:
    """16 hex digits of the names, sizes and checksums in the archive's directory. Raises DataError if damaged."""
    with open_zip(archive) as content:
        return content_hash([[item.filename, item.file_size, item.CRC] for item in content.infolist()])


def read_stamp(folder: Path) -> dict:
    """What an earlier `unpack_zip` noted in `folder`; empty where it was not at work."""
    try:
        stamp = parse_json((folder / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def check_members(
    content: zipfile.ZipFile,
    archive: Path,
    max_total: int = 10**12,
    max_file: int = 2 * 10**10,
    max_files: int = 5_000_000,
    max_ratio: float = 200.0,
) -> list[tuple[zipfile.ZipInfo, str]]:
    """The files to unpack, with names that are relative and use "/". Raises DataError for what must not be unpacked."""
    members = [(item, item.filename.replace("\\", "/")) for item in content.infolist()]
    _refuse(archive, "names that leave the folder", [name for _, name in members if _escapes(name)])
    _refuse(archive, "names too long for a file", [name for _, name in members if _is_long(name)])
    _refuse(archive, "links or devices instead of files", [name for item, name in members if _is_special(item)])
    _refuse(archive, "encrypted files", [name for item, name in members if item.flag_bits & 1])
    members = [(item, name) for item, name in members if not name.endswith("/") and not JUNK.search(name)]
    if not members:
        raise DataError(f"{archive} holds no file. Fetch it again.")
    names = [str(PurePosixPath(name)) for _, name in members]
    known = set(names)
    folders = {str(parent) for name in known for parent in PurePosixPath(name).parents}
    seen: set[str] = set()
    repeated = [name for name in names if name in seen or seen.add(name)]
    _refuse(archive, "a name more than once", repeated + sorted(known & folders))

    sizes = [item.file_size for item, _ in members]
    if len(members) > max_files:
        raise DataError(f"{archive} holds {len(members):,} files, more than {max_files:,}. Is it the right archive?")
    if sum(sizes) > max_total:
        raise DataError(f"{archive} unpacks to {_size(sum(sizes))}, more than {_size(max_total)}. Is it the right one?")
    _refuse(archive, f"files above {_size(max_file)}", [name for item, name in members if item.file_size > max_file])
    packed_whole = max(archive.stat().st_size, 1)
    swollen = [
        name for item, name in members if item.file_size > max(SMALL, max_ratio * max(item.compress_size, 1))
    ] or (["all of it"] if sum(sizes) > max(SMALL, max_ratio * packed_whole) else [])
    _refuse(archive, f"files that swell more than {max_ratio:g} times, as a zip bomb does", swollen)
    return [(item, name) for (item, _), name in zip(members, names, strict=True)]


def _refuse(archive: Path, what: str, names: list[str]) -> None:
    if names:
        raise DataError(
            f"{archive} holds {what}: {few([repr(name) for name in names])}. Nothing was unpacked; fetch the archive "
            "from its authors again."
        )


def _escapes(name: str) -> bool:
    rooted = name.startswith("/") or re.match(r"[A-Za-z]:", name) is not None
    return rooted or not name or "\0" in name or ".." in name.split("/")


def _is_long(name: str) -> bool:
    parts = [len(part.encode("utf-8", "replace")) for part in name.split("/")]
    return max(parts) > LONGEST_PART or sum(parts) + len(parts) > LONGEST_NAME


def _is_special(item: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(item.external_attr >> 16)
    return kind not in (0, stat.S_IFREG, stat.S_IFDIR)


def _extract(content: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, str]], archive: Path, into: Path) -> None:
    """Write the members that are not whole in `into` yet."""
    wanted = [(item, safe_join(into, name)) for item, name in members]
    missing = [(item, target) for item, target in wanted if not _is_whole(target, item)]
    need, free = sum(item.file_size for item, _ in missing), shutil.disk_usage(into).free
    if need > free:
        raise UserError(
            f"{archive} needs {_size(need)} in {into}, where {_size(free)} are free. Free some space and repeat the "
            "command."
        )
    total, quiet = sum(item.file_size for item, _ in missing), not someone_looks()
    with tqdm(total=total, desc=f"Unpacking {archive.name}", unit="B", unit_scale=True, disable=quiet) as bar:
        for item, target in missing:
            with atomic_path(target) as temporary, content.open(item) as source, open(temporary, "wb") as stream:
                while chunk := source.read(CHUNK):  # checks the CRC at the end
                    stream.write(chunk)
                    bar.update(len(chunk))


def _is_whole(target: Path, item: zipfile.ZipInfo) -> bool:
    if not target.is_file() or target.stat().st_size != item.file_size:
        return False
    checksum = 0
    with open(target, "rb") as stream:
        while chunk := stream.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum == item.CRC


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
