"""A tar read once, from end to end, to the rows of its index: places, lengths, checksums, and what cannot be used."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastslm.audio.info import AudioInfo
from fastslm.errors import DataError
from fastslm.path.broken import Broken
from fastslm.path.prompt import Prompter, messages_of

from ..reading.audio import open_region, read_info
from ..reading.store import TarState, tar_state
from ..reading.tar import AUDIO_EXTENSIONS, Member, Members, read_groups, read_text, recordings_of
from .columns import RECORDING_COLUMNS, SAMPLE_COLUMNS, ShardRows, coded, pack_keys
from .dialogues import count_ids, parse_fields, prompts_of, task_of, tokenizer_digest
from .doubts import doubts

_BLOCK_BYTES = 1 << 20


@dataclass
class _Row:
    """One sample on its way into the columns."""

    key: str
    json: tuple[int, int, int]
    task: str
    language: str
    text_characters: int
    text_tokens: int
    recordings: list[tuple[str, Member, int, AudioInfo]]


def scan_tar(path: str | os.PathLike[str], prompter: Prompter | None = None, tokenizer: str | None = None) -> ShardRows:
    """Read a local tar once, from end to end, and return its rows; samples that cannot be used are listed in them.

    Audio headers are read and checksums taken; audio is not decoded.

    Args:
        path: of the tar.
        prompter: counts the text of each sample in ids; without one the counts are left open (-1).
        tokenizer: a name for the prompter's tokenizer, for people; its digest is what is compared.

    Raises:
        DataError: the tar is missing, is no uncompressed tar, or holds no sample at all.
        MissingExtraError: it holds audio that needs the extra ``av``.
    """
    path = os.fspath(path)
    try:
        state = tar_state(path)
        with open(path, "rb", buffering=0) as file:
            with open(path, "rb") as buffered:
                groups, lost, noted, _ = read_groups(buffered, path)
            broken, doubtful = [item.remark for item in lost], [item.remark for item in noted]
            rows = []
            for key, members in groups.items():
                try:
                    rows.append(_row(key, members, file.fileno(), prompter, doubtful))
                except DataError as error:
                    broken.append(Broken.of(path, key, error).remark)
    except OSError as error:
        raise DataError(f"shard {path}: {error.strerror or error}.") from error
    if not groups and not lost:
        raise DataError(f"shard {path}: holds no sample. Remove it from the list or build it anew.")
    name = None if prompter is None else tokenizer or prompter.tokenizer.name_or_path
    digest = None if prompter is None else tokenizer_digest(prompter)
    return replace(_in_columns(state, rows, broken, name, digest), doubtful=doubtful)


def _row(
    key: str, members: Members, descriptor: int, prompter: Prompter | None, doubtful: list[dict[str, str]]
) -> _Row:
    if "json" not in members:
        several = f"; {len(members)} members share its name up to the first dot" if len(members) > 1 else ""
        raise DataError(f"missing json: the sample has no .json member beside its audio{several}")
    data = read_text(descriptor, members["json"])
    fields = parse_fields(data)
    recordings = recordings_of(members)
    if not recordings and fields.get("messages") is None:
        raise DataError(f"missing audio: the sample has no member ending in {', '.join(AUDIO_EXTENSIONS)}")
    found = []
    for extension, member in recordings:
        info = read_info(open_region(descriptor, *member))
        found.append((extension, member, crc32_of(descriptor, member), info))
    try:
        messages = messages_of(fields, needs_answer=False)
    except DataError as error:
        raise DataError(f"missing text: {error}") from error
    doubtful += [Broken.of("", key, doubt).remark for doubt in doubts(fields, [info for *_, info in found])]
    return _Row(
        key,
        (*members["json"], zlib.crc32(data)),
        task_of(fields),
        str(fields.get("language") or ""),
        len(messages[-1]["content"].strip()),
        -1 if prompter is None else count_ids(fields, prompter, len(recordings)),
        found,
    )


def crc32_of(descriptor: int, region: Sequence[int]) -> int:
    """Return the CRC-32 (as in zip and gzip) of a region of a local file, read in blocks.

    Raises:
        DataError: the file ends before the region does.
    """
    offset, left, crc = region[0], region[1], 0
    while left > 0:
        block = os.pread(descriptor, min(left, _BLOCK_BYTES), offset)
        if not block:
            raise DataError("truncated shard: the sample runs past the end")
        crc = zlib.crc32(block, crc)
        offset, left = offset + len(block), left - len(block)
    return crc


def _in_columns(
    state: TarState, rows: Sequence[_Row], broken: list[dict[str, str]], tokenizer: str | None, digest: str | None
) -> ShardRows:
    recordings = [recording for row in rows for recording in row.recordings]
    key_bytes, key_end = pack_keys([row.key for row in rows])
    labels = {
        "task": coded([row.task for row in rows]),
        "language": coded([row.language for row in rows]),
        "extension": coded([extension for extension, *_ in recordings]),
        "codec": coded([info.codec for *_, info in recordings]),
    }
    values: dict[str, Any] = {
        "key_end": key_end,
        "recording_end": np.cumsum([len(row.recordings) for row in rows], dtype=np.int64),
        "json_offset": [row.json[0] for row in rows],
        "json_size": [row.json[1] for row in rows],
        "json_crc32": [row.json[2] for row in rows],
        "text_characters": [row.text_characters for row in rows],
        "text_tokens": [row.text_tokens for row in rows],
        "audio_offset": [member.offset for _, member, _, _ in recordings],
        "audio_size": [member.size for _, member, _, _ in recordings],
        "audio_crc32": [crc for _, _, crc, _ in recordings],
        "num_frames": [info.num_frames for *_, info in recordings],
        "sample_rate_hz": [info.sample_rate_hz for *_, info in recordings],
        "num_channels": [info.num_channels for *_, info in recordings],
        **{f"{name}_code": codes for name, (codes, _) in labels.items()},
    }
    columns = {name: np.asarray(values[name], kind) for name, kind in {**SAMPLE_COLUMNS, **RECORDING_COLUMNS}.items()}
    names = {name: known for name, (_, known) in labels.items()}
    prompts = prompts_of(names["task"])
    return ShardRows(state, {"key_bytes": key_bytes, **columns}, names, broken, tokenizer, digest, prompts)
