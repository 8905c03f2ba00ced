"""``headrace deploy`` in front of a deployment that fails it: what runs goes on running."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

pytest.importorskip("ray", reason="the Ray extra is not installed")

import headrace.serve
from headrace.cli import deploy as cli


class FakeDeployment:
    """Fails whatever it is asked for, until it has been asked often enough; then the process is told to stop."""

    url, grpc = "http://nowhere", "nowhere"

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.updates = 0
        self.stopped = False

    def replicas(self) -> dict[str, dict[str, int]]:
        self.looks -= 1
        if not self.looks:
            os.kill(os.getpid(), signal.SIGTERM)
            return {"tiny": {"RUNNING": 1}}
        raise RuntimeError("got no controller")

    def rollouts(self) -> dict[str, Any]:
        raise TimeoutError

    def update(self, config: Any, progress: Any) -> None:
        self.updates += 1
        raise TimeoutError("got no front")

    def shutdown(self) -> list[int]:
        self.stopped = True
        return []


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cli, "STATUS_EVERY_S", 0.001)
    monkeypatch.setattr(cli, "_read", lambda *args: None)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run(monkeypatch: pytest.MonkeyPatch, deployment: FakeDeployment) -> tuple[Any, list[dict[str, Any]]]:
    def deploy(config: Any, **how: Any) -> FakeDeployment:
        assert callable(signal.getsignal(signal.SIGHUP)), "a SIGHUP would end the process, and leave Ray behind"
        os.kill(os.getpid(), signal.SIGHUP)
        return deployment

    monkeypatch.setattr(headrace.serve, "deploy", deploy, raising=False)
    done = CliRunner().invoke(cli.command, [str(Path("app.yaml")), "--json"])
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def test_an_update_and_a_look_that_fail_take_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = FakeDeployment(looks=5)
    done, events = run(monkeypatch, deployment)
    assert done.exit_code == 0, done.output
    assert deployment.updates == 1, "the SIGHUP of the start must be heeded"
    assert [event["value"] for event in events if event["event"] == "error"] == [
        "update: TimeoutError: got no front",
        "status: RuntimeError: got no controller",
    ]
    assert {"event": "replicas", "value": {"tiny": {"RUNNING": 1}}} in events
    assert deployment.stopped


def test_a_difference_without_bound_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    cli._say_json("rollout", {"candidate": {"worst": math.inf}})
    assert msgspec.json.decode(capsys.readouterr().out) == {"event": "rollout", "value": {"candidate": {"worst": None}}}


def test_a_ray_that_never_answers_again_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = FakeDeployment(looks=cli.LOOKS_LOST_MAX + 1)
    done, _ = run(monkeypatch, deployment)
    assert isinstance(done.exception, RuntimeError)
    assert deployment.stopped


def test_an_end_does_not_wait_for_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(FakeDeployment):
        def update(self, config: Any, progress: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the update went on")

        def shutdown(self) -> list[int]:
            os.kill(os.getpid(), signal.SIGTERM)  # who is impatient tells it again, and must not stop the end
            return super().shutdown()

    deployment = Hanging(looks=2)
    done, events = run(monkeypatch, deployment)
    assert done.exit_code == 0, done.output
    assert [event["event"] for event in events] == ["grpc", "ready", "progress", "stopped"]
    assert deployment.stopped
