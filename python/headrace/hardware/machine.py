"""Cores, instruction sets, caches and memory, as this process sees them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headrace.hardware import cgroup, gpus, topology
from headrace.hardware.files import hexadecimal, read

# The flags kernels can be written for, as /proc/cpuinfo spells them on x86 ("flags") and on aarch64 ("Features").
_ISA_FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip

# aarch64's /proc/cpuinfo gives numbers instead of a name: (implementer, part), as Linux's cputype.h lists them.
_ARM_CORES = {
    (0x41, 0xD03): "Cortex-A53", (0x41, 0xD05): "Cortex-A55", (0x41, 0xD07): "Cortex-A57", (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76", (0x41, 0xD0C): "Neoverse N1", (0x41, 0xD40): "Neoverse V1",
    (0x41, 0xD49): "Neoverse N2", (0x41, 0xD4F): "Neoverse V2", (0x4E, 0x004): "NVIDIA Carmel",
    (0xC0, 0xAC3): "Ampere-1", (0xC0, 0xAC4): "Ampere-1a",
}  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """The machine as this process sees it. A number that could not be found out is None; nothing is guessed.

    Attributes:
        arch: Machine architecture, as ``uname -m`` says it.
        cpu: The CPU's model name, or on aarch64 that of its core.
        cores_online: Logical CPUs of the machine.
        cores_affinity: Logical CPUs this process may be scheduled on.
        cores_physical: Physical cores behind those.
        cores_quota: CPUs' worth of time the cgroup allows, or None for no limit.
        cores: Whole cores worth a thread each: the smallest of the above, at least 1.
        threads_per_core: Hyperthreads of one core; 1 where there are none.
        core_classes: The CPUs in the affinity mask by speed, fastest first: more than one on big.LITTLE and hybrid
            machines; none where the kernel does not say.
        numa_nodes: The NUMA nodes that hold CPUs of the affinity mask.
        isa: Instruction-set flags of the CPU that kernels can be written for.
        kernel_isas: The ISAs whose kernels this build has and this CPU runs, slowest first; empty without the
            native extension.
        isa_selected: The one new Plans use.
        cache_bytes: ``"L1d"``, ``"L2"``, ``"L3"`` -> size of one such cache.
        memory_bytes: Memory of the machine or of the cgroup, whichever is less.
        memory_available_bytes: How much of it could be had now.
        gpus: GPUs of NVIDIA, usable or not; see `headrace.hardware.gpus.Gpu`.
    """

    arch: str
    cpu: str
    cores_online: int
    cores_affinity: int
    cores_physical: int | None
    cores_quota: float | None
    cores: int
    isa: tuple[str, ...]
    kernel_isas: tuple[str, ...]
    isa_selected: str | None
    cache_bytes: dict[str, int] = field(default_factory=dict)
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    threads_per_core: int | None = None
    core_classes: tuple[topology.CoreClass, ...] = ()
    numa_nodes: tuple[topology.NumaNode, ...] = ()
    gpus: tuple[gpus.Gpu, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON-able values."""
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """Names machines on which the same plan does the same: 16 hex digits.

        What a process may use (cores, quota), what runs there (CPU, ISA, GPUs and their driver), and what decides
        about speed besides (caches, hyperthreads, NUMA). Not how much memory there is or is left.
        """
        about = {
            "arch": self.arch,
            "cpu": self.cpu,
            "cores": self.cores,
            "quota": self.cores_quota,
            "isa": self.isa_selected,
            "caches": self.cache_bytes,
            "threads_per_core": self.threads_per_core,
            "speeds": [(one.speed, len(one.cpus)) for one in self.core_classes],
            "numa": len(self.numa_nodes),
            "gpus": [(gpu.name, gpu.memory_bytes, gpu.driver) for gpu in self.gpus],
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def summary(self) -> str:
        """The machine in a line, for people."""
        found = f"{self.cpu}, {self.cores} cores, {self.isa_selected or self.arch}"
        return ", ".join([found, *(gpu.name for gpu in self.gpus)])


def probe(root: str | Path = "/", cpus: Collection[int] | None = None) -> Hardware:
    """Looks at the machine. Never raises: whatever cannot be read is None or empty.

    Args:
        root: Where ``proc`` and ``sys`` are; tests put a made-up machine there.
        cpus: The affinity mask; None for that of this process.
    """
    root = Path(root)
    switched_on = topology.online(root)
    online = len(switched_on) if switched_on else os.cpu_count() or 1
    affinity = _affinity(online) if cpus is None else frozenset(cpus)
    # A mask may name CPUs that were switched off since.
    affinity = (affinity & switched_on if switched_on else affinity) or affinity
    physical = topology.physical_cores(root, affinity)
    quota = cgroup.cpu_quota(root)
    cpu, flags = _cpuinfo(root)
    kernel_isas, selected = _kernel_isas()
    total, available = cgroup.memory(root)
    return Hardware(
        arch=platform.machine(),
        cpu=cpu or platform.processor() or "unknown",
        cores_online=online,
        cores_affinity=len(affinity),
        cores_physical=physical,
        cores_quota=quota,
        cores=_whole_cores(affinity, physical, quota),
        isa=tuple(flag for flag in _ISA_FLAGS if flag in flags),
        kernel_isas=kernel_isas,
        isa_selected=selected,
        cache_bytes=topology.caches(root, min(affinity)),
        memory_bytes=total,
        memory_available_bytes=available,
        threads_per_core=topology.threads_per_core(root, affinity),
        core_classes=topology.core_classes(root, affinity),
        numa_nodes=topology.numa_nodes(root, affinity),
        gpus=gpus.find(root),
    )


def usable_cores() -> int:
    """`Hardware.cores` alone, at a fraction of the cost of `probe`."""
    root = Path("/")
    affinity = _affinity(os.cpu_count() or 1)
    return _whole_cores(affinity, topology.physical_cores(root, affinity), cgroup.cpu_quota(root))


def _whole_cores(affinity: frozenset[int], physical: int | None, quota: float | None) -> int:
    limits = [float(len(affinity))]
    if physical is not None:
        limits.append(float(physical))
    if quota is not None:
        limits.append(quota)
    # 1.5 CPUs of quota is one thread running freely; a second one would be throttled half of the time.
    return max(1, int(min(limits)))


def _affinity(online: int) -> frozenset[int]:
    try:
        return frozenset(os.sched_getaffinity(0)) or frozenset({0})
    except (AttributeError, OSError):  # no such call on macOS
        return frozenset(range(online))


def _cpuinfo(root: Path) -> tuple[str | None, set[str]]:
    model: str | None = None
    flags: set[str] = set()
    implementer: int | None = None
    for line in (read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "model name" if model is None:
                model = value.strip()
            case "flags" | "Features":
                flags.update(value.split())
            case "CPU implementer":
                implementer = hexadecimal(value)
            case "CPU part" if model is None and implementer is not None:
                part = hexadecimal(value)
                if part is not None:
                    unnamed = f"implementer {implementer:#04x}, part {part:#05x}"
                    model = _ARM_CORES.get((implementer, part), unnamed)
    return model, flags


def _kernel_isas() -> tuple[tuple[str, ...], str | None]:
    """The ISAs with kernels here, and the selected one: None without the extension or where HEADRACE_ISA is wrong."""
    try:
        from headrace import _core

        available = tuple(_core.available_isas())
    except (ImportError, AttributeError):
        return (), None
    try:
        return available, str(_core.selected_isa())
    except Exception:  # HEADRACE_ISA names one that is not here; `probe` reports, compiling raises
        return available, None
