"""Has one replica serve what its model's assignment says, while requests go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from headrace.config import ModelConfig
from headrace.errors import ConfigError, ExecutionError
from headrace.serving.aside import aside
from headrace.serving.assignment import Assignment, Edition
from headrace.serving.changing import changes, end_trial, retire, take_over, tried_first
from headrace.serving.host import ModelHost
from headrace.serving.served import ServedModel
from headrace.serving.standings import Standing

log = logging.getLogger("headrace.serving")

Opened = Mapping[int, ServedModel]

# Compiling and checking a large model takes minutes; what has not opened by then hangs.
OPEN_S_MAX = 600.0
# For how long the end of a replica waits for versions that are being closed: less than Serve leaves it
# (`ray_build.CLOSE_S`), so that what is given up is told.
CLOSE_S_MAX = 3.0

# What is being opened: the versions, and whether their files lay there still when they had been read.
Opening = asyncio.Future[tuple[dict[int, ServedModel], bool]]


class Follower:
    """Brings a host from what it serves to what it is told to serve. Used from the event loop only.

    Whatever order assignments come in, each is reached from what is there then: what the last one says is what is
    served in the end, and what none of them needs any more is closed.

    Args:
        host: Has loaded the assignment's running edition.
        assignment: What it was loaded for.
        adapt: Makes the configuration that this replica loads of an edition's.
        serving: What it has loaded instead, where the running edition could not be opened; see `load_assigned`.
    """

    def __init__(
        self,
        host: ModelHost,
        assignment: Assignment,
        adapt: Callable[[ModelConfig], ModelConfig],
        serving: Edition | None = None,
    ) -> None:
        self._host = host
        self._name = assignment.running.model.name
        self._adapt = adapt
        self._assignment = assignment
        self._serving = serving or assignment.running
        # What serves because nothing else can, as long as it is the candidate.
        self._stand_in = None if self._serving == assignment.running else self._serving
        # The candidate and what was opened for it.
        self._opened: tuple[Edition, Opened] | None = None
        # Generation that was reached, and why its candidate could not be loaded.
        self._reached = assignment.generation if assignment.candidate is None else 0
        self._failure = ""
        # Why what is to answer does not.
        self.broken = ""
        self._work: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        # What hangs while it is being opened.
        self._late: set[Opening] = set()

    def follow(self, assignment: Assignment | None = None) -> None:
        """Begins to follow an assignment, if it is newer than the last one; None for the one it was made with."""
        if assignment is not None and assignment.generation > self._assignment.generation:
            self._assignment = assignment
        if self._reached != self._assignment.generation and (self._work is None or self._work.done()):
            self._work = asyncio.create_task(self._reach())

    def standing(self) -> Standing:
        """How far it has come, what was seen, and what was left behind."""
        return replace(self._standing(), stuck=tuple(one.version for one in self._host.stuck()))

    def _standing(self) -> Standing:
        generation = self._assignment.generation
        if self._assignment.candidate is None:
            return Standing(generation)
        if self._reached != generation:
            return Standing(generation, "loading")
        if self._failure:
            return Standing(generation, "failed", self._failure)
        trial = self._host.trial(self._name)
        if trial is None:
            same = self._opened is not None and not changes(self._host, self._name, self._opened[1])
            return Standing(generation, "unchanged" if same else "ready")
        seen = trial.evidence
        return Standing(generation, "trial", "", trial.elapsed_s, seen["running"].digest(), seen["candidate"].digest())

    async def close(self) -> None:
        """Gives up what has not taken over, and waits for what is being closed, but not for ever.

        What serves is the host's to close, and so is what hangs.
        """
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        if self._opened is not None:
            await self._give_up()
        for late in list(self._late):
            late.cancel()
        if not self._closing:
            return
        _, left = await asyncio.wait(self._closing, timeout=CLOSE_S_MAX)
        if left:
            log.error("model %s: given up: closing %s", self._name, ", ".join(self._host.closing()))

    async def _reach(self) -> None:
        while self._reached != self._assignment.generation:
            assignment = self._assignment
            if assignment.running == self._serving:
                self._stand_in = None
            elif not self._stands_in(assignment):
                await self._take_over(assignment.running)
            if self._opened is not None and self._opened[0] != assignment.candidate:
                await self._give_up()
            self._failure = ""
            if assignment.candidate not in (None, self._serving) and self._opened is None:
                await self._bring(assignment.candidate)
            self._reached = assignment.generation

    def _stands_in(self, assignment: Assignment) -> bool:
        return self._stand_in is not None and self._stand_in == assignment.candidate

    async def _take_over(self, edition: Edition) -> None:
        """Lets an edition take the name: the one that was opened as a candidate, or one that is opened for it now."""
        config = self._adapt(edition.model)
        if self._opened is None or self._opened[0] != edition:
            try:
                opened: Opened = await self._prepare(edition)
            except Exception as error:
                # What serves is not what is to serve, and trying again is better done by a fresh process.
                self.broken = f"version {edition.newest}: {type(error).__name__}: {error}"
                log.error("model %s: %s", self._name, self.broken)
                return
            if self._opened is not None:
                await self._give_up()
        else:
            opened = self._opened[1]
        self._opened = None
        self._serving, self._stand_in = edition, None
        self._retire(await take_over(self._host, config, opened))

    async def _bring(self, edition: Edition) -> None:
        """Opens a candidate, and puts it on trial if it wants one."""
        try:
            opened = await self._prepare(edition)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            return
        self._opened = edition, opened
        try:
            if tried_first(self._host, self._adapt(edition.model), opened):
                self._host.begin_trial(self._name, opened)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            await self._give_up()

    async def _prepare(self, edition: Edition) -> dict[int, ServedModel]:
        """Opens an edition beside what serves; a version that hangs must not keep later ones waiting for ever.

        Raises:
            ConfigError: Something else lies in its place.
            ExecutionError: It takes longer than `OPEN_S_MAX`. Should it end after all, what it opened is closed again.
            Exception: It cannot be opened.
        """
        before = list(self._host)
        opening: Opening = aside("headrace-open", partial(self._open, edition))
        try:
            done, _ = await asyncio.wait({opening}, timeout=OPEN_S_MAX)
        except asyncio.CancelledError:
            opening.cancel()
            raise
        if done:
            opened, is_there = opening.result()
            if is_there:
                return opened
            self._drop(before, opening)
            raise ConfigError(
                f"version {edition.newest}: got other files than those that were deployed, expected these"
            )
        self._late.add(opening)
        opening.add_done_callback(partial(self._drop, before))
        raise ExecutionError(f"got no end of opening it in {OPEN_S_MAX:g} s, expected one")

    def _open(self, edition: Edition) -> tuple[dict[int, ServedModel], bool]:
        """Opens an edition, and says whether it lay there still when it had been read. Blocking."""
        opened = self._host.prepare(self._adapt(edition.model))
        return opened, edition.is_there

    def _drop(self, before: list[ServedModel], late: Opening) -> None:
        """Closes what was opened in vain, but for what served already when that began, whatever became of it."""
        self._late.discard(late)
        if not late.cancelled() and late.exception() is None:
            opened, _ = late.result()
            own = {version: one for version, one in opened.items() if all(one is not old for old in before)}
            self._retire(self._host.unused(self._name, own))

    async def _give_up(self) -> None:
        assert self._opened is not None, "this is a bug: there is no candidate to give up"
        opened, self._opened = self._opened[1], None
        self._retire(await end_trial(self._host, self._name, opened))

    def _retire(self, leaving: list[ServedModel]) -> None:
        task = asyncio.create_task(retire(self._host, leaving))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
