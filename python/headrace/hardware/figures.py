"""What the machine can do, measured: products by the runtime's own kernels, copies, fork and join.

Measured once per machine, build and version (a second or two), then read from ``$XDG_CACHE_HOME/headrace``.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.whole_file import replace_text

if TYPE_CHECKING:
    from headrace.hardware.machine import Hardware

# The side of the square matrices: large enough for every tile, small enough for a slow machine.
_SIDE = 512
# Each product is timed so long, and its best run counts: other work on the machine only adds time.
_PRODUCT_S = 0.06
# Far beyond the caches, or four times the last one where that is more, but never a large part of the memory.
_COPY_BYTES_MIN = 64 << 20
_COPY_BYTES_MAX = 512 << 20
_PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Figures:
    """What was measured. Each mapping has a figure for 1 thread and one for every core this process may use.

    Attributes:
        gemm_gflops: Precision -> threads -> billions of operations per second in a product of large matrices, by the
            kernels that Plans of this process run on. A precision that the CPU has no instruction for is emulated, and
            no faster than fp32.
        copy_gbytes_per_s: Threads -> bytes read plus bytes written, past the caches.
        fork_join_us: Threads -> what starting and ending a parallel region costs.
        fingerprint: Of the machine, `Hardware.fingerprint`.
        version: Of Headrace.
        build: Of its extension module.
        measured_at: When, in ISO 8601.
        took_s: How long it took to measure.
        cached: Whether they were read from the cache.
    """

    gemm_gflops: dict[str, dict[int, float]]
    copy_gbytes_per_s: dict[int, float]
    fork_join_us: dict[int, float]
    fingerprint: str
    version: str
    build: str
    measured_at: str
    took_s: float
    cached: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON-able values."""
        return asdict(self)


def measure(
    hardware: Hardware | None = None,
    *,
    refresh: bool = False,
    folder: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Figures:
    """The machine's figures: from the cache, or measured now and cached.

    Args:
        hardware: The machine; None to probe it.
        refresh: Whether to measure even if there are figures in the cache.
        folder: Where the cache is; None for ``$XDG_CACHE_HOME/headrace``, by default ``~/.cache/headrace``.
        progress: Told what is being measured, before it is.

    Raises:
        BackendUnavailable: HEADRACE_ISA names kernels that are not here.
    """
    from headrace.hardware.machine import probe

    hardware = hardware or probe()
    if not refresh and (known := measured(hardware, folder=folder)) is not None:
        return known
    found = _measure(hardware, progress or (lambda _: None))
    _write(_path(hardware, folder), found)
    return found


def measured(hardware: Hardware, *, folder: Path | None = None) -> Figures | None:
    """The figures in the cache, if they are of this machine, version and build. Measures nothing, and never raises."""
    from headrace import __version__, _core

    try:
        saved = json.loads(_path(hardware, folder).read_text(encoding="utf-8"))
        for key in ("copy_gbytes_per_s", "fork_join_us"):
            saved[key] = _by_threads(saved[key])
        saved["gemm_gflops"] = {precision: _by_threads(found) for precision, found in saved["gemm_gflops"].items()}
        figures = Figures(**saved)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    current = (hardware.fingerprint, __version__, _core.fingerprint())
    return replace(figures, cached=True) if current == (figures.fingerprint, figures.version, figures.build) else None


def _by_threads(figures: Mapping[str, float]) -> dict[int, float]:
    return {int(threads): float(figure) for threads, figure in figures.items()}


def cache_folder() -> Path:
    """Where Headrace keeps what it would otherwise have to find out again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore relative paths.
    root = Path(base) if base.startswith("/") else Path(os.path.expanduser("~")) / ".cache"
    return root / "headrace"


def _path(hardware: Hardware, folder: Path | None) -> Path:
    return (folder or cache_folder()) / f"figures-{hardware.fingerprint}.json"


def _write(path: Path, figures: Figures) -> None:
    """Keeps them for the next process. A cache that cannot be written only costs that one its second."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(figures.to_dict(), indent=2) + "\n")


def _measure(hardware: Hardware, progress: Callable[[str], None]) -> Figures:
    from headrace import __version__, _core

    start = time.perf_counter()
    counts = sorted({1, hardware.cores})
    progress("fork and join")
    fork_join = {threads: _core.fork_join_seconds(threads) * 1e6 for threads in counts}
    progress("copies")
    bytes_each = _copy_bytes(hardware)
    copies = {threads: _core.copy_bytes_per_second(threads, bytes_each) * 1e-9 for threads in counts}
    gemm: dict[str, dict[int, float]] = {}
    for precision in _PRECISIONS:
        progress(f"products in {precision}")
        gemm[precision] = {threads: _gemm_gflops(precision, threads) for threads in counts}
    return Figures(
        gemm_gflops=gemm,
        copy_gbytes_per_s=copies,
        fork_join_us=fork_join,
        fingerprint=hardware.fingerprint,
        version=__version__,
        build=_core.fingerprint(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        took_s=round(time.perf_counter() - start, 3),
    )


def _copy_bytes(hardware: Hardware) -> int:
    wanted = max(_COPY_BYTES_MIN, 4 * max(hardware.cache_bytes.values(), default=0))
    # Two buffers are made of it.
    room = (hardware.memory_available_bytes or 8 * _COPY_BYTES_MIN) // 8
    return max(1 << 20, min(wanted, _COPY_BYTES_MAX, room))


def _gemm_gflops(precision: str, threads: int) -> float:
    """Multiplies with constant weights, as a Linear of a Model in that precision does."""
    import numpy as np

    from headrace import _core

    rng = np.random.default_rng(0)
    builder = _core.ProgramBuilder(_core.selected_isa())
    x = builder.add_input("x", "float32", [_SIDE, _SIDE])
    weights = builder.add_constant("w", rng.standard_normal((_SIDE, _SIDE), dtype=np.float32))
    (y,) = builder.add_op("headrace.Linear", "linear", 1, {"precision": precision}, [x, weights], ["y"], ["float32"])
    builder.add_output("y", "float32", [_SIDE, _SIDE], y)
    plan = _core.NativePlan(builder.finish(), threads)
    request = {"x": rng.standard_normal((_SIDE, _SIDE), dtype=np.float32)}
    best_s, end = float("inf"), time.perf_counter() + _PRODUCT_S
    plan.run(request)
    while best_s == float("inf") or time.perf_counter() < end:
        begin = time.perf_counter()
        plan.run(request)
        best_s = min(best_s, time.perf_counter() - begin)
    return 2 * _SIDE**3 / best_s * 1e-9
