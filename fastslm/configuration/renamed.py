"""Keys of configurations that have another name now: stored ones are read under the new name, new ones are told it."""

from collections.abc import Mapping
from typing import Any

#: Old key to new key, both from the root of a configuration.
RENAMED = {
    "model.mel_range": "model.encoder.init_args.mel_range",
    "data.init_args.piece_seconds": "data.init_args.chunk_seconds",
}


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with its old keys under their new names; what stands there already stays."""
    found = dict(config)
    for old, new in RENAMED.items():
        found = _moved(found, old.split("."), new.split("."))
    return found


def _moved(config: dict[str, Any], old: list[str], new: list[str]) -> dict[str, Any]:
    parent = _at(config, old[:-1])
    if not isinstance(parent, Mapping) or old[-1] not in parent:
        return config
    value = parent[old[-1]]
    config = _with(config, old[:-1], {name: v for name, v in parent.items() if name != old[-1]})
    place = _at(config, new[:-1])
    if place is None:
        return config if _at(config, new[:-2]) is None else _with(config, new[:-1], {new[-1]: value})
    return _with(config, new[:-1], {new[-1]: value, **place}) if isinstance(place, Mapping) else config


def _at(config: Any, keys: list[str]) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _with(config: Mapping[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    """Return a copy with another value at a place."""
    if not keys:
        return dict(value)
    inner = config.get(keys[0])
    return {**config, keys[0]: _with(inner if isinstance(inner, Mapping) else {}, keys[1:], value)}
