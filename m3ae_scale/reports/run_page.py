"""The page of one run: what ran, its curves, its reconstructions, where everything is and what to try next."""

import base64
import json
import math
import re
import shlex
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from m3ae_scale.reports.chart import Series, line_chart
from m3ae_scale.reports.page import facts_of, render
from m3ae_scale.training.meters import duration, short
from m3ae_scale.training.metrics_file import read_metrics

Rows = list[dict[str, Any]]

# What a run folder may hold, and what it is for.
_FILES = {
    "experiment.yaml": "the experiment, every default spelled out",
    "deepspeed.json": "what DeepSpeed was given",
    "provenance.json": "hardware, versions, commit, command",
    "metrics.jsonl": "every metric, one JSON row a log point",
    "pictures": "reconstruction sheets",
    "checkpoints": "model, optimizer and data position; `m3ae-scale checkpoint ls` lists them",
    "vocab.txt": "the vocabulary",
    "quarantine-rank*.jsonl": "samples that could not be used, with the reason",
    "mlflow_run_id": "the run's id in MLflow",
}


def write_run_page(run_folder: str | Path) -> Path:
    """Write `run_folder`/run.html, one file without external references, and return its path.

    Reads metrics.jsonl, experiment.yaml, provenance.json and pictures/*.png; what is missing is absent from the page.
    """
    folder = Path(run_folder)
    metrics = folder / "metrics.jsonl"
    rows = read_metrics(metrics) if metrics.exists() else []
    config_text = _text(folder / "experiment.yaml")
    config = yaml.safe_load(config_text) or {}
    provenance = json.loads(_text(folder / "provenance.json") or "{}")

    page = render(
        "run_page.html.j2",
        name=config.get("name") or folder.resolve().name,
        summary=_summary(config),
        tiles=_tiles(rows, config),
        charts=_charts(rows),
        table=_table(rows),
        sheets=_sheets(folder / "pictures"),
        facts=facts_of(provenance),
        config_text=config_text,
        folder=str(folder.resolve()),
        files=[(name, meaning) for name, meaning in _FILES.items() if any(folder.glob(name))],
        commands=_commands(folder, config),
    )
    path = folder / "run.html"
    path.write_text(page, encoding="utf-8")
    return path


def _summary(config: dict[str, Any]) -> str:
    model, engine = config.get("model"), config.get("engine", {})
    if not model:
        return ""
    encoder, decoder = model["encoder"], model["decoder"]
    parts = [
        f"M3AE {model.get('size') or ''}".strip(),
        f"encoder {encoder['dim']} wide, {encoder['depth']} deep",
        f"decoder {decoder['dim']} wide, {decoder['depth']} deep",
        f"{model['image_size']} px images in patches of {model['patch']} px",
    ]
    if engine.get("deepspeed"):
        parts.append(f"DeepSpeed {engine['deepspeed']}")
    return " · ".join(parts)


