"""Reads an experiment: defaults <- YAML <- --set, each value with its origin, each mistake as one line."""

import difflib
import math
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from m3ae_scale.config.schema import Experiment
from m3ae_scale.errors import InputError

Origins = dict[str, str]  # "batch.global" -> "quickstart.yaml:12", "--set" or (when absent) the default


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-4 is a number, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """One key a line; a list of plain values, such as optimizer.betas, stays on its line."""


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.SequenceNode:
    plain = not any(isinstance(value, list | dict) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_Dumper.add_representer(list, _represent_list)
_NUMBER = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")  # YAML 1.1 wants 1.0e+4 in full
for _side in (_Loader, _Dumper):  # the writer quotes a text that the reader would take for a number
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> tuple[Experiment, Origins]:
    """Read the YAML at `path`, apply `overrides` ("a.b=value"), validate.

    Returns the experiment and where each given value came from.
    Raises InputError for a missing file, broken YAML, an unknown key or a value out of range.
    """
    path = Path(path)
    values, document = read_yaml(path, "the experiment", "sections such as model and data")
    origins = {key: f"{path.name}:{line}" for key, line in _lines(document)}
    for override in overrides or []:
        key = _apply(values, override)
        origins = {k: v for k, v in origins.items() if k != key and not k.startswith(key + ".")}
        origins[key] = "--set"
    try:
        return Experiment.model_validate(values), origins
    except ValidationError as error:
        raise InputError(_explain(error, path, origins)) from None


def read_yaml(path: Path, what: str, expected: str) -> tuple[dict[str, Any], yaml.Node | None]:
    """Read a YAML file that is `what`; returns its values and where they stand.

    Raises InputError for a missing file, broken YAML, or no mapping: `expected` says what should be in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read {what} ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no text; give the path of a YAML file") from None
    try:
        document = yaml.compose(text, _Loader)
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{path}{_yaml_mistake(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: found {_kind(values)}, expected {expected}")
    return values, document


def save_experiment(experiment: Experiment, path: str | Path) -> None:
    """Write the resolved experiment, every default spelled out, so that it loads again as it is."""
    Path(path).write_text(_dump(experiment), encoding="utf-8")


def annotated(experiment: Experiment, origins: Origins) -> str:
    """Write the resolved experiment as YAML, each line with where its value came from as a comment."""
    lines = _dump(experiment).splitlines()
    places = {line: key for key, line in _lines(yaml.compose("\n".join(lines), _Loader))}
    width = min(60, max(len(line) for line in lines))
    commented = []
    for number, line in enumerate(lines, start=1):
        header = line.endswith(":") or number not in places
        commented.append(line if header else f"{line:<{width}}  # {_source(places[number], origins)}")
    return "\n".join(commented) + "\n"


def nearest(word: str, choices: list[str]) -> str:
    """Return '; did you mean "..."?' for the choice most like `word`, or all choices when none is close."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f'; did you mean "{close[0]}"?' if close else f"; expected one of: {', '.join(choices)}"


def as_yaml(value: Any, flow: bool = False) -> str:
    """Write plain values as YAML that read_yaml reads back as they are, texts that look like numbers among them.

    flow: all on one line, {a: 1, b: [2, 3]}, without an end of line.
    """
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=flow
    )
    return text.removesuffix("...\n").strip() if flow else text


def _dump(experiment: Experiment) -> str:
    return as_yaml(experiment.model_dump(mode="json", by_alias=True))


def _source(key: str, origins: Origins) -> str:
    if key in origins:
        return origins[key]
    if key.startswith(("model.encoder.", "model.decoder.")) and "model.size" in origins:
        return f"{origins['model.size']}, from the size"
    sections = [key[:dot] for dot in range(len(key)) if key[dot] == "."]
    return "--set" if any(origins.get(section) == "--set" for section in sections) else "default"


def _yaml_mistake(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f":{error.problem_mark.line + 1}: not valid YAML: {error.problem}"
    return f": not valid YAML: {' '.join(str(error).split())}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _apply(values: dict[str, Any], override: str) -> str:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set {override}: expected KEY=VALUE, as in --set batch.global=256")
    *parents, last = key.split(".")
    node: Any = values
    for parent in parents:
        if isinstance(node, list) and parent.isdigit() and int(parent) < len(node):
            node = node[int(parent)]
            continue
        if not isinstance(node, dict):
            raise InputError(f"--set {key}: {parent!r} is not a section")
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
    try:
        value = yaml.load(text, _Loader) if text.strip() else None
    except yaml.YAMLError as error:
        raise InputError(f"--set {key}={text}{_yaml_mistake(error)}; quote it as YAML wants it") from None
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise InputError(f"--set {key}: there is no such place in the experiment")
    return key


def _lines(node: yaml.Node | None, prefix: str = "") -> list[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), key.start_mark.line + 1, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(str(i), value.start_mark.line + 1, value) for i, value in enumerate(node.value)]
    else:
        return []
    found = []
    for name, line, value in pairs:
        key = f"{prefix}.{name}" if prefix else name
        found += [(key, line), *_lines(value, key)]
    return found


def _explain(error: ValidationError, path: Path, origins: Origins) -> str:
    # A misspelt key is also a missing one: the misspelling is what helps.
    first = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"] if part not in ("str", "list[str]")]
    key = ".".join(location)
    where = _origin(key, path, origins)
    if first["type"] == "extra_forbidden":
        hint = nearest(location[-1], _keys_at(location[:-1]))
        return f'{where}: unknown key "{key}"{hint}'
    if first["type"] == "missing":
        return f'{where}: missing key "{key}"; add it'
    message = first["msg"].removeprefix("Value error, ")
    field, colon, rest = message.partition(": ")
    if colon and field in _keys_at(location):  # the check of a section, which names the key it is about
        key, message = ".".join((*location, field)), rest
        where = _origin(key, path, origins)
    shown = "" if isinstance(first["input"], dict | BaseModel) else f"found {first['input']!r}: "
    return f"{where}: {key}: {shown}{message}" if key else f"{where}: {message}"


def _origin(key: str, path: Path, origins: Origins) -> str:
    """Where `key` was given, or something inside it, or else what it is inside of."""
    while key:
        origin = origins.get(key) or next((o for k, o in origins.items() if k.startswith(f"{key}.")), None)
        if origin is not None:
            return origin if origin == "--set" else str(path.with_name(origin))
        key = key.rpartition(".")[0]
    return str(path)


def _keys_at(location: list[str]) -> list[str]:
    """Return the keys of the section at `location`; none where a plain value stands."""
    model: Any = Experiment
    for name in location:
        if model is not None and not name.isdigit():
            fields = {(f.alias or n): f for n, f in model.model_fields.items()}
            model = _section_in(fields[name].annotation) if name in fields else None
    return [(f.alias or n) for n, f in model.model_fields.items()] if model is not None else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation such as list[SourceConfig] speaks of, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_in(inner)) is not None), None)
