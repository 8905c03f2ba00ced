"""How the CPUs of a machine belong together: hyperthreads, NUMA nodes, fast and slow cores, caches."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from headrace.hardware.files import cpu_list, integer, numbered, read

_CPUS = Path("sys/devices/system/cpu")
# Clocks of one kind of core differ by some percent where the maker prefers a few of them; big and little ones differ
# by far more.
_SAME_SPEED = 0.85


@dataclass(frozen=True)
class NumaNode:
    """CPUs of this process that share a memory.

    Attributes:
        number: As the kernel counts.
        cpus: Those this process may run on.
        memory_bytes: Of the node; None if unknown.
    """

    number: int
    cpus: tuple[int, ...]
    memory_bytes: int | None


@dataclass(frozen=True)
class CoreClass:
    """CPUs of one speed.

    Attributes:
        speed: Relative to the fastest of the machine, which has 1.
        cpus: Those this process may run on.
        max_mhz: Their highest clock; None if unknown.
    """

    speed: float
    cpus: tuple[int, ...]
    max_mhz: int | None


def online(root: Path) -> frozenset[int] | None:
    """The CPUs that are switched on."""
    return cpu_list(read(root / _CPUS / "online")) or None


def physical_cores(root: Path, cpus: Collection[int]) -> int | None:
    """Distinct cores behind the CPUs: hyperthreads of one core share their FMA units, so they count once."""
    siblings = {read(root / _CPUS / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    return None if None in siblings else len(siblings)


def threads_per_core(root: Path, cpus: Collection[int]) -> int | None:
    """Hyperthreads of one core, whether this process may run on all of them or not; None if unknown."""
    lists = [cpu_list(read(root / _CPUS / f"cpu{cpu}/topology/thread_siblings_list")) for cpu in cpus]
    return max((len(siblings) for siblings in lists if siblings), default=None)


def numa_nodes(root: Path, cpus: Collection[int]) -> tuple[NumaNode, ...]:
    """The NUMA nodes that hold some of the CPUs; none where the kernel says nothing about it."""
    nodes = []
    for number, folder in numbered(root / "sys/devices/system/node", "node"):
        ours = (cpu_list(read(folder / "cpulist")) or frozenset()) & set(cpus)
        if ours:
            total = re.search(r"MemTotal:\s*(\d+) kB", read(folder / "meminfo") or "")
            memory_bytes = int(total[1]) * 1024 if total else None
            nodes.append(NumaNode(number, tuple(sorted(ours)), memory_bytes))
    return tuple(nodes)


def core_classes(root: Path, cpus: Collection[int]) -> tuple[CoreClass, ...]:
    """The CPUs by speed, fastest first; none where the kernel says it of no or only some of them.

    The kernel's own estimate (``cpu_capacity``) counts where there is one, else the highest clocks are compared.
    """
    clocks = {cpu: _max_mhz(root, cpu) for cpu in cpus}
    speeds = {cpu: integer(read(root / _CPUS / f"cpu{cpu}/cpu_capacity")) for cpu in cpus}
    if not all(speeds.values()):
        speeds = clocks
    known = {cpu: speed for cpu, speed in speeds.items() if speed}
    if not known or len(known) < len(speeds):
        return ()
    classes: list[tuple[int, list[int]]] = []
    for cpu, speed in sorted(known.items(), key=lambda item: (-item[1], item[0])):
        if classes and speed >= _SAME_SPEED * classes[-1][0]:
            classes[-1][1].append(cpu)
        else:
            classes.append((speed, [cpu]))
    fastest = classes[0][0]
    return tuple(
        CoreClass(round(speed / fastest, 3), tuple(sorted(members)), clocks[members[0]]) for speed, members in classes
    )


def _max_mhz(root: Path, cpu: int) -> int | None:
    khz = integer(read(root / _CPUS / f"cpu{cpu}/cpufreq/cpuinfo_max_freq"))
    return None if khz is None else khz // 1000


def governor(root: Path, cpus: Collection[int]) -> str | None:
    """What decides about the clocks, such as ``powersave``; None if unknown or not the same everywhere."""
    found = {read(root / _CPUS / f"cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus}
    return found.pop() if len(found) == 1 else None


def caches(root: Path, cpu: int) -> dict[str, int]:
    """``"L1d"``, ``"L2"``, ``"L3"`` -> bytes of one such cache."""
    sizes: dict[str, int] = {}
    for _, folder in numbered(root / _CPUS / f"cpu{cpu}/cache", "index"):
        level, kind, size = (read(folder / name) for name in ("level", "type", "size"))
        if level is None or not size or kind == "Instruction":
            continue
        unit = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(size[-1:], 1)
        amount = integer(size.rstrip("KMG"))
        if amount is not None:
            sizes[f"L{level}{'d' if kind == 'Data' else ''}"] = amount * unit
    return sizes
