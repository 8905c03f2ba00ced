"""Where and with what a measurement was made."""

from __future__ import annotations

import datetime
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from headrace import hardware

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("onnxruntime", "openvino", "torch", "lightgbm", "xgboost", "treelite", "tl2cgen", "lleaves", "numpy")


def describe() -> dict[str, Any]:
    """The machine, the versions, the commit and the date."""
    found = hardware.probe()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "cpu": found.cpu,
        "cores": found.cores,
        "isa": found.isa_selected,
        "flags": list(found.isa),
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": versions,
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def sentence(machine: dict[str, Any], command: str) -> str:
    """The lines above a table: the command in a block, then where and with what it was run."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"    {command}\n\n{machine['cpu']}, {machine['cores']} cores, {machine['isa']}; {machine['date']}, commit "
        f"{machine['commit'] or 'unknown'}; Python {machine['python']}, {versions}."
    )
