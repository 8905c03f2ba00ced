"""What all replicas of a model are to serve. The front decides when a new version takes over, on the evidence of all.

It keeps one `Assignment` per model: what answers, and what is to take over. Each replica reports twice a second how far
it has followed it and what it saw (`headrace.serving.standings`), and is told the assignment when there is a newer one;
a new replica reads it when it starts. Assignments are kept in a store that outlives the front; the evidence is in the
replicas.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

import msgspec

from headrace.config import AutoscalingConfig, ModelConfig, ModelSource, load_source
from headrace.errors import ConfigError, NotOffered
from headrace.serving.evidence import Decision
from headrace.serving.standings import Standing, Standings
from headrace.serving.version_files import version_files

log = logging.getLogger("headrace.serving")

# If the front hears from no replica at all for longer than this, it is not they who are silent.
PAUSE_S_MAX = 5.0
# A front that starts again decides nothing on a model of several groups before it has heard them all: replicas report
# twice a second, and one whose report is lost once in two seconds.
LISTEN_S = 3.0


class Edition(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is served from: its files and settings at one time.

    Attributes:
        model: The file of each version, and the settings.
        contents: A digest of names, sizes and times of those files, of all that lie in the versions' folders, and
            of the weights beside a file that lies among others.
        digest: A digest of the bytes of all that; "" where this machine does not have it.
        source: Where it was read; None where that cannot be done again.
    """

    model: ModelConfig
    contents: str
    digest: str = ""
    source: ModelSource | None = None

    @classmethod
    def of(cls, model: ModelConfig, source: ModelSource | None = None) -> Edition:
        """The edition that lies there now. Blocking: it reads the files whole.

        Raises:
            ConfigError: A file cannot be read. That all are missing is none: replicas may have them where this machine
                does not.
        """
        model = resolved(model)
        return cls(model=model, contents=_contents(model), digest=_digest(model), source=source)

    @property
    def is_there(self) -> bool:
        """Whether it still lies there. Blocking where the files look changed: they may only have been copied again."""
        if _contents(self.model) == self.contents or not self.digest:
            return True
        try:
            return _digest(self.model) == self.digest
        except ConfigError:
            return False

    def is_as(self, other: Edition | None) -> bool:
        """Whether it is the same model with the same settings, though its files may have been copied again."""
        if other is None or self.model != other.model:
            return False
        known = self.digest and other.digest
        return self.digest == other.digest if known else self.contents == other.contents

    def again(self) -> Edition:
        """What lies there now. Blocking.

        Raises:
            ConfigError: Nothing usable.
            NotOffered: Nobody knows where it was read.
        """
        if self.source is None:
            raise NotOffered(
                f"repository: got a load of {self.model.name!r}, which was deployed without its folder's path, "
                "expected it deployed from a file"
            )
        return Edition.of(load_source(self.model.name, self.source), self.source)

    @property
    def newest(self) -> str:
        """Its newest version, by which it is called."""
        return str(max(self.model.files))


def resolved(model: ModelConfig) -> ModelConfig:
    """The model with absolute paths: replicas run in other folders than this process."""
    return msgspec.structs.replace(model, files={version: path.resolve() for version, path in model.files.items()})


