"""The probe, on this machine and on made-up ones."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from headrace.hardware import Figures, Gpu, cublaslt, findings, gpus, measure, measured, probe


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


# A machine like a telephone: four slow cores and two fast ones, of which one was switched off.
BIG_LITTLE = {
    "sys/devices/system/cpu/online": "0-4",
    **{f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": "406" for cpu in range(4)},
    **{f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq": "1800000" for cpu in range(4)},
    "sys/devices/system/cpu/cpu4/cpu_capacity": "1024",
    "sys/devices/system/cpu/cpu4/cpufreq/cpuinfo_max_freq": "2840000",
    **{f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": str(cpu) for cpu in range(5)},
}


def test_big_little_cores_are_told_apart_and_offline_ones_do_not_count(tmp_path: Path) -> None:
    hardware = probe(write(tmp_path, BIG_LITTLE), cpus=range(6))
    assert (hardware.cores_online, hardware.cores_affinity, hardware.cores) == (5, 5, 5)
    assert [(one.speed, one.cpus, one.max_mhz) for one in hardware.core_classes] == [
        (1.0, (4,), 2840),
        (0.396, (0, 1, 2, 3), 1800),
    ]
    (finding,) = [one for one in findings(hardware, tmp_path) if "equally fast" in one.what]
    assert "taskset -c 4" in finding.remedy


def test_clocks_that_differ_by_some_percent_are_one_class(tmp_path: Path) -> None:
    clock = "sys/devices/system/cpu/cpu{}/cpufreq/cpuinfo_max_freq"
    root = write(tmp_path, {clock.format(0): "5700000", clock.format(1): "5400000", clock.format(2): "5300000"})
    (only,) = probe(root, cpus=range(3)).core_classes
    assert (only.cpus, only.max_mhz) == ((0, 1, 2), 5700)


def test_numa_nodes_are_those_of_our_cpus(tmp_path: Path) -> None:
    node = "sys/devices/system/node/node{}/"
    files = {
        node.format(0) + "cpulist": "0-3",
        node.format(0) + "meminfo": "Node 0 MemTotal:       2048 kB\nNode 0 MemFree: 1 kB",
        node.format(1) + "cpulist": "4-7",
        node.format(2) + "cpulist": "8-11",
        node.format(10) + "cpulist": "",
        "sys/devices/system/node/possible": "0-10",
    }
    hardware = probe(write(tmp_path, files), cpus={1, 2, 5})
    assert [(one.number, one.cpus, one.memory_bytes) for one in hardware.numa_nodes] == [
        (0, (1, 2), 2048 * 1024),
        (1, (5,), None),
    ]
    assert any("2 NUMA nodes" in finding.what for finding in findings(hardware, tmp_path))


def test_hyperthreads_show_even_where_this_process_may_use_only_one_of_them(tmp_path: Path) -> None:
    siblings = {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu},{cpu + 8}" for cpu in (0, 1)}
    hardware = probe(write(tmp_path, siblings), cpus={0, 1})
    assert (hardware.threads_per_core, hardware.cores_physical, hardware.cores) == (2, 2, 2)


@pytest.mark.parametrize(
    "files",
    [
        {"sys/devices/system/cpu/online": "0-99999999999", "proc/self/cgroup": "\x00:::\n0::/\x00"},
        {"sys/devices/system/cpu/online": "7-3", "proc/cpuinfo": ": : :\nflags"},
        {"proc/self/cgroup": "0::/../../..", "sys/fs/cgroup/cpu.max": "100000 0", "proc/meminfo": "MemTotal: lots"},
        {"proc/self/cgroup": "1:cpu:/a", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "5", "proc/loadavg": "busy"},
        {"sys/devices/system/cpu/cpu0/cache/indexes/level": "1", "sys/devices/system/cpu/cpu0/cache/index0/level": ""},
        {"sys/devices/system/cpu": "a file where a folder should be", "sys/bus/pci/devices/0/vendor": "what"},
    ],
)
def test_nonsense_in_proc_and_sys_is_no_error(tmp_path: Path, files: dict[str, str]) -> None:
    hardware = probe(write(tmp_path, files))
    assert hardware.cores >= 1
    findings(hardware, tmp_path)
    assert len(hardware.fingerprint) == 16


def told(root: Path, **changes: object) -> str:
    hardware = dataclasses.replace(probe(root), **changes)
    return "\n".join(f"{one.level}: {one.what}: {one.remedy}" for one in findings(hardware, root))


def test_every_finding_says_what_to_do(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/loadavg": "99.5 1 1 1/2 3"})
    hardware = dataclasses.replace(
        probe(root),
        cores_quota=0.5,
        cores_online=64,
        memory_available_bytes=1 << 20,
        kernel_isas=(),
        gpus=(Gpu(0, "G"),),
    )
    found = findings(hardware, root, package=lambda name: None)
    assert len(found) >= 7
    assert all(one.what and one.consequence and one.remedy for one in found)
    levels = [one.level for one in found]
    assert levels == sorted(levels, key=lambda level: level != "problem")
    json.dumps([one.to_dict() for one in found])


def test_findings_on_quotas_and_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "problem: the cgroup allows 0.5 CPUs" in told(tmp_path, cores_quota=0.5)
    assert "note: the cgroup allows 1.5 CPUs" in told(tmp_path, cores_quota=1.5, cores_affinity=4)
    assert "cgroup" not in told(tmp_path, cores_quota=2.0, cores_affinity=4)
    avx2 = {"kernel_isas": ("reference", "avx2"), "isa_selected": "avx2"}
    assert "no instructions for products in bfloat16" in told(tmp_path, **avx2)
    assert "problem: this CPU has none" in told(tmp_path, kernel_isas=("reference",), isa_selected="reference")
    monkeypatch.setenv("HEADRACE_ISA", "mmx")
    assert "HEADRACE_ISA is 'mmx'" in told(tmp_path, **{**avx2, "isa_selected": None})
    assert "unset HEADRACE_ISA" in told(tmp_path, **{**avx2, "isa_selected": "reference"})


def test_a_gpu_without_a_driver_is_a_problem_with_a_cure(tmp_path: Path) -> None:
    device = "sys/bus/pci/devices/0000:01:00.{}/"
    files = {
        device.format(0) + "vendor": "0x10de",
        device.format(0) + "class": "0x030200",
        device.format(1) + "vendor": "0x10de",  # the sound of its HDMI
        device.format(1) + "class": "0x040300",
    }
    hardware = probe(write(tmp_path, files))
    assert [gpu.name for gpu in hardware.gpus] == ["NVIDIA GPU"]
    assert "install NVIDIA's driver" in told(tmp_path)
    write(tmp_path, {"proc/driver/nvidia/version": "NVRM version: 570"})
    assert "--gpus all" in told(tmp_path)


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ({}, ["torch is not installed", "cupy is not installed"]),
        ({"torch": "2.13.0+cpu", "cupy-cuda12x": "14"}, ["torch 2.13.0+cpu was built without CUDA"]),
        ({"torch": "2.13.0+cu128", "cupy": "14"}, ["triton is not installed"]),
        ({"torch": "2.13.0+cu128", "cupy": "14", "triton": "3"}, []),
    ],
)
def test_what_is_missing_to_use_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_HOME", "/usr/local/cuda")
    module = sys.modules["headrace.hardware.findings"]  # whose function has its name
    monkeypatch.setattr(module, "finds_cublaslt", lambda: True)
    gpu = Gpu(0, "NVIDIA H200", 1 << 37, 1 << 37, "9.0", "570.1", "12.8")
    hardware = dataclasses.replace(probe(tmp_path), gpus=(gpu,))
    others = {one.what for one in findings(dataclasses.replace(hardware, gpus=()), tmp_path)}
    found = [one.what for one in findings(hardware, tmp_path, packages.get) if one.what not in others]
    assert found == expected
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", "")
    assert any("no CUDA toolkit" in one.what for one in findings(hardware, tmp_path, packages.get))
    monkeypatch.setattr(module, "finds_cublaslt", lambda: False)
    assert any("nvidia-cublas-cu12" in one.remedy for one in findings(hardware, tmp_path, packages.get))


def test_cublaslt_is_looked_for_in_its_package_the_toolkit_and_where_the_loader_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = ("libcublasLt.so.13", "libcublasLt.so.12")
    monkeypatch.setattr(cublaslt, "_nvidia", list)
    monkeypatch.setattr(cublaslt, "find_library", lambda name: None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert cublaslt.cublaslt_libraries() == nowhere
    assert not cublaslt.finds_cublaslt()
    write(tmp_path, {"toolkit/lib64/libcublasLt.so.13": "", "site/nvidia/cublas/lib/libcublasLt.so.12": ""})
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    first = tmp_path / "toolkit/lib64/libcublasLt.so.13"
    second = tmp_path / "site/nvidia/cublas/lib/libcublasLt.so.12"
    found = cublaslt.cublaslt_libraries()
    assert found.index(str(first)) < found.index(nowhere[0]) < found.index(str(second)) < found.index(nowhere[1])
    assert cublaslt.finds_cublaslt()


class _Nvml:
    """NVML's C functions, of a machine with two GPUs of which the second fell off the bus."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.shut_down = False

    def __getattr__(self, name: str) -> object:
        if name == self.broken:
            return lambda *arguments: 9
        return {
            "nvmlInit_v2": lambda: 0,
            "nvmlSystemGetDriverVersion": lambda buffer, size: _put(buffer, b"570.86.15"),
            "nvmlSystemGetCudaDriverVersion": lambda version: _set(version, 12080),
            "nvmlDeviceGetCount_v2": lambda count: _set(count, 2),
            "nvmlDeviceGetHandleByIndex_v2": lambda index, handle: 15 if index.value == 1 else 0,
            "nvmlDeviceGetName": lambda handle, buffer, size: _put(buffer, b"NVIDIA H200"),
            "nvmlDeviceGetCudaComputeCapability": lambda handle, major, minor: _set(major, 9) or _set(minor, 0),
            "nvmlDeviceGetMemoryInfo": lambda handle, memory: _set_memory(memory, 1000, 900),
            "nvmlShutdown": self._shutdown,
        }[name]

    def _shutdown(self) -> int:
        self.shut_down = True
        return 0


