"""Checksums of an exported folder: a flipped bit of a weight or a setting gives other answers, and nothing says so.

That of weights is one of the metadata in a safetensors file's header, which other readers leave alone, and which
transformers drops when it writes weights anew: what has none was not written here, and is taken as it is. Those of
tokenizer, settings and code are in ``checksums.json``, which lists the weights, too, and holds while all have theirs.
"""

import json
import zlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fastslm.errors import CheckpointError

_NAME = "fastslm_crc32"
_LIST = "checksums.json"
#: The card is for people.
_NOT_LISTED = (".pyc", ".md")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
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
    """Write the checksums of all files that a model is read from."""
    read = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix not in _NOT_LISTED]
    sums = {file.relative_to(folder).as_posix(): _listed(file) for file in read}
    (folder / _LIST).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def verify_list(folder: Path, *, code: bool = False) -> None:
    """Compare the files with the list, of weights their stored checksum, where the folder is as it was exported.

    Args:
        folder: of an exported model.
        code: the Python files, too, which are not run here.

    Raises:
        CheckpointError: one is missing, or holds other bytes than were written; or there are weights of two exports.
    """
    if (folder / _WEIGHTS).exists() and (folder / _INDEX).exists():
        raise CheckpointError(
            f"model {folder}: {_WEIGHTS} and {_INDEX} are of two exports, and only the first would be read. Delete the"
            " weights of the older one, or export to a new folder."
        )
    if not (folder / _LIST).exists() or any(_stored(file) is None for file in folder.glob("*.safetensors")):
        return
    try:
        sums = dict(json.loads((folder / _LIST).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"model {folder}: {_LIST} is damaged. Copy or download it anew.") from error
    for name, stored in sums.items():
        file = folder / name
        if file.suffix == ".py" and not code:
            continue
        if not file.is_file():
            raise CheckpointError(f"model {folder}: {name} is missing. Copy or download the folder anew.")
        if _listed(file) != stored:
            raise CheckpointError(
                f"model {folder}: {name} holds other bytes than were written (its checksum differs). Copy or download"
                f" it anew; if you have changed it yourself, delete {_LIST}."
            )


def verify_checksums(folder: Path) -> None:
    """Read the weights of a folder once and compare them with their checksums, where they have one.

    Raises:
        CheckpointError: a file is cut, or holds other bytes than were written.
    """
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass  # its header says how long it is
        except SafetensorError as error:
            raise CheckpointError(
                f"model {folder}: {file.name} is damaged ({error}). Copy or download it anew."
            ) from error
        place = _place(file)
        if place is not None and _stored(file) != f"{_crc32(file, place):08x}":
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


def _stored(file: Path) -> str | None:
    """Return the checksum in the header of weights; None where there is none."""
    place = _place(file)
    if place is None:
        return None
    with file.open("rb") as opened:
        opened.seek(place)
        return opened.read(_DIGITS).decode(errors="replace")


def _listed(file: Path) -> str | None:
    return _stored(file) if file.suffix == ".safetensors" else f"{zlib.crc32(file.read_bytes()):08x}"


def _crc32(file: Path, place: int) -> int:
    """Return the checksum of a file as if its digits at ``place`` were zeros."""
    with file.open("rb") as opened:
        crc = zlib.crc32(opened.read(place) + ROOM[_NAME].encode())
        opened.seek(place + _DIGITS)
        while block := opened.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
