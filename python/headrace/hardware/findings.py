"""What is wrong with a machine, what that costs, and what to do about it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headrace.hardware.cublaslt import finds_cublaslt
from headrace.hardware.files import read
from headrace.hardware.topology import governor

if TYPE_CHECKING:
    from headrace.hardware.gpus import Gpu
    from headrace.hardware.machine import Hardware

_LITTLE_MEMORY_BYTES = 1 << 30
# Kernels for GPUs are compiled for these and later ones.
_CAPABILITY_MIN = (8, 0)
# ISAs with instructions for products in bfloat16; elsewhere bf16 is emulated.
_BF16 = ("avx512_bf16", "neon_bf16")


@dataclass(frozen=True)
class Finding:
    """One thing that stands in the way.

    Attributes:
        level: "problem": something does not work, or is far slower than it could be. "note": something to know.
        what: What was found.
        consequence: What it means for models on this machine.
        remedy: What to do about it.
    """

    level: Literal["problem", "note"]
    what: str
    consequence: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON-able values."""
        return asdict(self)


def findings(
    hardware: Hardware, root: str | Path = "/", package: Callable[[str], str | None] | None = None
) -> list[Finding]:
    """Everything that was found, problems first. Never raises.

    Args:
        hardware: What `probe` said of the machine.
        root: Where ``proc`` and ``sys`` are, as for `probe`.
        package: The version of an installed package, or None; by default those of this environment.
    """
    root = Path(root)
    found = [*_cores(hardware), *_kernels(hardware), *_clocks(hardware, root), *_memory(hardware)]
    for gpu in hardware.gpus:
        found += _gpu(gpu, root)
    usable = [gpu for gpu in hardware.gpus if not gpu.why_not]
    if usable:
        found += _software_for(usable[0], package or _installed)
    return sorted(found, key=lambda finding: finding.level != "problem")


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores(hardware: Hardware) -> Iterator[Finding]:
    quota = hardware.cores_quota
    if quota is not None and quota < 1:
        yield Finding(
            "problem",
            f"the cgroup allows {quota:g} CPUs",
            f"whatever takes longer than {100 * quota:.0f} ms of a tenth of a second is stopped for the rest of it, "
            "which shows in p99",
            "give the container at least 1 CPU (docker --cpus 1, Kubernetes resources.limits.cpu: 1)",
        )
    elif quota is not None and quota < hardware.cores_affinity and quota != math.floor(quota):
        yield Finding(
            "note",
            f"the cgroup allows {quota:g} CPUs, of which {hardware.cores} have a thread",
            f"{quota - hardware.cores:g} CPUs stay unused: one thread more would be stopped again and again",
            "give the container a whole number of CPUs",
        )
    if hardware.cores_affinity < hardware.cores_online:
        yield Finding(
            "note",
            f"this process may run on {hardware.cores_affinity} of {hardware.cores_online} CPUs",
            "the others are not used",
            "nothing, if that is meant; else look at taskset, cpuset and systemd's CPUAffinity",
        )
    if hardware.cores_physical is None:
        yield Finding(
            "note",
            "the kernel does not say which CPUs are hyperthreads of one core (no /sys/devices/system/cpu)",
            "if there are any, twice as many threads are used as there are cores, which is slower",
            "mount /sys read-only into the container, or say how many with --threads (threads in headrace.toml)",
        )
    if len(hardware.core_classes) > 1:
        fast = hardware.core_classes[0]
        others = ", ".join(f"{len(one.cpus)} at {one.speed:.0%}" for one in hardware.core_classes[1:])
        yield Finding(
            "note",
            f"the cores are not equally fast: {len(fast.cpus)} at full speed, {others}",
            "every parallel op ends when its slowest thread does",
            f"compare with `taskset -c {_ranges(fast.cpus)}`, which leaves the slow ones out; "
            "`headrace plan` measures with what it is given",
        )
    if len(hardware.numa_nodes) > 1:
        first = hardware.numa_nodes[0]
        yield Finding(
            "note",
            f"the CPUs belong to {len(hardware.numa_nodes)} NUMA nodes",
            "a Plan whose threads are on several of them reads half of its weights from another node's memory",
            f"run a process per node, such as `numactl --cpunodebind={first.number} --membind={first.number} "
            "headrace serve ...`",
        )


def _ranges(cpus: tuple[int, ...]) -> str:
    """CPUs as taskset takes them: 0-3,8."""
    spans: list[list[int]] = []
    for cpu in sorted(cpus):
        if spans and cpu == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], cpu]
        else:
            spans.append([cpu])
    return ",".join("-".join(map(str, span)) for span in spans)


