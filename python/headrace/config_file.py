"""Reading of configuration files: every error is a `ConfigError` that names the file, the key and what was expected."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from headrace.errors import ConfigError

T = TypeVar("T")


def decode_toml(path: Path) -> Any:
    """A TOML file as plain values."""
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: got {error}, expected a TOML file") from error


def decode_yaml(path: Path) -> Any:
    """A YAML file as plain values."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: got {error}, expected a YAML file") from error


def convert(value: Any, kind: type[T], path: Path, prefix: str = "") -> T:
    """Checks plain values against a Struct; the error names the file and the key."""
    try:
        _refuse_nonfinite(value)
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at ")
        key = ".".join(part for part in (prefix, where.strip("`").removeprefix("$").removeprefix(".")) if part)
        known = ", ".join(field.name for field in msgspec.structs.fields(kind))  # type: ignore[arg-type]
        hint = f" (known keys here: {known})" if "unknown field" in message and "." not in key else ""
        raise ConfigError(f"{path}: key {key or '(top)'}: {message}{hint}") from error


def _refuse_nonfinite(value: Any) -> None:
    """TOML and YAML can spell inf and nan, which pass every comparison a Struct makes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise msgspec.ValidationError(f"Expected a finite number, got `{value}`")
    if isinstance(value, dict):
        for item in value.values():
            _refuse_nonfinite(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_nonfinite(item)
