"""Configuration: model repositories, ``headrace.toml``, and what a deployment is made of (see `headrace.deploy_file`).

A model repository is a folder of models, laid out as Triton Inference Server lays out its own::

    models/
      tickets/
        headrace.toml        optional: the keys of `ModelSettings`
        1/model.onnx         one folder per version, named by a positive integer
        2/plan.headrace      a saved plan (`headrace compile`) in place of the model, or beside it

Every error is a `ConfigError` that names the file, the key, what was got and what was expected.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from headrace.config_file import convert, decode_toml
from headrace.errors import ConfigError
from headrace.plan_file import PLAN_FILE
from headrace.threads import checked_threads

MODEL_FILE = "model.onnx"
PLAN_TOML = "plan.toml"
SETTINGS_FILE = "headrace.toml"
# Names go into URLs, metric labels and file paths; this keeps them safe in all three.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
NonFinitePolicy = Literal["allow", "count", "error"]
OnOtherHardware = Literal["check", "measure", "refuse"]


CANARY_SHARE_MAX = 0.5


class RolloutSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a new version takes over from the running one: the table ``[rollout]`` of ``headrace.toml``.

    Attributes:
        mode: ``"replace"``: as soon as it is loaded and checked. ``"canary"``: after it has answered a share of the
            requests well. ``"shadow"``: after it was given copies of a share of them, and its answers were compared.
        share: That share of the requests, above 0 and at most 1; of a canary at most 0.5, so that there is something to
            compare it with.
        min_requests: Requests that a candidate must have run before it takes over.
        min_s: Seconds that a trial lasts at least.
        max_s: Seconds after which a candidate that could not prove itself is rolled back.
        failures_max: Share of failed requests that is tolerated beyond the running version's.
        slower_max: How many times the running version's latency (p50 and p95) is tolerated.
        tolerance: Difference (`headrace.parity.Parity`) beyond which two answers count as divergent.
        divergent_max: Share of divergent answers that is tolerated of a shadow; None to count them only.
    """

    mode: Literal["replace", "canary", "shadow"] = "replace"
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    min_requests: Positive = 100
    min_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    max_s: PositiveFloat = 3600.0
    failures_max: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01
    slower_max: PositiveFloat = 1.5
    tolerance: Annotated[float, msgspec.Meta(ge=0)] = 0.02
    divergent_max: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None

    def __post_init__(self) -> None:
        """Refuses a canary that would answer more requests than the running version."""
        if self.mode == "canary" and self.share > CANARY_SHARE_MAX:
            raise ValueError(f"share: got {self.share:g} for a canary, expected at most {CANARY_SHARE_MAX:g}")


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a model is compiled and scheduled: the keys of ``headrace.toml``.

    Attributes:
        backend: A Backend's name, or ``"auto"``.
        precision: ``"fp32"``, ``"bf16"``, ``"int8"`` or ``"auto"``.
        winograd: Whether 3x3 convolutions may run by Winograd's minimal filtering.
        threads: Threads of the Engine; None for every core this process may use.
        slo_ms: Deadline of a Request that brings none, in milliseconds; None for no deadline.
        max_queue: Requests that may wait; one more is refused with `Overloaded`.
        max_batch: Requests that may run together.
        versions: ``"latest"``, ``"all"`` or the list of versions to load.
        stall_s: Seconds after which a Batch that still runs counts as stuck, and the process as dead.
        parity: Whether a model must agree with the reference backend on one Request before it is called ready.
        parity_tolerance: Relative error allowed in that; None for 0.001 in fp32, and 0.1 in lower precisions.
        parity_s_max: Seconds the reference backend may take; a model it is too slow for is served unchecked.
        nonfinite: What happens to a Result with NaN or Inf in it: ``"count"`` it, ``"allow"`` it
            unchecked, or answer with an ``"error"``.
        device: A device of the backend, such as ``"cuda:0"``; None for its default.
        options: What only the backend knows; see `headrace.backend.Capabilities.options`.
        fallback: Backends that may run the model, in this order, where `backend` cannot. None may unless named here;
            ``engine.plan``, metadata and metrics say where one does.
        plan: A plan file (`headrace plan -o`), beginning at the folder of the file that names it; ``plan.toml`` in the
            model's folder need not be named. It decides about `backend`, `device`, `precision`, `threads`, `winograd`,
            `options`, `max_batch` and `slo_ms`.
        on_other_hardware: What happens where that was made for another machine; None for what the plan file says. See
            `headrace.planner.file.PlanToml`.
    """

    backend: str = "auto"
    precision: Literal["fp32", "bf16", "int8", "auto"] = "fp32"
    winograd: bool = False
    threads: int | None = None
    slo_ms: PositiveFloat | None = None
    max_queue: Positive = 1024
    max_batch: Positive = 64
    versions: Literal["latest", "all"] | list[Positive] = "latest"
    stall_s: PositiveFloat = 30.0
    parity: bool = True
    parity_tolerance: PositiveFloat | None = None
    parity_s_max: PositiveFloat = 5.0
    nonfinite: NonFinitePolicy = "count"
    device: str | None = None
    options: dict[str, str] = {}
    fallback: list[str] = []
    plan: str | None = None
    on_other_hardware: OnOtherHardware | None = None
    rollout: RolloutSettings = RolloutSettings()

    def __post_init__(self) -> None:
        """Refuses threads that cannot be had."""
        if self.threads is not None:
            try:
                checked_threads(self.threads)
            except ConfigError as error:
                raise ValueError(str(error)) from None


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One model to serve: its name, the file of each version to load, and its settings.

    Attributes:
        groups: Of a model whose replicas on Ray are of several groups, the settings of each.
    """

    name: str
    files: dict[int, Path]
    settings: ModelSettings
    groups: dict[str, ModelSettings] = {}


class AutoscalingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one model scales on Ray Serve.

    Attributes:
        min_replicas: Replicas kept with no traffic; 0 lets the model scale to zero.
        max_replicas: Most replicas at any load.
        cpus_per_replica: CPUs Ray reserves for each replica; may be a fraction.
        target_utilisation: Share of the measured capacity that a replica is never planned beyond.
        down_hold_s: Seconds for which fewer replicas must have been enough before any is taken away.
        idle_s: Seconds without a Request after which a model with ``min_replicas = 0`` has none.
        leave_s: Seconds that a replica that leaves has for the Requests that it has; then they get 503.
        resources: What else Ray reserves for each replica, by the names under which its nodes have it.
        groups: Of a model whose replicas are of several groups, how each scales, in the order in which they are filled;
            all else is then that of the first. No key of a file: `load_deploy` brings it together.
    """

    min_replicas: Annotated[int, msgspec.Meta(ge=0)] = 1
    max_replicas: Positive = 1
    cpus_per_replica: PositiveFloat = 1.0
    target_utilisation: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.85
    down_hold_s: PositiveFloat = 10.0
    idle_s: PositiveFloat = 45.0
    leave_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 25.0
    resources: dict[str, PositiveFloat] = {}
    groups: dict[str, AutoscalingConfig] = {}


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a deployment listens. Port 0 takes a free one.

    Attributes:
        host: Address to listen on.
        port: Port of REST.
        grpc_port: Port of gRPC; None for one above that of REST, or a free one where that is 0.
        caller_header: The request header that names the caller; callers who compete share a model fairly.
        ingress: What takes REST requests: "headrace" for our own ingress, "ray" for Ray Serve's proxy.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    grpc_port: Port | None = None
    ingress: Literal["headrace", "ray"] = "headrace"
    caller_header: str = "x-headrace-caller"


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a deployment has a model from, so that it can be read again.

    Attributes:
        path: The model's folder, or one model file.
        settings: What the deployment's file says in place of the folder's own settings.
        file: That file.
        where: The key of the model in it.
        groups: What it says in place of those settings for each group of replicas.
    """

    path: Path
    settings: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    file: Path
    where: str


class DeployedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a deployment: what to serve, how it scales, and where it was read."""

    model: ModelConfig
    autoscaling: AutoscalingConfig
    source: ModelSource | None = None

    @property
    def parts(self) -> dict[str, DeployedModel]:
        """Each group of replicas as a model that has no others, in the order in which they are filled.

        Where there are no groups it is the model itself, called "".
        """
        return {
            group: msgspec.structs.replace(self, model=in_group(self.model, group), autoscaling=scaling)
            for group, scaling in self.autoscaling.groups.items()
        } or {"": self}


def in_group(model: ModelConfig, group: str) -> ModelConfig:
    """A model as one group of its replicas runs it; as it is where it has no such group."""
    if group not in model.groups:
        return model
    return msgspec.structs.replace(model, settings=model.groups[group], groups={})


class DeployConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole deployment."""

    http: HttpConfig
    models: list[DeployedModel]
    ledger: Path | None = None


