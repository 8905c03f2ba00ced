"""What this process may really use of the machine: cores, cgroup limits, instruction sets, caches and memory.

Machines lie in layers: 96 cores online, 8 in the affinity mask, 2.0 CPUs in the cgroup's quota. A thread pool sized
by the first number is an accident under the last. `probe` reads all layers and takes the smallest.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
        isa: Instruction-set flags of the CPU that kernels can be written for.
        kernel_isas: The ISAs whose kernels this build has and this CPU runs, slowest first; empty without the
            native extension.
        isa_selected: The one new Plans use.
        cache_bytes: ``"L1d"``, ``"L2"``, ``"L3"`` -> size of one such cache.
        memory_bytes: Memory of the machine or of the cgroup, whichever is less.
        memory_available_bytes: How much of it could be had now.
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

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON-able values."""
        return asdict(self)


def probe(root: str | Path = "/") -> Hardware:
    """Looks at the machine. Never raises: whatever cannot be read is None or empty.

    Args:
        root: Where ``proc`` and ``sys`` are; tests put a made-up machine there.
    """
    root = Path(root)
    online = os.cpu_count() or 1
    affinity = _affinity(online)
    physical = _physical_cores(root, affinity)
    quota = _cpu_quota(root)
    cpu, flags = _cpuinfo(root)
    kernel_isas, selected = _kernel_isas()
    total, available = _memory(root)
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
        cache_bytes=_caches(root, min(affinity)),
        memory_bytes=total,
        memory_available_bytes=available,
    )


def usable_cores() -> int:
    """`Hardware.cores` alone, at a fraction of the cost of `probe`."""
    root = Path("/")
    affinity = _affinity(os.cpu_count() or 1)
    return _whole_cores(affinity, _physical_cores(root, affinity), _cpu_quota(root))


def _whole_cores(affinity: set[int], physical: int | None, quota: float | None) -> int:
    limits = [float(len(affinity))]
    if physical is not None:
        limits.append(float(physical))
    if quota is not None:
        limits.append(quota)
    # 1.5 CPUs of quota is one thread running freely; a second one would be throttled half of the time.
    return max(1, int(min(limits)))


def _affinity(online: int) -> set[int]:
    try:
        return os.sched_getaffinity(0) or {0}
    except (AttributeError, OSError):  # no such call on macOS
        return set(range(online))


def _physical_cores(root: Path, cpus: set[int]) -> int | None:
    """Distinct cores behind the CPUs: hyperthreads of one core share their FMA units, so they count once."""
    siblings = {_read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    return None if None in siblings else len(siblings)


def _cpuinfo(root: Path) -> tuple[str | None, set[str]]:
    model: str | None = None
    flags: set[str] = set()
    implementer: int | None = None
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "model name" if model is None:
                model = value.strip()
            case "flags" | "Features":
                flags.update(value.split())
            case "CPU implementer":
                implementer = _hex(value)
            case "CPU part" if model is None and implementer is not None:
                part = _hex(value)
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


def _cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time allowed by the tightest cgroup at or above ours."""
    quotas: list[float] = []
    for folder in _cgroup_folders(root, "cpu"):
        if text := _read(folder / "cpu.max"):  # v2: "MAX PERIOD" or "max PERIOD"
            limit, _, period = text.partition(" ")
        else:  # v1: two files, -1 for no limit
            limit = _read(folder / "cpu.cfs_quota_us") or ""
            period = _read(folder / "cpu.cfs_period_us") or ""
        quota, length = _int(limit), _int(period)
        if quota is not None and length and quota > 0:
            quotas.append(quota / length)
    return min(quotas, default=None)


def _memory(root: Path) -> tuple[int | None, int | None]:
    """Total and available bytes, within the tightest cgroup at or above ours."""
    info: dict[str, int] = {}
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        kib = _int(value.removesuffix("kB"))
        if kib is not None:
            info[key] = kib * 1024
    total, available = info.get("MemTotal"), info.get("MemAvailable")
    for folder in _cgroup_folders(root, "memory"):
        limit = _int(_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or "")
        if limit is None or (total is not None and limit >= total):
            continue
        used = _int(_read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or "") or 0
        total = limit
        left = max(0, limit - used)
        available = left if available is None else min(available, left)
    return total, available


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Our cgroup's folder for one controller, v2 and v1, and every folder above it: each may set a limit."""
    mount = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            top = mount
        elif controller in controllers.split(","):
            top = mount / controller
        else:
            continue
        folder = top / path.strip("/")
        # In a container the path is the host's and does not exist here; the mount itself is then our cgroup.
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _caches(root: Path, cpu: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for index in range(8):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
        level, kind, size = (_read(folder / name) for name in ("level", "type", "size"))
        if level is None or size is None or kind == "Instruction":
            continue
        unit = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(size[-1:], 1)
        amount = _int(size.rstrip("KMG"))
        if amount is not None:
            sizes[f"L{level}{'d' if kind == 'Data' else ''}"] = amount * unit
    return sizes


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _int(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _hex(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None
