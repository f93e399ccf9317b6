"""Checksums of the files of a Lance index in a local folder.

INDEX/checksums.json   {file: [bytes, crc]}; Lance never changes a file that it has written, but for hints (*.json)

Lance takes the lengths in its files on trust: one damaged bit may have it ask for a terabyte, which ends the process.
So files are compared with what was written before Lance sees them. Who writes both can still do that.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ucore.errors import DataError
from ucore.files import parse_json, write_json
from ucore.index_files import ANEW, crc_of
from ucore.places import Place

NAME = "checksums.json"
TABLES = ("about.lance", "items.lance")
CHECKED = 2**28  # bytes, smallest files first, that are read through whenever an index is opened


class LanceFiles:
    """Of one index, and what this process knows of them already; an object store looks after its files itself."""

    def __init__(self, place: Place) -> None:
        self.folder, self.tables = Path(place), TABLES if isinstance(place, Path) else ()
        self._good: dict[str, tuple[int, int]] = {}  # size and time of those that were read through

    def check(self, whole: bool = False) -> None:
        """Raise DataError naming a file that is not as it was written: by sizes, and by checksums while they are small.

        whole: by checksums, all of them. A file that is gone, or that nobody has noted, is Lance's to judge.
        """
        left = CHECKED
        for name, (size, crc) in sorted(self._noted().items(), key=lambda item: item[1]):
            path = self.folder / name
            try:
                state = path.stat()
                if state.st_size != size:
                    raise DataError(f"{path} is damaged: {state.st_size:,} bytes instead of {size:,}. To go on, {ANEW}")
                known = not whole and self._good.get(name) == (state.st_size, state.st_mtime_ns)
                if known or (not whole and size > left):
                    continue
                left -= size
                if crc_of(path) != crc:
                    raise DataError(f"{path} is damaged: its checksum differs. To go on, {ANEW}")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DataError(
                    f"The index cannot read its file {path} ({error.strerror}). To go on, {ANEW}"
                ) from error
            self._good[name] = (state.st_size, state.st_mtime_ns)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """`note` at the end, whatever happens within: Lance may have committed it."""
        try:
            yield
        finally:
            self.note()

    def note(self) -> None:
        """Take down the files that were written since, and forget those that are gone."""
        if not self.tables:
            return
        before = self._noted()
        now = {name: before.get(name) or self._state(name) for name in self._files()}
        if now != before:
            write_json(self.folder / NAME, now)

    def _files(self) -> Iterator[str]:
        for table in self.tables:
            for place, _, names in sorted(os.walk(self.folder / table)):
                inside = Path(place).relative_to(self.folder)
                yield from ((inside / name).as_posix() for name in sorted(names) if not name.endswith(".json"))

    def _state(self, name: str) -> tuple[int, int]:
        path = self.folder / name
        return path.stat().st_size, crc_of(path)

    def _noted(self) -> dict[str, tuple[int, int]]:
        """What was taken down; nothing where that is missing or damaged, as in indexes of earlier versions."""
        try:
            noted = parse_json((self.folder / NAME).read_text("utf-8")) if self.tables else {}
            inside = {name: (int(size), int(crc)) for name, (size, crc) in noted.items()}
        except (OSError, ValueError, TypeError, AttributeError, OverflowError):
            return {}
        return {name: state for name, state in inside.items() if name.split("/")[0] in self.tables and ".." not in name}
