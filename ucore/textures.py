"""Periodic textures of the ground: noise of every scale, and tree crowns seen from above."""

from functools import lru_cache

import numpy as np

SIDE = 512  # pixels; textures repeat after it


@lru_cache(maxsize=16)
def noise(seed: int, roughness: float) -> np.ndarray:
    """float32 (SIDE, SIDE), periodic, mean 0, standard deviation 1: amplitudes fall as frequency ** -`roughness`.

    0 is white noise; 1 has structure of every size; 2 is smooth hills.
    """
    spectrum = np.fft.rfft2(np.random.default_rng(seed).standard_normal((SIDE, SIDE)))
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    frequency = np.maximum(np.hypot(fy, fx), 1 / SIDE)
    field = np.fft.irfft2(spectrum * frequency**-roughness, s=(SIDE, SIDE))
    field -= field.mean()
    return np.clip(field / field.std(), -2.5, 2.5).astype(np.float32)


def window(texture: np.ndarray, left: int, top: int, width: int, height: int) -> np.ndarray:
    """The piece of a periodic `texture` that starts at pixel (left, top) of the world."""
    columns = np.arange(left, left + width) % SIDE
    rows = np.arange(top, top + height) % SIDE
    return texture[rows[:, None], columns[None]]


@lru_cache(maxsize=16)
def canopy(
    colour: tuple[int, int, int], radius: float, conifers: float, sun: tuple[float, float], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Closed forest: RGB uint8 (SIDE, SIDE, 3) and height float32 (SIDE, SIDE) in 0..1, both periodic.

    radius: mean of a crown, pixels. conifers: share of dark narrow crowns. sun: unit vector to the light, pixels.
    """

    rng = np.random.default_rng(seed)
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[:] = [level * 0.55 for level in colour]
    height = np.zeros((SIDE, SIDE), np.float32)
    count = int(1.5 * SIDE**2 / (np.pi * max(radius, 1.5) ** 2))
    for x, y in rng.uniform(0, SIDE, (count, 2)):
        dark = rng.random() < conifers
        size = max(1.5, radius * rng.uniform(0.6, 1.25) * (0.75 if dark else 1.0))
        tone = np.array(colour) * rng.uniform(0.78, 1.2) * (0.72 if dark else 1.0)
        tall = float(rng.uniform(0.6, 1.0))
        for dx in (-SIDE, 0, SIDE):
            for dy in (-SIDE, 0, SIDE):
                if -size < x + dx < SIDE + size and -size < y + dy < SIDE + size:
                    crown(image, height, (x + dx, y + dy), size, tone, tall, sun)
    return image, height


def crown(
    image: np.ndarray,
    height: np.ndarray,
    centre: tuple[float, float],
    radius: float,
    colour: np.ndarray,
    tall: float,
    sun: tuple[float, float],
) -> None:
    """Draw one tree crown into `image` and its dome into `height`; pixels throughout."""
    import cv2

    for share, brightness, shift in ((1.0, 0.68, 0.0), (0.78, 0.95, 0.16), (0.42, 1.25, 0.34)):
        x, y = centre[0] + sun[0] * radius * shift, centre[1] + sun[1] * radius * shift
        at, wide = (round(x * 16), round(y * 16)), max(8, round(radius * share * 16))
        tone = np.clip(colour * brightness, 0, 255)
        cv2.circle(image, at, wide, tone.tolist(), -1, cv2.LINE_AA, 4)
    at = (round(centre[0] * 16), round(centre[1] * 16))
    for share, level in ((1.0, 0.7 * tall), (0.6, tall)):
        cv2.circle(height, at, max(8, round(radius * share * 16)), level, -1, cv2.LINE_8, 4)
