"""What the garbage collector may look through in a server."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from headrace.serving.heap import settle


class Cycle:
    """Garbage that only the collector can find."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_lives_is_out_of_sight_and_what_became_garbage_since_is_collected_the_next_time() -> None:
    kept = Cycle()
    gone = weakref.ref(kept)
    settle()
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < 1000, "a collection has next to nothing to look through"
    del kept
    gc.collect()
    assert gone() is not None, "it is out of sight"
    settle()
    assert gone() is None


def test_garbage_is_not_kept() -> None:
    gone = weakref.ref(Cycle())
    settle()
    assert gone() is None
