"""Reads a checkpoint strictly: every file is there and whole, every tensor is what the manifest says.

Takes what ``writer`` wrote, and for their weights also what Lightning (one file) or DeepSpeed (a folder) write alone.
"""

import contextlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from fastslm.checkpoint.folder import (
    MANIFEST,
    TRAINER_STATE,
    complete_in,
    folder_behind,
    has_content,
    last_complete,
    not_complete,
    step_of,
)
from fastslm.checkpoint.state import some
from fastslm.checkpoint.unpickled import deepspeed_objects, read_archive, read_tensors, unreadable
from fastslm.checkpoint.writer import CONFIG, FORMAT, WEIGHTS
from fastslm.configuration.yaml_values import load_values
from fastslm.errors import CheckpointError
from fastslm.files import unsealed

_LONGEST_NAME = 250  # of a file in a checkpoint
_FOLDER = 0x10  # the attribute of a folder in an archive: torch reads no content then, and takes what lies in memory


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: its folder, or the file of a plain one.
        manifest: what ``checkpoint.json`` says; of a plain one, what is known of that.
        config: the resolved configuration it was trained with; empty where it is not known.
        trained_on: what it was trained on, as ``TrainedOn.plain`` gives it; None where it is not known.
    """

    path: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    trained_on: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether it is what Lightning or DeepSpeed alone wrote, or a single file, and no folder of ``writer``."""
        return "files" not in self.manifest

    @property
    def trainer_state(self) -> Path | None:
        """The strategy's own state, a file or a folder; None where only weights are stored."""
        if self.is_plain:
            return self.path
        state = self.path / TRAINER_STATE
        return state if state.exists() else None

    def names(self) -> list[str]:
        """Return the names of the weights, without reading them where a manifest lists them."""
        return list(_plain_tensors(self.path) if self.is_plain else self.manifest["tensors"])

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by name, on the CPU.

        Raises:
            CheckpointError: they are damaged, or not those that the manifest lists.
        """
        if self.is_plain:
            return _plain_tensors(self.path)
        tensors = _read_weights(self.path / WEIGHTS)
        table: Mapping[str, Any] = self.manifest["tensors"]
        wrong = sorted(set(table) ^ set(tensors))
        listed = ((name, tensor) for name, tensor in tensors.items() if name in table)
        wrong += [name for name, t in listed if not t.numel() or list(t.shape) != table[name]["shape"]]
        if wrong:
            raise CheckpointError(f"{self.path / WEIGHTS} does not hold what {MANIFEST} lists: {some(wrong)}.")
        return tensors


def open_checkpoint(path: Path, which: str = "last") -> Checkpoint:
    """Return the checkpoint that ``path`` means, its files verified.

    Args:
        path: a checkpoint's folder, a link to one, its trainer state, a plain checkpoint, or a run folder.
        which: in a run folder, ``last`` or ``best``.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folder = find_folder(path, which)
    if folder is None:
        return _open_plain(find_plain(path, which))
    manifest = _read_manifest(folder / MANIFEST)
    _verify_files(folder, manifest)
    return Checkpoint(folder, manifest, _read_config(folder / CONFIG), manifest.get("trained_on"))


def folder_of_checkpoints(path: Path) -> Path:
    """Return where a run folder keeps its checkpoints; another path as it is."""
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def find_folder(path: Path, which: str = "last") -> Path | None:
    """Return the complete checkpoint's folder that ``path`` means, links resolved; None when it is a plain one.

    Raises:
        CheckpointError: a link leads to a checkpoint that is gone, or not complete: another is not taken in its place.
    """
    real = path.resolve()
    if (real / MANIFEST).is_file():
        return real
    if real.name == TRAINER_STATE and (real.parent / MANIFEST).is_file():
        return real.parent
    if path.is_symlink() and (real.name == TRAINER_STATE or not real.exists()):
        raise not_complete(path)
    parent = folder_of_checkpoints(real)
    if which == "last":
        return last_complete(parent) if parent.is_dir() else None
    chosen = _chosen(parent, which)
    return find_folder(chosen) if chosen else None


