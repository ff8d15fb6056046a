"""Shares of a corpus, and draws from it: both follow from numbers and names alone, the same in every process."""

import hashlib
import re
from dataclasses import dataclass

from fastslm.errors import DataError


@dataclass(frozen=True)
class Part:
    """One of several builds that share a corpus: ``number`` of ``of``, counted from 1."""

    number: int = 1
    of: int = 1

    @staticmethod
    def parse(text: str) -> "Part":
        """Return the part that ``3/10`` names.

        Raises:
            DataError: it is none.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise DataError(
                f"--part {text}: write i/n with i from 1 to n, such as --part 3/10. In an array job that counts from 0:"
                " --part $((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT"
            )
        return Part(int(match[1]), int(match[2]))

    def has(self, number: int) -> bool:
        """Say whether what has a number, counted from 0, is of this part."""
        return number % self.of == self.number - 1

    @property
    def suffix(self) -> str:
        """What stands in the names of this part's files; nothing where there is one part alone."""
        width = len(str(self.of))
        return "" if self.of == 1 else f"-p{self.number:0{width}d}of{self.of}"


def draw(seed: int, name: str) -> bytes:
    """Return bytes that follow from seed and name alone: sorted by them, names are shuffled."""
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
