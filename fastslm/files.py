"""Files and folders that are whole or not there, whenever the process is killed."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastslm.errors import CheckpointError


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 beside ``path``, then rename it into place; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp's files are for their owner alone
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to write into, which takes the name ``folder`` when the block ends without an error.

    Raises:
        CheckpointError: ``folder`` exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty. Give a new folder.")
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        partial = Path(name) / "whole"
        partial.mkdir()
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
