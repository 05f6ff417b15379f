"""What is in a scene: one or two groups of like things, where they are, and on which background."""

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "hexagon", "star", "cross", "ring", "heart", "crescent")
COLOURS = (
    *("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "brown", "black", "grey", "white"),
)
TEXTURES = ("plain", "striped", "dotted", "checkered")
RADII = {"small": (0.10, 0.115), "medium": (0.15, 0.165), "large": (0.22, 0.25)}  # share of the image's shorter side

# A background, and the colours that would be hard to see on it.
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "white": ("white",),
    "cream": ("white", "yellow"),
    "dark": ("black", "brown", "blue", "purple", "grey"),
    "grass": ("green", "turquoise"),
    "sand": ("yellow", "orange", "brown"),
    "night": ("black", "blue", "purple"),
    "clouds": ("white", "blue", "turquoise", "grey"),
    "bricks": ("red", "brown", "orange"),
    "wood": ("brown", "orange", "red"),
    "water": ("blue", "turquoise"),
    "tiles": ("grey", "white"),
    "paper": ("white", "grey"),
}
# Places of a single thing: (x, y) of its centre as shares of width and height.
PLACES = {
    f"{row} {column}".strip() or "centre": (x, y)
    for row, y in (("top", 0.27), ("", 0.5), ("bottom", 0.73))
    for column, x in (("left", 0.27), ("", 0.5), ("right", 0.73))
}
# What a scene is labelled with where classes are wanted that no caption names: a family of shapes in a tone of colours.
FAMILIES = {
    "round": ("circle", "ring", "heart", "crescent"),
    "straight": ("square", "triangle", "diamond", "hexagon"),
    "armed": ("star", "cross"),
}
TONES = {
    "warm": ("red", "orange", "yellow", "pink", "brown"),
    "cool": ("green", "turquoise", "blue", "purple"),
    "neutral": ("black", "grey", "white"),
}
RELATIONS = ("left of", "right of", "above", "below")
ARRANGEMENTS = ("row", "column", "scattered")


@dataclass(frozen=True)
class Spot:
    """Where one thing is: centre as shares of width and height, radius as a share of the shorter side, turn in rad."""

    x: float
    y: float
    radius: float
    turn: float


@dataclass(frozen=True)
class Group:
    """Things that are alike."""

    shape: str
    colour: str
    texture: str
    size: str
    spots: tuple[Spot, ...]
    arrangement: str | None  # one of ARRANGEMENTS; None: a single thing


@dataclass(frozen=True)
class Scene:
    """One or two groups; `relation` says where the first is as seen from the second, `place` where a lone thing is."""

    background: str
    groups: tuple[Group, ...]
    relation: str | None = None
    place: str | None = None

    def labels(self) -> dict[str, Any]:
        """Return the truth about the scene as JSON values; shape, colour, texture and size are the first group's."""
        first = self.groups[0]
        return {
            "background": self.background,
            "count": sum(len(group.spots) for group in self.groups),
            **{name: getattr(first, name) for name in ("shape", "colour", "texture", "size", "arrangement")},
            "place": self.place,
            "relation": self.relation,
            "objects": [
                {"shape": g.shape, "colour": g.colour, "texture": g.texture, "size": g.size, **_rounded(spot)}
                for g in self.groups
                for spot in g.spots
            ],
        }


@dataclass(frozen=True)
class Palette:
    """What scenes are drawn from."""

    shapes: tuple[str, ...] = SHAPES
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    one_kind: bool = False  # only scenes whose things are all alike: then the scene has one class
    one_large: bool = False  # only scenes of one large thing: what there is to see at 32 pixels


EVERYTHING = Palette()
# label -> its classes, in the order of their numbers
CLASSES = {
    "family": tuple(f"{family} {tone}" for family in FAMILIES for tone in TONES),
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "background": tuple(BACKGROUNDS),
}


def class_of(scene: Scene, label: str) -> str:
    """Return the class of `scene` under the `label`, a key of CLASSES; of two groups the first one counts."""
    first = scene.groups[0]
    if label == "family":
        family = next(name for name, shapes in FAMILIES.items() if first.shape in shapes)
        return f"{family} {next(name for name, colours in TONES.items() if first.colour in colours)}"
    return str(scene.background if label == "background" else getattr(first, label))


