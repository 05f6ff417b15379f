"""How a scene is told: true sentences of many forms, and longer texts made of them."""

import numpy as np

from m3ae_scale.data.scenes.scene import EVERYTHING, Group, Palette, Scene, draw_scene, pick

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
PLURALS = {"cross": "crosses"}
VAGUE = ("thing", "object", "figure")
PATTERNS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
ARRANGED = {
    "row": ("in a row", "side by side", "next to each other"),
    "column": ("one above the other", "in a column", "stacked from top to bottom"),
    "scattered": ("scattered about", "spread over the picture", "far apart"),
}
RELATED = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "higher up than"),
    "below": ("below", "underneath"),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
BEHIND = {
    "white": ("on a white background", "against plain white"),
    "cream": ("on a cream background", "on a cream coloured sheet"),
    "dark": ("on a dark background", "on a dark sheet"),
    "grass": ("on green grass", "in a meadow", "on a lawn"),
    "sand": ("on yellow sand", "at the beach", "on the sand"),
    "night": ("in a starry night sky", "under the night sky"),
    "clouds": ("in a cloudy blue sky", "among white clouds"),
    "bricks": ("in front of a brick wall", "on a wall of red bricks"),
    "wood": ("on a wooden table", "on brown wooden boards"),
    "water": ("on blue water", "on the waves of the sea"),
    "tiles": ("on a tiled floor", "on grey tiles"),
    "paper": ("on lined paper", "on a page of a notebook"),
}
OPENINGS = (
    "",
    "",
    "there is",
    "we see",
    "the picture shows",
    "a picture of",
    "this image has",
    "you can see",
    "look at",
)
CONNECTIONS = ("", "", "", "then", "next", "after that", "on the next page", "in another picture", "later", "now")
# Sentences of a longer text: mostly few, now and then about as many as 256 word pieces hold.
LENGTHS = (1, 1, 2, 2, 3, 3, 4, 6, 9, 13, 18)


def describe(scene: Scene, rng: np.random.Generator, vague: float = 0.0) -> str:
    """Return one true sentence about `scene`, of about 8 to 20 words, in lower case without a full stop.

    vague: chance that a group is told as "things", without its shape and colour.
    """
    behind = pick(rng, BEHIND[scene.background])
    if len(scene.groups) == 1:
        group = scene.groups[0]
        where = _place(scene.place, rng) if group.arrangement is None else pick(rng, ARRANGED[group.arrangement])
        what = f"{_things(group, rng, vague)} {where}"
    else:
        what = _related(scene, rng, vague)
    opening = pick(rng, OPENINGS)
    if opening == "there is" and len(scene.groups[0].spots) > 1:
        opening = "there are"
    told = f"{opening} {what}".strip()
    return (
        f"{behind} {told}"
        if opening in ("there is", "there are", "we see", "you can see") and rng.random() < 0.4
        else (f"{told} {behind}")
    )


def tell(rng: np.random.Generator, palette: Palette = EVERYTHING, vague: float = 0.0) -> str:
    """Return a text without a picture: one to eighteen sentences, each about a scene of its own."""
    sentences = []
    for i in range(pick(rng, LENGTHS)):
        sentence = describe(draw_scene(rng, palette), rng, vague)
        connection = pick(rng, CONNECTIONS) if i else ""
        sentence = f"{connection}, {sentence}" if connection else sentence
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return " ".join(sentences)


def _related(scene: Scene, rng: np.random.Generator, vague: float) -> str:
    """Both groups, told from the one or the other."""
    first, second = scene.groups
    relation = scene.relation or ""
    if rng.random() < 0.5 and len(first.spots) == 1:
        first, second, relation = second, first, OPPOSITE[relation]
    row = f" {pick(rng, ARRANGED['row'])}" if first.arrangement == "row" and rng.random() < 0.5 else ""
    return f"{_things(first, rng, vague)}{row} {pick(rng, RELATED[relation])} {_things(second, rng, vague)}"


def _things(group: Group, rng: np.random.Generator, vague: float) -> str:
    """A group as a noun phrase: "two small striped red stars", "a blue ring with dots"."""
    count = len(group.spots)
    noun, colour = group.shape, group.colour
    if vague and rng.random() < vague:
        noun, colour = pick(rng, VAGUE), ""
    noun = noun if count == 1 else PLURALS.get(noun, noun + "s")
    size = "" if group.size == "medium" else group.size
    before, after = "", ""
    if group.texture == "plain":
        before = "plain" if rng.random() < 0.15 else ""
    elif rng.random() < 0.6:
        before = group.texture
    else:
        after = f"with {PATTERNS[group.texture]}"
    words = [word for word in (size, before, colour, noun, after) if word]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article if count == 1 else NUMBERS[count], *words])


def _place(place: str | None, rng: np.random.Generator) -> str:
    """Where a lone thing is, such as "in the top left corner"."""
    row, _, column = (place or "").partition(" ")
    if place == "centre":
        return pick(rng, ("in the centre", "in the middle", "right in the middle"))
    if column:
        return pick(rng, (f"in the {row} {column} corner", f"at the {row} {column}"))
    if row in ("top", "bottom"):
        return pick(rng, (f"at the {row}", f"near the {row} edge"))
    return pick(rng, (f"on the {row} side", f"at the {row}", f"near the {row} edge"))
