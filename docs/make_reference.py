"""Writes docs/reference/ from the code: every verb's help, and every key of an experiment with its meaning."""

import ast
import inspect
from pathlib import Path
from typing import get_args

import click
from pydantic import BaseModel

from m3ae_scale.cli.main import cli
from m3ae_scale.config import Experiment, schema

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by `make docs` from the code; edit there. -->\n\n"


def main() -> None:
    """Write both pages."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "cli.md").write_text(NOTE + "# The command line\n" + "".join(verbs(cli, "m3ae-scale", None)))
    (FOLDER / "config.md").write_text(NOTE + "# The experiment, key by key\n" + "".join(sections(Experiment, "")))


def verbs(command: click.Command, name: str, parent: click.Context | None) -> list[str]:
    """Return the help of `command` and of all below it."""
    context = click.Context(command, info_name=name.rpartition(" ")[2], parent=parent, max_content_width=100)
    pages = [f"\n## {name}\n\n```\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            below = command.get_command(context, verb)
            assert below is not None
            pages += verbs(below, f"{name} {verb}", context)
    return pages


def sections(model: type[BaseModel], prefix: str) -> list[str]:
    """Return a table of the keys of `model`, and those of the sections in it."""
    title = f"`{prefix.rstrip('.')}`" if prefix else "Top level"
    meanings = comments(model)
    page = [f"\n## {title}\n\n{inspect.getdoc(model)}\n\n| key | default | meaning |\n|---|---|---|\n"]
    below = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        section = section_in(field.annotation)
        if section is not None and section is not schema.Span:
            below += sections(section, f"{prefix}{key}.")
            page.append(f"| `{key}` | | see below |\n")
            continue
        default = "required" if field.is_required() else f"`{shown(field.default)}`"
        page.append(f"| `{key}` | {default} | {meanings.get(name, '')} |\n")
    return page + below


def comments(model: type[BaseModel]) -> dict[str, str]:
    """Return the comment beside each key in the source, and those in the lines above it."""
    lines = inspect.getsource(model).splitlines()
    found = {}
    for node in ast.parse("\n".join(lines)).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno - 1
            while lines[first - 1].strip().startswith("#"):
                first -= 1
            above = [line.strip(" #") for line in lines[first : node.lineno - 1]]
            beside = lines[node.end_lineno - 1][node.end_col_offset :].strip(" #")
            found[node.target.id] = " ".join([*above, beside]).strip().replace("|", "\\|")
    return found


def section_in(annotation: object) -> type[BaseModel] | None:
    """Return the section that an annotation speaks of, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := section_in(inner)) is not None), None)


def shown(value: object) -> object:
    """Return a default as YAML would show it."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    return {None: "null", True: "true", False: "false"}.get(value, value) if isinstance(value, bool | None) else value


if __name__ == "__main__":
    main()
