"""Image files: any readable picture -> RGB uint8, and the check that every listed file is one."""

import io
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from ucore.errors import DataError
from ucore.spans import part_bytes

# Files are untrusted: leave out Pillow's formats that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM")
# 10,000 x 10,000 pixels are meant to be read; Pillow itself refuses twice as many, which `_reason` says in a sentence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
LARGE = 2**24  # pixels of a picture that is decoded alone: 16 threads with one each would fill the memory
BAR_ABOVE = 500  # a shorter job ends before a progress bar is worth reading

_one_large = threading.Lock()

Result = TypeVar("Result")


class Unreadable(NamedTuple):
    """Why an image cannot be read. lasting: its content is at fault, not the way to it (a mount, a disk, memory)."""

    reason: str
    lasting: bool


class ImageError(DataError):
    """An image that cannot be read."""

    why = Unreadable("unknown", True)


def load_image(path: str | Path) -> Image.Image:
    """Read a picture, a file or one in a shard (`spans`), as PIL RGB, uint8 in [0, 255].

    Grey and palette are expanded, CMYK converted, alpha composited on white (the background of
    segment crops). Integers of more than 8 bits are taken to span 0..65535 and scaled by 1/257, the
    same for every image, so brightness stays comparable; floats span 0..1, or 0..255 when any exceeds
    1. The first frame is used; EXIF rotation is ignored, as aerial pictures have no upright.
    Raises ImageError, a DataError, naming the file when it is absent, damaged or not an image.
    """
    try:
        return _read(Path(path))
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        reason = _reason(error)
        refusal = ImageError(f"Cannot read the image {path}: {reason}. Replace the file, or repeat with --skip-bad.")
        refusal.why = Unreadable(reason, not _passing(error))
        raise refusal from error


def try_image(path: str | Path) -> Image.Image | Unreadable:
    """As `load_image`, but what it would raise is said."""
    try:
        return load_image(path)
    except ImageError as error:
        return error.why


def picture_pixels(path: str | Path) -> int:
    """Pixels of a picture by what its file says of itself; 0 for what is no picture."""
    try:
        data = part_bytes(Path(path))
        if data is None and not Path(path).is_file():  # a pipe would be waited for
            return 0
        with Image.open(path if data is None else io.BytesIO(data), formats=FORMATS) as opened:
            return opened.width * opened.height
    except Exception:  # what is wrong with it, reading it says
        return 0


def find_bad_images(paths: Sequence[Path]) -> dict[int, str]:
    """Decode every file completely; map the position of each unusable one to the reason."""
    problems = map_files(_problem, paths, "Checking images")
    return {position: problem for position, problem in enumerate(problems) if problem}


def someone_looks() -> bool:
    """Whether a progress bar has a reader: a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def map_files(function: Callable[[Path], Result], paths: Sequence[Path], label: str) -> list[Result]:
    """`function` of every path, in order, in threads (for work that releases the GIL: decoding, hashing)."""
    quiet = len(paths) <= BAR_ABOVE or not someone_looks()
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        results = pool.map(function, paths)
        return list(tqdm(results, total=len(paths), desc=label, unit="image", disable=quiet))


def _problem(path: Path) -> str:
    try:
        _read(path)
    except Exception as error:
        return _reason(error)
    return ""


def _read(path: Path) -> Image.Image:
    data = part_bytes(path)
    if data is None:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise DataError("not a file")
    if (info.st_size if data is None else len(data)) == 0:
        raise DataError("zero bytes")
    with (
        Image.open(path if data is None else io.BytesIO(data), formats=FORMATS) as image,
        _one_large if image.width * image.height > LARGE else nullcontext(),
    ):
        image.load()
        return _to_rgb(image)


def _reason(error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "absent"
    if isinstance(error, PermissionError):
        return "not readable with your permissions"
    if _passing(error):
        return " ".join(str(error).split()) or "out of memory"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than Pillow accepts"
    return "truncated or damaged"


def _passing(error: Exception) -> bool:
    """Whether the system failed, not a decoder: another time, or on another machine, it may go well."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0)
        values = values * 255 if values.max() <= 1 else values
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
