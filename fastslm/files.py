"""Files and folders that are whole or not there, whenever the process is killed; reading; checksums inside JSON."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fastslm.errors import CheckpointError, FastSLMError

PARTIAL = ".partial"
_SEAL = "sha256"  # in a JSON object, over the rest of it
_PARTIAL_NAME = re.compile(rf"\.(.+)\.[a-z0-9_]{{8}}{re.escape(PARTIAL)}", re.DOTALL)  # as tempfile makes them
_NEW_SECONDS = 60
_FREE = "Free space there"
#: What can be done where a file is not written to its end.
WAYS_OUT = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: f"{_FREE}, or have the quota raised",
    errno.EFBIG: "Raise the limit of a file's size (ulimit -f)",
}
_OF_THE_SYSTEM = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")  # as Rust says it


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what a disk refuses as an ``OSError`` that names ``path``.

    Python names no file that is not written to its end; safetensors and tokenizers raise kinds of their own.
    """
    try:
        yield
    except OSError as error:
        if error.errno in WAYS_OUT and error.filename is None:
            error.filename = os.fspath(path)
        raise
    except Exception as error:
        found = _OF_THE_SYSTEM.search(str(error))
        number = int(found[1] or found[2]) if found else 0
        if number not in WAYS_OUT or isinstance(error, FastSLMError):
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


