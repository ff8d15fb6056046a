"""What Lightning, and a class that it makes for a configuration, refuses: one sentence in place of a traceback."""

import re
import traceback
from typing import Any

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

from fastslm.errors import ConfigError, FastSLMError

_LONGEST = 500
#: Raised on purpose, as a rule; others are slips of code, whose traceback says more than their text, unless the line
#: that they come from says ``raise``.
_ON_PURPOSE = (ValueError, RuntimeError, ImportError)
_KEYS: dict[type, str] = {
    Logger: "trainer.logger",
    Callback: "trainer.callbacks",
    Profiler: "trainer.profiler",
    Strategy: "trainer.strategy",
}


class NotMade(BaseException):
    """A class could not be made. No ``Exception``: jsonargparse would take one for a value of another type.

    Args:
        error: for people.
    """

    def __init__(self, error: FastSLMError) -> None:
        super().__init__(str(error))
        self.error = error


def name_refusals(parser: ArgumentParser) -> None:
    """Let a parser raise ``NotMade`` with the reason where a part of the trainer refuses to be made."""
    for kind, key in _KEYS.items():

        def make(made: type, *arguments: Any, _key: str = key, **named: Any) -> Any:
            try:
                return made(*arguments, **named)
            except FastSLMError as error:
                raise NotMade(error) from error
            except Exception as error:  # whatever a third party's class raises
                raise NotMade(ConfigError(f"{_key}: {made.__name__} cannot be made: {_line(error)}")) from error

        parser.add_instantiator(make, kind)


def refusal(error: Exception) -> str | None:
    """Return the sentence for people where Lightning refused a setting; None for every other error."""
    if isinstance(error, MisconfigurationException):
        return f"trainer: {_line(error)}"
    frames = traceback.extract_tb(error.__traceback__)
    by_lightning = bool(frames) and re.search(r"[/\\](pytorch_)?lightning[/\\]", frames[-1].filename)
    on_purpose = isinstance(error, _ON_PURPOSE) or (frames and str(frames[-1].line).startswith("raise "))
    return f"trainer: {_line(error)}" if by_lightning and on_purpose else None


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
