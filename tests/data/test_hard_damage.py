"""What real folders hold: odd formats and names, lying fields, foreign permissions, several processes at once."""

import io
import json
import multiprocessing
import os
import shutil
import struct
import zipfile

import numpy as np
import pytest
import soundfile

from fastslm.datamodules.index import build as _index
from fastslm.datamodules.index.build import IndexBuilder
from fastslm.datamodules.index.columns import load_arrays, save_arrays
from fastslm.datamodules.index.scan import scan_tar
from fastslm.datamodules.index.sidecar import read_sidecar, sidecar_path, write_sidecar
from fastslm.errors import DataError
from fastslm.path.prompt import Prompter

RATE = 16_000


def audio(seconds=1.0, rate=RATE, channels=1, container="WAV", subtype="PCM_16", samples=None):
    """Return an encoded tone of 440 Hz, on every channel alike."""
    if samples is None:
        samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([samples] * channels, axis=1), rate, subtype, format=container)
    return buffer.getvalue()


def tone_share(samples):
    """Return which share of a recording's energy lies at 440 Hz."""
    spectrum = np.abs(np.fft.rfft(samples.astype(float) * np.hanning(len(samples)))) ** 2
    at = round(440 * len(samples) / RATE)
    return spectrum[at - 3 : at + 4].sum() / spectrum.sum()


@pytest.fixture
def validated(tmp_path, data_of):
    """Return the data module and the batches of validation over a pattern."""

    def run(pattern, **settings):
        data = data_of(val_shards=str(pattern), max_broken_share=1.0, **settings)
        data.setup("validate")
        return data, list(data.val_dataloader())

    return run


def reasons(data, batches=()):
    counted = {item.key: item.reason for item in data.broken["val"]}
    return counted | {item["key"]: item["reason"] for batch in batches for item in batch.broken}


# -- audio --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6, 8])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_any_rate_number_of_channels_and_width_is_the_same_tone(
    tmp_path, write_shard, validated, rate, channels, subtype
):
    members = {"wav": audio(1.0, rate, channels, "WAV", subtype), "json": {"text": "a tone"}}
    data, (batch,) = validated(write_shard(tmp_path / "a.tar", [("a", members)]))
    assert not data.broken["val"]
    samples = batch.audio.numpy()
    assert len(samples) == pytest.approx(RATE, abs=2)
    assert tone_share(samples) > 0.99
    assert np.abs(samples).max() == pytest.approx(0.3 * 32768, rel=0.05)


