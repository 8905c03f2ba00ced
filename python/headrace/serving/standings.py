"""How far the replicas of a model have followed its assignment, and what that says about its candidate.

Replicas of unlike groups have plans and hardware of their own, so what is good in one may fail in another: each group
is judged by its own evidence, and a candidate takes over only where no group that has it speaks against it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from headrace.config import ModelConfig, RolloutSettings, in_group
from headrace.serving.evidence import Decision, Digest, judge, pooled

# A replica that neither reports for so long nor has said goodbye is dead.
SILENT_S_MAX = 10.0
# A candidate is to blame for the deaths of so many that had it, if they are half of all in their group that had it.
DEATHS_MAX = 3
# Where that leaves none in a group, others of it are waited for so long: they may die of it too.
RESTART_S_MAX = 120.0
# A group on trial that got no request of the candidate's for so long need not reach a verdict where another group did:
# the last group has work only when all before it are full, and may have none for days.
QUIET_S_MAX = 30.0

# Nothing is left to wait for before the candidate takes over.
SETTLED = {"ready", "unchanged"}


@dataclass(frozen=True)
class Standing:
    """How far one replica has followed an assignment.

    Attributes:
        generation: Of the assignment it knows.
        state: Of the candidate there: "none", "loading", "unchanged" where it is what serves already, "ready" to take
            over without a trial, on "trial", or "failed".
        reason: Why it failed.
        elapsed_s: Seconds since its trial began.
        running: What the running version did during the trial.
        candidate: What the candidate did.
        stuck: Versions there that are out of service and cannot be closed, because a Batch of theirs does not end.
    """

    generation: int
    state: Literal["none", "loading", "unchanged", "ready", "trial", "failed"] = "none"
    reason: str = ""
    elapsed_s: float = 0.0
    running: Digest = field(default_factory=Digest)
    candidate: Digest = field(default_factory=Digest)
    stuck: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Replica:
    """What was last heard of one: no standing where it has not heard of the present generation yet."""

    group: str
    heard_s: float
    stuck: tuple[str, ...] = ()
    standing: Standing | None = None
    final: bool = False

    def is_dead(self, now_s: float) -> bool:
        return not self.final and self.heard_s < now_s - SILENT_S_MAX

    def is_here(self, now_s: float) -> bool:
        return not self.final and not self.is_dead(now_s)


class _Verdict(NamedTuple):
    """Of one group: "ready" is no evidence, but no reason to wait; "quiet" is a trial without requests."""

    action: Literal["rollback", "wait", "quiet", "ready", "promote"]
    reason: str


class Standings:
    """What the replicas of one model have reported, in the present generation of its assignment.

    All times are seconds by one clock that only grows.
    """

    def __init__(self) -> None:
        # Those that are gone included: what they saw counts on.
        self._replicas: dict[str, _Replica] = {}
        # Group -> when its trial began, or last had one more request.
        self._asked_s: dict[str, float] = {}

    def begin(self) -> None:
        """Begins a generation: who is there still is, and nobody has followed it yet."""
        self._asked_s.clear()
        self._replicas = {
            name: _Replica(one.group, one.heard_s, one.stuck) for name, one in self._replicas.items() if not one.final
        }

    def note(self, replica: str, group: str, standing: Standing, follows: bool, now_s: float, final: bool) -> None:
        """Notes what a replica reported; what arrives after its last words was said before them.

        Args:
            replica: Which.
            group: Its group's name; "" where there are none.
            standing: How far it has come.
            follows: Whether that is of the present generation; it has not heard of that yet otherwise.
            now_s: The time.
            final: Whether these were its last words.
        """
        known = self._replicas.get(replica)
        if known is not None and known.final:
            return
        if follows and standing.state == "trial":
            before = None if known is None else known.standing
            if before is None or before.state != "trial" or standing.candidate.requests > before.candidate.requests:
                self._asked_s[group] = now_s
        self._replicas[replica] = _Replica(group, now_s, standing.stuck, standing if follows else None, final)

    def prune(self, now_s: float) -> None:
        """Forgets the replicas that are gone, where there is no candidate to judge by what they saw."""
        self._replicas = {name: one for name, one in self._replicas.items() if one.is_here(now_s)}

    @property
    def known(self) -> list[Standing]:
        """Those in the present generation."""
        return [one.standing for one in self._replicas.values() if one.standing is not None]

    def stuck(self, now_s: float) -> dict[str, int]:
        """Versions that are stuck out of service, and in how many replicas."""
        return dict(Counter(v for one in self._replicas.values() if one.is_here(now_s) for v in one.stuck))

    def pooled(self) -> tuple[Digest, Digest]:
        """What the running version and the candidate did in all groups together, for people: it decides nothing."""
        return pooled(one.running for one in self.known), pooled(one.candidate for one in self.known)

    def decide(self, candidate: ModelConfig, now_s: float) -> Decision:
        """What is to become of the candidate.

        It is rolled back where one group says so. It takes over once every group that has replicas is ready, and where
        it is on trial one of them has promoted it, and no other is still at it.

        Args:
            candidate: What is on trial, as it was deployed.
            now_s: The time.
        """
        found: dict[str, _Verdict] = {}
        groups = {one.group for one in self._replicas.values()}
        if candidate.groups:
            groups &= candidate.groups.keys()  # those that it has no more are about to leave
        for group in sorted(groups):
            verdict = self._verdict(group, in_group(candidate, group).settings.rollout, now_s)
            if verdict is not None:
                found[group] = verdict

        def told(action: str) -> str:
            said = [(group, one.reason) for group, one in found.items() if one.action == action]
            return "; ".join(f"group {group}: {reason}" if group else reason for group, reason in said)

        actions = {one.action for one in found.values()}
        if "rollback" in actions:
            return Decision("rollback", told("rollback"))
        if "wait" in actions or not found:
            return Decision("wait", told("wait"))
        if "promote" in actions:
            return Decision("promote", told("promote"))
        if "quiet" in actions:
            return Decision("wait", told("quiet"))
        return Decision("promote", told("ready"))

    def _verdict(self, group: str, settings: RolloutSettings, now_s: float) -> _Verdict | None:
        """What the replicas of one group say; None where they are gone and had nothing to say."""
        ones = [one for one in self._replicas.values() if one.group == group]
        followed = [(one, one.standing) for one in ones if one.standing is not None]
        for _, standing in followed:
            if standing.state == "failed":
                return _Verdict("rollback", standing.reason)
        deaths = sum(one.is_dead(now_s) for one, _ in followed)
        if deaths >= DEATHS_MAX and 2 * deaths >= len(followed):
            return _Verdict("rollback", f"got {deaths} of {len(followed)} replicas dead that had it, expected none")
        tried = [(one, standing) for one, standing in followed if standing.state == "trial"]
        if tried:
            # As if all were still there: a group that left in the middle must not be on trial for ever.
            elapsed_s = max(standing.elapsed_s + now_s - one.heard_s for one, standing in tried)
            running = pooled(standing.running for _, standing in tried)
            seen = pooled(standing.candidate for _, standing in tried)
            decision = judge(settings, running, seen, elapsed_s)
            quiet = decision.action == "wait" and now_s - self._asked_s[group] > QUIET_S_MAX
            return _Verdict("quiet" if quiet else decision.action, decision.reason)
        states = {one.standing.state if one.standing else "none" for one in ones if one.is_here(now_s)}
        if not states:
            last_s = max((one.heard_s for one, _ in followed), default=-RESTART_S_MAX)
            return _Verdict("wait", "dead") if deaths and now_s - last_s < RESTART_S_MAX else None
        if states == {"unchanged"}:
            return _Verdict("ready", "nothing changes")
        # Where it is to be tried, one that is ready proves nothing: a replica that started after files were replaced in
        # their place has nothing to try them beside, and others may.
        if states <= SETTLED or (settings.mode == "replace" and states & SETTLED):
            return _Verdict("ready", "loaded, warmed and checked")
        return _Verdict("wait", "loading")
