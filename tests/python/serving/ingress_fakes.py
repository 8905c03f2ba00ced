"""A deployment without Ray: a front, doors and the links between them, over fake engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from serving_fakes import Served, acall, make_config, make_served, rows

from headrace.config import DeployedModel
from headrace.observe.ledger import Books
from headrace.serving.front_app import FrontApp
from headrace.serving.front_grpc import FrontGrpcApp
from headrace.serving.front_shared import FrontAddress
from headrace.serving.grpc_app import GrpcApp
from headrace.serving.host import ModelHost
from headrace.serving.ingress.door import Door, DoorAddress
from headrace.serving.ingress.pool import Pool
from headrace.serving.service import OipService

INFER = "/v2/models/doubler/infer"


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> Any:
    """Every test runs on either event loop: their transports and sockets differ."""
    return asyncio.DefaultEventLoopPolicy() if request.param == "asyncio" else uvloop.EventLoopPolicy()


class Replica:
    """A served doubler behind a door."""

    def __init__(self, **settings: Any) -> None:
        self.served: Served = make_served(make_config(**settings))
        self.door = Door(self.served.app, GrpcApp(self.served.app.service))

    async def open(self, host: str = "") -> DoorAddress:
        self.address = await self.door.open(host)
        return self.address

    def die(self) -> None:
        """What the kernel does to the connections of a process that is killed."""
        assert self.door._server is not None
        self.door._server.close()
        for link in list(self.door.links):
            assert link.transport is not None
            link.transport.abort()

    @property
    def computed(self) -> int:
        return len(self.served.engines[0].computed)


async def _no_books() -> dict[str, Books]:
    return {"doubler": Books()}


class Deployment:
    """A front, and the replicas that Serve would start when it is asked for one."""

    def __init__(self) -> None:
        self.asleep: list[Replica] = []
        self.woken = 0
        self.groups_woken: list[str] = []
        self.pool = Pool("doubler", self.wake)
        self.service = OipService(ModelHost([]), body_bytes_max=8 << 20)
        self.front = FrontApp(_no_books, self.service, {"doubler": self.pool})
        self.calls = FrontGrpcApp(self.service, {"doubler": self.pool})

    async def wake(self, group: str) -> tuple[str, DoorAddress]:
        self.woken += 1
        self.groups_woken.append(group)
        if not self.asleep:
            await asyncio.sleep(30)
        await asyncio.sleep(0.05)
        replica = self.asleep.pop(0)
        return f"woken-{self.woken}", await replica.open()

    async def infer(self, *values: float, **headers: str) -> Any:
        return await acall(self.front, "POST", INFER, rows(*values), headers)


@asynccontextmanager
async def deployed(*replicas: Replica, host: str = "") -> AsyncIterator[Deployment]:
    deployment = Deployment()
    for number, replica in enumerate(replicas):
        await deployment.pool.add(str(number), await replica.open(host))
    yield deployment
    await deployment.pool.close()
    for replica in replicas:
        replica.die()


# What is to happen meanwhile: functions of the link that is open, or None to hang.
MEANWHILE: list[Any] = []


class Meanwhile(DoorAddress):
    """Lets something happen when one link is open and the other is not."""

    async def connect(self, protocol: Any) -> Any:
        if (then := MEANWHILE.pop()) is None:
            await asyncio.sleep(30)
        link = await super().connect(protocol)
        await then(link)
        return link


class NoApplications:
    """Stands in for Serve where no model is loaded or unloaded."""

    def start(self, deployed: DeployedModel, timeout_s: float) -> None:
        raise AssertionError(f"got model {deployed.model.name!r} to start, expected none")

    def end(self, name: str) -> None:
        raise AssertionError(f"got model {name!r} to end, expected none")


def front_state(applications: Any = None, admin_token: str | None = None) -> Any:
    """What the front of a deployment knows and does, without Ray but where that has to be installed."""
    pytest.importorskip("ray", reason="the Ray extra is not installed")
    from headrace.serving.front import FrontState

    where = FrontAddress("headrace", "127.0.0.1", 0, 0)
    return FrontState(where, None, "x-caller", admin_token, applications or NoApplications())
