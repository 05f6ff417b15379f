"""The parts of the report that are about the loss: against samples, time and compute, with the law that it follows."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m3ae_scale.reports.page import Section
from m3ae_scale.reports.plot import Axis, Mark, plot
from m3ae_scale.reports.report_speed import grouped
from m3ae_scale.reports.scaling_law import Fit, NoFit, Point, fit_law
from m3ae_scale.reports.sources import Sources
from m3ae_scale.training.meters import duration, short

Row = Mapping[str, Any]
_HEADS = (
    "size", "parameters", "encoder", "samples", "epochs", "devices", "loss", "validation loss", "FLOPs", "time", "from",
)  # fmt: skip
_SAMPLES = Axis("samples seen", log=True)


def loss_sections(rows: Sequence[Row], sources: Sources) -> list[Section | None]:
    """Draw the losses of every sweep, the law fitted to them with its residuals, and what the law projects."""
    sections: list[Section | None] = []
    for sweep, group in grouped(_finished(rows), lambda row: row["cell"]["sweep"]).items():
        fit = fit_law([_point(row) for row in law_rows(group)])
        sections.append(_measured(sweep, group, fit, sources))
        if isinstance(fit, Fit):
            sections += [_fitted(sweep, group, fit), _projected(sweep, group, fit)]
    return sections


def law_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the trainings that a law is fitted to: one a size and number of samples, of the commonest global batch.

    Other layouts and device counts train the same curve again; another batch is another way to train.
    """
    if not rows:
        return []
    common, _ = Counter(row["cell"]["global_batch"] for row in rows).most_common(1)[0]
    same = [row for row in rows if row["cell"]["global_batch"] == common]
    groups = grouped(same, lambda row: (row["cell"]["size"], row["samples"]))
    return [min(group, key=lambda row: (row["cell"]["layout"] != "plain", row["devices"])) for group in groups.values()]


