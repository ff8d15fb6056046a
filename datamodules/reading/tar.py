"""The members of a tar shard, sample by sample, and what a damaged or ambiguous tar has lost."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO, NamedTuple, TypeVar

from fastslm.errors import DataError
from fastslm.path.broken import Broken

from .whole_tar import Gap, WholeTar

#: What libsndfile reads, then what needs the extra ``av``.
AUDIO_EXTENSIONS = ("flac", "wav", "mp3", "ogg", "opus")
VIDEO_EXTENSIONS = ("m4a", "aac", "webm", "mp4", "mkv", "mov", "mka", "wma", "amr")
#: Folders, name up to its first dot, extension; as in WebDataset, names that begin with a dot belong to no sample.
_SAMPLE_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<extension>[^/]+)", re.DOTALL)
#: What is said of members that are left out for their names.
NO_SAMPLE = "without a key and an extension"
#: Of a member with the words of one sample; those of a day take some megabytes.
_MOST_TEXT_BYTES = 1 << 28
#: Reason: tars end to end, or a hole that a file system filled.
ZEROS = "zeros in the tar"
_MOST_HOPS = 40  # of a chain of links, as in Linux


class Member(NamedTuple):
    """Where the bytes of a member lie in the tar."""

    offset: int
    size: int


#: The members of a sample by extension.
Members = dict[str, Member]
_Part = TypeVar("_Part")


class Contents(NamedTuple):
    """What a tar holds.

    Attributes:
        groups: the members of each sample, in the order of the tar.
        lost: what is lost or ambiguous in it.
        noted: what was left out or read otherwise than it stands there, and loses no sample.
        places: its files by the names that they have in it, whether samples or not.
    """

    groups: dict[str, Members]
    lost: list[Broken]
    noted: list[Broken]
    places: dict[str, Member]


def read_groups(file: BinaryIO, shard: str) -> Contents:
    """Return the members of each sample of an open tar; links to members count as what they point to.

    Raises:
        DataError: it is no uncompressed tar.
    """
    found: list[tuple[str, Member | str]] = []  # names, with the place of a member or the name that a link points to
    broken: list[Broken] = []
    noted: list[Broken] = []
    left_out: Counter[str] = Counter()
    size = file.seek(0, 2)
    file.seek(0)
    last = ""
    try:
        with WholeTar.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header it has read
                name = readable(member.name)
                for gap in tar.gaps():
                    finding = between(shard, gap, last, name)
                    (noted if finding.reason == ZEROS else broken).append(finding)
                last = name
                if member.isdir():
                    continue
                if member.issym() or member.islnk():
                    folder = os.path.dirname(member.name) if member.issym() else ""
                    found.append((name, readable(os.path.join(folder, member.linkname))))
                elif not member.isreg() or member.issparse():
                    left_out["that are sparse files, devices or pipes"] += 1
                elif member.offset_data + member.size > size:  # nothing can follow
                    broken.append(Broken(shard, _key(name) or "?", "truncated shard", f"{name} runs past the end"))
                    return _grouped(shard, found, broken, noted, left_out)
                else:
                    found.append((name, Member(member.offset_data, member.size)))
            rest = tar.gaps()
    except tarfile.TarError as error:
        if not found:
            raise DataError(f"shard {shard}: not an uncompressed tar ({error}).{_packed(file)}") from error
        rest = []
        broken.append(Broken(shard, "?", "truncated shard", str(error)))
    else:
        if not rest:
            broken.append(Broken(shard, "?", "truncated shard", f"cut at byte {size}, samples behind it are lost"))
    broken += [Broken(shard, "?", "truncated shard", f"{gap}, behind {last}") for gap in rest if gap.damaged]
    return _grouped(shard, found, broken, noted, left_out)


def _key(name: str) -> str | None:
    """Return the key of the sample that a member belongs to, None if it is of none."""
    match = _SAMPLE_MEMBER.fullmatch(name)
    return match["key"] if match else None


def between(shard: str, gap: Gap, last: str, following: str) -> Broken:
    """Return what to say of a gap between two members, ``last`` "" where it comes first.

    Those of one sample have lost what lay between them.
    """
    key = _key(last) if last else None
    key = key if key == _key(following) else None
    reason = "truncated shard" if gap.damaged or key else ZEROS
    where = f"between {last} and {following}" if last else f"before {following}"
    return Broken(shard, key or "?", reason, f"{gap}, {where}; samples there may lack members")


def read_text(descriptor: int, member: Member) -> bytes:
    """Return a member that holds the words of a sample.

    Raises:
        DataError: it is larger than any words are; a sparse tar may claim what no memory holds.
    """
    if member.size > _MOST_TEXT_BYTES:
        raise DataError(f"unreadable text: a member of {member.size:,} bytes, where words take at most 2^28")
    return os.pread(descriptor, member.size, member.offset)


def readable(name: str) -> str:
    """Return the name of a member as text: what is no UTF-8 is taken as Latin-1, in which every byte is a letter."""
    return name if name.isascii() else text_of(name.encode("utf-8", "surrogateescape"))


def text_of(name: bytes) -> str:
    """Return a name as text; see ``readable``."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def _packed(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(6)
    kinds = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
    kind = next((kind for magic, kind in kinds.items() if head.startswith(magic)), None)
    return f" It is packed with {kind}, and samples are read by offset: unpack it to a plain .tar." if kind else ""


