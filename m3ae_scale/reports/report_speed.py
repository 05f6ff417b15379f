"""The parts of the report that are about speed: throughput and MFU, memory, efficiency on more devices, peers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from m3ae_scale.planning.states import states_per_rank
from m3ae_scale.reports.page import Section
from m3ae_scale.reports.plot import Axis, Mark, bars, plot
from m3ae_scale.reports.sources import Sources
from m3ae_scale.sizes import SIZES, model_parameters
from m3ae_scale.training.meters import short

Row = Mapping[str, Any]
_PARAMETERS = "parameters of the model"
_PROJECTED_RANKS = 8


def throughput_section(rows: Sequence[Row], sources: Sources) -> Section | None:
    """Draw samples/s, real tokens/s and MFU by size, the fastest arrangement of each; the table has every one."""
    measured = [row for row in rows if row["bench"] == "throughput"]
    if not measured:
        return None
    done = [row for row in measured if row["status"] == "ok"]
    charts = []
    x = Axis(_PARAMETERS, log=True)
    series = {name: best_by_size(group) for name, group in grouped(done, _machine).items()}
    for title, key, unit in (
        ("Throughput by size", "samples_per_second", "samples/s, all devices"),
        ("Real tokens by size", "tokens_per_second", "tokens/s without padding"),
    ):
        marks = [_mark(name, best, key) for name, best in series.items()]
        charts.append((title, plot(title, x, Axis(unit, log=True), marks)))
    shares = [
        Mark(f"{label}{' · ' + name if len(series) > 1 else ''}", *_points(best, key, 100))
        for name, best in series.items()
        for label, key in (("MFU of ceiling", "mfu_ceiling"), ("MFU of datasheet", "mfu_datasheet"),
                           ("HFU of ceiling", "hfu_ceiling"))
    ]  # fmt: skip
    shares = [mark for mark in shares if mark.x]
    if shares:
        charts.append(("MFU by size", plot("MFU by size", x, Axis("% of what the device can do", shows=(0,)), shares)))
    heads = ["cell", "samples/s", "tokens/s", "step s", "MFU ceiling", "MFU datasheet", "HFU", "peak GiB", "W", "from"]
    return Section(
        "Throughput and MFU by size",
        kind="measured",
        charts=charts,
        heads=heads,
        rows=[_throughput_cells(row, sources) for row in measured],
        note="Charts: the fastest arrangement of each size. Model FLOPs count useful tokens only; the ceiling is a "
        "large matrix product timed in the same run; HFU adds what is recomputed and padded. Step: median, with the "
        "10th and 90th of a hundred.",
    )


def memory_sections(rows: Sequence[Row], sources: Sources) -> list[Section]:
    """Draw peak memory by size and ZeRO stage as measured, and apart from it the model states as projected."""
    done = [row for row in rows if row["status"] == "ok" and row.get("peak_memory_bytes") and _stage(row) is not None]
    sections = []
    if done:
        several = len({_machine(row) for row in done}) > 1
        series = grouped(
            done,
            lambda row: (
                f"ZeRO {_stage(row)}, {_devices(row)} rank{'s' * (_devices(row) > 1)}" + several * f", {_machine(row)}"
            ),
        )
        least = {name: best_by_size(group, "peak_memory_bytes", least=True) for name, group in sorted(series.items())}
        marks = [_mark(name, group, "peak_memory_bytes", 2**-30) for name, group in least.items()]
        chart = plot("Peak memory by size", Axis(_PARAMETERS, log=True), Axis("GiB a rank", log=True), marks)
        table = [
            [
                _size(row),
                f"ZeRO {_stage(row)}",
                str(_devices(row)),
                _machine(row),
                number(row["peak_memory_bytes"] / 2**30),
                sources.mark(row),
            ]
            for row in sorted((row for group in least.values() for row in group), key=lambda row: row["parameters"])
        ]
        sections.append(
            Section(
                "Memory by size and ZeRO stage",
                kind="measured",
                charts=[("Peak memory by size", chart)],
                heads=["size", "ZeRO", "ranks", "device", "peak GiB", "from"],
                rows=table,
                note="On a GPU what tensors took at most; on a CPU the whole process, the libraries included, which at "
                "small sizes is most of it. Of several measurements of one size and stage, the least.",
            )
        )
    sections.append(_projected_states())
    return sections


def efficiency_section(rows: Sequence[Row], sources: Sources) -> Section | None:
    """Draw speed on more devices against that many times the speed on the fewest: strong and weak scaling."""
    found = list(efficiencies(rows))
    if not found:
        return None
    marks = [Mark(f"{kind}: {name}", [n for n, _, _ in line], [100 * e for _, e, _ in line])
             for kind, name, line in found]  # fmt: skip
    devices = sorted({float(n) for _, _, line in found for n, _, _ in line})
    title = "Efficiency on more devices"
    chart = plot(title, Axis("devices", shows=devices), Axis("% of linear", shows=(0, 100)), marks, level=100)
    table = [
        [name, kind, str(n), f"{row['samples_per_second']:,.1f}", f"{100 * e:.0f}%", sources.mark(row)]
        for kind, name, line in found
        for n, e, row in line
    ]
    return Section(
        "Strong and weak scaling",
        kind="measured",
        charts=[(title, chart)],
        heads=["size", "scaling", "devices", "samples/s", "efficiency", "from"],
        rows=table,
        note="Efficiency: samples/s a device, divided by those on the fewest devices. Strong: the same global batch "
        "more devices; weak: a batch that grows with them. Dashed: linear.",
    )


def efficiencies(rows: Sequence[Row]) -> Iterable[tuple[str, str, list[tuple[int, float, Row]]]]:
    """Yield (strong or weak, size, [(devices, efficiency, row), ...]) for every series of two or more device counts."""
    done = [row for row in rows if row["bench"] == "scaling" and row["status"] == "ok" and "samples_per_second" in row]
    ways: tuple[tuple[str, Callable[[Row], tuple[float, float]]], ...] = (
        ("strong", lambda row: (row["cell"]["global_batch"], row["cell"]["samples"])),
        ("weak", lambda row: (row["cell"]["global_batch"] / row["devices"], row["cell"]["samples"] / row["devices"])),
    )
    like = grouped(done, lambda row: (row["cell"]["sweep"], _size(row), row["cell"]["layout"], _machine(row)))
    for kind, shape in ways:
        for (_, size, _, _), alike in like.items():
            for group in grouped(alike, shape).values():
                by_devices = {row["devices"]: row for row in group}
                if len(by_devices) > 1:
                    yield kind, size, _efficiency_line(by_devices)


def _efficiency_line(by_devices: dict[int, Row]) -> list[tuple[int, float, Row]]:
    fewest = min(by_devices)
    each = by_devices[fewest]["samples_per_second"] / fewest
    return [(n, row["samples_per_second"] / n / each, row) for n, row in sorted(by_devices.items())]


def peers_section(rows: Sequence[Row], sources: Sources) -> Section | None:
    """Draw what was measured side by side in one run, ours and others."""
    done = [row for row in rows if row["bench"] in ("peers", "framework") and row["status"] == "ok"]
    done = [row for row in done if "samples_per_second" in row]
    if not done:
        return None
    charts = []
    for task, group in grouped(done, _task).items():
        ordered = sorted(group, key=lambda row: -row["samples_per_second"])
        names = [_peer(row) for row in ordered]
        title = f"Side by side: {task}" if task else "Side by side"
        charts.append((title, bars(title, Axis("samples/s"), names, [row["samples_per_second"] for row in ordered])))
    return Section(
        "Peers, side by side in one run",
        kind="measured",
        charts=charts,
        heads=["task", "what", "samples/s", "step s", "m3ae_scale is so many times as fast", "from"],
        rows=[
            [
                _task(row),
                _peer(row),
                f"{row['samples_per_second']:,.4g}",
                number(row.get("seconds_per_step", row.get("step_seconds"))),
                " to ".join(f"{row[key]:.2f}" for key in ("times_ours_lowest", "times_ours_highest") if row.get(key)),
                sources.mark(row),
            ]
            for row in done
        ],
        note="In turns in one run; the last column is the range over its rounds, below 1 where the peer is faster.",
    )


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Sort rows into groups, in the order of their first."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def best_by_size(rows: Iterable[Row], key: str = "samples_per_second", least: bool = False) -> list[Row]:
    """Return the row of each model size that has the most of `key`, or the least, in the order of their parameters."""
    groups = grouped((row for row in rows if row.get("parameters") and row.get(key) is not None), _size)
    chosen = [(min if least else max)(group, key=lambda row: row[key]) for group in groups.values()]
    return sorted(chosen, key=lambda row: row["parameters"])


def number(value: float | None, form: str = ".3g") -> str:
    """Write a number, or a dash for none."""
    return "-" if value is None else f"{value:{form}}"


def _projected_states() -> Section:
    """Model states by closed form: what no machine has said yet."""
    sizes = {name: model_parameters(size.encoder, size.decoder) for name, size in SIZES.items()}
    states = {name: [_states(n, stage) for stage in range(4)] for name, n in sizes.items()}
    marks = [
        Mark(f"ZeRO {stage}", list(sizes.values()), [each[stage] for each in states.values()], "fit", colour=stage)
        for stage in range(4)
    ]
    table = [[name, short(n), *(f"{b:.3g}" for b in states[name])] for name, n in sizes.items()]
    title = "Model states by size and ZeRO stage"
    return Section(
        f"Model states on {_PROJECTED_RANKS} ranks",
        kind="projected",
        charts=[(title, plot(title, Axis(_PARAMETERS, log=True), Axis("GiB a rank", log=True), marks))],
        heads=["size", "parameters", *(f"ZeRO {stage}, GiB" for stage in range(4))],
        rows=table,
        note="From closed forms (planning/states.py), bf16 with gradients summed in fp32 as in configs/ds: parameters, "
        "gradients, optimizer. Activations come on top. Nothing here was measured.",
    )


def _states(parameters: int, stage: int) -> float:
    """GiB of model states on each of the projected ranks, as configs/ds/ has them in bf16."""
    states = states_per_rank(
        parameters, stage=stage, data=_PROJECTED_RANKS, precision="bf16", gradients_fp32=stage > 0
    )  # DeepSpeed refuses fp32 sums without ZeRO
    return states.device / 2**30


def _throughput_cells(row: Row, sources: Sources) -> list[str]:
    cell = row["cell"]
    name = f"{cell.get('size')}, micro {cell.get('micro_batch')}, {cell.get('devices')} x ZeRO {cell.get('zero_stage')}"
    if cell.get("tensor_parallel", 1) > 1:
        name += f", TP {cell['tensor_parallel']}" + " with sequence" * bool(cell.get("sequence_parallel"))
    name += f", {cell.get('precision')}" + (
        f", recompute {cell['recompute']}" if cell.get("recompute", "none") != "none" else ""
    )
    if cell.get("offload"):
        name += f", offload {cell['offload']:g}" + ("" if cell.get("pin_memory", True) else " unpinned")
    name += ", compiled" * (cell.get("compile", "none") != "none")
    if row["status"] != "ok":
        return [name, row["status"], *[""] * 7, sources.mark(row)]
    low, middle, high = (number(row.get(f"step_seconds{end}")) for end in ("_p10", "", "_p90"))
    shares = [
        "-" if row.get(key) is None else f"{row[key]:.1%}" for key in ("mfu_ceiling", "mfu_datasheet", "hfu_ceiling")
    ]
    memory = row.get("peak_memory_bytes")
    return [
        name, f"{row['samples_per_second']:,.4g}", short(row["tokens_per_second"]), f"{middle} ({low} to {high})",
        *shares, number(memory and memory / 2**30), number(row.get("watts"), ".0f"), sources.mark(row),
    ]  # fmt: skip


def _mark(name: str, rows: Sequence[Row], key: str, factor: float = 1.0) -> Mark:
    return Mark(name, *_points(rows, key, factor))


def _points(rows: Sequence[Row], key: str, factor: float) -> tuple[list[float], list[float]]:
    kept = [row for row in rows if row.get(key) is not None]
    return [row["parameters"] for row in kept], [factor * row[key] for row in kept]


def _size(row: Row) -> str:
    return str(row["cell"].get("size", "?"))


def _stage(row: Row) -> int | None:
    return row.get("zero_stage", row["cell"].get("zero_stage"))


def _devices(row: Row) -> int:
    return int(row.get("devices", row["cell"].get("devices", 1)))


def _machine(row: Row) -> str:
    """The device, and the number format of its matrix products."""
    precision = row.get("precision") or row["cell"].get("precision", "")
    return f"{row.get('device', 'device')} {precision}".strip()


def _task(row: Row) -> str:
    cell = row["cell"]
    parts = [str(cell[key]) for key in ("task", "size", "precision", "device") if key in cell]
    if "encoder" in cell:
        parts.insert(0, "x".join(map(str, cell["encoder"][:2])))
    if "text" in cell:
        parts.insert(0, "pairs" if cell["text"] else "images")
    return ", ".join(parts)


def _peer(row: Row) -> str:
    cell = row["cell"]
    return str(cell.get("peer") or cell.get("implementation") or cell.get("what") or cell.get("name") or "ours")
