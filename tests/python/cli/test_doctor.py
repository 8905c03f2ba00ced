"""``headrace doctor``."""

from __future__ import annotations

import json
import os
from importlib.metadata import EntryPoint

import pytest
from click.testing import CliRunner

from headrace.backend import Availability
from headrace.cli import doctor


class _Capable:
    precisions = ("fp32", "bf16")


class _Works:
    def probe(self) -> Availability:
        return Availability(True, devices=("cpu",))

    def capabilities(self) -> type[_Capable]:
        return _Capable


class _Lacks(_Works):
    def probe(self) -> Availability:
        return Availability(False, "no GPU here")


def entries(monkeypatch: pytest.MonkeyPatch, **kinds: object) -> None:
    class Fake:
        def __init__(self, name: str, kind: object) -> None:
            self.name = name
            self._kind = kind

        def load(self) -> object:
            if isinstance(self._kind, Exception):
                raise self._kind
            return self._kind

    made = [Fake(name, kind) for name, kind in kinds.items()]
    monkeypatch.setattr(doctor, "entry_points", lambda group: made if group == "headrace.backends" else [])


def test_json_tells_hardware_and_backends_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, works=_Works, lacks=_Lacks, broken=ImportError("libfoo.so"))
    result = CliRunner().invoke(doctor.command, ["--json"])
    assert result.exit_code == 0
    report = json.loads(result.output)
    assert report["hardware"]["cores_affinity"] == len(os.sched_getaffinity(0))
    broken, lacks, works = report["backends"]
    assert works == {"name": "works", "ok": True, "reason": "", "devices": ["cpu"], "precisions": ["fp32", "bf16"]}
    assert (lacks["ok"], lacks["reason"]) == (False, "no GPU here")
    assert (broken["ok"], broken["reason"]) == (False, "ImportError: libfoo.so")


def test_no_working_backend_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, lacks=_Lacks)
    result = CliRunner().invoke(doctor.command, [])
    assert result.exit_code == 1
    assert "no GPU here" in result.output
    assert "no backend works here" in result.output


def test_on_this_machine_it_lists_the_installed_backends() -> None:
    result = CliRunner().invoke(doctor.command, ["--json"])
    names = {backend["name"] for backend in json.loads(result.stdout)["backends"]}
    assert names >= {"native", "reference"}
    assert all(isinstance(entry, EntryPoint) for entry in doctor.entry_points(group="headrace.backends"))
