"""Encoder frames kept on disk by content, so that a frozen encoder encodes each window of a corpus once."""

import contextlib
import hashlib
import io
import shutil
import sys
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastslm.contracts import Encoder
from fastslm.files import whole_file
from fastslm.path.foreign_code import source_files
from fastslm.path.settings import SpeechSettings

#: Raised when the same samples would give other frames: windows, front ends or the file layout changed.
_FORMAT_VERSION = 4
_MIN_FREE_BYTES = 1 << 30
_CHECKSUM_BYTES = 4


class FrameCache:
    """Frames of windows by the samples they were made of.

    A window is named by a digest of its samples, below a folder named by a digest of the encoder's weights and
    everything else that decides its frames, such as its source where it is another package's; so data that changed,
    another window length or another encoder never find each other's frames. Each window is one file, renamed into place
    when whole: processes and nodes may share the folder, and a kill leaves nothing that is read. A file ends with a
    checksum of its place and content; one that is damaged, or of another window, is made anew.

    Costs disk: F * D_enc * (bytes of its dtype) for a window, 3.8 MB for 30 s of a Whisper large in bfloat16. Nothing
    is written any more when less than 1 GiB is free.

    Args:
        folder: where the caches of all encoders lie.
        encoder: the frozen encoder, its weights loaded.
        settings: the windows that are encoded.
    """

    def __init__(self, folder: Path, encoder: Encoder, settings: SpeechSettings) -> None:
        windows = (settings.window_samples, settings.context_samples(encoder))
        kind = (type(encoder).__module__, encoder.identity(), encoder.given_arguments())
        versions = [version(package) for package in ("fastslm", "transformers")]
        digest = hashlib.sha256(repr((_FORMAT_VERSION, kind, windows, versions)).encode())
        for source in source_files(type(encoder)):
            digest.update(source)
        for name, weight in sorted(encoder.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        self.folder = folder / digest.hexdigest()[:16]
        self._told = False

    def __call__(
        self, samples: Tensor, extra: list[bytes], shape: tuple[int, ...], encode: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return frames ``[W, *shape]`` on the device of the samples, encoding only what is not there.

        Args:
            samples: int16 ``[W, N]``.
            extra: what, beside its samples, decides each window's frames.
            shape: of the frames of a window, ``(F, D_enc)`` or ``(L, F, D_enc)``.
            encode: gives the frames ``[w, *shape]`` of chosen windows ``[w]`` int64.
        """
        device = samples.device.type
        suffix = str(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None).encode()
        rows = samples.cpu().numpy()
        paths = [self._path(row.tobytes() + mark + suffix) for row, mark in zip(rows, extra, strict=True)]
        found = [self._read(path) for path in paths]
        missing = [i for i, frames in enumerate(found) if frames is None or tuple(frames.shape) != shape]
        if missing:
            fresh = encode(torch.tensor(missing, device=samples.device))
            for i, frames in zip(missing, fresh, strict=True):
                found[i] = frames
                self._write(paths[i], frames)
        return torch.stack([frames.to(samples.device, non_blocking=True) for frames in found if frames is not None])

    def _path(self, content: bytes) -> Path:
        name = hashlib.blake2b(content, digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.npy"

    @staticmethod
    def _write(path: Path, frames: Tensor) -> None:
        array = frames.detach().cpu()
        content = io.BytesIO()
        np.save(content, array.view(torch.int16).numpy() if array.dtype == torch.bfloat16 else array.numpy())
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < _MIN_FREE_BYTES:
                return
            with whole_file(path, sync=False) as partial:  # nodes may share the folder
                partial.file.write(content.getbuffer())
                partial.file.write(_checksum(path, content.getbuffer()))

    def _read(self, path: Path) -> Tensor | None:
        try:
            content = path.read_bytes()
        except OSError:  # not there
            return None
        if _checksum(path, memoryview(content)[:-_CHECKSUM_BYTES]) != content[-_CHECKSUM_BYTES:]:
            if not self._told:
                print(f"fastslm: {path} is damaged; it is made anew, as are any others like it.", file=sys.stderr)
            self._told = True
            return None
        frames = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
        return frames.view(torch.bfloat16) if frames.dtype == torch.int16 else frames


def _checksum(path: Path, content: memoryview) -> bytes:
    """Return that of a window's frames: those of another window or encoder, put at this place, have another one."""
    place = "/".join(path.parts[-3:]).encode()
    return zlib.crc32(content, zlib.crc32(place)).to_bytes(_CHECKSUM_BYTES, "little")
