"""``python -m tests.chaos``: runs campaigns and says which promises held."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from .campaigns import CAMPAIGNS, FULL_S, FULL_S_DEFAULT


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(CAMPAIGNS)))
@click.option("--seed", default=1, show_default=True, help="The same seed makes the same campaign.")
@click.option("--seconds", type=float, help="Length of each campaign, in place of its own full length.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per campaign.")
def main(names: tuple[str, ...], seed: int, seconds: float | None, as_json: bool) -> None:
    """Run the campaigns NAMES, or all of them. Exits with 1 where a promise was broken."""
    console, held = Console(highlight=False, soft_wrap=True), True
    for name in names or CAMPAIGNS:
        length = FULL_S.get(name, FULL_S_DEFAULT) if seconds is None else seconds
        with tempfile.TemporaryDirectory() as folder:
            report = asyncio.run(CAMPAIGNS[name](Path(folder), seed, length))
        checks = {**report.promises, **report.bars}
        held = held and all(checks.values())
        if as_json:
            click.echo(json.dumps({"campaign": name, "seed": seed, "facts": report.facts, "checks": checks}))
            continue
        console.print(f"[bold]{name}[/bold], seed {seed}, {length:g} s")
        for what, value in report.facts.items():
            console.print(f"  {value!s:>10}  {what}")
        for what, ok in checks.items():
            console.print(f"  {'[green]       yes[/green]' if ok else '[red]        NO[/red]'}  {what}")
    sys.exit(0 if held else 1)


main()
