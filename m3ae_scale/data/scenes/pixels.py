"""How a scene looks: cut paper on a background, antialiased by each shape's signed distance to its edge."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from m3ae_scale.data.scenes.backgrounds import Picture, Plane, background, blend, edge
from m3ae_scale.data.scenes.scene import Group, Scene, Spot

RGB = {
    "red": (0.84, 0.15, 0.16),
    "orange": (0.97, 0.52, 0.10),
    "yellow": (0.99, 0.83, 0.16),
    "green": (0.18, 0.62, 0.28),
    "turquoise": (0.13, 0.73, 0.72),
    "blue": (0.16, 0.37, 0.82),
    "purple": (0.51, 0.25, 0.67),
    "pink": (0.96, 0.50, 0.70),
    "brown": (0.46, 0.29, 0.17),
    "black": (0.11, 0.11, 0.13),
    "grey": (0.54, 0.55, 0.57),
    "white": (0.97, 0.97, 0.96),
}


def render(scene: Scene, width: int, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the scene as (height, width, 3) RGB."""
    picture = background(scene.background, width, height, rng)
    for group in scene.groups:
        for spot in group.spots:
            _lay(picture, group, spot, rng)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    return ((picture + 0.006 * grain).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _lay(picture: Picture, group: Group, spot: Spot, rng: np.random.Generator) -> None:
    """Draw one thing, with its shadow, into the part of the picture that it covers."""
    height, width = picture.shape[:2]
    radius = spot.radius * min(width, height)
    x, y = spot.x * width, spot.y * height
    drop = max(1, round(0.13 * radius))  # pixels that the shadow falls to the right and down
    reach = 1.1 * radius + 2 * drop + 2
    left, right = max(0, int(x - reach)), min(width, int(x + reach) + 1)
    top, bottom = max(0, int(y - reach)), min(height, int(y + reach) + 1)
    rows, cols = np.mgrid[top:bottom, left:right].astype(np.float32) + 0.5
    c, s = math.cos(spot.turn) / radius, math.sin(spot.turn) / radius
    u, v = (cols - x) * c + (rows - y) * s, (rows - y) * c - (cols - x) * s
    distance = DISTANCE[group.shape](u, v) * radius  # pixels, negative inside

    part = picture[top:bottom, left:right]
    shadow = np.zeros_like(distance)
    shadow[drop:, drop:] = (0.5 - distance[:-drop, :-drop] / (2 * drop)).clip(0, 1)
    part *= 1 - 0.38 * shadow[:, :, None]
    colour = np.array(RGB[group.colour], np.float32) * (0.95 + 0.08 * rng.random(dtype=np.float32))
    body = blend(colour, _second_tone(colour), _texture(group.texture, u, v, radius))
    light = 1 - 0.09 * (u + v) - 0.22 * (1 + distance / (0.09 * radius)).clip(0, 1)  # from the top left; darker rim
    cover = (0.5 - distance).clip(0, 1)[:, :, None]
    part += cover * ((body * light[:, :, None]).clip(0, 1) - part)


def _second_tone(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """The colour of stripes, dots and checks: the same hue, lighter, or darker for a colour that is light already."""
    return colour * 0.62 if colour.mean() > 0.6 else colour + 0.62 * (1 - colour)


def _texture(name: str, u: Plane, v: Plane, radius: float) -> Plane:
    """The share of the second tone at each point; (u, v) in radii of the thing."""
    if name == "plain":
        return np.zeros_like(u)
    if name == "striped":
        return edge(np.cos(u * 7.5), radius / 7.5)
    if name == "checkered":
        return edge(np.sin(u * 6) * np.sin(v * 6), radius / 6)
    across, down = np.abs((u / 0.46) % 1 - 0.5), np.abs((v / 0.46) % 1 - 0.5)  # dotted
    return edge(0.3 - _length(across, down), radius * 0.46)


# Shapes: the signed distance of (u, v) to the edge of a shape of radius about 1; v points down.


def _length(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v)


def _polygon(*corners: tuple[float, float], rounding: float = 0.05) -> Callable[[Plane, Plane], Plane]:
    edges = list(zip(corners, corners[1:] + corners[:1], strict=True))

    def distance(u: Plane, v: Plane) -> Plane:
        nearest = np.full_like(u, np.inf)
        inside = np.zeros(u.shape, dtype=bool)
        for (ax, ay), (bx, by) in edges:
            ex, ey = bx - ax, by - ay
            along = (((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey)).clip(0, 1)
            nearest = np.minimum(nearest, (u - ax - along * ex) ** 2 + (v - ay - along * ey) ** 2)
            if ey != 0:  # a ray to the right crosses this edge: outside becomes inside
                inside ^= ((ay > v) != (by > v)) & (u < ax + (v - ay) * (ex / ey))
        result: Plane = np.where(inside, -1, 1) * np.sqrt(nearest) - np.float32(rounding)
        return result

    return distance


def _ring_of(corners: int, radius: float, start: float = -90) -> list[tuple[float, float]]:
    angles = [math.radians(start + 360 * i / corners) for i in range(corners)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    pairs = zip(_ring_of(points, 1.0), _ring_of(points, inner, -90 + 180 / points), strict=True)
    return [corner for pair in pairs for corner in pair]


def _heart() -> Callable[[Plane, Plane], Plane]:
    """Two discs and the kite that is tangent to both."""
    x, y, r, tip = 0.44, -0.28, 0.50, 0.92
    reach, slant = math.hypot(x, tip - y), math.atan2(x, tip - y)
    spread = slant + math.asin(r / reach)
    length = math.sqrt(reach * reach - r * r)
    tx, ty = length * math.sin(spread), tip - length * math.cos(spread)
    kite = _polygon((0, tip), (tx, ty), (x, y), (-x, y), (-tx, ty), rounding=0.0)

    def distance(u: Plane, v: Plane) -> Plane:
        right: Plane = np.abs(u)  # the left half mirrors it
        result: Plane = np.minimum(_length(right - x, v - y) - r, kite(u, v))
        return result

    return distance


_ARM = 0.32
_CROSS = [(_ARM, -0.9), (_ARM, -_ARM), (0.9, -_ARM), (0.9, _ARM), (_ARM, _ARM), (_ARM, 0.9)]

DISTANCE: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": lambda u, v: _length(u, v) - 0.9,
    "square": _polygon((-0.74, -0.74), (0.74, -0.74), (0.74, 0.74), (-0.74, 0.74)),
    "triangle": _polygon(*((x, y + 0.14) for x, y in _ring_of(3, 1.0))),
    "diamond": _polygon((0, -1), (0.66, 0), (0, 1), (-0.66, 0)),
    "hexagon": _polygon(*_ring_of(6, 0.9, 0)),
    "star": _polygon(*_star(5, 0.45)),
    "cross": _polygon(*_CROSS, *((-x, -y) for x, y in _CROSS)),
    "ring": lambda u, v: np.abs(_length(u, v) - 0.7) - 0.25,
    "heart": _heart(),
    "crescent": lambda u, v: np.maximum(_length(u, v) - 0.95, 0.78 - _length(u - 0.42, v + 0.12)),
}
