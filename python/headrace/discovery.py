"""Finds the installed backends: folders of ``headrace.backends`` and entry points of other packages.

Finding imports none of them. What cannot be imported or made, or was written to another version of the contract, is an
`UnavailableBackend`: listed with its error beside the others, which it does not disturb.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace.backend import CONTRACT, Availability, Backend, Capabilities, CompileOptions, Executable
from headrace.errors import BackendUnavailable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from headrace.model import Model

ENTRY_POINT_GROUP = "headrace.backends"


@dataclass(frozen=True)
class Source:
    """Where a backend was found.

    Attributes:
        origin: For people: a module, or a package with its version.
        load: Imports the adapter and gives its class.
    """

    origin: str
    load: Callable[[], type[Backend]]


class UnavailableBackend(Backend):
    """Stands for a backend that is installed and cannot be used, whatever the Model."""

    contract = CONTRACT

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason

    def probe(self) -> Availability:
        """Says why not."""
        return Availability(ok=False, reason=self.reason)

    def capabilities(self) -> Capabilities:
        """None at all."""
        return Capabilities(precisions=())

    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """The whole model."""
        return [("?", model.name, self.reason)]

    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Raises BackendUnavailable."""
        raise BackendUnavailable(f"backend {self.name!r} cannot be used here: {self.reason}")


def sources() -> dict[str, Source]:
    """Every installed backend by name, unloaded.

    Our own folders come first: where another package uses a taken name, its backend is listed as
    ``"<name> of <package>"`` and cannot be used.
    """
    found = {name: Source(module, _folder_loader(module)) for name, module in _folders().items()}
    for entry in _entry_points():
        if entry.value.split(":")[0] == f"headrace.backends.{entry.name}.adapter":
            continue  # one of the folders again, in the metadata of an older installation
        package = _package_of(entry)
        if entry.name not in found:
            found[entry.name] = Source(f"{package} ({entry.value})", entry.load)
            continue
        reason = f"the name is taken by {found[entry.name].origin}"
        found[f"{entry.name} of {package}"] = Source(f"{package} ({entry.value})", _refusing(reason))
    return found


def load(name: str, source: Source) -> Backend:
    """The backend, or an `UnavailableBackend` with what went wrong."""
    try:
        backend: Any = source.load()()
    except (Exception, SystemExit) as error:
        return UnavailableBackend(name, f"{source.origin}: {type(error).__name__}: {error}")
    if not isinstance(backend, Backend):
        return UnavailableBackend(name, f"{source.origin}: got a {type(backend)}, expected a headrace.backend.Backend")
    contract, own = getattr(backend, "contract", None), getattr(backend, "name", None)
    if contract != CONTRACT:
        return UnavailableBackend(
            name, f"{source.origin}: got a backend for contract {contract}, expected {CONTRACT}: install one for it"
        )
    if own != name:
        return UnavailableBackend(name, f"{source.origin}: got a backend that calls itself {own!r}, expected {name!r}")
    return backend


def _folders() -> dict[str, str]:
    """Folder name -> adapter module, of those under ``headrace.backends``."""
    from pkgutil import iter_modules

    return {
        found.name: f"headrace.backends.{found.name}.adapter"
        for found in iter_modules(import_module("headrace.backends").__path__)
        if found.ispkg
    }


def _folder_loader(module: str) -> Callable[[], type[Backend]]:
    def load_class() -> type[Backend]:
        kinds = [
            kind
            for kind in vars(import_module(module)).values()
            if isinstance(kind, type) and issubclass(kind, Backend) and kind.__module__ == module
        ]
        if len(kinds) != 1:
            raise TypeError(f"got {len(kinds)} classes derived from Backend, expected one")
        return kinds[0]

    return load_class


def _refusing(reason: str) -> Callable[[], type[Backend]]:
    def load_class() -> type[Backend]:
        raise BackendUnavailable(reason)

    return load_class


def _entry_points() -> list[EntryPoint]:
    # Saved Plans and our own backends do without, and the import costs as much as the rest of this module.
    from importlib.metadata import entry_points

    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: (entry.name, _package_of(entry)))


def _package_of(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unnamed package"
