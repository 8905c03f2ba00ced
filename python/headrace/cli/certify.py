"""``headrace certify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from headrace.conformance import Certificate

# Reasons that are printed; --json has all.
_REASONS_MAX = 30
_REASON_WIDTH = 160


@click.command("certify")
@click.argument("backend")
@click.option("--device", help="Device to run on; the backend's default one unless given.")
@click.option("--short", is_flag=True, help="A part of the node tests and few cycles: seconds in place of a minute.")
@click.option(
    "--model", "models", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An .onnx file to compare with the reference backend as well; may be repeated.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every outcome.")
def command(backend: str, device: str | None, short: bool, models: tuple[Path, ...], as_json: bool) -> None:
    """Hold the installed BACKEND to everything it declares, and print its certificate.

    Op by op (the ONNX project's node tests and Headrace's own fused ops), whole models, ragged batches, invariance,
    errors, threads and leaks. Exits with 1 if anything failed; what the backend refuses at load or does not declare is
    skipped, with its reason.
    """
    from rich.console import Console
    from rich.progress import Progress

    from headrace.conformance import certify
    from headrace.engine import backend_named

    subject = backend_named(backend)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        certificate = certify(subject, device=device, short=short, models=models, progress=show)
    if as_json:
        click.echo(json.dumps(certificate.to_dict(), indent=1))
    else:
        _print(certificate)
    if not certificate.ok:
        raise SystemExit(1)


def _print(certificate: Certificate) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    table = Table("check", "passed", "failed", "skipped", "ops", title=certificate.backend, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, found in certificate.counts().items():
        table.add_row(name, *(str(found[key] or "-") for key in ("passed", "failed", "skipped", "ops")))
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in certificate.about.items()), markup=False)
    reasons = certificate.reasons()
    if reasons:
        console.print("\nskipped:")
    for count, reason, name in reasons[:_REASONS_MAX]:
        console.print(f"{count:6}  {reason} ({name})", markup=False)
    if len(reasons) > _REASONS_MAX:
        rest = sum(count for count, _, _ in reasons[_REASONS_MAX:])
        console.print(f"{rest:6}  for {len(reasons) - _REASONS_MAX} other reasons (--json has all)", markup=False)
    for outcome in certificate.failed:
        console.print(f"FAILED  {outcome.subject}: {outcome.reason[:_REASON_WIDTH]}", markup=False)
    verdict = "certified" if certificate.ok else f"NOT certified: {len(certificate.failed)} failed"
    form = " (short form)" if certificate.short else ""
    console.print(f"\n{certificate.backend}: {verdict}{form}", markup=False)