def _contents(model: ModelConfig) -> str:
    """A digest of the names, sizes and times of a model's files."""
    digest = hashlib.sha256()
    for version, path in sorted(model.files.items()):
        digest.update(f"{version} {path}\n".encode())
        try:
            found = [(name, file.stat()) for name, file in version_files(version, path)]
        except OSError:
            found = []  # a replica may see it where this machine does not
        for name, stat in found:
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _digest(model: ModelConfig) -> str:
    """A digest of the names and bytes of a model's files; "" where none of them is there.

    Raises:
        ConfigError: One of them cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for version, path in sorted(model.files.items()):
            for name, file in version_files(version, path):
                with file.open("rb") as content:
                    own = hashlib.file_digest(content, "sha256").hexdigest()
                digest.update(f"{version} {name} {own}\n".encode())
            path.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not any(map(os.path.exists, model.files.values())):
            return ""
        # "" would be to check nothing from now on.
        raise ConfigError(f"model {model.name!r}: got {error}, expected files that can be read") from error
    return digest.hexdigest()


def _with_groups_of(edition: Edition, running: Edition) -> Edition:
    """What runs, with the groups of replicas that are new in an edition: they begin with it, in their own settings."""
    own = running.model.groups
    if edition.model.groups.keys() <= own.keys():
        return running
    groups = {**edition.model.groups, **own}
    return msgspec.structs.replace(running, model=msgspec.structs.replace(running.model, groups=groups))


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What the replicas of one model are to serve.

    Attributes:
        generation: Grows with every change; the larger one counts.
        running: What answers.
        candidate: What is to be loaded beside it, and to take over when it has proven itself.
        rolled_back: The last candidate that did not: it is not tried again until another edition is deployed.
        reason: Why it was rolled back.
        scaling: How the model scales, for whoever starts its replicas again.
        unloaded: Whether it was taken out of service, and has no replicas until it is loaded or deployed again.
    """

    generation: int
    running: Edition
    candidate: Edition | None = None
    rolled_back: Edition | None = None
    reason: str = ""
    scaling: AutoscalingConfig = AutoscalingConfig()
    unloaded: bool = False

    def encode(self) -> bytes:
        """As JSON, for the store."""
        return msgspec.json.encode(self, enc_hook=str)

    @classmethod
    def decode(cls, content: bytes) -> Assignment:
        """What `encode` made."""
        return msgspec.json.decode(content, type=cls, dec_hook=lambda kind, value: kind(value))


class Store(Protocol):
    """Keeps assignments beyond the life of a process."""

    def get(self, name: str) -> bytes | None:
        """What was put for a model; None for nothing."""

    def put(self, name: str, content: bytes) -> None:
        """Keeps it in place of what was there."""


