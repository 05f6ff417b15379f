"""m3ae-scale report: results of benchmarks and sweeps as one HTML page."""

from pathlib import Path

import click


@click.command()
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option("--mlflow", "uri", metavar="URI", help="Take the finished runs of this MLflow store too.")
@click.option("--experiment", help="Only those of this MLflow experiment.  [default: all]")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="report.html", show_default=True)
def report(results: tuple[Path, ...], uri: str | None, experiment: str | None, output: Path) -> None:
    """Make one self-contained page of RESULTS: .jsonl files of m3ae-scale bench, or folders that hold some.

    Throughput and MFU, memory, loss against time and compute with the fitted law, efficiency, peers; each table says
    where its numbers come from, and what is projected stands apart from what is measured.
    """
    from m3ae_scale.bench.results import read_rows
    from m3ae_scale.errors import InputError
    from m3ae_scale.reports.report import write_report

    if not results and uri is None:
        raise InputError("report: nothing to show; give .jsonl files of m3ae-scale bench, or --mlflow URI")
    rows = []
    for path in results:
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        files = [file for file in files if file.name not in ("metrics.jsonl", "starts.jsonl")]
        if not files:
            raise InputError(f"{path}: found no .jsonl in it; give the results of m3ae-scale bench")
        rows += [row for file in files for row in read_rows(file)]
    if uri is not None:
        from m3ae_scale.reports.mlflow_rows import mlflow_rows

        rows += mlflow_rows(uri, experiment)
    write_report(rows, output)
    click.echo(output)
