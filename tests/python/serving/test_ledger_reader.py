"""The ledger's folder as a server reads it: beside its event loop."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from pathlib import Path

import pytest
from serving_fakes import acall

from headrace.observe.ledger import Books, Entry, create
from headrace.serving import ledger_reader
from headrace.serving.app import OipApp
from headrace.serving.host import ModelHost
from headrace.serving.ledger_reader import LedgerReader
from headrace.serving.service import OipService


def write(folder: Path, accepted: int) -> None:
    fd = create(folder, "m", "1")
    os.pwrite(fd, struct.pack("=3q", accepted, 0, accepted), 256)
    os.close(fd)


class SlowDisk:
    """Reads the folder once it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may, self.began, self.threads = threading.Event(), 0, set[str]()
        self._read = ledger_reader.read
        monkeypatch.setattr(ledger_reader, "read", self.read)

    def read(self, folder: Path, strays: list[Exception]) -> list[Entry]:
        self.began += 1
        self.threads.add(threading.current_thread().name)
        assert self.may.wait(20)
        return self._read(folder, strays)  # type: ignore[arg-type]


async def test_a_disk_that_hangs_keeps_nobody_waiting_but_who_asks_for_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 3)
    disk = SlowDisk(monkeypatch)
    app = OipApp(OipService(ModelHost([], ledger=tmp_path)))
    asked = asyncio.create_task(acall(app, "GET", "/v2/ledger"))
    async with asyncio.timeout(10):
        while not disk.began:
            await asyncio.sleep(0.005)
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/v2"):
            assert (await acall(app, "GET", path)).status == 200, path
        disk.may.set()
        assert (await asked).json["m"]["ok"] == 3
    assert disk.threads == {"headrace-ledger"}


async def test_whoever_asks_meanwhile_shares_the_next_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    disk, reader = SlowDisk(monkeypatch), LedgerReader(tmp_path)
    first = asyncio.create_task(reader.books())
    async with asyncio.timeout(10):
        while not disk.began:
            await asyncio.sleep(0.005)
        later = [asyncio.create_task(reader.books()) for _ in range(20)]
        await asyncio.sleep(0.02)
        assert disk.began == 1
        first.cancel()  # its client has gone, the thread has not
        later[0].cancel()
        await asyncio.sleep(0.02)
        assert disk.began == 1
        write(tmp_path, 5)
        disk.may.set()
        assert await asyncio.gather(*later[1:]) == [{"m": Books(accepted=6, ok=6)}] * 19
    assert disk.began == 2


async def test_what_cannot_be_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 1)
    (tmp_path / "foreign.ledger").write_text("dear diary")
    reader = LedgerReader(tmp_path)
    for _ in range(3):
        assert await reader.books() == {"m": Books(accepted=1, ok=1)}
    assert caplog.text.count("foreign.ledger: got") == 1
    answer = await acall(OipApp(OipService(ModelHost([], ledger=tmp_path / "gone"))), "GET", "/v2/ledger")
    assert (answer.status, "got no folder" in answer.error) == (503, True)
