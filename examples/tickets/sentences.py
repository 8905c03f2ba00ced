"""Real English sentences that ship inside scikit-learn: its dataset descriptions and docstrings (BSD licence).

    python examples/tickets/sentences.py 5

Always the same sentences in the same order, for the same version of scikit-learn: nothing is random.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

WORDS_MIN = 4
WORDS_MAX = 200
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_WORD = re.compile(r"[A-Za-z][a-z'-]+")
# Underlined headings ("See Also --------"), parameter lists and doctests are no prose.
_MARKUP = re.compile(r"----|>>>| : |``$|::")


def sentences(count: int) -> list[str]:
    """The first `count` sentences.

    Raises:
        ValueError: scikit-learn holds fewer than that.
    """
    found: dict[str, None] = {}
    for text in _texts():
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in _END.split(" ".join(paragraph.split())):
                if _is_prose(sentence):
                    found.setdefault(sentence)
                    if len(found) == count:
                        return list(found)
    raise ValueError(f"got {len(found)} sentences in scikit-learn, expected {count}")


def _texts() -> Iterator[str]:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("scikit-learn is not installed: pip install scikit-learn")
    root = Path(spec.submodule_search_locations[0])
    for path in sorted((root / "datasets" / "descr").glob("*.rst")):
        yield path.read_text(encoding="utf-8")
    for package in ("linear_model", "cluster", "ensemble", "decomposition", "neighbors", "svm"):
        for path in sorted((root / package).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                    yield ast.get_docstring(node) or ""


def _is_prose(sentence: str) -> bool:
    if _MARKUP.search(sentence) or not (sentence[:1].isupper() and sentence.endswith((".", "!", "?"))):
        return False
    mostly_letters = sum(map(len, _WORD.findall(sentence))) > 0.7 * len(sentence)
    return mostly_letters and WORDS_MIN <= len(sentence.split()) <= WORDS_MAX


if __name__ == "__main__":
    for sentence in sentences(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        print(sentence)
