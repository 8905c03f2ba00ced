"""``headrace serve`` as a process that can be killed and started again at the same address."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

START_S_MAX = 60.0
STOP_S_MAX = 60.0
# What the server started may take so long to see that it is gone.
OUTLIVE_S_MAX = 0.3


class Server:
    """One server process after another, on one port, with one ledger.

    Args:
        repository: What it serves.
        ledger: Folder of its request ledger.
        environment: Variables beside ours.
        prelude: Python that it runs first.

    Attributes:
        starts_s: How long each start took.
        outlived: Processes that it started, and that were there after its end until they were killed here.
    """

    def __init__(
        self, repository: Path, ledger: Path, environment: dict[str, str] | None = None, prelude: str = ""
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.ledger = ledger
        self.starts_s: list[float] = []
        self.outlived = 0
        self._command = [
            sys.executable, "-c", f"{prelude}\nfrom headrace.cli.main import main; main()", "serve", str(repository),
            "--port", str(self.port), "--grpc-port", "0", "--ledger", str(ledger),
        ]  # fmt: skip
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        begun = time.monotonic()
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, env=self._environment)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ready: "):
                self.starts_s.append(time.monotonic() - begun)
                return
        raise RuntimeError(f"got exit code {self._process.wait()}, expected a server")

    def pids(self) -> list[int]:
        """Its process, and all that it started."""
        assert self._process is not None, "this is a bug: the server does not run"
        return [self._process.pid, *(child.pid for child in _children(self._process.pid))]

    def kill(self) -> int:
        """kill -9. Returns its exit code, which is the signal's number below zero."""
        return self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM: it answers what it accepted. Returns its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdout is not None
        children = _children(process.pid)
        process.send_signal(number)
        try:
            return process.wait(STOP_S_MAX)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            _, left = psutil.wait_procs(children, OUTLIVE_S_MAX)
            self.outlived += len(left)
            for child in left:
                child.kill()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


def _children(pid: int) -> list[psutil.Process]:
    """The processes that one has started, and those that they have; [] where it has ended."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid).children(recursive=True)
    return found
