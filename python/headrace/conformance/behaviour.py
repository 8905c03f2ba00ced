"""How a backend behaves: its word, its errors, its memory, its threads."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

import headrace as hr
from headrace.backend import CONTRACT, Backend, CompileOptions, Request
from headrace.conformance.cases import I64, floats, model_of
from headrace.conformance.models import assert_close, assert_same_bits, loaded
from headrace.conformance.outcome import Check, Outcome, Subject, outcome_of
from headrace.errors import (
    BackendUnavailable,
    DtypeMismatch,
    HeadraceError,
    MissingInput,
    ShapeMismatch,
    UnknownInput,
    UnsupportedOp,
)
from headrace.guard import compile_on

if TYPE_CHECKING:
    from headrace.model import Model

# Of the leak check: cycles to settle in, cycles that are measured, and those of the short form.
_WARM_CYCLES, _CYCLES, _SHORT_CYCLES = 4, 24, 8
# MiB of weights of its model, of which a cycle may keep a small part: allocators round and fragment.
_LEAK_WIDTH = 1024
_LEAK_SHARE_MAX = 0.25


def _expect(kind: type[Exception], act: Callable[[], object]) -> None:
    """Raises AssertionError unless `act` raises `kind`."""
    try:
        act()
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"got {type(error).__name__}: {error}, expected {kind.__name__}") from error
    raise AssertionError(f"got no error, expected {kind.__name__}")


def _word(subject: Subject) -> None:
    """What it declares has the right form, and its plan names what really runs."""
    backend, declared = subject.backend, subject.capabilities
    assert isinstance(backend, Backend), f"got a {type(backend)}"
    assert backend.contract == CONTRACT, f"got contract {backend.contract}, expected {CONTRACT}"
    availability = backend.probe()
    assert availability.ok, availability.reason
    assert availability.devices, "got no devices, expected at least one"
    assert declared.precisions, "got no precisions, expected at least one"
    assert backend.capabilities() == declared, "capabilities() gives another answer each time"
    _, model, _ = loaded("mlp")
    assert backend.unsupported(model) == [], f"got {backend.unsupported(model)} unsupported in an MLP, expected nothing"
    with subject.compile(model, declared.precisions[0]) as engine:
        plan = engine.plan
    assert plan.backend == backend.name, f"the plan says backend {plan.backend!r}, expected {backend.name!r}"
    wanted = subject.device or availability.devices[0]
    assert plan.device.startswith(wanted.split(":")[0]), f"the plan says device {plan.device!r}, expected {wanted!r}"
    assert plan.threads >= 1, f"the plan says {plan.threads} threads, expected at least one"


def _missing(subject: Subject) -> None:
    """Devices, precisions and options that are not there are errors, never something else that is."""
    _, model, _ = loaded("mlp")

    def asking(**options: object) -> Callable[[], object]:
        return lambda: compile_on(subject.backend, model, CompileOptions(**options))  # type: ignore[arg-type]

    _expect(BackendUnavailable, asking(device="warp:9"))
    _expect(BackendUnavailable, asking(precision="fp3"))
    _expect(BackendUnavailable, asking(options={"no_such_option": "1"}))


def _bad_requests(subject: Subject) -> None:
    """A Request that does not fit the signature is refused by its own error, and the next one is answered."""
    case, model, expected = loaded("mlp")
    good = case.requests[0]
    with subject.compile(model) as engine:
        _expect(MissingInput, lambda: engine({}))
        _expect(UnknownInput, lambda: engine({**good, "z": good["x"]}))
        _expect(ShapeMismatch, lambda: engine({"x": good["x"][:, :11]}))
        _expect(DtypeMismatch, lambda: engine({"x": good["x"].astype(np.float64)}))
        assert_close(engine(good), expected[0], case.tolerance)


def _unsupported(subject: Subject) -> None:
    """An op nobody has is refused at load, and `unsupported` says so too."""
    tensor = (TensorProto.FLOAT, ["n", 3])
    x, y = (helper.make_tensor_value_info(name, *tensor) for name in "xy")
    node = helper.make_node("Nonsense", ["x"], ["y"], name="nonsense", domain="headrace.certify")
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("headrace.certify", 1)]
    graph = helper.make_graph([node], "nonsense", [x], [y])
    model = hr.load(helper.make_model(graph, opset_imports=imports, ir_version=10))
    _expect(UnsupportedOp, lambda: subject.compile(model))
    assert subject.backend.unsupported(model), "unsupported() names nothing in a model of an op that does not exist"


def _failing_run(subject: Subject) -> str | None:
    """An index out of range is an error of Headrace's, and the next Request is answered."""
    table = floats(5, 3)
    node = helper.make_node("Gather", ["table", "at"], ["y"])
    dims: list[int | str] = ["n", 3]
    proto = model_of([node], {"at": (I64, ["n"])}, {"y": (TensorProto.FLOAT, dims)}, {"table": table})
    good, bad = {"at": np.array([4, 0])}, {"at": np.array([0, 77])}
    try:
        engine = subject.compile(hr.load(proto))
    except UnsupportedOp as error:
        return str(error)
    with engine:
        _expect(HeadraceError, lambda: engine(bad))
        _expect(HeadraceError, lambda: engine.run_batch([good, bad]))
        np.testing.assert_array_equal(engine(good)["y"], table[[4, 0]])
    return None


