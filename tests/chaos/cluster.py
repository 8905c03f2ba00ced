"""A deployment on a Ray of its own, whose parts can be killed one by one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from ray._private import state as ray_state

from headrace.deploy_file import load_deploy
from headrace.observe.ledger import read
from headrace.serve import Deployment, deploy

from .load import RETRY_AFTER_ON_RAY, Client, Tally
from .model import NAME, save
from .swap import Change, put

POLL_S = 0.05
START_S_MAX = 60.0
# The model is small: what is looked at is what happens to many requests.
WIDTH = 128
ROWS = 8


class Cluster:
    """One model on some replicas of a few hundredths of a CPU each, with a ledger on disk.

    Args:
        folder: Where the model, the deployment's file and the ledger go.
        replicas: How many of them.
        settings: What the model's ``headrace.toml`` says.
        ingress: What takes requests; see `headrace.config.HttpConfig`.

    Attributes:
        to_zero: Whether the model is to have no replicas after a second without a request.
        cases: Requests to the model, with their answers.
        tallies: How every request since the start ended: the ledger is of all of them.
        changes: The versions brought in beside the first.
        killed: Replicas killed since the start, and how many requests each can have had then, at most.
    """

    def __init__(self, folder: Path, replicas: int, settings: str = "", ingress: str = "headrace") -> None:
        self.folder = folder
        self.repository = folder / "models"
        self.ledger = folder / "ledger"
        self.replicas = replicas
        self.ingress = ingress
        self.to_zero = False
        self.cpus = 0.05
        self.tallies: list[Tally] = []
        self.changes: dict[int, Change] = {}
        self.killed: dict[int, int] = {}
        self.cases = save(self.repository, layers=1, settings=settings, width=WIDTH, rows=ROWS)
        self._deployment: Deployment | None = None

    @property
    def deployment(self) -> Deployment:
        """What runs."""
        assert self._deployment is not None, "this is a bug: the cluster was not started"
        return self._deployment

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.deployment.url

    def start(self) -> None:
        """Starts Ray and the model, and waits until every replica has reported."""
        self._deployment = deploy(load_deploy(self._file()))
        self.wait(lambda: len(self.pids()) == self.replicas, START_S_MAX)

    def update(self) -> None:
        """Brings in what lies in the folder now."""
        self.deployment.update(load_deploy(self._file()))

    def client(self, http: aiohttp.ClientSession) -> Client:
        """A client of it."""
        return Client(http, self.url, self.cases, RETRY_AFTER_ON_RAY)

    def put(self, change: Change) -> int:
        """Puts a new version into the folder; returns its number."""
        version = max(self.changes, default=1) + 1
        put(self.repository, version, change, WIDTH)
        self.changes[version] = change
        return version

    def stop(self) -> list[int]:
        """Drains and stops everything; returns the processes that are left."""
        return self.deployment.shutdown()

    def _file(self) -> Path:
        file = self.folder / "app.yaml"
        least = 0 if self.to_zero else self.replicas
        scaling = f"min_replicas: {least}, max_replicas: {self.replicas}, cpus_per_replica: {self.cpus}, idle_s: 1"
        model = f"{{name: {NAME}, path: models/{NAME}, autoscaling: {{{scaling}}}}}"
        http = f"{{port: 0, ingress: {self.ingress}}}"
        file.write_text(f"http: {http}\nledger: {self.ledger}\nmodels: [{model}]\n")
        return file

    def rollout(self) -> dict[str, Any]:
        """What the replicas serve and are to serve."""
        return self.deployment.rollouts()[NAME]

    def pids(self) -> list[int]:
        """The processes of the model's replicas that live, by Ray's own account of its actors."""
        return [pid for name, pid in self._actors() if name.startswith(f"SERVE_REPLICA::{NAME}#")]

    def answering(self) -> list[int]:
        """Those of them that have told the front so."""
        told = {one.pid for one in self.deployment.ledgers()[NAME] if not one.final}
        return sorted((told & {*self.pids()}) - self.killed.keys())

    def taken(self) -> Counter[int]:
        """How many requests each process that lives has taken in, by the ledger on disk."""
        taken = Counter[int]()
        for entry in read(self.ledger):
            taken[entry.owner.pid] += entry.books.accepted if entry.alive else 0
        return taken

    def controller(self) -> int:
        """The process of Serve's controller."""
        return next(pid for name, pid in self._actors() if "SERVE_CONTROLLER_ACTOR" in name)

    def listener(self) -> int:
        """The process of ours that listens where clients connect."""
        port = int(self.url.rpartition(":")[2])
        for pid in self.deployment.processes():
            with contextlib.suppress(psutil.Error):
                for connection in psutil.Process(pid).net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                        return pid
        raise LookupError(f"got no process that listens on port {port}, expected one")

    def _actors(self) -> Iterator[tuple[str, int]]:
        for actor in ray_state.actors(actor_state_name="ALIVE").values():
            yield actor["Name"], int(actor["Pid"])

    def gone(self) -> bool:
        """Whether no replica is left, by Serve's account and by Ray's."""
        return not any(self.deployment.replicas().get(NAME, {}).values()) and not self.pids()

    def whole(self) -> bool:
        """Whether all replicas run, by Serve's account and by Ray's."""
        return self.deployment.replicas().get(NAME) == {"RUNNING": self.replicas} and len(self.pids()) == self.replicas

    @staticmethod
    def kill(pid: int) -> None:
        """kill -9, of a process that may have ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    @staticmethod
    def wait(what: Callable[[], bool], seconds: float) -> float:
        """Waits until something is so; returns how long that took."""
        begun = time.monotonic()
        while True:
            # Whoever is asked may be the one that was killed.
            with contextlib.suppress(Exception):
                if what():
                    return time.monotonic() - begun
            if time.monotonic() - begun > seconds:
                raise TimeoutError(f"got nothing after {seconds:g} s, expected it sooner")
            time.sleep(POLL_S)

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._deployment is not None:
            self.stop()