def _put(buffer: ctypes.Array[ctypes.c_char], text: bytes) -> int:
    buffer.value = text
    return 0


def _set(pointer: object, value: int) -> int:
    pointer._obj.value = value  # type: ignore[attr-defined]
    return 0


def _set_memory(pointer: object, total: int, free: int) -> int:
    pointer._obj.total, pointer._obj.free = total, free  # type: ignore[attr-defined]
    return 0


def test_nvml_tells_the_gpus_and_one_that_fails_does_not_hide_the_others() -> None:
    nvml = _Nvml()
    first, second = gpus._ask(nvml)
    assert first == Gpu(0, "NVIDIA H200", 1000, 900, "9.0", "570.86.15", "12.8")
    assert "status 15" in second.why_not
    assert nvml.shut_down


def test_a_driver_that_does_not_answer_is_an_error_of_nvml() -> None:
    nvml = _Nvml(broken="nvmlDeviceGetCount_v2")
    with pytest.raises(gpus.NvmlError, match="nvmlDeviceGetCount_v2: got status 9"):
        gpus._ask(nvml)
    assert nvml.shut_down


def test_the_fingerprint_is_the_same_for_the_same_machine_and_no_other(tmp_path: Path) -> None:
    machine = {"proc/cpuinfo": "model name : Some CPU", "proc/meminfo": MEMINFO}
    one = probe(write(tmp_path / "a", machine))
    again = probe(write(tmp_path / "b", {**machine, "proc/meminfo": "MemTotal: 5 kB"}))
    other = probe(write(tmp_path / "c", {**machine, "proc/cpuinfo": "model name : Another CPU"}))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert dataclasses.replace(one, gpus=(Gpu(0, "G"),)).fingerprint != one.fingerprint