NOT_A_NUMBER = np.where(np.arange(RATE) == RATE // 2, np.nan, 0.1)
LOUD = np.where(np.arange(RATE) == RATE // 2, np.inf, 0.1)
ODD_AUDIO = {
    "no samples": audio(0.0),
    "no samples, flac": audio(0.0, container="FLAC"),
    "not a number": audio(subtype="FLOAT", samples=NOT_A_NUMBER),
    "not a number, 8 channels at 48 kHz": audio(rate=48_000, channels=8, subtype="FLOAT", samples=NOT_A_NUMBER),
    "not a number, double": audio(subtype="DOUBLE", samples=NOT_A_NUMBER),
    "infinite": audio(subtype="FLOAT", samples=LOUD),
    "half a file": audio(2.0)[:30_000],
    "half a flac": audio(2.0, container="FLAC")[:10_000],
    "text": b"this is no audio" * 100,
    "zeros": bytes(10_000),
    "a header alone": audio(1.0)[:44],
    "nothing": b"",
}


@pytest.mark.parametrize("bad", ODD_AUDIO.values(), ids=ODD_AUDIO.keys())
def test_audio_that_is_none_is_counted_and_its_neighbours_are_read(tmp_path, write_shard, validated, bad):
    good = {"wav": audio(), "json": {"text": "fine"}}
    bad = {"wav": bad, "json": {"text": "bad"}}
    data, batches = validated(write_shard(tmp_path / "a.tar", [("a", good), ("bad", bad), ("c", good)]))
    assert sorted(key for batch in batches for key in batch.keys) == ["a", "c"]
    assert reasons(data, batches) == {"bad": "unreadable audio"}


def test_one_sample_of_audio_is_a_recording(tmp_path, write_shard, validated):
    members = {"wav": audio(samples=np.array([0.5])), "json": {"text": "a click"}}
    _, (batch,) = validated(write_shard(tmp_path / "a.tar", [("a", members)]))
    assert batch.num_samples == [1]


# -- fields -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duration", [0, -3.5, 1e9, "long", None, [1], float("nan")])
def test_a_duration_that_lies_changes_nothing(tmp_path, write_shard, validated, duration):
    members = {"wav": audio(1.5), "json": json.dumps({"text": "a tone", "duration": duration}).encode()}
    data, (batch,) = validated(write_shard(tmp_path / "a.tar", [("a", members)]))
    assert not data.broken["val"]
    assert batch.num_samples == [24_000]


ODD_TEXTS = {
    "empty": (b'{"text": ""}', "missing text"),
    "blank": (b'{"text": " \\n\\t "}', "missing text"),
    "null": (b'{"text": null}', "missing text"),
    "no text": (b'{"txt": "x"}', "missing text"),
    "a list": (b'["text"]', "unreadable json"),
    "garbage": (b"\x00\x01\x02", "unreadable json"),
    "cut": (b'{"text": "a to', "unreadable json"),
    "nothing": (b"", "unreadable json"),
    "deep": (b"[" * 100_000, "unreadable json"),
    "not utf-8": (b'{"text": "\xff\xfe\xfd"}', "unreadable json"),
    "half a character": (b'{"text": "\\ud800"}', "missing text"),
    "100 kB": (json.dumps({"text": "forty two " * 10_000}).encode(), "context too long"),
}


@pytest.mark.parametrize(("fields", "reason"), ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_a_text_that_cannot_be_used_is_counted_by_its_reason(tmp_path, write_shard, validated, fields, reason):
    samples = [("a", {"wav": audio(), "json": {"text": "fine"}}), ("bad", {"wav": audio(), "json": fields})]
    data, batches = validated(write_shard(tmp_path / "a.tar", samples))
    assert [key for batch in batches for key in batch.keys] == ["a"]
    assert reasons(data, batches) == {"bad": reason}


def test_a_text_of_100_kb_fits_where_the_context_is_long_enough(tmp_path, write_shard, validated, make_module):
    text = "forty two " * 10_000
    shard = write_shard(tmp_path / "a.tar", [("a", {"wav": audio(), "json": {"text": text}})])
    _, (batch,) = validated(shard, module=make_module(context_length=1 << 20))
    assert batch.dialogues[0].reference == text.strip()


# -- names and places ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", ["with space", "Übung 日本語", "a'b\"c", "v1.0 (final)", "x[1]y", "{a,b} {curly}", "*"]
)
def test_a_folder_may_be_called_anything(tmp_path, write_shard, validated, folder):
    shard = write_shard(tmp_path / folder / "shard 0.tar", [("a", {"wav": audio(), "json": {"text": "x"}})])
    _, (batch,) = validated(shard)
    assert batch.keys == ["a"]
    assert os.path.exists(sidecar_path(str(shard)))


def test_a_bracket_that_matches_nothing_is_told_how_to_be_meant(tmp_path, make_shards, validated):
    make_shards(tmp_path / "x[1]y", 2, 0.3)
    with pytest.raises(DataError, match=r"write \[\[\] for it"):
        validated(tmp_path / "x[1]y" / "train-*.tar")
    _, batches = validated(tmp_path / "x[[]1]y" / "train-*.tar")
    assert sum(len(batch) for batch in batches) == 2


def test_keys_may_be_in_any_script_and_hold_spaces(tmp_path, write_shard, validated):
    names = ["dir with space/ünit 1", "日本語", "emoji 🎤", "v1-2_3"]
    samples = [(name, {"wav": audio(), "json": {"text": "x"}}) for name in names]
    _, batches = validated(write_shard(tmp_path / "a.tar", samples))
    assert sorted(key for batch in batches for key in batch.keys) == sorted(names)


def test_linked_shards_are_read_and_indexed_beside_the_link(tmp_path, make_shards, validated):
    make_shards(tmp_path / "store", 4, 0.5)
    links = tmp_path / "links"
    links.mkdir()
    for shard in (tmp_path / "store").glob("*.tar"):
        os.symlink(shard, links / shard.name)
    (tmp_path / "linked folder").symlink_to(links)
    for pattern in (f"{links}/*.tar", f"{tmp_path}/linked folder/*.tar"):
        data, batches = validated(pattern)
        assert sorted(key for batch in batches for key in batch.keys) == [f"train-{i:03d}" for i in range(4)]
        assert not data.broken["val"]
    assert not list((tmp_path / "store").glob("*.npz"))


def test_a_link_that_leads_nowhere_stops_the_run_by_name(tmp_path, validated):
    os.symlink(tmp_path / "gone.tar", tmp_path / "train-0.tar")
    with pytest.raises(DataError, match=r"train-0\.tar"):
        validated(tmp_path / "train-*.tar")


# -- the index ----------------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path, make_shards):
    make_shards(tmp_path / "shards", 3, 0.5)
    return tmp_path / "shards" / "train-000000.tar"


def test_an_index_of_an_older_format_is_made_anew_and_said_so(shard, validated, capsys):
    validated(shard)
    expected = read_sidecar(shard).content_digest
    path = sidecar_path(str(shard))
    with open(path, "rb") as file:
        header, arrays = load_arrays(file.read())
    save_arrays(type(shard)(path), {**header, "version": 0}, arrays)
    _, (batch,) = validated(shard)
    assert len(batch) == 3
    assert "format version 0 where this program knows 1" in capsys.readouterr().err
    assert read_sidecar(shard).content_digest == expected


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\x03\x04 half a zip", b'{"json": "of another program"}'])
def test_whatever_lies_where_the_index_should_be_is_replaced(shard, validated, capsys, content):
    with open(sidecar_path(str(shard)), "wb") as file:
        file.write(content)
    _, (batch,) = validated(shard)
    assert len(batch) == 3
    assert "damaged index" in capsys.readouterr().err
    assert len(read_sidecar(shard)) == 3


def test_an_index_with_columns_that_contradict_each_other_is_refused(shard, validated, capsys):
    write_sidecar(shard, scan_tar(shard))
    path = sidecar_path(str(shard))
    with open(path, "rb") as file:
        header, arrays = load_arrays(file.read())
    for column, value in (("recording_end", 99), ("key_end", 1 << 40), ("task_code", 7), ("extension_code", -2),
        ("audio_offset", -1), ("sample_rate_hz", 0), ("num_frames", -5),
    ):  # fmt: skip
        changed = {name: array.copy() for name, array in arrays.items()}
        changed[column][-1] = value
        save_arrays(type(shard)(path), header, changed)
        with pytest.raises(DataError, match="damaged index"):
            read_sidecar(shard)
    _, (batch,) = validated(shard)
    assert len(batch) == 3


def test_of_a_folder_that_only_reads_the_index_goes_to_the_cache(shard, validated, tmp_path, monkeypatch):
    real = _index.write_sidecar

    def refuse(path, rows, target=None):
        if target is None:  # the tests run as root, for whom no folder only reads
            raise PermissionError(13, "Permission denied")
        return real(path, rows, target)

    monkeypatch.setattr(_index, "write_sidecar", refuse)
    _, (batch,) = validated(shard)
    assert len(batch) == 3
    assert not os.path.exists(sidecar_path(str(shard)))
    cached = list((tmp_path / "cache" / "index").glob("*.npz"))
    assert cached
    monkeypatch.setattr(_index, "scan_tar", lambda *_: pytest.fail("the shard is read although its index is cached"))
    validated(shard)


def test_a_shard_whose_size_changed_after_indexing_keeps_what_is_the_same(shard, validated):
    validated(shard)
    with open(shard, "ab") as file:  # some programs pad
        file.write(bytes(10240))
    data, (batch,) = validated(shard)
    assert len(batch) == 3
    assert not data.broken["val"]


def test_a_shard_that_was_touched_is_taken_as_it_is(shard, validated):
    validated(shard)
    os.utime(shard, (1, 1))
    data, (batch,) = validated(shard)
    assert len(batch) == 3
    assert not data.broken["val"]
    assert read_sidecar(shard).tar.mtime_ns == 10**9


def index_all(shards, tokenizer, cache, start, results):
    builder = IndexBuilder(Prompter(tokenizer), cache)
    start.wait(60)
    results.put([index.rows.content_digest for index in builder.index(shards)])


def test_processes_that_index_the_same_shards_at_once_agree(tmp_path, make_shards, demo_tokenizer):
    make_shards(tmp_path / "shards", 24, 0.3)
    shards = sorted(str(path) for path in (tmp_path / "shards").glob("*.tar"))
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(4), context.Queue()
    arguments = (shards, demo_tokenizer, tmp_path / "cache", start, results)
    processes = [context.Process(target=index_all, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    digests = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert digests[0] == digests[1] == digests[2] == digests[3]
    assert digests[0] == [scan_tar(shard).content_digest for shard in shards]
    left = [path for path in (tmp_path / "shards").iterdir() if path.suffix not in (".tar", ".npz")]
    assert not left, "partial files are left"
    for path in shards:
        assert zipfile.ZipFile(sidecar_path(path)).testzip() is None


# -- tars ---------------------------------------------------------------------------------------------


def test_a_shard_of_length_zero_stops_the_run_by_name_and_says_what_to_do(tmp_path, make_shards, validated):
    make_shards(tmp_path / "shards", 4, 0.3)
    (tmp_path / "shards" / "train-000009.tar").touch()
    with pytest.raises(DataError, match=r"train-000009\.tar.*(empty|no sample)"):
        validated(f"{tmp_path}/shards/*.tar")


def test_a_shard_that_shrank_to_nothing_after_indexing_is_named(tmp_path, make_shards, validated):
    pattern = make_shards(tmp_path / "shards", 4, 0.3)
    validated(pattern)
    os.truncate(tmp_path / "shards" / "train-000001.tar", 0)
    with pytest.raises(DataError, match=r"train-000001\.tar"):
        validated(pattern)


def test_a_copied_folder_of_shards_and_indexes_reads_every_sample(tmp_path, make_shards, validated):
    pattern = make_shards(tmp_path / "a", 4, 0.3)
    validated(pattern)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    data, batches = validated(f"{tmp_path}/b/*.tar")
    assert sorted(key for batch in batches for key in batch.keys) == [f"train-{i:03d}" for i in range(4)]
    assert not data.broken["val"]


def test_a_size_in_a_header_that_lies_does_not_hang_or_take_memory(tmp_path, shard, validated):
    data = bytearray(shard.read_bytes())
    data[124:136] = b"\x80" + bytes(3) + struct.pack(">Q", 1 << 60)  # GNU's binary size: an exabyte
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"train-000000\.tar"):
        validated(shard)
