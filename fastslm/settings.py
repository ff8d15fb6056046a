"""What a setting changes: said once, where the setting is documented, and read by all that compares runs."""

from dataclasses import MISSING, field
from typing import Any, Literal

#: What another value of a setting changes:
#: ``weights``: what trained weights mean, so that a checkpoint made with another value is of no use;
#: ``run``: what a run computes: its weights can be used with another value, and a run cannot go on with one;
#: ``nothing``: neither: speed, memory, what is shown, or how training goes on.
Change = Literal["weights", "run", "nothing"]


def setting(
    default: Any = MISSING,
    *,
    changes: Change,
    default_factory: Any = MISSING,
    restored: bool = False,
) -> Any:
    """Return a field of a dataclass of settings.

    Args:
        default: its default.
        changes: what another value changes.
        default_factory: makes the default.
        restored: a run that goes on takes the value from its checkpoint, whatever is given.
    """
    metadata = {"changes": changes, "restored": restored}
    return field(default=default, default_factory=default_factory, metadata=metadata)
