"""The members of a tar shard, sample by sample, and what a damaged or ambiguous tar has lost."""

import re
import tarfile
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

from fastslm.errors import DataError
from fastslm.path.broken import Broken

#: What libsndfile reads, then what needs the extra ``av``.
AUDIO_EXTENSIONS = ("flac", "wav", "mp3", "ogg", "opus")
VIDEO_EXTENSIONS = ("m4a", "aac", "webm", "mp4", "mkv", "mov", "mka", "wma", "amr")
#: Folders, name up to its first dot, extension; as in WebDataset, names that begin with a dot belong to no sample.
_SAMPLE_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<extension>[^/]+)", re.DOTALL)


class Member(NamedTuple):
    """Where the bytes of a member lie in the tar."""

    offset: int
    size: int


#: The members of a sample by extension.
Members = dict[str, Member]


def read_groups(file: BinaryIO, shard: str) -> tuple[dict[str, Members], list[Broken]]:
    """Return the members of each sample in the order of the tar, and what is lost or ambiguous in it.

    Args:
        file: the tar, open and seekable.
        shard: its name, for messages.

    Raises:
        DataError: it is no uncompressed tar.
    """
    groups: dict[str, Members] = {}
    broken: list[Broken] = []
    latest: dict[str, Members] = {}  # differs from groups where a key came again: its second members go together
    size = file.seek(0, 2)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                match = _SAMPLE_MEMBER.fullmatch(member.name)
                if match is None or not member.isfile():
                    continue
                key, extension = match["key"], match["extension"].lower()
                if member.offset_data + member.size > size:  # nothing can follow
                    broken.append(Broken(shard, key, "truncated shard", f"{member.name} runs past the end"))
                    groups.pop(key, None)
                    return groups, broken
                if extension in latest.setdefault(key, groups.setdefault(key, {})):
                    broken.append(Broken(shard, key, "duplicate key", f"{member.name} comes again; the first is kept"))
                    latest[key] = {}
                latest[key][extension] = Member(member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header it has read
            end_at = tar.offset
        file.seek(end_at)
        end = file.read(tarfile.BLOCKSIZE)
    except tarfile.TarError as error:
        if not groups:
            raise DataError(f"shard {shard}: not an uncompressed tar ({error}).") from error
        return groups, [*broken, Broken(shard, "?", "truncated shard", str(error))]
    if end != tarfile.NUL * tarfile.BLOCKSIZE:  # where tarfile just stops
        what = "damaged" if len(end) == tarfile.BLOCKSIZE else "cut"
        detail = f"{what} at byte {end_at}, samples behind it are lost"
        broken.append(Broken(shard, "?", "truncated shard", detail))
    return groups, broken


def recordings_of(members: Members) -> list[tuple[str, Member]]:
    """Return extension and place of each recording of a sample, in the order of their names, numbers by value."""
    return [(name.rpartition(".")[2], members[name]) for name in recording_names(members)]


def recording_names(members: Iterable[str]) -> list[str]:
    """Return which members are recordings, by their extensions, in the order of their names, numbers by value."""
    known = AUDIO_EXTENSIONS + VIDEO_EXTENSIONS
    return [name for name in sorted(members, key=_by_number) if name.rpartition(".")[2] in known]


def _by_number(extension: str) -> list[tuple[int, str]]:
    """Sort ``10.flac`` behind ``9.flac``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", extension)]
