"""The columns of a sidecar index, and the container they are kept in: a zip of .npy arrays and one header.json."""

import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastslm.errors import DataError
from fastslm.files import whole_file

from ..reading.store import TarState
from ..reading.tar import text_of

Array = npt.NDArray[Any]
FORMAT = "fastslm-index"
FORMAT_VERSION = 1
LENGTHS = "decoded"
_OF_DOUBTFUL_LENGTH = ("mp3", "mpeg", "ogg")

#: One row per sample; docs/data.md says what each means.
SAMPLE_COLUMNS: Mapping[str, str] = {
    "key_end": "<i8",
    "recording_end": "<i8",
    "json_offset": "<i8",
    "json_size": "<i8",
    "json_crc32": "<u4",
    "task_code": "<i2",
    "language_code": "<i2",
    "text_characters": "<i8",
    "text_tokens": "<i8",
}
#: One row per recording; the recordings of sample i end before row ``recording_end[i]``.
RECORDING_COLUMNS: Mapping[str, str] = {
    "audio_offset": "<i8",
    "audio_size": "<i8",
    "audio_crc32": "<u4",
    "num_frames": "<i8",
    "sample_rate_hz": "<i4",
    "num_channels": "<i2",
    "extension_code": "<i2",
    "codec_code": "<i2",
}


@dataclass
class ShardRows:
    """Everything known of one shard, in columns.

    Attributes:
        tar: size and time of the tar that was read.
        columns: the arrays of ``SAMPLE_COLUMNS`` (one row per sample), of ``RECORDING_COLUMNS`` (one row per
            recording) and ``key_bytes`` (the keys in UTF-8, end to end), by name.
        names: what the columns ``*_code`` count in: lists of names under ``task``, ``language``, ``extension`` and
            ``codec``.
        broken: samples of the tar that have no row: ``{"key": ..., "reason": ..., "detail": ...}``.
        tokenizer: name of the tokenizer behind ``text_tokens``; None where they were not counted (all -1).
        tokenizer_digest: 16 hex digits over the tokenizer and the chat template; decides whether counts can be used.
        prompts: prompt and answer field, when it was made, of those tasks of its samples that are not the release's.
        doubtful: what is to be looked at in it, in the form of ``broken``; those samples have their rows.
        lengths: how the lengths of recordings were found, ``LENGTHS`` where by the bytes they have.
    """

    tar: TarState
    columns: dict[str, Array]
    names: dict[str, list[str]] = field(default_factory=dict)
    broken: list[dict[str, str]] = field(default_factory=list)
    tokenizer: str | None = None
    tokenizer_digest: str | None = None
    prompts: dict[str, list[str]] = field(default_factory=dict)
    doubtful: list[dict[str, str]] = field(default_factory=list)
    lengths: str = LENGTHS

    def __len__(self) -> int:
        return len(self.columns["key_end"])

    def __getitem__(self, column: str) -> Array:
        return self.columns[column]

    @property
    def keys(self) -> list[str]:
        """Names of the samples."""
        data, ends = self.columns["key_bytes"].tobytes(), self.columns["key_end"].tolist()
        begins = [0, *ends][:-1]
        return [text_of(data[a:b]) for a, b in zip(begins, ends, strict=True)]

    @property
    def seconds(self) -> npt.NDArray[np.float64]:
        """Duration of each recording."""
        return self.columns["num_frames"] / self.columns["sample_rate_hz"]

    @property
    def num_recordings(self) -> npt.NDArray[np.int64]:
        """Recordings of each sample."""
        return np.diff(self.columns["recording_end"], prepend=0)

    @property
    def sample_seconds(self) -> npt.NDArray[np.float64]:
        """Seconds of audio of each sample, all recordings together."""
        total = np.concatenate([[0.0], np.cumsum(self.seconds)])
        return np.diff(total[np.concatenate([[0], self.columns["recording_end"]])])

    @property
    def has_stated_lengths(self) -> bool:
        """Whether lengths are those of headers, and of codecs whose headers are often wrong."""
        return self.lengths != LENGTHS and any(name.startswith(_OF_DOUBTFUL_LENGTH) for name in self.names["codec"])

    def labels(self, name: str) -> list[str]:
        """Return a coded column as text: ``task``, ``language`` by sample, ``extension``, ``codec`` by recording."""
        known = self.names[name]
        return [known[code] for code in self.columns[f"{name}_code"].tolist()]

    def json_region(self, row: int) -> tuple[int, int, int]:
        """Return offset, size and CRC-32 of a sample's JSON."""
        offset, size, crc32 = (int(self.columns[f"json_{what}"][row]) for what in ("offset", "size", "crc32"))
        return offset, size, crc32

    def recordings(self, row: int) -> range:
        """Return the recording rows of a sample."""
        ends = self.columns["recording_end"]
        return range(int(ends[row - 1]) if row else 0, int(ends[row]))

    @property
    def content_digest(self) -> str:
        """16 hex digits over keys, places and checksums: the same for equal bytes, whatever the time or the folder."""
        digest = hashlib.sha256(self.columns["key_bytes"].tobytes())
        for name in ("key_end", "recording_end", "json_offset", "json_size", "json_crc32"):
            digest.update(self.columns[name].tobytes())
        for name in ("audio_offset", "audio_size", "audio_crc32"):
            digest.update(self.columns[name].tobytes())
        return digest.hexdigest()[:16]


