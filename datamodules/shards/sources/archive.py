"""Tars of a whole corpus, as they are downloaded: manifests and the audio files that they name, side by side."""

import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ...reading.tar import Member, Members
from ..utterance import Audio, Noted, Refused, Utterance
from . import nemo
from ._lines import json_objects
from .options import SourceOptions

_MANIFESTS = ("jsonl", "ndjson", "manifest")


def manifests(groups: Mapping[str, Members]) -> dict[str, Member]:
    """Return the manifests among the members of a tar, by name."""
    return {f"{key}.{kind}": group[kind] for key, group in groups.items() for kind in _MANIFESTS if kind in group}


def read(
    tar: str, groups: Mapping[str, Members], descriptor: int, options: SourceOptions
) -> Iterator[Utterance | Refused | Noted]:
    """Yield the utterances of the manifests in a tar; relative paths start from the manifest's folder in it.

    Of several manifests each is a split, and called like its file: ``train.jsonl`` and ``dev.jsonl``.

    Args:
        tar: its path.
        groups: its members.
        descriptor: the open tar.
        options: of the source.
    """
    found = manifests(groups)
    places = {
        unicodedata.normalize("NFC", os.path.normpath(f"{key}.{kind}")): member
        for key, group in groups.items()
        for kind, member in group.items()
    }
    used: set[str] = set()
    for name, (offset, size) in found.items():
        text = os.pread(descriptor, size, offset).decode("utf-8-sig", "surrogateescape")
        numbered = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        root = options.audio_root or os.path.dirname(name)
        split = os.path.splitext(os.path.basename(name))[0] if len(found) > 1 else None
        for item in nemo.from_rows(json_objects(f"{tar}/{name}", numbered), root, options):
            if not isinstance(item, Utterance):
                yield item
                continue
            audio = []
            for part in item.audio:
                inside = unicodedata.normalize("NFC", os.path.normpath(part.path))
                if inside in places:
                    used.add(inside)
                    audio.append(_inside(part, tar, places[inside]))
            if len(audio) < len(item.audio):
                yield Refused(item.where, item.key, "missing audio", f"the tar has no member {item.audio[0].path}")
            else:
                yield replace(item, audio=audio, split=split)
    unused = len(places) - len(used) - len(found)
    if unused:
        yield Noted(tar, "?", "members left out", f"{unused} members that no manifest names")


def _inside(audio: Audio, tar: str, member: Member) -> Audio:
    return replace(audio, path=tar, region=(member.offset, member.size), num_bytes=member.size)
