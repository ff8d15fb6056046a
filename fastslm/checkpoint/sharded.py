"""Torch's sharded checkpoints, whose table of contents is a pickle: here it is read without running any."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as descriptions
from torch.distributed.checkpoint.filesystem import FileSystemReader

from fastslm.checkpoint.unpickled import unreadable
from fastslm.errors import CheckpointError

_TABLE_MODULE = "torch.distributed.checkpoint.metadata"
#: Beside the descriptions of that module, what a table of contents of a sharded checkpoint is made of.
_TABLE_NAMES = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
}


class ShardedReader(FileSystemReader):
    """Torch's reader of sharded checkpoints, whose table of contents is a pickle, here read without running any."""

    def read_metadata(self, *arguments: Any, **named: Any) -> descriptions.Metadata:
        """Return the table of contents.

        Raises:
            CheckpointError: it is damaged, or would run code when loaded.
        """
        path = Path(self._get_metadata_path(named.get("rank")))
        try:
            with path.open("rb") as file:
                metadata = _TableOfContents(file).load()
        except Exception as error:  # pickle raises whatever the bytes make it stumble over
            raise unreadable(path, error) from error
        if not isinstance(metadata, descriptions.Metadata):
            raise CheckpointError(f"{path} is no table of contents of a checkpoint.")
        if metadata.storage_meta is None:
            metadata.storage_meta = descriptions.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _TableOfContents(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TABLE_NAMES or (module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)):
            return super().find_class(module, name)
        found = getattr(descriptions, name, None) if module == _TABLE_MODULE else None
        if isinstance(found, type) and found.__module__ == _TABLE_MODULE:
            return found
        raise pickle.UnpicklingError(f"Unsupported global: {module}.{name}")
