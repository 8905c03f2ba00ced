"""The raw CUDA kernels and what launches them, on the host: compiled by g++, lanes as fibers, numpy in cupy's place."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headrace.backends.cupy import fused, kernels, networks
from headrace.backends.cupy.arithmetic import gelu, gelu_tanh

FOLDER = Path(__file__).resolve().parent
CSRC = FOLDER.parents[1] / "csrc"
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels as host code."""
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
               f"-I{CSRC}", str(FOLDER / "kernels_on_host.cc"), "-o", str(path)]  # fmt: skip
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture
def launched(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels run on numpy arrays from here on; the list names those that were launched."""
    names: list[str] = []

    def launch(name: str, grid: tuple[int, ...], block: int, *arguments: Any) -> None:
        values: list[Any] = []
        for item in arguments:
            if isinstance(item, np.ndarray):
                values.append(ctypes.c_void_p(item.ctypes.data))
            else:
                values.append(ctypes.c_void_p(None) if item is None else np.ctypeslib.as_ctypes(np.array(item)))
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        getattr(library, f"{name}_on_host")(grid[0], grid[1] if len(grid) > 1 else 1, block, pointers)
        names.append(name)

    def on_device(*arrays: Any) -> bool:
        return all(array is None or array.dtype == np.float32 for array in arrays)

    monkeypatch.setattr(kernels, "_launch", launch)
    monkeypatch.setattr(kernels, "_on_device", on_device)
    monkeypatch.setitem(sys.modules, "cupy", np)
    return names


@pytest.fixture
def normal() -> Callable[..., np.ndarray]:
    random = np.random.default_rng(2)
    return lambda *shape: random.standard_normal(shape).astype(np.float32)


def in_the_array_api(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives where no kernel takes part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_on_device", lambda *_: False)
        with np.errstate(all="ignore"):
            return function(*arguments)


def close(got: Any, want: Any) -> None:
    assert got is not None
    np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
def test_epilogue(launched: list[str], normal: Callable[..., np.ndarray], activation: str) -> None:
    y, bias, residual = normal(3, 7, 50), normal(50), normal(3, 7, 50)
    act = fused.ACTIVATIONS[activation]
    want = in_the_array_api(lambda: act(y + bias) + residual)
    plain = in_the_array_api(lambda: act(y))
    close(kernels.epilogue(activation, y.copy(), bias, residual), want)
    close(kernels.epilogue(activation, y.copy(), None, None), plain)
    assert launched == ["epilogue"] * 2


def test_epilogues_that_broadcast_are_left_to_the_library(
    launched: list[str], normal: Callable[..., np.ndarray]
) -> None:
    assert kernels.epilogue("relu", normal(2, 5), normal(1, 5), None) is None
    assert kernels.epilogue("relu", normal(2, 5), None, normal(5)) is None
    assert launched == []


def test_gelu(launched: list[str], normal: Callable[..., np.ndarray]) -> None:
    x = normal(5, 33).T * 3  # not contiguous
    close(gelu(x), in_the_array_api(gelu, x))
    close(gelu_tanh(x), in_the_array_api(gelu_tanh, x))
    assert launched == ["unary"] * 2


def test_norms_and_softmax(launched: list[str], normal: Callable[..., np.ndarray]) -> None:
    x, scale, bias = normal(2, 3, 300) * 3 + 1, normal(300), normal(300)
    for arguments in ((x, scale, bias, 1e-5), (x, scale, None, 1e-5)):
        close(networks.layer_norm(*arguments), in_the_array_api(networks.layer_norm, *arguments))
    want = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale
    close(kernels.rms_norm(x, scale, 1e-6), want)
    x[1, 2, 7:] = -np.inf
    close(networks.softmax(x), in_the_array_api(networks.softmax, x))
    assert launched == ["layer_norm", "layer_norm", "layer_norm", "softmax"]


def test_embedding_norm(launched: list[str], normal: Callable[..., np.ndarray]) -> None:
    words, kinds, places = normal(20, 48), normal(2, 48), normal(1, 5, 48)
    ids, kind = np.array([[3, 0, -1, 19, 7], [1, 2, 3, 4, 5]]), np.array([[0, 1, 0, 1, 1]])
    scale, bias = normal(48), normal(48)
    terms = [(words, ids), (kinds, np.broadcast_to(kind, ids.shape)), (places[0], None)]
    total = words[ids] + kinds[np.broadcast_to(kind, ids.shape)] + places
    want = in_the_array_api(networks.layer_norm, total, scale, bias, 1e-5)
    close(kernels.embedding_norm(scale, bias, terms, 1e-5), want)
    assert launched == ["embedding_norm"]
    outside = kernels.embedding_norm(scale, bias, [(words, np.array([20, 1]))], 1e-5)
    assert np.isnan(outside[0]).all()  # not what lies behind the table
    assert np.isfinite(outside[1]).all()


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("mask", ["none", "added", "kept", "of every head"])
def test_attention(launched: list[str], normal: Callable[..., np.ndarray], mask: str, guard: bool) -> None:
    batch, heads, kv_heads, queries, keys, depth, width = 2, 4, 2, 5, 9, 40, 24
    # Heads beside one another, as they lie after a product: strided.
    q = normal(batch, queries, heads, depth).transpose(0, 2, 1, 3)
    k = normal(batch, keys, kv_heads, depth).transpose(0, 2, 1, 3)
    v = normal(batch, keys, kv_heads, width).transpose(0, 2, 1, 3)
    given: Any = None
    if mask == "added":
        given = normal(batch, 1, 1, keys)
        given[1] = -np.inf  # nothing left to attend to
    elif mask == "kept":
        given = normal(1, 1, queries, keys) > 0
        given[..., 2, :] = False
    elif mask == "of every head":
        given = normal(batch, heads, queries, keys)
    close(kernels.attention(q, k, v, given, 0.2, guard), in_the_array_api(fused.attention, q, k, v, given, 0.2, guard))
    assert launched == ["attention"]


def test_attention_of_more_heads_than_a_grid_has_rows_is_left_to_the_array_api(
    launched: list[str], normal: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_GRID_MAX", 7)
    small, large = normal(1, 7, 3, 8), normal(2, 4, 3, 8)
    assert kernels.attention(small, small, small, None, 0.2, False) is not None
    assert kernels.attention(large, large, large, None, 0.2, False) is None
    assert launched == ["attention"]


def test_every_kernel_is_tested_here() -> None:
    source = kernels.SOURCE.read_text(encoding="utf-8")
    exported = {line.split("(")[0].split()[-1] for line in source.splitlines() if line.startswith("__global__")}
    on_host = (FOLDER / "kernels_on_host.cc").read_text(encoding="utf-8")
    assert exported == {line[8:-1] for line in on_host.splitlines() if line.startswith("ON_HOST(")}
