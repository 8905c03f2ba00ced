"""The files that a version of a model is made of."""

from __future__ import annotations

from pathlib import Path

from headrace.errors import HeadraceError
from headrace.plan_file import PLAN_FILE


def version_files(version: int, path: Path) -> list[tuple[str, Path]]:
    """The files in a version's folder, or a file that lies among others and the weights that it names beside itself.

    What is noted beside a saved plan while it is served (``plan.headrace.parity``) is no file of the version.

    Args:
        version: Its number, which its folder is named by.
        path: Its model file.

    Returns:
        Each with its name in that folder, in the order of their names. Blocking: it looks through the folder.

    Raises:
        OSError: The folder cannot be read.
    """
    folder = path.parent
    if folder.name != str(version) or not folder.is_dir():
        return [(path.name, path), *((name, folder / name) for name in _weights_beside(path))]
    found = ((str(file.relative_to(folder)), file) for file in folder.rglob("*") if file.is_file())
    return sorted((name, file) for name, file in found if not name.startswith(f"{PLAN_FILE}."))


def _weights_beside(path: Path) -> list[str]:
    """The files of an ONNX file's external data; none of a file that is no ONNX, which whoever opens it will tell."""
    from headrace.graph.onnx_file import external_files

    try:
        return external_files(path)
    except (OSError, HeadraceError):
        return []
