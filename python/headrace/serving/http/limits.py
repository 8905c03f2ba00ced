"""How long a client may take: to send a request, to take its answers, to see that the connection ends.

Nobody is cut off earlier than is said here, nor more than two `SWEEP_S` later.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import struct
import sys
import termios
from time import monotonic
from typing import Any

# Request line and headers; what nginx allows by default is 32 KiB.
HEAD_BYTES_MAX = 64 * 1024
# From the connection, or the first byte on a kept one, to the end of the headers.
HEAD_S_MAX = 20.0
# A body may take this long, and longer in proportion to what has come: nobody with a network is that slow.
BODY_S_MAX = 30.0
# Nor is anybody who reads an answer.
BYTES_PER_S_MIN = 32 * 1024
# Who is slower for the time that an idle connection may last is sent away, or for this one once the server ends.
ENDING_S_MAX = 20.0
# What a client still sends when it was answered for the last time is read for so long: to close a connection with
# unread bytes in it resets it, and a client that is told so may never read the answer (RFC 9112, 9.6).
LINGER_S_MAX = 5.0
SWEEP_S = 1.0

log = logging.getLogger("headrace.serving")

_stood_still_s = 0.0


def clock() -> float:
    """The time by which clients are measured, in seconds: that in which this process stood still does not count.

    Whoever stops a process, or the machine under it, would otherwise have it blame its clients when it goes on.
    """
    return monotonic() - _stood_still_s


class Arrival:
    """What has come of the request that is coming, and how long it has taken.

    Time in which nothing was read of it is not its client's, and does not count.

    Attributes:
        since: When it began; None between requests.
        in_head: Whether its head is coming, or is to come; else its body is.
        received: Bytes of the head or, without what frames them, of the body.
    """

    __slots__ = ("_stopped", "in_head", "received", "since")

    def __init__(self, now: float) -> None:
        self.since: float | None = now
        self.in_head = True
        self.received = 0
        self._stopped: float | None = None

    def stop(self) -> None:
        """Nothing is read from now on."""
        self._stopped = clock()

    def go_on(self) -> None:
        """It is read on."""
        if self._stopped is not None and self.since is not None:
            self.since += clock() - max(self._stopped, self.since)
        self._stopped = None

    def overdue(self, now: float, answered: bool) -> str | None:
        """What is wrong with a request that takes too long.

        Args:
            now: The time.
            answered: Whether the answer came before the body: what is left of it is worth no more than the least time.
        """
        if self.since is None or self._stopped is not None:
            return None
        took = now - self.since
        if self.in_head:
            if took <= HEAD_S_MAX:
                return None
            return f"head: got no end of it in {took:.0f} s, expected it within {HEAD_S_MAX:g} s"
        if took <= BODY_S_MAX + (0.0 if answered else self.received / BYTES_PER_S_MIN):
            return None
        return (
            f"body: got {self.received} bytes in {took:.0f} s, expected all of it within {BODY_S_MAX:g} s, "
            f"or {BYTES_PER_S_MIN} bytes per second"
        )


class Taking:
    """How fast a client takes its answers.

    Attributes:
        written: Bytes that were written for it.
    """

    __slots__ = ("_since", "_taken", "_transport", "written")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.written = 0
        self._transport = transport
        # When something began to wait here, or when the client last took enough; and what it had taken by then.
        self._since: float | None = None
        self._taken = 0

    def waits(self) -> bool:
        """Whether there is something that the kernel has no room for."""
        return self._transport.get_write_buffer_size() > 0

    def too_slow(self, now: float, s_max: float) -> bool:
        """Whether it has taken less than `BYTES_PER_S_MIN` for more than `s_max`, while something waited for it."""
        waiting = self._transport.get_write_buffer_size()
        if waiting == 0:
            self._since = None
            return False
        taken = self.written - waiting - unacknowledged(self._transport)
        if self._since is None or taken - self._taken >= s_max * BYTES_PER_S_MIN:
            self._since, self._taken = now, taken
        return now - self._since > s_max


def unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes in the kernel's buffer that the other end has not confirmed.

    The kernel buffers some MB, and asks for more only when a third of that is free: without this a slow client would
    seem to take nothing for long.
    """
    peer: Any = transport.get_extra_info("socket")
    if peer is None or peer.fileno() < 0 or sys.platform != "linux":
        return 0
    with contextlib.suppress(OSError):  # it is gone
        count: int = struct.unpack("i", fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return count
    return 0


async def sweep(connections: set[Any]) -> None:
    """Checks the time of all of a uvicorn server's connections, for ever."""
    global _stood_still_s
    while True:
        began = monotonic()
        await asyncio.sleep(SWEEP_S)
        if (late_s := monotonic() - began - SWEEP_S) > SWEEP_S:
            _stood_still_s += late_s
        now = clock()
        for connection in list(connections):
            try:
                connection.check_time(now)
            except Exception:  # the others still have to be looked at
                log.exception("this is a bug: a connection's time could not be checked")
                connection.transport.abort()
