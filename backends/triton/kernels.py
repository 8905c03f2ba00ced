"""Triton kernels over packed rows, and what launches them.

Rows of all Requests of a Batch lie one after the other. A kernel takes whole tiles of them, and no element of a result
depends on another row, on how many rows there are, or on where in the Batch a row is: every sum runs over tiles of one
fixed size in order.

Where `INTERPRETED`, kernels run in Triton's interpreter on the CPU: to test their logic, not to serve.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

Tensor = torch.Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)

NONE, RELU, GELU_ERF, GELU_TANH, SIGMOID, TANH, SILU = (tl.constexpr(number) for number in range(7))
ACTIVATIONS = {"none": 0, "relu": 1, "gelu_erf": 2, "gelu_tanh": 3, "sigmoid": 4, "tanh": 5, "silu": 6}

# Elements of a row that a norm or a softmax holds at once at most, and rows a tile of them has.
WIDTH_MAX = 1 << 14
_TILE_ELEMENTS = 4096
_FLAT = 1024
# Queries and keys of a tile of attention.
QUERIES, KEYS = 32, 32

# Tiles of a product: the interpreter's, which is slow by the number of tiles, and those tried on a GPU, once for every
# shape of weights.
_INTERPRETED_TILE = {"BLOCK_M": 32, "BLOCK_N": 128, "BLOCK_K": 128}
TILES = [
    {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32},
    {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32},
    {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32},
    {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32},
]


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == RELU:
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == GELU_ERF:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == GELU_TANH:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = x * tl.sigmoid(2.0 * inner)
    elif ACTIVATION == SIGMOID:
        x = tl.sigmoid(x)
    elif ACTIVATION == TANH:
        x = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    elif ACTIVATION == SILU:
        x = x * tl.sigmoid(x)
    return x


@triton.jit
def _linear_kernel(
    x, weights, bias, residual, y, rows, n, k, x_row, weights_row,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y[rows, n] = activation(x[rows, k] @ weights[k, n] + bias) + residual."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    row_in, column_in = row[:, None] < rows, column[None, :] < n
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        at = start + depth
        left = tl.load(x + row[:, None].to(tl.int64) * x_row + at[None, :], mask=row_in & (at[None, :] < k), other=0.0)
        right = tl.load(
            weights + at[:, None].to(tl.int64) * weights_row + column[None, :],
            mask=(at[:, None] < k) & column_in, other=0.0,
        )  # fmt: skip
        total = tl.dot(left, right, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + column, mask=column < n, other=0.0)[None, :]
    total = _activated(total, ACTIVATION)
    at = row[:, None].to(tl.int64) * n + column[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + at, mask=row_in & column_in, other=0.0)
    tl.store(y + at, total, mask=row_in & column_in)


@triton.jit
def _norm_kernel(
    x, scale, bias, y, rows, width, epsilon,
    HAS_BIAS: tl.constexpr, CENTRED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """LayerNorm of each row, or, not CENTRED, RMSNorm. WIDTH is a power of two, at least the width."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    at = row[:, None].to(tl.int64) * width + column[None, :]
    values = tl.load(x + at, mask=inside, other=0.0)
    if CENTRED:
        values = tl.where(inside, values - (tl.sum(values, axis=1) / width)[:, None], 0.0)
    variance = tl.sum(values * values, axis=1) / width
    values = values / tl.sqrt(variance + epsilon)[:, None]
    values *= tl.load(scale + column, mask=column < width, other=0.0)[None, :]
    if HAS_BIAS:
        values += tl.load(bias + column, mask=column < width, other=0.0)[None, :]
    tl.store(y + at, values, mask=inside)


