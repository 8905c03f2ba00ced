"""Whole Models on the CUDA device that is emulated on the host: every kernel, the executor and the adapter.

``make test-cuda-host`` builds the device, with sanitizers, and runs this.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from headrace.backends.native import cuda
from headrace.backends.native.cuda import PRECISIONS
from tests.cuda.on_device import SAMPLES, OnCuda, Sample, differences, transformer

import headrace
import headrace as hr
from headrace.conformance import Subject
from headrace.conformance.cases import CASES
from headrace.conformance.models import loaded, model_checks
from headrace.conformance.node_tests import NODE_TESTS
from headrace.errors import BackendUnavailable, ExecutionError, PlanError, UnsupportedOp

FOLDER = os.environ.get("HEADRACE_CUDA_ON_HOST")
if FOLDER is None:
    pytest.skip("the emulated device needs the sanitizers loaded first: make test-cuda-host", allow_module_level=True)
headrace.__path__.append(FOLDER)

DEVICE = "cuda-on-host"
# How many subjects of each check of conformance have all their kernels.
PASSED_AT_LEAST = {"models": 18, "ragged batches": 9, "ONNX node tests": 15}
# Conformance's cases with ops that have no kernel, or not for strings.
WITHOUT_KERNELS = [
    "quantized_sum",
    "quantized_perceptron",
    "quantized_convolution",
    "tree_classifier",
    "scaled_linear_classifier",
]


@cache
def sample_of(name: str) -> Sample:
    # A second layer would take as long and show nothing new.
    return transformer(layers=1) if name == "transformer" else SAMPLES[name]()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_whole_model_gives_the_cpus_results_in_any_batch(name: str) -> None:
    sample = sample_of(name)
    worst, same = differences(sample, DEVICE)
    assert worst <= sample.tolerance
    assert same


@pytest.mark.parametrize("name", ["transformer", "network"])
def test_bf16_stays_near_and_in_any_batch(name: str) -> None:
    worst, same = differences(sample_of(name), DEVICE, "bf16")
    assert 0 < worst <= 2e-2
    assert same


# Conformance's own check of batch invariance tries six Batches of each model, too many for this device. One is enough,
# since tests/cpp/cuda compares every kernel's bits.
@pytest.mark.parametrize("check", ["models", "ragged batches", "ONNX node tests"])
def test_it_passes_what_conformance_asks_of_every_model_and_op(check: str) -> None:
    subject = Subject(OnCuda(), DEVICE)
    checks = {one.name: one for one in (*model_checks(subject), NODE_TESTS)}
    outcomes = list(checks[check].run(subject, True))
    assert [(one.subject, one.reason) for one in outcomes if one.status == "failed"] == []
    assert sum(one.status == "passed" for one in outcomes) >= PASSED_AT_LEAST[check]
    assert all(one.reason for one in outcomes if one.status == "skipped")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [name for name in CASES if name not in WITHOUT_KERNELS])
def test_the_bits_of_a_case_are_the_same_alone_and_in_a_batch(name: str, precision: str) -> None:
    case, model, _ = loaded(name)
    _, same = differences(Sample(model, case.requests), DEVICE, precision)
    assert same


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", WITHOUT_KERNELS)
def test_a_case_with_ops_that_have_no_kernel_is_refused(name: str, precision: str) -> None:
    with pytest.raises(UnsupportedOp, match="device cuda: "):
        loaded(name)[1].compile(backend="native", device=DEVICE, precision=precision)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """What stands for cuBLASLt here; tests/cpp/cuda/cublaslt_stand_in.cc."""
    path = str(Path(str(FOLDER)) / "libcublaslt_stand_in.so")
    monkeypatch.setattr(cuda, "_libraries", lambda device: (path,))
    library = ctypes.CDLL(path)
    yield library
    library.stand_in_behave(b"sound")
    assert library.stand_in_objects() == 0


@pytest.mark.parametrize(("name", "precision"), [("transformer", "fp32"), ("perceptron", "bf16")])
def test_a_whole_model_by_cublaslt_gives_the_cpus_results_in_any_batch(
    library: ctypes.CDLL, name: str, precision: str
) -> None:
    sample = sample_of(name)
    worst, same = differences(sample, DEVICE, precision, "on")
    assert worst <= (sample.tolerance if precision == "fp32" else 2e-2)
    assert same
    with sample.model.compile(backend="native", device=DEVICE, precision=precision) as engine:
        products = engine.plan.details["products"]
        before = library.stand_in_products()
        engine.run_batch(sample.requests[:1])
        assert library.stand_in_products() - before == products["by_cublaslt"] > 0
    assert products["by_own_kernels"] == 0
    assert f"products with weights: {products['by_cublaslt']} by cuBLASLt 13.2.3, 0 by own kernels" in str(engine.plan)
    assert cuda.cublaslt_version(DEVICE) == "13.2.3"


def test_a_plan_says_why_cublaslt_does_not_compute_its_products(library: ctypes.CDLL) -> None:
    model = sample_of("perceptron").model
    library.stand_in_behave(b"varies")
    _, same = differences(sample_of("perceptron"), DEVICE, "fp32", "on")
    assert same
    with model.compile(backend="native", device=DEVICE) as engine:
        assert "products with weights: 0 by cuBLASLt, 7 by own kernels" in str(engine.plan)
        assert "own kernels: 30 x 30 in fp32: the bits of a row are others among 1 rows than among 1024" in str(
            engine.plan
        )
    with model.compile(backend="native", device=DEVICE, options={"cublaslt": "off"}) as engine:
        assert "own kernels: cuBLASLt is off" in str(engine.plan)
    library.stand_in_behave(b"deviceless")
    with pytest.raises(BackendUnavailable, match="cublasLtCreate failed: CUBLAS_STATUS_NOT_INITIALIZED"):
        model.compile(backend="native", device=DEVICE, options={"cublaslt": "on"})


def test_the_plan_says_where_the_model_runs() -> None:
    sample = sample_of("trees")
    with sample.model.compile(backend="native", device=DEVICE) as engine:
        assert engine.plan.device == DEVICE
        assert engine.plan.details["ops"] > 0
        with pytest.raises(PlanError, match="cannot be saved"):
            engine.save("unused")


def test_a_batcher_runs_on_the_device_until_its_engine_is_closed() -> None:
    sample = sample_of("trees")
    engine = sample.model.compile(backend="native", device=DEVICE)
    expected = engine.run_batch(sample.requests)
    with hr.Batcher(engine, slo_ms=60_000) as batcher:
        futures = [batcher.submit(request) for request in sample.requests]
        for future, want in zip(futures, expected, strict=True):
            got = future.result(timeout=60)
            assert all(got[name].tobytes() == want[name].tobytes() for name in want)
    engine.close()
    with pytest.raises(ExecutionError, match="after close"):
        engine.run_batch(sample.requests)


def test_what_has_no_kernel_is_refused_node_by_node() -> None:
    with pytest.raises(UnsupportedOp, match=r"device cuda: op QuantizeLinear has no CUDA kernel") as refused:
        loaded("quantized_sum")[1].compile(backend="native", device=DEVICE)
    assert len(refused.value.nodes) > 1


def test_precisions_without_kernels_are_refused() -> None:
    with pytest.raises(BackendUnavailable, match="got precision 'int8', expected one of fp32, bf16"):
        sample_of("perceptron").model.compile(backend="native", device=DEVICE, precision="int8")
