"""Runs the ONNX node tests on a backend, prints the count and writes docs/onnx-coverage.md.

    python tests/conformance/run_onnx_nodes.py [--backend native] [--only PART_OF_A_NAME] [--json] [--no-docs]

Exits with 1 if any test got a wrong answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import onnx
from rich.progress import track

from headrace.conformance import Outcome, Subject
from headrace.conformance.certificate import short_reason
from headrace.conformance.node_tests import node_tests, run_tests
from headrace.engine import backend_named

DOCS = Path(__file__).resolve().parents[2] / "docs" / "onnx-coverage.md"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--only", default="", help="run the tests whose name has this in it; writes no docs")
    parser.add_argument("--json", action="store_true", help="print every outcome as JSON")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/onnx-coverage.md as it is")
    args = parser.parse_args()
    tests = [test for test in node_tests() if args.only in test.name]
    hidden = args.json or not sys.stderr.isatty()
    outcomes = list(
        track(run_tests(tests, Subject(backend_named(args.backend))), "node tests", len(tests), disable=hidden)
    )
    counts = Counter(outcome.status for outcome in outcomes)
    if args.json:
        print(json.dumps([vars(outcome) for outcome in outcomes], indent=1))
    else:
        for outcome in outcomes:
            if outcome.status == "failed":
                print(f"WRONG {outcome.subject}: {' '.join(outcome.reason.split())[:200]}")
        print(
            f"{args.backend}: {counts['passed']} of {len(outcomes)} ONNX node tests pass, "
            f"{counts['skipped']} are refused at load, {counts['failed']} are wrong (onnx {onnx.__version__})"
        )
    if not args.only and not args.no_docs and args.backend == "native":
        DOCS.write_text(_page(outcomes, counts), encoding="utf-8")
    return 1 if counts["failed"] else 0


def _page(outcomes: list[Outcome], counts: Counter[str]) -> str:
    passed: Counter[str] = Counter()
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.status == "passed":
            passed.update(outcome.ops)
        else:
            by_reason[_short(outcome)].append(outcome.subject.removeprefix("test_"))
    lines = [
        "# ONNX coverage of the native backend",
        "",
        f"{counts['passed']} of the {len(outcomes)} node tests of onnx {onnx.__version__} pass, {counts['skipped']} "
        f"models are refused at load with the reason, {counts['failed']} give a wrong answer.",
        "",
        "This page is written by",
        "",
        "    python tests/conformance/run_onnx_nodes.py",
        "",
        "A model is either refused before it runs, every unsupported node listed with its reason, or computed within",
        'the bounds that the ONNX project sets in its test. `backend="auto"` goes on to the next backend when native',
        "refuses.",
        "",
        "Inputs that share a dim's name must agree in it when the model runs: between them nothing is broadcast, as",
        "some runtimes do that ignore the names.",
        "",
        "## Refused",
        "",
        "| tests | reason | for example |",
        "|---|---|---|",
    ]
    for reason, names in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"| {len(names)} | {reason} | {names[0]} |")
    lines += ["", "## Ops in tests that pass", "", "| op | tests |", "|---|---|"]
    lines += [f"| {op} | {count} |" for op, count in sorted(passed.items())]
    return "\n".join(lines) + "\n"


def _short(outcome: Outcome) -> str:
    return short_reason(outcome.reason).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
