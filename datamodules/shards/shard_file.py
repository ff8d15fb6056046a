"""One tar shard written so that it is either whole under its name or not there: partial file, fsync, rename."""

import contextlib
import io
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from fastslm.errors import DataError
from fastslm.files import PARTIAL, sync_path, whole_file

from ..index.scan import scan_tar
from ..index.sidecar import indexed_rows, read_sidecar, sidecar_path, verify, write_sidecar


class ShardFile:
    """A tar being written; the same members give the same bytes.

    Args:
        file: where it goes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 -- see close
        self.num_members = 0

    def add(self, name: str, data: bytes) -> None:
        """Append a member."""
        self.copy(name, io.BytesIO(data), len(data))

    def copy(self, name: str, file: BinaryIO, size: int) -> None:
        """Append a member of ``size`` bytes of a file; owner and time stay blank, or no two builds would be equal."""
        header = tarfile.TarInfo(name)
        header.size = size
        self._tar.addfile(header, file)
        self._tar.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header it has written
        self.num_members += 1

    def close(self) -> None:
        """Write the end of the tar."""
        self._tar.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[ShardFile]:
    """Write a shard: it appears under its name when all has gone well, and leaves nothing otherwise.

    A shard without members does not appear at all.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    with guarded(path):
        with whole_file(path) as partial:
            shard = ShardFile(partial.file)
            yield shard
            partial.wanted = shard.num_members > 0
            if partial.wanted:
                shard.close()
        sync_path(path.parent)


def index_shard(path: Path, tokenizer: str | None) -> str:
    """Write the sidecar index of a shard, and return the digest of its content.

    Raises:
        DataError: the shard cannot be read, or the index not be written.
    """
    from .tokenizers import prompter_of

    rows = scan_tar(path, prompter_of(tokenizer), tokenizer)
    with guarded(path):
        write_sidecar(path, rows)
    return rows.content_digest


@contextlib.contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn what the system refuses while ``path`` is written into one clear error."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. What was finished is kept: make room, or mend the folder,"
            " and run the same command again."
        ) from error


def is_indexed(path: Path, content: str) -> bool:
    """Say whether the index beside a shard is of this very file, by its size and time, and of this content."""
    rows = indexed_rows(path)
    return rows is not None and content in ("", rows.content_digest)


def is_as_indexed(path: Path, content: str) -> bool:
    """Say whether a shard has this content, and every byte is what its index says; the whole shard is read."""
    try:
        rows = read_sidecar(path)
        return content in ("", rows.content_digest) and not any(verify(path, rows))
    except (FileNotFoundError, DataError):
        return False


def remove_partials(folder: Path, names: Collection[str]) -> None:
    """Remove what killed builds have left of the shards of these names, and of their indexes."""
    names = set(names)
    for partial in folder.glob(f".*{PARTIAL}"):
        if partial.name[1:].partition(".tar.")[0] + ".tar" in names:
            partial.unlink(missing_ok=True)


def remove_shard(path: Path) -> None:
    """Remove a shard and its index, where they are."""
    for name in (path, Path(sidecar_path(str(path)))):
        name.unlink(missing_ok=True)
