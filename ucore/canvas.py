"""What a tile is drawn on: the picture at twice its resolution, masks, heights and materials, and tools to draw."""

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
import shapely

from ucore.city import City
from ucore.countries import Camera
from ucore.kinds import Feature
from ucore.textures import crown

FINE = 2  # pixels drawn for each pixel of the picture
# Grain of materials: weak and strong structure, share of brightness: (fine, coarse).
MATERIALS = {
    "plain": (0.02, 0.01), "grass": (0.05, 0.07), "soil": (0.05, 0.09), "asphalt": (0.035, 0.03), "roof": (0.045, 0.03),
    "water": (0.02, 0.03), "field": (0.045, 0.05), "leaves": (0.06, 0.05),
}  # fmt: skip
MATERIAL_ID = {name: number for number, name in enumerate(MATERIALS)}
WHITE, INK = (232, 232, 228), (60, 60, 62)
CAR_COLOURS = np.array([(226, 226, 226), (50, 52, 56), (150, 152, 156), (170, 44, 40), (52, 80, 134), (196, 190, 180)])


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
        """Colours of the country's ground by name, red, green and blue in 0..255."""
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
        if label or height is not None:  # what lies on the ground clears it of what stood there
            cv2.fillPoly(self.height, shapes, height or 0.0, cv2.LINE_8, 4)

    def line(self, points: np.ndarray, colour: tuple | np.ndarray, metres: float, closed: bool = False) -> None:
        """A line along points (n, 2), `metres` wide and at least a pixel, into the picture alone."""
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


# --- things in rows ---------------------------------------------------------------------------------------------


def position_random(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """Reproducible numbers in 0..1 of integer positions, whichever part of a grid is asked for."""
    mixed = u.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ v.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= np.uint64(seed * 0x165667B19E3779F9 % 2**64)
    for shift in (29, 32):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def grid_inside(canvas: Canvas, feature: Feature, step: tuple[float, float], inset: float = 0.0,
          salt: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:  # fmt: skip
    """Grid points inside a polygon and near the canvas: points (n, 2), random (n,), column numbers (n,), angle."""
    shape = feature.geometry.buffer(-inset) if inset else feature.geometry
    half = canvas.size * canvas.camera.gsd_m / 2 + 8
    middle = np.array([canvas.west + half - 8, canvas.north - half + 8])
    seen = shapely.box(*(middle - half), *(middle + half)).intersection(shape.envelope)
    empty = np.empty((0, 2)), np.empty(0), np.empty(0, np.int64), 0.0
    if shape.is_empty or seen.is_empty:
        return empty
    angle = long_axis(feature) if feature.angle is None else feature.angle
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    anchor = feature.rings[0][0]
    corners = (shapely.get_coordinates(seen) - anchor) @ turn
    low, high = np.floor(corners.min(axis=0) / step), np.ceil(corners.max(axis=0) / step)
    u, v = (
        g.ravel() for g in np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij")
    )
    points = np.stack([u * step[0], v * step[1]], axis=1) @ turn.T + anchor
    inside = shapely.contains_xy(shape, points[:, 0], points[:, 1])
    u, v = u[inside].astype(np.int64), v[inside].astype(np.int64)
    return points[inside], position_random(u, v, feature.seed + salt), u, angle


def boxes(points: np.ndarray, length: float | np.ndarray, width: float | np.ndarray, angle: float) -> np.ndarray:
    """Corners (n, 4, 2) of rectangles around `points`, `length` along `angle`."""
    u, v = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    along = np.broadcast_to(length, len(points))[:, None] / 2 * u
    across = np.broadcast_to(width, len(points))[:, None] / 2 * v
    return np.stack([points - along - across, points + along - across, points + along + across,
                     points - along + across], axis=1)  # fmt: skip


def draw_boxes(canvas: Canvas, shapes: np.ndarray, colours: np.ndarray | tuple, height: float | None = None) -> None:
    """Rectangles (n, 4, 2), metres, in one or n colours; `height` gives them a shadow."""
    tones = np.broadcast_to(colours, (len(shapes), 3)).astype(np.float64)
    for shape, tone in zip(canvas.pixels(shapes), tones.tolist(), strict=True):
        cv2.fillConvexPoly(canvas.image, shape, tone, cv2.LINE_AA, 4)
        if height is not None:
            cv2.fillConvexPoly(canvas.height, shape, height, cv2.LINE_8, 4)


def long_axis(feature: Feature) -> float:
    """Direction of a polygon's longer side, radians."""
    corners = shapely.get_coordinates(feature.geometry.minimum_rotated_rectangle)[:3]
    if len(corners) < 3:
        return 0.0
    sides = np.diff(corners, axis=0)
    x, y = sides[np.hypot(sides[:, 0], sides[:, 1]).argmax()]
    return math.atan2(y, x)


def mixed(tone: tuple | np.ndarray, other: tuple | np.ndarray, share: float) -> np.ndarray:
    """A colour between two: `share` of the other."""
    return np.asarray(tone) * (1 - share) + np.asarray(other) * share


def draw_rows(canvas: Canvas, feature: Feature, *waves: tuple[float, float]) -> None:
    """Brightness in rows along the feature: (metres apart, share of brightness) each."""
    mask, (rows, columns) = canvas.mask(feature.rings)
    if not mask.any():
        return
    angle = long_axis(feature) if feature.angle is None else feature.angle
    x, y = canvas.world(rows, columns)
    across = y * math.cos(angle) - x * math.sin(angle)
    tone = np.zeros_like(across)
    for apart, amount in waves:
        tone += amount * np.sin(across * (2 * math.pi / apart))
    part = canvas.image[rows, columns]
    part[mask] = np.clip(part[mask] * (1 + tone[mask][:, None]), 0, 255)


def draw_crown(canvas: Canvas, x: float, y: float, radius: float, colour: np.ndarray, tall: float) -> None:
    """A tree: `radius` and height `tall` in metres."""
    at = ((x - canvas.west) * canvas.scale, (canvas.north - y) * canvas.scale)
    crown(canvas.image, canvas.height, at, radius * canvas.scale, colour, tall, canvas.sun)


def inner_box(feature: Feature, share: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Middle, both axes and both half lengths of the rectangle around a polygon, scaled by `share`."""
    corners = shapely.get_coordinates(feature.geometry.minimum_rotated_rectangle)
    a, b = corners[1] - corners[0], corners[2] - corners[1]
    a, b = (a, b) if np.hypot(*a) >= np.hypot(*b) else (b, a)
    long, short = float(np.hypot(*a)), float(np.hypot(*b))
    return corners[:4].mean(axis=0), a / max(long, 1e-6), b / max(short, 1e-6), long / 2 * share, short / 2 * share


def box_corners(middle: np.ndarray, a: np.ndarray, b: np.ndarray, long: float, short: float) -> np.ndarray:
    """Corners (4, 2) of a rectangle: middle, unit axes, half lengths."""
    return np.array([middle - a * long - b * short, middle + a * long - b * short, middle + a * long + b * short,
                     middle - a * long + b * short])  # fmt: skip
