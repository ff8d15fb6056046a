"""YAML of configurations, whose aliases may not write out to more than anybody would have written."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

#: Values that aliases may make of a text that is shorter; one without them has no more values than characters.
_MOST_VALUES = 100_000
_OCTAL = re.compile(r"[-+]?0[0-7_]*[1-7][0-7_]*")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Takes no key twice and no number of another base, which YAML 1.2 (3.2.1.1, 10.3.2) does not have either.

    The first value of a key would be lost without a word, and ``010`` be 8.
    """

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """Return a number, unless YAML 1.1 reads it otherwise than its digits say: ``010`` is 8, ``1:00:00`` 3600."""
        kind = node.tag.rpartition(":")[2]
        value: float = self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)
        if ":" in node.value or (kind == "int" and _OCTAL.fullmatch(node.value)):
            raise yaml.YAMLError(
                f"{node.value} in line {node.start_mark.line + 1} is the number {value:g} in YAML. Write '{node.value}'"
                " in quotes where text is meant, and a number without a zero before it or colons"
            )
        return value

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


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


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
