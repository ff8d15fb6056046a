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
_SEVERAL = "several splits in one"
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
    return [Noted(named, "?", _SEVERAL, detail)]


def told_apart(
    where: str, items: Iterable[Utterance | Refused | Noted], by_rows: bool = True
) -> Iterator[Utterance | Refused | Noted]:
    """Yield what sources hold, and at the end a note where it is of several splits by rows or where recordings lie.

    Args:
        where: the place that the note names.
        items: what they hold; utterances that have a split of their own are not asked.
        by_rows: ask rows, too.
    """
    by_row, by_place, places = Counter[str](), Counter[str](), Counter[str]()
    first_row: dict[str, str] = {}
    first_place: dict[str, str] = {}
    for item in items:
        if isinstance(item, Utterance) and item.split is None:
            said = (item.fields.get(name) for name in _COLUMNS if by_rows)
            for split in {split_of(f"{value}.") for value in said if isinstance(value, str)} - {""}:
                by_row[split] += 1
                first_row.setdefault(split, item.where)
            places.update({_place(audio) for audio in item.audio})
        yield item
    for place, split in _by_place(places).items():
        if split:
            by_place[split] += places[place]
            first_place.setdefault(split, place)
    for counts, first, what in (
        (by_row, first_row, "rows"),
        (by_place, first_place, "the names of folders and tars"),
    ):
        if len(counts) > 1:
            named = ", ".join(f"{count} {split} (first {first[split]})" for split, count in counts.most_common())
            detail = (
                f"{what} say {named}, and all go into one set of shards; make a source of each, and build each apart"
            )
            yield Noted(where, "?", _SEVERAL, detail)
            return


def _place(audio: Audio) -> str:
    is_inside = audio.region is not None or audio.cell is not None
    return audio.path if is_inside else os.path.dirname(audio.path)


def _by_place(places: Iterable[str]) -> dict[str, str]:
    """Return the split that each place is of, by the last name in its path that has a word for one, or an empty text.

    The folders above all of them say nothing: one may be the folder ``dev`` of whoever works there.
    """
    parts = {place: Path(place).parts for place in places}
    columns = zip(*parts.values(), strict=False)
    num_shared = len(list(itertools.takewhile(lambda names: len(set(names)) == 1, columns)))
    own = {place: names[min(num_shared, len(names) - 1) :] for place, names in parts.items()}
    return {place: next(filter(None, map(split_of, reversed(names))), "") for place, names in own.items()}
