"""Tiles of web maps as a source of pixels, and what every source of pixels offers."""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ucore.errors import DataError
from ucore.files import content_hash
from ucore.geo import MERCATOR_LIMIT, Bounds, ground_resolution, tile_bounds
from ucore.images import FORMATS

TILE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Imagery(ABC):
    """A source of pixels. bounds: where it has any, degrees. native_gsd_m: metres a pixel in the middle of them."""

    name: str  # for people and the manifest: never a password or a key
    bounds: Bounds
    native_gsd_m: float

    @abstractmethod
    def read(self, west: float, south: float, east: float, north: float, size: int) -> np.ndarray | None:
        """The window (degrees) as uint8 RGBA (size, size, 4), alpha 0 without data; None when it has no data at all."""

    def gsd_at(self, lat: float) -> float:
        """Metres a pixel at latitude `lat` (degrees)."""
        return self.native_gsd_m

    def requests(self, windows: Sequence[Bounds]) -> int:
        """How many requests to a server reading these windows would take."""
        return 0

    def fingerprint(self) -> str:
        """Changes with the source, as far as can be told without reading all of it."""
        return content_hash(self.name)


class Tiles(Imagery):
    """Square tiles of web maps at one zoom; a window is cut out of the tiles it touches, shrunk or enlarged once.

    Inside a window, rows are taken to be evenly spaced in latitude: at zoom 10, where a tile of 224 pixels is widest,
    that shifts a pixel by at most half its size.
    """

    zoom: int

    @abstractmethod
    def tile(self, x: int, y: int) -> Image.Image | None:
        """The tile as RGBA, rows counted from the north; None without data."""

    def read(self, west: float, south: float, east: float, north: float, size: int) -> np.ndarray | None:
        """As `Imagery.read`; rows are evenly spaced in latitude, and alpha is 0 or 255."""
        left, top = self.place(west, north)
        right, bottom = self.place(east, south)
        x0, y0 = math.floor(left), math.floor(top)
        columns, rows = math.ceil(right) - x0, math.ceil(bottom) - y0
        found = {(i, j): self.tile(x0 + i, y0 + j) for j in range(rows) for i in range(columns)}
        there = {place: tile for place, tile in found.items() if tile is not None}
        if not there:
            return None
        side = max(tile.width for tile in there.values())
        canvas = Image.new("RGBA", (columns * side, rows * side))
        for (i, j), tile in there.items():
            canvas.paste(tile if tile.size == (side, side) else tile.resize((side, side)), (i * side, j * side))
        box = ((left - x0) * side, (top - y0) * side, (right - x0) * side, (bottom - y0) * side)
        pixels = np.asarray(canvas.resize((size, size), Image.Resampling.BICUBIC, box=box)).copy()
        pixels[..., 3] = np.where(pixels[..., 3] >= 128, 255, 0)
        return pixels if pixels[..., 3].any() else None

    def gsd_at(self, lat: float) -> float:
        """Metres a pixel at latitude `lat` (degrees): tiles shrink towards the poles."""
        middle = (self.bounds[1] + self.bounds[3]) / 2
        return self.native_gsd_m * math.cos(math.radians(lat)) / math.cos(math.radians(middle))

    def place(self, lon: float, lat: float) -> tuple[float, float]:
        """Column and row of a point in tiles of the zoom, with fractions."""
        y = math.asinh(math.tan(math.radians(min(max(lat, -MERCATOR_LIMIT), MERCATOR_LIMIT))))
        count = 2**self.zoom
        return (lon / 360 + 0.5) * count, (0.5 - y / (2 * math.pi)) * count

    def touched(self, windows: Sequence[Bounds]) -> set[tuple[int, int]]:
        """Columns and rows of the tiles that the windows touch."""
        found = set()
        for west, south, east, north in windows:
            (left, top), (right, bottom) = self.place(west, north), self.place(east, south)
            columns = range(math.floor(left), math.ceil(right))
            found |= {(x, y) for x in columns for y in range(math.floor(top), math.ceil(bottom))}
        return found


class TileFolder(Tiles):
    """A folder with files z/x/y.png (or .jpg, .jpeg, .webp)."""

    def __init__(self, folder: Path, zoom: int, tms: bool = False):
        self.folder, self.zoom, self.tms, self.name = folder, zoom, tms, folder.name
        levels = sorted(int(entry.name) for entry in folder.iterdir() if entry.is_dir() and entry.name.isdecimal())
        if not levels:
            raise DataError(f"{folder} holds neither GeoTIFFs (.tif) nor tiles (z/x/y.png). Give the folder that does.")
        self.files = self._list()
        if not self.files:
            there = ", ".join(str(level) for level in levels)
            raise DataError(f"{folder} has no tiles of zoom {zoom}; its folders are {there}. Choose one with --zoom.")
        columns, rows = zip(*self.files, strict=True)
        west, _, _, north = tile_bounds(min(columns), min(rows), zoom)
        _, south, east, _ = tile_bounds(max(columns), max(rows), zoom)
        self.bounds = (west, south, east, north)
        first = self.files[min(self.files)]
        side = read_tile(first).width
        self.native_gsd_m = ground_resolution((south + north) / 2, zoom, side)

    def _list(self) -> dict[tuple[int, int], Path]:
        files = {}
        count = 2**self.zoom
        for path in sorted((self.folder / str(self.zoom)).glob("*/*")):
            x, y = path.parent.name, path.stem
            if path.suffix.lower() in TILE_SUFFIXES and x.isdecimal() and y.isdecimal():
                row = count - 1 - int(y) if self.tms else int(y)
                if int(x) < count and 0 <= row < count:
                    files[int(x), row] = path
        return files

    def tile(self, x: int, y: int) -> Image.Image | None:
        """From its file; None where there is none. Raises DataError for a damaged one."""
        path = self.files.get((x, y))
        return None if path is None else read_tile(path)


def read_tile(path: Path) -> Image.Image:
    """The file as `decode_tile` gives it. Raises DataError, also where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error.strerror}). Replace it or remove it.") from error
    return decode_tile(data, str(path))


def decode_tile(data: bytes, where: str) -> Image.Image:
    """The picture in `data` as RGBA. Raises DataError naming `where` when it is none, or not square."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            tile = image.convert("RGBA")
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        start = "".join(sign if sign.isprintable() else " " for sign in data[:40].decode("latin-1"))
        raise DataError(f"{where} is not an image (it begins {start!r}). Replace it or correct its address.") from error
    if tile.width != tile.height or tile.width > 4096:
        raise DataError(f"{where} is {tile.width} x {tile.height} pixels; tiles are square, of at most 4096.")
    return tile