def _memory(subject: Subject) -> None:
    """Results are the caller's, inputs stay as they are, views and empty tensors are taken."""
    case, model, expected = loaded("mlp")
    given = {"x": case.requests[2]["x"].copy()}
    given["x"].flags.writeable = False
    with subject.compile(model) as engine:
        first = engine(given)
        np.testing.assert_array_equal(given["x"], case.requests[2]["x"], err_msg="the input was changed")
        kept = {name: array.copy() for name, array in first.items()}
        results = engine.run_batch(case.requests)
        assert_same_bits(first, kept)
        results[0]["y"][...] = 7  # the caller may write, and disturbs nobody
        assert_close(results[1], expected[1], case.tolerance)
        wide = floats(4, 24)
        assert_same_bits(engine({"x": wide[:, ::2]}), engine({"x": wide[:, ::2].copy()}))
        empty = engine({"x": wide[:0, :12]})["y"]
        assert empty.shape == (0, 5), f"no rows: got shape {empty.shape}, expected (0, 5)"
        assert engine.run_batch([]) == [], "a Batch of nobody: expected no Results"
    engine.close()  # twice is once


def _concurrent(subject: Subject) -> None:
    """Calls from four threads at once get the answers they get one after the other."""
    _ask_from_threads(subject, "attention" if not subject.backend.unsupported(loaded("attention")[1]) else "mlp")


def _ask_from_threads(subject: Subject, name: str) -> None:
    case, model, expected = loaded(name)
    start = threading.Barrier(4, timeout=60)
    with subject.compile(model, threads=2) as engine, ThreadPoolExecutor(4) as pool:
        alone = [engine(request) for request in case.requests]

        def ask(seed: int) -> None:
            start.wait()
            for index in np.random.default_rng(seed).integers(0, len(alone), 12).tolist():
                if subject.capabilities.batch_invariant:
                    assert_same_bits(engine(case.requests[index]), alone[index])
                else:
                    assert_close(engine(case.requests[index]), expected[index], case.tolerance)

        for done in [pool.submit(ask, seed) for seed in range(4)]:
            done.result(120)


class _Held:
    """What this process holds: resident MiB, threads, descriptors."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed, which is no leak
            ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        self.threads = len(os.listdir("/proc/self/task"))
        self.descriptors = len(os.listdir("/proc/self/fd"))


def _leaks(short: bool) -> Callable[[Subject], str | None]:
    def check(subject: Subject) -> str | None:
        """Compiling, running and closing over and over keeps neither memory nor threads nor descriptors."""
        if not Path("/proc/self/statm").exists():
            return "this system has no /proc to measure by"
        model, request = _weighty()
        cycles = _SHORT_CYCLES if short else _CYCLES
        for _ in range(_WARM_CYCLES):
            _cycle(subject, model, request)
        before = _Held()
        for _ in range(cycles):
            _cycle(subject, model, request)
        after = _Held()
        kept, weights = (after.mib - before.mib) / cycles, _LEAK_WIDTH**2 * 4 / 2**20
        assert kept < _LEAK_SHARE_MAX * weights, f"got {kept:.2f} MiB kept per cycle of {weights:.0f} MiB of weights"
        assert after.threads <= before.threads + 1, f"got {after.threads - before.threads} threads more"
        assert after.descriptors <= before.descriptors + 1, f"got {after.descriptors - before.descriptors} files more"
        return None

    return check


def _weighty() -> tuple[Model, Request]:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    dims: list[int | str] = ["n", _LEAK_WIDTH]
    tensor = (TensorProto.FLOAT, dims)
    proto = model_of([node], {"x": tensor}, {"y": tensor}, {"w": floats(_LEAK_WIDTH, _LEAK_WIDTH)})
    return hr.load(proto), {"x": floats(3, _LEAK_WIDTH)}


def _cycle(subject: Subject, model: Model, request: Request) -> None:
    with subject.compile(model) as engine:
        engine.run_batch([request, request])


def _behaviours(short: bool) -> dict[str, Callable[[Subject], str | None]]:
    return {
        "declares itself, and its plan names what runs": _word,
        "refuses devices, precisions and options that are not there": _missing,
        "refuses bad requests and goes on": _bad_requests,
        "refuses an op that nobody has": _unsupported,
        "types a failure while running and goes on": _failing_run,
        "owns no memory of its callers, nor they of it": _memory,
        "answers four threads at once": _concurrent,
        "keeps no memory, threads or files when closed": _leaks(short),
    }


def _run(subject: Subject, short: bool) -> Iterator[Outcome]:
    for name, check in _behaviours(short).items():
        yield outcome_of(name, lambda check=check: check(subject))  # type: ignore[misc]


BEHAVIOUR = Check("behaviour", _run, lambda short: len(_behaviours(short)))
