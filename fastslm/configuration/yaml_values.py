"""YAML of configurations, whose aliases may not write out to more than anybody would have written."""

from collections.abc import Mapping
from typing import Any

import yaml

#: Values that aliases may make of a text that is shorter; one without them has no more values than characters.
_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Takes no key twice: YAML 1.2 (3.2.1.1) forbids it, and the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the values of a mapping."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in lines:
                raise yaml.YAMLError(f"the key {key.value!r} stands twice, in lines {lines[key.value]} and {line}")
            lines[key.value] = line
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values


def load_values(text: str) -> Any:
    """Return the plain values of a YAML text.

    An alias is a reference, and costs nothing here. Whoever copies or walks the values pays for each of them, and nine
    levels of nine aliases are a billion.

    Raises:
        yaml.YAMLError: it is no YAML, is nested too deep, or its aliases write out to too much or to themselves.
    """
    try:
        loader = _Loader(text)
        try:
            values = loader.get_single_data()
        finally:
            loader.dispose()
        size = _written_out(values, {})
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    if size > max(_MOST_VALUES, len(text)):
        raise yaml.YAMLError(f"with its aliases (*) written out it holds more than {_MOST_VALUES:,} values")
    return values


def _written_out(value: Any, known: dict[int, int]) -> int:
    """Return how many values there are, each alias counted as what it stands for.

    Args:
        value: to count.
        known: sizes by identity; 0 while they are counted.

    Raises:
        yaml.YAMLError: a value holds itself.
    """
    if not isinstance(value, (Mapping, list)):
        return 1
    size = known.get(id(value))
    if size == 0:
        raise yaml.YAMLError("an alias (*) stands for what it is part of")
    if size is None:
        known[id(value)] = 0
        inner = value.values() if isinstance(value, Mapping) else value
        size = known[id(value)] = 1 + sum(_written_out(item, known) for item in inner)
    return size
