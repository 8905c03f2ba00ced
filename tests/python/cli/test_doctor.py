"""``headrace doctor``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import headrace as hr
from headrace import discovery
from headrace.backend import CONTRACT, Availability, Backend, Capabilities, CompileOptions, Executable
from headrace.cli import doctor


class _Works(Backend):
    name = "works"
    contract = CONTRACT

    def probe(self) -> Availability:
        return Availability(True, devices=("cpu",))

    def capabilities(self) -> Capabilities:
        return Capabilities(precisions=("fp32", "bf16"))

    def unsupported(self, model: hr.Model) -> list[tuple[str, str, str]]:
        raise NotImplementedError

    def compile(self, model: hr.Model, options: CompileOptions) -> Executable:
        raise NotImplementedError


class _Lacks(_Works):
    name = "lacks"

    def probe(self) -> Availability:
        return Availability(False, "no GPU here")


def entries(monkeypatch: pytest.MonkeyPatch, **kinds: object) -> None:
    """Installs these backends and no others."""

    def loader(kind: object) -> Callable[[], Any]:
        def load() -> object:
            if isinstance(kind, Exception):
                raise kind
            return kind

        return load

    made = {name: discovery.Source("a test", loader(kind)) for name, kind in kinds.items()}
    monkeypatch.setattr(discovery, "sources", lambda: made)


def test_json_tells_hardware_and_backends_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, works=_Works, lacks=_Lacks, broken=ImportError("libfoo.so"))
    result = CliRunner().invoke(doctor.command, ["--json", "--no-measure"])
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert report["hardware"]["cores_affinity"] == len(os.sched_getaffinity(0))
    broken, lacks, works = report["backends"]
    assert works == {"name": "works", "ok": True, "reason": "", "devices": ["cpu"], "precisions": ["fp32", "bf16"]}
    assert (lacks["ok"], lacks["reason"]) == (False, "no GPU here")
    assert (broken["ok"], broken["reason"]) == (False, "a test: ImportError: libfoo.so")


def test_no_working_backend_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, lacks=_Lacks)
    result = CliRunner().invoke(doctor.command, ["--no-measure"])
    assert result.exit_code == 1
    assert "no GPU here" in result.output
    assert "no backend works here" in result.output


def test_on_this_machine_it_lists_the_installed_backends() -> None:
    result = CliRunner().invoke(doctor.command, ["--json", "--no-measure"])
    names = {backend["name"] for backend in json.loads(result.stdout)["backends"]}
    assert names >= {"native", "reference"}


def test_figures_and_findings_are_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entries(monkeypatch, works=_Works)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HEADRACE_ISA", "reference")
    table = CliRunner().invoke(doctor.command, [])
    assert table.exit_code == 0, table.output
    for expected in ("product in fp32, GFLOP/s", "fork and join, us", "problem:", "do: unset HEADRACE_ISA"):
        assert expected in table.output
    report = json.loads(CliRunner().invoke(doctor.command, ["--json"]).stdout)
    assert report["figures"]["cached"]
    assert report["findings"][0]["remedy"] == "unset HEADRACE_ISA"
    monkeypatch.setenv("HEADRACE_ISA", "nonsense")
    result = CliRunner().invoke(doctor.command, ["--json"])
    assert (result.exit_code, json.loads(result.stdout)["figures"]) == (0, None)
