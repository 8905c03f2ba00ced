"""The models one process serves, each version with its own Engine and Batcher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from headrace.config import ModelConfig
from headrace.errors import BackendUnavailable, ConfigError, HeadraceError, NotFound, ParityError
from headrace.observe.ledger import Books
from headrace.serving import model_state
from headrace.serving.loading import Loader, source_of
from headrace.serving.model_state import ModelState
from headrace.serving.opening import OpenBatcher, OpenEngine, open_batcher, open_engine
from headrace.serving.retiring import Retiring
from headrace.serving.rollout import Trial
from headrace.serving.served import Route, ServedModel
from headrace.serving.statistics import merged, statistics

__all__ = ["ModelHost", "OpenBatcher", "OpenEngine", "Route", "ServedModel", "open_batcher", "open_engine"]

log = logging.getLogger("headrace.serving")


class ModelHost:
    """Loads models and finds them by name and version.

    Example:
        >>> host = ModelHost(load_repository("models"))
        >>> host.load()
        >>> app = build_asgi(host)

    Args:
        models: What to serve.
        engine_opener: Makes an Engine of a model file; tests put their own here.
        batcher_opener: Makes a Batcher of an Engine; tests put their own here.
        ledger: Folder of the request ledger on disk; None for books that end with the process.

    Attributes:
        ledger: As above.
    """

    def __init__(
        self,
        models: Sequence[ModelConfig],
        *,
        engine_opener: OpenEngine = open_engine,
        batcher_opener: OpenBatcher = open_batcher,
        ledger: Path | None = None,
    ) -> None:
        self._models = {config.name: config for config in models}
        self._served: dict[str, dict[int, ServedModel]] = {config.name: {} for config in models}
        self._loader = Loader(engine_opener, batcher_opener, ledger)
        self.ledger = ledger
        self._draining = False
        self._retiring = Retiring()
        # (model, version) -> why it was loaded and yet is not served.
        self._refused: dict[tuple[str, int], str] = {}
        self._trials: dict[str, Trial[ServedModel]] = {}
        # Model on trial -> every version that was opened for it: more than one may be new.
        self._on_trial: dict[str, dict[int, ServedModel]] = {}
        self.infer_routes: dict[str, Route] = {}

    def load(self, progress: Callable[[str], None] | None = None) -> None:
        """Loads and warms every version that is not loaded yet. Blocking: call it beside the event loop, not on it.

        Args:
            progress: Told ``"NAME version V"`` before each load.

        A version that fails its parity check is not served, and `find` says why; all others are. After `drain` no other
        load begins.

        Raises:
            HeadraceError: A model could not be loaded or did not survive its warm-up; those before it stay loaded.
        """
        for name, config in self._models.items():
            for version in config.files:
                if self._draining:
                    return
                if version in self._served.get(name, {version: None}):  # or the model was withdrawn
                    continue
                if progress is not None:
                    progress(f"{name} version {version}")
                try:
                    served = self._loader.open(config, version)
                except ParityError as error:
                    log.error("model %s version %d is not served: %s", name, version, error)
                    self._refused[name, version] = str(error)
                    continue
                if name not in self._served:
                    served.close()
                    continue
                # A new dict, because the event loop may be looking through the old one.
                self._served[name] = {**self._served[name], version: served}
                self._publish()

    def prepare(self, config: ModelConfig, given_up: Callable[[], bool] = lambda: False) -> dict[int, ServedModel]:
        """Loads and warms what `config` names beside what serves now. Blocking: call it beside the event loop.

        Args:
            config: The model, as it is to be.
            given_up: Asked after each version, on this thread, whether nobody wants it any more.

        Returns:
            What to `swap` in: every version, those that would not change as they are.

        Raises:
            HeadraceError: A version could not be loaded or checked, or it was given up; nothing has changed.
        """
        current = self._served.get(config.name, {})
        opened: dict[int, ServedModel] = {}
        try:
            for version, path in config.files.items():
                kept = current.get(version)
                if kept is not None and kept.source == source_of(version, path, config.settings):
                    opened[version] = kept
                else:
                    opened[version] = self._loader.open(config, version)
                if given_up():
                    raise BackendUnavailable(f"model {config.name!r}: got a load that was given up, expected it wanted")
        except BaseException:
            for version, served in opened.items():
                if served is not current.get(version):
                    served.close()
            raise
        return opened

    def swap(self, config: ModelConfig, opened: dict[int, ServedModel]) -> list[ServedModel]:
        """Lets what `prepare` made take the name, in one step. Call it on the event loop.

        Requests find their models there, too, so that none finds what is replaced after it was replaced.

        Returns:
            What was replaced, for `retire`.
        """
        name = config.name
        replaced = [old for version, old in self._served.get(name, {}).items() if opened.get(version) is not old]
        self._refused = {key: reason for key, reason in self._refused.items() if key[0] != name}
        self._models = {**self._models, name: config}
        leaving = self._retiring.enter(replaced)  # before it leaves what serves: see `_current`
        self._served = {**self._served, name: opened}
        self._forget_trial(name)
        self._publish()
        return leaving

    def begin_trial(self, name: str, opened: dict[int, ServedModel]) -> Trial[ServedModel]:
        """Puts the newest version that `prepare` made on trial beside the one that answers. Call it on the event loop.

        Raises:
            ConfigError: Its inputs or outputs are not the running version's, so that they cannot stand in for each
                other.
        """
        running, candidate = self.find(name), opened[max(opened)]
        if candidate.engine.signature != running.engine.signature:
            raise ConfigError(
                f"model {name!r}: got version {candidate.version} with other inputs or outputs than version "
                f"{running.version}, expected the same for a {candidate.settings.rollout.mode} (or mode 'replace')"
            )
        trial = Trial(candidate.settings.rollout, running, candidate)
        self._on_trial = {**self._on_trial, name: opened}
        self._trials = {**self._trials, name: trial}
        self._publish()
        return trial

    def trial(self, name: str) -> Trial[ServedModel] | None:
        """The trial of a model, if there is one."""
        return self._trials.get(name)

    def on_trial(self, name: str) -> dict[int, ServedModel]:
        """Every version that was opened for a model's trial, if there is one."""
        return self._on_trial.get(name, {})

    def _forget_trial(self, name: str) -> None:
        self._trials = {other: trial for other, trial in self._trials.items() if other != name}
        self._on_trial = {other: opened for other, opened in self._on_trial.items() if other != name}

    def give_up(self, name: str, opened: dict[int, ServedModel]) -> list[ServedModel]:
        """Ends a trial, or what would have been one. Call it on the event loop.

        Returns:
            What `prepare` made and nobody needs, for `retire`.
        """
        leaving = self.unused(name, opened)
        self._forget_trial(name)
        self._publish()
        return leaving

    def unused(self, name: str, opened: dict[int, ServedModel]) -> list[ServedModel]:
        """What `prepare` made and does not serve, for `retire`. Call it on the event loop."""
        serving = list(self._served.get(name, {}).values())
        return self._retiring.enter([served for served in opened.values() if served not in serving])

    def withdraw(self, name: str) -> list[ServedModel]:
        """Takes a model's name away, in one step. Call it on the event loop, for the reason that `swap` gives.

        Returns:
            What served it, for `retire`.

        Raises:
            NotFound: No such model.
        """
        if name not in self._models:
            raise NotFound(f"model: got {name[:128]!r}, expected one of {', '.join(self._models)}")
        leaving = _each_once(self._served[name].values(), self.on_trial(name).values())
        self._retiring.enter(leaving)
        self._models = {other: config for other, config in self._models.items() if other != name}
        self._served = {other: loaded for other, loaded in self._served.items() if other != name}
        self._forget_trial(name)
        self._publish()
        return leaving

    def retire(self, models: Sequence[ServedModel], wait_s: float = 0.0) -> None:
        """Answers what they have accepted, then closes them. Blocking.

        Args:
            models: What `swap`, `give_up` or `withdraw` returned.
            wait_s: How long to wait for requests that have found them and are still on their way into the queue.

        Raises:
            HeadraceError: What closing raised, after all were tried.
        """
        self._retiring.retire(models, wait_s)

    def _publish(self) -> None:
        """Rebuilds the routes in one assignment, so a request sees the old ones or the new ones."""
        routes: dict[str, Route] = {}
        for name, versions in self._served.items():
            for version, served in versions.items():
                routes[f"/v2/models/{name}/versions/{version}/infer"] = Route(served)
            if versions:
                routes[f"/v2/models/{name}/infer"] = Route(versions[max(versions)], self._trials.get(name))
        self.infer_routes = routes

    @property
    def ready(self) -> bool:
        """True once every version of every model was loaded, warmed and checked, until `drain`.

        A model that failed its check does not count, as long as another serves: it alone is not ready.
        """
        return not self._draining and self.loaded and (not self._models or any(self._served.values()))

    @property
    def loaded(self) -> bool:
        """True once `load` has been through every version of every model."""
        return all(
            version in self._served[name] or (name, version) in self._refused
            for name, config in self._models.items()
            for version in config.files
        )

    @property
    def draining(self) -> bool:
        """True after `drain`."""
        return self._draining

    @property
    def names(self) -> list[str]:
        """The names of all models, loaded or not."""
        return list(self._models)

    def __iter__(self) -> Iterator[ServedModel]:
        """Every loaded version of every model, those on trial included where their number is their own."""
        for name, versions in self._served.items():
            yield from versions.values()
            trial = self._trials.get(name)
            if trial is not None and int(trial.candidate.version) not in versions:
                yield trial.candidate

    def versions(self, name: str) -> list[str]:
        """The loaded versions of one model, oldest first."""
        return [str(version) for version in sorted(self._served.get(name, {}))]

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """One loaded version of one model.

        Args:
            name: The model's name.
            version: A version number as text; None for the newest one loaded.

        Raises:
            NotFound: No such model or version is configured.
            BackendUnavailable: It is configured, and still being loaded.
        """
        config = self._models.get(name)
        if config is None:
            raise NotFound(f"model: got {name[:128]!r}, expected one of {', '.join(self._models)}")
        served = self._served[name]
        if version is None:
            if served:
                return served[max(served)]
        else:
            number = int(version) if version.isascii() and version.isdigit() and len(version) < 20 else 0
            if number in served:
                return served[number]
            if number not in config.files:
                have = ", ".join(map(str, sorted(config.files)))
                raise NotFound(f"model {name!r}: got version {version[:32]!r}, expected one of {have}")
        wanted = max(config.files) if version is None else number
        if (reason := self._refused.get((name, wanted))) is not None:
            raise BackendUnavailable(
                f"model {name!r} version {wanted}: got state unavailable, expected ready: {reason}"
            )
        raise BackendUnavailable(f"model {name!r}: got state loading, expected ready: try again later")

    def route(self, name: str, version: str | None = None) -> Route:
        """Where a request goes; the arguments and errors are `find`'s."""
        return Route(self.find(name, version), self._trials.get(name) if version is None else None)

    def states(self) -> list[ModelState]:
        """Every version of every configured model, with why it is not ready where it is not."""
        found: list[ModelState] = []
        for name, config in self._models.items():
            for version in sorted(config.files):
                reason = self._refused.get((name, version))
                state = "READY" if version in self._served[name] else "UNAVAILABLE" if reason else "LOADING"
                found.append(ModelState(name, str(version), state, reason or ""))
            if (trial := self._trials.get(name)) is not None:
                found.append(model_state.tried(trial))
        return found + [model_state.stuck(served) for served in self.stuck()]

    def stuck(self) -> list[ServedModel]:
        """Versions that are out of service and cannot be closed, because a Batch of theirs does not end."""
        return [served for served in self._retiring if served.hangs]

    def stats(self) -> dict[str, dict[str, Any]]:
        """The ledger of every loaded version, by ``NAME/VERSION``."""
        return {str(served): {**served.batcher.stats(), "rejected": served.rejected} for served in self}

    def statistics(self) -> list[dict[str, Any]]:
        """The protocol's statistics of every version, with those of versions that it has closed."""
        current = self._current()
        retiring, closed = self._retiring.statistics()
        return merged([*closed, *(statistics(served) for served in _each_once(current, retiring))])

    def books(self) -> dict[str, Books]:
        """The books of each model in this process, with those of the versions that it has closed."""
        current = self._current()
        retiring, closed = self._retiring.books()
        books = dict(closed)
        for served in _each_once(current, retiring):
            books[served.name] = books.get(served.name, Books()) + Books.of_stats(served.batcher.stats())
        return books

    def _current(self) -> list[ServedModel]:
        """Every version on trial or serving. Whoever wants those being closed too reads them after these.

        Versions go from trial to serving to closing, and are entered in the next before they leave the last: read in
        this order, none is missed on whatever thread, though one may be found twice.
        """
        tried = [served for opened in self._on_trial.values() for served in opened.values()]
        return [*tried, *(served for versions in self._served.values() for served in versions.values())]

    def stalled(self) -> list[str]:
        """Versions that callers wait for and whose running Batch has taken longer than their `stall_s`.

        An Engine that hangs answers nobody and cannot be interrupted: only a new process helps. One that was only tried
        keeps nobody waiting, and is no reason to end a process in which another version answers.

        Returns:
            Each as ``NAME/VERSION``.
        """
        serving = [served for versions in self._served.values() for served in versions.values()]
        leaving = [served for served in self._retiring if served.users]
        return [str(served) for served in _each_once(serving, leaving) if served.hangs]

    def hanging(self) -> list[str]:
        """Every version with a Batch that has run for longer than its `stall_s`, tried ones included."""
        return [str(served) for served in _each_once(self._current(), self._retiring) if served.hangs]

    def closing(self) -> list[str]:
        """Every version that answers nobody new and is not closed yet."""
        return [str(served) for served in self._retiring]

    def drain(self) -> None:
        """Makes readiness false, so that whoever routes traffic here stops. Requests are still answered."""
        self._draining = True

    def unload(self, name: str) -> None:
        """Takes a model out of service: no new Requests, then every accepted one answered, then closed.

        Raises:
            NotFound: No such model.
        """
        self.retire(self.withdraw(name))

    def close(self) -> None:
        """Unloads everything, and waits for what is being closed already.

        Every error is logged, the first one is raised after all were tried. What hangs comes last.
        """
        self.drain()
        failure: HeadraceError | None = None
        leaving = [served for name in list(self._models) for served in self.withdraw(name)]
        for served in sorted(leaving, key=lambda one: one.hangs):
            try:
                self.retire([served])
            except HeadraceError as error:
                log.error("could not close model %s: %s", served, error)
                failure = failure or error
        self._retiring.finish()
        if failure is not None:
            raise failure


def _each_once(*groups: Iterable[ServedModel]) -> list[ServedModel]:
    return list(dict.fromkeys(chain.from_iterable(groups)))
