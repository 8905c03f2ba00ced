"""The request ledger on disk, and the command that shows it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import headrace as hr
from headrace.backend import Executable, Plan
from headrace.cli.ledger import command
from headrace.engine import Engine
from headrace.errors import BackendUnavailable, ConfigError
from headrace.observe import ledger
from headrace.observe.ledger import Books, create, read, totals
from headrace.signature import Signature, TensorSpec

VECTOR = Signature((TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))


class Doubler(Executable):
    """Doubles x; fails where it is negative."""

    plan = Plan(backend="doubler", device="cpu", isa="python", precision="fp32", threads=1)

    def run_batch(self, requests: Any) -> Any:
        if any(request["x"][0] < 0 for request in requests):
            raise ValueError("got a negative x, expected at least 0")
        return [{"y": request["x"] * 2} for request in requests]


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, list(args), catch_exceptions=False)
    return result.exit_code, result.output


def x(value: float) -> dict[str, Any]:
    return {"x": np.full(1, value, np.float32)}


def test_the_books_stand_in_the_file_while_the_batcher_lives_and_after(tmp_path: Path) -> None:
    with hr.Batcher(Engine(VECTOR, Doubler(), "doubler"), ledger_fd=create(tmp_path, "m", "1")) as batcher:
        for value in (1, 2, -3):
            future = batcher.submit(x(value))
            assert (future.exception(20) is None) == (value > 0)
        (entry,) = read(tmp_path)
        assert entry.alive
        assert (entry.owner.model, entry.owner.version) == ("m", "1")
        assert entry.books == Books(accepted=3, ok=2, failed=1)
        assert entry.books == Books.of_stats(batcher.stats())
    (entry,) = read(tmp_path)
    assert entry.books == Books(accepted=3, ok=2, failed=1)


def test_a_killed_process_leaves_exact_books(tmp_path: Path) -> None:
    script = f"""
        import threading
        from pathlib import Path
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from headrace.errors import Overloaded
        from test_ledger import *

        class Held(Doubler):
            def run_batch(self, requests):
                if requests[0]["x"][0] == 7:
                    print("held", flush=True)
                    threading.Event().wait()
                return super().run_batch(requests)

        batcher = hr.Batcher(Engine(VECTOR, Held(), "held"), max_queue=2, ledger_fd=create({str(tmp_path)!r}, "m", "1"))
        for value in range(5):
            batcher.submit(x(value)).result()
        batcher.submit(x(7))
        sys.stdin.readline()
        for value in range(5):
            try:
                batcher.submit(x(value))
            except Overloaded:
                pass
        print("full", flush=True)
        threading.Event().wait()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "full\n"
        (entry,) = read(tmp_path)
        assert entry.books == Books(accepted=8, ok=5, queued=3, refused=3)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
    (entry,) = read(tmp_path)
    assert not entry.alive
    assert entry.books == Books(accepted=8, ok=5, lost=3, refused=3)
    assert entry.books.balanced
    code, output = run(str(tmp_path), "--json")
    assert code == 0
    books = json.loads(output)
    assert books["balanced"] is True
    assert books["models"]["m"]["lost"] == 3


def test_sums_are_by_model(tmp_path: Path) -> None:
    batchers = [
        hr.Batcher(Engine(VECTOR, Doubler(), "doubler"), ledger_fd=create(tmp_path, name, version))
        for name, version in (("a", "1"), ("a", "2"), ("b", "1"))
    ]
    for batcher in batchers:
        batcher.submit(x(1)).result(20)
        batcher.close()
    assert totals(read(tmp_path)) == {"a": Books(accepted=2, ok=2), "b": Books(accepted=1, ok=1)}
    code, output = run(str(tmp_path))
    assert code == 0
    assert [line.split()[:3] for line in output.splitlines()[1:]] == [["a", "2", "2"], ["b", "1", "1"]]
    assert output.count(" balances") == 2


def test_books_that_do_not_balance_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cli.ledger._read", lambda folder, unread: {"m": Books(accepted=3, ok=2)})
    code, output = run("anywhere")
    assert code == 1
    assert "DOES NOT BALANCE" in output


def test_a_request_that_ended_twice_unbalances_the_books(tmp_path: Path) -> None:
    os.close(create(tmp_path, "m", "1"))
    (path,) = tmp_path.iterdir()
    header = path.read_bytes()[:256]
    path.write_bytes(header + struct.pack("=8q", 3, 0, 4, 0, 0, 0, 0, 0))
    assert not totals(read(tmp_path))["m"].balanced
    assert run(str(tmp_path))[0] == 1


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got no folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "bad.ledger").write_bytes(b"x" * 320)
    with pytest.raises(ConfigError, match="expected a ledger file"):
        read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected a folder that files can be made in"):
        create(tmp_path / "file", "m", "1")


