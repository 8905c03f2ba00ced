"""Where NVIDIA's cuBLASLt may be: in its Python package, in a CUDA toolkit, and wherever the loader looks."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

# Version -> the folder of its Python package (nvidia-cublas, nvidia-cublas-cu12) below the namespace package "nvidia".
_PACKAGES = {13: "cu13/lib", 12: "cublas/lib"}


def cublaslt_libraries() -> tuple[str, ...]:
    """Libraries to try, the best first: paths of files that exist, and names for the loader, which may find none."""
    return tuple(name for version in _PACKAGES for name in [*_files(version), _name(version)])


def finds_cublaslt() -> bool:
    """Whether one of them is there. Does not load it, which would take half a gigabyte."""
    return any(True for version in _PACKAGES for _ in _files(version)) or find_library("cublasLt") is not None


def _name(version: int) -> str:
    return f"libcublasLt.so.{version}"


def _files(version: int) -> Iterator[str]:
    folders = [folder / _PACKAGES[version] for folder in _nvidia()]
    if home := os.environ.get("CUDA_HOME"):
        folders.append(Path(home) / "lib64")
    for folder in folders:
        if (path := folder / _name(version)).is_file():
            yield str(path)


def _nvidia() -> list[Path]:
    """The folders of NVIDIA's Python packages."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):  # something else of that name
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
