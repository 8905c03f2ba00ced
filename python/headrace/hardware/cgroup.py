"""The limits that a container or a service manager sets: CPU quota and memory, cgroup v1 and v2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from headrace.hardware.files import integer, read


def cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time allowed by the tightest cgroup at or above ours; None for no limit."""
    quotas: list[float] = []
    for folder in _folders(root, "cpu"):
        if text := read(folder / "cpu.max"):  # v2: "MAX PERIOD" or "max PERIOD"
            limit, _, period = text.partition(" ")
        else:  # v1: two files, -1 for no limit
            limit = read(folder / "cpu.cfs_quota_us") or ""
            period = read(folder / "cpu.cfs_period_us") or ""
        quota, length = integer(limit), integer(period)
        if quota is not None and length is not None and quota > 0 and length > 0:
            quotas.append(quota / length)
    return min(quotas, default=None)


def memory(root: Path) -> tuple[int | None, int | None]:
    """Total and available bytes, within the tightest cgroup at or above ours."""
    info: dict[str, int] = {}
    for line in (read(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        kib = integer(value.removesuffix("kB"))
        if kib is not None:
            info[key] = kib * 1024
    total, available = info.get("MemTotal"), info.get("MemAvailable")
    for folder in _folders(root, "memory"):
        limit = integer(read(folder / "memory.max") or read(folder / "memory.limit_in_bytes"))
        if limit is None or (total is not None and limit >= total):
            continue
        used = integer(read(folder / "memory.current") or read(folder / "memory.usage_in_bytes")) or 0
        total = limit
        left = max(0, limit - used)
        available = left if available is None else min(available, left)
    return total, available


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Our cgroup's folder for one controller, v2 and v1, and every folder above it: each may set a limit."""
    mount = root / "sys/fs/cgroup"
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
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
        while folder not in (top, folder.parent):
            yield folder
            folder = folder.parent
        yield top