def test_the_rest_is_told_beside_files_that_cannot_be_read(tmp_path: Path) -> None:
    finished(tmp_path, "m", accepted=3, ok=3)
    (tmp_path / "foreign.ledger").write_text("dear diary")
    (tmp_path / "empty.ledger").write_bytes(b"")
    (tmp_path / "half.ledger").write_bytes(next(tmp_path.glob("m-*")).read_bytes()[:300])
    (tmp_path / "folder.ledger").mkdir()
    (tmp_path / "earlier.books").write_text('{"models": {}, "files": ["../m.ledger"]}')
    (tmp_path / "half-made.draft").write_text("")
    strays: list[ConfigError] = []
    assert totals(read(tmp_path, strays)) == {"m": Books(accepted=3, ok=3)}
    assert len(strays) == 5
    code, output = run(str(tmp_path), "--json")
    assert code == 1, "who knows what was in them"
    assert json.loads(output)["models"]["m"]["ok"] == 3
    assert len(json.loads(output)["unread"]) == 5
    code, output = run(str(tmp_path))
    assert code == 1
    assert output.count("not counted: ") == 5


def finished(folder: Path, model: str, **counts: int) -> Path:
    """The file of a process that is gone."""
    fd, books = create(folder, model, "1"), Books(**counts)
    numbers = books.accepted, books.refused, books.ok, books.failed, books.expired, books.cancelled, books.lost, 0
    os.pwrite(fd, struct.pack("=8q", *numbers), 256)
    path = Path(os.readlink(f"/proc/self/fd/{fd}"))
    os.close(fd)
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "FILES_MAX", 8)
    monkeypatch.setattr(ledger, "GONE_KEPT", 2)


@pytest.mark.usefixtures("small")
def test_files_of_processes_that_are_gone_do_not_pile_up(tmp_path: Path) -> None:
    alive = create(tmp_path, "a", "1")
    unbalanced = finished(tmp_path, "c", accepted=1, ok=2)
    for number in range(1, 101):
        finished(tmp_path, "a" if number % 2 else "b", accepted=5, refused=1, ok=2, cancelled=1, lost=2)
        sums = totals(read(tmp_path))
        total = sums["a"] + sums.get("b", Books())
        assert total == Books(accepted=5 * number, refused=number, ok=2 * number, cancelled=number, lost=2 * number)
        assert len(list(tmp_path.iterdir())) <= 8 + 3
    assert unbalanced.exists(), "it is to be looked at"
    assert not sums["c"].balanced
    (owner,) = [entry.owner.model for entry in read(tmp_path) if entry.alive]
    assert owner == "a"
    os.close(alive)


@pytest.mark.usefixtures("small")
def test_a_crash_while_files_are_folded_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the folder is once the last one."""

    class Killed(BaseException):
        pass

    for steps in range(40):
        folder = tmp_path / str(steps)
        for _ in range(8):
            finished(folder, "m", accepted=3, ok=2, lost=1)
        left, folds = steps, 0
        with monkeypatch.context() as patch:

            def dying(call: Any) -> Any:
                def step(*args: Any, **kwargs: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise Killed
                    return call(*args, **kwargs)

                return step

            for name in ("unlink", "replace"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            patch.setattr(os, "fsync", dying(os.fsync))
            try:
                ledger._fold_locked(folder)
                folds += 1
            except Killed:
                pass
        assert totals(read(folder)) == {"m": Books(accepted=24, ok=16, lost=8)}, f"after {steps} steps"
        for number in range(9, 30):
            finished(folder, "m", accepted=3, ok=2, lost=1)
            assert totals(read(folder)) == {"m": Books(accepted=3 * number, ok=2 * number, lost=number)}
        if folds:
            return
    raise AssertionError("it was never done")


@pytest.mark.usefixtures("small")
def test_who_reads_while_files_are_folded_counts_each_once(tmp_path: Path) -> None:
    for _ in range(8):
        finished(tmp_path, "m", accepted=1, ok=1)
    seen, number, done = [], 8, threading.Event()

    def look() -> None:
        while not done.is_set():
            low = number
            seen.append((low, totals(read(tmp_path))["m"].accepted, number + 1))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(150):
        finished(tmp_path, "m", accepted=1, ok=1)
        number += 1
    done.set()
    reader.join()
    assert totals(read(tmp_path)) == {"m": Books(accepted=158, ok=158)}
    assert seen
    assert all(low <= accepted <= high for low, accepted, high in seen), seen


@pytest.mark.usefixtures("small")
def test_where_old_files_cannot_be_folded_books_are_kept_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ledger, "replacing", full)
    for _ in range(12):
        finished(tmp_path, "m", accepted=1, ok=1)
    assert totals(read(tmp_path)) == {"m": Books(accepted=12, ok=12)}
    assert "the ledger's old files stay: [Errno 28]" in caplog.text


def test_a_folder_that_must_not_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(folder: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(os, "scandir", denied)  # which glob asks
    with pytest.raises(ConfigError, match="Permission denied"):
        read(tmp_path)


def test_a_full_disk_makes_no_file_that_is_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda fd, content: 100)
    with pytest.raises(ConfigError, match="got room for 100 bytes, expected 320"):
        create(tmp_path, "m", "1")
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_is_no_ledger_is_an_error() -> None:
    answers = [b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nthe disk!", b"SSH-2.0-OpenSSH_9.6\r\n", b""]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for text in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(text)

        thread = threading.Thread(target=answer)
        thread.start()
        for said in ("503: Busy: the disk!", "SSH", "closed connection"):
            with pytest.raises(BackendUnavailable, match=said):
                CliRunner().invoke(command, [f"http://127.0.0.1:{server.getsockname()[1]}"], catch_exceptions=False)
        thread.join()
