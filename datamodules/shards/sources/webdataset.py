"""Existing tar shards: audio beside ``.json``, ``.txt`` or both; and tars of a corpus with its manifests."""

import glob
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fastslm.errors import DataError
from fastslm.files import open_file, walk

from ...index.dialogues import parse_fields
from ...index.sidecar import checksums_beside
from ...reading.store import tar_state
from ...reading.tar import NO_SAMPLE, Members, read_groups, read_text, recording_names, recordings_of
from ..naming import renamed, resolve_columns
from ..opening import modified
from ..times import TIMES, stated_length, untaken
from ..utterance import Audio, Noted, Refused, Utterance, answer_field
from . import archive
from ._doubts import other_text
from .options import SourceOptions

_LISTS = ("jsonl", "ndjson", "manifest")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def detect(path: str) -> bool:
    """Say whether this is a tar, or a folder of tars."""
    if os.path.isdir(path):
        return bool(_tars(path))
    return path.endswith((".tar", *_COMPRESSED))


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    """Yield the samples of a tar, or of all tars in a folder.

    Raises:
        DataError: a tar is compressed or no tar.
    """
    shards = _tars(path) if os.path.isdir(path) else [path]
    for packed in sorted(f for f in os.listdir(path) if f.endswith(_COMPRESSED)) if os.path.isdir(path) else ():
        yield Refused(os.path.join(path, packed), "?", "packed tar", "samples are read by offset: unpack it to .tar")
    if below := sum(name.endswith(".tar") for part in walk(path) if part.path != path for name in part.names):
        yield Noted(path, "?", "files left out", f"{below} tars in folders below it; give those folders, too")
    for shard in shards:
        if shard.endswith(_COMPRESSED):
            raise DataError(f"{shard}: a compressed tar cannot be read by offset. Unpack it to .tar first (gunzip).")
        try:
            with open_file(shard) as file:
                contents = read_groups(file, shard)
                manifests = archive.manifests(shard, contents, file, options)
                noted = [item for item in contents.noted if not (manifests and item.detail.endswith(NO_SAMPLE))]
                yield from (Noted(shard, item.key, item.reason, item.detail) for item in noted)
                yield from (Refused(shard, item.key, item.reason, item.detail) for item in contents.lost)
                if manifests:
                    yield from archive.read(shard, manifests, contents, file, options)
                    continue
                left: Counter[str] = Counter()
                state = tar_state(file.fileno())
                try:
                    known = checksums_beside(shard)
                except (DataError, OSError) as error:
                    known = {}
                    yield Noted(shard, "?", "damaged index", str(error))
                for key, members in contents.groups.items():
                    if all(name.lower().removesuffix(".gz").endswith(_LISTS) for name in members):  # no sample's
                        left.update(members.keys())
                        continue
                    sample = _sample(shard, key, members, file.fileno(), known, options)
                    for audio in sample.audio if isinstance(sample, Utterance) else ():
                        audio.container = state
                    yield sample
                    if isinstance(sample, Utterance):
                        taken = {"json", "txt", *recording_names(members)}
                        left.update(members.keys() - taken)
                        remarks = [] if "text" in options.columns else [*other_text(sample)]
                        if all(audio.stated is None for audio in sample.audio):  # otherwise they are compared with it
                            remarks += untaken(sample)
                        yield from Noted.of(sample, remarks)
                for extension, count in sorted(left.items()):
                    yield Noted(shard, "?", "members left out", f"{count} of samples that end in .{extension}")
        except OSError as error:
            raise DataError(f"{shard}: {error.strerror or error}.") from error


def _tars(folder: str) -> list[str]:
    return sorted(glob.glob(os.path.join(glob.escape(folder), "*.tar")))  # without the companions of macOS


def _sample(
    shard: str,
    key: str,
    members: Members,
    descriptor: int,
    known: Mapping[tuple[int, int], int],
    options: SourceOptions,
) -> Utterance | Refused:
    fields: dict[str, Any] = {}
    if not {"json", "txt"} & members.keys():
        detail = (
            "no .json or .txt lies beside it, and the tar has no manifest that names its files; where one elsewhere has"
            " the texts, unpack the tars and build from it"
        )
        return Refused(shard, key, "missing text", detail)
    try:
        if "json" in members:
            data = read_text(descriptor, members["json"])
            if known.get(members["json"]) not in (None, zlib.crc32(data)):
                raise modified("json", shard)
            fields = parse_fields(data)
        resolved = resolve_columns(fields, {n: c for n, c in options.columns.items() if c in fields}, shard)
        times = {name: fields.get(resolved.pop(name)) for name in TIMES if name in resolved}
        for kept in ("audio", "id"):  # its own key and audio are those of the tar
            resolved.pop(kept, None)
        fields = renamed(fields, resolved)
        stated = stated_length(times)
        if "txt" in members:
            text = read_text(descriptor, members["txt"]).decode("utf-8-sig").strip()
            if text and answer_field(fields) in ("text", None) and fields.get("text") not in (None, "", text):
                raise DataError(f"two texts: the .json says {fields['text']!r:.60}, the .txt {text!r:.60}")
            fields["text"] = fields.get("text") or text
    except UnicodeDecodeError as error:
        return Refused(shard, key, "unreadable text", str(error))
    except DataError as error:
        return Refused.at(shard, key, error)
    recordings = recordings_of(members)
    if not recordings and fields.get("messages") is None:
        there = ", ".join(sorted(members))
        return Refused(shard, key, "missing audio", f"of its members ({there:.80}) none is audio, by their names")
    stated = stated if len(recordings) == 1 else None
    audio = [
        Audio(shard, region=(m.offset, m.size), num_bytes=m.size, stated=stated, crc32=known.get(m))
        for _, m in recordings
    ]
    group = fields.get("group")
    fields.pop("duration", None)
    return Utterance(key, audio, fields, f"{shard} sample {key}", None if group in (None, "") else str(group))
