"""The ``headrace`` command group.

Subcommands are imported only when they are run, so ``headrace --help`` needs nothing but click. To add one, write
``headrace/cli/NAME.py`` with a click command called ``command`` and put a line into `COMMANDS`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from headrace.errors import HeadraceError

# Name -> the line that `headrace --help` shows, which must not cost an import.
COMMANDS = {
    "bench": "Time a model on every backend and installed peer, side by side.",
    "certify": "Hold an installed backend to everything it declares.",
    "compile": "Prepare a model for this machine and save the plan, weights packed.",
    "deploy": "Deploy models on Ray Serve as a YAML file says.",
    "doctor": "Show what this process may use of the machine, and which backends work.",
    "inspect": "Show a model's signature, ops and sizes.",
    "ledger": "Show what became of every request of a server or deployment.",
    "plan": "Find the cheapest way to serve a model within a latency at a rate, by measuring.",
    "serve": "Serve a model repository over HTTP (Open Inference Protocol).",
    "simulate": "Replay arrivals on simulated replicas, under this autoscaling policy and others.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if find_spec(f"headrace.cli.{name}") is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = import_module(f"headrace.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Headrace: one model file, run the fastest safe way on whatever machine is there."""


def main(args: list[str] | None = None) -> Any:
    """The console entry point. Headrace's own errors end with exit code 1 and one message, not a traceback."""
    try:
        return cli.main(args, prog_name="headrace")
    except HeadraceError as error:
        click.echo(f"headrace: {type(error).__name__}: {error}", err=True)
        sys.exit(1)
