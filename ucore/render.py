"""Paints a piece of a city as a camera in the air would see it, with a mask for every object.

The picture is drawn at twice its resolution with OpenCV's anti-aliased polygons, in the order of `kinds`. A height
field drawn beside it casts the shadows: each pixel looks towards the sun and is dark where something stands higher.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ucore.canvas import FINE, MATERIAL_ID, MATERIALS, Canvas
from ucore.city import City
from ucore.countries import Camera
from ucore.errors import ConfigError
from ucore.kinds import KINDS, Feature
from ucore.painters import PAINTERS
from ucore.textures import noise, window

MARGIN_M = 14.0  # metres around the picture that are drawn too, for shadows that reach in
LONGEST_SHADOW_M = 45.0


@dataclass
class Tile:
    """A picture of the ground: image uint8 (H, W, 3) RGB; instances int32 (H, W), 0 or one more than the position
    in `features`; features visible in it, in the order of painting, and their pixels."""

    image: np.ndarray
    instances: np.ndarray
    features: list[Feature]
    pixels: np.ndarray


def render_tile(city: City, east: float, north: float, camera: Camera, pixels: int = 224, seed: int = 0) -> Tile:
    """The square picture of `pixels` x `pixels` around the point (east, north), local metres.

    seed: of the sensor's noise; everything else depends on the place only.
    """
    if not 16 <= pixels <= 4096:
        raise ConfigError(f"A tile of {pixels} pixels cannot be drawn; choose 16 to 4096")
    margin = min(32, math.ceil(MARGIN_M / camera.gsd_m))
    size = pixels + 2 * margin
    half = size * camera.gsd_m / 2
    canvas = Canvas(city, camera, east - half, north + half, size)
    grass, paved = (np.array(canvas.colours[name]) for name in ("grass", "paved"))
    canvas.image[:] = grass * 0.65 + paved * 0.35 if city.built_up else grass
    canvas.material[:] = MATERIAL_ID["grass"]
    features = city.within(east - half - 30, north - half - 30, east + half + 30, north + half + 30)
    _paint(canvas, features)
    keep = slice(margin, margin + pixels)
    image = _expose(canvas, seed)[keep, keep]
    instances = canvas.instances[FINE // 2 :: FINE, FINE // 2 :: FINE][keep, keep]
    counts = np.bincount(instances.ravel(), minlength=len(features) + 1)[1:]
    seen = np.flatnonzero(counts)
    new = np.zeros(len(features) + 1, np.int32)
    new[seen + 1] = np.arange(1, len(seen) + 1)
    return Tile(np.ascontiguousarray(image), new[instances], [features[n] for n in seen], counts[seen])


def _paint(canvas: Canvas, features: list[Feature]) -> None:
    """Every feature by its painter; all kerbs of ways before any asphalt, so that junctions are open."""
    ways = [(n, f) for n, f in enumerate(features, 1) if KINDS[f.kind].paint in ("road", "roundabout")]
    kerbs_drawn = False
    for number, feature in enumerate(features, start=1):
        paint = KINDS[feature.kind].paint
        if paint in ("road", "roundabout") and not kerbs_drawn:
            for _, way in ways:
                PAINTERS["kerb"](canvas, way, 0)
            kerbs_drawn = True
        PAINTERS[paint](canvas, feature, number)


# --- light and camera -------------------------------------------------------------------------------------------


def _expose(canvas: Canvas, seed: int) -> np.ndarray:
    """The drawn layers as the camera sees them: grain, shadows, air, optics, noise. uint8 (size, size, 3)."""
    camera, size = canvas.camera, canvas.size
    image = cv2.resize(canvas.image, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    left, top = canvas.origin[0] // FINE, canvas.origin[1] // FINE
    grain = np.array(list(MATERIALS.values()), np.float32)[canvas.material[::FINE, ::FINE]]
    fine, coarse = (window(noise(seed_of, rough), left, top, size, size) for seed_of, rough in ((1, 0.35), (2, 1.3)))
    image *= (1 + grain[..., 0] * fine + grain[..., 1] * coarse)[..., None]
    shade = _shadow(canvas)[..., None]
    image *= 1 - shade * np.array([0.58, 0.53, 0.44], np.float32)

    if camera.season:
        green = np.clip(image[..., 1] - np.maximum(image[..., 0], image[..., 2]), 0, 40)
        image[..., 0] += 0.9 * camera.season * green
        image[..., 1] -= 0.25 * camera.season * green
    image *= np.array([1 + camera.warmth, 1, 1 - camera.warmth], np.float32)
    image = (image - 112) * camera.contrast + 118
    image += camera.haze * (np.array([206, 214, 224], np.float32) - image)
    image = cv2.GaussianBlur(image, (0, 0), camera.blur) if camera.blur > 0 else image
    rng = np.random.default_rng([seed, canvas.origin[0] & 0x7FFFFFFF, canvas.origin[1] & 0x7FFFFFFF])
    image += rng.standard_normal(image.shape[:2], np.float32)[..., None] * camera.noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _shadow(canvas: Canvas) -> np.ndarray:
    """How much of each pixel lies in shadow, float32 (size, size) in 0..1.

    A pixel is dark when, some steps towards the sun, the ground rises above the ray to it. So shadows fall on
    roofs and trees as on the ground, and end where they should.
    """
    camera = canvas.camera
    height = cv2.resize(canvas.height, (canvas.size, canvas.size), interpolation=cv2.INTER_AREA)
    tallest = float(height.max())
    drop = camera.gsd_m * math.tan(math.radians(camera.sun_elevation))  # metres a pixel along the ray
    lit_to = height + 0.6
    dark = np.zeros(height.shape, np.float32)
    for step in range(1, min(int(LONGEST_SHADOW_M / camera.gsd_m), int(tallest / drop) + 1) + 1):
        dx, dy = round(step * canvas.sun[0]), round(step * canvas.sun[1])
        rows, columns = _shifted(dy, len(height)), _shifted(dx, len(height))
        caster = height[rows[1], columns[1]] - step * drop
        np.maximum(dark[rows[0], columns[0]], caster > lit_to[rows[0], columns[0]], out=dark[rows[0], columns[0]])
    return cv2.GaussianBlur(dark, (0, 0), 0.6)


def _shifted(by: int, length: int) -> tuple[slice, slice]:
    """Slices of the pixels, and of those `by` further on, as far as both exist."""
    here = slice(max(0, -by), min(length, length - by))
    return here, slice(here.start + by, here.stop + by)
