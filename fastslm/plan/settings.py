"""The resolved configuration of ``fastslm fit``, without building anything."""

from collections.abc import Sequence
from typing import Any

from fastslm.training.command_line import TrainingCLI, command_line


class _Parsed(TrainingCLI):
    """Parses, and stops there."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        """Leave the run folder alone."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Resolve the configuration."""
        self._dump_config()

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def resolved_settings(options: Sequence[str], tells: bool = False) -> dict[str, Any]:
    """Return what ``fastslm fit`` with these options would be configured as, as nested plain values.

    Args:
        options: those of ``fastslm fit``.
        tells: see ``command_line``.

    Raises:
        ConfigError: an option is wrong.
    """
    config: dict[str, Any] = command_line(_Parsed, ["fit", *options], tells).config_dump
    return config
