"""Paints a piece of a city as a camera in the air would see it, with a mask for every object.

The picture is drawn at twice its resolution with OpenCV's anti-aliased polygons, in the order of `kinds`. A height
field drawn beside it casts the shadows: each pixel looks towards the sun and is dark where something stands higher.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from ucore.city import City
from ucore.countries import Camera
from ucore.errors import ConfigError
from ucore.kinds import KINDS, Feature
from ucore.textures import canopy, noise, window

FINE = 2  # pixels drawn for each pixel of the picture
MARGIN_M = 14.0  # metres around the picture that are drawn too, for shadows that reach in
LONGEST_SHADOW = 40  # pixels
# Grain of materials: weak and strong structure, share of brightness: (fine, coarse).
MATERIALS = {
    "plain": (0.02, 0.01), "grass": (0.07, 0.07), "soil": (0.05, 0.09), "asphalt": (0.035, 0.03), "roof": (0.045, 0.03),
    "water": (0.02, 0.03), "field": (0.045, 0.05), "leaves": (0.06, 0.05),
}  # fmt: skip
MATERIAL_ID = {name: number for number, name in enumerate(MATERIALS)}


@dataclass
class Tile:
    """A picture of the ground: image uint8 (H, W, 3) RGB; instances int32 (H, W), 0 or one more than the position
    in `features`; features visible in it, in the order of painting, and their pixels."""

    image: np.ndarray
    instances: np.ndarray
    features: list[Feature]
    pixels: np.ndarray


@dataclass
class Canvas:
    """What painters draw on; positions in local metres."""

    city: City
    camera: Camera
    west: float
    north: float
    size: int  # pixels a side, margin included, of the finished picture
    image: np.ndarray = field(init=False)
    instances: np.ndarray = field(init=False)
    height: np.ndarray = field(init=False)
    material: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        side = self.size * FINE
        self.scale = FINE / self.camera.gsd_m  # drawn pixels a metre
        self.image = np.empty((side, side, 3), np.uint8)
        self.instances = np.zeros((side, side), np.int32)
        self.height = np.zeros((side, side), np.float32)
        self.material = np.zeros((side, side), np.uint8)
        self.origin = (round(self.west * self.scale), round(-self.north * self.scale))  # of periodic textures
        azimuth = math.radians(self.camera.sun_azimuth)
        self.sun = (math.sin(azimuth), -math.cos(azimuth))  # towards the light, in pixels

    @property
    def colours(self) -> dict[str, tuple[int, int, int]]:
        return self.city.style.colours

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Drawn pixels in sixteenths, int32, of metres (..., 2)."""
        return np.round((points - (self.west, self.north)) * (16 * self.scale, -16 * self.scale)).astype(np.int32)

    def fill(self, rings: list[np.ndarray], colour: tuple | np.ndarray, material: str = "plain", label: int = 0,
             height: float | None = None) -> None:  # fmt: skip
        """One polygon with its holes into the picture and, where given, the other layers."""
        shapes = [self.pixels(ring) for ring in rings]
        tone = [float(level) for level in colour]
        cv2.fillPoly(self.image, shapes, tone, cv2.LINE_AA, 4)
        cv2.fillPoly(self.material, shapes, MATERIAL_ID[material], cv2.LINE_8, 4)
        if label:
            cv2.fillPoly(self.instances, shapes, label, cv2.LINE_8, 4)
        if height is not None:
            cv2.fillPoly(self.height, shapes, height, cv2.LINE_8, 4)

    def line(self, points: np.ndarray, colour: tuple | np.ndarray, metres: float, closed: bool = False) -> None:
        wide = max(1, round(metres * self.scale))
        cv2.polylines(self.image, [self.pixels(points)], closed, [float(c) for c in colour], wide, cv2.LINE_AA, 4)

    def mask(self, rings: list[np.ndarray]) -> tuple[np.ndarray, tuple[slice, slice]]:
        """bool mask of a polygon within the window (rows, columns) that holds it."""
        shapes = [self.pixels(ring) for ring in rings]
        points = np.concatenate([shape.reshape(-1, 2) for shape in shapes]) // 16
        side = len(self.image)
        (x0, y0), (x1, y1) = np.clip(points.min(axis=0) - 1, 0, side), np.clip(points.max(axis=0) + 2, 0, side)
        part = np.zeros((max(y1 - y0, 0), max(x1 - x0, 0)), np.uint8)
        if part.size:
            shifted = [shape - np.array([x0 * 16, y0 * 16], np.int32) for shape in shapes]
            cv2.fillPoly(part, shifted, 1, cv2.LINE_8, 4)
        return part.astype(bool), (slice(y0, y1), slice(x0, x1))

    def world(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """Metres east and north of a window's pixels: float32 (1, w) and (h, 1)."""
        x = self.west + (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / self.scale
        y = self.north - (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / self.scale
        return x[None], y[:, None]


def render_tile(city: City, east: float, north: float, camera: Camera, pixels: int = 224, seed: int = 0) -> Tile:
    """The square picture of `pixels` x `pixels` around the point (east, north), local metres.

    seed: of the sensor's noise; everything else depends on the place only.
    """
    from ucore.painters import PAINTERS

    if not 16 <= pixels <= 4096:
        raise ConfigError(f"A tile of {pixels} pixels cannot be drawn; choose 16 to 4096")
    margin = min(32, math.ceil(MARGIN_M / camera.gsd_m))
    size = pixels + 2 * margin
    half = size * camera.gsd_m / 2
    canvas = Canvas(city, camera, east - half, north + half, size)
    canvas.image[:] = canvas.colours["grass"]
    canvas.material[:] = MATERIAL_ID["grass"]
    features = city.within(east - half - 30, north - half - 30, east + half + 30, north + half + 30)
    _paint_ways_together(canvas, features, PAINTERS)
    keep = slice(margin, margin + pixels)
    image = _expose(canvas, seed)[keep, keep]
    instances = canvas.instances[FINE // 2 :: FINE, FINE // 2 :: FINE][keep, keep]
    counts = np.bincount(instances.ravel(), minlength=len(features) + 1)[1:]
    seen = np.flatnonzero(counts)
    new = np.zeros(len(features) + 1, np.int32)
    new[seen + 1] = np.arange(1, len(seen) + 1)
    return Tile(np.ascontiguousarray(image), new[instances], [features[n] for n in seen], counts[seen])


def _paint_ways_together(canvas: Canvas, features: list[Feature], painters: dict[str, Callable]) -> None:
    """Every feature by its painter; all kerbs of ways before any asphalt, so that junctions are open."""
    ways = [(n, f) for n, f in enumerate(features, 1) if KINDS[f.kind].paint in ("road", "roundabout")]
    kerbs_drawn = False
    for number, feature in enumerate(features, start=1):
        paint = KINDS[feature.kind].paint
        if paint in ("road", "roundabout") and not kerbs_drawn:
            for _, way in ways:
                painters["kerb"](canvas, way, 0)
            kerbs_drawn = True
        painters[paint](canvas, feature, number)


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
    for step in range(1, min(LONGEST_SHADOW, int(tallest / drop) + 1) + 1):
        dx, dy = round(step * canvas.sun[0]), round(step * canvas.sun[1])
        rows, columns = _shifted(dy, len(height)), _shifted(dx, len(height))
        caster = height[rows[1], columns[1]] - step * drop
        np.maximum(dark[rows[0], columns[0]], caster > lit_to[rows[0], columns[0]], out=dark[rows[0], columns[0]])
    return cv2.GaussianBlur(dark, (0, 0), 0.6)


def _shifted(by: int, length: int) -> tuple[slice, slice]:
    """Slices of the pixels, and of those `by` further on, as far as both exist."""
    here = slice(max(0, -by), min(length, length - by))
    return here, slice(here.start + by, here.stop + by)
