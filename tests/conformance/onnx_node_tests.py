"""The ONNX project's own node tests, run on a backend of ours.

Every test is a small model with inputs and the outputs it must give. A backend may refuse a model at load, with its
reason; what it accepts it must get right.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

import headrace as hr
from headrace.errors import HeadraceError, UnsupportedOp

Status = Literal["passed", "refused", "wrong"]


@dataclass(frozen=True)
class Outcome:
    """What became of one test.

    Attributes:
        name: The test's name, as ONNX has it.
        ops: The ops of its model.
        status: "wrong" stands for a wrong answer and for any failure after the model was accepted.
        reason: Why it was refused or is wrong; empty if it passed.
    """

    name: str
    ops: tuple[str, ...]
    status: Status
    reason: str = ""


def node_tests() -> list[TestCase]:
    """All node tests of the installed onnx."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(load_model_tests(kind="node"), key=lambda test: str(test.name))


def run_tests(tests: list[TestCase], backend: str = "native") -> Iterator[Outcome]:
    """Runs the tests one after the other."""
    for test in tests:
        status, reason = _run(test, backend)
        yield Outcome(test.name, _ops_of(test.model), status, reason)


def _ops_of(model: onnx.ModelProto) -> tuple[str, ...]:
    return tuple(sorted({f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node}))


def _run(test: TestCase, backend: str) -> tuple[Status, str]:
    try:
        engine = hr.load(test.model).compile(backend=backend, threads=1)
    except UnsupportedOp as error:
        return "refused", "; ".join(f"{op}: {reason}" for op, _, reason in error.nodes)
    except HeadraceError as error:
        return "refused", str(error)
    except Exception as error:  # a refusal must be one of ours
        return "wrong", f"while loading: {type(error).__name__}: {error}"
    with engine:
        for inputs, expected in test.data_sets:
            names = [spec.name for spec in engine.signature.inputs]
            try:
                result = engine(dict(zip(names, map(_array, inputs), strict=True)))
                for want, name in zip(expected, [spec.name for spec in engine.signature.outputs], strict=True):
                    _compare(result[name], _array(want), test.rtol, test.atol)
            except Exception as error:  # anything at all is a failure of this test, and of no other
                return "wrong", f"{type(error).__name__}: {error}"
    return "passed", ""


def _array(value: Any) -> Any:
    """Some tests hold their tensors as protos."""
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _compare(got: Any, want: Any, rtol: float, atol: float) -> None:
    """Raises AssertionError unless the arrays agree in dtype, shape and, within the test's bounds, values."""
    want = np.asarray(want)
    if want.dtype.kind in "OSU":
        assert got.shape == want.shape, f"got shape {got.shape}, expected {want.shape}"
        assert [_text(item) for item in got.reshape(-1)] == [_text(item) for item in want.reshape(-1)]
        return
    assert got.dtype == want.dtype, f"got dtype {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"got shape {got.shape}, expected {want.shape}"
    if want.dtype.kind == "V" or want.dtype.name == "bfloat16":
        got, want = got.astype(np.float32), want.astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def _text(item: Any) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)
