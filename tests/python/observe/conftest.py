"""The metrics are those of served fakes, so the fakes are shared with the serving tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
