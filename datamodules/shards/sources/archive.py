"""Tars of a whole corpus, as they are downloaded: manifests and the audio files that they name, side by side."""

import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import BinaryIO

from ...reading.audio import open_region
from ...reading.store import tar_state
from ...reading.tar import Contents, Member, Members
from ..utterance import Noted, Refused, Utterance
from . import nemo
from ._lines import json_objects, lines_of
from .options import SourceOptions

_MANIFESTS = ("jsonl", "ndjson", "manifest")


def manifests(groups: Mapping[str, Members]) -> dict[str, Member]:
    """Return the manifests among the members of a tar, by name."""
    return {f"{key}.{kind}": group[kind] for key, group in groups.items() for kind in _MANIFESTS if kind in group}


def read(tar: str, contents: Contents, file: BinaryIO, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    """Yield the utterances of the manifests in a tar; relative paths start from the manifest's folder in it.

    Of several manifests each is a split, and called like its file: ``train.jsonl`` and ``dev.jsonl``.
    """
    found = manifests(contents.groups)
    places = {unicodedata.normalize("NFC", name): member for name, member in contents.places.items()}
    spelt = {_spelt_small(name): name for name in reversed(places)}
    used: set[str] = set()
    state = tar_state(file.fileno())
    for name, member in found.items():
        numbered = lines_of(f"{tar}/{name}", open_region(file.fileno(), *member))
        root = options.audio_root or os.path.dirname(name)
        split = os.path.splitext(os.path.basename(name))[0] if len(found) > 1 else None
        for item in nemo.from_rows(json_objects(f"{tar}/{name}", numbered), root, options):
            if not isinstance(item, Utterance):
                yield item
                continue
            audio = []
            for part in item.audio:
                inside = unicodedata.normalize("NFC", os.path.normpath(part.path))
                inside = inside if inside in places else spelt.get(_spelt_small(inside), inside)
                if inside in places:
                    used.add(inside)
                    offset, size = places[inside]
                    audio.append(replace(part, path=tar, region=(offset, size), num_bytes=size, container=state))
            if len(audio) < len(item.audio):
                yield Refused(item.where, item.key, "missing audio", f"the tar has no member {item.audio[0].path}")
            else:
                yield replace(item, audio=audio, split=split)
    unused = len(places) - len(used) - len(found)
    if unused:
        yield Noted(tar, "?", "members left out", f"{unused} members that no manifest names")


def _spelt_small(name: str) -> str:
    """Return a name with its ending in small letters."""
    root, ending = os.path.splitext(name)
    return root + ending.lower()
