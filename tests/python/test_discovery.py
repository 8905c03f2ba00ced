"""Backends are found by folder and by entry point; a broken one is listed, and disturbs no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import headrace as hr
from headrace import discovery
from headrace.backend import CONTRACT
from headrace.engine import backend_named
from headrace.errors import BackendUnavailable

GOOD = """
from headrace.backend import Availability, Backend, Capabilities

class Good(Backend):
    name = "good"
    contract = {contract}

    def probe(self):
        return Availability(True, devices=("cpu",))

    def capabilities(self):
        return Capabilities()

    def unsupported(self, model):
        return []

    def compile(self, model, options):
        raise NotImplementedError
"""


def install(folder: Path, package: str, entry: str, code: str) -> None:
    """A package as pip would lay it out, with one entry point."""
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[headrace.backends]\n{entry}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_our_own_are_found_by_folder_without_being_imported() -> None:
    code = (
        "import sys, headrace.discovery as d\n"
        "found = set(d.sources())\n"
        "assert found >= {'native', 'reference', 'torch'}, found\n"
        "loaded = [name for name in sys.modules if name.startswith('headrace.backends.') or name == 'torch']\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_another_package_adds_a_backend_by_an_entry_point(site: Path) -> None:
    install(site, "good_backend", "good = good_backend:Good", GOOD.format(contract=CONTRACT))
    assert hr.backends()["good"].probe().ok
    assert next(iter(hr.backends())) == "native"


@pytest.mark.parametrize(
    ("entry", "code", "why"),
    [
        (
            "bad = bad_backend:Missing",
            "import libfoo_that_is_not_there",
            "No module named 'libfoo",
        ),
        ("bad = bad_backend:Missing", "", "AttributeError"),
        ("bad = bad_backend:Missing", "raise SystemExit(3)", "SystemExit: 3"),
        ("bad = bad_backend:dict", "dict = dict", "expected a headrace.backend.Backend"),
        ("bad = bad_backend:Good", GOOD.format(contract=CONTRACT + 1), f"contract {CONTRACT + 1}, expected {CONTRACT}"),
        ("bad = bad_backend:Good", GOOD.format(contract=CONTRACT), "calls itself 'good', expected 'bad'"),
    ],
)
def test_a_broken_one_is_listed_with_its_error_beside_the_others(site: Path, entry: str, code: str, why: str) -> None:
    install(site, "bad_backend", entry, code)
    sys.modules.pop("bad_backend", None)
    found = hr.backends()
    assert found.keys() >= {"native", "reference", "bad"}
    assert found["native"].probe().ok
    availability = found["bad"].probe()
    assert not availability.ok
    assert why in availability.reason
    assert "bad_backend 1.2" in availability.reason
    with pytest.raises(BackendUnavailable, match="backend 'bad' cannot be used here: "):
        backend_named("bad")


def test_a_taken_name_stays_with_who_had_it(site: Path) -> None:
    install(site, "rival", "native = rival:Good", GOOD.format(contract=CONTRACT).replace('"good"', '"native"'))
    found = hr.backends()
    assert type(found["native"]).__module__ == "headrace.backends.native.adapter"
    assert "the name is taken by headrace.backends.native.adapter" in found["native of rival 1.2"].probe().reason


def test_every_folder_under_backends_is_a_working_adapter_module() -> None:
    for name, source in discovery.sources().items():
        if source.origin.startswith("headrace.backends."):
            assert not isinstance(discovery.load(name, source), discovery.UnavailableBackend), name
