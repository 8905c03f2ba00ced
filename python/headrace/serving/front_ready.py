"""Whether a deployment should be sent traffic: what its front answers to ``/v2/health/ready`` and ServerReady."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from time import monotonic

from headrace.serving.ingress.pool import Pool

log = logging.getLogger("headrace.serving")

# What Serve said is believed for so long: whoever asks may ask often.
FRESH_S = 1.0
# How long Serve is waited for.
ASK_S_MAX = 5.0
# Serve's words for an application that is not going to come up by itself.
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


class Readiness:
    """Knows it from the replicas that are connected and, of models that have none, from Serve.

    As with one server: ready once no model is loading any more and at least one can be used. One that failed does not
    count as long as another is there. A model that was scaled to zero is ready, since a request starts a replica. One
    that was unloaded does not count: where all were, the deployment is ready to have them loaded.

    Args:
        pools: The replicas of each deployed model; none where the deployment begins or ends.
        statuses: Asks Serve for the status of each application; may block.
        clock: Seconds that only grow.
        unloaded: The models that were taken out of service.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        statuses: Callable[[], Mapping[str, str]],
        clock: Callable[[], float] = monotonic,
        unloaded: Collection[str] = (),
    ) -> None:
        self._pools = pools
        self._unloaded = unloaded
        self._ask = statuses
        self._clock = clock
        self._known: Mapping[str, str] = {}
        self._fresh_until = -1.0
        self._asking = asyncio.Lock()

    async def get(self) -> bool:
        """Whether the deployment is ready now."""
        if not all(pool.reachable for pool in self._pools.values()):
            await self._learn()
        return self.last

    @property
    def last(self) -> bool:
        """The same by what Serve said last."""
        if not self._pools:
            return bool(self._unloaded)
        up = {name for name, pool in self._pools.items() if pool.reachable}
        idle = {name for name in self._pools if self._known.get(name) == "RUNNING"}
        failed = {name for name in self._pools if self._known.get(name) in FAILED}
        return bool(up | idle) and up | idle | failed == set(self._pools)

    async def _learn(self) -> None:
        async with self._asking:
            if self._clock() < self._fresh_until:
                return
            try:
                self._known = await asyncio.wait_for(asyncio.to_thread(self._ask), ASK_S_MAX)
            except Exception as error:
                # Serve's controller may be starting again, and requests need it least of all: what it said last holds.
                log.info("front: Serve's state is not known (%s: %s)", type(error).__name__, error)
            self._fresh_until = self._clock() + FRESH_S