def _tiles(rows: Rows, config: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The figures that are looked for first: (name, figure, what it is compared with)."""
    tiles: list[tuple[str, str, str]] = []
    for key, name in (
        ("loss", "training loss"),
        ("validation_loss", "validation loss"),
        ("text_accuracy", "hidden words right"),
    ):
        _, y = _column(rows, key)
        if y:
            form = "{:.1%}" if key == "text_accuracy" else "{:.4f}"
            tiles.append((name, form.format(y[-1]), f"from {form.format(y[0])}"))
    if rows:
        length = config.get("train", {}).get("length")
        tiles.append(("steps", f"{rows[-1]['step']:,}", f"of {length}" if length else ""))
    _, seconds = _column(rows, "seconds")
    if seconds:
        tiles.append(("training time", duration(seconds[-1]), "wall clock"))
    for key, name in (("samples_per_second", "samples/s"), ("tokens_per_second", "tokens/s")):
        _, y = _column(rows, key)
        if y:
            tiles.append((name, short(median(y)), "median, all processes"))
    return tiles


def _charts(rows: Rows) -> list[tuple[str, str]]:
    """Every chart that the rows have data for: (title, svg)."""
    unit, seconds = _time_unit(rows)
    charts: list[tuple[str, str]] = []

    def add(title: str, key: str, over: str = "step", from_zero: bool = False) -> None:
        both = (("training", key, False), ("validation", f"validation_{key}", True))
        series = []
        for name, column, sparse in both:
            x, y = _column(rows, column, over)
            if y:
                x = [value / seconds for value in x] if over == "seconds" else x
                series.append(Series(name, x, y, sparse))
        if series:
            charts.append((title, line_chart(title, unit if over == "seconds" else "step", series, from_zero)))

    add("Total loss", "loss")
    add("Image loss", "image_loss")
    add("Text loss", "text_loss")
    add("Total loss over time", "loss", over="seconds")
    add("Share of hidden words right", "text_accuracy")
    add("Samples per second", "samples_per_second", from_zero=True)
    add("Tokens per second", "tokens_per_second", from_zero=True)
    add("Learning rate", "lr", from_zero=True)
    add("Gradient norm", "gradient_norm", from_zero=True)
    return charts


def _column(rows: Rows, key: str, over: str = "step") -> tuple[list[float], list[float]]:
    """Return the finite values of `key` and where they stand; a row without `over` takes that of the row before."""
    x, y, place = [], [], 0.0
    for row in rows:
        place = row.get(over, place)
        if math.isfinite(row.get(key, math.nan)):
            x.append(place)
            y.append(row[key])
    return x, y


def _time_unit(rows: Rows) -> tuple[str, float]:
    longest = max((row.get("seconds", 0.0) for row in rows), default=0.0)
    for name, seconds in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if longest > 2 * seconds:
            return name, seconds
    return "seconds", 1.0


_TABLE = {
    "step": "{:,}",
    "loss": "{:.4f}",
    "image_loss": "{:.4f}",
    "text_loss": "{:.4f}",
    "text_accuracy": "{:.1%}",
    "validation_loss": "{:.4f}",
    "samples_per_second": "{:,.1f}",
    "lr": "{:.2e}",
    "gradient_norm": "{:.3f}",
}


def _table(rows: Rows, most: int = 12) -> tuple[list[str], list[list[str]]]:
    """Return heads and about `most` rows, evenly spread from the first to the last; validated steps go first."""
    logged = [row for row in rows if "loss" in row]
    validated = [row for row in logged[1:-1] if "validation_loss" in row]
    if len(validated) >= 3:
        logged = [logged[0], *validated, logged[-1]]
    count = min(most, len(logged))
    picked = [logged[round(i * (len(logged) - 1) / max(1, count - 1))] for i in range(count)]
    columns = [key for key in _TABLE if any(key in row for row in picked)]
    cells = [[_TABLE[key].format(row[key]) if key in row else "" for key in columns] for row in picked]
    return [key.replace("_per_second", "/s").replace("_", " ") for key in columns], cells


def _sheets(pictures: Path) -> list[tuple[str, str]]:
    """The first, the middle and the last sheet: (title, data URL)."""
    found = sorted(pictures.glob("*.png"))
    picked = sorted({0, len(found) // 2, len(found) - 1}) if found else []
    sheets = []
    for index in picked:
        digits = re.findall(r"\d+", found[index].stem)
        title = f"step {int(digits[-1]):,}" if digits else found[index].stem
        data = base64.b64encode(found[index].read_bytes()).decode()
        sheets.append((title, f"data:image/png;base64,{data}"))
    return sheets


def _commands(folder: Path, config: dict[str, Any]) -> list[tuple[str, str]]:
    """What to try next: (what it does, command)."""
    experiment = shlex.quote(str(folder / "experiment.yaml"))
    store = (config.get("tracking") or {}).get("uri") or f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
    commands = [("compare runs in MLflow", f"mlflow ui --backend-store-uri {shlex.quote(store)}")]
    if (folder / "experiment.yaml").exists():
        commands = [
            ("train on for longer", f'm3ae-scale pretrain {experiment} --resume --set train.length="20 epochs"'),
            (
                "get features of texts",
                f"m3ae-scale encode {shlex.quote(str(folder))} --texts captions.txt --output features.npz",
            ),
            ("see what DeepSpeed is given, and why", f"m3ae-scale config explain {experiment}"),
            *commands,
        ]
    return commands


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
