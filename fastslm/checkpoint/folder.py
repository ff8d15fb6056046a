"""Folders that are whole or not there, whenever the process is killed, and links that always lead to a whole one.

checkpoints/
    step-000100/          complete since the moment it has this name
    last -> step-000100   swapped in one step, after the new folder is complete
    last.ckpt -> last/trainer.ckpt
    .step-000150.partial  a save under way, or what a kill left of one; the next save removes it

Every file is on the disk before a folder gets its name.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from fastslm.errors import CheckpointError
from fastslm.files import PARTIAL, partial_of, sha256_of, sync_path, sync_tree

MANIFEST = "checkpoint.json"
TRAINER_STATE = "trainer.ckpt"
_LAST = "last"
#: Of the trainer's state: large, and archives that hold a checksum of each of their parts.
_CHECKED = {".ckpt", ".pt", ".distcp"}
_STEP = re.compile(r"step-\d+(-v\d+)?")
_VERSION = re.compile(r"-v\d+$")


def folder_name(link: Path, step: int) -> str:
    """Return a free name for the folder behind ``link``, such as ``last.ckpt`` or ``best-100.ckpt``."""
    name = link.name.removesuffix(".ckpt")
    stem = f"step-{step:06d}" if name == _LAST else name
    candidate, number = stem, 0
    while os.path.lexists(link.parent / candidate):
        number += 1
        candidate = f"{stem}-v{number}"
    return candidate


def publish(final: Path, link: Path) -> None:
    """Give a folder that is written its name, let ``link`` lead to it, and remove what the link led to before."""
    partial = partial_of(final)
    sync_tree(partial)
    os.rename(partial, final)
    sync_path(final.parent)
    if link.name == f"{_LAST}.ckpt":
        _point(link.parent / _LAST, final.name)
        _point(link, f"{_LAST}/{TRAINER_STATE}")
    else:
        previous = folder_behind(link)
        _point(link, f"{final.name}/{TRAINER_STATE}")
        if previous is not None and previous != final:
            remove(previous)
    sync_path(final.parent)
    sweep(final.parent)


def folder_behind(link: Path) -> Path | None:
    """Return the complete checkpoint that a link leads to; by its name where a copy has no links."""
    name = os.path.dirname(os.readlink(link)) if link.is_symlink() else link.name.removesuffix(".ckpt")
    folder = link.parent / name
    return folder if folder.parent == link.parent and (folder / MANIFEST).is_file() else None


def _point(link: Path, target: str) -> None:
    """Make ``link`` lead to ``target``, so that at every moment it leads to the old or to the new one."""
    if link.is_dir() and not link.is_symlink():  # a copy that followed links, or a plain DeepSpeed checkpoint
        aside = f"{link.name}.{uuid.uuid4().hex[:8]}"
        os.rename(link, link.with_name(f".{aside}.removed" if (link / MANIFEST).is_file() else aside))
    fresh = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}.link")
    os.symlink(target, fresh)
    os.replace(fresh, link)


def remove(folder: Path) -> None:
    """Remove a folder so that a kill on the way leaves nothing that looks like a checkpoint."""
    doomed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.removed")
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def sweep(parent: Path) -> None:
    """Remove what kills have left, and the folders that ``last`` and other links have moved on from."""
    for path in parent.glob(".*"):
        if path.name.endswith((PARTIAL, ".removed")):
            shutil.rmtree(path)
        elif path.name.endswith(".link") and path.is_symlink():
            path.unlink()
    last = parent / _LAST
    led_to = {link.stem: folder.name for link in parent.glob("*.ckpt") if (folder := folder_behind(link))}
    wanted = set(led_to.values()) | ({os.readlink(last)} if last.is_symlink() else set())
    for path in parent.iterdir():
        of_last = last.is_symlink() and _STEP.fullmatch(path.name)
        left = of_last or _VERSION.sub("", path.name) in led_to
        if left and path.name not in wanted and not path.is_symlink() and path.is_dir():
            remove(path)


def inventory(folder: Path) -> dict[str, dict[str, object]]:
    """Return size and checksum of every file below ``folder``; see ``has_content`` for those of the trainer's state."""
    files: dict[str, dict[str, object]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size}
            is_large = name.startswith(TRAINER_STATE) and path.suffix in _CHECKED
            files[name] |= {"excerpts": _excerpts(path)} if is_large else {"sha256": sha256_of(path)}
    return files


def has_content(path: Path, listed: Mapping[str, object]) -> bool:
    """Say whether a file holds what the inventory lists.

    The trainer's state may have many gigabytes, and its archives have checksums that are read when training goes on:
    here excerpts of it tell whether it is the one that was saved together with the rest.
    """
    return all(
        checksum(path) == listed[name]
        for name, checksum in (("sha256", sha256_of), ("excerpts", _excerpts))
        if name in listed
    )


def _excerpts(path: Path) -> str:
    """Return the SHA-256 of the start of every MiB, and of the end, where an archive has its list of checksums."""
    found = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        for start in (*range(0, size, 1 << 20), max(size - (1 << 16), 0)):
            file.seek(start)
            found.update(file.read(1 << 12 if start + (1 << 16) < size else 1 << 16))
    return found.hexdigest()


def last_complete(parent: Path) -> Path | None:
    """Return the folder that ``last`` leads to; where there is no such link, the complete one of the highest step.

    None when there is none, and where ``last.ckpt`` is a plain checkpoint, as Lightning alone or an import writes it.

    Raises:
        CheckpointError: ``last`` leads to what is gone, or not complete: another one is not taken in its place.
    """
    last, file = parent / _LAST, parent / f"{_LAST}.ckpt"
    if (last / MANIFEST).is_file():
        return last.resolve()
    if file.exists() and not file.is_symlink():
        return None
    if os.path.lexists(last):
        raise not_complete(last)
    return max(complete_in(parent), key=step_of, default=None)


def complete_in(parent: Path, name: str = "[!.]") -> list[Path]:
    """Return the folders of complete checkpoints whose names begin with one."""
    return sorted(path.parent for path in parent.glob(f"{name}*/{MANIFEST}") if path.is_file())


def not_complete(link: Path) -> CheckpointError:
    """Return the error for people where a link leads to what is gone, or not complete."""
    folder = link.resolve()
    folder = folder.parent if folder.name == TRAINER_STATE else folder
    gone = f"is damaged: it has no {MANIFEST}" if folder.exists() else "is gone"
    others = ", ".join(path.name for path in complete_in(link.parent))
    way_out = f"Complete are {others} in {link.parent}: give the path of one"
    way_out = way_out if others else "No other is complete: begin anew"
    return CheckpointError(
        f"the {link.name.removesuffix('.ckpt')} checkpoint, {folder}, {gone}. {way_out}, or put the lost one back."
    )


def step_of(folder: Path) -> tuple[int, float]:
    """Return the step of a checkpoint, -1 where its manifest cannot be read, and when it was written."""
    manifest = folder / MANIFEST
    try:
        step = json.loads(manifest.read_text(encoding="utf-8")).get("step", -1)
    except (OSError, ValueError, AttributeError):
        step = -1
    return int(step), manifest.stat().st_mtime
