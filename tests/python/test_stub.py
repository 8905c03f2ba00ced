"""The stub of the extension module says what the module has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import headrace

BIN = Path(sys.executable).parent


def test_the_stub_is_current(tmp_path: Path) -> None:
    subprocess.run([BIN / "pybind11-stubgen", "headrace._core", "-o", tmp_path], check=True, capture_output=True)
    made = tmp_path / "headrace" / "_core.pyi"
    subprocess.run([BIN / "ruff", "format", "-q", "--isolated", made], check=True)
    kept = tmp_path / "kept.pyi"
    kept.write_text((Path(headrace.__file__).parent / "_core.pyi").read_text())
    subprocess.run([BIN / "ruff", "format", "-q", "--isolated", kept], check=True)
    assert made.read_text() == kept.read_text(), "run `make stubs`"
