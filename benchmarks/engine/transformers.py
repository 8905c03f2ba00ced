"""MiniLM and a BERT-base shape: fixed shapes, a ragged batch that peers must pad, and how far int8 moves embeddings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import texts
from benchmarks.engine.candidates import PRECISIONS, Ours, first_floating, onnx_entries, torch_entries, torch_reference
from benchmarks.engine.shapes import bert
from benchmarks.harness.cases import Case, least_cosine, measure
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import case_table, markdown
from headrace.errors import HeadraceError


def _fixed(
    ours: Ours, path: Path, module: Callable[[], Any], shape: tuple[int, int], cosine: bool, options: Options
) -> dict[str, Any]:
    request = texts.rectangle(*shape)
    entries = [
        *ours.entries(request),
        *onnx_entries(path, request, options.threads),
        *torch_entries(module, request, options.threads, options.compiled),
    ]
    case = Case(f"{shape[0]} x {shape[1]}", torch_reference(module, request), entries, cosine)
    return measure(case, options.effort, options.progress)


def run_minilm(options: Options) -> list[dict[str, Any]]:
    """The fixed shapes, then the ragged batch."""
    path = texts.minilm_path()
    ours = Ours(str(path), options.threads)
    shapes = [(1, 16), (8, 128)] if options.quick else [(1, 16), (1, 128), (8, 128), (32, 128)]
    results = [_fixed(ours, path, texts.minilm_module, shape, True, options) for shape in shapes]
    requests = texts.ragged()
    together = texts.padded(requests)
    entries = [
        *ours.ragged_entries(requests),
        *onnx_entries(path, together, options.threads),
        *torch_entries(texts.minilm_module, together, options.threads, options.compiled),
    ]
    tokens = sum(request["input_ids"].size for request in requests)
    name = f"ragged {len(requests)} ({tokens} tokens; peers compute {together['input_ids'].size})"
    case = Case(name, torch_reference(texts.minilm_module, together), entries, cosine=True)
    return [*results, measure(case, options.effort, options.progress)]


def run_bert(options: Options) -> list[dict[str, Any]]:
    """Two fixed shapes."""
    path = bert.path()
    ours = Ours(str(path), options.threads)
    shapes = [(1, 128)] if options.quick else [(1, 128), (8, 128)]
    return [_fixed(ours, path, texts.bert_module, shape, False, options) for shape in shapes]


def run_cosine(options: Options) -> dict[str, Any]:
    """Embeddings of real sentences in every precision against our own fp32 and torch's."""
    sentences = texts.sentences(50 if options.quick else 1000)
    requests = texts.minilm().Tokenizer().requests(sentences)
    ours = Ours(str(texts.minilm_path()), options.threads)
    module = texts.minilm_module()
    options.progress("embedding sentences with torch")
    expected = np.concatenate([torch_reference(lambda: module, request) for request in requests])
    result: dict[str, Any] = {"sentences": len(requests), "rows": [], "refused": {}}
    for precision in PRECISIONS:
        options.progress(f"embedding sentences in {precision}")
        try:
            engine = ours.engine(precision)
        except HeadraceError as error:
            result["refused"][precision] = str(error).splitlines()[0]
            continue
        batches = [requests[first : first + 32] for first in range(0, len(requests), 32)]
        got = np.concatenate([first_floating(one) for batch in batches for one in engine.run_batch(batch)])
        each = (got * expected).sum(1) / (np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1))
        result["rows"].append(
            {
                "precision": precision,
                "least": least_cosine(got, expected),
                "mean": float(each.mean()),
                "max_abs_error": float(np.abs(got - expected).max()),
            }
        )
    return result


def cosine_table(result: dict[str, Any]) -> str:
    """One line per precision."""
    rows = [
        [row["precision"], f"{row['least']:.5f}", f"{row['mean']:.6f}", f"{row['max_abs_error']:.1e}"]
        for row in result["rows"]
    ]
    headings = ["precision", f"least cosine with torch fp32, {result['sentences']} sentences", "mean", "max error"]
    notes = [f"- {precision}: {reason}" for precision, reason in result["refused"].items()]
    return "\n\n".join(filter(None, [markdown(headings, rows), "\n".join(notes)]))


_TABLE = functools.partial(case_table, unit="ms")
SECTIONS = [
    Section("minilm", "MiniLM-L6 sentence encoder, batch x tokens", run_minilm, _TABLE),
    Section("bert", "BERT-base's shape, batch x tokens", run_bert, _TABLE),
    Section("cosine", "MiniLM-L6: embeddings of real sentences in each precision", run_cosine, cosine_table),
]
