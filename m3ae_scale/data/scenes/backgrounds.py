"""What lies behind the things of a scene. Lengths are shares of the shorter side: it looks alike at any size."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float32]  # (rows, cols)
Picture = NDArray[np.float32]  # (rows, cols, 3), 0..1
Colour = tuple[float, float, float]


def background(name: str, width: int, height: int, rng: np.random.Generator) -> Picture:
    """Return the background `name` of scene.BACKGROUNDS as (height, width, 3), a little darker in the corners."""
    rows, cols = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    side = min(width, height)
    picture = PAINTERS[name](cols / side, rows / side, side, rng)
    corner = (cols / width - 0.5) ** 2 + (rows / height - 0.5) ** 2
    result: Picture = picture * (1 - 0.2 * corner)[:, :, None]
    return result


def edge(value: Plane, pixels: float) -> Plane:
    """1 where `value` is positive, 0 where it is negative, a pixel's width of both between; `pixels` per unit."""
    result: Plane = (0.5 + value * pixels).clip(0, 1)
    return result


def blend(one: NDArray[np.float32] | Colour, other: NDArray[np.float32] | Colour, share: Plane) -> Picture:
    """Mix two colours, or pictures: `share` of the second at each point."""
    a, b = np.asarray(one, np.float32), np.asarray(other, np.float32)
    result: Picture = a + (b - a) * share[:, :, None]
    return result


def _noise(shape: tuple[int, ...], rows: float, cols: float, rng: np.random.Generator) -> Plane:
    """Smooth noise of variance about 1, with `rows` x `cols` independent cells over the picture."""
    cells = rng.standard_normal((max(2, round(rows)), max(2, round(cols))), dtype=np.float32)
    return np.asarray(Image.fromarray(cells).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _flat(x: Plane, y: Plane, side: int, rng: np.random.Generator, colour: Colour) -> Picture:
    return blend(colour, (1.0, 1.0, 1.0), 0.02 * _noise(x.shape, 3, 3, rng))


def _grass(x: Plane, y: Plane, side: int, rng: np.random.Generator) -> Picture:
    blades = _noise(x.shape, 9 * y.max(), 45 * x.max(), rng)
    meadow = _noise(x.shape, 3, 3, rng)
    return blend((0.24, 0.50, 0.17), (0.56, 0.76, 0.30), (0.45 + 0.17 * blades + 0.12 * meadow).clip(0, 1))


def _sand(x: Plane, y: Plane, side: int, rng: np.random.Generator) -> Picture:
    ripples = np.sin(38 * y + 2.2 * _noise(x.shape, 3, 3, rng))
    grains = rng.standard_normal(x.shape, dtype=np.float32)
    return blend((0.80, 0.66, 0.42), (0.96, 0.87, 0.66), (0.55 + 0.14 * ripples + 0.08 * grains).clip(0, 1))


def _night(x: Plane, y: Plane, side: int, rng: np.random.Generator) -> Picture:
    sky = blend((0.02, 0.03, 0.11), (0.13, 0.13, 0.33), y / y.max())
    for _ in range(int(30 * x.max() * y.max())):
        sx, sy, size, light = (float(value) for value in rng.random(4))
        away = ((x - sx * x.max()) ** 2 + (y - sy * y.max()) ** 2) / (0.004 + 0.006 * size) ** 2
        sky += (0.35 + 0.65 * light) * np.exp(-away)[:, :, None]
    return sky.clip(0, 1)


def _clouds(x: Plane, y: Plane, side: int, rng: np.random.Generator) -> Picture:
    sky = blend((0.36, 0.63, 0.93), (0.73, 0.87, 0.98), y / y.max())
    puffs = _noise(x.shape, 4, 4, rng) + 0.4 * _noise(x.shape, 9, 9, rng)
    return blend(sky, (0.98, 0.98, 0.99), (0.55 * puffs - 0.1).clip(0, 0.9))


def _bricks(x: Plane, y: Plane, side: int, rng: np.random.Generator) -> Picture:
    course = np.floor(y * 8).astype(int)
    along = x * 4 + 0.5 * (course % 2)
    tone = rng.random((course.max() + 1, int(along.max()) + 1), dtype=np.float32)[course, along.astype(int)]
    rough = 0.06 * rng.standard_normal(x.shape, dtype=np.float32)
    brick = blend((0.58, 0.25, 0.19), (0.76, 0.40, 0.30), (tone + rough).clip(0, 1))
    joint = np.minimum((0.5 - np.abs(along % 1 - 0.5)) / 4, (0.5 - np.abs((y * 8) % 1 - 0.5)) / 8)
    return blend((0.80, 0.77, 0.72), brick, edge(joint - 0.008, side))


def _wood(x: Plane, y: Plane, side: int, rng: np.random.Generator) -> Picture:
    plank = np.floor(y * 4.5).astype(int)
    tone = rng.random(plank.max() + 1, dtype=np.float32)[plank]
    grain = np.sin(90 * y + 3.0 * _noise(x.shape, 6 * y.max(), 3, rng) + 7 * tone)
    board = blend((0.52, 0.34, 0.19), (0.78, 0.57, 0.36), (0.25 + 0.5 * tone + 0.13 * grain).clip(0, 1))
    gap = (0.5 - np.abs((y * 4.5) % 1 - 0.5)) / 4.5
    return blend((0.27, 0.17, 0.10), board, edge(gap - 0.005, side))


def _water(x: Plane, y: Plane, side: int, rng: np.random.Generator) -> Picture:
    swell = np.sin(34 * (y + 0.022 * np.sin(11 * x + 6.3 * float(rng.random()))) + 0.8 * _noise(x.shape, 4, 4, rng))
    return blend((0.09, 0.36, 0.62), (0.45, 0.74, 0.90), (0.38 + 0.26 * swell).clip(0, 1))


def _tiles(x: Plane, y: Plane, side: int, rng: np.random.Generator) -> Picture:
    odd = ((np.floor(x * 5) + np.floor(y * 5)) % 2).astype(np.float32)
    tile = blend((0.86, 0.86, 0.87), (0.66, 0.68, 0.71), odd)
    joint = np.minimum(0.5 - np.abs((x * 5) % 1 - 0.5), 0.5 - np.abs((y * 5) % 1 - 0.5)) / 5
    return blend((0.47, 0.48, 0.50), tile, edge(joint - 0.004, side))


def _paper(x: Plane, y: Plane, side: int, rng: np.random.Generator) -> Picture:
    lines = edge(0.007 - np.abs((y + 0.05) % 0.11 - 0.055), side)
    sheet = blend((0.985, 0.98, 0.94), (0.62, 0.74, 0.90), lines)
    return blend(sheet, (0.90, 0.45, 0.45), edge(0.008 - np.abs(x - 0.12), side))


PAINTERS: dict[str, Callable[[Plane, Plane, int, np.random.Generator], Picture]] = {
    "white": partial(_flat, colour=(0.95, 0.95, 0.95)),
    "cream": partial(_flat, colour=(0.97, 0.92, 0.80)),
    "dark": partial(_flat, colour=(0.20, 0.21, 0.24)),
    "grass": _grass,
    "sand": _sand,
    "night": _night,
    "clouds": _clouds,
    "bricks": _bricks,
    "wood": _wood,
    "water": _water,
    "tiles": _tiles,
    "paper": _paper,
}