# What really happens to a process, not a made-up root: run in one of its own.
REPORT = "from headrace.hardware import probe, findings; p = probe(); findings(p); print(p.cores, p.cores_physical)"


def test_taskset_leaves_as_many_cores_as_it_says() -> None:
    cpu = min(os.sched_getaffinity(0))
    run = subprocess.run(
        ["taskset", "-c", str(cpu), sys.executable, "-c", REPORT], capture_output=True, text=True, check=True
    )
    assert run.stdout.split()[0] == "1"


def test_a_hidden_sys_and_a_hidden_proc_are_no_error() -> None:
    for folder in ("/sys", "/proc"):
        hide = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$0" "$@"']
        run = subprocess.run([*hide, sys.executable, "-c", REPORT], capture_output=True, text=True)
        if run.returncode != 0 and ("unshare:" in run.stderr or "mount:" in run.stderr):
            pytest.skip("this user may not make a mount namespace: the made-up roots above stand for it")
        assert run.returncode == 0, run.stderr
        cores, physical = run.stdout.split()
        assert int(cores) >= 1
        assert folder == "/proc" or physical == "None"


@pytest.fixture
def v1_group() -> Iterator[Path]:
    """A cgroup of this test's own, with a quota of one CPU and a half."""
    for top, limit in (("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("/sys/fs/cgroup", "cpu.max")):
        group = Path(top) / f"headrace-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text("150000" if limit.endswith("us") else "150000 100000")
            yield group
            return
        except OSError:
            continue
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()
    pytest.skip("this user may not make a cgroup with a quota: the made-up roots above stand for it")


def test_a_real_quota_counts(v1_group: Path) -> None:
    enter = ["sh", "-c", f'echo $$ > {v1_group}/cgroup.procs && exec "$0" "$@"']
    code = "from headrace.hardware import probe; p = probe(); print(p.cores_quota, p.cores)"
    run = subprocess.run([*enter, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1.5", "1"]


def test_figures_are_measured_once_per_machine_and_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = dataclasses.replace(probe(), cores=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert measured(hardware) is None
    figures = measure(hardware)
    assert not figures.cached
    assert set(figures.gemm_gflops) == {"fp32", "bf16", "int8"}
    assert all(value > 0 for by_threads in figures.gemm_gflops.values() for value in by_threads.values())
    assert figures.copy_gbytes_per_s[1] > 0
    assert measure(hardware) == dataclasses.replace(figures, cached=True)
    assert measured(dataclasses.replace(hardware, cpu="another")) is None
    (saved,) = (tmp_path / "headrace").iterdir()
    text = saved.read_text()
    for damaged in (text.replace(figures.build, "0"), text[:50], "[]", "{}"):
        saved.write_text(damaged)
        assert measured(hardware) is None


def test_a_cache_that_cannot_be_written_costs_only_the_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.hardware.figures._measure", lambda *arguments: FIGURES)
    (tmp_path / "file").write_text("")
    assert measure(probe(), folder=tmp_path / "file" / "below") == FIGURES


FIGURES = Figures({"fp32": {1: 1.0}}, {1: 1.0}, {1: 1.0}, "f", "v", "b", "2026-01-01", 0.1)