class Assignments:
    """The assignments of all models of a deployment, and the decisions on their candidates.

    Args:
        store: Where they are kept.
        clock: Seconds that only grow.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = monotonic) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, Assignment] = {}
        # Of each model: how far its replicas have followed the present generation. Their times are `_now_s`.
        self._standings: dict[str, Standings] = {}
        # When the last report of all came, and the seconds until then without what is beyond `PAUSE_S_MAX` in pauses.
        self._reported: float | None = None
        self._now_s = 0.0

    def get(self, name: str) -> Assignment | None:
        """What a model's replicas are to serve; None of a model that was never assigned anything."""
        if name not in self._known and (content := self._store.get(name)) is not None:
            self._known[name] = Assignment.decode(content)
        return self._known.get(name)

    def forget(self) -> None:
        """Reads everything anew from the store: somebody else wrote there."""
        self._known.clear()

    def bring(self, name: str, edition: Edition, scaling: AutoscalingConfig | None = None) -> Assignment:
        """Has an edition take over, if it proves itself. What is on trial for the model already is given up for it.

        Nothing changes where it serves, is on trial, or was the last that was rolled back. A model that was unloaded
        has nothing to try it beside: it is in service with the edition, but for one that was rolled back.

        Args:
            name: The model.
            edition: What is to take over.
            scaling: How the model scales from now on; None for as before.
        """
        now = self.get(name)
        if now is None:
            first = Assignment(generation=1, running=edition, scaling=scaling or AutoscalingConfig())
            return self._change(name, first)
        if now.unloaded:
            return self._next(name, _opening(now, edition), unloaded=False, scaling=scaling or now.scaling)
        if scaling not in (None, now.scaling):
            now = self._keep(name, msgspec.structs.replace(now, scaling=scaling))
        if edition == now.candidate or edition.is_as(now.rolled_back):
            return now
        if edition == now.running and now.candidate is None:
            return now
        candidate = None if edition == now.running else edition
        log.info("model %s: got version %s to bring in", name, edition.newest)
        running = _with_groups_of(edition, now.running)
        return self._next(name, now, running=running, candidate=candidate, rolled_back=None, reason="")

    def unload(self, name: str) -> Assignment:
        """Notes that a model is out of service; what was on trial is given up."""
        return self._next(name, self._known_as(name), candidate=None, unloaded=True)

    def load(self, name: str, edition: Edition) -> Assignment:
        """Notes what the replicas of a model that is out of service are to open when they start again."""
        return self._next(name, _opening(self._known_as(name), edition))

    def loaded(self, name: str) -> Assignment:
        """Notes that a model is in service again."""
        return self._next(name, self._known_as(name), unloaded=False)

    def report(
        self, name: str, replica: str, standing: Standing, final: bool = False, group: str = ""
    ) -> Assignment | None:
        """Notes how far a replica has come, and decides.

        Args:
            name: The model.
            replica: The replica.
            standing: How far it has come.
            final: Whether these are its last words.
            group: Which of the model's groups of replicas it is of; "" where there is one.

        Returns:
            The assignment, where the replica does not know it yet.
        """
        self._tick()
        now = self.get(name)
        if now is None or standing.generation > now.generation:
            return None
        follows = standing.generation == now.generation
        standings = self._standings.setdefault(name, Standings())
        standings.note(replica, group, standing, follows, self._now_s, final)
        if follows:
            now = self._decide(name, now, standings)
        return None if standing.generation == now.generation else now

    def status(self, name: str) -> dict[str, Any]:
        """What a model's replicas serve and are to serve, for people and programs."""
        now = self.get(name)
        if now is None:
            return {}
        found: dict[str, Any] = {"generation": now.generation, "running": now.running.newest}
        if now.unloaded:
            found["unloaded"] = True
        standings = self._standings.get(name, Standings())
        if now.candidate is not None:
            running, candidate = standings.pooled()
            states = [one.state for one in standings.known]
            settings = now.candidate.model.settings.rollout
            found["candidate"] = {
                "version": now.candidate.newest,
                "mode": settings.mode,
                "state": "on trial" if "trial" in states else "loading",
                "replicas": len(states),
                "running": running.summary(),
                "candidate": candidate.summary(),
                "decision": self._judge(now, standings).reason if "trial" in states else "",
            }
        if now.rolled_back is not None:
            found["rolled_back"] = {"version": now.rolled_back.newest, "reason": now.reason}
        if stuck := standings.stuck(self._now_s):
            found["stuck"] = stuck
        return found

    def _decide(self, name: str, now: Assignment, standings: Standings) -> Assignment:
        """Ends the candidate's time where there is enough to say about it."""
        if now.candidate is None:
            standings.prune(self._now_s)
            return now
        decision = self._judge(now, standings)
        if decision.action == "wait":
            return now
        log.warning("model %s version %s: %s: %s", name, now.candidate.newest, decision.action, decision.reason)
        if decision.action == "promote":
            return self._next(name, now, running=now.candidate, candidate=None)
        return self._next(name, now, candidate=None, rolled_back=now.candidate, reason=decision.reason[:2000])

    def _judge(self, now: Assignment, standings: Standings) -> Decision:
        assert now.candidate is not None, "this is a bug: there is nothing to judge"
        if len(now.scaling.groups) > 1 and self._now_s < LISTEN_S:
            return Decision("wait", "hearing what the replicas have seen")
        return standings.decide(now.candidate.model, self._now_s)

    def _tick(self) -> None:
        """Replicas do not die all at once; a front that was stopped, or could not be reached, hears none of them."""
        now = self._clock()
        if self._reported is not None:
            self._now_s += min(now - self._reported, PAUSE_S_MAX)
        self._reported = now

    def _known_as(self, name: str) -> Assignment:
        now = self.get(name)
        assert now is not None, f"this is a bug: model {name!r} was never assigned anything"
        return now

    def _next(self, name: str, now: Assignment, **changes: Any) -> Assignment:
        return self._change(name, msgspec.structs.replace(now, generation=now.generation + 1, **changes))

    def _change(self, name: str, after: Assignment) -> Assignment:
        self._keep(name, after)
        if (standings := self._standings.get(name)) is not None:
            standings.begin()
        return after

    def _keep(self, name: str, after: Assignment) -> Assignment:
        # Kept before anybody hears of it, so that nobody follows what a new front would not know.
        self._store.put(name, after.encode())
        self._known[name] = after
        return after


def _opening(now: Assignment, edition: Edition) -> Assignment:
    """What the replicas of a model without any open, where they are to open an edition."""
    if edition.is_as(now.rolled_back):
        return now  # that none serves is no reason to serve what is known to be bad
    if edition != now.running:
        now = msgspec.structs.replace(now, rolled_back=None, reason="")
    return msgspec.structs.replace(now, running=edition)
