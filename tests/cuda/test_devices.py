"""What asking for a GPU says where there is none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from headrace.backends.native import cuda
from headrace.backends.native.cuda import usable_devices
from onnx import TensorProto, helper
from tests.cuda import __main__ as report

import headrace as hr
from headrace.conformance.cases import model_of
from headrace.conformance.models import loaded
from headrace.errors import BackendUnavailable, ExecutionError, UnsupportedOp


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() -> None:
    devices, missing = usable_devices()
    if "cuda" not in missing:
        pytest.skip(f"this machine has {devices}")
    built = importlib.util.find_spec("headrace._cuda") is not None
    what = "nvidia-smi" if built else "HEADRACE_CUDA=on"
    assert what in missing["cuda"]
    for device in ("cuda", "cuda:0"):
        with pytest.raises(BackendUnavailable, match=what):
            loaded("mlp")[1].compile(backend="native", device=device)


def test_nothing_falls_back_to_the_cpu() -> None:
    with pytest.raises(BackendUnavailable):
        loaded("mlp")[1].compile(backend="native", device="cuda:99")
    assert hr.backends()["native"].probe().devices[0] == "cpu"


class Driver:
    """An extension module on a machine with four GPUs: one too old, one broken, and two as they should be."""

    def __init__(self) -> None:
        self.asked = 0

    def count_devices(self) -> int:
        self.asked += 1
        return 4

    def describe_device(self, index: int) -> dict[str, object]:
        if index == 0:
            raise BackendUnavailable("got T4 of compute capability 7.5, expected 8.0 or more")
        if index == 2:
            raise ExecutionError("cudaGetDeviceProperties: ECC error")
        return {"name": "a GPU"}


def test_a_gpu_that_cannot_be_used_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(cuda, "_module", lambda kind: driver)
    devices, missing = usable_devices()
    assert [device for device in devices if device.startswith("cuda:")] == ["cuda:1", "cuda:3"]
    assert missing == {}
    monkeypatch.setattr(driver, "count_devices", lambda: 1)
    assert usable_devices()[1] == {"cuda": "cuda:0: got T4 of compute capability 7.5, expected 8.0 or more"}


def attention_of(dims: int) -> hr.Model:
    """One head of so many dims."""
    rows: list[str | int] = ["batch", "length", dims]
    spec = (TensorProto.FLOAT, rows)
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=1, kv_num_heads=1)
    return hr.load(model_of([node], {"q": spec, "k": spec, "v": spec}, {"y": spec}, opset=23))


def test_heads_that_no_kernel_holds_are_refused_when_a_plan_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(cuda, "_module", lambda kind: driver)
    assert cuda.too_wide_heads(attention_of(cuda.HEAD_DIMS_MAX).graph.graph) == []
    with pytest.raises(UnsupportedOp, match="got heads of 257 dims, expected at most 256"):
        attention_of(257).compile(backend="native", device="cuda:1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:1", "options": {"cublaslt": "yes"}}, "'cublaslt' 'yes', expected one of auto, on, off"),
        ({"options": {"cublaslt": "off"}}, "'cublaslt': 'off'} on a CPU, expected a CUDA device"),
    ],
)
def test_a_choice_of_cublaslt_that_means_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    driver = Driver()
    monkeypatch.setattr(cuda, "_module", lambda kind: driver)
    with pytest.raises(BackendUnavailable, match=message):
        loaded("mlp")[1].compile(backend="native", **options)


def test_compiling_for_the_cpu_asks_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(cuda, "_module", lambda kind: driver)
    model = loaded("mlp")[1]
    for how in ({"backend": "native"}, {"backend": "native", "device": "cpu"}, {"backend": "auto"}):
        assert model.compile(**how).plan.device == "cpu"  # type: ignore[arg-type]
    assert driver.asked == 0
    hr.backends()["native"].probe()
    assert driver.asked == 1


def test_the_report_says_plainly_that_nothing_ran_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices, missing = usable_devices()
    if "cuda" not in missing:
        pytest.skip(f"this machine has {devices}")
    monkeypatch.setattr(report, "MARKDOWN", tmp_path / "report.md")
    monkeypatch.setattr(report, "JSON", tmp_path / "report.json")
    assert report.main() == 0
    assert "**Nothing ran on a GPU**" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["missing"] == missing["cuda"]


def test_the_report_shows_what_failed() -> None:
    model = {
        "model": "trees", "precision": "fp32", "cublaslt": "off", "worst": 0.5, "allowed": 1e-6, "invariant": True,
        "ok": False,
    }  # fmt: skip
    groups = {"models": {"passed": 3, "failed": 0, "skipped": 1, "failures": []}}
    found: dict[str, Any] = {
        "made": "now", "machine": "here", "device": {"name": "a GPU", "major": 9, "minor": 0},
        "cublaslt": "13.1.1", "products": {"perceptron fp32": ["products with weights: 7 by cuBLASLt"]},
        "conformance": {"off": groups, "on": groups},
        "models": [model], "soak": {"fp32": {"batches": 9, "wrong": 0}},
        "speed": [{"case": "a case", "ms": {"cpu fp32": 2.5}}],
    }  # fmt: skip
    assert report.failed(found)
    text = report.markdown(found)
    assert "| trees | fp32 | off | 0.5 | 1e-06 | yes |" in text
    assert "cuBLASLt: 13.1.1" in text
    assert "perceptron fp32: products with weights: 7 by cuBLASLt" in text
    assert "a case: cpu fp32 2.5" in text
    sound = {**found, "models": [{**model, "ok": True}]}
    assert not report.failed(sound)
    broken = {"models": {"passed": 3, "failed": 1, "skipped": 1, "failures": ["mlp: wrong"]}}
    assert report.failed({**sound, "conformance": {"off": groups, "on": broken}})