def find_plain(path: Path, which: str = "last") -> Path:
    """Return the plain checkpoint that ``path`` means.

    Raises:
        CheckpointError: there is none.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder.")
    if path.is_file() or _is_deepspeed(path):
        return path
    parent = folder_of_checkpoints(path)
    if (found := _chosen(parent, which)) is not None:
        return found
    if (path / WEIGHTS).exists():
        raise CheckpointError(f"{path} is no complete checkpoint: it has no {MANIFEST}, which is written last.")
    if (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is the folder of a model, such as fastslm export writes, and no run: give a run folder, or a"
            " checkpoint's folder or file."
        )
    raise CheckpointError(f"{path} holds no {which} checkpoint: give a checkpoint's folder or file, or a run folder.")


def named(parent: Path, which: str) -> list[Path]:
    """Return links and plain files of a name; the folders themselves where a copy left out the links."""
    return list(parent.glob(f"{which}*.ckpt")) or complete_in(parent, which)


def _chosen(parent: Path, which: str) -> Path | None:
    """Return the one that a name means of several: the one of the best value, or the newest where no values tell."""
    paths = named(parent, which)
    folders = [folder for path in paths if (folder := find_folder(path) or folder_behind(path)) is not None]
    if len(folders) < len(paths):
        return max(paths, key=lambda path: path.stat().st_mtime)
    folders.sort(key=step_of)
    if len(folders) < 2:
        return folders[0] if folders else None
    monitored = _monitored(_read_config(folders[-1] / CONFIG), which)
    if monitored is None:
        return folders[-1]
    name, sign = monitored
    metrics = [_read_manifest(folder / MANIFEST).get("metrics") for folder in folders]
    values = [found[name] for found in metrics if isinstance(found, dict) and isinstance(found.get(name), float)]
    if len(values) < len(folders):
        return folders[-1]
    scores = [-math.inf if math.isnan(value) else sign * value for value in values]
    return max(zip(scores, range(len(folders)), folders, strict=True))[-1]


def _monitored(config: Mapping[str, Any], which: str) -> tuple[str, int] | None:
    """Return what the callback that keeps checkpoints of a name goes by: a metric, and 1 or -1 where less is better."""
    trainer = config.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    for callback in callbacks if isinstance(callbacks, list) else ():
        given = callback.get("init_args") if isinstance(callback, dict) else None
        if isinstance(given, dict) and given.get("monitor") and str(given.get("filename")).startswith(which):
            return str(given["monitor"]), 1 if given.get("mode", "min") == "max" else -1
    return None


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = load_values(file.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is no configuration, but a {type(config).__name__}.")
    return config


def _is_deepspeed(path: Path) -> bool:
    return (path / "latest").is_file() and any(path.glob("*/*model_states.pt"))


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. The checkpoint is damaged.") from error
    if not isinstance(manifest, dict) or not {"format", "files", "tensors"} <= manifest.keys():
        raise CheckpointError(f"{file} is no manifest of a checkpoint.")
    try:
        unsealed(manifest)
    except ValueError as error:
        raise CheckpointError(
            f"{file} says other things than were written (its checksum differs). The checkpoint is damaged: use an"
            " earlier one, or a copy."
        ) from error
    if manifest["format"] != FORMAT:
        versions = manifest.get("versions")
        writer = versions.get("fastslm") if isinstance(versions, dict) else None
        raise CheckpointError(
            f"{file}: the checkpoint has format {manifest['format']}, and this version of fastslm reads {FORMAT}."
            f" It was written by fastslm {writer or 'of unknown version'}."
        )
    for name, key, kind in (("files", "bytes", int), ("tensors", "shape", list)):
        listed = manifest[name]
        rows = list(listed.values()) if isinstance(listed, dict) else [None]
        if not all(isinstance(row, dict) and isinstance(row.get(key), kind) for row in rows):
            raise CheckpointError(f"{file}: its {name!r} do not each have {key!r}. The checkpoint is damaged.")
    return manifest


def _verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    bad = []
    for name, listed in manifest["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or len(name) > _LONGEST_NAME:
            raise CheckpointError(f"{folder / MANIFEST} lists {name!r:.200}, which is no file of the checkpoint.")
        if name.startswith(TRAINER_STATE) and not (folder / TRAINER_STATE).exists():
            continue  # removed to save space: the weights can still be used
        if not path.is_file():
            bad.append(f"{name} is missing")
        elif path.stat().st_size != listed["bytes"]:
            bad.append(f"{name} has {path.stat().st_size:,} bytes instead of {listed['bytes']:,}")
        elif not has_content(path, listed):
            bad.append(f"{name} has other content than was written")
    if bad:
        raise CheckpointError(f"the checkpoint {folder} is damaged: {some(bad)}. Use an earlier one, or a copy.")


def verify_trainer_state(checkpoint: Checkpoint) -> None:
    """Read the trainer's state once against the checksums inside it, before anything is built on it.

    Raises:
        CheckpointError: it is damaged, holds weights only, or would run code when loaded.
    """
    state = checkpoint.trainer_state
    if state is None:
        raise _weights_only(checkpoint.path, TRAINER_STATE)
    for path in [state] if state.is_file() else sorted(state.rglob("*.pt")):
        verify_archive(path, path)
        with deepspeed_objects() if state.is_dir() and _is_deepspeed(state) else contextlib.nullcontext():
            read = read_tensors(path)  # now rather than in a library, whose message would be another
        if path == state and "optimizer_states" not in read:  # of a ModelCheckpoint with save_weights_only
            raise _weights_only(checkpoint.path, "state of an optimizer")
    if (state / ".metadata").is_file():
        _verify_shards(state)


def _weights_only(path: Path, lacks: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds weights only, no {lacks}: training cannot go on from it, but a new run can start from its"
        " weights with --init_from."
    )


def verify_archive(archive: Path | io.BytesIO, path: Path) -> None:
    """Read what ``torch.save`` wrote against its checksums; ``path`` is what the message calls it.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            damaged = file.testzip() or next((m.filename for m in file.infolist() if m.external_attr & _FOLDER), None)
    except Exception as error:  # zipfile raises whatever the bytes make it stumble over
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path} is damaged: {reason}. Use an earlier checkpoint, or a copy.") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged in {damaged}. Use an earlier checkpoint, or a copy.")


