"""The probe, on this machine and on made-up ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from headrace.hardware import probe


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


MEMINFO = "MemTotal:       16384000 kB\nMemFree:  100 kB\nMemAvailable:    8192000 kB"


def test_this_machine_agrees_with_psutil() -> None:
    hardware = probe()
    assert hardware.cores_online == psutil.cpu_count()
    assert hardware.cores_affinity == len(psutil.Process().cpu_affinity())
    assert 1 <= hardware.cores <= hardware.cores_affinity
    assert hardware.memory_bytes is not None
    assert hardware.memory_bytes <= psutil.virtual_memory().total
    json.dumps(hardware.to_dict())


def test_an_unreadable_machine_gives_no_guesses_and_no_error(tmp_path: Path) -> None:
    hardware = probe(tmp_path)
    assert (hardware.cores_physical, hardware.cores_quota, hardware.memory_bytes) == (None, None, None)
    assert hardware.isa == ()
    assert hardware.cores >= 1


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "0::/host/path/not/here", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/pod\n3:memory:/pod",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "nonsense"}, None),
    ],
)
def test_the_tightest_cpu_quota_counts(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    hardware = probe(write(tmp_path, files))
    assert hardware.cores_quota == quota
    if quota is not None:
        assert hardware.cores == max(1, int(min(quota, hardware.cores_affinity)))


@pytest.mark.parametrize(
    ("files", "total", "available"),
    [
        ({}, 16384000 * 1024, 8192000 * 1024),
        ({"proc/self/cgroup": "0::/p", "sys/fs/cgroup/p/memory.max": "max"}, 16384000 * 1024, 8192000 * 1024),
        (
            {
                "proc/self/cgroup": "0::/p",
                "sys/fs/cgroup/p/memory.max": "1000000000",
                "sys/fs/cgroup/p/memory.current": "400000000",
            },
            1_000_000_000,
            600_000_000,
        ),
        (
            {"proc/self/cgroup": "4:memory:/p", "sys/fs/cgroup/memory/p/memory.limit_in_bytes": "9223372036854771712"},
            16384000 * 1024,
            8192000 * 1024,
        ),
    ],
)
def test_memory_is_the_cgroups_where_it_is_less(
    tmp_path: Path, files: dict[str, str], total: int, available: int
) -> None:
    hardware = probe(write(tmp_path, {"proc/meminfo": MEMINFO, **files}))
    assert (hardware.memory_bytes, hardware.memory_available_bytes) == (total, available)


def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    cpus = os.sched_getaffinity(0)
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    hardware = probe(write(tmp_path, {topology.format(cpu): "0-99" for cpu in cpus}))
    assert (hardware.cores_physical, hardware.cores) == (1, 1)


def test_cpuinfo_and_caches_of_arm_and_x86(tmp_path: Path) -> None:
    first = min(os.sched_getaffinity(0))
    cache = f"sys/devices/system/cpu/cpu{first}/cache/"
    files = {
        "proc/cpuinfo": "processor : 0\nFeatures\t: fp asimd asimddp bf16 i8mm sve unknownflag\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n\n"
        "processor : 1\nCPU implementer\t: 0x41\nCPU part\t: 0xd03",
        cache + "index0/level": "1",
        cache + "index0/type": "Data",
        cache + "index0/size": "48K",
        cache + "index1/level": "1",
        cache + "index1/type": "Instruction",
        cache + "index1/size": "32K",
        cache + "index2/level": "2",
        cache + "index2/type": "Unified",
        cache + "index2/size": "2M",
    }
    hardware = probe(write(tmp_path / "arm", files))
    assert hardware.isa == ("asimd", "asimddp", "bf16", "i8mm", "sve")
    assert hardware.cache_bytes == {"L1d": 48 * 1024, "L2": 2 * 1024 * 1024}
    assert hardware.cpu == "Neoverse V1"
    x86 = {"proc/cpuinfo": "model name\t: Some CPU @ 2: x\nflags\t\t: fpu avx2 fma avx512f"}
    hardware = probe(write(tmp_path / "x86", x86))
    assert hardware.isa == ("fma", "avx2", "avx512f")
    assert hardware.cpu == "Some CPU @ 2: x"


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("CPU implementer : 0x41\nCPU part : 0xd0c", "Neoverse N1"),
        ("CPU implementer : 0x61\nCPU part : 0x022", "implementer 0x61, part 0x022"),
        ("CPU part : 0xd0c", None),
        ("CPU implementer : nonsense\nCPU part : 0xd0c", None),
    ],
)
def test_arm_cores_have_names_or_at_least_numbers(tmp_path: Path, lines: str, name: str | None) -> None:
    unknown = probe(tmp_path / "nothing").cpu
    assert probe(write(tmp_path, {"proc/cpuinfo": lines})).cpu == (name or unknown)
