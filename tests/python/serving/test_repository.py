"""Loading and unloading models while others are served, over both protocols, and the statistics of what is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.aio as triton
from serving_fakes import DOUBLER, MIRROR, Answer, Served, acall, make_config, make_served, rows

from headrace.config import ModelConfig, ModelSettings, load_repository
from headrace.errors import ConfigError
from headrace.serving import grpc_server, repository
from headrace.serving.grpc_app import GrpcApp
from headrace.serving.repository import read_token
from headrace.serving.statistics import merged

TOKEN = "correct horse battery".replace(" ", "-")
BEARER = {"authorization": f"Bearer {TOKEN}"}


def put(root: Path, name: str, version: int, content: bytes = b"a model") -> None:
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)


def serve(root: Path) -> Served:
    return make_served(*load_repository(root), repository=root, admin_token=TOKEN)


@contextlib.asynccontextmanager
async def stock_client(served: Served) -> AsyncIterator[Any]:
    listener = await grpc_server.start(GrpcApp(served.app.service), "127.0.0.1", 0, 1 << 20)
    try:
        async with triton.InferenceServerClient(listener.address) as client:
            yield client
    finally:
        await listener.server.stop(5)


async def post(served: Served, path: str, body: bytes = b"", headers: dict[str, str] = BEARER) -> Answer:
    return await acall(served.app, "POST", "/v2/repository/" + path, body, headers)


def state_of(index: list[dict[str, str]]) -> dict[tuple[str, str], str]:
    return {(one["name"], one["version"]): one["state"] for one in index}


@pytest.mark.parametrize("path", ["index", "models/doubler/load", "models/doubler/unload", "nonsense"])
async def test_the_repository_is_closed_to_those_without_its_token(tmp_path: Path, path: str) -> None:
    put(tmp_path, "doubler", 1)
    served = serve(tmp_path)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": "Bearer grün"}):
        answer = await post(served, path, headers=headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert TOKEN not in answer.error
    tokenless = make_served(*load_repository(tmp_path), repository=tmp_path)
    answer = await post(tokenless, path)
    assert answer.status == 403
    assert "--admin-token-file" in answer.error
    assert served.host.find("doubler").version == "1"
    async with stock_client(served) as client, stock_client(tokenless) as other:
        for who, status in ((client, "UNAUTHENTICATED"), (other, "PERMISSION_DENIED")):
            for ask in (who.get_model_repository_index(), who.load_model("doubler"), who.unload_model("doubler")):
                with pytest.raises(triton.InferenceServerException) as caught:
                    await ask
                assert caught.value.status() == f"StatusCode.{status}"


async def test_the_stock_client_loads_a_new_version_and_unloads_the_model(tmp_path: Path) -> None:
    put(tmp_path, "doubler", 1)
    served = serve(tmp_path)
    put(tmp_path, "doubler", 2)
    put(tmp_path, "other", 1)
    async with stock_client(served) as client:
        index = await client.get_model_repository_index(headers=BEARER, as_json=True)
        assert {(one["name"], one.get("version", "")): one["state"] for one in index["models"]} == {
            ("doubler", "1"): "READY",
            ("other", ""): "UNAVAILABLE",
        }
        await client.load_model("doubler", headers=BEARER)
        await client.load_model("other", headers=BEARER)
        assert not await _is_there(client, "doubler", "1")
        assert await client.is_model_ready("doubler", "2")
        assert await client.is_model_ready("other")
        assert served.engines[0].closed
        await client.unload_model("doubler", headers=BEARER)
        assert not await _is_there(client, "doubler")
        assert await client.is_server_ready()
    index = (await post(served, "index")).json
    assert index == [
        {"name": "doubler", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"},
        {"name": "other", "version": "1", "state": "READY", "reason": ""},
    ]
    assert [one["name"] for one in (await post(served, "index", b'{"ready": true}')).json] == ["other"]
    assert (await post(served, "models/doubler/load")).status == 200
    assert (await acall(served.app, "POST", "/v2/models/doubler/infer", rows(1, 2, 3))).status == 200


async def _is_there(client: Any, name: str, version: str = "") -> bool:
    try:
        return bool(await client.is_model_ready(name, version))
    except triton.InferenceServerException as error:
        if error.status() != "StatusCode.NOT_FOUND":
            raise
        return False


async def test_settings_are_read_again_and_what_did_not_change_stays(tmp_path: Path) -> None:
    put(tmp_path, "doubler", 1)
    served = serve(tmp_path)
    assert (await post(served, "models/doubler/load")).status == 200
    assert len(served.engines) == 1
    (tmp_path / "doubler/headrace.toml").write_text("max_queue = 3")
    assert (await post(served, "models/doubler/load")).status == 200
    assert served.host.find("doubler").settings.max_queue == 3
    assert [engine.closed for engine in served.engines] == [True, False]


async def test_a_load_that_fails_leaves_what_serves_and_says_why(tmp_path: Path) -> None:
    put(tmp_path, "doubler", 1)
    served = serve(tmp_path)
    put(tmp_path, "doubler", 2, b"broken")
    answer = await post(served, "models/doubler/load")
    assert answer.status == 400
    assert "got something broken" in answer.error
    assert (await acall(served.app, "POST", "/v2/models/doubler/infer", rows(1, 2, 3))).json["model_version"] == "1"
    (only,) = (await post(served, "index")).json
    assert (only["version"], only["state"]) == ("1", "READY")
    assert "InvalidModel" in only["reason"]
    put(tmp_path, "doubler", 2)
    assert (await post(served, "models/doubler/load")).status == 200
    assert [one["reason"] for one in (await post(served, "index")).json] == [""]


async def test_requests_accepted_before_a_swap_are_answered_by_what_accepted_them(tmp_path: Path) -> None:
    put(tmp_path, "doubler", 1)
    served = serve(tmp_path)
    served.engines[0].gate.clear()
    waiting = [
        asyncio.create_task(acall(served.app, "POST", "/v2/models/doubler/infer", rows(1, 2, 3))) for _ in range(5)
    ]
    while served.batchers[0].ledger["queued"] < 5:
        await asyncio.sleep(0.005)
    put(tmp_path, "doubler", 2)
    loading = asyncio.create_task(post(served, "models/doubler/load"))
    while served.host.find("doubler").version == "1":
        await asyncio.sleep(0.005)
    after = await acall(served.app, "POST", "/v2/models/doubler/infer", rows(1, 2, 3))
    assert after.json["model_version"] == "2"
    served.engines[0].gate.set()
    answers = await asyncio.gather(*waiting)
    assert [answer.json["model_version"] for answer in answers] == ["1"] * 5
    assert (await loading).status == 200


async def test_a_request_whose_body_arrives_during_a_swap_is_answered(tmp_path: Path) -> None:
    put(tmp_path, "doubler", 1)
    served = serve(tmp_path)
    body, arrived, sent = rows(1, 2, 3), asyncio.Event(), []

    async def receive() -> dict[str, Any]:
        await arrived.wait()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v2/models/doubler/infer", "headers": []}
    slow = asyncio.create_task(served.app(scope, receive, send))
    put(tmp_path, "doubler", 2)
    loading = asyncio.create_task(post(served, "models/doubler/load"))
    while served.host.find("doubler").version == "1":
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert not served.engines[0].closed
    arrived.set()
    await slow
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"])["model_version"] == "1"
    assert (await loading).status == 200
    assert served.engines[0].closed


@pytest.mark.parametrize("name", ["..", ".", "../other", "%2e%2e", "", "nobody", ".hidden", "a/b"])
async def test_no_name_leads_out_of_the_repository(tmp_path: Path, name: str) -> None:
    put(tmp_path / "models", "doubler", 1)
    put(tmp_path, "other", 1)
    put(tmp_path / "models", ".hidden", 1)
    served = serve(tmp_path / "models")
    assert (await post(served, f"models/{name}/load")).status == 404
    async with stock_client(served) as client:
        with pytest.raises(triton.InferenceServerException) as caught:
            await client.load_model(name, headers=BEARER)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
    assert served.host.names == ["doubler"]


async def test_what_a_load_may_not_bring_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "doubler", 1)
    served = serve(tmp_path)
    assert (await post(served, "models/doubler/load", b'{"parameters": {"config": "{}"}}')).status == 501
    assert (await post(served, "models/doubler/load", b'{"parameters": 3}')).status == 400
    assert (await post(served, "models/doubler/load", b"[" * 100_000)).status == 400
    assert (await post(served, "models/doubler/load", b" " * (2 << 20))).status == 413
    assert (await acall(served.app, "GET", "/v2/repository/index", headers=BEARER)).status == 405
    async with stock_client(served) as client:
        with pytest.raises(triton.InferenceServerException, match="got 'config', expected none"):
            await client.load_model("doubler", headers=BEARER, config="{}")


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token", "another-token-that-is-long") == TOKEN
    assert read_token(None, TOKEN) == TOKEN
    assert read_token(None, None) is None
    for wrong in ("", "short", "sixteen or more, but with spaces"):
        with pytest.raises(ConfigError, match="expected a token of 16"):
            read_token(None, wrong)
    with pytest.raises(ConfigError, match="expected a file with a token"):
        read_token(tmp_path / "nothing", None)


async def test_statistics_count_what_was_asked_alike_over_both_protocols() -> None:
    served = make_served(make_config("doubler", versions=(1, 2)))
    for values in ((1, 2, 3), (4, 5, 6), (666, 0, 0), (1, 2)):
        await acall(served.app, "POST", "/v2/models/doubler/infer", rows(*values, shape=[1, 3]))
    over_rest = (await acall(served.app, "GET", "/v2/models/doubler/versions/2/stats")).json["model_stats"]
    async with stock_client(served) as client:
        over_grpc = await client.get_inference_statistics("doubler", "2", as_json=True)
        everything = await client.get_inference_statistics()
        config = (await client.get_model_config("doubler")).config
        with pytest.raises(triton.InferenceServerException, match="got version '3'"):
            await client.get_inference_statistics("doubler", "3")
    (one,) = over_rest
    counts = {key: value["count"] for key, value in one["inference_stats"].items()}
    assert counts == {
        "success": 2, "fail": 1, "queue": 3, "compute_input": 3, "compute_infer": 3, "compute_output": 2,
        "cache_hit": 0, "cache_miss": 0,
    }  # fmt: skip
    assert one["inference_stats"]["success"]["ns"] > 0
    assert (one["inference_count"], one["execution_count"]) == (3, 3)
    assert one["batch_stats"][0]["compute_infer"] == {"count": 3, "ns": 9_000_000}
    assert one["last_inference"] > 1_600_000_000_000
    (same,) = over_grpc["model_stats"]
    assert json.loads(json.dumps(same)).keys() <= one.keys()
    assert int(same["inference_stats"]["compute_infer"]["ns"]) == one["inference_stats"]["compute_infer"]["ns"]
    assert int(same["inference_count"]) == 3
    assert [(stats.name, stats.version) for stats in everything.model_stats] == [("doubler", "1"), ("doubler", "2")]
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("doubler", 0, [-1, 3])
    rest_config = (await acall(served.app, "GET", "/v2/models/doubler/config")).json
    assert rest_config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 3]}]
    assert config.output[0].data_type == config.input[0].data_type == 11


async def test_statistics_of_everything_and_of_what_is_not_there() -> None:
    served = make_served(make_config("a"), make_config("b", versions=(1, 2)))
    for path, count in (("/v2/models/stats", 3), ("/v2/models/b/stats", 2), ("/v2/models/a/versions/1/stats", 1)):
        assert len((await acall(served.app, "GET", path)).json["model_stats"]) == count
    for path in ("/v2/models/c/stats", "/v2/models/a/versions/2/stats", "/v2/models/c/config"):
        assert (await acall(served.app, "GET", path)).status == 404


async def test_the_statistics_of_replicas_add_up() -> None:
    served = make_served(make_config("doubler", versions=(1, 2)))
    for _ in range(2):
        await acall(served.app, "POST", "/v2/models/doubler/infer", rows(1, 2, 3))
    one = (await served.app.service.statistics("doubler", None))["model_stats"]
    other = [{**entry, "batch_stats": [], "last_inference": 1} for entry in one]
    first, second = merged([*one, *other])
    assert (first["version"], second["version"]) == ("1", "2")
    assert second["inference_stats"]["success"]["count"] == second["inference_count"] == 4
    assert second["batch_stats"] == one[1]["batch_stats"]
    assert second["last_inference"] == one[1]["last_inference"]
    (alone, both) = merged([one[0]]) + merged([one[1], one[1]])
    assert alone == one[0]
    assert both["batch_stats"][0]["batch_size"] == 1
    assert both["batch_stats"][0]["compute_infer"]["count"] == 4


async def infer(served: Served, count: int) -> list[str]:
    """The versions that answered so many requests, all of which must be answered."""
    answers = [await acall(served.app, "POST", "/v2/models/doubler/infer", rows(1, 2, 3)) for _ in range(count)]
    assert {answer.status for answer in answers} == {200}
    return [answer.json["model_version"] for answer in answers]


# The settings of a trial that is soon over.
QUICK = "min_requests = 10\nmin_s = 0\nslower_max = 1000"


async def begin_trial(root: Path, settings: str) -> Served:
    """A model with version 2 on trial beside version 1."""
    put(root, "doubler", 1)
    (root / "doubler/headrace.toml").write_text("[rollout]\n" + settings)
    served = serve(root)
    put(root, "doubler", 2)
    assert (await post(served, "models/doubler/load")).status == 200
    return served


async def until(served: Served, state: str) -> str:
    """Sends requests until the index has version 2 in a state; returns the reason that goes with it."""
    for _ in range(500):
        index = (await post(served, "index")).json
        for one in index:
            if (one["version"] in ("2", "1")) and state in one["state"] + " " + one["reason"]:
                return str(one["reason"])
        await infer(served, 1)
        await asyncio.sleep(0.01)
    raise AssertionError(f"never became {state}: {index}")


async def test_a_canary_that_does_well_takes_over(tmp_path: Path) -> None:
    served = await begin_trial(
        tmp_path, 'mode = "canary"\nshare = 0.5\nmin_requests = 10\nmin_s = 0\nslower_max = 1000'
    )
    assert sorted(await infer(served, 6)) == ["1"] * 3 + ["2"] * 3
    assert (await acall(served.app, "GET", "/v2/models/doubler")).json["versions"] == ["1"]
    index = (await post(served, "index")).json
    assert [(one["version"], one["state"]) for one in index] == [("1", "READY"), ("2", "LOADING")]
    assert "on trial as a canary with 50% of the requests: 3 of 10 requests" in index[1]["reason"]
    while len(await infer(served, 1)) and "1" in await infer(served, 4):
        await asyncio.sleep(0.01)
    assert (await post(served, "index")).json == [{"name": "doubler", "version": "2", "state": "READY", "reason": ""}]
    await asyncio.sleep(0.05)
    assert [engine.closed for engine in served.engines] == [True, False]


async def test_a_canary_that_fails_is_rolled_back_and_nobody_notices(tmp_path: Path) -> None:
    served = await begin_trial(tmp_path, 'mode = "canary"\nshare = 0.5')
    served.engines[1].broken = True
    assert set(await infer(served, 20)) == {"1"}
    reason = await until(served, "rolled back")
    assert "version 2 was rolled back: failures: got" in reason
    assert [engine.closed for engine in served.engines] == [False, True]
    assert set(await infer(served, 4)) == {"1"}


@contextlib.asynccontextmanager
async def load_under_way(root: Path, served: Served, name: str) -> AsyncIterator[None]:
    """Another load that does not end meanwhile."""
    go, opener = threading.Event(), served.host._loader.engine_opener

    def slow(path: Path, settings: ModelSettings) -> Any:
        go.wait(20)
        return opener(path, settings)

    served.host._loader.engine_opener = slow
    put(root, name, 3)
    loading = asyncio.create_task(post(served, f"models/{name}/load"))
    await asyncio.sleep(0.05)
    try:
        yield
        assert not loading.done()
    finally:
        served.host._loader.engine_opener = opener
        go.set()
        await loading


@pytest.mark.parametrize("other", ["doubler", "another"])
async def test_a_bad_candidate_is_rolled_back_while_something_is_loaded(tmp_path: Path, other: str) -> None:
    served = await begin_trial(tmp_path, 'mode = "canary"\nshare = 0.5')
    async with load_under_way(tmp_path, served, other):
        served.engines[1].broken = True
        assert "version 2 was rolled back: failures: got" in await until(served, "rolled back")
        assert served.host.trial("doubler") is None


async def test_a_candidate_takes_over_while_another_model_is_loaded(tmp_path: Path) -> None:
    served = await begin_trial(tmp_path, f'mode = "canary"\nshare = 0.5\n{QUICK}')
    async with load_under_way(tmp_path, served, "another"):
        while "1" in await infer(served, 4):
            await asyncio.sleep(0.01)


async def test_a_candidate_is_judged_until_the_moment_it_takes_over(tmp_path: Path) -> None:
    served = await begin_trial(tmp_path, f'mode = "canary"\nshare = 0.5\n{QUICK}')
    async with load_under_way(tmp_path, served, "doubler"):
        await infer(served, 24)
        trial = served.host.trial("doubler")
        assert trial is not None
        assert trial.judge().action == "promote"
        await asyncio.sleep(0.2)
        assert served.host.trial("doubler") is trial, (
            "what is loaded beside it would be compared with the wrong version"
        )
        served.engines[1].broken = True
        assert "version 2 was rolled back" in await until(served, "rolled back")
    assert set(await infer(served, 4)) == {"1", "3"}


async def test_a_load_that_fails_leaves_what_is_on_trial(tmp_path: Path) -> None:
    served = await begin_trial(tmp_path, 'mode = "canary"\nshare = 0.5')
    trial = served.host.trial("doubler")
    put(tmp_path, "doubler", 3)
    for signature, content in ((MIRROR, b"a model"), (DOUBLER, b"broken")):
        put(tmp_path, "doubler", 3, content)
        served.engines[0].signature, before = signature, len(served.engines)
        assert (await post(served, "models/doubler/load")).status == 400
        assert served.host.trial("doubler") is trial
        assert all(engine.closed for engine in served.engines[before:])
    assert set(await infer(served, 4)) == {"1", "2"}


async def test_what_is_on_trial_is_not_tried_anew_when_it_is_loaded_again(tmp_path: Path) -> None:
    served = await begin_trial(tmp_path, 'mode = "canary"\nshare = 0.5')
    trial = served.host.trial("doubler")
    (tmp_path / "doubler/2/plan.headrace.parity").write_text("noted while it was loaded")
    assert (await post(served, "models/doubler/load")).status == 200
    assert served.host.trial("doubler") is trial
    assert len(served.engines) == 2
    (tmp_path / "doubler/2/weights").mkdir()
    (tmp_path / "doubler/2/weights/w.bin").write_bytes(b"new")
    assert (await post(served, "models/doubler/load")).status == 200
    assert served.host.trial("doubler") is not trial


async def test_a_candidate_that_is_rolled_back_while_it_is_loaded_again_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await begin_trial(tmp_path, 'mode = "canary"\nshare = 0.5')
    go, compare = threading.Event(), repository.made_from

    def slow(config: ModelConfig, opened: Any) -> bool:
        go.wait(20)
        return compare(config, opened)

    monkeypatch.setattr(repository, "made_from", slow)
    loading = asyncio.create_task(post(served, "models/doubler/load"))
    await asyncio.sleep(0.05)
    served.engines[1].broken = True
    assert "version 2 was rolled back" in await until(served, "rolled back")
    go.set()
    answer = await loading
    assert (answer.status, "version 2 was rolled back: failures" in answer.error) == (400, True)
    assert "version 2 was rolled back" in (await post(served, "index")).json[0]["reason"], "it must not be forgotten"


@pytest.mark.parametrize("mode", ["canary", "shadow"])
async def test_a_candidate_that_hangs_does_not_make_the_server_dead(tmp_path: Path, mode: str) -> None:
    served = await begin_trial(tmp_path, f'mode = "{mode}"\nshare = 0.5')

    async def live() -> int:
        return (await acall(served.app, "GET", "/v2/health/live")).status

    served.batchers[1].running_s = 100.0
    assert await live() == 200
    assert served.host.hanging() == ["doubler/2"]
    assert "stuck in a batch" in (await post(served, "index")).json[1]["reason"]
    candidate = served.host.trial("doubler").candidate
    leaving = served.host.give_up("doubler", {2: candidate})
    assert await live() == 200
    assert [one["state"] for one in (await post(served, "index")).json] == ["READY", "UNAVAILABLE"]
    candidate.users = 1  # as one that had answered would have
    assert await live() == 503
    candidate.users = 0
    served.batchers[0].running_s = 100.0
    assert await live() == 503
    await asyncio.to_thread(served.host.retire, leaving)


async def test_a_shadow_is_compared_and_rolled_back_when_it_differs(tmp_path: Path) -> None:
    served = await begin_trial(tmp_path, 'mode = "shadow"\nshare = 1\ndivergent_max = 0.1')
    served.engines[1].factor = 3
    assert set(await infer(served, 20)) == {"1"}
    reason = await until(served, "rolled back")
    assert "answers that differ by more than 0.02 (worst 0.5)" in reason
    assert set(await infer(served, 4)) == {"1"}


async def test_a_load_ends_the_trial_before_it(tmp_path: Path) -> None:
    served = await begin_trial(tmp_path, 'mode = "canary"\nshare = 0.5')
    assert "2" in await infer(served, 2)
    put(tmp_path, "doubler", 3)
    assert (await post(served, "models/doubler/load")).status == 200
    assert set(await infer(served, 4)) == {"1", "3"}
    assert [engine.closed for engine in served.engines] == [False, True, False]
    assert (await post(served, "models/doubler/unload")).status == 200
    assert all(engine.closed for engine in served.engines)


async def test_a_load_does_not_wait_for_a_candidate_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await begin_trial(tmp_path, 'mode = "canary"\nshare = 0.5')
    monkeypatch.setattr(repository, "CLOSES_S", 0.05)
    may = threading.Event()
    monkeypatch.setattr(served.host.trial("doubler").candidate, "close", may.wait)
    put(tmp_path, "doubler", 3)
    async with asyncio.timeout(10):
        assert (await post(served, "models/doubler/load")).status == 200
    assert "3" in await infer(served, 2)
    may.set()


async def test_an_opener_that_raises_what_no_future_takes_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await begin_trial(tmp_path, 'mode = "canary"')
    put(tmp_path, "doubler", 3)
    monkeypatch.setattr(served.host, "prepare", lambda *args, **how: next(iter(())))
    async with asyncio.timeout(10):
        assert (await post(served, "models/doubler/load")).status == 500


async def test_a_trial_ends_with_the_server(tmp_path: Path) -> None:
    served = await begin_trial(tmp_path, 'mode = "canary"')
    await asyncio.to_thread(served.host.close)
    assert all(engine.closed for engine in served.engines)


async def test_a_candidate_of_another_signature_is_refused_a_trial(tmp_path: Path) -> None:
    put(tmp_path, "doubler", 1)
    (tmp_path / "doubler/headrace.toml").write_text('[rollout]\nmode = "canary"')
    served = serve(tmp_path)
    served.engines[0].signature = MIRROR
    put(tmp_path, "doubler", 2)
    answer = await post(served, "models/doubler/load")
    assert answer.status == 400
    assert "got version 2 with other inputs or outputs than version 1" in answer.error
    assert [engine.closed for engine in served.engines] == [False, True]
    assert (await post(served, "index")).json[0]["state"] == "READY"


async def test_nothing_is_unloaded_while_the_server_starts(tmp_path: Path) -> None:
    put(tmp_path, "doubler", 1)
    served = make_served(*load_repository(tmp_path), repository=tmp_path, admin_token=TOKEN, load=False)
    answer = await post(served, "models/doubler/unload")
    assert answer.status == 503
    assert "got an unload while the server is starting" in answer.error


async def test_the_books_keep_what_versions_did_that_are_gone(tmp_path: Path) -> None:
    put(tmp_path, "doubler", 1)
    served = serve(tmp_path)
    await infer(served, 3)
    put(tmp_path, "doubler", 2)
    assert (await post(served, "models/doubler/load")).status == 200
    await infer(served, 2)
    books = (await acall(served.app, "GET", "/v2/ledger")).json["doubler"]
    assert (books["accepted"], books["ok"]) == (5, 5)
