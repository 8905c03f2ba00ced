"""Versions that are on their way out: they answer what they have accepted, then are closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from time import monotonic, sleep
from typing import Any

from headrace.observe.ledger import Books
from headrace.serving.served import ServedModel
from headrace.serving.statistics import merged, statistics

POLL_S = 0.01
# Of each model the statistics of so many versions that were closed are kept, the newest.
VERSIONS_MAX = 32


class Retiring:
    """The versions being closed, and the books of those that are. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: tuple[ServedModel, ...] = ()
        self._claimed: set[ServedModel] = set()
        # Of every version that was closed, by model, and of the newest of them.
        self._books: dict[str, Books] = {}
        self._statistics: dict[str, list[dict[str, Any]]] = {}

    def __iter__(self) -> Iterator[ServedModel]:
        """Those that are not closed yet."""
        return iter(self._models)

    def books(self) -> tuple[tuple[ServedModel, ...], dict[str, Books]]:
        """Those that are not closed yet, and the books of all others by model: each version is in one of them."""
        with self._lock:
            return self._models, self._books

    def statistics(self) -> tuple[tuple[ServedModel, ...], list[dict[str, Any]]]:
        """Those that are not closed yet, and the protocol's statistics of the newest others."""
        with self._lock:
            return self._models, [entry for entries in self._statistics.values() for entry in entries]

    def enter(self, models: Sequence[ServedModel]) -> list[ServedModel]:
        """Notes versions that get no more requests, for `retire`; returns them."""
        with self._lock:
            self._models = (*self._models, *models)
        return list(models)

    def retire(self, models: Sequence[ServedModel], wait_s: float) -> None:
        """Answers what they have accepted, then closes them; see `ModelHost.retire`."""
        end, failure = monotonic() + wait_s, None
        for served in models:
            if not self._claim(served):
                continue
            while served.users and monotonic() < end:
                sleep(POLL_S)
            try:
                served.close()
            except Exception as error:
                failure = failure or error
            finally:
                self._forget(served)
        if failure is not None:
            raise failure

    def finish(self) -> None:
        """Closes those that nobody is closing, and waits until every other one is closed."""
        self.retire(self._models, 0.0)
        while self._models:
            sleep(POLL_S)

    def _claim(self, served: ServedModel) -> bool:
        """Whether it falls to the caller to close it."""
        with self._lock:
            if served in self._claimed or served not in self._models:
                return False
            self._claimed.add(served)
            return True

    def _forget(self, served: ServedModel) -> None:
        books, last = Books.of_stats(served.batcher.stats()), statistics(served)
        with self._lock:
            self._models = tuple(other for other in self._models if other is not served)
            self._claimed.discard(served)
            self._books = {**self._books, served.name: self._books.get(served.name, Books()) + books}
            known = merged([*self._statistics.get(served.name, ()), last])
            self._statistics = {**self._statistics, served.name: known[-VERSIONS_MAX:]}