def _finished(rows: Sequence[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if row["bench"] == "scaling" and row["status"] == "ok" and row.get("validation_loss") and row.get("samples")
        and row.get("encoder_parameters")
    ]  # fmt: skip


def _point(row: Row) -> Point:
    return Point(row["encoder_parameters"], row["samples"], row["validation_loss"])


def _measured(sweep: str, rows: Sequence[Row], fit: Fit | NoFit, sources: Sources) -> Section:
    kept = law_rows(rows)
    sizes = grouped(sorted(kept, key=lambda row: row["encoder_parameters"]), lambda row: row["cell"]["size"])
    loss = Axis("loss on held-out data")
    charts = []
    for title, key, name in (
        ("Loss against samples", "samples", "samples seen"),
        ("Loss against compute", "model_flops", "model FLOPs of training"),
    ):
        marks: list[Mark] = []
        for colour, (size, group) in enumerate(sizes.items()):
            known = [row for row in group if row.get(key)]
            if not known:
                continue
            marks.append(
                Mark(size, [row[key] for row in known], [row["validation_loss"] for row in known],
                     "points" if isinstance(fit, Fit) else "both", colour)
            )  # fmt: skip
            if isinstance(fit, Fit):
                marks.append(_law_line(fit, known, key, colour))
        if marks:
            charts.append((title, plot(title, Axis(name, log=True), loss, marks)))
    curves = [
        Mark(size, [point[1] for point in longest["curve"]], [point[2] for point in longest["curve"]], "line", colour)
        for colour, (size, group) in enumerate(sizes.items())
        if (longest := max(group, key=lambda row: row["samples"])).get("curve") and "seconds" in longest
    ]
    if curves:
        title = "Loss against time"
        charts.append((title, plot(title, Axis("seconds of training", log=True), Axis("training loss"), curves)))
    what = (
        "Dashed: the fitted law, within what was measured."
        if isinstance(fit, Fit)
        else f"No law is fitted: {fit.reason}."
    )
    return Section(
        f"Loss against samples, compute and time: {sweep}",
        kind="measured",
        charts=charts,
        heads=_HEADS,
        rows=[_loss_cells(row, sources) for row in rows],
        note=f"Each point is a training of its own, its learning rate decayed to its own end. {what} The time curve of "
        f"a size is that of its longest training.",
    )


def _law_line(fit: Fit, rows: Sequence[Row], key: str, colour: int) -> Mark:
    """Draw the law of one size between its shortest and longest training."""
    first, last = min(rows, key=lambda row: row["samples"]), max(rows, key=lambda row: row["samples"])
    samples = np.geomspace(first["samples"], last["samples"], 24)
    x = samples * (last[key] / last["samples"])  # compute is in proportion to the samples of a size
    return Mark("", x.tolist(), fit.law.loss(last["encoder_parameters"], samples).tolist(), "fit", colour)


def _fitted(sweep: str, rows: Sequence[Row], fit: Fit) -> Section:
    law = fit.law
    kept = law_rows(rows)
    left_over = dict(zip(map(_point, kept), fit.residuals, strict=True))
    marks = [
        Mark(size, [row["samples"] for row in group], [100 * left_over[_point(row)] for row in group], "points")
        for size, group in grouped(kept, lambda row: row["cell"]["size"]).items()
    ]
    title = "What the law leaves over"
    spread = 100 * math.sqrt(math.fsum(left**2 for left in fit.residuals) / len(fit.residuals))
    names = {
        "floor": "E, the loss that is left at any size and length",
        "size_exponent": "a, of the encoder's parameters N",
        "data_exponent": "b, of the samples seen D",
        "optimal_exponent": "b / (a + b): the best size grows with compute to this power",
    }
    table = [
        [what, f"{getattr(law, name):.3g}", "{:.3g} to {:.3g}".format(*fit.interval(name))]
        for name, what in names.items()
    ]
    return Section(
        f"The fitted law: {sweep}",
        f"L(N, D) = {law.floor:.4g} + {law.size_factor:.4g} / N^{law.size_exponent:.3g} + "
        f"{law.data_factor:.4g} / D^{law.data_exponent:.3g}",
        kind="fitted",
        charts=[(title, plot(title, _SAMPLES, Axis("% of the loss", shows=(0,)), marks, level=0))],
        heads=["what", "fitted", "95% interval"],
        rows=table,
        note=f"{len(fit.points)} trainings; what is left over is {spread:.2g}% of the loss, root mean square. N counts "
        f"the parameters of the encoder's blocks. Fitted by a Huber loss between logarithms; intervals from "
        f"{len(fit.resampled)} refits to the law plus noise of that size.",
    )


def _projected(sweep: str, rows: Sequence[Row], fit: Fit) -> Section | None:
    """Extend the law to 10 and 100 times the compute of the largest training, at the size that is best by it."""
    kept = [row for row in law_rows(rows) if row.get("model_flops_per_sample")]
    if not kept:
        return None
    largest = max(kept, key=lambda row: row["model_flops"])
    per_sample = _flops_of_size(kept)
    table = []
    for times in (10, 100):
        compute = times * largest["model_flops"]
        sizes = np.geomspace(min(p.parameters for p in fit.points), 1e4 * max(p.parameters for p in fit.points), 2000)
        samples = compute / per_sample(sizes)
        best = int(np.argmin(fit.law.loss(sizes, samples)))
        value, low, high = fit.predicted(float(sizes[best]), float(samples[best]))
        table.append([f"{times} x", f"{compute:.2g}", short(sizes[best]), short(samples[best]), f"{value:.4g}",
                      f"{low:.4g} to {high:.4g}"])  # fmt: skip
    return Section(
        f"Beyond what was measured: {sweep}",
        kind="projected",
        heads=["compute of the largest training", "FLOPs", "best encoder", "samples", "loss", "95% interval"],
        rows=table,
        note="By the fitted law, extended. The interval is that of the law's parameters; that the law goes on to hold "
        "is taken for granted. Nothing here was measured.",
    )


def _flops_of_size(rows: Sequence[Row]) -> Any:
    """Return FLOPs a sample as a function of the encoder's parameters: a straight line through the measured sizes."""
    known = {row["encoder_parameters"]: row["model_flops_per_sample"] for row in rows}
    slope, floor = np.polyfit(list(known), list(known.values()), 1)
    floor = max(floor, 0.0)
    return lambda sizes: floor + slope * sizes


def _loss_cells(row: Row, sources: Sources) -> list[str]:
    cell = row["cell"]
    return [
        cell["size"] + (f", {cell['layout']}" if cell["layout"] != "plain" else ""),
        short(row["parameters"]) if row.get("parameters") else "-",
        short(row["encoder_parameters"]),
        f"{row['samples']:,}",
        f"{row['epochs']:.2g}" if row.get("epochs") else "-",
        str(row["devices"]),
        f"{row['loss']:.4f}",
        f"{row['validation_loss']:.4f}",
        f"{row['model_flops']:.2e}" if row.get("model_flops") else "-",
        duration(row["seconds"]) if row.get("seconds") else "-",
        sources.mark(row),
    ]
