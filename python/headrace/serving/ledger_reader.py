"""The ledger's folder, read beside the event loop: a disk that hangs keeps nobody waiting but those who ask for it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from headrace.errors import BackendUnavailable, ConfigError
from headrace.observe.ledger import Books, read, totals
from headrace.serving.aside import aside

log = logging.getLogger("headrace.serving")


class LedgerReader:
    """Reads the books of every process that keeps them in one folder. Used from one event loop only.

    However many ask, one thread reads at a time: whoever asks meanwhile shares the next reading, which alone is sure to
    count what was answered before.

    Args:
        folder: Where the ledger is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reading: asyncio.Future[dict[str, Books]] | None = None
        # Files that are no ledger, which are told once.
        self._told: set[str] = set()

    async def books(self) -> dict[str, Books]:
        """The books of each model, of all processes together.

        Raises:
            BackendUnavailable: The folder cannot be read.
        """
        if self._reading is not None:
            await asyncio.wait({self._reading})
        if self._reading is None:
            self._reading = aside("headrace-ledger", self._read)
            self._reading.add_done_callback(self._ended)
        return await asyncio.shield(self._reading)

    def _read(self) -> dict[str, Books]:
        strays: list[ConfigError] = []
        try:
            entries = read(self._folder, strays)
        except ConfigError as error:
            raise BackendUnavailable(str(error)) from error
        for text in {str(stray) for stray in strays} - self._told:
            self._told.add(text)
            log.error("the ledger is told without it: %s", text)
        return totals(entries)

    def _ended(self, reading: asyncio.Future[dict[str, Books]]) -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()  # those who asked may all have gone
