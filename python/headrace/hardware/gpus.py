"""GPUs: which there are, and whether a driver answers for them.

NVML is asked through the library that comes with the driver, so no package is needed. Where it does not answer, the PCI
bus still shows that a GPU is there, which is worth a finding: somebody paid for it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.hardware.files import hexadecimal, read

_NVML = "libnvidia-ml.so.1"
_NAME_BYTES = 96
_NVIDIA = 0x10DE
_AMD = 0x1002
# PCI's class 03: display controllers; 0302 are those without a monitor.
_DISPLAY = 0x03


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: As the driver counts, or the PCI bus without one.
        name: The model; "NVIDIA GPU" where only the PCI bus knows of it.
        memory_bytes: Its memory; None without a driver.
        memory_free_bytes: How much of that is free now.
        compute_capability: Such as "9.0".
        driver: The driver's version; None where none answers, and the GPU cannot be used.
        cuda: The highest version of CUDA that the driver takes, such as "12.8".
        why_not: Why it cannot be used; empty where it can.
    """

    index: int
    name: str
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    compute_capability: str | None = None
    driver: str | None = None
    cuda: str | None = None
    why_not: str = ""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class NvmlError(Exception):
    """NVML is not there or does not answer."""


def find(root: Path) -> tuple[Gpu, ...]:
    """The GPUs of this machine; of a made-up one, those on its PCI bus. Never raises."""
    if root == Path("/"):
        try:
            return tuple(_ask(_library()))
        except NvmlError as error:
            return _on_the_bus(root, str(error))
        except Exception as error:  # a driver of which nothing is known may do anything
            return _on_the_bus(root, f"{type(error).__name__}: {error}")
    return _on_the_bus(root, f"no {_NVML}")


def _library() -> Any:
    try:
        return ctypes.CDLL(_NVML)
    except OSError as error:
        raise NvmlError(f"no {_NVML}: {error}") from error


def _ask(nvml: Any) -> list[Gpu]:
    """What NVML says. `nvml` has its C functions as attributes."""
    _call(nvml, "nvmlInit_v2")
    try:
        driver = _text(nvml, "nvmlSystemGetDriverVersion")
        version = ctypes.c_int()
        _call(nvml, "nvmlSystemGetCudaDriverVersion", ctypes.byref(version))
        cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        count = ctypes.c_uint()
        _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        return [_device(nvml, index, driver, cuda) for index in range(count.value)]
    finally:
        nvml.nvmlShutdown()


def _device(nvml: Any, index: int, driver: str, cuda: str) -> Gpu:
    handle = ctypes.c_void_p()
    try:
        _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        name = _text(nvml, "nvmlDeviceGetName", handle)
        major, minor = ctypes.c_int(), ctypes.c_int()
        _call(nvml, "nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
    except NvmlError as error:  # one that fell off the bus must not hide the others
        return Gpu(index, "NVIDIA GPU", driver=driver, cuda=cuda, why_not=str(error))
    memory = _Memory()
    try:
        _call(nvml, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    except NvmlError:  # a slice of a MIG GPU may not say
        return Gpu(index, name, None, None, f"{major.value}.{minor.value}", driver, cuda)
    return Gpu(index, name, memory.total, memory.free, f"{major.value}.{minor.value}", driver, cuda)


def _text(nvml: Any, function: str, *arguments: Any) -> str:
    buffer = ctypes.create_string_buffer(_NAME_BYTES)
    _call(nvml, function, *arguments, buffer, ctypes.c_uint(_NAME_BYTES))
    return buffer.value.decode(errors="replace")


def _call(nvml: Any, function: str, *arguments: Any) -> None:
    try:
        status = getattr(nvml, function)(*arguments)
    except AttributeError as error:
        raise NvmlError(f"{_NVML} is too old: it has no {function}") from error
    if status != 0:
        raise NvmlError(f"{function}: got status {status} of NVML, expected 0")


def _on_the_bus(root: Path, why_not: str) -> tuple[Gpu, ...]:
    """GPUs that a look at the PCI bus shows."""
    try:
        devices = sorted((root / "sys/bus/pci/devices").iterdir())
    except OSError:
        return ()
    found: list[Gpu] = []
    for device in devices:
        vendor, kind = (hexadecimal(read(device / name) or "") for name in ("vendor", "class"))
        if kind is None or kind >> 16 != _DISPLAY:
            continue
        if vendor == _NVIDIA:
            found.append(Gpu(len(found), "NVIDIA GPU", why_not=why_not))
        elif vendor == _AMD and kind >> 8 != _DISPLAY << 8:  # 0300 is the picture on a screen
            found.append(Gpu(len(found), "AMD GPU", why_not="no backend runs on GPUs of AMD"))
    return tuple(found)
