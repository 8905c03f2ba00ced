"""Makes the examples' scripts importable as the scripts import each other."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
sys.path[:0] = [str(EXAMPLES / folder) for folder in ("demo", "tickets", "minilm")]
