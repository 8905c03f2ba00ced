"""``headrace doctor``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from headrace.backend import Backend
    from headrace.hardware import Hardware


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Show what this process may use of the machine, and which backends work.

    Exits with 1 where no backend works, since nothing can then be run.
    """
    from headrace.engine import backends as installed
    from headrace.hardware import probe

    hardware = probe()
    backends = [_report(name, backend) for name, backend in sorted(installed().items())]
    if as_json:
        click.echo(json.dumps({"hardware": hardware.to_dict(), "backends": backends}, indent=2))
    else:
        _print(hardware, backends)
    if not any(backend["ok"] for backend in backends):
        click.echo("headrace: no backend works here; `pip install headrace` brings native and reference", err=True)
        raise SystemExit(1)


def _report(name: str, backend: Backend) -> dict[str, Any]:
    """Whether one installed Backend works here. A broken one is a finding, so nothing it raises gets out."""
    report: dict[str, Any] = {"name": name, "ok": False, "reason": "", "devices": [], "precisions": []}
    try:
        availability = backend.probe()
        report.update(ok=availability.ok, reason=availability.reason, devices=list(availability.devices))
        report["precisions"] = list(backend.capabilities().precisions)
    except Exception as error:
        report["reason"] = f"{type(error).__name__}: {error}"
    return report


def _print(hardware: Hardware, backends: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    machine = Table(title="Hardware", title_justify="left", show_header=False)
    quota = "none" if hardware.cores_quota is None else f"{hardware.cores_quota:g}"
    kernels = ", ".join(hardware.kernel_isas) or "none: the native extension is not built"
    selected = hardware.isa_selected or "none, see HEADRACE_ISA"
    for key, value in (
        ("cpu", f"{hardware.cpu} ({hardware.arch})"),
        ("cores to use", str(hardware.cores)),
        ("cores online / in affinity / physical", _cores(hardware)),
        ("cgroup quota, CPUs", quota),
        ("instruction sets", " ".join(hardware.isa) or "unknown"),
        ("kernels built for", f"{kernels}; selected: {selected}"),
        ("caches", ", ".join(f"{name} {_size(size)}" for name, size in hardware.cache_bytes.items()) or "unknown"),
        ("memory available / total", f"{_size(hardware.memory_available_bytes)} / {_size(hardware.memory_bytes)}"),
    ):
        machine.add_row(key, value)
    console.print(machine)
    table = Table("backend", "works", "devices", "precisions", "why not", title="Backends", title_justify="left")
    for one in backends:
        works = "yes" if one["ok"] else "no"
        table.add_row(one["name"], works, ", ".join(one["devices"]), ", ".join(one["precisions"]), one["reason"])
    console.print(table)


def _cores(hardware: Hardware) -> str:
    physical = "unknown" if hardware.cores_physical is None else hardware.cores_physical
    return f"{hardware.cores_online} / {hardware.cores_affinity} / {physical}"


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    for unit, scale in (("GiB", 1024**3), ("MiB", 1024**2)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1024:.3g} KiB"
