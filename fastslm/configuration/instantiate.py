"""From plain values to what they describe, through the types of constructors."""

from collections.abc import Mapping
from typing import Any

import yaml

from fastslm.configuration.messages import shorten
from fastslm.errors import ConfigError, FastSLMError, cause_of
from fastslm.plugins import discover
from fastslm.trust import installed_only


def instantiated(parser: Any, values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return what a parser's classes make of values, and the values with all defaults, as plain ones.

    Raises:
        ConfigError: a key or value is not accepted, or names a module that lies in the working directory.
    """
    from jsonargparse import ArgumentError

    with installed_only():
        try:
            config = parser.parse_object(dict(values))
            return parser.instantiate(config), yaml.safe_load(parser.dump(config, skip_unset=False))
        except FastSLMError:
            raise
        except (ArgumentError, TypeError, ValueError) as error:
            if (ours := cause_of(error)) is not None:
                raise ours from None
            options = [action.dest for action in parser._actions]
            raise ConfigError(shorten(str(error), options, discover())) from error
        except Exception as error:  # whatever a third party's part raises when it is made
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"the configuration of the model cannot be built here: {what[:300]}") from error
