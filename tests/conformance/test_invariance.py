"""The bits of a Result never depend on who shared the Batch, its order, its size or the thread count."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace import _core

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MINILM = EXAMPLES.parent / "build" / "models" / "minilm.onnx"
MODELS = ("minilm", "credit_trees", "credit_pipeline", "digits")
POOL = 12
THREADS = (1, 2, 3, 4)
# Precisions and options that a float model may be compiled with.
CHOICES = ({"precision": "fp32"}, {"precision": "bf16"}, {"precision": "int8"}, {"winograd": True})


def example(folder: str, script: str = "run") -> ModuleType:
    """An example's script, imported."""
    spec = importlib.util.spec_from_file_location(f"example_{folder}_{script}", EXAMPLES / folder / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def slices(request: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Requests of 1, 2, ... rows cut from one."""
    starts = np.cumsum([0, *range(1, POOL)])
    return [
        {name: rows[start : start + count] for name, rows in request.items()}
        for start, count in zip(starts, range(1, POOL + 1), strict=True)
    ]


@cache
def model_and_pool(name: str) -> tuple[hr.Model, list[dict[str, np.ndarray]]]:
    """An example's model and Requests of different shapes for it."""
    if name == "minilm":
        export = example("minilm", "export")
        if not MINILM.exists():
            export.export(MINILM)
        rng = np.random.default_rng(5)
        pool = []
        for tokens in (1, 2, 3, 5, 8, 13, 16, 17, 21, 33, 40, 64):
            ids = rng.integers(1000, 20000, (1, tokens))
            pool.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        pool[-1]["attention_mask"][0, 40:] = 0
        return hr.load(str(MINILM)), pool
    if name == "digits":
        digits = example("digits")
        x, y = digits.images()
        import torch

        model = hr.load(
            digits.train(x[:200], y[:200]), example_inputs=(torch.from_numpy(x[:2]),), input_names=["image"]
        )
        (spec,) = model.signature.inputs
        return model, slices({spec.name: x})
    credit = example("credit")
    train, test = credit.split(credit.customers())
    if name == "credit_trees":
        return hr.load(credit.train_trees(train, trees=50)), slices(credit.trees_request(test))
    return hr.load(credit.train_pipeline(train)), slices(credit.pipeline_request(test))


@cache
def alone(name: str) -> list[dict[str, np.ndarray]]:
    """Every Request of the pool on its own, with one thread."""
    model, pool = model_and_pool(name)
    engine = model.compile(backend="native", threads=1)
    return [engine(request) for request in pool]


@cache
def engine_of(name: str, threads: int) -> hr.Engine:
    return model_and_pool(name)[0].compile(backend="native", threads=threads)


def bits(array: np.ndarray) -> object:
    return (array.shape, array.tolist() if array.dtype == object else array.tobytes())


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    """An example's name, its model already loaded: a failure to load is no counterexample to shrink."""
    alone(request.param)
    return request.param


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(members=st.lists(st.integers(0, POOL - 1), min_size=1, max_size=64), threads=st.sampled_from(THREADS))
def test_any_batch_gives_each_request_the_bits_it_gets_alone(name: str, members: list[int], threads: int) -> None:
    _, pool = model_and_pool(name)
    results = engine_of(name, threads).run_batch([pool[member] for member in members])
    for member, result in zip(members, results, strict=True):
        for output, expected in alone(name)[member].items():
            assert bits(result[output]) == bits(expected), f"request {member} of batch {members}, {threads} threads"


@pytest.mark.parametrize("isa", _core.available_isas())
def test_every_isa_and_precision_gives_the_bits_it_gives_alone(
    name: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_ISA", isa)
    model, pool = model_and_pool(name)
    requests = [pool[member] for member in (4, 0, 6, 2)]  # MiniLM's reference kernels take long for more
    for choice in CHOICES:
        one = model.compile(backend="native", threads=1, **choice)
        results = model.compile(backend="native", threads=2, **choice).run_batch(requests)
        for request, result in zip(requests, results, strict=True):
            for output, expected in one(request).items():
                assert bits(result[output]) == bits(expected), f"{choice} on {isa}"
