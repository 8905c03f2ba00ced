"""The model repository extension: what is there, and loading and unloading it while everything else is served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from headrace.config import ModelConfig, load_model_folder
from headrace.errors import (
    BackendUnavailable,
    ConfigError,
    HeadraceError,
    MalformedRequest,
    ModelError,
    NotFound,
    NotOffered,
)
from headrace.serving.aside import aside
from headrace.serving.changing import end_trial, retire, take_over, tried_first
from headrace.serving.decode import check_keys
from headrace.serving.host import ModelHost, ServedModel
from headrace.serving.loading import made_from
from headrace.serving.model_state import ModelState
from headrace.serving.rollout import Trial

log = logging.getLogger("headrace.serving")

# What was opened of a model, by version.
Opened = dict[int, ServedModel]

# How often a trial is judged.
JUDGE_S = 0.1
# For how long a load waits until what it took out of a trial is closed.
CLOSES_S = 1.0


class RepositoryRequest(msgspec.Struct, kw_only=True):
    """The JSON body of a repository request over REST.

    Attributes:
        ready: Of an index: whether to list only what is ready.
        parameters: Of a load or unload.
    """

    ready: bool = False
    parameters: dict[str, Any] = {}


_REQUEST = msgspec.json.Decoder(RepositoryRequest)


def decode_repository_request(body: bytes) -> RepositoryRequest:
    """Decodes the body of a repository request; an empty one asks for nothing special.

    Raises:
        MalformedRequest: It is no such body.
    """
    if not body.strip():
        return RepositoryRequest()
    try:
        request = _REQUEST.decode(body)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"body: {str(error)[:500]}, expected a repository request") from error
    check_keys(body)
    return request


def refuse_overrides(parameters: Iterable[str]) -> None:
    """Raises `NotOffered` for a load that brings a configuration or files: models come from the folder alone."""
    if given := sorted(parameters):
        raise NotOffered(
            f"parameters: got {given[0][:64]!r}, expected none: a model and its settings are loaded from the repository"
        )


class RepositoryLike(Protocol):
    """What the protocol needs of a model repository; see `ModelRepository`."""

    async def index(self) -> list[ModelState]:
        """Every model there is."""

    async def load(self, name: str) -> None:
        """Loads a model, or loads it again."""

    async def unload(self, name: str) -> None:
        """Takes a model out of service."""

    def stop(self) -> None:
        """Gives up what is being loaded: the server ends."""


class ModelRepository:
    """A folder of models and the host that serves some of them.

    Args:
        host: Serves them.
        root: The folder, laid out as `headrace.config.load_repository` reads it.
    """

    def __init__(self, host: ModelHost, root: Path) -> None:
        self._host = host
        self._root = root
        # One load or unload of a model at a time, and one load of all: they share the machine with what serves.
        self._changes: dict[str, asyncio.Lock] = {}
        self._opening = asyncio.Lock()
        # Loads and unloads of a model that are under way or wait for their turn.
        self._under_way: Counter[str] = Counter()
        # Name -> why it is not served as it lies in the folder: the error of the last load, or that it was unloaded.
        self._notes: dict[str, str] = {}
        self._loading: str | None = None
        self._preparing: asyncio.Future[tuple[ModelConfig, Opened | None]] | None = None
        # The loop alone would not keep them.
        self._tasks: set[asyncio.Task[None]] = set()

    async def index(self) -> list[ModelState]:
        """Every version of every model that is served, and every other model in the folder."""
        found = self._host.states()
        known = {state.name for state in found}
        found = [self._noted(state) for state in found]
        for name in self._folders():
            if name == self._loading and name not in known:
                found.append(ModelState(name, "", "LOADING", ""))
            elif name not in known:
                found.append(ModelState(name, "", "UNAVAILABLE", self._notes.get(name, "not loaded")))
        return sorted(found)

    def _noted(self, state: ModelState) -> ModelState:
        """A model that serves although loading it again failed says so."""
        note = self._notes.get(state.name)
        return state._replace(reason=f"an older state serves: {note}") if note and state.state == "READY" else state

    def _folders(self) -> list[str]:
        try:
            names = [entry.name for entry in self._root.iterdir() if entry.is_dir() and entry.name[0] != "."]
        except OSError:
            return []
        # As they can be told: none that is no UTF-8 is a model's.
        return sorted(os.fsencode(name).decode("utf-8", "backslashreplace") for name in names)

    async def load(self, name: str) -> None:
        """Reads a model's folder again, and serves what is there now.

        What is new or changed is loaded, warmed and checked beside what serves, then takes the name in one step, or, as
        the model's settings say (`headrace.config.RolloutSettings`), goes on trial first; then this returns as soon as
        the trial has begun. What is on trial already stays on trial if it has not changed. What was replaced answers
        the requests it has accepted. One load runs at a time; it goes on if the caller does not wait for it.

        Raises:
            NotFound: There is no such folder.
            HeadraceError: It could not be loaded or checked; what served or was on trial before still does or is.
        """
        await self._run(self._load(name))

    async def unload(self, name: str) -> None:
        """Takes a model out of service; the requests it has accepted are answered.

        Raises:
            NotFound: It is not being served.
        """
        await self._run(self._unload(name))

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs to the end even if the client goes away: half a swap would lose requests."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    @contextlib.asynccontextmanager
    async def _change(self, name: str) -> AsyncIterator[None]:
        """Waits for the loads and unloads of a model before this one; meanwhile no candidate takes over."""
        self._under_way[name] += 1
        try:
            async with self._changes.setdefault(name, asyncio.Lock()):
                yield
        finally:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name], self._changes[name]

    async def _load(self, name: str) -> None:
        async with self._change(name):
            config, opened = await self._open(name)
            if opened is None:
                if self._host.trial(name) is None:  # it came to an end while its files were looked at
                    raise ModelError(f"model {name!r}: {self._notes[name]}")
                self._notes.pop(name, None)
                return
            failure = None
            try:
                leaving = await self._bring(config, opened)
            except HeadraceError as error:
                self._note(name, error)
                leaving, failure = self._host.unused(name, opened), error
        closing = asyncio.create_task(retire(self._host, leaving))
        self._tasks.add(closing)
        closing.add_done_callback(self._tasks.discard)
        # A candidate that hangs never closes, and whoever puts another in its place must not wait for it.
        await asyncio.wait({closing}, timeout=CLOSES_S if self._host.trial(name) else None)
        if failure is not None:
            raise failure

    async def _open(self, name: str) -> tuple[ModelConfig, Opened | None]:
        """Reads a model's folder and opens what lies there; None where just that is on trial already."""
        async with self._opening:
            self._check_running("a load")
            # Compared with the folder's own listing, so that no name can lead out of it.
            if name not in self._folders():
                raise NotFound(f"repository: got model {name[:128]!r}, expected one of {', '.join(self._folders())}")
            self._loading = name
            try:
                self._preparing = aside("headrace-load", partial(self._prepare, name, self._host.on_trial(name)))
                return await self._preparing
            except HeadraceError as error:
                self._note(name, error)
                raise
            finally:
                self._loading = None

    def _prepare(self, name: str, on_trial: Opened) -> tuple[ModelConfig, Opened | None]:
        config = load_model_folder(self._root / name)
        if on_trial and made_from(config, on_trial):
            return config, None
        return config, self._host.prepare(config, given_up=lambda: self._host.draining)

    def stop(self) -> None:
        """Gives up the load that is under way: whoever asked for it is told so, and nobody waits for its end.

        Call it after the host's `drain`: other loads do not begin then.
        """
        if self._preparing is not None and not self._preparing.done():
            self._preparing.set_exception(_ending("a load"))

    async def _bring(self, config: ModelConfig, opened: Opened) -> list[ServedModel]:
        """Lets what was opened take over or go on trial, in place of what was on trial; returns what is to be closed.

        Raises:
            ConfigError: It cannot go on trial; what was on trial still is.
        """
        name = config.name
        if not tried_first(self._host, config, opened):
            leaving = await self._end_trial(name)
            leaving += self._host.swap(config, opened)
        else:
            trial, before = self._host.trial(name), self._host.on_trial(name)
            self._begin_trial(config, opened)
            leaving = self._host.unused(name, before)
            if trial is not None:
                await trial.close()
        self._notes.pop(name, None)
        return leaving

    def _begin_trial(self, config: ModelConfig, opened: Opened) -> None:
        """Puts what was opened on trial; raises as `ModelHost.begin_trial` does."""
        name = config.name
        trial = self._host.begin_trial(name, opened)
        log.info("model %s version %s is on trial as a %s", name, trial.candidate.version, trial.settings.mode)
        task = asyncio.create_task(self._conclude(trial, config, opened))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _conclude(self, trial: Trial[ServedModel], config: ModelConfig, opened: Opened) -> None:
        """Waits for the evidence, then lets the candidate take over or gives it up.

        A load may take minutes, or hang. So a bad candidate is given up whatever else is under way. A good one waits
        for a load of its own model, which compares with what serves, and goes on being judged meanwhile. Nothing else
        may happen between a decision and what follows from it.
        """
        name = config.name
        while self._host.trial(name) is trial:
            decision = trial.judge()
            if decision.action == "rollback" or (decision.action == "promote" and not self._under_way[name]):
                break
            await asyncio.sleep(JUDGE_S)
        else:
            return
        log.warning("model %s version %s: %s: %s", name, trial.candidate.version, decision.action, decision.reason)
        if decision.action == "promote":
            leaving = await take_over(self._host, config, opened)
        else:
            self._notes[name] = f"version {trial.candidate.version} was rolled back: {decision.reason}"
            leaving = await self._end_trial(name)
        await retire(self._host, leaving)

    async def _end_trial(self, name: str) -> list[ServedModel]:
        """Gives up the candidate of a model, if it has one; returns it for `retire`."""
        return await end_trial(self._host, name, self._host.on_trial(name)) if self._host.trial(name) else []

    def _note(self, name: str, error: HeadraceError) -> None:
        self._notes[name] = f"{type(error).__name__}: {error}"

    async def _unload(self, name: str) -> None:
        async with self._change(name):
            self._check_running("an unload")
            leaving = await self._end_trial(name)
            leaving += self._host.withdraw(name)
            self._notes[name] = "unloaded"
        await retire(self._host, leaving)

    def _check_running(self, what: str) -> None:
        if self._host.draining:
            raise _ending(what)
        if not self._host.loaded:
            raise BackendUnavailable(f"repository: got {what} while the server is starting, expected it running")


def _ending(what: str) -> BackendUnavailable:
    return BackendUnavailable(f"repository: got {what} while the server is stopping, expected it running")


def read_token(path: Path | None, variable: str | None) -> str | None:
    """The token that guards the repository, from a file or from the environment.

    Args:
        path: A file that holds it, and nothing else but white space around it.
        variable: The value of ``HEADRACE_ADMIN_TOKEN``, which counts where there is no file.

    Raises:
        ConfigError: The file cannot be read, or the token is too short to be one.
    """
    if path is None and variable is None:
        return None
    where = "HEADRACE_ADMIN_TOKEN" if path is None else str(path)
    try:
        token = (variable or "") if path is None else path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: got {error}, expected a file with a token in it") from error
    token = token.strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{where}: got {len(token)} characters, expected a token of 16 or more printable ASCII characters"
        )
    return token
