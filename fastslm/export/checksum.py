"""Checksums of an exported folder: a flipped bit of a weight or a setting gives other answers, and nothing says so.

That of weights is one of the metadata in a safetensors file's header, which other readers leave alone, and which
transformers drops when it writes weights anew: what has none was not written here, and is taken as it is. Those of
tokenizer and settings are in ``checksums.json``, and hold as long as the weights are those that were exported.
"""

import json
import zlib
from pathlib import Path

from fastslm.errors import CheckpointError

_NAME = "fastslm_crc32"
_LIST = "checksums.json"
#: Weights, which have theirs inside; code, which is not run here; and the card, which is for people.
_NOT_LISTED = (".safetensors", ".py", ".pyc", ".md")
_DIGITS = 8
_BLOCK = 1 << 22
#: Longest header that safetensors reads.
_LONGEST_HEADER = 100_000_000
#: What ``save_torch_state_dict`` is given as metadata, so that there is room for the checksum.
ROOM = {_NAME: "0" * _DIGITS}


def write_checksum(file: Path) -> None:
    """Put the checksum of a file where ``ROOM`` is, which was among the metadata that it was written with."""
    place = _place(file)
    if place is None:
        raise ValueError(f"{file} was written without {_NAME} in its metadata")
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(b"%08x" % _crc32(file, place))


def write_list(folder: Path) -> None:
    """Write the checksums of the files that a model is read from besides its weights."""
    read = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix not in _NOT_LISTED]
    sums = {file.relative_to(folder).as_posix(): f"{zlib.crc32(file.read_bytes()):08x}" for file in read}
    (folder / _LIST).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def verify_list(folder: Path) -> None:
    """Compare the files besides the weights with their checksums, where the folder is as it was exported.

    Raises:
        CheckpointError: one is missing, or holds other bytes than were written.
    """
    if not (folder / _LIST).exists() or any(_place(file) is None for file in folder.glob("*.safetensors")):
        return
    try:
        sums = dict(json.loads((folder / _LIST).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"model {folder}: {_LIST} is damaged. Copy or download it anew.") from error
    for name, stored in sums.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"model {folder}: {name} is missing. Copy or download the folder anew.")
        if f"{zlib.crc32(file.read_bytes()):08x}" != stored:
            raise CheckpointError(
                f"model {folder}: {name} holds other bytes than were written (its checksum differs). Copy or download"
                f" it anew; if you have changed it yourself, delete {_LIST}."
            )


def verify_checksums(folder: Path) -> None:
    """Read the weights of a folder once and compare them with their checksums, where they have one.

    Raises:
        CheckpointError: a file holds other bytes than were written.
    """
    for file in sorted(folder.glob("*.safetensors")):
        place = _place(file)
        if place is None:
            continue
        with file.open("rb") as opened:
            opened.seek(place)
            stored = opened.read(_DIGITS)
        if stored != b"%08x" % _crc32(file, place):
            raise CheckpointError(
                f"model {folder}: {file.name} holds other bytes than were written (its checksum differs). Copy or"
                " download it anew."
            )


def _place(file: Path) -> int | None:
    """Return where the digits begin; None where there are none, or where the header is not one of safetensors."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > _LONGEST_HEADER:
            return None
        header = opened.read(length)
    try:
        value = json.loads(header)["__metadata__"][_NAME]
    except (ValueError, LookupError, TypeError, RecursionError):  # safetensors says what is wrong with it
        return None
    entry = f'"{_NAME}":"'.encode()
    found = header.find(entry)
    return 8 + found + len(entry) if found >= 0 and len(str(value)) == _DIGITS else None


def _crc32(file: Path, place: int) -> int:
    """Return the checksum of a file as if its digits at ``place`` were zeros."""
    with file.open("rb") as opened:
        crc = zlib.crc32(opened.read(place) + ROOM[_NAME].encode())
        opened.seek(place + _DIGITS)
        while block := opened.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
