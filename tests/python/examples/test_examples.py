"""The examples as users run them: each checks itself against its framework, and these check that it would notice."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sentences import sentences

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def example(folder: str) -> ModuleType:
    name = f"tested_example_{folder}"
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", ["credit", "digits"])
def test_an_example_agrees_with_its_framework(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example(folder)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setattr(module, "MODELS" if folder == "credit" else "MODEL", tmp_path / "out" / "model.onnx")
    assert module.main() == 0, capsys.readouterr().out
    assert "TOO MUCH" not in capsys.readouterr().out
    assert list(tmp_path.rglob("*.onnx"))


def test_the_credit_example_would_notice_a_wrong_model(monkeypatch: pytest.MonkeyPatch) -> None:
    credit = example("credit")
    train, test = credit.split(credit.customers())
    trees = credit.train_trees(train, trees=20)
    import headrace as hr

    expected = trees.predict_proba(test.features())
    right = credit.check("trees", hr.load(trees), credit.trees_request(test), expected, test.defaulted)
    wrong = credit.check("trees", hr.load(trees), credit.trees_request(test), expected + 1e-5, test.defaulted)
    assert (right, wrong) == (True, False)


def test_the_credit_data_is_what_it_says() -> None:
    credit = example("credit")
    data = credit.customers()
    assert (len(data.defaulted), int(data.defaulted.sum())) == (10_000, 333)
    assert set(data.student) == {"Yes", "No"}
    train, test = credit.split(data)
    assert (len(train.defaulted), len(test.defaulted)) == (7_000, 3_000)


def test_auc_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    credit = example("credit")
    chance = np.random.default_rng(1)
    truth = chance.integers(0, 2, 500)
    risk = (chance.random(500) + 0.3 * truth).round(1)  # with many ties
    assert credit.auc(truth, risk) == pytest.approx(roc_auc_score(truth, risk), abs=1e-12)


def test_there_are_a_thousand_real_sentences_always_the_same() -> None:
    first, again = sentences(1000), sentences(1000)
    assert first == again
    assert len(set(first)) == 1000
    assert all(sentence[0].isupper() and len(sentence.split()) >= 4 for sentence in first)


def test_the_tickets_are_different_and_have_topics() -> None:
    tickets = example("tickets").tickets()
    assert len({text for _, text in tickets}) == len(tickets) >= 200
    assert all(topic and text for topic, text in tickets)


def test_search_finds_the_nearest_ticket_by_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("tickets")

    class Lengths:
        """An "embedding" of two numbers, from the token count."""

        def run_batch(self, requests: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
            angles = [request["input_ids"].shape[1] / 20 for request in requests]
            return [{"embedding": np.array([[np.cos(a), np.sin(a)]], dtype=np.float32)} for a in angles]

    texts = ["short one", "a sentence that is quite a bit longer than the others are", "a middling one here"]
    search = module.Search(Lengths(), texts)
    best = search.nearest("another that is rather long and goes on and on", 3)
    assert [index for _, index in best] == [1, 2, 0]
    assert best[0][0] <= 1.0 + 1e-6
    assert module.topic_precision(search, ["a", "b", "a"]) == pytest.approx(2 / 3)
