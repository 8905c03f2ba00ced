"""The models one process serves, each version with its own Engine and Batcher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from headrace.config import ModelConfig, ModelSettings
from headrace.errors import BackendUnavailable, ConfigError, HeadraceError, NotFound, ParityError
from headrace.observe.ledger import Books, totals
from headrace.observe.ledger import create as create_ledger
from headrace.observe.ledger import read as read_ledger
from headrace.serving.opening import OpenBatcher, OpenEngine, open_batcher, open_engine
from headrace.serving.retiring import Retiring
from headrace.serving.rollout import Trial
from headrace.serving.served import Route, ServedModel
from headrace.serving.statistics import merged, statistics
from headrace.serving.version_files import version_files
from headrace.serving.warmup import warmup_request

__all__ = ["ModelHost", "OpenBatcher", "OpenEngine", "Route", "ServedModel", "open_batcher", "open_engine"]

log = logging.getLogger("headrace.serving")


class ModelState(NamedTuple):
    """A version in the repository index: READY, LOADING or UNAVAILABLE, and why."""

    name: str
    version: str
    state: str
    reason: str


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
        self._engine_opener = engine_opener
        self._batcher_opener = batcher_opener
        self._ledger = ledger
        self._draining = False
        self._retiring = Retiring()
        # (model, version) -> why it was loaded and yet is not served.
        self._refused: dict[tuple[str, int], str] = {}
        self._trials: dict[str, Trial[ServedModel]] = {}
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
                    served = self._open(config, version)
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
                if kept is not None and kept.source == _source(version, path, config.settings):
                    opened[version] = kept
                else:
                    opened[version] = self._open(config, version)
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
        self._trials = {other: trial for other, trial in self._trials.items() if other != name}
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
        self._trials = {**self._trials, name: trial}
        self._publish()
        return trial

    def trial(self, name: str) -> Trial[ServedModel] | None:
        """The trial of a model, if there is one."""
        return self._trials.get(name)

    def give_up(self, name: str, opened: dict[int, ServedModel]) -> list[ServedModel]:
        """Ends a trial, or what would have been one. Call it on the event loop.

        Returns:
            What `prepare` made and nobody needs, for `retire`.
        """
        leaving = self.unused(name, opened)
        self._trials = {other: trial for other, trial in self._trials.items() if other != name}
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
        leaving = list(self._served[name].values())
        if (trial := self._trials.get(name)) is not None:
            leaving.append(trial.candidate)
        self._retiring.enter(leaving)
        self._models = {other: config for other, config in self._models.items() if other != name}
        self._served = {other: loaded for other, loaded in self._served.items() if other != name}
        self._trials = {other: trial for other, trial in self._trials.items() if other != name}
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

    def _open(self, config: ModelConfig, version: int) -> ServedModel:
        path = config.files[version]
        source = _source(version, path, config.settings)
        try:
            engine = self._engine_opener(path, config.settings)
        except ParityError:
            raise  # `find` says which model it is of
        except HeadraceError as error:
            error.args = (f"model {config.name!r} version {version} ({path}): {error}", *error.args[1:])
            raise
        try:
            engine.run_batch([warmup_request(engine.signature, path.parent.parent)])
            if self._ledger is None:
                batcher = self._batcher_opener(engine, config.settings)
            else:
                fd = create_ledger(self._ledger, config.name, str(version))
                batcher = self._batcher_opener(engine, config.settings, ledger_fd=fd)
        except BaseException:
            engine.close()
            raise
        log.info("loaded model %s version %d: %s", config.name, version, engine.plan)
        return ServedModel(config, version, engine, batcher, source)

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
                status = trial.status()
                reason = _on_trial(status) + (", stuck in a batch" if _hangs(trial.candidate) else "")
                found.append(ModelState(name, status["candidate"]["version"], "LOADING", reason))
        stuck = "out of service, and stuck in a batch: what it holds is free when the process ends"
        found += [ModelState(one.name, one.version, "UNAVAILABLE", stuck) for one in self._retiring if _hangs(one)]
        return found

    def stats(self) -> dict[str, dict[str, Any]]:
        """The ledger of every loaded version, by ``NAME/VERSION``."""
        return {
            f"{served.name}/{served.version}": {**served.batcher.stats(), "rejected": served.rejected}
            for served in self
        }

    def statistics(self) -> list[dict[str, Any]]:
        """The protocol's statistics of every version, with those of versions that it has closed."""
        current = self._current()
        retiring, closed = self._retiring.statistics()
        return merged([*closed, *(statistics(served) for served in _each_once(current, retiring))])

    def ledger(self) -> dict[str, Books]:
        """The books of each model: of every process that kept them in the same folder, or else of this one alone."""
        return self.books() if self._ledger is None else totals(read_ledger(self._ledger))

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
        trials = [trial.candidate for trial in self._trials.values()]
        return [*trials, *(served for versions in self._served.values() for served in versions.values())]

    def stalled(self) -> list[str]:
        """Versions that callers wait for and whose running Batch has taken longer than their `stall_s`.

        An Engine that hangs answers nobody and cannot be interrupted: only a new process helps. One that was only tried
        keeps nobody waiting, and is no reason to end a process in which another version answers.

        Returns:
            Each as ``NAME/VERSION``.
        """
        serving = [served for versions in self._served.values() for served in versions.values()]
        leaving = [served for served in self._retiring if served.users]
        return [_named(served) for served in _each_once(serving, leaving) if _hangs(served)]

    def hanging(self) -> list[str]:
        """Every version with a Batch that has run for longer than its `stall_s`, tried ones included."""
        return [_named(served) for served in _each_once(self._current(), self._retiring) if _hangs(served)]

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

        Every error is logged, the first one is raised after all were tried.
        """
        self.drain()
        failure: HeadraceError | None = None
        for name in list(self._models):
            try:
                self.unload(name)
            except HeadraceError as error:
                log.error("could not close model %s: %s", name, error)
                failure = failure or error
        self._retiring.finish()
        if failure is not None:
            raise failure


def _on_trial(status: dict[str, Any]) -> str:
    counts = ", ".join(f"{key} {value:g}" for key, value in status["candidate"].items() if key != "version")
    return f"on trial as a {status['mode']} with {status['share']:.0%} of the requests: {status['state']} ({counts})"


def made_from(config: ModelConfig, opened: Mapping[int, ServedModel]) -> bool:
    """Whether what was opened is just what lies there now. Blocking."""
    return config.files.keys() == opened.keys() and all(
        opened[version].source == _source(version, path, config.settings) for version, path in config.files.items()
    )


def _source(version: int, path: Path, settings: ModelSettings) -> object:
    """What a version is made from: its settings, and the names, sizes and times of its files."""
    try:
        found = [(name, file.stat()) for name, file in version_files(version, path)]
    except OSError:
        return object()  # equal to nothing: the opener will say what is wrong
    return settings, path, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def _each_once(*groups: Iterable[ServedModel]) -> list[ServedModel]:
    return list(dict.fromkeys(chain.from_iterable(groups)))


def _named(served: ServedModel) -> str:
    return f"{served.name}/{served.version}"


def _hangs(served: ServedModel) -> bool:
    return bool(served.batcher.stats().get("running_s", 0.0) > served.settings.stall_s)
