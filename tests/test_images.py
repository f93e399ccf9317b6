import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ucore import images
from ucore.errors import DataError
from ucore.images import find_bad_images, load_image


def save_pixels(path: Path, mode: str) -> tuple[int, int, int]:
    """Write a 2 x 2 picture of one colour in `mode`; return the RGB it must be read as."""
    orange = (200, 100, 50)
    if mode == "I;16":
        Image.fromarray(np.full((2, 2), 100 * 257 + 128, np.uint16)).save(path)
        return (100, 100, 100)
    if mode == "I":
        Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(path)
        return (255, 255, 255)
    if mode in ("F unit", "F bytes"):
        pixels = np.array([[0.2, 0.2], [0.2, np.nan]] if mode == "F unit" else [[51, 51], [51, 300]], np.float32)
        Image.fromarray(pixels).save(path)
        return (51, 51, 51)
    if mode == "1":
        Image.new("1", (2, 2), 1).save(path)
        return (255, 255, 255)
    if mode == "P transparent":
        picture = Image.new("RGB", (2, 2), orange).quantize(4)
        picture.save(path, transparency=picture.getpixel((0, 0)))
        return (255, 255, 255)
    if mode in ("RGBA", "LA"):
        Image.new(mode, (2, 2), (0, 0, 0, 51) if mode == "RGBA" else (0, 51)).save(path)
        return (204, 204, 204)  # black at a fifth over white
    picture = Image.new("RGB", (2, 2), orange).convert(mode)
    picture.save(path)
    red, green, blue = np.asarray(picture.convert("RGB"))[0, 0].tolist()
    return red, green, blue


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("RGB", ".png"), ("L", ".png"), ("1", ".png"), ("P", ".png"), ("P transparent", ".png")),
        *(("RGBA", ".png"), ("LA", ".png"), ("RGBA", ".webp"), ("CMYK", ".tif"), ("YCbCr", ".tif")),
        *(("I;16", ".png"), ("I;16", ".tif"), ("I", ".tif"), ("F unit", ".tif"), ("F bytes", ".tif")),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"a{suffix}"
    colour = save_pixels(path, mode)
    image = load_image(path)
    assert image.mode == "RGB" and np.asarray(image).dtype == np.uint8
    assert np.abs(np.asarray(image)[0, 0].astype(int) - colour).max() <= (2 if suffix == ".webp" else 0)


def test_sixteen_bits_span_the_eight_bit_range_alike_for_all_images(tmp_path):
    levels = np.array([[0, 128, 129, 257, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(levels[:, :4]).save(tmp_path / "dark.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 0, 1, 1, 255]
    assert np.asarray(load_image(tmp_path / "dark.png"))[0, :, 0].tolist() == [0, 0, 1, 1]


def test_floats_without_a_number_are_black(tmp_path):
    Image.fromarray(np.array([[np.nan, 1.0]], np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(load_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 255]


def test_an_image_of_many_pixels_is_read_without_a_warning(tmp_path, monkeypatch):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    asked = (
        "import sys; from PIL import Image; from ucore.images import load_image; Image.MAX_IMAGE_PIXELS = 600;"
        "print(load_image(sys.argv[1]).size)"  # Pillow warns above that, and refuses above twice as many
    )
    run = subprocess.run([sys.executable, "-c", asked, str(tmp_path / "a.png")], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("(30, 30)\n", "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(DataError, match=r"a\.png: more pixels than Pillow accepts"):
        load_image(tmp_path / "a.png")


def test_progress_shows_only_where_someone_looks(tmp_path, monkeypatch, capsys):
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for path in paths:
        Image.new("RGB", (2, 2)).save(path)
    monkeypatch.setattr(images, "BAR_ABOVE", 8)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # another test may have started a kernel
    assert find_bad_images(paths) == {} and capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    find_bad_images(paths[:8])
    assert capsys.readouterr().err == ""
    find_bad_images(paths)
    assert "Checking images: 100%" in capsys.readouterr().err
