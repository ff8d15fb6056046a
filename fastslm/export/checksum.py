"""A checksum in the header of a safetensors file: a flipped bit of a weight gives other answers, and nothing says so.

It is one of the header's metadata, which other readers leave alone, and which transformers drops when it writes weights
anew: what has none was not written here, and is taken as it is.
"""

import json
import zlib
from pathlib import Path

from fastslm.errors import CheckpointError

_NAME = "fastslm_crc32"
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
