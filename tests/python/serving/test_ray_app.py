"""Headrace on a real local Ray: deploy, infer, scale 1 -> 2 -> 1 -> 0 and back, lose nothing, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="the Ray extra is not installed")

import aiohttp
import tritonclient.grpc.aio
import tritonclient.http.aio
from ray._private import state as ray_state
from ray_fakes import FAKES, GROUPS, SERVICE_S, model

from headrace.config import AutoscalingConfig, DeployConfig, DeployedModel, HttpConfig
from headrace.deploy_file import load_deploy
from headrace.errors import ConfigError, ExecutionError
from headrace.serve import Deployment, build_app, deploy
from headrace.serving.autoscaling import METRIC_CAPACITY
from headrace.serving.front_shared import FRONT

pytestmark = pytest.mark.ray

TOKEN = "a-token-for-tests-only"


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    elastic = model("elastic", min_replicas=0, max_replicas=2, down_hold_s=2, idle_s=4)
    steps: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_ADMIN_TOKEN", TOKEN)
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"accel": 1}')
        deployed = deploy(DeployConfig(http=HttpConfig(port=0), models=[elastic]), progress=steps.append, **FAKES)
    assert "elastic is ready" in steps
    assert deployed.processes(), "the processes of our Ray must be found by their tag"
    yield deployed
    assert deployed.shutdown() == []
    assert deployed.processes() == []


def running(deployment: Deployment) -> int:
    return deployment.replicas()["elastic"].get("RUNNING", 0)


def wait_for(what: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


async def offer(
    url: str, rate: float, until: Callable[[], bool], timeout_s: float, name: str = "elastic"
) -> Counter[str]:
    """Sends requests at `rate` until `until()` is true; every one is answered before this returns."""
    answers: Counter[str] = Counter()

    async def one(session: aiohttp.ClientSession, value: float) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [value]}
        async with session.post(f"{url}/v2/models/{name}/infer", json={"inputs": [tensor]}) as response:
            body = await response.json()
            right = response.status == 200 and body["outputs"][0]["data"] == [2 * value]
            answers["ok" if right else f"{response.status}: {body}"] += 1

    async with aiohttp.ClientSession() as session:
        sent: list[asyncio.Task[None]] = []
        end = time.monotonic() + timeout_s
        while not await asyncio.to_thread(until):
            assert time.monotonic() < end, "it did not happen in time"
            burst = max(1, round(rate * 0.2))
            for _ in range(burst):
                sent.append(asyncio.create_task(one(session, float(len(sent)))))
                await asyncio.sleep(0.2 / burst)
        await asyncio.gather(*sent)
    answers["sent"] = len(sent)
    return answers


def test_the_server_routes_answer_beside_the_models(deployment: Deployment) -> None:
    async def get(path: str) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as session, session.get(deployment.url + path) as response:
            return response.status, await response.json()

    assert asyncio.run(get("/v2/health/live"))[0] == 200
    assert asyncio.run(get("/v2/health/ready"))[0] == 200
    assert asyncio.run(get("/v2"))[1]["name"] == "headrace"
    status, metadata = asyncio.run(get("/v2/models/elastic"))
    assert status == 200
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}]
    status, body = asyncio.run(get("/v2/models/elastic2"))
    assert status == 404
    assert body["error"].endswith("expected one of elastic")


def test_it_scales_up_down_to_zero_and_back_without_losing_a_request(deployment: Deployment) -> None:
    url = deployment.url

    def all_ok(answers: Counter[str]) -> bool:
        return answers["ok"] == answers["sent"] > 0 and len(answers) == 2

    wait_for(lambda: running(deployment) <= 1, 10)
    up = asyncio.run(offer(url, 45, lambda: running(deployment) == 2, 25))
    assert all_ok(up), up
    down = asyncio.run(offer(url, 5, lambda: running(deployment) == 1, 25))
    assert all_ok(down), down
    wait_for(lambda: running(deployment) == 0, 25)
    back = asyncio.run(offer(url, 5, lambda: running(deployment) == 1, 25))
    assert all_ok(back), back

    # The replicas that are gone are still in the books, and the books balance with what was sent.
    sent = sum(answers["sent"] for answers in (up, down, back))
    wait_for(lambda: sum(one.stats["ok"] for one in deployment.ledgers()["elastic"]) == sent, 5)
    replicas = deployment.ledgers()["elastic"]
    assert len(replicas) == 3
    assert [one.final for one in replicas].count(True) == 2
    assert sum(one.stats["accepted"] for one in replicas) == sent


def test_it_listens_where_it_is_told_and_nowhere_else(deployment: Deployment) -> None:
    import psutil

    told = {deployment.url.removeprefix("http://"), deployment.grpc}
    bound: set[str] = set()
    for pid in deployment.processes():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            here = [one.laddr for one in process.net_connections("inet") if one.status == "LISTEN"]
            everywhere = [one for one in here if one.ip in ("::", "0.0.0.0")]
            bound |= {f"{one.ip.removeprefix('::ffff:')}:{one.port}" for one in here if one not in everywhere}
            if "ServeReplica" in process.name():
                assert len(everywhere) <= 2, f"Ray's own two ports, not {everywhere}"
    assert bound == told


async def test_the_stock_clients_work_over_both_protocols(deployment: Deployment) -> None:
    x = np.array([1.5, -2, 3], np.float32)
    host = deployment.url.removeprefix("http://")
    answers: list[bytes] = []
    for module, where in ((tritonclient.http.aio, host), (tritonclient.grpc.aio, deployment.grpc)):
        async with module.InferenceServerClient(where) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            given = module.InferInput("x", [3], "FP32")
            given.set_data_from_numpy(x)
            answers.append((await client.infer("elastic", [given])).as_numpy("y").tobytes())
            assert await client.is_model_ready("elastic")
            with pytest.raises(module.InferenceServerException, match="got 'nobody', expected one of elastic"):
                await client.get_model_metadata("nobody")
            wrong = module.InferInput("x", [1, 3], "FP32")
            wrong.set_data_from_numpy(x[None])
            with pytest.raises(module.InferenceServerException, match="got 2 dims in shape"):
                await client.infer("elastic", [wrong])
            with pytest.raises(module.InferenceServerException, match="got no valid token"):
                await client.get_model_repository_index()
            headers = {"authorization": f"Bearer {TOKEN}"}
            index = await client.get_model_repository_index(headers=headers)
            listed = (
                index if isinstance(index, list) else [{"name": one.name, "state": one.state} for one in index.models]
            )
            assert [(one["name"], one["state"]) for one in listed] == [("elastic", "READY")]
            with pytest.raises(module.InferenceServerException, match="without its folder's path"):
                await client.load_model("elastic", headers=headers)
    assert answers == [(2 * x).tobytes()] * 2

    # All replicas count, those that are gone too.
    replicas = (await asyncio.to_thread(deployment.ledgers))["elastic"]
    wanted = sum(one.stats["ok"] for one in replicas)
    async with tritonclient.http.aio.InferenceServerClient(host) as client:
        own = (await client.get_inference_statistics("elastic"))["model_stats"]
        everything = (await client.get_inference_statistics())["model_stats"]
    async with tritonclient.grpc.aio.InferenceServerClient(deployment.grpc) as client:
        over_grpc = (await client.get_inference_statistics("elastic")).model_stats
    for one in (*own, *everything):
        assert one["name"] == "elastic"
        assert one["inference_stats"]["success"]["count"] >= wanted
    assert over_grpc[0].inference_stats.success.count >= wanted


async def test_a_call_that_is_cancelled_at_the_front_is_cancelled_in_the_replica(deployment: Deployment) -> None:
    def cancelled() -> float:
        return sum(one.stats["cancelled"] for one in deployment.ledgers()["elastic"])

    before = await asyncio.to_thread(cancelled)
    async with tritonclient.grpc.aio.InferenceServerClient(deployment.grpc) as client:
        given = tritonclient.grpc.aio.InferInput("x", [1], "FP32")
        given.set_data_from_numpy(np.ones(1, np.float32))
        many = [asyncio.ensure_future(client.infer("elastic", [given])) for _ in range(40)]
        await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
        for call in many:
            call.cancel()
        await asyncio.gather(*many, return_exceptions=True)
    await asyncio.to_thread(wait_for, lambda: cancelled() > before, 10)


def put(folder: Path, version: int, content: str = "a model", mode: str = "canary") -> None:
    """A version of a model, as the fakes understand it."""
    path = folder / str(version) / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    trial = "share = 0.5\nmin_requests = 10\nmin_s = 0\nslower_max = 100\n"
    (folder / "headrace.toml").write_text(f'[rollout]\nmode = "{mode}"\n{trial}')


def test_groups_are_filled_in_their_order_and_change_together(deployment: Deployment, tmp_path: Path) -> None:
    """One plain replica, which does 40 requests per second, and one that needs what a node has only one of."""

    def bring(version: int, content: str = "a model") -> None:
        put(tmp_path / "mixed", version, content)
        (tmp_path / "app.yaml").write_text(GROUPS)
        one = load_deploy(tmp_path / "app.yaml")
        models = [model("elastic", min_replicas=0, max_replicas=2), *one.models]
        deployment.update(DeployConfig(http=one.http, models=models))

    def rollout() -> dict[str, Any]:
        return deployment.rollouts()["mixed"]

    def versions() -> dict[str, set[str]]:
        """Of each group whose replica is there, what it opened."""
        here = [one for one in deployment.ledgers()["mixed"] if not one.final]
        return {one.group: {entry["version"] for entry in one.statistics} for one in here}

    bring(1)

    def answered() -> Counter[str]:
        counts = Counter[str]()
        for one in deployment.ledgers()["mixed"]:
            counts[one.group] += int(one.stats["ok"])
        return counts

    # A report says how much each can do: that of a Batcher which has run something.
    wait_for(lambda: set(answered()) == {"plain", "accelerated"}, 20)
    assert deployment.replicas()["mixed"] == {"RUNNING": 2}
    little = asyncio.run(offer(deployment.url, 20, lambda: answered()["plain"] >= 20, 10, "mixed"))
    assert answered()["accelerated"] == 0
    much = asyncio.run(offer(deployment.url, 80, lambda: answered()["accelerated"] >= 20, 20, "mixed"))
    for answers in (little, much):
        assert answers["ok"] == answers["sent"]
        assert len(answers) == 2
    assert answered()["plain"] > answered()["accelerated"]
    assert sorted(index["name"] for index in asyncio.run(_index(deployment.url))) == ["elastic", "mixed"]

    # A group that sleeps has no say in what comes meanwhile, and wakes up with it.
    wait_for(lambda: deployment.replicas()["mixed"] == {"RUNNING": 1} and set(versions()) == {"plain"}, 20)
    bring(2)
    tried = asyncio.run(offer(deployment.url, 30, lambda: "candidate" not in rollout(), 20, "mixed"))
    assert rollout()["running"] == "2"
    before = answered()["accelerated"]
    woken = asyncio.run(offer(deployment.url, 80, lambda: answered()["accelerated"] > before, 20, "mixed"))
    for answers in (tried, woken):
        assert answers["ok"] == answers["sent"], answers
    assert versions()["accelerated"] == {"2"}
    # What fails in one is rolled back in both.
    bring(3, "failing")
    asyncio.run(offer(deployment.url, 80, lambda: "candidate" not in rollout(), 20, "mixed"))
    assert (rollout()["running"], rollout()["rolled_back"]["version"]) == ("2", "3")
    assert "failures" in rollout()["rolled_back"]["reason"]
    after = asyncio.run(offer(deployment.url, 80, lambda: set(versions()) == {"plain", "accelerated"}, 5, "mixed"))
    assert after["ok"] == after["sent"], after


async def test_versions_change_in_place_under_load(deployment: Deployment, tmp_path: Path) -> None:
    def deploy_file(cpus: float) -> DeployConfig:
        file = tmp_path / "app.yaml"
        scaling = f"{{min_replicas: 2, max_replicas: 2, cpus_per_replica: {cpus}}}"
        file.write_text(f"models: [{{name: tickets, path: tickets, autoscaling: {scaling}}}]\nhttp: {{port: 0}}")
        one = load_deploy(file)
        return DeployConfig(http=one.http, models=[model("elastic", min_replicas=0, max_replicas=2), *one.models])

    def rollout() -> dict[str, Any]:
        return deployment.rollouts()["tickets"]

    def pids() -> set[int]:
        return {one.pid for one in deployment.ledgers()["tickets"] if not one.final}

    async def bring(version: int, content: str | None, how: Callable[[], Any]) -> dict[str, Any]:
        if content is not None:
            put(tmp_path / "tickets", version, content)
        await how()
        end = time.monotonic() + 20
        while "candidate" in (state := await asyncio.to_thread(rollout)):
            assert time.monotonic() < end, state
            await asyncio.sleep(0.1)
        return state

    present = 0.1

    async def by_update(cpus: float | None = None) -> None:
        nonlocal present
        present = cpus or present
        await asyncio.to_thread(deployment.update, deploy_file(present))

    async def by_repository() -> None:
        url = deployment.url + "/v2/repository/models/tickets/load"
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession() as session, session.post(url, headers=headers) as response:
            # 400 says that it was rolled back before the answer left.
            assert response.status in (200, 400), await response.text()

    put(tmp_path / "tickets", 1)
    await by_update()
    await asyncio.to_thread(wait_for, lambda: len(pids()) == 2, 15)
    before = await asyncio.to_thread(pids)
    stop, answers = asyncio.Event(), Counter[str]()
    load = asyncio.create_task(_ask_until(stop, f"{deployment.url}/v2/models/tickets/infer", answers))
    assert (await bring(2, "a model", by_update))["running"] == "2"
    rolled_back = await bring(3, "failing", by_repository)
    assert (rolled_back["running"], rolled_back["rolled_back"]["version"]) == ("2", "3")
    assert await asyncio.to_thread(pids) == before, "the replicas must have stayed"
    index = await _index(deployment.url)
    assert {(one["name"], one["version"]): one["state"] for one in index if one["name"] == "tickets"} == {
        ("tickets", "2"): "READY",
        ("tickets", "3"): "UNAVAILABLE",
    }
    stats = await asyncio.to_thread(_get, f"{deployment.url}/v2/models/tickets/versions/3/stats")
    queued = stats["model_stats"][0]["inference_stats"]["queue"]["count"]
    assert queued > 0, "statistics know what was rolled back"
    await asyncio.sleep(1)
    # Other CPUs are another kind of replica: those that start open what runs, not what was rolled back.
    await by_update(0.2)
    stop.set()
    await load
    assert not await asyncio.to_thread(pids) & before
    assert set(answers) <= {"1", "2"}, answers
    assert answers["2"] > 50

    # A front that starts again knows the models that came after it, and what was decided on their versions.
    (front,) = (one for one in ray_state.actors(actor_state_name="ALIVE").values() if FRONT in one["Name"])
    os.kill(front["Pid"], signal.SIGKILL)
    await asyncio.to_thread(wait_for, lambda: _answers(deployment.url, "tickets"), 20)
    assert await asyncio.to_thread(rollout) == (await bring(3, None, by_update)) | {"running": "2"}
    assert (await asyncio.to_thread(rollout))["rolled_back"]["version"] == "3"


def _answers(url: str, name: str) -> bool:
    try:
        return bool(_get(f"{url}/v2/models/{name}"))
    except OSError:
        return False


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as response:
        return json.load(response)


async def _ask_until(stop: asyncio.Event, url: str, answers: Counter[str]) -> None:
    """Counts the versions that answered, and whatever else came."""

    async def caller() -> None:
        while not stop.is_set():
            async with session.post(url, json={"inputs": [tensor]}) as response:
                body = await response.json()
                right = response.status == 200 and body["outputs"][0]["data"] == [6.0]
                answers[body["model_version"] if right else f"{response.status}: {body}"] += 1

    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [3.0]}
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(caller() for _ in range(4)))


async def _index(url: str) -> list[dict[str, str]]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v2/repository/index", headers=headers) as answer,
    ):
        found: list[dict[str, str]] = await answer.json()
        return found


async def test_a_model_is_unloaded_and_loaded_again(deployment: Deployment) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    host = deployment.url.removeprefix("http://")
    statuses = Counter[int]()

    async def one() -> None:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
        async with session.post(f"{deployment.url}/v2/models/elastic/infer", json=body) as response:
            statuses[response.status] += 1

    def books() -> Counter[str]:
        replicas = deployment.ledgers()["elastic"]
        assert all(replica.final for replica in replicas) == ("elastic" not in deployment.replicas())
        return sum((Counter[str](replica.stats) for replica in replicas), Counter[str]())

    async with aiohttp.ClientSession() as session, tritonclient.http.aio.InferenceServerClient(host) as client:
        await one()
        before = await asyncio.to_thread(books)
        sent = [asyncio.create_task(one()) for _ in range(20)]
        await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
        await client.unload_model("elastic", headers=headers)
        await asyncio.gather(*sent)
        assert set(statuses) <= {200, 404}, "what was accepted is answered, what came later is refused"
        assert "elastic" not in await asyncio.to_thread(deployment.replicas)
        after = await asyncio.to_thread(books)
        assert after["accepted"] == after["ok"] + after["failed"] + after["cancelled"]
        assert after["ok"] - before["ok"] >= statuses[200] - 1 > 0
        assert not await client.is_model_ready("elastic")
        listed = {one["name"]: (one["state"], one["reason"]) for one in await _index(deployment.url)}
        assert listed["elastic"] == ("UNAVAILABLE", "unloaded")
        await client.load_model("elastic", headers=headers)
        assert await client.is_model_ready("elastic")
        await one()
    assert statuses[404] < 20
    assert await asyncio.to_thread(running, deployment) == 1


async def test_a_replica_that_is_killed_fails_only_what_it_had_and_comes_back(deployment: Deployment) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
    async with aiohttp.ClientSession() as session:

        async def one() -> tuple[int, str | None, float]:
            started = time.monotonic()
            async with session.post(f"{deployment.url}/v2/models/elastic/infer", json=body) as response:
                await response.read()
                return response.status, response.headers.get("Retry-After"), time.monotonic() - started

        assert (await one())[0] == 200
        victim = next(one for one in (await asyncio.to_thread(deployment.ledgers))["elastic"] if not one.final)
        sent = [asyncio.create_task(one()) for _ in range(20)]
        await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
        killed = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        ended = await asyncio.gather(*sent)
        assert time.monotonic() - killed < 2
        lost = [answer for answer in ended if answer[0] != 200]
        assert lost
        assert {answer[:2] for answer in lost} == {(503, "1")}
        # The next waits for the replica that takes its place.
        assert (await one())[0] == 200
        assert time.monotonic() - killed < 20


def test_an_application_runs_without_our_deploy(deployment: Deployment) -> None:
    from ray import serve

    handle = serve.run(build_app(model("lone"), **FAKES), name="lone", route_prefix="/v2/models/lone")
    try:
        load = asyncio.run(_stats(handle))
        assert load[METRIC_CAPACITY] == pytest.approx(1 / SERVICE_S)
    finally:
        serve.delete("lone")


async def _stats(handle: Any) -> dict[str, float]:
    return await handle.record_autoscaling_stats.remote()


def test_a_model_that_does_not_load_says_why(deployment: Deployment) -> None:
    # Joins the running Ray, so it must leave it and the other model alone.
    broken = DeployConfig(http=HttpConfig(port=0), models=[model("broken")])
    with pytest.raises(ExecutionError, match="expected a model"):
        deploy(broken, timeout_s=60, **FAKES)
    assert "elastic" in deployment.replicas()
    assert deployment.ledgers()["elastic"], "the front must have kept its books"


def test_models_that_do_not_fit_are_refused_at_once(deployment: Deployment) -> None:
    wide = model("wide")
    wide = DeployedModel(model=wide.model, autoscaling=AutoscalingConfig(cpus_per_replica=100_000))
    with pytest.raises(ConfigError, match="got 100000 CPUs"):
        deploy(DeployConfig(http=HttpConfig(), models=[wide]), **FAKES)
