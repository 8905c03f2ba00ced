"""``headrace certify``: the table, the JSON, the exit code. The suite itself is tested in tests/conformance."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import headrace.conformance
from headrace.cli import certify as module
from headrace.conformance import Certificate, Outcome

GOOD = [
    Outcome("mlp", "passed", "", ("Relu", "headrace.Linear")),
    Outcome("forest", "skipped", "Tree: no kernel; more"),
]
BAD = [Outcome("attention", "failed", "output 'y': got other bits than alone")]


def certified(monkeypatch: pytest.MonkeyPatch, outcomes: list[Outcome]) -> None:
    def fake(backend, *, device, short, models, progress):  # type: ignore[no-untyped-def]
        for done in range(3):
            progress("models", done, 2)
        return Certificate(backend.name, {"device": device or "cpu (numpy)"}, short, {"models": outcomes})

    monkeypatch.setattr(headrace.conformance, "certify", fake)


def test_a_certificate_lists_counts_and_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    certified(monkeypatch, GOOD)
    done = CliRunner().invoke(module.command, ["reference"])
    assert done.exit_code == 0, done.output
    assert "1  Tree: no kernel (forest)" in done.stdout
    assert done.stdout.endswith("reference: certified\n")


def test_json_holds_every_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    certified(monkeypatch, GOOD)
    report = json.loads(CliRunner().invoke(module.command, ["reference", "--json", "--short"]).stdout)
    assert report["ok"]
    assert report["short"]
    assert report["counts"] == {"models": {"passed": 1, "failed": 0, "skipped": 1, "ops": 2}}
    assert report["outcomes"]["models"][1] == {
        "subject": "forest", "status": "skipped", "reason": "Tree: no kernel; more", "ops": []
    }  # fmt: skip


def test_anything_wrong_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    certified(monkeypatch, GOOD + BAD)
    done = CliRunner().invoke(module.command, ["reference"])
    assert done.exit_code == 1
    assert "FAILED  attention: output 'y': got other bits than alone" in done.stdout
    assert "reference: NOT certified: 1 failed" in done.stdout
    assert CliRunner().invoke(module.command, ["reference", "--json"]).exit_code == 1
