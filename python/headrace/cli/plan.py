"""``headrace plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from headrace.planner import Report


@click.command("plan")
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--slo-ms", type=click.FloatRange(min=0, min_open=True), help="p99 must be below it; any unless given.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True),
    help="Requests per second of the deployment; the cheapest per request unless given.",
)  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(min=0), help="Largest error against the reference backend.")
@click.option("--budget", "budget_s", default=60.0, show_default=True, type=click.FloatRange(min=1), help="Seconds.")
@click.option("--dim", "dims", multiple=True, metavar="NAME=N", help="Length of a symbolic dim of made-up requests.")
@click.option(
    "--npz", "files", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="A request like those that will come: one array per input; repeatable.",
)  # fmt: skip
@click.option("--backend", "backends", multiple=True, help="Only these backends; repeatable.")
@click.option("--precision", "precisions", multiple=True, help="Only these precisions; repeatable.")
@click.option("--threads", "threads", multiple=True, type=click.IntRange(min=1), help="Only these; repeatable.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as a page with plots.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan file (TOML).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: Path, slo_ms: float | None, rate: float | None, tolerance: float | None, budget_s: float,
    dims: tuple[str, ...], files: tuple[Path, ...], backends: tuple[str, ...], precisions: tuple[str, ...],
    threads: tuple[int, ...], html: Path | None, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Find the cheapest way to serve MODEL on machines like this within a latency at a rate, by measuring.

    Exits with 2 where nothing here meets the latency.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    import headrace
    from headrace.cli.bench import parse_dims
    from headrace.samples import read_request

    loaded = headrace.load(str(model))
    samples = [read_request(file, loaded.signature) for file in files] or None
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=1.0)
        report = headrace.plan(
            loaded, slo_ms=slo_ms, rate=rate, tolerance=tolerance, budget_s=budget_s, samples=samples,
            dims=parse_dims(dims), backends=backends, precisions=precisions, threads=threads,
            progress=lambda words, share: bar.update(task, description=words, completed=share),
        )  # fmt: skip
    if html is not None:
        report.save_html(html)
    if output is not None and report.choice is not None:
        report.save(output)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report)
        for what, path in (("report", html), ("plan", output if report.choice is not None else None)):
            if path is not None:
                click.echo(f"{what} written to {path}")
    if report.choice is None:
        raise SystemExit(2)


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    table = Table("candidate", "cores", "p50 ms", "p99 ms", "error", "why", title_justify="left")
    for row in report.rows:
        found = row.prediction
        figures = ["", "", ""]
        if found is not None and row.cores is not None:
            figures = [f"{row.cores:g}", f"{1e3 * found.p50_s:.3g}", f"{1e3 * found.p99_s:.3g}"]
        error = "" if row.error is None else f"{row.error:.1e}"
        style = {"chosen": "bold green", "frontier": "cyan"}.get(row.status)
        table.add_row(str(row.candidate), *figures, error, row.why or "the choice", style=style)
    console.print(table)
    for backend, why in report.refused.items():
        console.print(f"not tried: {backend}: {why}", markup=False, highlight=False)
    console.print(f"{report.answer()}", markup=False, highlight=False)
    console.print(
        f"{report.machine}; {report.samples}; {report.wall_s:.0f} s, in {report.measured_s:.0f} of which Batches ran",
        style="dim", markup=False, highlight=False,
    )  # fmt: skip
