"""What a server makes of a plan file: on the machine it was made for, on another, and where it contradicts settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.python.planner.conftest import Made

import headrace as hr
from headrace.config import load_model_folder, load_repository
from headrace.deploy_file import load_deploy
from headrace.errors import BackendUnavailable, ConfigError, InvalidPlan, ParityError, StalePlan
from headrace.serving.opening import max_batch_of, open_batcher, open_engine

Install = Callable[..., None]


@pytest.fixture
def quick(install: Install) -> Made:
    made = Made(0.001, 0.004, {"fp32": 1.0, "bf16": 3.0})
    install(quick=made)
    return made


@pytest.fixture
def folder(doubling: hr.Model, quick: Made, tmp_path: Path) -> Path:
    """A repository's folder of a model, with a plan made on this machine."""
    version = tmp_path / "models" / "doubling" / "1"
    version.mkdir(parents=True)
    onnx.save(doubling.to_proto(), version / "model.onnx")
    report = hr.plan(hr.load(str(version / "model.onnx")), slo_ms=30, rate=300)
    report.save(version.parent / "plan.toml")
    return version.parent


def elsewhere(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    machine = dataclasses.replace(hr.hardware.probe(), cpu="Another CPU", **changes)
    monkeypatch.setattr(hr.hardware, "probe", lambda: machine)


def opened(folder: Path) -> hr.Engine:
    config = load_model_folder(folder)
    return open_engine(config.files[1], config.settings)  # type: ignore[return-value]


def test_a_plan_beside_a_model_decides_how_it_is_served(folder: Path) -> None:
    (config,) = load_repository(folder.parent)
    settings = config.settings
    assert (settings.backend, settings.precision, settings.threads, settings.slo_ms) == ("quick", "bf16", 1, 30)
    engine = open_engine(config.files[1], settings)
    assert (engine.plan.backend, engine.plan.precision, engine.plan.threads) == ("quick", "bf16", 1)
    assert "as planned for this machine" in engine.plan.reasons[-1]
    batcher = open_batcher(engine, settings)
    batcher.close()
    engine.close()


def test_settings_that_contradict_the_plan_are_an_error(folder: Path) -> None:
    (folder / "headrace.toml").write_text('precision = "bf16"\nmax_queue = 7\n')
    assert load_model_folder(folder).settings.max_queue == 7
    (folder / "headrace.toml").write_text('precision = "fp32"\n')
    with pytest.raises(ConfigError, match=r"key precision: got 'fp32' beside a plan that says 'bf16'"):
        load_model_folder(folder)
    (folder / "headrace.toml").write_text('plan = "missing.toml"\n')
    with pytest.raises(InvalidPlan, match=r"missing.toml: got .*No such file"):
        load_model_folder(folder)


def test_a_deployment_names_a_plan_and_replicas_get_its_threads(folder: Path, quick: Made) -> None:
    plan = folder.parent.parent / "two.toml"
    plan.write_text((folder / "plan.toml").read_text().replace("\nthreads = 1", "\nthreads = 2"))
    (folder / "plan.toml").unlink()
    deploy = plan.with_name("app.yaml")
    deploy.write_text("models: [{name: doubling, path: models/doubling, settings: {plan: two.toml}}]")
    (model,) = load_deploy(deploy).models
    assert model.model.settings.threads == 2
    assert model.autoscaling.cpus_per_replica == 2
    deploy.write_text("models: [{name: a, path: models/doubling, settings: {plan: two.toml, threads: 1}}]")
    with pytest.raises(ConfigError, match=r"key models\[0\].settings.threads: got 1 beside a plan that says 2"):
        load_deploy(deploy)


def test_a_plan_of_another_model_is_refused(folder: Path, doubling: hr.Model) -> None:
    proto = doubling.to_proto()
    proto.doc_string = "another"
    onnx.save(proto, folder / "1" / "model.onnx")
    with pytest.raises(StalePlan, match="model sha256: got"):
        opened(folder)


def test_elsewhere_a_plan_is_checked_and_its_speed_told(
    folder: Path, quick: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quick.speed["bf16"] = 1.5
    elsewhere(monkeypatch)
    engine = opened(folder)
    remark = engine.plan.reasons[-1]
    assert "a request takes 2.00 times as long as there" in remark
    assert "against the reference backend" in remark
    assert remark in caplog.text
    engine.close()
    # Without the parity that settings may switch off on the machine of the plan.
    (folder / "headrace.toml").write_text("parity = false\n")
    quick.wrong["bf16"] = 0.5
    with pytest.raises(ParityError, match=r"an error of 0.5, expected at most 0.2; .* expected at most 0.02"):
        opened(folder)


def test_elsewhere_a_plan_is_made_anew_where_that_is_asked_for(
    folder: Path, quick: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "headrace.toml").write_text('on_other_hardware = "measure"\n')
    elsewhere(monkeypatch, cores=4)
    quick.speed.update(fp32=3.0)  # here, fp32 saves no less
    quick.fixed_s = 0.012  # and Batches gain more
    engine = opened(folder)
    assert engine.plan.precision == "fp32"
    assert "planned anew on this machine" in engine.plan.reasons[-1]
    settings = load_model_folder(folder).settings
    assert max_batch_of(engine, settings) >= 4 > settings.max_batch
    engine.close()
    quick.fixed_s = 1.0
    with pytest.raises(StalePlan, match="no plan does that here"):
        opened(folder)


def test_elsewhere_a_plan_is_refused_where_its_file_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (folder / "plan.toml").read_text()
    (folder / "plan.toml").write_text(text.replace('"check"', '"refuse"'))
    elsewhere(monkeypatch)
    with pytest.raises(StalePlan, match=r"got Another CPU, .* on_other_hardware = 'refuse'"):
        opened(folder)


def test_only_a_named_fallback_runs_what_the_wanted_backend_cannot(doubling: hr.Model, install: Install) -> None:
    install(gone=Made(0.0, 0.001, refuses="no driver"), spare=Made(0.0, 0.001))
    with pytest.raises(BackendUnavailable, match="no driver"):
        doubling.compile(backend="gone")
    engine = doubling.compile(backend="gone", fallback=["gone too", "spare"])
    assert engine.plan.backend == "spare"
    assert engine.plan.details["fallback_from"] == "gone"
    assert any("fallback: not gone: " in reason and "no driver" in reason for reason in engine.plan.reasons)
    np.testing.assert_array_equal(engine({"x": np.ones(4, np.float32)})["y"], np.full(4, 2, np.float32))
    with pytest.raises(BackendUnavailable, match=r"neither backend 'gone' nor its fallbacks .*\n.*no driver"):
        doubling.compile(backend="gone", fallback=["gone too"])
