"""Saved Plans: what `Engine.save` writes and `load_plan` maps.

A saved Plan holds the finished Program: its nodes, the constants that are read at run time, and what ops packed, in
the very layout the kernels read. Loading maps the file and makes each op of its node and its packed memory: nothing is
imported, optimised, packed or copied, and processes that map the same file share its memory.

Packed memory means something only to the kernels that packed it. So a saved Plan names the model, the options, the ISA
and the build it was made with, and is refused where one of them is another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import _core
from headrace.backend import CompileOptions, Plan
from headrace.engine import Engine
from headrace.errors import ConfigError, InvalidPlan, ModelError, StalePlan
from headrace.native import NativeExecutable
from headrace.plan_file import PLAN_FILE, Blocks, PlanFile
from headrace.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from headrace.model import Model

_ABSENT = -1
# How an ONNX file begins to name another one that holds a tensor's elements: StringStringEntryProto.key.
_OTHER_FILE = b"\x0a\x08location"


def load_plan(
    folder: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Model | None = None,
    verify: bool = True,
    **options: Any,
) -> Engine:
    """Maps a Plan that `Engine.save` wrote.

    Args:
        folder: The folder it was saved to, or the file ``plan.headrace`` in it.
        model: The model it must have been made of: a loaded one, or the path of its file, which is read whole, as are
            files beside it that hold its weights. None takes the Plan's word.
        verify: Whether to compare a hash of the whole file first, which reads it once (some 0.1 s per GB that is in
            the page cache). Without, only its header, sizes and manifest are checked, and pages are read from disk
            when they are first needed.
        **options: Options of `Model.compile` that it must have been compiled with.

    Raises:
        StalePlan: It was made for another model, ISA, build or other options than these.
        ConfigError: There is no such option.
        InvalidPlan: There is none, or it is truncated, damaged or something else.
        FileNotFoundError: The model's file does not exist.
    """
    path = Path(folder)
    file = PlanFile(path.parent if path.name == PLAN_FILE and path.is_file() else path)
    manifest = file.manifest
    try:
        _check_key(manifest, file.path, model, options)
        if verify:
            file.verify()
        return _engine(manifest, file)
    except (KeyError, TypeError, AttributeError, ValueError, ModelError) as error:
        raise InvalidPlan(f"{file.path}: the manifest is not one of a Plan: {error!r}") from error


def save(
    executable: NativeExecutable, folder: Path, *, name: str, sha256: str, signature: Signature, options: CompileOptions
) -> Path:
    """Writes a saved Plan.

    Args:
        executable: What to save.
        folder: Where; made if need be. A Plan that lies there already is replaced, and stays whole for those who
            have it mapped.
        name: The model's name.
        sha256: The model's digest.
        signature: The model's inputs and outputs.
        options: What the caller asked for.

    Returns:
        The path of the file.
    """
    blocks = Blocks()
    program = executable.core.describe()
    ids: dict[int, int] = {_ABSENT: _ABSENT}
    for value in program["inputs"]:
        ids[value] = len(ids) - 1
    constants = [_describe_constant(constant, ids, blocks) for constant in program["constants"]]
    nodes = [_describe_node(node, ids, blocks) for node in program["nodes"]]
    manifest = {
        "made_for": _made_for(executable.plan.isa),
        "model": {"name": name, "sha256": sha256},
        "options": asdict(options),
        "plan": executable.plan.to_dict(),
        "signature": {
            kind: [[spec.name, spec.dtype, list(spec.dims)] for spec in specs]
            for kind, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
        },
        "constants": constants,
        "nodes": nodes,
        "outputs": [ids[value] for value in program["outputs"]],
    }
    return blocks.write(folder, manifest)


def _made_for(isa: str) -> dict[str, Any]:
    """What must be the same where a Plan is loaded."""
    return {"backend": "native", "arch": os.uname().machine, "isa": isa, "build": _core.fingerprint()}


def _describe_constant(constant: dict[str, Any], ids: dict[int, int], blocks: Blocks) -> dict[str, Any]:
    """A constant of `NativePlan.describe` for the manifest: ``at`` is the offset of its block, if it has one."""
    ids[constant.pop("id")] = len(ids) - 1
    data = constant.pop("data")
    if isinstance(data, list):
        return constant | {"texts": data}
    return constant | {"at": None if data is None else blocks.add(data)}


def _describe_node(node: dict[str, Any], ids: dict[int, int], blocks: Blocks) -> dict[str, Any]:
    """A node of `NativePlan.describe` for the manifest: ``packs`` are offsets and sizes."""
    inputs = [ids[value] for value in node["inputs"]]
    for value, _, _ in node["outputs"]:
        if value != _ABSENT:
            ids[value] = len(ids) - 1
    return node | {
        "inputs": inputs,
        "outputs": [[name, dtype] for _, name, dtype in node["outputs"]],
        "packs": [[blocks.add(pack), pack.nbytes] for pack in node["packs"]],
    }


def _check_key(
    manifest: Mapping[str, Any], path: Path, model: str | os.PathLike[str] | Model | None, options: Mapping[str, Any]
) -> None:
    for key, expected in _made_for(_core.selected_isa()).items():
        _expect(path, key, manifest["made_for"][key], expected)
    known = manifest["options"]
    if unknown := sorted(options.keys() - known.keys()):
        raise ConfigError(f"headrace.load_plan: got options {unknown}, expected some of {sorted(known)}")
    for key, expected in options.items():
        _expect(path, f"option {key!r}", known[key], expected)
    if model is None:
        return
    _expect(path, "model sha256", manifest["model"]["sha256"], _sha256_of(model))
    if not isinstance(model, str | os.PathLike):
        for kind in ("inputs", "outputs"):
            got = [name for name, _, _ in manifest["signature"][kind]]
            _expect(path, f"model's {kind}", got, [spec.name for spec in getattr(model.signature, kind)])


def _expect(path: Path, what: str, got: Any, expected: Any) -> None:
    if got != expected:
        raise StalePlan(f"{path}: {what}: got {got!r} in the saved Plan, expected {expected!r}: save the Plan anew")


def _sha256_of(model: str | os.PathLike[str] | Model) -> str:
    """The digest that a loaded Model has; onnx is imported only where weights seem to lie in other files."""
    if not isinstance(model, str | os.PathLike):
        return model.sha256
    import hashlib

    digest, tail, others = hashlib.sha256(), b"", False
    with open(model, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            others = others or _OTHER_FILE in tail + chunk
            tail = chunk[1 - len(_OTHER_FILE) :]
    if not others:
        return digest.hexdigest()
    from headrace.graph.onnx_file import sha256_of

    return sha256_of(Path(model))


def _engine(manifest: Mapping[str, Any], file: PlanFile) -> Engine:
    signature = Signature(*(_specs(manifest["signature"][kind]) for kind in ("inputs", "outputs")))
    try:
        options = CompileOptions(**manifest["options"])
    except (TypeError, ConfigError) as error:
        raise StalePlan(f"{file.path}: options: got {manifest['options']}: {error}") from error
    threads = options.resolved_threads()
    core = _core.NativePlan(_program(manifest, signature, file), threads)
    plan = Plan(**manifest["plan"])
    plan = replace(plan, threads=threads, reasons=(*plan.reasons, f"mapped from {file.path}"))
    name, sha256 = manifest["model"]["name"], manifest["model"]["sha256"]
    return Engine(signature, NativeExecutable(plan, core), name, sha256, options)


def _specs(specs: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, dtype, tuple(dims)) for name, dtype, dims in specs)


def _program(manifest: Mapping[str, Any], signature: Signature, file: PlanFile) -> _core.Program:
    """The Program again. Values get the numbers `save` gave them: inputs, constants, then outputs node by node."""
    builder = _core.ProgramBuilder(manifest["made_for"]["isa"])
    for spec in signature.inputs:
        builder.add_input(spec.name, spec.dtype, list(spec.dims))
    for constant in manifest["constants"]:
        _add_constant(builder, constant, file)
    for node in manifest["nodes"]:
        builder.add_op(
            node["op"],
            node["name"],
            node["opset"],
            node["attributes"],
            node["inputs"],
            [name for name, _ in node["outputs"]],
            [dtype for _, dtype in node["outputs"]],
            file.mapped,
            [(file.start + at, size) for at, size in node["packs"]],
        )
    for spec, value in zip(signature.outputs, manifest["outputs"], strict=True):
        builder.add_output(spec.name, spec.dtype, list(spec.dims), value)
    return builder.finish()


def _add_constant(builder: _core.ProgramBuilder, constant: Mapping[str, Any], file: PlanFile) -> None:
    name, dtype, dims = constant["name"], constant["dtype"], constant["dims"]
    if "texts" in constant:
        import numpy as np

        builder.add_constant(name, np.array(constant["texts"], dtype=object).reshape(dims))
    elif constant["at"] is None:
        builder.add_packed_constant(name, dtype, dims)
    else:
        builder.add_mapped_constant(name, dtype, dims, file.mapped, file.start + constant["at"])
