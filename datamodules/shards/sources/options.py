"""How the readers of corpora are told to read."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SourceOptions:
    """How sources are read.

    Attributes:
        audio_root: folder that relative audio paths start from; None takes the folder of the source.
        columns: column by standard name, for sources with rows.
    """

    audio_root: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
