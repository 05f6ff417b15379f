"""Draws a caption in which hidden words are told by colour and by mark."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

_TEXT, _LINE = 23, 38  # pixels: height of the type and of a line
INK, FAINT = (28, 30, 33), (108, 112, 118)
# Okabe-Ito's bluish green and vermilion, told apart by a mark as well: (chip, its ink, mark).
_RIGHT = ((214, 240, 230), (0, 97, 70), "✓")
_WRONG = ((253, 228, 214), (158, 62, 0), "✗")
_UNTOLD = ((232, 233, 235), FAINT, "")


@dataclass(frozen=True)
class Word:
    """One word piece of a caption ("##ing" continues the word before it)."""

    piece: str
    visible: bool  # to the encoder
    predicted: str | None = None  # by the decoder; None: not asked


def caption_strip(words: Sequence[Word], width: int) -> Image.Image:
    """Draw `words` on white, as many lines as `width` pixels make of them.

    A hidden word stands as a chip: a check mark and the word where the prediction is right, else a cross, the
    predicted word, and the true one in brackets.
    """
    return _strip(_lines(_units(words), width), width)


def legend_strip(width: int) -> Image.Image:
    """Draw what the chips mean."""
    chips = [_chip("right", _RIGHT), _Run("  ", INK), _chip("wrong", _WRONG), _Run(" (true word)", FAINT)]
    return _strip([[_Run("hidden words, as predicted:  ", FAINT), *chips]], width)


@lru_cache
def font() -> ImageFont.FreeTypeFont:
    """Return the type of every sheet: DejaVu Sans, which has the marks and most alphabets; matplotlib brings it."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), _TEXT)


def _strip(lines: "list[list[_Run]]", width: int) -> Image.Image:
    strip = Image.new("RGB", (width, max(1, len(lines) * _LINE)), "white")
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        x = 0
        for run in line:
            run.draw(draw, x, row * _LINE)
            x += run.width
    return strip


@dataclass(frozen=True)
class _Run:
    """Text of one colour, on a chip or on the page."""

    text: str
    ink: tuple[int, int, int]
    chip: tuple[int, int, int] | None = None

    @property
    def width(self) -> int:
        return round(font().getlength(self.text)) + (14 if self.chip else 0)

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
        if self.chip:
            draw.rounded_rectangle((x + 1, y + 1, x + self.width - 2, y + _LINE - 7), 6, self.chip)
            x += 7
        draw.text((x, y + 3), self.text, self.ink, font())


def _chip(text: str, kind: tuple[tuple[int, int, int], tuple[int, int, int], str]) -> _Run:
    background, ink, mark = kind
    return _Run(f"{mark} {text}".strip(), ink, background)


def _units(words: Sequence[Word]) -> list[list[_Run]]:
    """Turn word pieces into units that a line break may stand between; a continuing piece joins the word before."""
    units: list[list[_Run]] = []
    for word in words:
        goes_on = word.piece.startswith("##") and bool(units)
        piece = word.piece.removeprefix("##") if goes_on else word.piece
        if word.visible:
            runs = [_Run(piece, INK)]
        elif word.predicted is None:
            runs = [_chip(piece, _UNTOLD)]
        elif word.predicted == word.piece:
            runs = [_chip(piece, _RIGHT)]
        else:
            runs = [_chip(word.predicted, _WRONG), _Run(f" ({piece})\u2009", FAINT)]
        if goes_on:
            units[-1] += runs
        else:
            units.append(runs)
    return units


def _lines(units: list[list[_Run]], width: int) -> list[list[_Run]]:
    space = _Run(" ", INK)
    lines: list[list[_Run]] = []
    used = width + 1
    for unit in units:
        length = sum(run.width for run in unit)
        if used + space.width + length > width:
            lines.append([])
            used = 0
        elif lines[-1]:
            lines[-1].append(space)
            used += space.width
        lines[-1] += unit
        used += length
    return lines
