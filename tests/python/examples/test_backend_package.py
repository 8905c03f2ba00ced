"""The example of a backend in a package of its own: installed as users install it, it gets its certificate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[3] / "examples" / "backend-onnxruntime"


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that finds the package, in a folder of its own, among the installed ones."""
    source, target = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("target")
    shutil.copytree(PACKAGE, source)  # building leaves files behind
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", target, source],
        check=True,
        timeout=120,
    )
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(target)])
    }


def headrace(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    code = "from headrace.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=200)


def test_it_is_short() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py"))
    assert lines < 150


def test_installed_it_is_certified(env: dict[str, str]) -> None:
    done = headrace(env, "certify", "onnxruntime", "--short", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    certificate = json.loads(done.stdout)
    assert certificate["ok"]
    assert certificate["counts"]["behaviour"] == {"passed": 8, "failed": 0, "skipped": 0, "ops": 0}
    assert certificate["counts"]["models"]["passed"] == 14
    assert certificate["counts"]["ONNX node tests"]["passed"] >= 50
