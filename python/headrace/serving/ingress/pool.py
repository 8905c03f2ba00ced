"""The ingress's end: the links to the replicas of one model, and what happens while there are none.

A model whose replicas are of several groups, as on CPUs and on GPUs, has them filled in order: a request goes to the
first group in which a replica has room for it, that is to say can answer it within the objective, behind what it has
already. So the next group gets what the ones before it cannot do, scales by that alone, and is woken where it sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from headrace.errors import BackendUnavailable, DeadlineExceeded, Overloaded
from headrace.serving.ingress.door import DoorAddress
from headrace.serving.ingress.wire import (
    BODY_BYTES_LIMIT,
    HELLO_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    NONCE_BYTES,
    Answer,
    Ask,
    Call,
    Cancel,
    Challenge,
    Frames,
    Goodbye,
    Hello,
    Message,
    Return,
    Welcome,
    proof,
)

log = logging.getLogger("headrace.serving")

# Larger bodies go over a connection of their own, so that no small request waits behind one.
SMALL_BYTES_MAX = 64 * 1024
# How long a request waits for a first replica: several times a usual cold start.
WAIT_S_MAX = 60.0
# Requests that may wait for it.
WAITING_MAX = 4096
# Between attempts to reach a replica that Serve has named and that does not answer yet.
RETRY_S = 0.1
CONNECT_S_MAX = 5.0
# Where all replicas are full for so long, and none came meanwhile, another group is woken.
FULL_S = 2.0
# Replicas that left and are remembered: they report until their process ends, for half a minute at most.
LEFT_MAX = 256

# Asks Serve for a replica of a group, which starts one where there is none: its id and its door.
Wake: TypeAlias = Callable[[str], Awaitable[tuple[str, DoorAddress]]]


class Link(Frames):
    """The ingress's end of one link.

    Args:
        key: The door's.

    Attributes:
        welcomed: Done when either end has proven to the other that it knows the key; an `OSError` where one did not.
    """

    def __init__(self, key: bytes = b"") -> None:
        super().__init__()
        self._key = key
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._challenge: bytes | None = None
        self.welcomed: asyncio.Future[None] = self._loop.create_future()
        self.message_bytes_max, self.body_bytes_max = HELLO_BYTES_MAX, 0
        self._waiting: dict[int, asyncio.Future[tuple[Message, bytes]]] = {}
        self._last = 0
        self.leaving = False
        self.on_lost: Callable[[], None] | None = None

    async def exchange(self, message: Ask | Call, body: bytes) -> tuple[Message, bytes]:
        """Sends a request and waits for its answer; cancelling it cancels it in the replica.

        Raises:
            BackendUnavailable: The replica died. Whether it had computed the answer is not known, so it is not asked
                of another one here; the caller may try again.
        """
        self._last += 1
        number = message.id = self._last
        future: asyncio.Future[tuple[Message, bytes]] = self._loop.create_future()
        self._waiting[number] = future
        self.send(message, body)
        try:
            return await future
        except asyncio.CancelledError:
            self.send(Cancel(number))
            raise
        finally:
            self._waiting.pop(number, None)

    def received(self, message: Message, body: bytes) -> None:
        """Gives an answer to whoever waits for it."""
        if not self.welcomed.done():
            self._introduce(message)
        elif isinstance(message, Answer | Return):
            future = self._waiting.get(message.id)
            if future is not None and not future.done():
                future.set_result((message, body))
        elif isinstance(message, Goodbye):
            self.leaving = True
            self.send(Goodbye())
        else:
            self._abort()

    def _introduce(self, message: Message) -> None:
        if isinstance(message, Challenge) and self._challenge is None:
            self._challenge = message.nonce
            self.send(Hello(self._nonce, proof(self._key, Hello, message.nonce, self._nonce)))
        elif isinstance(message, Welcome) and self._challenge is not None:
            expected = proof(self._key, Welcome, self._nonce, self._challenge)
            if not hmac.compare_digest(message.proof, expected):
                self._abort()
                return
            self.message_bytes_max, self.body_bytes_max = MESSAGE_BYTES_MAX, BODY_BYTES_LIMIT
            self.welcomed.set_result(None)
        else:
            self._abort()

    def lost(self) -> None:
        """Ends what still waits."""
        if not self.welcomed.done():
            self.welcomed.set_exception(ConnectionAbortedError("got the end of a link that began, expected a welcome"))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(
                    BackendUnavailable(
                        "replica: got the end of its process before its answer, expected an answer: try again",
                        retry_after_s=1.0,
                    )
                )
        if self.on_lost is not None:
            self.on_lost()


class Replica:
    """One replica: a link for small requests, one for large ones, and how many requests it has.

    Attributes:
        group: Its group's name; "" while it is not known, or where there are none.
        room: Requests that it can have in flight and answer within the objective.
        in_flight: Requests that it has not answered.
    """

    def __init__(self, name: str, links: tuple[Link, Link], group: str = "", room: float = math.inf) -> None:
        self.name = name
        self.links = links
        self.group, self.room = group, room
        self.in_flight = 0

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return all(link.is_open and not link.leaving for link in self.links)

    async def ask(self, message: Ask, body: bytes) -> tuple[Answer, bytes]:
        """Has it answer a REST request."""
        answer, answered = await self._exchange(message, body)
        assert isinstance(answer, Answer), "this is a bug: a REST request got another kind of answer"
        return answer, answered

    async def call(self, message: Call, payload: bytes) -> tuple[Return, bytes]:
        """Has it answer a gRPC call."""
        answer, answered = await self._exchange(message, payload)
        assert isinstance(answer, Return), "this is a bug: a gRPC call got another kind of answer"
        return answer, answered

    async def _exchange(self, message: Ask | Call, body: bytes) -> tuple[Message, bytes]:
        self.in_flight += 1
        try:
            return await self.links[len(body) > SMALL_BYTES_MAX].exchange(message, body)
        finally:
            self.in_flight -= 1


class Pool:
    """The replicas of one model that can be reached.

    Args:
        model: The model's name.
        wake: Has Serve name a replica, and start one where there is none.
        groups: The groups of replicas, in the order in which they are filled; ("",) where there are none.
    """

    def __init__(self, model: str, wake: Wake, groups: Sequence[str] = ("",)) -> None:
        self._model = model
        self._wake = wake
        self._ranks: dict[str, int] = {}
        self.arrange(groups)
        # Since when no replica had room, and the task that wakes another group then.
        self._full_since: float | None = None
        self._calling: asyncio.Task[None] | None = None
        self._replicas: dict[str, Replica] = {}
        self._connecting: set[str] = set()
        # Replicas that said goodbye: a report of theirs may still be on its way.
        self._left: dict[str, None] = {}
        self._arrived = asyncio.Event()
        self._waiting = 0
        self._waking: asyncio.Task[None] | None = None
        self._closed = False

    def arrange(self, groups: Sequence[str]) -> None:
        """Fills the groups in this order from now on."""
        self._ranks = {group: rank for rank, group in enumerate(groups)}

    def choose(self) -> Replica | None:
        """The open replica with the fewest requests in flight; of equals the one that has waited longest."""
        if len(self._ranks) > 1:
            return self._choose_in_order()
        best: Replica | None = None
        for replica in self._replicas.values():
            if replica.is_open and (best is None or replica.in_flight < best.in_flight):
                best = replica
        return self._take(best)

    def _choose_in_order(self) -> Replica | None:
        """The least filled replica of the first group in which one has room; else the least filled of all."""
        best: Replica | None = None
        last = len(self._ranks)
        best_key = (math.inf, math.inf)
        for replica in self._replicas.values():
            if replica.is_open:
                full = replica.in_flight >= replica.room
                # By what they can do, and not by how many they have: the next group's may do many times as much.
                key = (last + 1 if full else self._ranks.get(replica.group, last), replica.in_flight / replica.room)
                if key < best_key:
                    best, best_key = replica, key
        if best is not None:
            self._note_full(best_key[0] > last)
        return self._take(best)

    def _take(self, best: Replica | None) -> Replica | None:
        if best is not None and len(self._replicas) > 1:
            # To the end of the dict, so that equals take turns.
            self._replicas[best.name] = self._replicas.pop(best.name)
        return best

    def _note_full(self, full: bool) -> None:
        """Wakes the first group that has no replica where those that there are have been full for a while."""
        if not full:
            self._full_since = None
            return
        now = asyncio.get_running_loop().time()
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since < FULL_S or self._calling is not None:
            return
        awake = {replica.group for replica in self._replicas.values() if replica.is_open}
        asleep = next((group for group in self._ranks if group not in awake), None)
        if asleep is not None:
            log.info("model %s: all replicas are full, waking group %s", self._model, asleep)
            self._calling = asyncio.create_task(self._call(asleep))

    async def _call(self, group: str) -> None:
        try:
            await self.add(*await self._wake(group), group)
        except Exception as error:
            log.warning("model %s: group %s cannot be woken (%s)", self._model, group, error)
        finally:
            self._calling = None

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
        end = loop.time() + patience_s
        self._waiting += 1
        try:
            while not self._closed:
                if (replica := self.choose()) is not None:
                    return replica, None if deadline_s is None else end - loop.time()
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
        raise BackendUnavailable(f"model {self._model!r}: got a deployment that ends, expected it to stay")

    async def add(self, name: str, address: DoorAddress, group: str = "", room: float = math.inf) -> None:
        """Connects to a replica, unless that was done already.

        Args:
            name: The replica's.
            address: Its door.
            group: Its group's name.
            room: Requests that it can have in flight and answer within the objective, as it says now.
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
        self._full_since = None
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
        """Asks Serve for a replica as long as there is none and somebody waits for one."""
        first = next(iter(self._ranks))
        try:
            while self._waiting and self.choose() is None:
                try:
                    await self.add(*await self._wake(first), first)
                except Exception as error:
                    log.info("model %s: no replica yet (%s)", self._model, error)
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
