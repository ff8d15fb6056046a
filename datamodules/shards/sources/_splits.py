"""Which split of a corpus a file or folder is of, by the words of its name."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..utterance import Audio, Noted, Refused, Utterance, stem

#: What a split is called in names of files, as Hugging Face's library finds it: a word of its own.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_COLUMNS = ("split", "subset", "partition")
_SPLIT_WORD = re.compile(rf"(?<![^\W\d_])({'|'.join(itertools.chain(*_SPLITS.values()))})(?![^\W\d_])", re.IGNORECASE)


def split_of(path: str) -> str:
    """Return ``train``, ``validation`` or ``test`` where a name has a word for it; otherwise an empty text."""
    words = _SPLIT_WORD.findall(stem(path))  # the last one: what stands before it may be the name of the data set
    return next((split for split, names in _SPLITS.items() if words and words[-1].lower() in names), "")


def mixed(paths: Sequence[str]) -> list[Noted]:
    """Return a note where sources of several splits go into one set of shards."""
    first = {split: path for path, split in reversed(_by_place(paths).items())}
    if len(first.keys() - {""}) < 2:
        return []
    named = ", ".join(f"{split} ({first[split]})" for split in _SPLITS if split in first)
    detail = f"{named} go into one set of shards; for a set of each, run the command once for each, with another --out"
    return [Noted(named, "?", "several splits in one", detail)]


def told_apart(where: str, items: Iterable[Utterance | Refused | Noted]) -> Iterator[Utterance | Refused | Noted]:
    """Yield what sources hold, and at the end a note where it is of several splits by rows or where recordings lie."""
    by_row, places = Counter[str](), Counter[str]()
    for item in items:
        if isinstance(item, Utterance) and item.split is None:
            said = (item.fields.get(name) for name in _COLUMNS)
            by_row.update({split_of(f"{value}.") for value in said if isinstance(value, str)} - {""})
            places.update({_place(audio) for audio in item.audio})
        yield item
    by_place = Counter[str]()
    for place, split in _by_place(places).items():
        by_place[split] += places[place] if split else 0
    for counts, what in ((by_row, "rows"), (+by_place, "the names of folders and tars")):
        if len(counts) > 1:
            named = ", ".join(f"{count} {split}" for split, count in counts.most_common())
            detail = (
                f"{what} say {named}, and all go into one set of shards; make a source of each, and build each apart"
            )
            yield Noted(where, "?", "several splits in one", detail)
            return


def _place(audio: Audio) -> str:
    is_inside = audio.region is not None or audio.cell is not None
    return audio.path if is_inside else os.path.dirname(audio.path)


def _by_place(places: Iterable[str]) -> dict[str, str]:
    """Return the split that each place is of, by the last name in its path that has a word for one, or an empty text.

    What all of them lie in says nothing: it may be the folder ``dev`` of whoever works there.
    """
    parts = {place: Path(place).parts for place in places}
    columns = zip(*parts.values(), strict=False)
    num_shared = len(list(itertools.takewhile(lambda names: len(set(names)) == 1, columns)))
    return {
        place: next(filter(None, map(split_of, reversed(names[num_shared:]))), "") for place, names in parts.items()
    }