def draw_scene(rng: np.random.Generator, palette: Palette = EVERYTHING) -> Scene:
    """Draw a scene: a lone thing, two to four that are alike, two unlike, or a few alike and another."""
    shapes, background = palette.shapes, pick(rng, palette.backgrounds)
    layouts = ("lone", "alike") if palette.one_kind else ("lone", "lone", "alike", "alike", "two", "two", "several")
    layout = "lone" if palette.one_large else pick(rng, layouts)
    if layout == "lone":
        place = pick(rng, tuple(PLACES))
        size = "large" if palette.one_large else pick(rng, tuple(RADII))
        group = _group(rng, background, shapes, size, [_near(rng, *PLACES[place])])
        return Scene(background, (group,), place=place)
    if layout == "alike":
        return Scene(background, (_alike(rng, background, shapes),))
    relation = pick(rng, RELATIONS) if layout == "two" else pick(rng, ("above", "below"))
    here, there = _apart(rng, relation)
    if layout == "two":
        first = _group(rng, background, shapes, pick(rng, tuple(RADII)), [here])
    else:
        count = 2 + int(rng.random() * 2)
        first = _group(
            rng, background, shapes, "small", [((i + 1) / (count + 1), here[1]) for i in range(count)], "row"
        )
    second = _group(rng, background, shapes, pick(rng, ("small", "medium")), [there], other=first)
    return Scene(background, (first, second), relation=relation)


def _alike(rng: np.random.Generator, background: str, shapes: tuple[str, ...]) -> Group:
    """Two to four like things in a row, in a column, or scattered over the four quarters."""
    count = 2 + int(rng.random() * 3)
    arrangement = pick(rng, ARRANGEMENTS)
    if arrangement == "scattered":
        quarters = [(0.26, 0.26), (0.74, 0.74), (0.74, 0.26), (0.26, 0.74)]
        centres = [_near(rng, x, y, 0.05) for x, y in quarters[:count]]
        # Two or three quarters could pass for a slanted line or a corner: turn the pattern a quarter at random.
        turns = int(rng.random() * 4)
        for _ in range(turns):
            centres = [(1 - y, x) for x, y in centres]
        return _group(rng, background, shapes, pick(rng, ("small", "medium")), centres, arrangement)
    across = 0.35 + 0.3 * float(rng.random())
    steps = [(i + 0.5) / count if count > 2 else (0.27, 0.73)[i] for i in range(count)]
    centres = [(step, across) if arrangement == "row" else (across, step) for step in steps]
    return _group(
        rng, background, shapes, "small" if count == 4 else pick(rng, ("small", "medium")), centres, arrangement
    )


def _apart(rng: np.random.Generator, relation: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two centres, the first `relation` the second."""
    near, far = _near(rng, 0.26, 0.5), _near(rng, 0.74, 0.5)
    if relation in ("above", "below"):
        near, far = near[::-1], far[::-1]
    return (near, far) if relation in ("left of", "above") else (far, near)


def _group(
    rng: np.random.Generator,
    background: str,
    shapes: tuple[str, ...],
    size: str,
    centres: list[tuple[float, float]],
    arrangement: str | None = None,
    other: Group | None = None,
) -> Group:
    colours = [c for c in COLOURS if c not in BACKGROUNDS[background] and (other is None or c != other.colour)]
    low, high = RADII[size]
    radius = low + (high - low) * float(rng.random())
    edge = 0.95 * radius  # a turned shape ends before its radius

    def inside(place: float) -> float:
        return min(max(place, edge), 1 - edge)

    return Group(
        shape=pick(rng, [s for s in shapes if other is None or s != other.shape]),
        colour=pick(rng, colours),
        texture=pick(rng, ("plain", *TEXTURES)),
        size=size,
        spots=tuple(Spot(inside(x), inside(y), radius, 0.5 * float(rng.random()) - 0.25) for x, y in centres),
        arrangement=arrangement,
    )


def _near(rng: np.random.Generator, x: float, y: float, by: float = 0.025) -> tuple[float, float]:
    return x + by * (2 * float(rng.random()) - 1), y + by * (2 * float(rng.random()) - 1)


T = TypeVar("T")


def pick(rng: np.random.Generator, choices: tuple[T, ...] | list[T]) -> T:
    """Return one of `choices`, each equally likely."""
    return choices[int(rng.random() * len(choices))]


def _rounded(spot: Spot) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(spot).items()}
