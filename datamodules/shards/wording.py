"""Numbers as the reports of ``fastslm shards`` say them."""


def counted(number: int, what: str) -> str:
    """Return ``1 shard``, ``2 shards``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def length(seconds: float) -> str:
    """Return hours, or seconds where hundredths of an hour say little."""
    return f"{seconds / 3600:.2f} hours" if seconds >= 360 else f"{seconds:.0f} s"
