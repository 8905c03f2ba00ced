"""The ONNX project's own node tests, op by op.

Every test is a small model with inputs and the outputs it must give. A backend may refuse a model at load, with its
reason; what it accepts it must get right.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

import headrace as hr
from headrace.conformance.outcome import Check, Outcome, Subject, outcome_of
from headrace.errors import HeadraceError, UnsupportedOp

# Of the node tests, the share that a short certificate runs: every so manieth, in the order of their names.
_SHORT_STEP = 24


# Ops whose outputs are random: the tests' expectations are one draw of many.
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@cache
def node_tests() -> tuple[TestCase, ...]:
    """All node tests of the installed onnx, by name. Making them takes some 5 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(sorted(load_model_tests(kind="node"), key=lambda test: str(test.name)))


def run_tests(tests: Sequence[TestCase], subject: Subject) -> Iterator[Outcome]:
    """Runs the tests one after the other."""
    for test in tests:
        with warnings.catch_warnings(), _Quiet("onnx_ir"):
            warnings.simplefilter("ignore")  # numpy on the infinities that many tests are about
            yield outcome_of(test.name, lambda test=test: _run(test, subject), _ops_of(test.model))  # type: ignore[misc]


def _selected(short: bool) -> Sequence[TestCase]:
    return node_tests()[:: _SHORT_STEP if short else 1]


NODE_TESTS = Check(
    "ONNX node tests", lambda subject, short: run_tests(_selected(short), subject), lambda short: len(_selected(short))
)


class _Quiet:
    """Keeps a logger's warnings about the tests' models to itself."""

    def __init__(self, logger: str) -> None:
        self._logger = logging.getLogger(logger)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *exc: object) -> None:
        self._logger.setLevel(self._level)


def _ops_of(model: onnx.ModelProto) -> tuple[str, ...]:
    return tuple(sorted({f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node}))


def _random_op(model: onnx.ModelProto) -> str | None:
    for node in model.graph.node:
        if node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.input) > 2):  # in training
            return str(node.op_type)
    return None


def _run(test: TestCase, subject: Subject) -> str | None:
    if random := _random_op(test.model):
        return f"{random}: its outputs are random"
    try:
        engine = subject.compile(hr.load(test.model))
    except UnsupportedOp as error:
        return "; ".join(f"{op}: {reason}" for op, _, reason in error.nodes)
    except HeadraceError as error:  # anything else than an error of ours is a failure
        return str(error)
    with engine:
        for inputs, expected in test.data_sets:
            names = [spec.name for spec in engine.signature.inputs]
            result = engine(dict(zip(names, map(_array, inputs), strict=True)))
            for want, name in zip(expected, [spec.name for spec in engine.signature.outputs], strict=True):
                _compare(result[name], _array(want), test.rtol, test.atol)
    return None


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
    if want.dtype == np.float16:  # the tests' 0.001 is less than one unit in the last place, and sums differ by two
        rtol = max(rtol, 2 * float(np.finfo(np.float16).eps))
    if want.dtype.kind == "f" and want.size:  # where sums cancel, what is left is the rounding of what was summed
        largest = np.max(np.abs(want), where=np.isfinite(want), initial=0)
        atol = max(atol, 4 * float(np.finfo(want.dtype).eps * largest))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def _text(item: Any) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)
