"""The ingress's end: the links to the replicas of one model, and what happens while there are none.

A model whose replicas are of several groups, as on CPUs and on GPUs, has them filled in order: a request goes to the
first group in which a replica has room for it, that is to say can answer it within the objective, behind what it has
already. So the next group gets what the ones before it cannot do, and scales by that alone. A group that sleeps is
woken where requests keep going past it: to later groups, or to replicas that are full.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

from headrace.errors import BackendUnavailable, DeadlineExceeded, Overloaded
from headrace.serving.ingress.door import DoorAddress
from headrace.serving.ingress.link import Link, Replica
from headrace.serving.load import UNBOUNDED, Room

log = logging.getLogger("headrace.serving")

# How long a request waits for a first replica: several times a usual cold start.
WAIT_S_MAX = 60.0
# Requests that may wait for it.
WAITING_MAX = 4096
# Between attempts to reach a replica that Serve has named and that does not answer yet.
RETRY_S = 0.1
CONNECT_S_MAX = 5.0
# A group that sleeps is woken where every request of so long went past it, and no replica came meanwhile.
PASSED_S = 2.0
# Where a group before it may have more replicas than it has, so long: one that starts in it costs less. Every one that
# comes begins that anew.
GROWTH_S = 6.0
# Of several groups one is waited for so long, then another is asked: the first may find no room on the cluster.
WAKE_S_MAX = 20.0
# A group that was asked is not asked again for so long, whatever came of it.
REST_S = 10.0
# Replicas that left and are remembered: they report until their process ends, for half a minute at most.
LEFT_MAX = 256

# Asks Serve for a replica of a group, which starts one where there is none: its id and its door.
Wake: TypeAlias = Callable[[str], Awaitable[tuple[str, DoorAddress]]]


class Pool:
    """The replicas of one model that can be reached.

    Args:
        model: The model's name.
        wake: Has Serve name a replica, and start one where there is none.
        groups: The groups of replicas, in the order in which they are filled; ("",) where there are none.
        most: Replicas that each may have; of one that is not named, as many as it has.
    """

    def __init__(
        self, model: str, wake: Wake, groups: Sequence[str] = ("",), most: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self._model = model
        self._wake = wake
        self._ranks: dict[str, int] = {}
        self._most: Mapping[str, int] = {}
        self.arrange(groups, most)
        # Since when requests have gone past a group that sleeps, the task that wakes it then, and until when which
        # group is not asked again.
        self._passed_since: float | None = None
        self._calling: asyncio.Task[None] | None = None
        self._resting: dict[str, float] = {}
        self._replicas: dict[str, Replica] = {}
        self._connecting: set[str] = set()
        # Replicas that said goodbye: a report of theirs may still be on its way.
        self._left: dict[str, None] = {}
        self._arrived = asyncio.Event()
        self._waiting = 0
        self._waking: asyncio.Task[None] | None = None
        self._closed = False

    def arrange(self, groups: Sequence[str], most: Mapping[str, int] = MappingProxyType({})) -> None:
        """Fills the groups in this order from now on; the arguments are the constructor's."""
        self._ranks = {group: rank for rank, group in enumerate(groups)}
        self._most = dict(most)

    def choose(self, deadline_s: float | None = None) -> Replica | None:
        """The open replica with the fewest requests in flight; of equals the one that has waited longest.

        Args:
            deadline_s: Seconds that the request has of its own, by which it matters which group has room for it; None
                where it did not say.
        """
        if len(self._ranks) > 1:
            return self._choose_in_order(deadline_s)
        best: Replica | None = None
        for replica in self._replicas.values():
            if replica.is_open and (best is None or replica.in_flight < best.in_flight):
                best = replica
        return self._take(best)

    def _choose_in_order(self, deadline_s: float | None) -> Replica | None:
        """The least filled replica of the first group in which one has room; else the least filled of all."""
        best: Replica | None = None
        last = len(self._ranks)
        best_key = (math.inf, math.inf)
        awake = 0  # one bit for each group
        for replica in self._replicas.values():
            if replica.is_open:
                rank = self._ranks.get(replica.group, last)
                awake |= 1 << rank
                room = replica.room.within(deadline_s)
                full = replica.in_flight >= room
                # By what they can do, and not by how many they have: the next group's may do many times as much.
                key = (last + 1 if full else rank, replica.in_flight / room)
                if key < best_key:
                    best, best_key = replica, key
        if best is not None:
            self._note_passed(awake, best_key[0])
        return self._take(best)

    def _take(self, best: Replica | None) -> Replica | None:
        if best is not None and len(self._replicas) > 1:
            # To the end of the dict, so that equals take turns.
            self._replicas[best.name] = self._replicas.pop(best.name)
        return best

    def _note_passed(self, awake: int, chosen: float) -> None:
        """Wakes the first group that sleeps where requests have gone past it for a while.

        Args:
            awake: The groups with an open replica, a bit for each.
            chosen: The place in the order at which the request was served; beyond all where every replica is full.
        """
        if awake & (every := (1 << len(self._ranks)) - 1) == every:
            self._passed_since = None
            return
        now = asyncio.get_running_loop().time()
        asleep = next(
            (
                group
                for group, rank in self._ranks.items()
                if not awake >> rank & 1 and now >= self._resting.get(group, -math.inf)
            ),
            None,
        )
        if asleep is None or self._ranks[asleep] > chosen:
            self._passed_since = None
            return
        if self._passed_since is None:
            self._passed_since = now
        passed_s = now - self._passed_since
        if passed_s >= PASSED_S and self._calling is None and (passed_s >= GROWTH_S or not self._may_grow(asleep)):
            log.info("model %s: requests go past group %s, which is woken", self._model, asleep)
            self._calling = asyncio.create_task(self._call(asleep))

    def _may_grow(self, asleep: str) -> bool:
        """Whether a group that is awake, before one that sleeps, has fewer replicas than it may have."""
        counts = Counter(replica.group for replica in self._replicas.values() if replica.is_open)
        before = self._ranks[asleep]
        return any(
            self._ranks.get(group, before) < before and count < self._most.get(group, 0)
            for group, count in counts.items()
        )

    async def _call(self, group: str) -> None:
        try:
            await self._ask(group, WAKE_S_MAX)
        except Exception as error:
            log.warning("model %s: group %s cannot be woken (%r)", self._model, group, error)
        finally:
            self._calling = self._passed_since = None

    async def _ask(self, group: str, patience_s: float | None) -> None:
        """Has Serve name a replica of a group, and start one where there is none, and connects to it."""
        try:
            name, address = await asyncio.wait_for(self._wake(group), patience_s)
            await self.add(name, address, group)
        finally:
            self._resting[group] = asyncio.get_running_loop().time() + REST_S

    @property
    def reachable(self) -> bool:
        """Whether a replica is open."""
        return any(replica.is_open for replica in self._replicas.values())

    async def wait(self, deadline_s: float | None) -> tuple[Replica, float | None]:
        """Waits for a replica where there is none, and has one started.

        Args:
            deadline_s: Seconds that the caller waits; None where it did not say.

        Returns:
            The replica, and what is left of those seconds.

        Raises:
            DeadlineExceeded: None was there by then.
            BackendUnavailable: None came in a long time, or the model goes away.
            Overloaded: Too many wait already.
        """
        if self._waiting >= WAITING_MAX:
            raise Overloaded(
                f"model {self._model!r}: got {self._waiting} requests that wait for a replica, expected fewer"
            )
        loop = asyncio.get_running_loop()
        patience_s = WAIT_S_MAX if deadline_s is None else min(WAIT_S_MAX, deadline_s)
        start = loop.time()
        end = start + patience_s
        self._waiting += 1
        try:
            while not self._closed:
                left_s = None if deadline_s is None else start + deadline_s - loop.time()
                if (replica := self.choose(left_s)) is not None:
                    return replica, left_s
                self._arrived.clear()
                if self._waking is None:
                    self._waking = loop.create_task(self._keep_waking())
                await asyncio.wait_for(self._arrived.wait(), end - loop.time())
        except TimeoutError:
            if deadline_s is not None and deadline_s <= WAIT_S_MAX:
                raise DeadlineExceeded(
                    f"model {self._model!r}: got no replica within {deadline_s:.3g} s, expected one by the deadline"
                ) from None
            raise BackendUnavailable(
                f"model {self._model!r}: got no replica within {patience_s:g} s, expected one", retry_after_s=1.0
            ) from None
        finally:
            self._waiting -= 1
        raise BackendUnavailable(
            f"model {self._model!r}: got a model or a deployment that ends, expected it to stay", retry_after_s=1.0
        )

    async def add(self, name: str, address: DoorAddress, group: str = "", room: Room = UNBOUNDED) -> None:
        """Connects to a replica, unless that was done already.

        Args:
            name: The replica's.
            address: Its door.
            group: Its group's name.
            room: How many requests it can have in flight, as it says now.
        """
        known = self._replicas.get(name)
        if known is not None:
            known.group, known.room = group, room
        if self._closed or name in self._connecting or name in self._left or known is not None:
            return
        self._connecting.add(name)
        links: list[Link] = []
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                for _ in range(2):
                    links.append(await address.connect(Link))
        except BaseException as error:
            for link in links:
                link.close()
            if not isinstance(error, OSError | TimeoutError):
                raise
            log.warning("model %s: replica %s cannot be reached (%s)", self._model, name, error)
            return
        finally:
            self._connecting.discard(name)
        replica = Replica(name, (links[0], links[1]), group, room)
        self._passed_since = None
        for link in links:
            link.on_lost = lambda: self._remove(replica)
        self._replicas[name] = replica
        if self._closed or not all(link.is_open for link in links):  # meanwhile
            self._remove(replica)
            return
        self._arrived.set()

    def _remove(self, replica: Replica) -> None:
        if self._replicas.get(replica.name) is replica:
            del self._replicas[replica.name]
        if any(link.leaving for link in replica.links):
            self._left[replica.name] = None
            if len(self._left) > LEFT_MAX:
                del self._left[next(iter(self._left))]
        for link in replica.links:
            link.close()

    async def _keep_waking(self) -> None:
        """Asks Serve for a replica as long as there is none and somebody waits for one: each group in turn."""
        loop = asyncio.get_running_loop()
        groups = itertools.cycle(list(self._ranks))
        several = len(self._ranks) > 1
        group, end = next(groups), loop.time() + WAKE_S_MAX
        try:
            while self._waiting and self.choose() is None:
                if several and loop.time() >= end:
                    group, end = next(groups), loop.time() + WAKE_S_MAX
                try:
                    await self._ask(group, end - loop.time() if several else None)
                except Exception as error:
                    log.info("model %s: no replica of group %r yet (%r)", self._model, group, error)
                if self.choose() is None:
                    await asyncio.sleep(RETRY_S)
        finally:
            self._waking = None

    async def close(self) -> None:
        """Lets nobody wait any more. Requests under way are answered: the links end with their replicas."""
        self._closed = True
        self._arrived.set()
        for task in filter(None, (self._waking, self._calling)):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
