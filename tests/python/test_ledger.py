"""The request ledger on disk, and the command that shows it."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import headrace as hr
from headrace.backend import Executable, Plan
from headrace.cli.ledger import command
from headrace.engine import Engine
from headrace.errors import ConfigError
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


def test_books_that_do_not_balance_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cli.ledger._read", lambda folder: {"m": Books(accepted=3, ok=2)})
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