def _verify_shards(state: Path) -> None:
    """Read FSDP2's files, in which one archive follows the other, as its table of contents says."""
    from fastslm.checkpoint.sharded import ShardedReader

    for item in ShardedReader(state).read_metadata().storage_data.values():
        path = state / item.relative_path
        with path.open("rb") as file:
            file.seek(item.offset)
            archive = io.BytesIO(file.read(item.length))
        verify_archive(archive, path)
        archive.seek(0)
        read_archive(archive, path)  # torch reads more of an archive than its checksums cover


def _read_weights(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. The checkpoint is damaged.") from error


def _open_plain(path: Path) -> Checkpoint:
    if path.is_dir():
        with deepspeed_objects():
            state = read_tensors(sorted(path.glob("*/*model_states.pt"))[0])
        archives = sorted(path.rglob("*.pt"))
    else:
        state = read_tensors(path)
        archives = [path] if zipfile.is_zipfile(path) else []  # what torch wrote before it had any holds no checksums
    for file in archives:
        verify_archive(file, file)
    config, manifest = state.get("fastslm_config"), state.get("fastslm_manifest")
    if not isinstance(manifest, dict):
        counts = {"step": state.get("global_step"), "epoch": state.get("epoch")}
        manifest = {name: count for name, count in counts.items() if isinstance(count, int)}
    told = manifest.get("trained_on", state.get("fastslm_trained_on"))
    return Checkpoint(path, manifest, config if isinstance(config, dict) else {}, told)


def _plain_tensors(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return _deepspeed_tensors(path)
    state = read_tensors(path).get("state_dict")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint of fastslm: it holds no state_dict.")
    return state


def _deepspeed_tensors(path: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        with deepspeed_objects():
            found = get_fp32_state_dict_from_zero_checkpoint(str(path), exclude_frozen_parameters=True)
    except Exception as error:  # DeepSpeed and torch raise whatever the files make them stumble over
        raise unreadable(path, error) from error
    prefix = "_forward_module."
    return {name.removeprefix(prefix): tensor.contiguous() for name, tensor in found.items()}
