"""A sum of embeddings with a LayerNorm behind it is one op, in whatever order and number its terms come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.errors import ExecutionError, HeadraceError

TABLES = {
    "words": (11, 24),
    "types": (2, 24),
    "narrow": (11, 1),
    "places": (40, 24),
    "row": (24,),
    "scale": (24,),
    "bias": (24,),
}
NORM = "y = LayerNormalization <axis = -1> (s, scale, bias)"
# The terms and their sum; which of them are looked up, first the words.
SUMS = {
    "words": ("s = Gather(words, ids)", (True,)),
    "words, row": ("w = Gather(words, ids)  s = Add(row, w)", (True, False)),
    "words, types, places": (
        "w = Gather(words, ids)  t = Gather(types, kinds)  p = Gather(places, at)  a = Add(w, t)  s = Add(a, p)",
        (True, True, True),
    ),
    "words, places of every text": ("w = Gather(words, ids)  s = Add(w, given)", (True, False)),
    "the last added first": (
        "w = Gather(words, ids)  t = Gather(types, kinds)  a = Add(t, w)  s = Add(row, a)",
        (True, True, False),
    ),
}


@pytest.fixture
def weights(f32) -> dict[str, np.ndarray]:
    return {name: f32(*shape) for name, shape in TABLES.items()}


def feeds(batch: int, tokens: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch * tokens)
    return {
        "ids": rng.integers(-11, 11, (batch, tokens)),
        "kinds": rng.integers(0, 2, (batch, tokens)).astype(np.int32),
        "at": np.arange(tokens)[None],
        "given": rng.standard_normal((1, tokens, 24)).astype(np.float32),
    }


INPUTS = "int64[b, n] ids, int32[b, n] kinds, int64[1, n] at, float[1, n, 24] given"


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_of_embeddings_is_normalised_as_it_is_made(optimise, weights, name: str) -> None:
    body, looked_up = SUMS[name]
    result = optimise(f"g ({INPUTS}) => (float[b, n, 24] y) {{ {body}  {NORM} }}", weights)
    assert result.ops == {"EmbeddingNorm": 1}
    terms = result.node("EmbeddingNorm").inputs[2:]
    assert tuple(ids is not None for ids in (*terms, None)[1::2][: len(looked_up)]) == looked_up
    requests = [feeds(3, 7), feeds(1, 1), feeds(2, 33)]
    expected = [result.agrees(**request)[0] for request in requests]
    for backend in ("native", "torch"):
        engine = result.model.compile(backend=backend, threads=2)
        for request, got, want in zip(requests, engine.run_batch(requests), expected, strict=True):
            np.testing.assert_allclose(got["y"], want, rtol=1e-5, atol=1e-5)
            if backend == "native":
                assert engine(request)["y"].tobytes() == got["y"].tobytes()


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        (INPUTS, "w = Gather(words, ids)  s = Relu(w)"),
        (INPUTS, "w = Gather(narrow, ids)  s = Add(w, row)"),  # repeats along a row
        ("int64[b, n] ids, float[b, 1, 24] given", "w = Gather(words, ids)  s = Add(w, given)"),  # repeats along n
        ("int64[b, n] ids, float[m, n, 24] given", "w = Gather(words, ids)  s = Add(w, given)"),  # m may be 1
        ("int64[b, n] ids, float[b, n, 24] given", "w = Gather(words, ids)  v = Relu(w)  s = Add(v, given)"),
    ],
)
def test_what_is_no_sum_of_embeddings_stays(optimise, weights, inputs: str, body: str) -> None:
    result = optimise(f"g ({inputs}) => (float[b, n, 24] y) {{ {body}  {NORM} }}", weights)
    assert "EmbeddingNorm" not in result.ops


def test_an_id_beyond_the_table_fails_its_own_request_by_name(optimise, weights) -> None:
    result = optimise(f"g (int64[b, n] ids) => (float[b, n, 24] y) {{ s = Gather(words, ids)  {NORM} }}", weights)
    engine = result.model.compile(backend="native")
    with pytest.raises(HeadraceError, match=r"EmbeddingNorm.*got index 11, expected one in \[-11, 10\]") as raised:
        engine({"ids": np.array([[3, 11]])})
    assert isinstance(raised.value, ExecutionError)
