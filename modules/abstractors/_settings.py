"""Settings that compressors share: what is allowed, and the hidden width that meets a number of parameters."""

from bisect import bisect_left
from collections.abc import Callable

from fastslm.errors import ConfigError

KEY = "model.abstractor"

_STEP = 8  # matched widths are multiples of it: matrix units are slow at odd ones


def at_least_one(name: str, value: int) -> int:
    """Return ``value``.

    Raises:
        ConfigError: it is below 1.
    """
    if value < 1:
        raise ConfigError(f"{KEY}.{name}: {value} must be at least 1.")
    return value


def heads_of(width: int, head_width: int | None) -> int:
    """Return how many attention heads of ``head_width`` make up ``width``; None is 64, or a quarter of narrow widths.

    Raises:
        ConfigError: they do not.
    """
    if head_width is None:
        head_width = 64 if width >= 256 else max(1, width // 4)
    if head_width < 1 or width % head_width:
        raise ConfigError(
            f"{KEY}.head_width: {head_width} does not divide the encoder's width {width}. Choose a divisor."
        )
    return width // head_width


def hidden_width(
    name: str, given: int | None, match_parameters: int | None, default: int, count: Callable[[int], int]
) -> int:
    """Return the hidden width: as given, or closest to a number of parameters, or the default.

    Args:
        name: its argument's name.
        given: its argument.
        match_parameters: parameters to come close to.
        default: taken when neither is given.
        count: parameters of the whole compressor at a width; rises with it.

    Raises:
        ConfigError: both are given, the width is below 1, or even the narrowest has more parameters.
    """
    if match_parameters is None:
        return default if given is None else at_least_one(name, given)
    if given is not None:
        raise ConfigError(
            f"{KEY}.match_parameters: {match_parameters} would choose the width that {KEY}.{name}: {given} sets. Remove"
            " one of them."
        )
    if match_parameters < count(_STEP):
        raise ConfigError(
            f"{KEY}.match_parameters: {match_parameters} cannot be met, with {KEY}.{name}: {_STEP} there are"
            f" {count(_STEP)} already. Raise it, or choose another compressor."
        )
    widths = range(_STEP, 2 * match_parameters, _STEP)
    above = bisect_left(widths, match_parameters, key=count)
    return min(widths[max(0, above - 1) : above + 1], key=lambda width: abs(count(width) - match_parameters))
