"""What goes wrong for a user: each error says what is wrong, where, and what to do."""

import difflib
import re
from collections.abc import Iterable

from fastslm.redaction import redacted

#: What torch puts before the text of an error that a loader's worker raised: the whole traceback.
_WORKERS_TRACEBACK = re.compile(r"Caught \w+ in .+\n(?:\w+\.)+\w+: ", re.DOTALL)


class FastSLMError(ValueError):
    """A mistake that a person can mend; the command prints its text alone, without a traceback.

    Args:
        text: what is wrong, where, and what to do; passwords and signatures in its URLs are left out.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(redacted(_WORKERS_TRACEBACK.sub("", text, count=1).rstrip("\n")))


def cause_of(error: BaseException) -> FastSLMError | None:
    """Return the error for people that another one was raised from; None where there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, FastSLMError):
        cause = cause.__cause__
    return cause


class ConfigError(FastSLMError):
    """A value in the configuration cannot work; the text names its key."""


class DataError(FastSLMError):
    """Shards or samples cannot be used; the text names the shard and the sample."""


class StoreError(FastSLMError):
    """A store of shards cannot be reached, or is too busy; that says nothing of its samples."""


class CheckpointError(FastSLMError):
    """A checkpoint does not fit the model, the data or this version."""


class TrainingError(FastSLMError):
    """Training cannot go on: what it computes is of no use any more."""


class HubError(FastSLMError):
    """The Hugging Face hub cannot be reached, or refuses."""


class MissingExtraError(FastSLMError):
    """An optional package is not installed.

    Args:
        package: the name on PyPI.
        extra: the extra of fastslm that brings it.
        purpose: what it is needed for.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: pip install 'fastslm[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" for the closest of ``known`` in any case, or an empty text when none is close."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
