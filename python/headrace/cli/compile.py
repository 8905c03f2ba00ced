"""``headrace compile``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the plan."
)
@click.option(
    "--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16", "int8", "auto"]),
    help="What to compute in.",
)  # fmt: skip
@click.option(
    "--winograd/--no-winograd", default=False, help="Let 3x3 convolutions run by Winograd's minimal filtering (fp32)."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the plan; every usable core unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: Path, output: Path, precision: str, winograd: bool, threads: int | None, as_json: bool) -> None:
    """Prepare MODEL (an .onnx file) for this machine's CPU and save the plan, weights packed, to a folder.

    headrace.load_plan(FOLDER) maps it, and headrace serve takes it in place of a model.onnx, or beside one.
    """
    from rich.console import Console

    import headrace

    with Console(stderr=True).status(f"compiling {model}"):
        engine = headrace.load(str(model)).compile(
            backend="native", precision=precision, threads=threads, winograd=winograd
        )
        path = engine.save(output)
    if as_json:
        click.echo(json.dumps({"path": str(path), "bytes": path.stat().st_size, "plan": engine.plan.to_dict()}))
    else:
        click.echo(f"{path}: {path.stat().st_size / 2**20:.1f} MiB\n{engine.plan}")
