"""``headrace bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from headrace.errors import BackendUnavailable, HeadraceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backend import Request
    from headrace.engine import Engine
    from headrace.model import Model


@click.command("bench")
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dim", "dims", multiple=True, metavar="NAME=N", help="Length of a symbolic dim; 1 unless given.")
@click.option("--npz", type=click.Path(path_type=Path, exists=True), help="A Request: one array per input.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "bf16", "int8", "auto"]),
    help="For everybody; with auto, peers run in fp32.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads for everybody; every usable core unless given.")
@click.option(
    "--backend", "backends", multiple=True, help="Only these backends; repeatable. All but 'reference' if absent."
)
@click.option(
    "--plan", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Time MODEL's saved plan, too."
)
@click.option("--no-peers", is_flag=True, help="Only Headrace's own backends.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Interleaved blocks each.")
@click.option("--block-ms", default=250, show_default=True, type=click.IntRange(min=1), help="Timed calls per block.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: Path, dims: tuple[str, ...], npz: Path | None, precision: str, threads: int | None,
    backends: tuple[str, ...], plan: Path | None, no_peers: bool, rounds: int, block_ms: int, as_json: bool,
) -> None:  # fmt: skip
    """Time MODEL (an .onnx file) on every backend and every installed peer, interleaved in one run."""
    from headrace import hardware, load
    from headrace.samples import make_request, read_request

    loaded = load(str(model))
    request = read_request(npz, loaded.signature) if npz else make_request(loaded.signature, parse_dims(dims))
    threads = threads or hardware.probe().cores
    report = bench(
        loaded, str(model), request, precision=precision, threads=threads, only=backends, plan=plan,
        peers=not no_peers, rounds=rounds, block_s=block_ms / 1000,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def parse_dims(dims: tuple[str, ...]) -> dict[str, int]:
    """The lengths in options such as ``--dim batch=8``."""
    lengths = {}
    for dim in dims:
        name, _, length = dim.partition("=")
        if not length.isdigit():
            raise click.BadParameter(f"got {dim!r}, expected NAME=N", param_hint="--dim")
        lengths[name] = int(length)
    return lengths


def bench(
    model: Model, path: str, request: Request, *, threads: int, precision: str = "fp32", only: tuple[str, ...] = (),
    plan: Path | None = None, peers: bool = True, rounds: int = 5, block_s: float = 0.25,
) -> dict[str, Any]:  # fmt: skip
    """Times one Request on backends, on `plan` (a folder with the model's saved Plan) and on peers.

    Returns:
        ``rows`` (fastest first: name, kind, precision, median_s, p90_s, best_s, spread, calls, ratio, max_abs_diff),
        ``refused`` (name -> why) and the machine. ``ratio`` is the row's median over the native backend's, so above 1
        is slower than native; ``max_abs_diff`` is against ``baseline``, in fp32.
    """
    from rich.console import Console
    from rich.progress import Progress

    from headrace import hardware
    from headrace.measure import Candidate, interleave
    from headrace.threads import checked_threads

    checked_threads(threads, "bench: threads")  # peers would start them
    engines, refused = _compile(model, precision, threads, only)
    if plan is not None:
        from headrace import load_plan

        engines["saved plan"] = load_plan(plan, model=model)
    runs: dict[str, Any] = {name: _runner(engine, request) for name, engine in engines.items()}
    about = {name: {"kind": "backend", "precision": engine.plan.precision} for name, engine in engines.items()}
    peer_precision = "fp32" if precision == "auto" else precision
    for name, run in (_peer_runs(path, request, peer_precision, threads, refused) if peers else {}).items():
        runs[name] = run
        about[name] = {"kind": "peer", "precision": peer_precision}
    if not runs:
        raise BackendUnavailable("nothing can run this: " + "; ".join(f"{who}: {why}" for who, why in refused.items()))
    baseline, expected = _baseline(model, path, request, threads, peers)
    differences = {name: _max_abs_diff(run(), expected) for name, run in runs.items()}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("timing", total=rounds * len(runs))
        timings = interleave(
            [Candidate(name, run) for name, run in runs.items()],
            rounds=rounds,
            block_s=block_s,
            progress=lambda: progress.advance(task),
        )
    unit = next((timing.median_s for timing in timings if timing.name == "native"), timings[0].median_s)
    rows = [
        timing.to_dict()
        | about[timing.name]
        | {"ratio": timing.median_s / unit, "max_abs_diff": differences[timing.name]}
        for timing in sorted(timings, key=lambda timing: timing.median_s)
    ]
    machine = hardware.probe()
    return {
        "model": model.name,
        "inputs": {name: list(np.shape(array)) for name, array in request.items()},
        "precision": precision,
        "threads": threads,
        "baseline": baseline,
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "isa": machine.isa_selected},
        "rows": rows,
        "refused": refused,
    }


def _peer_runs(
    path: str, request: Request, precision: str, threads: int, refused: dict[str, str]
) -> dict[str, Callable[[], Any]]:
    """What runs each installed peer; a peer that cannot run this model goes into `refused`."""
    from headrace.peers import installed_peers

    runs: dict[str, Callable[[], Any]] = {}
    for name, peer in installed_peers().items():
        try:
            run = peer.prepare(path, request, threads, precision)
            run()
        except Exception as error:  # whatever stops a peer is what its row says
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            runs[name] = run
    return runs


def _baseline(model: Model, path: str, request: Request, threads: int, peers: bool) -> tuple[str, list[np.ndarray]]:
    """Who says what is right, and what it says in fp32: the first peer that can, else Headrace itself."""
    from headrace.engine import compile_model

    for name, run in (_peer_runs(path, request, "fp32", threads, {}) if peers else {}).items():
        return f"{name} fp32", run()
    engine = compile_model(model, threads=threads)
    return f"{engine.plan.backend} fp32", list(engine(request).values())


def _compile(
    model: Model, precision: str, threads: int, only: tuple[str, ...]
) -> tuple[dict[str, Engine], dict[str, str]]:
    from headrace.engine import backends, compile_model

    engines: dict[str, Engine] = {}
    refused: dict[str, str] = {}
    # The reference takes minutes a call on a real model, and so does what is there to be tested.
    names = only or tuple(
        name for name, backend in backends().items() if name != "reference" and not backend.probe().for_tests
    )
    for name in names:
        try:
            engines[name] = compile_model(model, backend=name, precision=precision, threads=threads)
        except HeadraceError as error:
            if only:
                raise
            refused[name] = str(error)
    return engines, refused


def _runner(engine: Engine, request: Request) -> Any:
    return lambda: list(engine(request).values())


def _max_abs_diff(got: list[np.ndarray], expected: list[np.ndarray]) -> float | None:
    """Over the numeric outputs; None if there are none."""
    diffs = [
        float(np.max(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)), initial=0.0))
        for a, b in zip(got, expected, strict=True)
        if np.asarray(a).dtype.kind in "fiub"
    ]
    return max(diffs) if diffs else None


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    shapes = ", ".join(f"{name} {shape}" for name, shape in report["inputs"].items())
    machine = report["machine"]
    table = Table(
        title=f"{report['model']}: {shapes}",
        caption=f"{machine['cpu']}, {report['threads']} threads; ratio = median / native's; "
        f"difference from {report['baseline']}",
    )
    for heading in ("ratio", "runtime", "precision", "median ms", "p90 ms", "best ms", "calls", "max abs diff"):
        table.add_column(heading, justify="left" if heading in ("runtime", "precision") else "right")
    for row in report["rows"]:
        difference = row["max_abs_diff"]
        table.add_row(
            f"{row['ratio']:.2f}",
            row["name"] if row["kind"] == "peer" else f"[bold]{row['name']}[/bold]",
            row["precision"],
            *(f"{row[key] * 1000:.3f}" for key in ("median_s", "p90_s", "best_s")),
            str(row["calls"]),
            "-" if difference is None else f"{difference:.1e}",
        )
    console.print(table)
    for name, reason in report["refused"].items():
        console.print(f"[yellow]{name}[/yellow]: {reason}")