def _grouped(
    shard: str,
    found: Sequence[tuple[str, Member | str]],
    broken: list[Broken],
    noted: list[Broken],
    left_out: Counter[str],
) -> Contents:
    """Return members under the keys of their samples, links resolved."""
    groups: dict[str, Members] = {}
    latest: dict[str, Members] = {}  # differs from groups where a key came again: its second members go together
    lost = {item.key for item in broken}
    places = {os.path.normpath(name): place for name, place in found}
    files: dict[str, Member] = {}
    for name, place in found:
        member, hops = place, 0
        while isinstance(member, str) and hops < _MOST_HOPS:
            member, hops = places.get(os.path.normpath(member), ""), hops + 1
        is_companion = os.path.basename(name).startswith("._")
        if isinstance(member, Member) and not is_companion:
            files.setdefault(os.path.normpath(name), member)
        match = _SAMPLE_MEMBER.fullmatch(name)
        if match is None:
            left_out["that macOS added (._*)" if is_companion else NO_SAMPLE] += 1
            continue
        key, extension = match["key"], match["extension"].lower()
        if isinstance(member, str):
            if key not in lost:
                detail = f"{name} points to {place}, which is not in the tar; pack the files themselves: tar -h"
                broken.append(Broken(shard, key, "link to nothing", detail))
                lost.add(key)
            continue
        if extension in latest.setdefault(key, groups.setdefault(key, {})):
            broken.append(Broken(shard, key, "duplicate key", f"{name} comes again; the first is kept"))
            latest[key] = {}
        latest[key][extension] = member
    split = [(key, split_dotted(members)) for key, members in groups.items() if key not in lost]
    groups = {f"{key}.{stem}" if stem else key: part for key, parts in split for stem, part in parts.items()}
    noted += [Broken(shard, "?", "members left out", f"{count} members {what}") for what, count in left_out.items()]
    return Contents(groups, broken, noted, files)


def split_dotted(members: Mapping[str, _Part]) -> dict[str, dict[str, _Part]]:
    """Return the samples among members that share a name up to its first dot, by what is behind it ("" for none).

    ``talk.part1.flac`` beside ``talk.part1.json`` is a sample of its own, where nothing says that ``talk`` is one of
    several recordings: it has no ``talk.json``, or ``talk.flac`` as well.
    """
    audio = AUDIO_EXTENSIONS + VIDEO_EXTENSIONS
    stems = {name.rpartition(".")[0] for name in members if name.endswith(".json")}
    if not stems or ("json" in members and not any(name in audio for name in members)):
        return {"": dict(members)}
    spoken = {name.rpartition(".")[0] for name in members if name.rpartition(".")[2] in audio}
    stems = {stem for stem in stems if stem in spoken or "json" not in members}
    parts: dict[str, dict[str, _Part]] = {}
    for name, member in members.items():
        dots = [i for i, character in enumerate(name) if character == "."]
        stem = next((name[:i] for i in reversed(dots) if name[:i] in stems), "")
        parts.setdefault(stem, {})[name[len(stem) :].removeprefix(".") if stem else name] = member
    return parts


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
