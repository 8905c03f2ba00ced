"""The benchmark harness: answers are checked before they are timed, and tables go where they belong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import __main__ as command
from benchmarks.autoscaling import validation
from benchmarks.engine import roofline, texts
from benchmarks.harness import tables
from benchmarks.harness.cases import Case, Effort, Entry, compared, measure
from benchmarks.harness.section import Section
from onnx import TensorProto, helper, numpy_helper

import headrace as hr
from headrace.simulate import Service

TINY = Effort(rounds=2, block_s=0.001)
REFERENCE = np.array([[3.0, 4.0], [1.0, 0.0]])


def entry(name: str, answer: object, precision: str = "fp32", calls: list[str] | None = None) -> Entry:
    def run() -> np.ndarray:
        if isinstance(answer, Exception):
            raise answer
        if calls is not None:
            calls.append(name)
        return np.asarray(answer)

    return Entry(name, precision, lambda: run, lambda result: result)


def test_wrong_answers_are_reported_and_never_timed() -> None:
    calls: list[str] = []
    entries = [
        entry("headrace", REFERENCE),
        entry("off", REFERENCE + 0.1, calls=calls),
        entry("nan", REFERENCE * np.nan, calls=calls),
        entry("shape", REFERENCE[:1], calls=calls),
        entry("broken", ValueError("got no\nluck")),
    ]
    result = measure(Case("case", REFERENCE, entries), TINY)
    assert [row["name"] for row in result["rows"]] == ["headrace"]
    reasons = {row["name"]: row["reason"] for row in result["refused"]}
    assert reasons["off"] == "WrongAnswer: got an error of 0.1, expected at most 0.001 of the largest value, 4"
    assert "error of nan" in reasons["nan"]
    assert reasons["shape"] == "WrongAnswer: got shape (1, 2), expected (2, 2)"
    assert reasons["broken"] == "ValueError: got no"
    assert len(calls) == 3  # once each, to look at the answer


def test_only_peers_of_the_same_precision_are_compared() -> None:
    entries = [
        entry("headrace", REFERENCE), entry("headrace", REFERENCE, "bf16"), entry("a", REFERENCE),
        entry("b", REFERENCE, "bf16"), entry("headrace", REFERENCE, "int8"),
    ]  # fmt: skip
    result = measure(Case("case", REFERENCE, entries, cosine=True), TINY)
    rows = {row["precision"]: row for row in compared(result)}
    assert {precision: list(row["peers"]) for precision, row in rows.items()} == {
        "fp32": ["a"], "bf16": ["b"], "int8": [],
    }  # fmt: skip
    assert rows["fp32"]["ratio"] == rows["fp32"]["peers"]["a"]["median_s"] / rows["fp32"]["median_s"]
    assert rows["int8"]["ratio"] is None
    assert rows["fp32"]["own_fp32"] == 1.0
    assert rows["bf16"]["cosine"] == pytest.approx(1.0)


def test_tables_say_the_ratio_and_who_did_not_run() -> None:
    times = {"median_s": 0.002, "best_s": 0.0015, "spread": 0.05, "max_abs_error": 1e-7, "variant": ""}
    ours = {"name": "headrace", "precision": "fp32"} | times
    peer = {"name": "peer", "precision": "fp32"} | times | {"median_s": 0.003}
    refused = {"name": "headrace", "precision": "bf16", "variant": "", "reason": "no such kernels"}
    results = [{"case": case, "rows": [ours, peer], "refused": [refused]} for case in ("one", "two")]
    results[1]["rows"] = [ours | {"about": "half of it"}, peer]
    table = tables.case_table(results, "ms")
    assert "| one | fp32 | 2.00 | 1.50 | 5% | 3.00 | **1.50** | 1.0e-07 |" in table
    assert table.splitlines()[-2:] == [
        "- not timed: headrace bf16: no such kernels",
        "- headrace fp32: half of it (two)",
    ]
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_writing_tables_is_idempotent_and_touches_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- bench:a -->\nold \\1\n<!-- /bench:a -->\nbetween\n<!-- bench:b -->\n<!-- /bench:b -->\n"
    )
    tables.write_between(page, "a", "    new \\1 text\n")
    once = page.read_text()
    assert once == (
        "before\n<!-- bench:a -->\n\n    new \\1 text\n\n<!-- /bench:a -->\n"
        "between\n<!-- bench:b -->\n<!-- /bench:b -->\n"
    )
    tables.write_between(page, "a", "    new \\1 text\n")
    assert page.read_text() == once
    with pytest.raises(ValueError, match=r"got 0 x '<!-- bench:c -->' and 0 x"):
        tables.write_between(page, "c", "text")


def test_the_page_has_a_place_for_every_section() -> None:
    for name, section in command.SECTIONS.items():
        page = (command.DOCS / section.page).read_text()
        assert page.count(f"<!-- bench:{name} -->") == 1, name
        assert page.count(f"<!-- /bench:{name} -->") == 1, name


def test_a_section_leaves_json_and_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: object) -> list[dict[str, object]]:
        return [measure(Case("case", REFERENCE, [entry("headrace", REFERENCE), entry("peer", REFERENCE)]), TINY)]

    section = Section("fake", "A fake", run, lambda results: tables.case_table(results, "ms"), page="page.md")
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:fake -->\n<!-- /bench:fake -->\n")
    monkeypatch.setattr(command, "SECTIONS", {"fake": section})
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "DOCS", tmp_path)
    command.main(["--quick", "--json"])
    assert page.read_text().count("\n") == 2  # a quick run is not for quoting
    assert json.loads(capsys.readouterr().out)["fake"]["result"][0]["case"] == "case"
    command.main(["--only", "fake", "--rounds", "3", "--no-compiled"])
    assert "| case | fp32 |" in page.read_text()
    assert "\n    .venv/bin/python -m benchmarks --only fake --rounds 3 --no-compiled\n" in page.read_text()
    written = page.read_text()
    command.main(["--write-docs-only"])
    assert page.read_text() == written


def test_operations_and_bytes_are_counted_from_the_shapes_that_ran() -> None:
    x = {"x": np.ones((2, 3, 8, 8), np.float32)}
    weights = numpy_helper.from_array(np.ones((16, 3, 3, 3), np.float32), "w")
    matrix = numpy_helper.from_array(np.ones((8, 5), np.float32), "m")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
            helper.make_node("MatMul", ["c", "m"], ["p"]),
            helper.make_node("Softmax", ["p"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, 8, 5])],
        [weights, matrix],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    core = hr.load(model).compile(backend="native", threads=1).executable.core
    conv, product, softmax = (
        next(step for step in core.profile([x]) if word in step.op) for word in ("Conv", "Linear", "Softmax")
    )
    assert roofline.operations(conv) == 2 * (2 * 16 * 8 * 8) * 27
    assert roofline.operations(product) == 2 * (2 * 16 * 8 * 5) * 8
    assert roofline.operations(softmax) == 5 * (2 * 16 * 8 * 5)
    read = [(value.shape, value.constant) for value in product.inputs[:2]]
    assert read == [([2, 16, 8, 8], False), ([8, 5], True)]
    values = 2 * 16 * 8 * 8 + 2 * 16 * 8 * 5
    assert roofline.traffic(product, "fp32") == 4 * values + 4 * 8 * 5
    assert roofline.traffic(product, "int8") == 4 * values + 8 * 5


def test_ragged_texts_are_padded_with_masked_tokens() -> None:
    requests = texts.ragged(4)
    together = texts.padded(requests)
    longest = max(request["input_ids"].shape[1] for request in requests)
    assert together["input_ids"].shape == together["attention_mask"].shape == (4, longest)
    assert together["attention_mask"].sum() == sum(request["input_ids"].size for request in requests)


def test_what_the_batches_of_a_run_took_is_seen_in_its_answers() -> None:
    rng = np.random.default_rng(3)
    arrivals_s = np.cumsum(rng.exponential(0.012, 400))
    done_s = np.full(400, np.nan)
    slowness, end_s, at = [], 0.0, 0
    while at < 400:
        if at % 7 == 3:  # refused
            at += 1
            continue
        start_s = max(end_s, arrivals_s[at])
        batch = [place for place in range(at, 400) if arrivals_s[place] <= start_s and place % 7 != 3]
        slowness.append(rng.uniform(0.9, 2.0))
        end_s = start_s + slowness[-1] * (0.001 + 0.01 * len(batch))
        done_s[batch] = end_s + 2e-6 * np.arange(len(batch))
        at = batch[-1] + 1
    found = validation.as_run(arrivals_s, done_s, Service(0.001, 0.01, (1.0,), wake_s=0.002))
    np.testing.assert_allclose(found.ratios, slowness, rtol=0.01)
    assert found.wake_s == 0
