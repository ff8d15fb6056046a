"""Reads what ``torch.save`` and its kin wrote, and makes nothing of it but tensors, plain values and a few known kinds.

A pickle can run any code. A checkpoint may be of anybody, so none is read in another way, whichever library reads it.
"""

import contextlib
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastslm.errors import CheckpointError
from fastslm.files import open_file
from fastslm.trust import tensors_only

_KINDS = {
    b"GGUF": "a model of llama.cpp (GGUF)",
    b"RIFF": "a recording",
    b"fLaC": "a recording",
    b"OggS": "a recording",
    b"ID3": "a recording",
    b"\x7fELF": "a program",
    b"\x1f\x8b": "an archive of gzip",
    b"\x89HDF": "a file of HDF5",
}


@contextlib.contextmanager
def deepspeed_objects() -> Iterator[None]:
    """Within it, a checkpoint of DeepSpeed can be read, the few objects in it among them, and nothing else."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    kinds = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]  # of numbers; making them does nothing
    with tensors_only(), torch.serialization.safe_globals(kinds):
        yield


def read_tensors(file: Path) -> dict[str, Any]:
    """Return what ``torch.save`` put into a file, as far as it is plain values and tensors; large ones stay on disk.

    Raises:
        CheckpointError: the file is damaged, or would run code when loaded.
    """
    if other := _other_kind(file):
        raise CheckpointError(
            f"{file} is {other}, no checkpoint. Give a run folder, a checkpoint in it, or what 'fastslm export' wrote."
        )
    loaded = read_archive(file, file)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, not a dictionary of tensors.")
    return loaded


def read_archive(archive: Path | io.BytesIO, file: Path) -> Any:
    """Return what ``torch.save`` wrote, plain values and tensors; ``file`` is what the message calls it.

    Raises:
        CheckpointError: it is damaged, or would run code when loaded.
    """
    try:
        mapped = isinstance(archive, Path) and zipfile.is_zipfile(archive)
        return torch.load(archive, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises whatever the bytes make it stumble over
        raise unreadable(file, error) from error


def _other_kind(file: Path) -> str:
    """Return what a file is by its first bytes, where that is nothing that ``torch.save`` writes; else nothing."""
    try:
        with open_file(file) as opened:
            head = opened.read(64)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    if head.startswith((b"PK", b"\x80")):
        return ""
    if head[8:9] == b"{" and file.suffix == ".safetensors":
        return "a file of weights without a configuration"
    found = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), "")
    if found or not head:
        return found or "an empty file"
    return "a text file" if head.isascii() and b"\0" not in head else "a file of another kind"


def unreadable(file: Path, error: Exception) -> CheckpointError:
    """Return what to tell of a file that cannot be read so."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, pickle.UnpicklingError) and ("Unsupported global" in str(error) or "GLOBAL" in str(error)):
        return CheckpointError(
            f"{file} holds more than tensors and plain values, and is not loaded: that could run code of its maker."
        )
    if isinstance(error, pickle.UnpicklingError):
        first = "it is no file that torch.save wrote"
    return CheckpointError(f"{file} cannot be read as a checkpoint: {first}")