class Partial:
    """A file under a name of its own beside the one it will have.

    Attributes:
        file: open for binary writing.
        path: where it lies for now, for libraries that want a path.
        wanted: set to False, it takes no name and is removed.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.wanted = file, path, True


@contextlib.contextmanager
def whole_file(path: Path, *, folder: Path | None = None, sync: bool = True) -> Iterator[Partial]:
    """Give a file to write into, which takes the name ``path`` when the block ends without an error.

    Any number of processes may write the same path at once. A device or pipe, such as ``/dev/stdout``, is written to
    as it is: only root could replace it, and nobody wants that.

    Args:
        path: the name it gets; a file of that name is replaced.
        folder: where it lies until then, on the same file system; None takes the folder of ``path``.
        sync: have it on the disk before it takes its name, so that a crash of the machine leaves it whole, too.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        with open(path, "wb") as file:
            yield Partial(file, path)
        return
    descriptor, name = tempfile.mkstemp(dir=folder or path.parent, prefix=f".{_start_of(path)}.", suffix=PARTIAL)
    partial = Path(name)
    try:
        with writing(path), os.fdopen(descriptor, "wb", buffering=1 << 20) as file:
            _lock(descriptor)  # until it is closed, or this process ends
            given = Partial(file, partial)
            yield given
            file.flush()
            if sync:
                os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        if given.wanted:
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str, *, folder: Path | None = None) -> None:
    """Write ``text`` as UTF-8; folders are made as needed; see ``whole_file``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, folder=folder) as partial:
        partial.file.write(text.encode("utf-8", "surrogateescape"))


def try_writing(folder: Path) -> None:
    """Raise ``OSError`` if no file can be made in a folder, or in the nearest one there is; leaves nothing behind."""
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    with tempfile.TemporaryFile(dir=there):
        pass


def _start_of(path: Path) -> str:
    """Return what the name of a file that is being written begins with, behind its dot; that name gets more letters."""
    return path.name if len(os.fsencode(path.name)) < 200 else path.name[:40]


def remove_partials(paths: Iterable[Path]) -> None:
    """Remove what processes left that were killed while they wrote these files with ``whole_file``."""
    starts: dict[Path, set[str]] = {}
    for path in paths:
        starts.setdefault(path.parent, set()).add(_start_of(path))
    for folder, known in starts.items():
        for name in os.listdir(folder) if folder.is_dir() else []:
            found = _PARTIAL_NAME.fullmatch(name)
            if found and found[1] in known:
                _remove_unheld(folder / name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; a pipe would be waited for, and a device never ends.

    Raises:
        OSError: there is none, or it is no file; ``strerror`` says which.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", os.fspath(path))
        return open(path, "rb")
    except ValueError as error:  # half a character, or a zero byte
        raise FileNotFoundError(errno.ENOENT, "no file system has such a name") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def no_file_in(folder: Path) -> str:
    """Return what a folder holds right in it that would be waited for, for libraries that open all they find there."""
    odd = (path for path in sorted(folder.iterdir()) if path.exists() and not path.is_file() and not path.is_dir())
    return next((f"holds {path.name}, which is a pipe or a device, and no file" for path in odd), "")


class Folder(NamedTuple):
    """A folder, as ``walk`` finds it.

    Attributes:
        path: of it.
        names: of its files, sorted.
        num_companions: how many more macOS has put there (``._name`` beside each file, and copies in ``__MACOSX``).
        unread: what could not be entered, in it or as it: paths, each with the reason.
    """

    path: str
    names: list[str]
    num_companions: int
    unread: list[tuple[str, str]]


def walk(folder: str | os.PathLike[str]) -> Iterator[Folder]:
    """Yield each folder below one and itself.

    Links to folders are followed; a folder that is reached again, by a link or in a circle, does not come again.
    """
    seen: set[tuple[int, int]] = set()
    failed: list[OSError] = []
    for path, folders, names in os.walk(folder, followlinks=True, onerror=failed.append):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        companions = [name for name in names if name.startswith("._") or os.path.basename(path) == "__MACOSX"]
        links = (os.path.join(path, name) for name in names if "." not in name)  # as folders are called
        unread = [(link, "a link to nothing") for link in links if os.path.islink(link) and not os.path.exists(link)]
        yield Folder(path, sorted(set(names) - set(companions)), len(companions), unread)
    yield from (Folder(error.filename, [], 0, [(error.filename, error.strerror or str(error))]) for error in failed)


def partial_of(folder: Path) -> Path:
    """Return where a folder is made before it has its name, by one process at a time or by several together."""
    return folder.with_name(f".{folder.name}{PARTIAL}")


@contextlib.contextmanager
def whole_folder(folder: Path, *, alone: bool = False, sync: bool = False) -> Iterator[Path]:
    """Give a new folder to write into, which takes the name ``folder`` when the block ends without an error.

    Args:
        folder: the name it gets.
        alone: no other process makes this folder now, so that what one has left that was killed is removed.
        sync: have all of it on the disk before it takes its name.

    Raises:
        CheckpointError: ``folder`` is not empty, or no longer when the block ends, or none can be made there.
    """
    if not alone:
        for left in folder.absolute().parent.glob(f".{glob.escape(folder.name)}.*{PARTIAL}"):
            _remove_unheld(left)
    if folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} exists and is not empty. Give a new folder.")
    if os.path.lexists(folder) and not folder.is_dir():
        raise CheckpointError(f"{folder} is there already, and no folder. Give a new one.")
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if alone:
            partial = partial_of(folder)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        else:
            partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=PARTIAL))
            partial.chmod(0o777 & ~_umask())  # mkdtemp's folders are for their owner alone
    except OSError as error:
        raise CheckpointError(f"{folder}: no folder can be made there: {error.strerror}.") from error
    held = _hold(partial)
    try:
        with writing(folder):
            yield partial
            if sync:
                sync_tree(partial)
        try:
            partial.rename(folder)  # an empty folder of that name is replaced
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise CheckpointError(
                f"{folder} was written by another process meanwhile. Use what it holds, or give a new folder."
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if held is not None:
            os.close(held)


def _hold(path: Path) -> int | None:
    """Return a descriptor that holds a file or folder until it is closed or the process ends; None where it is held."""
    descriptor = os.open(path, os.O_RDONLY)
    if _lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    """Lock an open file or folder; False where another process holds it, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_unheld(path: Path) -> None:
    """Remove what a process was making when it was killed: nothing that another is making, or about to hold."""
    with contextlib.suppress(OSError):  # another process may have removed it
        if time.time() - path.stat().st_mtime < _NEW_SECONDS or (held := _hold(path)) is None:
            return
        try:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        finally:
            os.close(held)


def sync_tree(folder: Path) -> None:
    """Bring everything below ``folder`` to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync_path(Path(root, name))
        sync_path(Path(root))


def sync_path(path: Path) -> None:
    """Bring a file to the disk, or the names in a folder, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with its checksum, the last of its values."""
    plain = _unsealed(content)
    return {**plain, _SEAL: _checksum_of(plain)}


def unsealed(content: Any) -> dict[str, Any]:
    """Return an object that was read, without its checksum; one that has none is taken as it is.

    Raises:
        ValueError: it is no object, or has changed since it was written.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, and no object")
    plain = _unsealed(content)
    if _SEAL in content and content[_SEAL] != _checksum_of(plain):
        raise ValueError("it has changed since it was written, its checksum differs")
    return plain


def _unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != _SEAL}


def _checksum_of(content: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(content))  # numbers as keys are text then, in another order
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
