"""How the tests are shared out among processes (``pytest -n 2``, see the Makefile).

The tests of a file stay together, since they share fixtures. The files that start servers and clusters, or wait for
something to happen in time, all go to one process, one after the other: they disturb each other. That process mostly
waits, so the others get the rest of the machine. It starts first, since it takes longest.
"""

import os
from typing import Any

import pytest

# The kernels of the triton backend run in Triton's interpreter, unless a GPU's driver is there to run them.
if not os.path.exists("/proc/driver/nvidia/version"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

TIMED = tuple(
    f"tests/{path}"
    for path in ("chaos", "python/cli", "python/examples/test_demo.py", "python/serving", "python/batcher")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the timed tests first."""
    items.sort(key=lambda item: not item.nodeid.startswith(TIMED))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Shares out by file; the timed ones count as one. (pytest-xdist's own groups have no effect with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::", 1)[0]
            return "timed" if path.startswith(TIMED) else path

    return ByFile(config, log)
