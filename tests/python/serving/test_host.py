"""The life of a served model: loaded, warmed, found, unloaded."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from serving_fakes import DOUBLER, MIRROR, FakeBatcher, FakeEngine, make_config, make_served

import headrace
from headrace.config import ModelSettings, RolloutSettings, load_repository
from headrace.engine import Engine
from headrace.errors import BackendUnavailable, ConfigError, ExecutionError, NotFound, StalePlan
from headrace.serving.closing import close_host
from headrace.serving.host import ModelHost, open_engine
from headrace.serving.warmup import warmup_request


def test_the_newest_version_answers_unless_one_is_named() -> None:
    host = make_served(make_config(versions=(2, 10, 3))).host
    assert host.find("doubler").version == "10"
    assert host.find("doubler", "2").version == "2"
    assert host.versions("doubler") == ["2", "3", "10"]
    with pytest.raises(NotFound, match="got version '4', expected one of 2, 3, 10"):
        host.find("doubler", "4")


def test_progress_is_told_and_a_second_load_changes_nothing() -> None:
    served = make_served(make_config(), make_config("other"), load=False)
    told: list[str] = []
    served.host.load(told.append)
    assert told == ["doubler version 1", "other version 1"]
    served.host.load(told.append)
    assert len(told) == len(served.engines) == 2


def test_what_cannot_be_opened_is_named() -> None:
    def engine_opener(path: Path, settings: Any) -> FakeEngine:
        raise BackendUnavailable("got backend 'nativ', expected 'native'", retry_after_s=2.0)

    host = ModelHost([make_config()], engine_opener=engine_opener)
    expected = r"^model 'doubler' version 1 \(.*doubler.*\): got backend 'nativ', expected 'native'$"
    with pytest.raises(BackendUnavailable, match=expected) as caught:
        host.load()
    assert caught.value.retry_after_s == 2.0


def test_no_load_begins_after_drain() -> None:
    served = make_served(make_config(), make_config("other"), load=False)
    served.host.load(lambda what: served.host.drain())
    assert len(served.engines) == 1
    assert not served.host.loaded
    served.host.close()
    assert served.engines[0].closed


def test_a_model_that_is_withdrawn_while_it_loads_is_closed() -> None:
    served = make_served(make_config(), make_config("other"), load=False)
    served.host.load(lambda what: served.host.withdraw("doubler") if what == "doubler version 1" else None)
    assert [engine.closed for engine in served.engines] == [True, False]
    assert served.host.names == ["other"]
    assert served.host.ready


def test_a_model_that_fails_its_warm_up_never_gets_ready_and_leaks_no_engine() -> None:
    engines: list[FakeEngine] = []

    class Broken(FakeEngine):
        def run_batch(self, requests: Any) -> Any:
            raise ExecutionError("node 'n': got a failure, expected none")

    def engine_opener(path: Path, settings: Any) -> FakeEngine:
        engines.append(Broken() if "bad" in path.parts else FakeEngine())
        return engines[-1]

    configs = [make_config("good"), make_config("bad")]
    host = ModelHost(configs, engine_opener=engine_opener, batcher_opener=lambda e, s: FakeBatcher(e, s))  # type: ignore[arg-type]
    with pytest.raises(ExecutionError, match="node 'n'"):
        host.load()
    assert not host.ready
    assert host.find("good").name == "good"
    with pytest.raises(BackendUnavailable):
        host.find("bad")
    assert [engine.closed for engine in engines] == [False, True]
    host.close()
    assert all(engine.closed for engine in engines)


def test_unload_takes_the_model_away_and_closes_it() -> None:
    served = make_served(make_config(), make_config("other"))
    served.host.unload("doubler")
    assert [engine.closed for engine in served.engines] == [True, False]
    assert list(served.host.infer_routes) == ["/v2/models/other/versions/1/infer", "/v2/models/other/infer"]
    with pytest.raises(NotFound, match="expected one of other"):
        served.host.find("doubler")
    with pytest.raises(NotFound):
        served.host.unload("doubler")


def test_every_version_that_was_opened_for_a_trial_is_closed_with_the_host() -> None:
    served = make_served(make_config())
    # Version 2 lies between what runs and what is tried; the file of version 1 was replaced in its place, too.
    config = make_config(versions=(1, 2, 3), rollout=RolloutSettings(mode="canary"))
    served.host.begin_trial("doubler", served.host.prepare(config))
    assert len(served.engines) == 4
    served.host.close()
    assert all(engine.closed for engine in served.engines)


def test_a_version_that_hangs_is_closed_after_all_others() -> None:
    served = make_served(make_config("hanging"), make_config())
    ended = threading.Event()
    served.batchers[0].close = ended.wait  # type: ignore[method-assign]
    served.batchers[0].running_s = 100.0
    try:
        with pytest.raises(ExecutionError, match="got a Batch that does not end in hanging/1"):
            close_host(served.host)
        assert [engine.closed for engine in served.engines] == [False, True]
    finally:
        ended.set()


def test_the_warm_up_request_fits_the_signature() -> None:
    request = warmup_request(MIRROR)
    for spec in MIRROR.inputs:
        assert request[spec.name].shape == (1, 2)
        assert request[spec.name].dtype == spec.numpy_dtype


def test_a_warm_up_file_is_used_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "warmup.npz", x=np.ones((4, 3), np.float32))
    assert warmup_request(DOUBLER, tmp_path)["x"].shape == (4, 3)
    np.savez(tmp_path / "warmup.npz", z=np.ones(1))
    with pytest.raises(ConfigError, match=r"warmup\.npz: got .*x.* expected .*one array for each of"):
        warmup_request(DOUBLER, tmp_path)
    (tmp_path / "warmup.npz").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"warmup\.npz"):
        warmup_request(DOUBLER, tmp_path)


def scaling_model(folder: Path, scale: float) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "scale"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [scale])],
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_saved_plan_is_served_where_it_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = scaling_model(tmp_path / "1", 2.0)
    plan = headrace.load(path).compile(backend="native", threads=1).save(path.parent)
    settings = ModelSettings(threads=1)
    beside = open_engine(path, settings)
    assert f"mapped from {plan}" in beside.plan.reasons
    scaling_model(path.parent, 3.0)  # now the Plan is stale
    compiled = open_engine(path, settings)
    assert f"mapped from {plan}" not in compiled.plan.reasons
    assert "because its saved plan is refused" in caplog.text
    assert "model sha256" in caplog.text
    (result,) = compiled.run_batch([{"x": np.ones(1, np.float32)}])
    np.testing.assert_array_equal(result["y"], [3.0])
    path.unlink()
    alone = open_engine(plan, settings)
    (result,) = alone.run_batch([{"x": np.ones(1, np.float32)}])
    np.testing.assert_array_equal(result["y"], [2.0])
    with pytest.raises(StalePlan, match="option 'threads': got 1 in the saved Plan, expected 2"):
        open_engine(plan, ModelSettings(threads=2))


def test_a_saved_plan_never_stands_in_for_another_device(tmp_path: Path) -> None:
    path = scaling_model(tmp_path / "1", 2.0)
    plan = headrace.load(path).compile(backend="native", threads=1).save(path.parent)
    for place in (path, plan):
        with pytest.raises(BackendUnavailable, match="'cuda:7'"):
            open_engine(place, ModelSettings(threads=1, device="cuda:7"))
        assert f"mapped from {plan}" in open_engine(place, ModelSettings(threads=1, device="cpu")).plan.reasons
    with pytest.raises(BackendUnavailable, match="got backend 'torch'"):
        open_engine(plan, ModelSettings(threads=1, backend="torch"))


def test_a_saved_plan_is_compared_once_where_its_model_is_beside_it(tmp_path: Path) -> None:
    path = scaling_model(tmp_path / "1", 2.0)
    headrace.load(str(path)).compile(threads=1).save(path.parent)
    settings = ModelSettings(threads=1)
    found = "error 0 against the reference backend on 2 samples, 0.001 allowed"
    assert open_engine(path, settings).parity == found
    assert open_engine(path, settings).parity == f"{found} (when the plan was first loaded)"
    assert open_engine(path, ModelSettings(threads=1, parity_tolerance=0.5)).parity.endswith("0.5 allowed")
    assert open_engine(path, ModelSettings(threads=1, parity=False)).parity == "not checked: parity = false"
    assert "no model file" in open_engine(path.parent / "plan.headrace", settings).parity


def test_a_model_is_compared_with_the_reference_before_it_serves(tmp_path: Path) -> None:
    path = scaling_model(tmp_path / "1", 2.0)
    assert (
        open_engine(path, ModelSettings()).parity == "error 0 against the reference backend on 2 samples, 0.001 allowed"
    )
    assert open_engine(path, ModelSettings(parity=False)).parity == "not checked: parity = false"
    assert "longer than parity_s_max" in open_engine(path, ModelSettings(parity_s_max=1e-9)).parity
    assert open_engine(path, ModelSettings(backend="reference")).parity.startswith("not checked: it runs on the")
    wide = open_engine(path, ModelSettings(parity_tolerance=0.5))
    assert wide.parity.endswith("0.5 allowed")


def test_a_model_that_differs_from_the_reference_is_not_served_and_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling_model(tmp_path / "right/1", 2.0)
    scaling_model(tmp_path / "wrong/1", 3.0)
    real = Engine.run_batch

    def run_batch(self: Engine, requests: Any) -> Any:
        wrong = self.plan.backend == "native" and real(self, [{"x": np.ones(1, np.float32)}])[0]["y"] == 3.0
        return [{"y": result["y"] * 1.01 if wrong else result["y"]} for result in real(self, requests)]

    monkeypatch.setattr(Engine, "run_batch", run_batch)
    host = ModelHost(load_repository(tmp_path))
    host.load()
    try:
        assert host.ready
        assert host.find("right").metadata(["1"])["parameters"]["parity"].startswith("error 0 against")
        with pytest.raises(
            BackendUnavailable,
            match=r"unavailable, expected ready: against the reference .* output 'y' of sample 0 at \[0\]: got ",
        ):
            host.find("wrong")
        right, wrong = host.states()
        assert (right.state, wrong.state) == ("READY", "UNAVAILABLE")
        assert "expected at most 0.001 (parity_tolerance" in wrong.reason
        assert "every op agrees by itself" in wrong.reason  # the fault is outside the Plan
    finally:
        host.close()


def test_closing_ends_although_a_retirement_was_given_up() -> None:
    served = make_served()
    served.host.withdraw("doubler")  # and whoever was to retire it was cancelled
    served.host.close()
    assert served.engines[0].closed
