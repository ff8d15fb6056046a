"""Recordings in shards whose headers are wrong: the index holds what is decoded, batches are planned with that."""

import io
import struct

import numpy as np
import pytest
import soundfile

from fastslm.cli import main
from fastslm.datamodules.index.columns import load_arrays, save_arrays
from fastslm.datamodules.index.scan import scan_tar
from fastslm.datamodules.index.sidecar import parse_sidecar, read_sidecar, sidecar_path, write_sidecar
from fastslm.errors import DataError

pytest.importorskip("av")
RATE = 16_000


def encode(seconds, container, hz=400):
    samples = 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=container)
    return buffer.getvalue()


def stale_wav():
    data = bytearray(encode(3.0, "WAV"))
    struct.pack_into("<I", data, 40, 16_000)
    return bytes(data)


def unknown_flac():
    data = bytearray(encode(3.0, "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


FILES = {
    "stale": ("wav", stale_wav(), 3.0),
    "unknown": ("flac", unknown_flac(), 3.0),
    "mp3s": ("mp3", encode(2.0, "MP3") + encode(1.0, "MP3"), 3.0),
    "oggs": ("ogg", encode(2.0, "OGG") + encode(1.0, "OGG"), 3.0),
    "flacs": ("flac", encode(2.0, "FLAC") + encode(1.0, "FLAC"), 3.0),
}


@pytest.fixture
def shard(tmp_path, write_shard):
    """Return a shard of files whose headers are wrong or end too early."""
    samples = [
        (key, {extension: data, "json": {"text": f"words of {key}"}}) for key, (extension, data, _) in FILES.items()
    ]
    return write_shard(tmp_path / "train-000000.tar", samples)


def test_the_index_holds_decoded_lengths_and_batches_have_them(shard, data_of):
    data = data_of(val_shards=str(shard))
    data.setup("validate")
    batches = list(data.val_dataloader())
    assert not data.broken["val"]
    assert not any(batch.broken for batch in batches)
    rows = read_sidecar(shard)
    planned = dict(zip(rows.keys, rows.seconds, strict=True))
    found = {key: n / RATE for batch in batches for key, n in zip(batch.keys, batch.num_samples, strict=True)}
    assert found == {key: pytest.approx(planned[key], abs=2 / RATE) for key in FILES}
    assert found == {key: pytest.approx(seconds, abs=0.2) for key, (_, _, seconds) in FILES.items()}


def test_fit_and_check_tell_what_is_doubtful(shard, data_of, capsys):
    data = data_of(val_shards=str(shard))
    data.setup("validate")
    told = {item.key: item.reason for item in data.doubtful["val"]}
    differs = dict.fromkeys(("stale", "mp3s", "flacs"), "length differs from header")
    assert told == differs | {"oggs": "streams end to end"}  # an Ogg has no header that tells its length
    assert main(["shards", "check", str(shard), "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "3  length differs from header" in said
    assert said.count("train-000000.tar  stale ") == 1


def test_channels_of_opposite_phase_are_found_by_check(tmp_path, write_shard, capsys):
    samples = 0.3 * np.sin(np.arange(2 * RATE) * 0.1)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([samples, -samples], 1), RATE, format="WAV")
    shard = write_shard(tmp_path / "a.tar", [("a", {"wav": buffer.getvalue(), "json": {"text": "some words"}})])
    write_sidecar(shard, scan_tar(shard))
    assert main(["shards", "check", str(shard), "--workers", "1"]) == 1
    assert "channels of opposite phase" in capsys.readouterr().out


def rewritten(shard, change):
    """Change header and columns of the index of a shard, as another program may write them."""
    path = sidecar_path(str(shard))
    with open(path, "rb") as file:
        header, arrays = load_arrays(file.read())
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(header, arrays)
    save_arrays(type(shard)(path), header, arrays)


def test_an_index_of_before_that_believed_headers_is_made_anew(shard, data_of):
    write_sidecar(shard, scan_tar(shard))

    def as_before(header, arrays):
        del header["lengths"]
        arrays["num_frames"][:] = RATE

    rewritten(shard, as_before)
    data = data_of(val_shards=str(shard))
    data.setup("validate")
    assert min(read_sidecar(shard).seconds) > 2.9


@pytest.mark.parametrize("seconds", [1.0, 50.0])
def test_a_recording_that_is_not_as_long_as_its_index_says_is_counted(shard, data_of, seconds):
    write_sidecar(shard, scan_tar(shard))
    rewritten(shard, lambda header, arrays: arrays["num_frames"].__setitem__(0, round(seconds * RATE)))
    data = data_of(val_shards=str(shard), max_broken_share=1.0)
    data.setup("validate")
    broken = [item for batch in data.val_dataloader() for item in batch.broken]
    assert [(item["key"], item["reason"]) for item in broken] == [("stale", "length differs from index")]
    assert "fastslm shards index --force" in broken[0]["detail"]


@pytest.mark.parametrize(
    ("column", "value"),
    [("num_frames", 1 << 62), ("num_frames", 1 << 36), ("audio_size", 1 << 40), ("json_size", 1 << 40),
     ("audio_offset", 1 << 62), ("json_size", (1 << 63) - 1)],
)  # fmt: skip
def test_absurd_numbers_in_an_index_are_damage(shard, column, value):
    write_sidecar(shard, scan_tar(shard))
    rewritten(shard, lambda header, arrays: arrays[column].__setitem__(-1, value))
    with pytest.raises(DataError, match=f"damaged index: column '{column.replace('offset', 'size')}'"):
        read_sidecar(shard)


def test_a_column_that_says_it_is_larger_than_its_bytes_takes_no_memory(shard):
    write_sidecar(shard, scan_tar(shard))
    with open(sidecar_path(str(shard)), "rb") as file:
        data = file.read()
    assert data.count(b"(5,)") > 5
    with pytest.raises(DataError, match="damaged index"):
        parse_sidecar(_zipped_anew(data, lambda member: member.replace(b"(5,), }          ", b"(99999999999,), }")))


def _zipped_anew(data, change):
    import zipfile

    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)))
    return target.getvalue()
