"""The native backend on the ONNX project's node tests: nothing wrong, and never fewer passes than before."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

CONFORMANCE = Path(__file__).resolve().parents[1] / "conformance"
# What passed when this number was last raised; docs/onnx-coverage.md has today's.
PASSES_AT_LEAST = 1510


@pytest.fixture(scope="module")
def node_tests() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onnx_node_tests", CONFORMANCE / "onnx_node_tests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_native_gets_no_node_test_wrong_and_passes_what_it_did(node_tests: ModuleType) -> None:
    outcomes = list(node_tests.run_tests(node_tests.node_tests(), "native"))
    wrong = [(outcome.name, outcome.reason) for outcome in outcomes if outcome.status == "wrong"]
    assert wrong == []
    counts = Counter(outcome.status for outcome in outcomes)
    assert counts["passed"] >= PASSES_AT_LEAST, counts


def test_a_refusal_names_the_op_and_the_reason(node_tests: ModuleType) -> None:
    refused = [test for test in node_tests.node_tests() if test.name == "test_string_split_basic"]
    (outcome,) = node_tests.run_tests(refused, "native")
    assert outcome.status == "refused"
    assert "StringSplit" in outcome.reason