def load_repository(root: str | Path) -> list[ModelConfig]:
    """Reads a model repository.

    Args:
        root: Folder with one folder per model. Hidden folders and plain files are ignored.

    Returns:
        One entry per model, by name.

    Raises:
        ConfigError: `root` is no folder, holds no model, or a model in it cannot be used.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"{root}: got no folder there, expected a model repository (NAME/VERSION/{MODEL_FILE})")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise ConfigError(f"{root}: got an empty model repository, expected NAME/VERSION/{MODEL_FILE}")
    return [load_model_folder(folder) for folder in folders]


def load_model_folder(folder: str | Path, name: str | None = None) -> ModelConfig:
    """Reads one model's folder: its versions and its optional ``headrace.toml``.

    Args:
        folder: Folder with one folder per version.
        name: The model's name; None for the folder's own.

    Raises:
        ConfigError: There is no version to load, or ``headrace.toml`` is wrong.
    """
    folder = Path(folder)
    name = _checked_name(name or folder.name, folder)
    settings_file = folder / SETTINGS_FILE
    keys = decode_toml(settings_file) if settings_file.is_file() else {}
    if isinstance(keys, dict) and "plan" not in keys and (folder / PLAN_TOML).is_file():
        keys["plan"] = PLAN_TOML
    settings = convert(_planned(keys, settings_file), ModelSettings, settings_file)
    return ModelConfig(name=name, files=_chosen_versions(folder, settings), settings=settings)


def load_model_path(path: str | Path, name: str | None = None) -> ModelConfig:
    """Reads one model, given as its folder or as one model file (which becomes version 1).

    Args:
        path: A folder as `load_model_folder` takes, or a model file, which may be a saved plan's.
        name: The model's name; None for the folder's name or the file's stem.

    Raises:
        ConfigError: Nothing usable is there.
    """
    path = Path(path)
    if path.is_dir():
        return load_model_folder(path, name)
    if not path.is_file():
        raise ConfigError(f"{path}: got nothing there, expected a model folder or a model file")
    return ModelConfig(name=_checked_name(name or path.stem, path), files={1: path}, settings=ModelSettings())


def load_source(name: str, source: ModelSource) -> ModelConfig:
    """Reads a model of a deployment, as it lies there now.

    Args:
        name: The model's name.
        source: Where it lies.

    Raises:
        ConfigError: Nothing usable is there.
    """
    model = load_model_path(source.path, name)
    settings = _override(model.settings, source.settings, source.file, f"{source.where}.settings")
    groups = {
        group: _override(settings, changes, source.file, f"{source.where}.groups[{at}].settings")
        for at, (group, changes) in enumerate(source.groups.items())
    }
    return msgspec.structs.replace(model, settings=settings, groups=groups)


def _override(base: ModelSettings, changes: dict[str, Any], path: Path, where: str) -> ModelSettings:
    """`base` with the keys of `changes` in place of its own."""
    if "versions" in changes:
        raise ConfigError(f"{path}: key {where}.versions: got a value, expected it in the model's {SETTINGS_FILE}")
    if base.plan is not None and "plan" not in changes:
        changes = {**changes, "plan": base.plan}
    changes = _planned(changes, path, where)
    checked = convert(changes, ModelSettings, path, where)
    return msgspec.structs.replace(base, **{key: getattr(checked, key) for key in changes})


def _planned(keys: dict[str, Any], path: Path, prefix: str = "") -> dict[str, Any]:
    """`keys` with those that their plan file decides about, if they name one.

    Raises:
        ConfigError: One of them says something else than the plan.
        InvalidPlan: The plan file cannot be used.
    """
    name = keys.get("plan")
    if not isinstance(name, str):
        return keys
    # Only here, because most models have none.
    from headrace.planner.file import read

    file = (path.parent / name).absolute()
    decided = read(file).settings()
    for key, value in decided.items():
        if keys.get(key, value) != value:
            raise ConfigError(
                f"{path}: key {'.'.join(filter(None, (prefix, key)))}: got {keys[key]!r} beside a plan that says "
                f"{value!r} ({file}), expected it to be left out, or another plan"
            )
    return {**keys, **decided, "plan": str(file)}


def _chosen_versions(folder: Path, settings: ModelSettings) -> dict[int, Path]:
    """The model file of each version that the settings ask for; a saved plan's where there is no other."""
    found = {int(p.name): _version_file(p) for p in folder.iterdir() if p.is_dir() and _is_version(p.name)}
    if not found:
        raise ConfigError(f"{folder}: got no version folder, expected {folder.name}/1/{MODEL_FILE}")
    if settings.versions == "latest":
        wanted = [max(found)]
    elif settings.versions == "all":
        wanted = sorted(found)
    else:
        wanted = sorted(set(settings.versions))
    if not wanted:
        raise ConfigError(f"{folder / SETTINGS_FILE}: key versions: got an empty list, expected at least one version")
    for version in wanted:
        if version not in found:
            have = ", ".join(map(str, sorted(found)))
            raise ConfigError(f"{folder / SETTINGS_FILE}: key versions: got {version}, expected one of {have}")
        if not found[version].is_file():
            raise ConfigError(f"{folder / str(version)}: got no {MODEL_FILE} or {PLAN_FILE} in it, expected one")
    return {version: found[version] for version in wanted}


def _version_file(folder: Path) -> Path:
    plan = folder / PLAN_FILE
    return plan if plan.is_file() and not (folder / MODEL_FILE).is_file() else folder / MODEL_FILE


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and not name.startswith("0")


def _checked_name(name: str, where: Path) -> str:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: got model name {name!r}, "
            "expected 1 to 128 letters, digits, '_', '-' or '.', starting with a letter, a digit or '_'"
        )
    return name
