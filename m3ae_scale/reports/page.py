"""The page of an evaluation: title, figures, then sections of charts, pictures and tables; one file by itself."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Section:
    """One headed part of a page: whatever of text, charts, pictures and a table it has, in this order."""

    title: str
    text: str = ""
    charts: Sequence[tuple[str, str]] = ()  # (title, svg)
    pictures: Sequence[tuple[str, str]] = ()  # (title, data URL: see picture_url)
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()  # cells as they are shown
    note: str = ""
    wide: bool = False  # one chart a row
    kind: Literal["", "measured", "fitted", "projected"] = ""  # said beside the title, and by its looks


@dataclass(frozen=True)
class Page:
    """Everything on a page."""

    title: str
    lead: str
    tiles: Sequence[tuple[str, str, str]] = ()  # (name, figure, what it is compared with)
    sections: Sequence[Section] = ()
    facts: Sequence[tuple[str, str]] = field(default_factory=list)


def write_page(page: Page, path: Path) -> None:
    """Write `page` as one HTML file without external references, light or dark as the reader has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render("page.html.j2", page=page), encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """Fill in one of this room's templates; a value that is missing raises."""
    environment = Environment(
        loader=PackageLoader("m3ae_scale.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def picture_url(png: bytes) -> str:
    """Return a PNG as a URL that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def facts_of(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what ran, one fact a line, from whatever a provenance holds."""
    facts: list[tuple[str, str]] = []
    for key, value in provenance.items():
        if value is None or value == {}:
            continue
        if key == "git":
            value = f"{value['commit']}{' with local changes' if value.get('dirty') else ''}"
        elif key == "hardware":
            value = _hardware(value)
        elif isinstance(value, dict):
            value = ", ".join(f"{name} {figure}" for name, figure in value.items() if figure is not None)
        facts.append((key.replace("_", " "), str(value)))
    return facts


def _hardware(hardware: Mapping[str, Any]) -> str:
    parts = [f"{hardware.get('cpu')}, {hardware.get('cores')} cores, {hardware.get('memory_gib')} GiB"]
    names = [f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in hardware.get("gpus", [])]
    parts += [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return "; ".join(parts)