def _kernels(hardware: Hardware) -> Iterator[Finding]:
    if not hardware.kernel_isas:
        yield Finding(
            "problem",
            "the native extension module does not load",
            "the native backend is not there",
            "install a wheel made for this Python and platform, or build it: pip install --no-binary headrace headrace",
        )
        return
    best, selected = hardware.kernel_isas[-1], hardware.isa_selected
    forced = os.environ.get("HEADRACE_ISA", "")
    if selected is None:
        yield Finding(
            "problem",
            f"HEADRACE_ISA is {forced!r}, which is none of {', '.join(hardware.kernel_isas)}",
            "no model can be compiled",
            "unset HEADRACE_ISA",
        )
    elif selected != best:
        yield Finding(
            "problem",
            f"HEADRACE_ISA asks for {selected}, and this CPU has {best}",
            "models run slower than they could",
            "unset HEADRACE_ISA",
        )
    elif best == "reference":
        yield Finding(
            "problem",
            "this CPU has none of the instruction sets that kernels are written for (AVX2, AVX-512, dot products)",
            "models run on the reference kernels, several times slower",
            "take a machine with AVX2 or later, or Armv8.2 with dot products; under a hypervisor, pass the host's CPU "
            "through",
        )
    elif best not in _BF16:
        yield Finding(
            "note",
            f"this CPU has no instructions for products in bfloat16 ({best})",
            "precision bf16 is emulated: as exact as elsewhere, and no faster than fp32",
            "use fp32 or int8 here; `headrace plan` compares them",
        )


def _clocks(hardware: Hardware, root: Path) -> Iterator[Finding]:
    cpus = [cpu for one in hardware.core_classes for cpu in one.cpus]
    if cpus and governor(root, cpus) == "powersave" and not (root / "sys/devices/system/cpu/intel_pstate").is_dir():
        yield Finding(
            "problem",
            "the CPU's clock is kept low: scaling_governor is powersave",
            "models may run at half of the speed",
            "as root: cpupower frequency-set -g performance",
        )
    loads = (read(root / "proc/loadavg") or "").split()
    try:
        load = float(loads[0])
    except (IndexError, ValueError):
        return
    if load > 0.5 + 0.5 * hardware.cores_online:
        yield Finding(
            "note",
            f"the machine is busy: a load of {load:g} on {hardware.cores_online} CPUs",
            "what is measured now is too slow, and a plan made now may ask for more than is needed",
            "measure again on a quiet machine: headrace doctor --refresh",
        )


def _memory(hardware: Hardware) -> Iterator[Finding]:
    left = hardware.memory_available_bytes
    if left is not None and left < _LITTLE_MEMORY_BYTES:
        yield Finding(
            "problem",
            f"{left / 2**20:.0f} MiB of memory are left",
            "a model with its packed weights takes twice its file while it is loaded, and may be killed",
            "raise the container's memory limit, or load a saved plan (`headrace compile`), whose weights are mapped",
        )


def _gpu(gpu: Gpu, root: Path) -> Iterator[Finding]:
    if gpu.why_not:
        yield Finding("problem", f"a GPU that cannot be used: {gpu.name}: {gpu.why_not}", "it stays idle", _cure(root))
        return
    major, _, minor = (gpu.compute_capability or "0.0").partition(".")
    if (int(major), int(minor or 0)) < _CAPABILITY_MIN:
        yield Finding(
            "note",
            f"GPU {gpu.index} ({gpu.name}) has compute capability {gpu.compute_capability}",
            f"kernels are compiled for {'.'.join(map(str, _CAPABILITY_MIN))} and later; only torch and cupy can use it",
            "use backend torch or cupy on it",
        )


def _cure(root: Path) -> str:
    if (root / "proc/driver/nvidia/version").exists():
        return (
            "the driver is loaded but its libraries are not here: start the container with --gpus all (NVIDIA "
            "Container Toolkit), or install the driver's libraries of the same version"
        )
    return "install NVIDIA's driver and load it (modprobe nvidia); in a container, do so on the host"


def _software_for(gpu: Gpu, package: Callable[[str], str | None]) -> Iterator[Finding]:
    """What is missing to run on a GPU that works."""
    series = (gpu.cuda or "12").split(".")[0]
    torch = package("torch")
    if torch is None or "+cpu" in torch:
        yield Finding(
            "note",
            "torch is not installed" if torch is None else f"torch {torch} was built without CUDA",
            "backends torch and triton do not run on the GPU",
            f"pip install torch (a build for CUDA {gpu.cuda or series} or earlier, see pytorch.org)",
        )
    elif package("triton") is None:
        yield Finding(
            "note", "triton is not installed", "backend triton does not run", "pip install triton, of torch's version"
        )
    if package(f"cupy-cuda{series}x") is None and package("cupy") is None:
        yield Finding(
            "note", "cupy is not installed", "backend cupy runs on the CPU only", f"pip install cupy-cuda{series}x"
        )
    if not finds_cublaslt():
        yield Finding(
            "note",
            "cuBLASLt is not installed",
            "products on the GPU run on the native runtime's own kernels, which are not tuned for each GPU",
            "pip install nvidia-cublas" if int(series) >= 13 else f"pip install nvidia-cublas-cu{series}",
        )
    if shutil.which("nvcc") is None and not os.environ.get("CUDA_HOME"):
        yield Finding(
            "note",
            "there is no CUDA toolkit (nvcc is not in PATH, CUDA_HOME is not set)",
            "the native runtime cannot be built with its own kernels for GPUs",
            f"install the CUDA {series} toolkit, then build with HEADRACE_CUDA=on",
        )
