"""``headrace doctor``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from headrace.backend import Backend
    from headrace.hardware import Figures, Finding, Gpu, Hardware


@click.command("doctor")
@click.option(
    "--measure/--no-measure", default=True, show_default=True,
    help="Measure what the machine can do; a second, then cached.",
)  # fmt: skip
@click.option("--refresh", is_flag=True, help="Measure again, whatever the cache says.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(measure: bool, refresh: bool, as_json: bool) -> None:
    """Show what this process may use of the machine, what that can do, which backends work, and what is in the way.

    Exits with 1 where no backend works, since nothing can then be run.
    """
    from headrace.engine import backends as installed
    from headrace.hardware import findings, probe

    hardware = probe()
    figures = _figures(hardware, refresh) if measure or refresh else None
    found = findings(hardware)
    backends = [_report(name, backend) for name, backend in sorted(installed().items())]
    if as_json:
        report = {
            "hardware": hardware.to_dict(),
            "fingerprint": hardware.fingerprint,
            "figures": None if figures is None else figures.to_dict(),
            "findings": [finding.to_dict() for finding in found],
            "backends": backends,
        }
        click.echo(json.dumps(report, indent=2))
    else:
        _print(hardware, figures, found, backends)
    if not any(backend["ok"] for backend in backends):
        click.echo("headrace: no backend works here; `pip install headrace` brings native and reference", err=True)
        raise SystemExit(1)


def _figures(hardware: Hardware, refresh: bool) -> Figures | None:
    """None where nothing can be measured: the findings then say why."""
    from rich.console import Console

    from headrace.errors import HeadraceError
    from headrace.hardware import measure

    with Console(stderr=True).status("measuring") as status:
        try:
            return measure(hardware, refresh=refresh, progress=lambda what: status.update(f"measuring: {what}"))
        except (HeadraceError, ImportError, MemoryError):
            return None


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


def _print(
    hardware: Hardware, figures: Figures | None, found: Sequence[Finding], backends: list[dict[str, Any]]
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    machine = Table(title="Hardware", title_justify="left", show_header=False)
    unknown = "unknown"
    quota = "none" if hardware.cores_quota is None else f"{hardware.cores_quota:g}"
    kernels = ", ".join(hardware.kernel_isas) or "none: the native extension is not built"
    selected = hardware.isa_selected or "none, see HEADRACE_ISA"
    for key, value in (
        ("cpu", f"{hardware.cpu} ({hardware.arch})"),
        ("cores to use", str(hardware.cores)),
        ("cores online / in affinity / physical", _cores(hardware)),
        ("cgroup quota, CPUs", quota),
        ("hyperthreads per core", str(hardware.threads_per_core or unknown)),
        (
            "speeds of cores",
            ", ".join(f"{len(one.cpus)} x {one.speed:g}" for one in hardware.core_classes) or unknown,
        ),
        ("NUMA nodes", str(len(hardware.numa_nodes) or unknown)),
        ("instruction sets", " ".join(hardware.isa) or unknown),
        ("kernels built for", f"{kernels}; selected: {selected}"),
        ("caches", ", ".join(f"{name} {_size(size)}" for name, size in hardware.cache_bytes.items()) or unknown),
        ("memory available / total", f"{_size(hardware.memory_available_bytes)} / {_size(hardware.memory_bytes)}"),
        *((f"GPU {gpu.index}", _gpu(gpu)) for gpu in hardware.gpus),
        ("fingerprint", hardware.fingerprint),
    ):
        machine.add_row(key, value)
    console.print(machine)
    if figures is not None:
        _print_figures(console, figures)
    table = Table("backend", "works", "devices", "precisions", "why not", title="Backends", title_justify="left")
    for one in backends:
        works = "yes" if one["ok"] else "no"
        table.add_row(one["name"], works, ", ".join(one["devices"]), ", ".join(one["precisions"]), one["reason"])
    console.print(table)
    if found:
        console.print("Findings", style="italic")
    for finding in found:
        colour = "red" if finding.level == "problem" else "yellow"
        console.print(f"[{colour}]{finding.level}[/{colour}]: {finding.what}", highlight=False)
        console.print(f"    so: {finding.consequence}\n    do: {finding.remedy}", highlight=False, markup=False)


def _print_figures(console: Console, figures: Figures) -> None:
    from rich.table import Table

    counts = sorted(figures.fork_join_us)
    origin = f"{'cached, ' if figures.cached else ''}measured {figures.measured_at} in {figures.took_s:.1f} s"
    title = f"Measured, by threads ({origin})"
    table = Table("figure", *(str(count) for count in counts), title=title, title_justify="left")
    for precision, by_threads in figures.gemm_gflops.items():
        table.add_row(f"product in {precision}, GFLOP/s", *(f"{by_threads[count]:.0f}" for count in counts))
    table.add_row("copy, GB/s (read + written)", *(f"{figures.copy_gbytes_per_s[count]:.1f}" for count in counts))
    table.add_row("fork and join, us", *(f"{figures.fork_join_us[count]:.2f}" for count in counts))
    console.print(table)


def _gpu(gpu: Gpu) -> str:
    if gpu.why_not:
        return f"{gpu.name}: cannot be used, see the findings"
    memory = f"{_size(gpu.memory_free_bytes)} of {_size(gpu.memory_bytes)} free"
    return f"{gpu.name}, {memory}, compute capability {gpu.compute_capability}, driver {gpu.driver}, CUDA {gpu.cuda}"


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
