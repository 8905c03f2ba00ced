"""The YAML that ``headrace deploy`` reads: models, how each scales, and where to listen.

    http: {host: 127.0.0.1, port: 8000}
    ledger: ledger                      # optional: a folder for the request ledger, exact even after kill -9
    models:
      - name: tickets
        path: models/tickets            # a model folder as in `headrace.config`, or one .onnx file
        settings: {backend: auto, slo_ms: 50}
        autoscaling: {min_replicas: 0, max_replicas: 4, cpus_per_replica: 1}

In place of ``autoscaling`` a model may have ``groups``, each with settings and a scale of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from headrace.config import (
    NAME,
    AutoscalingConfig,
    DeployConfig,
    DeployedModel,
    HttpConfig,
    ModelSettings,
    ModelSource,
    load_source,
)
from headrace.config_file import convert, decode_yaml
from headrace.errors import ConfigError


class _GroupEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    settings: dict[str, Any] = {}
    autoscaling: AutoscalingConfig = AutoscalingConfig()


class _DeployEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    path: str
    settings: dict[str, Any] = {}
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    groups: list[_GroupEntry] = []


class _DeployFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    models: Annotated[list[_DeployEntry], msgspec.Meta(min_length=1)]
    http: HttpConfig = HttpConfig()
    ledger: str | None = None


def load_deploy(path: str | Path) -> DeployConfig:
    """Reads the YAML file that ``headrace deploy`` takes. Relative model paths start at its folder.

    Raises:
        ConfigError: The file, a key in it or a model it names cannot be used.
    """
    path = Path(path)
    file = convert(decode_yaml(path), _DeployFile, path)
    models: list[DeployedModel] = []
    for index, entry in enumerate(file.models):
        where = f"models[{index}]"
        if entry.name in {known.model.name for known in models}:
            raise ConfigError(f"{path}: key {where}.name: got {entry.name!r} twice, expected each name once")
        groups = _groups(entry, path, where, file.http)
        source = ModelSource(
            path=(path.parent / entry.path).absolute(), settings=entry.settings, file=path, where=where,
            groups={name: group.settings for name, group in groups.items()},
        )  # fmt: skip
        model = load_source(entry.name, source)
        if groups:
            each = {
                name: _checked_scaling(group.autoscaling, model.groups[name], path, f"{where}.groups[{at}]")
                for at, (name, group) in enumerate(groups.items())
            }
            scaling = msgspec.structs.replace(next(iter(each.values())), groups=each)
        else:
            scaling = _checked_scaling(entry.autoscaling, model.settings, path, where)
        models.append(DeployedModel(model=model, autoscaling=scaling, source=source))
    ledger = None if file.ledger is None else (path.parent / file.ledger).resolve()
    return DeployConfig(http=file.http, models=models, ledger=ledger)


def _groups(entry: _DeployEntry, path: Path, where: str, http: HttpConfig) -> dict[str, _GroupEntry]:
    """The groups of a model's replicas by name; none of most models."""
    groups: dict[str, _GroupEntry] = {}
    for at, group in enumerate(entry.groups):
        key = f"{where}.groups[{at}].name"
        if not NAME.fullmatch(group.name):
            raise ConfigError(f"{path}: key {key}: got {group.name!r}, expected letters, digits, '_', '-' or '.'")
        if group.name in groups:
            raise ConfigError(f"{path}: key {key}: got {group.name!r} twice, expected each name once")
        groups[group.name] = group
    if groups and entry.autoscaling != AutoscalingConfig():
        raise ConfigError(f"{path}: key {where}.autoscaling: got it beside groups, expected it in each of those")
    if groups and http.ingress != "headrace":
        raise ConfigError(
            f"{path}: key {where}.groups: got groups with http.ingress {http.ingress!r}, expected 'headrace', which "
            "alone fills one before the next"
        )
    return groups


def _checked_scaling(scaling: AutoscalingConfig, settings: ModelSettings, path: Path, where: str) -> AutoscalingConfig:
    """How replicas scale, with as many CPUs as their plan wants.

    Raises:
        ConfigError: It contradicts itself.
    """
    if scaling.min_replicas > scaling.max_replicas:
        raise ConfigError(
            f"{path}: key {where}.autoscaling.min_replicas: got {scaling.min_replicas}, "
            f"expected at most max_replicas = {scaling.max_replicas}"
        )
    if scaling.groups:
        raise ConfigError(f"{path}: key {where}.autoscaling.groups: got a value, expected it in {where}.groups")
    # A replica has the threads that its plan was measured with.
    if settings.plan is not None and scaling.cpus_per_replica < (settings.threads or 1):
        scaling = msgspec.structs.replace(scaling, cpus_per_replica=float(settings.threads or 1))
    return scaling
