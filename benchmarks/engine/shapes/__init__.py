"""Models with the shapes of well-known ones and random weights, written as torch modules and exported once.

Time does not depend on what the weights are, so nothing has to be downloaded. What is exported stays under
``build/models/shapes`` and is made again when its recipe here changes.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / "build" / "models" / "shapes"


def exported(
    name: str, make: Callable[[], Any], inputs: Callable[[], Sequence[Any]], dynamic: dict[str, dict[int, str]],
    output: str,
) -> Path:  # fmt: skip
    """The ONNX file of a torch module, exported now unless it is there already.

    Args:
        name: Of the file, without its suffix.
        make: Makes the module; its source file is the recipe whose change makes the export stale.
        inputs: Makes example inputs (torch tensors), each dynamic dim at least 2.
        dynamic: Input name -> axis -> name of its symbolic dim, in the order of the module's arguments.
        output: The name of the only output.
    """
    recipe = Path(inspect.getsourcefile(make) or __file__).read_bytes() + Path(__file__).read_bytes()
    path = MODELS / f"{name}-{hashlib.sha256(recipe).hexdigest()[:12]}.onnx"
    if path.exists():
        return path
    import torch

    dims = {dim: torch.export.Dim(dim, min=1, max=4096) for axes in dynamic.values() for dim in axes.values()}
    MODELS.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        program = torch.onnx.export(
            make(),
            tuple(inputs()),
            dynamo=True,
            verbose=False,
            dynamic_shapes=tuple({axis: dims[dim] for axis, dim in axes.items()} for axes in dynamic.values()),
            input_names=list(dynamic),
        )
    # Naming the output through export() can clash with an inner value of that name, which the exporter does not notice.
    graph = program.model.graph
    for node in graph:
        for value in node.outputs:
            if value.name == output:
                value.name = f"inner_{output}"
    graph.outputs[0].name = output
    partial = path.with_suffix(".partial")
    program.save(str(partial), external_data=False)
    partial.rename(path)
    return path
