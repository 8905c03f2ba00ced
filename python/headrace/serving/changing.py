"""What bringing in a changed model takes, whoever decides on it: `repository` for one process, `follower` for many."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from headrace.config import ModelConfig
from headrace.serving.aside import aside
from headrace.serving.heap import settle
from headrace.serving.host import ModelHost
from headrace.serving.served import ServedModel

log = logging.getLogger("headrace.serving")

# A request whose body takes longer than this to arrive may find the model it was for closed.
RETIRE_S_MAX = 60.0


def tried_first(host: ModelHost, config: ModelConfig, opened: Mapping[int, ServedModel]) -> bool:
    """Whether what was opened has to prove itself: there is something that serves, and that would change."""
    return (
        config.settings.rollout.mode != "replace"
        and bool(host.versions(config.name))
        and opened[max(opened)] is not host.find(config.name)
    )


def changes(host: ModelHost, name: str, opened: Mapping[int, ServedModel]) -> bool:
    """Whether what was opened is anything but what serves already."""
    return {str(version): one for version, one in opened.items()} != {
        version: host.find(name, version) for version in host.versions(name)
    }


async def end_trial(host: ModelHost, name: str, opened: Mapping[int, ServedModel]) -> list[ServedModel]:
    """Gives up what was opened to become a model's next version, on trial or not yet; returns it for `retire`."""
    trial = host.trial(name)
    leaving = host.give_up(name, dict(opened))
    if trial is not None:
        await trial.close()
    return leaving


async def take_over(host: ModelHost, config: ModelConfig, opened: Mapping[int, ServedModel]) -> list[ServedModel]:
    """Lets what was opened take the name, and ends its trial; returns what it replaces, for `retire`."""
    trial = host.trial(config.name)
    leaving = host.swap(config, dict(opened))
    if trial is not None:
        await trial.close()
    return leaving


async def retire(host: ModelHost, models: Sequence[ServedModel]) -> None:
    """Closes versions that answer nobody new, on a thread that nobody waits for where the server ends first."""

    def work() -> None:
        try:
            host.retire(models, RETIRE_S_MAX)
        except Exception as error:
            log.error("could not close a version: %s", error)
        settle()

    if models:
        await aside("headrace-retire", work)
