"""``headrace simulate``: what it prints, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from headrace.cli.simulate import command

SHORT = ["--hours", "0.05", "--peak-rps", "60", "--base-rps", "20", "--no-progress"]


def run(*args: str) -> Result:
    return CliRunner().invoke(command, list(args))


def test_json_has_every_policy_with_its_series() -> None:
    result = run("--make", "mmpp", *SHORT, "--policy", "headrace,hpa", "--json", "--replica-cost", "2")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["policy"] for row in report["policies"]] == ["Headrace", "HPA-like"]
    assert report["trace"]["seconds"] == 180
    for row in report["policies"]:
        assert row["arrived"] == row["ok"] + row["refused"] + row["expired"] > 1000
        assert row["cost"] == 2 * row["replica_hours"] > 0
        assert len(row["series"]["at_s"]) == len(row["series"]["p99_s"]) > 50
    again = json.loads(run("--make", "mmpp", *SHORT, "--policy", "headrace", "--json").stdout)
    assert again["policies"][0]["series"] == report["policies"][0]["series"]


def test_a_file_is_replayed_and_drawn(tmp_path: Path) -> None:
    trace, plot = tmp_path / "calls.csv", tmp_path / "out" / "day.svg"
    trace.write_text("arrival_s\n" + "\n".join(str(n / 4) for n in range(100)))
    result = run("--trace", str(trace), "--policy", "headrace", "--plot", str(plot), "--no-progress")
    assert result.exit_code == 0, result.output
    assert "Headrace" in result.output
    assert "100.000%" in result.output
    assert plot.read_text().lstrip().startswith("<?xml")


def test_it_wants_one_trace_and_known_policies(tmp_path: Path) -> None:
    assert "expected one of them" in run().output
    assert "expected one of them" in run("--make", "step", "--trace", "x.csv").output
    assert "got 'k8s', expected some of headrace, ray, hpa" in run("--make", "step", *SHORT, "--policy", "k8s").output
    bounds = run("--make", "step", *SHORT, "--min-replicas", "3", "--max-replicas", "2")
    assert "expected at most --max-replicas 2" in bounds.output
    missing = run("--trace", str(tmp_path / "none.csv"))
    assert "none.csv: got" in str(missing.exception)
