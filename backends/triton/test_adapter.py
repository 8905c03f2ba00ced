"""Triton's kernels against torch's functions: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are loaded

from headrace.backends.triton import kernels
from headrace.backends.triton.adapter import TritonBackend

import headrace as hr
from headrace.conformance.models import assert_close, loaded
from headrace.errors import BackendUnavailable

DEVICE = torch.device("cpu" if kernels.INTERPRETED else "cuda")
MINILM = Path(__file__).resolve().parents[2] / "build" / "models" / "minilm.onnx"
TOLERANCE = 2e-6

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x, "relu": torch.relu, "gelu_erf": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": F.silu,
}  # fmt: skip


@pytest.fixture
def normal() -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(shape, generator=generator).to(DEVICE)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_with_its_epilogue(normal: Callable[..., torch.Tensor], activation: str) -> None:
    x, weights, bias, residual = normal(37, 150), normal(150, 140) / 12, normal(140), normal(37, 140)
    product = x @ weights
    close(kernels.linear(x, weights, bias, residual, activation), ACTIVATIONS[activation](product + bias) + residual)
    close(kernels.linear(x, weights, None, None, activation), ACTIVATIONS[activation](product))


def test_the_rows_of_a_product_do_not_depend_on_one_another(normal: Callable[..., torch.Tensor]) -> None:
    x, weights = normal(70, 40), normal(40, 30)
    whole = kernels.linear(x, weights, None, None)
    assert torch.equal(kernels.linear(x[33:50], weights, None, None), whole[33:50])


def test_norms_softmax_and_gelu(normal: Callable[..., torch.Tensor]) -> None:
    x, scale, bias = normal(21, 50) * 3, normal(50), normal(50)
    close(kernels.norm(x, scale, bias, 1e-5, centred=True), F.layer_norm(x, (50,), scale, bias, 1e-5))
    close(kernels.norm(x, scale, None, 1e-5, centred=False), F.rms_norm(x, (50,), scale, 1e-5))
    x[3] = float("-inf")  # a softmax over nothing
    close(kernels.softmax(x), torch.softmax(x, -1))
    close(kernels.unary(x[4:], "gelu_erf"), F.gelu(x[4:]))


LENGTHS = [5, 40, 1, 33]


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_over_sequences_of_exact_lengths(
    normal: Callable[..., torch.Tensor], masked: bool, guard: bool
) -> None:
    heads, kv_heads, depth, width = 4, 2, 24, 8
    total = sum(LENGTHS)
    q, k, v = normal(total, heads * depth), normal(total, kv_heads * depth), normal(total, kv_heads * width)
    masks = None
    if masked:  # of one row for all queries, and of a row for each
        masks = [normal(1 if index % 2 else length, length) for index, length in enumerate(LENGTHS)]
        masks[1][0, 20:] = float("-inf")
        masks[0][2] = float("-inf")  # a query whose keys are all masked
    settings = {"heads": heads, "kv_heads": kv_heads, "scale": 0.3, "guard": guard}
    out = kernels.attention(q, k, v, LENGTHS, LENGTHS, masks, **settings)
    for index, (mine_q, mine_k, mine_v, got) in enumerate(
        zip(*(rows.split(LENGTHS) for rows in (q, k, v, out)), strict=True)
    ):
        length = LENGTHS[index]
        by_head = [
            rows.unflatten(-1, (count, -1)).transpose(0, 1)
            for rows, count in ((mine_q, heads), (mine_k, kv_heads), (mine_v, kv_heads))
        ]
        key, value = (part.repeat_interleave(heads // kv_heads, 0) for part in by_head[1:])
        scores = by_head[0] @ key.transpose(1, 2) * 0.3 + (0 if masks is None else masks[index])
        weights = torch.softmax(scores, -1)
        want = ((weights.nan_to_num(nan=0.0) if guard else weights) @ value).transpose(0, 1).reshape(length, -1)
        close(got, want)
        alone = kernels.attention(mine_q, mine_k, mine_v, [length], [length], masks and [masks[index]], **settings)
        assert torch.equal(alone.nan_to_num(), got.nan_to_num())


def test_a_ragged_batch_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    case, model, expected = loaded("attention")
    lengths: list[list[int]] = []
    launch = kernels.attention

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_lengths: list[int], *rest: object, **more: object):
        lengths.append(q_lengths)
        return launch(q, k, v, q_lengths, *rest, **more)

    monkeypatch.setattr(kernels, "attention", counted)
    engine = model.compile(backend="triton")
    for result, want in zip(engine.run_batch(case.requests), expected, strict=True):
        assert_close(result, want, case.tolerance)
    assert lengths == [[5, 17, 17, 17, 64]]  # Requests of 1 x 5, 3 x 17 and 1 x 64, with nothing between them
    assert engine.plan.details["triton_ops"] == engine.plan.details["ops"]


def test_every_kernel_compiles_for_gpus() -> None:
    # To machine code, which takes no GPU; in a process of its own, since kernels loaded to be interpreted cannot be.
    script = Path(__file__).with_name("compile_kernels.py")
    command = [sys.executable, str(script), "80"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled = dict(line.split() for line in done.stdout.splitlines())
    assert compiled.keys() == {name for name in vars(kernels) if name.endswith("_kernel")}
    assert all(int(size) > 0 for size in compiled.values())


@pytest.mark.skipif(not MINILM.exists(), reason="build/models/minilm.onnx, which make demo exports, is not there")
def test_minilm_agrees_with_native() -> None:
    model = hr.load(str(MINILM))
    requests = []
    for tokens in (3, 9):
        ids = np.random.default_rng(tokens).integers(1000, 20000, (1, tokens))
        requests.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    results = model.compile(backend="triton").run_batch(requests)
    for result, want in zip(results, model.compile(backend="native").run_batch(requests), strict=True):
        for name, values in want.items():
            np.testing.assert_allclose(result[name], values, rtol=1e-4, atol=1e-5)


def test_without_a_gpu_it_is_there_only_where_the_interpreter_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert TritonBackend().probe().devices == ("cpu",)
    assert TritonBackend().probe().for_tests  # or planning would wait for the interpreter
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    availability = TritonBackend().probe()
    assert not availability.ok
    assert "TRITON_INTERPRET=1" in availability.reason
    with pytest.raises(BackendUnavailable, match="finds no CUDA device"):
        loaded("mlp")[1].compile(backend="triton")


@pytest.mark.skipif(not kernels.INTERPRETED, reason="kernels run on the GPU here")
def test_the_plan_says_that_kernels_are_interpreted() -> None:
    plan = loaded("mlp")[1].compile(backend="triton").plan
    assert "interpreter" in plan.isa
    assert "to test their logic" in str(plan)
