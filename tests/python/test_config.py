"""Repositories and configuration files: what is read, and what every mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config import (
    AutoscalingConfig,
    ModelSettings,
    load_model_path,
    load_repository,
    load_source,
)
from headrace.deploy_file import load_deploy
from headrace.errors import ConfigError


def make_model(root: Path, name: str, *versions: str, toml: str | None = None) -> Path:
    for version in versions:
        folder = root / name / version
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"onnx")
    (root / name).mkdir(exist_ok=True)
    if toml is not None:
        (root / name / "headrace.toml").write_text(toml)
    return root / name


def test_a_repository_is_read_by_name_with_the_latest_version(tmp_path: Path) -> None:
    make_model(tmp_path, "b", "2", "10", "9", "notes", "007")
    make_model(tmp_path, "a", "1", toml='backend = "native"\nslo_ms = 20\nthreads = 2\nnonfinite = "error"')
    (tmp_path / "README.md").write_text("not a model")
    (tmp_path / ".git").mkdir()
    a, b = load_repository(tmp_path)
    assert (a.name, b.name) == ("a", "b")
    assert b.files == {10: tmp_path / "b" / "10" / "model.onnx"}
    assert b.settings == ModelSettings()
    assert a.settings == ModelSettings(backend="native", slo_ms=20.0, threads=2, nonfinite="error")


@pytest.mark.parametrize(("policy", "versions"), [('"all"', [2, 9, 10]), ("[9, 2, 9]", [2, 9]), ('"latest"', [10])])
def test_the_version_policy(tmp_path: Path, policy: str, versions: list[int]) -> None:
    make_model(tmp_path, "m", "2", "10", "9", toml=f"versions = {policy}")
    assert list(load_repository(tmp_path)[0].files) == versions


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            "thread = 1",
            r"headrace\.toml: key .*unknown field `thread`.*known keys here: backend, precision, winograd, threads",
        ),
        ("thread = 1", "got unknown field `thread`, did you mean `threads`?"),
        ("[rollout]\nshares = 1", r"key rollout: .*did you mean `share`.*known keys here: mode, share, min_requests"),
        ("threads = 0", r"headrace\.toml: key threads: got 0, expected an integer from 1 to \d+$"),
        ("threads = 100000", r"headrace\.toml: key threads: got 100000, expected an integer from 1 to \d+$"),
        ('threads = "2"', r"headrace\.toml: key threads: got '2', expected an integer$"),
        ("slo_ms = -1.5", r"headrace\.toml: key slo_ms: got -1\.5, expected a number above 0$"),
        ("slo_ms = inf", r"headrace\.toml: key slo_ms: got inf, expected a finite number"),
        ('max_batch = "64"', r"headrace\.toml: key max_batch: got '64', expected an integer of at least 1$"),
        ('precision = "fp8"', r"key precision: got 'fp8', expected one of 'auto', 'bf16', 'fp32', 'int8'$"),
        ('nonfinite = "ignore"', r"headrace\.toml: key nonfinite: got 'ignore', expected one of 'allow', 'count'"),
        ('rollout.mode = "x"', "key rollout.mode: got 'x', expected one of 'canary', 'replace', 'shadow'$"),
        ('rollout = {mode = "canary", share = 0.9}', r"key rollout\.share: got 0\.9 for a canary, expected at most"),
        ("options = {mode = 1}", r"key options: got {'mode': 1}, expected a table, each value text$"),
        (
            'versions = "new"',
            "key versions: got 'new', expected one of 'all', 'latest' or a list, each an integer of at",
        ),
        ("versions = [0]", r"headrace\.toml: key versions\[0\]: got 0, expected an integer of at least 1$"),
        ("versions = [3]", r"headrace\.toml: key versions: got 3, expected one of 1, 2"),
        ("versions = []", r"headrace\.toml: key versions: got an empty list"),
        ("backend = ", r"headrace\.toml: got .*expected a TOML file"),
    ],
)
def test_a_mistake_in_the_settings_names_file_and_key(tmp_path: Path, toml: str, message: str) -> None:
    make_model(tmp_path, "m", "1", "2", toml=toml)
    with pytest.raises(ConfigError, match=message):
        load_repository(tmp_path)


def test_what_is_no_repository_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got no folder there, expected a model repository"):
        load_repository(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="got an empty model repository"):
        load_repository(tmp_path)
    model = make_model(tmp_path, "m")
    with pytest.raises(ConfigError, match=r"m: got no version folder, expected m/1/model\.onnx"):
        load_repository(tmp_path)
    (model / "1").mkdir()
    with pytest.raises(ConfigError, match=r"m/1: got no model\.onnx or plan\.headrace in it"):
        load_repository(tmp_path)


@pytest.mark.parametrize("name", ["a b", "-a", ".", "a/b", "ä", "a" * 129])
def test_a_name_that_would_break_a_url_or_a_metric_is_refused(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path, "m", "1")
    with pytest.raises(ConfigError, match="got model name"):
        load_model_path(model, name)


def test_one_model_file_is_version_1(tmp_path: Path) -> None:
    file = tmp_path / "credit.onnx"
    file.write_bytes(b"onnx")
    assert load_model_path(file).files == {1: file}
    assert load_model_path(file).name == "credit"
    with pytest.raises(ConfigError, match="got nothing there"):
        load_model_path(tmp_path / "none.onnx")


def write_deploy(tmp_path: Path, text: str) -> Path:
    make_model(tmp_path / "models", "m", "1", toml="max_batch = 8\nslo_ms = 10")
    path = tmp_path / "app.yaml"
    path.write_text(text)
    return path


def test_a_deploy_file_overrides_the_models_own_settings(tmp_path: Path) -> None:
    path = write_deploy(
        tmp_path,
        """
        http: {port: 0}
        models:
          - name: tickets
            path: models/m
            settings: {slo_ms: 50, backend: torch}
            autoscaling: {min_replicas: 0, max_replicas: 3, cpus_per_replica: 0.5}
          - {name: plain, path: models/m/1/model.onnx}
        """,
    )
    config = load_deploy(path)
    tickets, plain = config.models
    assert (config.http.host, config.http.port) == ("127.0.0.1", 0)
    assert tickets.model.name == "tickets"
    assert tickets.model.settings == ModelSettings(slo_ms=50.0, backend="torch", max_batch=8)
    assert tickets.autoscaling == AutoscalingConfig(min_replicas=0, max_replicas=3, cpus_per_replica=0.5)
    assert plain.model.files == {1: tmp_path / "models/m/1/model.onnx"}
    assert plain.autoscaling == AutoscalingConfig()


def test_groups_of_replicas_have_settings_and_resources_of_their_own(tmp_path: Path) -> None:
    path = write_deploy(
        tmp_path,
        """
        models:
          - name: tickets
            path: models/m
            settings: {slo_ms: 50}
            groups:
              - {name: cpu, autoscaling: {max_replicas: 8}}
              - name: accelerated
                settings: {precision: bf16}
                autoscaling: {min_replicas: 0, cpus_per_replica: 0.5, resources: {accel: 1}}
        """,
    )
    (tickets,) = load_deploy(path).models
    parts = tickets.parts
    assert list(parts) == list(tickets.model.groups) == ["cpu", "accelerated"]
    assert parts["cpu"].model.settings == ModelSettings(slo_ms=50.0, max_batch=8)
    assert parts["accelerated"].model.settings == ModelSettings(slo_ms=50.0, max_batch=8, precision="bf16")
    scaling = AutoscalingConfig(min_replicas=0, cpus_per_replica=0.5, resources={"accel": 1.0})
    assert parts["accelerated"].autoscaling == scaling
    assert tickets.autoscaling.max_replicas == 8
    assert all(not part.model.groups and not part.autoscaling.groups for part in parts.values())
    assert tickets.source is not None
    assert load_source("tickets", tickets.source) == tickets.model
    (path.parent / "app.yaml").write_text("models: [{name: a, path: models/m}]")
    (plain,) = load_deploy(path).models
    assert plain.parts == {"": plain}


GROUPS = "models: [{name: a, path: models/m, groups: [{name: x}, {name: y}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GROUPS.replace("y", "x") + "}]", r"key models\[0\]\.groups\[1\]\.name: got 'x' twice"),
        (GROUPS.replace("y", "y z") + "}]", r"groups\[1\]\.name: got 'y z', expected letters"),
        (GROUPS + ", autoscaling: {max_replicas: 2}}]", r"models\[0\]\.autoscaling: got it beside groups"),
        (GROUPS + "}]\nhttp: {ingress: ray}", r"models\[0\]\.groups: got groups with http\.ingress 'ray'"),
        (
            "models: [{name: a, path: models/m, groups: [{name: x, autoscaling: {min_replicas: 2}}]}]",
            r"models\[0\]\.groups\[0\]\.autoscaling\.min_replicas: got 2",
        ),
        (
            "models: [{name: a, path: models/m, groups: [{name: x, settings: {slo_ms: x}}]}]",
            r"models\[0\]\.groups\[0\]\.settings\.slo_ms: got 'x', expected a number above 0",
        ),
        ("models: [{name: a, path: models/m, autoscaling: {groups: {x: {}}}}]", r"autoscaling\.groups: got a value"),
        ("models: []", r"app\.yaml: key models: got \[\], expected a list of 1 or more"),
        ("model: []", r"app\.yaml: key .*unknown field `model`.*known keys here: models, http"),
        (
            "models: [{name: a, path: m, autoscalling: {}}]",
            r"key models\[0\]: .*did you mean `autoscaling`\? .*: name, path",
        ),
        (
            "models: [{name: a, path: m}]\nhttp: {prot: 1}",
            r"key http: .*did you mean `port`\? \(known keys here: host, port",
        ),
        ("- 1", r"app\.yaml: key \(top\): got \[1\], expected a table"),
        ("1: 2", r"app\.yaml: key \(top\): got a key that is no text"),
        ("models: [{path: models/m}]", r"app\.yaml: key models\[0\]: got no field `name`"),
        (
            "models: [{name: a, path: models/m}]\nhttp: {port: 70000}",
            r"key http\.port: got 70000, expected an integer of",
        ),
        (
            "models: [{name: a, path: m, autoscaling: {resources: {x: -1}}}]",
            r"resources: got {'x': -1}, expected a table",
        ),
        ("models: [{name: a, path: m, groups: [{name: x, settings: 1}]}]", r"groups\[0\]\.settings: got 1, expected a"),
        ("models: [{name: a, path: models/x}]", r"models/x: got nothing there"),
        (
            "models: [{name: a, path: models/m, settings: {slo: 1}}]",
            r"models\[0\]\.settings: .*field `slo`, did you mean `slo_ms`",
        ),
        ("models: [{name: a, path: models/m, settings: {slo_ms: x}}]", r"key models\[0\]\.settings\.slo_ms: got 'x'"),
        ("models: [{name: a, path: models/m, settings: {versions: all}}]", r"settings\.versions: got a value"),
        ("models: [{name: a, path: models/m, autoscaling: {target_utilisation: 1.5}}]", r"autoscaling\.target_utilis"),
        (
            "models: [{name: a, path: models/m, autoscaling: {idle_s: .nan}}]",
            "idle_s: got nan, expected a finite number",
        ),
        ("models: [{name: a, path: models/m, autoscaling: {min_replicas: 2}}]", "got 2, expected at most max_replicas"),
        ("models: [{name: a, path: models/m}, {name: a, path: models/m}]", r"models\[1\]\.name: got 'a' twice"),
        ("models: [", "expected a YAML file"),
    ],
)
def test_a_mistake_in_a_deploy_file_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_deploy(write_deploy(tmp_path, text))


def test_a_saved_plan_stands_in_for_a_model_that_is_not_there(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "m", "1")
    (folder / "2").mkdir()
    for version in "12":
        (folder / version / "plan.headrace").write_bytes(b"plan")
    (folder / "headrace.toml").write_text('versions = "all"')
    assert load_repository(tmp_path)[0].files == {1: folder / "1" / "model.onnx", 2: folder / "2" / "plan.headrace"}
