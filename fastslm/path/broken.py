"""A sample that cannot be used, and why."""

from dataclasses import dataclass


@dataclass
class Broken:
    """A sample that cannot be used, and why; counted, shown, never silent.

    Attributes:
        shard: the file it is from.
        key: its name.
        reason: a few words by which such samples are counted.
        detail: what is particular to this one.
    """

    shard: str
    key: str
    reason: str
    detail: str = ""

    @property
    def remark(self) -> dict[str, str]:
        """It, as the index of its shard keeps it."""
        return {"key": self.key, "reason": self.reason, "detail": self.detail}

    @staticmethod
    def of(shard: str, key: str, error: Exception) -> "Broken":
        """Return what an error of the form ``reason: detail`` says of a sample."""
        reason, _, detail = str(error).partition(": ")
        return Broken(shard, key, reason, detail)
