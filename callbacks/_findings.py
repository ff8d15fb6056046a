"""What was found in samples that were read: counts by kind, and the first of each."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from fastslm.path.batch import Batch


@dataclass
class Findings:
    """What was found in samples; a count of a kind, and what the first of the kind says.

    Attributes:
        seen: samples read, broken ones too.
        broken: by shard and reason.
        doubts: by reason.
        spelling: samples whose words spell out control tokens.
        spelt: by control token: samples.
        unreadable: samples with characters that the tokenizer does not know.
        unknown: by character: samples.
        first: by what is counted, as a key of ``broken`` or ``doubts``, ``spelling`` or ``unreadable``.
    """

    seen: int = 0
    broken: Counter[tuple[str, str]] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    spelling: int = 0
    spelt: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    first: dict[tuple[str, ...], str] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Return what is found in a batch."""
        found = cls(seen=sum(weight > 0 for weight in batch.weights) + len(batch.broken))
        for key, dialogue in zip(batch.keys, batch.dialogues, strict=True):
            if dialogue.spelt:
                found.spelling += 1
                found.spelt.update(set(dialogue.spelt))
                found.first.setdefault(("spelling",), f"sample {key!r}")
            if dialogue.unknown:
                found.unreadable += 1
                found.unknown.update(set(dialogue.unknown))
                found.first.setdefault(("unreadable",), f"sample {key!r}")
        for item in batch.doubtful:
            found.doubts[item["reason"]] += 1
            first = f"{item['shard']}, sample {item['key']!r}: {item['detail']}"
            found.first.setdefault(("doubts", item["reason"]), first)
        for item in batch.broken:
            place = (item["shard"], item["reason"])
            found.broken[place] += 1
            found.first.setdefault(("broken", *place), f"sample {item['key']!r}: {item['detail']}")
        return found

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Self:
        """Return what ``state`` was made of."""
        found = cls()
        for name, value in state.items():
            kept = getattr(found, name)
            setattr(found, name, type(kept)(value))
        return found

    def state(self) -> dict[str, Any]:
        """Return it in plain types, for a checkpoint."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}

    def add(self, other: "Findings") -> None:
        """Add what was found later, or elsewhere."""
        self.seen += other.seen
        self.spelling += other.spelling
        self.unreadable += other.unreadable
        self.broken.update(other.broken)
        self.doubts.update(other.doubts)
        self.spelt.update(other.spelt)
        self.unknown.update(other.unknown)
        self.first = other.first | self.first

    def broken_table(self) -> str:
        """Return the most frequent kinds of broken samples, each with its first."""
        return "; ".join(
            f"{count} x {reason} in {shard} (first: {self.first['broken', shard, reason]})"
            for (shard, reason), count in self.broken.most_common(10)
        )

    def lines(self) -> list[str]:
        """Return what to show of it, a line each."""
        lines = []
        if self.broken:
            lines.append(f"{self.broken.total()} of {self.seen} samples broken: {self.broken_table()}")
        for reason, count in self.doubts.most_common():
            first = self.first["doubts", reason]
            lines.append(f"{count} of {self.seen} samples are to be looked at: {reason} (first: {first})")
        if self.spelling:
            tokens = ", ".join(f"{count} x {token}" for token, count in self.spelt.most_common(5))
            lines.append(
                f"{self.spelling} of {self.seen} samples spell out control tokens, which are read as text: {tokens}"
                f" (first: {self.first[('spelling',)]})"
            )
        if self.unreadable:
            most = ", ".join(f"{count} x {words!r}" for words, count in self.unknown.most_common(10))
            more = f" and {len(self.unknown) - 10} others" if len(self.unknown) > 10 else ""
            lines.append(
                f"in {self.unreadable} of {self.seen} samples or their prompts the tokenizer does not know these"
                f" characters: {most}{more}; they are all read as its unk_token (first: {self.first[('unreadable',)]})"
            )
        return lines