@triton.jit
def _softmax_kernel(x, y, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Softmax of each row."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    at = row[:, None].to(tl.int64) * width + column[None, :]
    values = tl.load(x + at, mask=inside, other=float("-inf"))
    top = tl.max(values, axis=1)
    top = tl.where(top == float("-inf"), 0.0, top)
    powers = tl.where(inside, tl.exp(values - top[:, None]), 0.0)
    tl.store(y + at, powers / tl.sum(powers, axis=1)[:, None], mask=inside)


@triton.jit
def _unary_kernel(x, y, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = _activated(tl.load(x + at, mask=at < size, other=0.0), ACTIVATION)
    tl.store(y + at, values, mask=at < size)


@triton.jit
def _attention_kernel(
    q, k, v, mask, out, q_starts, k_starts, mask_starts, mask_steps, q_row, k_row, v_row, heads, group, depth, width,
    scale, HAS_MASK: tl.constexpr, GUARD: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Attention of one head of one sequence, for a tile of its queries: keys in order, at the sequence's own length."""
    sequence, head = tl.program_id(1), tl.program_id(2)
    q_first, k_first = tl.load(q_starts + sequence), tl.load(k_starts + sequence)
    queries, keys = tl.load(q_starts + sequence + 1) - q_first, tl.load(k_starts + sequence + 1) - k_first
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    if tl.program_id(0) * QUERIES < queries:
        along, across = tl.arange(0, DEPTH), tl.arange(0, WIDTH)
        query_in = query[:, None] < queries
        asked = tl.load(
            q + (q_first + query[:, None]).to(tl.int64) * q_row + head * depth + along[None, :],
            mask=query_in & (along[None, :] < depth), other=0.0,
        )  # fmt: skip
        top = tl.full((QUERIES,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((QUERIES,), dtype=tl.float32)
        sums = tl.zeros((QUERIES, WIDTH), dtype=tl.float32)
        for start in range(0, keys, KEYS):
            key = start + tl.arange(0, KEYS)
            key_row = (k_first + key).to(tl.int64)
            given = tl.load(
                k + key_row[None, :] * k_row + (head // group) * depth + along[:, None],
                mask=(key[None, :] < keys) & (along[:, None] < depth), other=0.0,
            )  # fmt: skip
            scores = tl.dot(asked, given, input_precision="ieee") * scale
            if HAS_MASK:
                # One row of the mask for each query, or, with a step of 0, one for all.
                at = tl.load(mask_starts + sequence) + query[:, None] * tl.load(mask_steps + sequence) + key[None, :]
                scores += tl.load(mask + at, mask=query_in & (key[None, :] < keys), other=0.0)
            scores = tl.where(key[None, :] < keys, scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, axis=1))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)  # of rows in which no key has counted yet
            powers = tl.exp(scores - base[:, None])
            shrink = tl.exp(top - base)
            total = total * shrink + tl.sum(powers, axis=1)
            values = tl.load(
                v + key_row[:, None] * v_row + (head // group) * width + across[None, :],
                mask=(key[:, None] < keys) & (across[None, :] < width), other=0.0,
            )  # fmt: skip
            sums = tl.dot(powers, values, sums * shrink[:, None], input_precision="ieee")
            top = new_top
        if GUARD:
            total = tl.where(total == 0.0, 1.0, total)
        total = tl.where(query < queries, total, 1.0)
        tl.store(
            out + (q_first + query[:, None]).to(tl.int64) * (heads * width) + head * width + across[None, :],
            sums / total[:, None], mask=query_in & (across[None, :] < width),
        )  # fmt: skip


if not INTERPRETED:
    _linear_kernel = triton.autotune(
        configs=[triton.Config(tile, num_warps=4 if tile["BLOCK_M"] < 128 else 8) for tile in TILES],
        key=["n", "k"],  # not the rows: their number must not choose how a row is summed
    )(_linear_kernel)


def linear(
    x: Tensor, weights: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str = "none"
) -> Tensor:
    """``activation(x @ weights + bias) + residual`` of float32.

    Args:
        x: [rows, k], with contiguous rows.
        weights: [k, n], likewise.
        bias: [n].
        residual: [rows, n].
        activation: One of `ACTIVATIONS`.
    """
    (rows, depth), width = x.shape, weights.shape[1]
    y = torch.empty((rows, width), dtype=torch.float32, device=x.device)
    if not y.numel():
        return y

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(rows, meta["BLOCK_M"]), triton.cdiv(width, meta["BLOCK_N"])

    _linear_kernel[grid](
        x, weights, x if bias is None else bias, x if residual is None else residual, y, rows, width, depth,
        x.stride(0), weights.stride(0), ACTIVATIONS[activation], bias is not None, residual is not None,
        **(_INTERPRETED_TILE if INTERPRETED else {}),
    )  # fmt: skip
    return y


def _tile(rows: int, width: int) -> tuple[int, int, tuple[int]]:
    """Rows of a tile, its width, and how many tiles there are."""
    wide = triton.next_power_of_2(width)
    # Never by how many rows there are: see the top.
    at_once = max(1, min(16, _TILE_ELEMENTS // wide))
    return at_once, wide, (triton.cdiv(rows, at_once),)


def norm(x: Tensor, scale: Tensor, bias: Tensor | None, epsilon: float, *, centred: bool) -> Tensor:
    """LayerNorm, or, not `centred`, RMSNorm of the rows of `x`, [rows, width] and contiguous; width <= `WIDTH_MAX`."""
    y = torch.empty_like(x)
    rows, width = x.shape
    if y.numel():
        at_once, wide, grid = _tile(rows, width)
        _norm_kernel[grid](
            x, scale, scale if bias is None else bias, y, rows, width, epsilon, bias is not None, centred, at_once, wide
        )
    return y


def softmax(x: Tensor) -> Tensor:
    """Softmax of the rows of `x`, [rows, width] and contiguous; width <= `WIDTH_MAX`."""
    y = torch.empty_like(x)
    rows, width = x.shape
    if y.numel():
        at_once, wide, grid = _tile(rows, width)
        _softmax_kernel[grid](x, y, rows, width, at_once, wide)
    return y


def unary(x: Tensor, activation: str) -> Tensor:
    """``activation(x)``, for contiguous `x` of any shape."""
    y = torch.empty_like(x)
    if y.numel():
        _unary_kernel[(triton.cdiv(x.numel(), _FLAT),)](x, y, x.numel(), ACTIVATIONS[activation], _FLAT)
    return y


def attention(
    q: Tensor, k: Tensor, v: Tensor, q_lengths: list[int], k_lengths: list[int], masks: list[Tensor] | None, *,
    heads: int, kv_heads: int, scale: float, guard: bool,
) -> Tensor:  # fmt: skip
    """Attention over sequences that lie one after the other, each at its own length.

    Args:
        q: Queries, [all queries, heads * depth], with contiguous rows.
        k: Keys, [all keys, kv_heads * depth], likewise.
        v: Values, [all keys, kv_heads * width], likewise.
        q_lengths: Queries of each sequence.
        k_lengths: Keys of each sequence.
        masks: Added to the scores: for each sequence [1 or its queries, its keys] of float32.
        heads: Of the queries.
        kv_heads: Of keys and values; neighbouring heads of queries share one.
        scale: Of the scores.
        guard: Whether a query whose keys are all masked gets zeros, not NaN.

    Returns:
        [all queries, heads * width].
    """
    depth, width = q.shape[1] // heads, v.shape[1] // kv_heads
    out = torch.empty((q.shape[0], heads * width), dtype=torch.float32, device=q.device)
    if not out.numel():
        return out
    starts = [_starts(lengths, q.device) for lengths in (q_lengths, k_lengths)]
    mask_starts = mask_steps = starts[0]
    mask = q
    if masks is not None:
        mask = torch.cat([one.reshape(-1) for one in masks])
        mask_starts = _starts([one.numel() for one in masks], q.device)
        steps = [0 if one.shape[0] == 1 else one.shape[1] for one in masks]
        mask_steps = torch.tensor(steps, dtype=torch.int64, device=q.device)
    tiles = triton.cdiv(max(q_lengths), QUERIES)
    _attention_kernel[(tiles, len(q_lengths), heads)](
        q, k, v, mask, out, *starts, mask_starts, mask_steps, q.stride(0), k.stride(0), v.stride(0), heads,
        heads // kv_heads, depth, width, scale, masks is not None, guard, QUERIES, KEYS,
        max(16, triton.next_power_of_2(depth)), max(16, triton.next_power_of_2(width)),
    )  # fmt: skip
    return out


def _starts(lengths: list[int], device: torch.device) -> Tensor:
    """Where each of `lengths` begins if they lie one after the other, and where the last one ends."""
    sums = [0]
    for length in lengths:
        sums.append(sums[-1] + length)
    return torch.tensor(sums, dtype=torch.int64, device=device)