_SMALL_BYTES = 1 << 26
_MOST_PACKED = 50  # times smaller than its arrays an index may be; zeros alone come to a thousand
#: What zip, JSON and numbers that are none make Python stumble over; a ``RuntimeError`` is nesting, or a password.
_DAMAGES = (
    zipfile.BadZipFile, zlib.error, ValueError, KeyError, OSError, EOFError, NotImplementedError, RuntimeError,
)  # fmt: skip


def coded(values: Sequence[str]) -> tuple[npt.NDArray[np.int16], list[str]]:
    """Return each value as its place in the list of distinct values, and that list, sorted."""
    names = sorted(set(values))
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[value] for value in values], np.int16), names


def pack_keys(keys: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return keys as UTF-8 bytes end to end, and where each ends."""
    encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
    ends = np.cumsum([len(key) for key in encoded], dtype=np.int64) if encoded else np.zeros(0, np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


def save_arrays(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write arrays and header to a file that appears under its name only when it is whole.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with whole_file(path) as partial, zipfile.ZipFile(partial.file, "w") as container:
        container.writestr(_member("header.json"), json.dumps(header, indent=1))
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
            container.writestr(_member(f"{name}.npy"), buffer.getvalue())


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)  # of 1980: the same arrays give the same bytes at any time
    member.external_attr = 0o644 << 16
    return member


def load_arrays(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return header and arrays of a container; the zip's own checksums are checked.

    Raises:
        DataError: it is damaged, or no such container.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as container:
            if sum(member.file_size for member in container.infolist()) > max(_SMALL_BYTES, _MOST_PACKED * len(data)):
                raise ValueError("unpacked it would be of a size that no index has")
            header = json.loads(container.read("header.json"))
            names = [name.removesuffix(".npy") for name in container.namelist() if name.endswith(".npy")]
            arrays = {name: _array(container.read(f"{name}.npy")) for name in names}
    except _DAMAGES as error:
        raise DataError(f"damaged index: {error}") from error
    return header, arrays


def _array(data: bytes) -> Array:
    """Return what a ``.npy`` holds; its header is not believed, for numpy would take as much memory as it says."""
    file = io.BytesIO(data)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, kind = read_header[np.lib.format.read_magic(file)](file)
    if math.prod(shape) * kind.itemsize != len(data) - file.tell():
        raise ValueError(f"{len(data)} bytes do not hold {shape} numbers of type {kind}")
    file.seek(0)
    return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
