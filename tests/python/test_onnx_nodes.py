"""The native backend on the ONNX project's node tests: nothing wrong, and never fewer passes than before."""

from collections import Counter

import pytest

from headrace.conformance import Subject
from headrace.conformance.node_tests import node_tests, run_tests
from headrace.engine import backend_named

# What passed when this number was last raised; docs/onnx-coverage.md has today's.
PASSES_AT_LEAST = 1510


@pytest.fixture
def native() -> Subject:
    return Subject(backend_named("native"))


def test_native_gets_no_node_test_wrong_and_passes_what_it_did(native: Subject) -> None:
    outcomes = list(run_tests(node_tests(), native))
    wrong = [(outcome.subject, outcome.reason) for outcome in outcomes if outcome.status == "failed"]
    assert wrong == []
    counts = Counter(outcome.status for outcome in outcomes)
    assert counts["passed"] >= PASSES_AT_LEAST, counts


def test_a_refusal_names_the_op_and_the_reason(native: Subject) -> None:
    refused = [test for test in node_tests() if test.name == "test_string_split_basic"]
    (outcome,) = run_tests(refused, native)
    assert outcome.status == "skipped"
    assert "StringSplit" in outcome.reason
