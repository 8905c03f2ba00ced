"""Reading of configuration files: every error is a `ConfigError` that names the file and the key, got and expected."""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from headrace.errors import ConfigError
from headrace.extras import needs

T = TypeVar("T")

# Longest value that an error repeats.
_VALUE_CHARS_MAX = 80
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_KINDS: dict[type[inspect.Type], str] = {
    inspect.BoolType: "true or false",
    inspect.StrType: "text",
    inspect.IntType: "an integer",
    inspect.FloatType: "a number",
    inspect.StructType: "a table",
}


def decode_toml(path: Path) -> Any:
    """A TOML file as plain values."""
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: got {error}, expected a TOML file") from error


def decode_yaml(path: Path) -> Any:
    """A YAML file as plain values."""
    with needs("ray", str(path)):
        import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: got {error}, expected a YAML file") from error


def convert(value: Any, kind: type[T], path: Path, prefix: str = "") -> T:
    """Checks plain values against a Struct.

    Args:
        value: What the file holds.
        kind: The Struct.
        path: The file, for errors.
        prefix: The key of `value` in it, for errors; empty for the whole file.

    Raises:
        ConfigError: They do not fit. It names the file and the key, what was got and what is expected there; of an
            unknown key, those that are known beside it.
    """
    _refuse_nonfinite(value, path, prefix)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).rpartition(" - at ")
        if not message:
            message, place = place, ""
        place = place.strip("`").removeprefix("$").removeprefix(".")
        key = ".".join(filter(None, (prefix, place)))
        # The Structs' own checks say "key: got ..., expected ...".
        if isinstance(error.__cause__, ValueError):
            own, _, message = message.partition(": ")
            key = ".".join(filter(None, (key, own)))
        else:
            # Of a table with keys of any name, msgspec does not say which one is wrong.
            key, place = key.removesuffix("[...]"), place.removesuffix("[...]")
            if " in " in place:
                key, message = prefix, "got a key that is no text, expected text"
            elif "[...]" not in place:  # nor which one leads to it
                message = _explained(message, *_walk(value, inspect.type_info(kind), place))
        raise ConfigError(f"{path}: key {key or '(top)'}: {message}") from error


def _walk(value: Any, kind: inspect.Type, place: str) -> tuple[Any, inspect.Type]:
    """What lies at `place` in `value`, and what is expected there."""
    for name, index in _STEP.findall(place):
        for one in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
            if name and isinstance(one, inspect.StructType):
                kind = next(field.type for field in one.fields if field.encode_name == name)
                value = value[name]
            elif index and isinstance(one, inspect.ListType):
                kind, value = one.item_type, value[int(index)]
    return value, kind


def _explained(message: str, got: Any, expected: inspect.Type) -> str:
    """What msgspec found, with the value it found and all that would do."""
    name = re.search(r"(?:unknown|required) field `(.*)`", message)
    if name is None:
        text = repr(got) if len(repr(got)) <= _VALUE_CHARS_MAX else f"{repr(got)[:_VALUE_CHARS_MAX]}..."
        return f"got {text}, expected {_described(expected)}"
    fields = [field.encode_name for field in expected.fields] if isinstance(expected, inspect.StructType) else []
    if "required" in message:
        return f"got no field `{name[1]}`, expected it"
    near = difflib.get_close_matches(name[1], fields, n=1)
    meant = f", did you mean `{near[0]}`?" if near else ""
    return f"got unknown field `{name[1]}`{meant} (known keys here: {', '.join(fields)})"


def _described(kind: inspect.Type) -> str:
    """What a file may say there, in words."""
    if isinstance(kind, inspect.UnionType):
        return " or ".join(_described(one) for one in kind.types if not isinstance(one, inspect.NoneType))
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(map(repr, kind.values))}"
    if isinstance(kind, inspect.ListType):
        least = f" of {kind.min_length} or more" if kind.min_length else ""
        return f"a list{least}, each {_described(kind.item_type)}"
    if isinstance(kind, inspect.DictType):
        return f"a table, each value {_described(kind.value_type)}"
    bounds = [
        f"{words} {bound:g}"
        for name, words in (("gt", "above"), ("ge", "of at least"), ("lt", "below"), ("le", "of at most"))
        if (bound := getattr(kind, name, None)) is not None
    ]
    return " ".join([_KINDS.get(type(kind), "another value"), " and ".join(bounds)]).strip()


def _refuse_nonfinite(value: Any, path: Path, key: str) -> None:
    """TOML and YAML can spell inf and nan, which pass every comparison a Struct makes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}: key {key or '(top)'}: got {value}, expected a finite number")
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_nonfinite(item, path, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_nonfinite(item, path, f"{key}[{index}]")
