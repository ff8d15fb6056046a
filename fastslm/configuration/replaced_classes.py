"""Says what is left behind when a config or flag puts one class in place of another.

jsonargparse keeps settings of the earlier class that the new one has too, drops the others, and tells its debug log.
"""

import logging
import re
import sys

from fastslm.processes.launched import is_first_process

_DROPPED = re.compile(
    r"Due to class_path change from '([^']*)' to '([^']*)', discarding init_args: \{(.*)\}\.$", re.DOTALL
)


class _Teller(logging.Handler):
    """Prints each replacement once, on the first process."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        found = _DROPPED.match(record.getMessage())
        if found is None or not is_first_process():
            return
        old, new = (name.rpartition(".")[2] for name in found.group(1, 2))
        text = f"{new} takes the place of {old} and has no such settings, so these are dropped: {found.group(3)}."
        if text not in self._told:
            self._told.add(text)
            print(f"fastslm: {text}", file=sys.stderr)


def replacement_logger() -> logging.Logger:
    """Return a logger for a parser that prints replacements, and nothing else of what the parser logs."""
    logger = logging.getLogger(__name__)  # by name: parsers are copied, which only such a logger survives
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers = [_Teller()]
    return logger
