"""``headrace inspect``."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import onnx_ir

    from headrace.model import Model


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: Path, as_json: bool) -> None:
    """Show the signature, ops and sizes of MODEL (an .onnx file), as Backends will see it: optimised."""
    from rich.console import Console

    import headrace

    with Console(stderr=True).status(f"loading {model}"):
        loaded = headrace.load(str(model))
        report = describe(loaded)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def describe(model: Model) -> dict[str, Any]:
    """What ``headrace inspect --json`` prints: plain JSON-able values, sizes in bytes."""
    graph = model.graph.graph
    ops = Counter(_op(node) for node in graph.all_nodes())
    weights: list[dict[str, Any]] = [
        {"name": name, "dtype": value.const_value.dtype.numpy().name, "shape": list(value.const_value.shape.numpy()),
         "bytes": value.const_value.nbytes}
        for name, value in graph.initializers.items()
        if value.const_value is not None
    ]  # fmt: skip
    weights.sort(key=lambda weight: (-weight["bytes"], weight["name"]))
    return {
        "name": model.name,
        "source": model.source,
        "sha256": model.sha256,
        "opsets": {domain or "ai.onnx": version for domain, version in model.graph.opset_imports.items()},
        "inputs": [_tensor(spec) for spec in model.signature.inputs],
        "outputs": [_tensor(spec) for spec in model.signature.outputs],
        "nodes": sum(ops.values()),
        "ops": dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        "parameters": sum(math.prod(weight["shape"]) for weight in weights),
        "weight_bytes": sum(weight["bytes"] for weight in weights),
        "weights": weights,
    }


def _op(node: onnx_ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "dims": list(spec.dims)}


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    console.print(f"[bold]{report['name']}[/bold]  {report['source']}  sha256 {report['sha256'][:12]}")
    signature = Table("", "name", "dtype", "dims", title="Signature", title_justify="left")
    for kind in ("inputs", "outputs"):
        for tensor in report[kind]:
            dims = ", ".join(map(str, tensor["dims"]))
            signature.add_row(kind.removesuffix("s"), tensor["name"], tensor["dtype"], f"[{dims}]".replace("[", "\\["))
    console.print(signature)
    opsets = ", ".join(f"{domain} {version}" for domain, version in report["opsets"].items())
    ops = Table("op", "nodes", title=f"{report['nodes']} nodes ({opsets})", title_justify="left")
    for op, count in report["ops"].items():
        ops.add_row(op, str(count))
    console.print(ops)
    mib = report["weight_bytes"] / 2**20
    title = f"{report['parameters']:,} parameters, {mib:.2f} MiB; the largest"
    weights = Table("weight", "dtype", "shape", "MiB", title=title, title_justify="left")
    for weight in report["weights"][:5]:
        shape = " x ".join(map(str, weight["shape"])) or "scalar"
        weights.add_row(weight["name"], weight["dtype"], shape, f"{weight['bytes'] / 2**20:.2f}")
    console.print(weights)
