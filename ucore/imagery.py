"""Pixels for a window on the earth: GeoTIFFs, a folder of z/x/y tiles, or a polite XYZ tile server.

imagery = open_imagery("city.tif")
pixels = imagery.read(24.93, 60.16, 24.94, 60.165, size=224)  # uint8 (224, 224, 4), or None

The last channel is 0 where there is no data. Nothing is fetched before `read`.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ucore.errors import ConfigError, DataError
from ucore.files import content_hash
from ucore.geo import Bounds, local_frame
from ucore.servers import TileServer
from ucore.tiles import Imagery, TileFolder

TIFF_SUFFIXES = (".tif", ".tiff")
MOST_OPEN = 64  # files at a time
STRETCH_PERCENT = (2.0, 98.0)  # of the pixels; these become black and white


def open_imagery(spec: str | Path, zoom: int | None = None, tms: bool = False, **server: Any) -> Imagery:
    """The imagery that `spec` names.

    spec: a GeoTIFF, a folder of GeoTIFFs (a mosaic; of overlapping files the first by name is on top), a folder of
        z/x/y.png tiles, or a URL with {z}, {x} and {y} (or {-y}, for rows counted from the south).
    zoom: which level of tiles to read; GeoTIFFs do without. tms: the folder's rows are counted from the south.
    server: settings of `servers.TileServer`; attribution is required there.

    Raises DataError for a source that cannot be read, ConfigError for settings.
    """
    text = str(spec)
    if "://" in text:
        return TileServer(text, _need_zoom(zoom, "a tile server"), tms=tms, **server)
    path = Path(spec)
    if path.is_file():
        return GeoTiffs([path])
    if not path.is_dir():
        raise DataError(f"There is no imagery {text}. Give a GeoTIFF, a folder, or a URL with {{z}}, {{x}} and {{y}}.")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in TIFF_SUFFIXES and file.is_file())
    if files:
        return GeoTiffs(files, path.name)
    return TileFolder(path, _need_zoom(zoom, f"{path}, a folder of tiles,"), tms)


def _need_zoom(zoom: int | None, what: str) -> int:
    if zoom is None:
        raise ConfigError(f"Reading {what} needs a zoom: add --zoom, for example --zoom 18.")
    return zoom


class GeoTiffs(Imagery):
    """One or several GeoTIFFs in any coordinate systems, warped on the fly (cubic, averaging when shrunk).

    Red, green and blue are the bands that say so, else the first three of at most four; a single band is grey. Values
    of more than 8 bits are stretched linearly, the same for all files, bands and windows: percentile 2 becomes 0,
    percentile 98 becomes 255 (over at most 512 x 512 pixels a file), so brightness stays comparable.
    """

    def __init__(self, paths: Sequence[Path], name: str | None = None):
        self.name, self.paths = name or paths[0].name, list(paths)
        self._open = lru_cache(MOST_OPEN)(_open_tiff)  # a survey's folder has more files than a process may open
        facts = [_facts(file) for file in map(self._open, paths)]
        self.boxes = [box for box, _, _ in facts]
        west, south, _, _ = np.min(self.boxes, axis=0)
        _, _, east, north = np.max(self.boxes, axis=0)
        self.bounds = (float(west), float(south), float(east), float(north))
        self.native_gsd_m = min(gsd for _, gsd, _ in facts)
        self.stretch = _stretch(map(self._open, paths), self.name) if any(deep for _, _, deep in facts) else None

    def read(self, west: float, south: float, east: float, north: float, size: int) -> np.ndarray | None:
        """As `Imagery.read`; where files overlap, the first with data counts. Raises DataError for a damaged file."""
        pixels = np.zeros((size, size, 4), np.uint8)
        for path, box in zip(self.paths, self.boxes, strict=True):
            if west < box[2] and east > box[0] and south < box[3] and north > box[1]:
                missing = pixels[..., 3] == 0
                if not missing.any():
                    break
                pixels[missing] = self._warp(self._open(path), (west, south, east, north), size)[missing]
        return pixels if pixels[..., 3].any() else None

    def _warp(self, file: Any, window: Bounds, size: int) -> np.ndarray:
        from rasterio.enums import Resampling
        from rasterio.errors import RasterioError
        from rasterio.transform import from_bounds
        from rasterio.vrt import WarpedVRT

        bands = _colour_bands(file)
        shape = dict(transform=from_bounds(*window, size, size), width=size, height=size)
        try:
            with WarpedVRT(file, crs="EPSG:4326", resampling=Resampling.cubic, **_alpha(file), **shape) as warped:
                values, mask = np.moveaxis(warped.read(bands), 0, -1), warped.dataset_mask()
        except RasterioError as error:
            raise DataError(_damaged(file.name)) from error
        there = (mask >= 128) & np.isfinite(values).all(axis=-1)
        if self.stretch is not None:
            low, high = self.stretch
            values = np.nan_to_num((values.astype(np.float32) - low) * (255 / (high - low))).round().clip(0, 255)
        colours = np.broadcast_to(values, (size, size, 3)).astype(np.uint8)
        return np.dstack([colours, np.where(there, 255, 0).astype(np.uint8)])

    def fingerprint(self) -> str:
        """Changes with the names and sizes of the files."""
        return content_hash([(path.name, path.stat().st_size) for path in self.paths])


def _facts(file: Any) -> tuple[Bounds, float, bool]:
    """Bounds, metres a pixel, and whether there are more than 8 bits. Raises DataError for no place on Earth."""
    try:
        facts = _tiff_bounds(file), _tiff_gsd(file), _is_deep(file)
        if not 0 < facts[1] < 1e6:
            raise ValueError("no size")
    except DataError:
        raise
    except Exception as error:  # rasterio, PROJ and shapely each raise their own on a broken georeference
        raise DataError(f"{file.name} has a broken georeference. Correct it with gdal_edit.py.") from error
    return facts


def _open_tiff(path: Path) -> Any:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            file = rasterio.open(path, driver="GTiff")
            placed = file.crs is not None and not file.transform.is_identity
    except RasterioError as error:
        raise DataError(f"{path} is not a GeoTIFF, or is damaged. Give another, or a folder of tiles.") from error
    try:
        file.read(1, window=((file.height - 1, file.height), (file.width - 1, file.width)))  # a cut file lacks its end
    except RasterioError as error:
        raise DataError(_damaged(path)) from error
    if not placed:
        raise DataError(
            f"{path} has no georeference: nothing says where on the earth it lies. Add it, for example with "
            "gdal_translate -a_srs EPSG:32635 -a_ullr LEFT TOP RIGHT BOTTOM."
        )
    _colour_bands(file)
    return file


def _damaged(path: str | Path) -> str:
    return f"{path} is cut short or damaged: pixels cannot be read. Replace the file."


def _colour_bands(file: Any) -> list[int]:
    """Numbers of the bands shown as red, green and blue, or of the single grey one."""
    from rasterio.enums import ColorInterp

    colours = list(file.colorinterp)
    if ColorInterp.palette in colours:
        raise DataError(f"{file.name} has a palette. Expand it first: gdal_translate -expand rgb OLD.tif NEW.tif")
    if any("complex" in kind for kind in file.dtypes):
        raise DataError(f"{file.name} holds complex numbers, which are not a picture. Convert it to RGB first.")
    rgb = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    if all(colour in colours for colour in rgb):
        return [colours.index(colour) + 1 for colour in rgb]
    visible = [number for number, colour in enumerate(colours, 1) if colour != ColorInterp.alpha]
    if len(visible) == 1:
        return visible
    if len(visible) in (3, 4):
        return visible[:3]
    raise DataError(
        f"{file.name} has {len(visible)} bands and does not say which are red, green and blue. Pick three, for example "
        "with gdal_translate -b 4 -b 3 -b 2 OLD.tif NEW.tif"
    )


def _alpha(file: Any) -> dict[str, bool]:
    """A file that does not say itself where it has data gets an alpha band, which is 0 outside of it."""
    from rasterio.enums import ColorInterp

    return {"add_alpha": ColorInterp.alpha not in file.colorinterp and file.nodata is None}


def _tiff_bounds(file: Any) -> Bounds:
    from rasterio.warp import transform_bounds

    west, south, east, north = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise DataError(
            f"{file.name} claims to lie at {west:g},{south:g},{east:g},{north:g}, which is not on the earth or crosses "
            "the antimeridian. Correct its coordinate system with gdal_edit.py -a_srs."
        )
    return west, south, east, north


def _tiff_gsd(file: Any) -> float:
    """Metres a pixel in the middle of the file: the root of a pixel's area on the ground."""
    import shapely
    from rasterio.warp import transform

    column, row = file.width // 2, file.height // 2
    corners = [file.xy(row, column, offset=corner) for corner in ("ul", "ur", "lr", "ll")]
    lons, lats = transform(file.crs, "EPSG:4326", [x for x, _ in corners], [y for _, y in corners])[:2]
    pixel = shapely.Polygon(list(zip(lons, lats, strict=True)))
    return math.sqrt(local_frame(lons[0], lats[0]).to_metres(pixel).area)


def _is_deep(file: Any) -> bool:
    """Whether a band holds more than 8 bits."""
    return any(kind != "uint8" for kind in file.dtypes)


def _stretch(files: Iterable[Any], name: str) -> tuple[float, float]:
    """The values that become black and white. See `GeoTiffs`."""
    parts = []
    for file in files:
        shape = (min(file.height, 512), min(file.width, 512))
        values = file.read(_colour_bands(file), out_shape=shape, masked=True).compressed().astype(np.float64)
        parts.append(values[np.isfinite(values)])
    values = np.concatenate(parts)
    low, high = np.percentile(values, STRETCH_PERCENT) if len(values) else (0.0, 0.0)
    if high <= low:
        raise DataError(f"{name}: all pixels are alike, so there is nothing to see.")
    return float(low), float(high)
