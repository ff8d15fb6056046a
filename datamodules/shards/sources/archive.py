"""Tars of a whole corpus, as they are downloaded: manifests and the audio files that they name, side by side."""

import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import BinaryIO

from fastslm.errors import DataError

from ...reading.audio import open_region
from ...reading.store import tar_state
from ...reading.tar import Contents, Member, Members, recording_names
from ..utterance import Noted, Refused, Utterance
from . import nemo
from ._lines import first_objects, is_json_lines, json_objects, lines_of
from ._splits import told_apart
from .options import SourceOptions


def manifests(tar: str, contents: Contents, file: BinaryIO, options: SourceOptions) -> dict[str, Member]:
    """Return the manifests in a tar by name: JSON lines that belong to no sample.

    Where they name not one of its members, the tar is one of samples, and has none.
    """
    of_samples = {member for group in contents.groups.values() if _is_sample(group) for member in group.values()}
    found = {
        name: member
        for name, member in contents.places.items()
        if is_json_lines(name) and not os.path.basename(name).startswith(".") and member not in of_samples
        if not (name.endswith(".gz") and name.removesuffix(".gz") in contents.places)  # the same, packed
        if _has_rows(f"{tar}/{name}", member, file, options)
    }
    places = _Places(contents)
    items = (item for name, member in found.items() for item in _items(f"{tar}/{name}", name, member, file, options))
    named = (audio.path for item in items if isinstance(item, Utterance) for audio in item.audio)
    return found if any(map(places.find, named)) else {}


def read(
    tar: str, found: Mapping[str, Member], contents: Contents, file: BinaryIO, options: SourceOptions
) -> Iterator[Utterance | Refused | Noted]:
    """Yield the utterances of the manifests in a tar, each manifest a split where there are several."""
    places, used, splits = _Places(contents), set[str](), split_names(found)
    state = tar_state(file.fileno())
    has_splits = len(found) > 1  # else its rows are asked with those of the other sources
    for name, member in found.items():
        where = f"{tar}/{name}"
        for item in told_apart(where, _items(where, name, member, file, options), by_rows=has_splits):
            if not isinstance(item, Utterance):
                yield item
                continue
            inside = [place for audio in item.audio if (place := places.find(audio.path))]
            if len(inside) < len(item.audio):
                yield Refused(item.where, item.key, "missing audio", f"the tar has no member {item.audio[0].path}")
                continue
            used.update(inside)
            regions = [places.members[place] for place in inside]
            audio = [
                replace(part, path=tar, region=(offset, size), num_bytes=size, container=state)
                for part, (offset, size) in zip(item.audio, regions, strict=True)
            ]
            yield replace(item, audio=audio, split=splits[name] if has_splits else None)
    unused = len(places.members) - len(used) - len(found)
    if unused:
        yield Noted(tar, "?", "members left out", f"{unused} members that no manifest names")


def split_names(names: Iterable[str]) -> dict[str, str]:
    """Return what the split of each manifest is called: its name, behind as many folders as tell all of them apart."""
    parts = {name: tuple(_without_ending(name).split("/")) for name in names}
    num_apart = len(set(parts.values()))
    depth = next(n for n in itertools.count(1) if len({path[-n:] for path in parts.values()}) == num_apart)
    return {name: "-".join(path[-depth:]) for name, path in parts.items()}


class _Places:
    """The members of a tar by the names that a manifest may give them."""

    def __init__(self, contents: Contents) -> None:
        self.members = {unicodedata.normalize("NFC", name): member for name, member in contents.places.items()}
        self._spelt = {_spelt_small(name): name for name in reversed(self.members)}

    def find(self, path: str) -> str | None:
        """Return the name of the member that a path of a manifest means, None if there is none."""
        name = unicodedata.normalize("NFC", os.path.normpath(path))
        return name if name in self.members else self._spelt.get(_spelt_small(name))


def _is_sample(group: Members) -> bool:
    """Say whether members of one name are a sample: words and audio."""
    return not group.keys().isdisjoint(("json", "txt")) and bool(recording_names(group))


def _has_rows(where: str, member: Member, file: BinaryIO, options: SourceOptions) -> bool:
    """Say whether JSON is a manifest by its name, or has rows that name audio; one object is that of a recording."""
    if not where.lower().removesuffix(".gz").endswith(".json"):
        return True
    try:
        rows = first_objects(json_objects(where, lines_of(where, open_region(file.fileno(), *member))))
        first = list(itertools.islice(rows, 2))
    except DataError:  # is refused as a sample's where it is read
        return False
    return len(first) == 2 and nemo.names_audio(first[0], options.columns.get("audio"))


def _items(
    where: str, name: str, member: Member, file: BinaryIO, options: SourceOptions
) -> Iterator[Utterance | Refused | Noted]:
    """Yield what the rows of a manifest are; relative paths start from its folder in the tar."""
    numbered = lines_of(where, open_region(file.fileno(), *member))
    return nemo.from_rows(json_objects(where, numbered), options.audio_root or os.path.dirname(name), options)


def _without_ending(name: str) -> str:
    root, ending = os.path.splitext(name)
    return os.path.splitext(root)[0] if ending.lower() == ".gz" else root


def _spelt_small(name: str) -> str:
    """Return a name with its ending in small letters."""
    root, ending = os.path.splitext(name)
    return root + ending.lower()
