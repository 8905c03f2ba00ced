"""From the files of one version of a model to what serves it, and whether they are still the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from headrace.config import ModelConfig, ModelSettings
from headrace.errors import HeadraceError, ParityError
from headrace.observe.ledger import create as create_ledger
from headrace.serving.opening import OpenBatcher, OpenEngine
from headrace.serving.served import ServedModel
from headrace.serving.version_files import version_files
from headrace.serving.warmup import warmup_request

log = logging.getLogger("headrace.serving")


class Loader:
    """Opens versions, warms them and puts a scheduler in front.

    Args:
        engine_opener: Makes an Engine of a model file.
        batcher_opener: Makes a Batcher of an Engine.
        ledger: Folder of the request ledger on disk; None for none.
    """

    def __init__(self, engine_opener: OpenEngine, batcher_opener: OpenBatcher, ledger: Path | None) -> None:
        self.engine_opener = engine_opener
        self._batcher_opener = batcher_opener
        self._ledger = ledger

    def open(self, config: ModelConfig, version: int) -> ServedModel:
        """Opens one version. Blocking.

        Raises:
            ParityError: Its outputs are too far from the reference backend's.
            HeadraceError: It could not be loaded or did not survive its warm-up.
        """
        path = config.files[version]
        source = source_of(version, path, config.settings)
        try:
            engine = self.engine_opener(path, config.settings)
        except ParityError:
            raise  # `ModelHost.find` says which model it is of
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


def made_from(config: ModelConfig, opened: Mapping[int, ServedModel]) -> bool:
    """Whether what was opened is just what lies there now. Blocking."""
    return config.files.keys() == opened.keys() and all(
        opened[version].source == source_of(version, path, config.settings) for version, path in config.files.items()
    )


def source_of(version: int, path: Path, settings: ModelSettings) -> object:
    """What a version is made from: its settings, and the names, sizes and times of its files. Blocking."""
    try:
        found = [(name, file.stat()) for name, file in version_files(version, path)]
    except OSError:
        return object()  # equal to nothing: the opener will say what is wrong
    return settings, path, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
