"""Shards written on the fly: what the index finds in whole, damaged and ambiguous ones, and when it is made anew."""

import io
import os
import shutil
import tarfile
import tracemalloc
from collections import Counter

import pytest

from fastslm.datamodules.index import build as _index
from fastslm.datamodules.index import texts as _texts
from fastslm.datamodules.index.build import IndexBuilder
from fastslm.datamodules.index.columns import load_arrays, save_arrays
from fastslm.datamodules.index.entries import Limits, collect
from fastslm.datamodules.index.scan import scan_tar
from fastslm.datamodules.index.sidecar import read_sidecar, sidecar_path, write_sidecar
from fastslm.errors import DataError
from fastslm.path.prompt import Prompter

NO_LIMITS = Limits(max_audio_seconds=900.0, long_audio="drop")


class Index:
    """What a run makes of some shards: entries ready to be read, and what is broken."""

    def __init__(self, paths, prompter, limits, cache):
        lengths = (limits.max_audio_seconds,) if limits.long_audio == "split" else ()
        indexes = IndexBuilder(prompter, cache, lengths).index([str(path) for path in paths])
        self.columns, self.broken = collect(indexes, limits)
        self.entries = [self.columns[i] for i in range(len(self.columns))]
        lengths, counts = self.columns.recording_lengths()
        ends = counts.cumsum()
        self.num_samples = [lengths[end - count : end].tolist() for end, count in zip(ends, counts, strict=True)]
        self.num_tokens = self.columns.num_tokens.tolist()

    def __eq__(self, other):
        return (self.entries, self.broken, self.num_samples, self.num_tokens) == (
            other.entries, other.broken, other.num_samples, other.num_tokens,
        )  # fmt: skip


@pytest.fixture
def prompter(demo_tokenizer):
    return Prompter(demo_tokenizer)


@pytest.fixture
def open_index(tmp_path, prompter):
    """Return the index of a shard as a run finds or makes it."""

    def index(*paths, limits=NO_LIMITS):
        return Index(paths, prompter, limits, tmp_path / "cache")

    return index


@pytest.fixture
def index_of(tmp_path, write_shard, open_index):
    """Return the index of a shard that holds the given samples."""

    def index(samples, limits=NO_LIMITS):
        return open_index(write_shard(tmp_path / "shard.tar", samples), limits=limits)

    return index


@pytest.fixture
def three(tmp_path, write_shard, flac):
    """Return the path of a shard with samples a, b and c, members in the order flac, json."""
    samples = [(key, {"flac": flac(1.0, seed), "json": {"text": f"number {key}"}}) for seed, key in enumerate("abc")]
    return write_shard(tmp_path / "three.tar", samples)


def keys(index):
    return [entry.key for entry in index.entries]


def reasons(index):
    return [(item.key, item.reason) for item in index.broken]


def offsets(path):
    """Return (header, data, one past the data) of each member by name."""
    with tarfile.open(path) as tar:
        return {m.name: (m.offset, m.offset_data, m.offset_data + m.size) for m in tar}


# -- whole shards -----------------------------------------------------------------------------------


def test_an_entry_says_where_the_bytes_are_and_what_they_cost(three, prompter, open_index, flac):
    index = open_index(three)
    assert keys(index) == ["a", "b", "c"]
    assert not index.broken
    entry = index.entries[1]
    ((offset, size, _),) = entry.audio_regions
    assert three.read_bytes()[offset : offset + size] == flac(1.0, 1)
    assert three.read_bytes()[entry.json_region[0] :][: entry.json_region[1]] == b'{"text": "number b"}'
    assert index.num_samples[1] == [16_000]
    messages = [{"role": "user", "content": "<|AUDIO|>"}, {"role": "assistant", "content": "number b"}]
    assert index.num_tokens[1] > len(prompter.dialogue(messages, 1, "asr").input_ids)


def test_folders_are_part_of_the_key_and_the_first_dot_ends_it(index_of, flac):
    index = index_of([("v1.0/a", {"flac": flac(1), "json": {"text": "x"}})])
    assert keys(index) == ["v1.0/a"]


def test_members_that_are_no_sample_are_passed_over(three, open_index):
    with tarfile.open(three, "a") as tar:
        for name in ("README", ".DS_Store", "folder/._a.flac"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    index = open_index(three)
    assert (keys(index), reasons(index)) == (["a", "b", "c"], [])


def test_recordings_of_a_dialogue_are_in_the_order_of_their_numbers(index_of, flac):
    messages = [{"role": "user", "content": "<|AUDIO|>" * 11}, {"role": "assistant", "content": "eleven"}]
    recordings = {f"{i}.flac": flac(0.1 * (i + 1)) for i in range(11)}
    index = index_of([("a", {**recordings, "json": {"messages": messages}})])
    (num_samples,) = index.num_samples
    assert num_samples == [1600 * (i + 1) for i in range(11)]


def test_a_dialogue_may_have_no_audio(index_of):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    index = index_of([("a", {"json": {"messages": messages}})])
    assert (index.num_samples, index.entries[0].audio_regions) == ([[]], [])


# -- samples that cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"flac": "audio"}, "missing json"),
        ({"json": {"text": "x"}}, "missing audio"),
        ({"json": {"text": "x"}, "txt": b"audio"}, "missing audio"),
        ({"json": {"text": "x"}, "m4a": b"no audio"}, "unreadable audio"),
        ({"flac": "audio", "json": {}}, "missing text"),
        ({"flac": "audio", "json": {"text": "  "}}, "missing text"),
        ({"flac": "audio", "json": {"text": 7}}, "missing text"),
        ({"flac": "audio", "json": {"task": "dance", "text": "x"}}, "missing text"),
        ({"flac": "audio", "json": {"messages": "hello"}}, "missing text"),
        ({"flac": "audio", "json": {"messages": [{"role": "assistant", "content": "x"}]}}, "unusable text"),
        ({"0.flac": "audio", "1.flac": "audio", "json": {"text": "x"}}, "unusable text"),
        ({"flac": "audio", "json": b"{text: x}"}, "unreadable json"),
        ({"flac": "audio", "json": b"\xff\xfe"}, "unreadable json"),
        ({"flac": "audio", "json": ["x"]}, "unreadable json"),
        ({"flac": b"no audio", "json": {"text": "x"}}, "unreadable audio"),
        ({"flac": b"", "json": {"text": "x"}}, "unreadable audio"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named_and_the_others_stay(index_of, flac, members, reason):
    audio = flac(1.0)
    bad = {extension: audio if value == "audio" else value for extension, value in members.items()}
    good = {"flac": audio, "json": {"text": "fine"}}
    index = index_of([("a", good), ("bad", bad), ("c", good)])
    assert keys(index) == ["a", "c"]
    assert reasons(index) == [("bad", reason)]
    assert index.broken[0].detail


def test_a_key_that_comes_again_is_counted_and_the_first_is_kept(index_of, flac):
    samples = [(key, {"flac": flac(seconds), "json": {"text": key}}) for key, seconds in [("a", 1), ("b", 2), ("a", 3)]]
    index = index_of([*samples, ("a", {"flac": flac(4), "json": {"text": "a"}})])
    assert list(zip(keys(index), index.num_samples, strict=True)) == [("a", [16_000]), ("b", [32_000])]
    assert reasons(index) == [("a", "duplicate key")] * 2


def test_halves_of_two_samples_of_one_key_are_never_put_together(index_of, flac):
    fields = {"json": {"text": "x"}}
    index = index_of([("a", {"flac": flac(1)}), ("b", {"flac": flac(1), **fields}), ("a", {"flac": flac(2), **fields})])
    assert keys(index) == ["b"]
    assert sorted(reasons(index)) == [("a", "duplicate key"), ("a", "missing json")]


# -- damaged shards ---------------------------------------------------------------------------------


def test_a_shard_cut_between_samples_is_noticed(three, open_index):
    os.truncate(three, offsets(three)["c.flac"][0])
    index = open_index(three)
    assert keys(index) == ["a", "b"]
    assert [item.reason for item in index.broken] == ["truncated shard"]


def test_a_shard_cut_between_the_members_of_a_sample_is_noticed(three, open_index):
    os.truncate(three, offsets(three)["c.json"][0])
    index = open_index(three)
    assert keys(index) == ["a", "b"]
    assert Counter(item.reason for item in index.broken) == {"truncated shard": 1, "missing json": 1}


@pytest.mark.parametrize("member", ["c.flac", "c.json"])
def test_a_shard_cut_inside_a_member_is_noticed(three, open_index, member):
    os.truncate(three, offsets(three)[member][2] - 5)
    index = open_index(three)
    assert keys(index) == ["a", "b"]
    assert reasons(index) == [("c", "truncated shard")]


def test_a_shard_cut_inside_a_header_is_noticed(three, open_index):
    os.truncate(three, offsets(three)["c.flac"][0] + 100)
    index = open_index(three)
    assert keys(index) == ["a", "b"]
    assert [item.reason for item in index.broken] == ["truncated shard"]


def test_a_shard_with_a_damaged_header_in_its_middle_is_noticed(three, open_index):
    at = offsets(three)["b.flac"][0]
    data = bytearray(three.read_bytes())
    data[at : at + 512] = b"\x55" * 512
    three.write_bytes(data)
    index = open_index(three)
    assert keys(index) == ["a", "c"]
    assert reasons(index) == [("?", "truncated shard"), ("b", "missing audio")]


@pytest.fixture
def dialogue(tmp_path, write_shard, flac):
    """Return the path of a shard with a dialogue of two recordings, and a sample behind it."""
    two = {"0.flac": flac(1.0), "1.flac": flac(1.0), "json": {"text": "both"}}
    return write_shard(tmp_path / "dialogue.tar", [("d", two), ("e", {"flac": flac(1.0), "json": {"text": "e"}})])


@pytest.mark.parametrize("fill", [b"\0", b"\x55"])
def test_a_sample_that_lost_a_recording_in_its_middle_is_not_used_as_half_of_it(dialogue, open_index, fill):
    at, _, end = offsets(dialogue)["d.1.flac"]
    data = bytearray(dialogue.read_bytes())
    end += -end % 512
    data[at:end] = fill * (end - at)
    dialogue.write_bytes(data)
    index = open_index(dialogue)
    assert keys(index) == ["e"]
    assert reasons(index) == [("d", "truncated shard")]


# -- zeros in a shard -------------------------------------------------------------------------------


def test_tars_that_lie_end_to_end_are_read_to_the_end(tmp_path, three, write_shard, flac, open_index):
    second = write_shard(tmp_path / "second.tar", [("d", {"flac": flac(1.0), "json": {"text": "number d"}})])
    joined = tmp_path / "joined.tar"
    joined.write_bytes(three.read_bytes() + second.read_bytes())
    index = open_index(joined)
    assert (keys(index), index.broken) == (["a", "b", "c", "d"], [])
    (note,) = scan_tar(joined).doubtful
    assert note["reason"] == "zeros in the tar"
    assert "between c.json and d.flac" in note["detail"]


def test_behind_one_block_of_zeros_samples_are_read(three, open_index):
    at, data = offsets(three)["b.flac"][0], three.read_bytes()
    three.write_bytes(data[:at] + bytes(512) + data[at:])
    assert keys(open_index(three)) == ["a", "b", "c"]


def test_behind_a_hole_that_took_a_header_samples_are_read_and_the_damage_is_counted(three, open_index):
    at, data = offsets(three)["b.flac"][0], three.read_bytes()
    three.write_bytes(data[:at] + bytes(4096) + data[at + 4096 :])
    index = open_index(three)
    assert keys(index) == ["a", "c"]
    assert reasons(index) == [("?", "truncated shard"), ("b", "missing audio")]
    assert f"damaged at byte {at}, between a.json and b.json" in index.broken[0].detail


def test_zeros_alone_behind_a_tar_are_nothing_and_anything_else_is_damage(three, open_index):
    with open(three, "ab") as file:
        file.write(bytes(3_000_000))
    assert (keys(open_index(three)), scan_tar(three).doubtful) == (["a", "b", "c"], [])
    with open(three, "ab") as file:
        file.write(b"something")
    assert reasons(open_index(three)) == [("?", "truncated shard")]


@pytest.mark.parametrize("size", [-1, 1 << 40])
def test_a_header_of_an_impossible_size_neither_takes_memory_nor_time(three, open_index, size):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, size
    at, data = offsets(three)["b.flac"][0], three.read_bytes()
    three.write_bytes(data[:at] + name.tobuf(tarfile.GNU_FORMAT) + data[at:])
    index = open_index(three)
    assert (keys(index), reasons(index)) == (["a", "b", "c"], [("?", "truncated shard")])


def test_words_of_gigabytes_are_not_read(three, open_index):
    at = offsets(three)["c.json"][0]
    with open(three, "r+b") as file:
        header = tarfile.TarInfo("c.json")
        header.size = 3 << 30
        file.seek(at)
        file.write(header.tobuf())
        file.truncate(at + 512 + (3 << 30) + 1024)  # zeros that take no room on the disk
    tracemalloc.start()
    index = open_index(three)
    assert tracemalloc.get_traced_memory()[1] < 1 << 28
    tracemalloc.stop()
    assert keys(index) == ["a", "b"]
    assert reasons(index) == [("c", "unreadable text")]


@pytest.mark.parametrize("data", [b"", b"\0" * 10240, b"no tar" * 1000, b"\x1f\x8b compressed" * 100])
def test_a_shard_without_samples_stops_the_run(tmp_path, open_index, data):
    (tmp_path / "shard.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"shard .*shard\.tar: (holds no sample|not an uncompressed tar)"):
        open_index(tmp_path / "shard.tar")


def test_a_missing_shard_stops_the_run(tmp_path, open_index):
    with pytest.raises(DataError, match=r"none\.tar: No such file"):
        open_index(tmp_path / "none.tar")


def test_a_folder_in_place_of_a_shard_stops_the_run(tmp_path, open_index):
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(DataError, match="it is no file, but a folder"):
        open_index(tmp_path / "folder.tar")


# -- long recordings --------------------------------------------------------------------------------


def segmented(*times):
    texts = ("one", "two", "three", "four")
    return [{"start": a, "end": b, "text": text} for (a, b), text in zip(times, texts, strict=False)]


LONG = segmented((0.5, 2), (2.4, 4), (4.6, 6.0), (7.0, 9.5))


def long_sample(flac, **fields):
    return [("a", {"flac": flac(10.0), "json": {"text": "one two three four", "segments": LONG, **fields}})]


def test_a_long_recording_is_dropped_and_counted(index_of, flac):
    index = index_of(long_sample(flac), Limits(5.0, "drop"))
    assert not index.entries
    assert reasons(index) == [("a", "audio too long")]
    assert "10.0 s is above data.max_audio_seconds 5" in index.broken[0].detail


def test_a_long_recording_stops_the_run_when_asked_to(index_of, flac):
    with pytest.raises(DataError, match=r"shard .*, sample 'a': audio too long: 10\.0 s"):
        index_of(long_sample(flac), Limits(5.0, "error"))


def test_a_long_recording_is_split_in_the_middle_of_gaps(index_of, flac):
    index = index_of(long_sample(flac), Limits(5.0, "split"))
    assert not index.broken
    assert keys(index) == ["a/0", "a/1", "a/2"]
    assert [entry.segments for entry in index.entries] == [(0, 2), (2, 3), (3, 4)]
    assert [entry.span_seconds for entry in index.entries] == [(0.0, 4.3), (4.3, 6.5), (6.5, 10.0)]
    assert index.num_samples == [[68_800], [35_200], [56_000]]


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        (segmented((8, 9)), [(6.5, 10.0)]),
        (segmented((1, 2)), [(0.0, 3.5)]),
        (segmented((0, 1), (1, 2), (8.5, 9.5)), [(0.0, 1.0), (1.0, 3.5), (7.0, 10.0)]),
        (segmented((0, 4), (6, 10)), [(0.0, 4.0), (6.0, 10.0)]),
    ],
    ids=["before", "behind", "between", "no room"],
)
def test_of_a_pause_too_long_for_a_chunk_so_much_is_taken_as_fits(index_of, flac, segments, expected):
    index = index_of(long_sample(flac, segments=segments), Limits(4.0, "split"))
    assert not index.broken
    assert [entry.span_seconds for entry in index.entries] == expected


def test_a_recording_at_the_limit_is_whole(index_of, flac):
    index = index_of(long_sample(flac), Limits(10.0, "split"))
    assert [(entry.key, entry.segments) for entry in index.entries] == [("a", None)]
    assert index.num_samples == [[160_000]]


@pytest.mark.parametrize("fields", [{"segments": None}, {"segments": []}, {"task": "ssum", "summary": "numbers"}])
def test_only_transcripts_with_segments_are_split(index_of, flac, fields):
    assert reasons(index_of(long_sample(flac, **fields), Limits(5.0, "split"))) == [("a", "audio too long")]


def test_a_dialogue_is_not_split(index_of, flac):
    messages = [{"role": "user", "content": "<|AUDIO|>"}, {"role": "assistant", "content": "yes"}]
    assert reasons(index_of(long_sample(flac, messages=messages), Limits(5.0, "split"))) == [("a", "audio too long")]


def test_one_segment_beyond_the_limit_refuses_the_recording(index_of, flac):
    sample = long_sample(flac, segments=segmented((0, 1), (2, 9)))
    assert reasons(index_of(sample, Limits(5.0, "split"))) == [("a", "audio too long")]


@pytest.mark.parametrize(
    "segments",
    [
        "one two",
        [1, 2],
        [{"start": 0, "end": 1}],
        [{"start": 0, "end": None, "text": "one"}],
        [{"start": "soon", "end": 1, "text": "one"}],
        [{"start": 0, "end": float("nan"), "text": "one"}, {"start": 4, "end": 5, "text": "two"}],
        [{"start": 0, "end": 4, "text": ["one"]}, {"start": 4, "end": 5, "text": "two"}],
        segmented((5, 9), (0, 4)),
        segmented((3, 1), (4, 9)),
        segmented((0, 9), (1, 2), (3, 4)),
        segmented((0, 4), (5, 40)),
    ],
)
def test_segments_that_make_no_sense_refuse_the_recording(index_of, flac, segments):
    assert reasons(index_of(long_sample(flac, segments=segments), Limits(5.0, "split"))) == [("a", "unusable segments")]


# -- the file beside the shard, and the cache --------------------------------------------------------


@pytest.fixture
def readings(monkeypatch):
    """Return a list of the shards that are read from end to end."""
    paths = []

    def counting(path, *arguments):
        paths.append(os.fspath(path))
        return scan_tar(path, *arguments)

    monkeypatch.setattr(_index, "scan_tar", counting)
    return paths


def test_an_index_is_written_beside_the_shard_and_read_the_next_time(three, open_index, readings):
    first = open_index(three)
    assert os.path.exists(sidecar_path(str(three)))
    assert open_index(three) == first
    assert len(readings) == 1


def test_where_the_folder_only_reads_the_index_is_kept_in_the_cache(tmp_path, three, open_index, readings, monkeypatch):
    write = write_sidecar

    def refusing(path, rows, target=None):
        if target is None:
            raise PermissionError(13, "Permission denied")
        return write(path, rows, target)

    monkeypatch.setattr(_index, "write_sidecar", refusing)
    first = open_index(three)
    assert not os.path.exists(sidecar_path(str(three)))
    assert open_index(three) == first
    assert len(readings) == 1


def test_a_cache_that_cannot_be_written_either_is_an_error_in_words(tmp_path, three, open_index, monkeypatch):
    def refusing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_index, "write_sidecar", refusing)
    with pytest.raises(DataError, match=r"cannot keep the index .* No space left on device\. Set data\.cache_dir"):
        open_index(three)


def test_entries_of_split_recordings_are_kept_too(tmp_path, write_shard, flac, open_index, monkeypatch):
    path = write_shard(tmp_path / "long.tar", long_sample(flac))
    made = open_index(path, limits=Limits(5.0, "split"))
    monkeypatch.setattr(_texts, "_cut", None)  # a second cutting would fail
    assert open_index(path, limits=Limits(5.0, "split")) == made
    assert made.entries[0].segments == (0, 2)


def test_a_replaced_shard_is_indexed_anew_and_said_so(three, write_shard, flac, open_index, capsys):
    open_index(three)
    write_shard(three, [("d", {"flac": flac(1), "json": {"text": "new"}})])
    assert keys(open_index(three)) == ["d"]
    assert "was replaced after it was indexed" in capsys.readouterr().err
    assert read_sidecar(three).keys == ["d"]


def test_a_copy_of_shard_and_index_is_checked_once_and_taken(tmp_path, three, open_index, readings):
    first = open_index(three)
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "three.tar"
    shutil.copyfile(three, copy)
    os.utime(copy, (1, 1))
    shutil.copyfile(sidecar_path(str(three)), sidecar_path(str(copy)))
    assert keys(open_index(copy)) == keys(first)
    assert len(readings) == 1
    assert read_sidecar(copy).tar.mtime_ns == 10**9


def test_samples_that_a_later_cut_took_away_are_counted_one_by_one(three, open_index):
    open_index(three)
    os.truncate(three, offsets(three)["b.flac"][0])
    for _ in range(2):  # the second time from what the first has found
        index = open_index(three)
        assert keys(index) == ["a"]
        assert sorted(reasons(index)) == [("?", "truncated shard"), ("b", "truncated shard"), ("c", "truncated shard")]
    assert read_sidecar(three).keys == ["a", "b", "c"]  # what the shard should hold is not forgotten


def test_a_sample_modified_in_place_is_left_out_until_it_is_accepted(three, open_index):
    before = open_index(three)
    begin, end = offsets(three)["b.json"][1:]
    data = bytearray(three.read_bytes())
    data[begin:end] = b'{"text": "number z"}'
    three.write_bytes(data)
    for _ in range(2):
        index = open_index(three)
        assert keys(index) == ["a", "c"]
        assert reasons(index) == [("b", "checksum differs")]
    assert index.columns.digests != before.columns.digests
    write_sidecar(three, scan_tar(three))  # what fastslm shards index --force does
    assert keys(open_index(three)) == ["a", "b", "c"]


def test_other_limits_use_the_same_index(three, open_index, readings):
    open_index(three)
    index = open_index(three, limits=Limits(0.5, "drop"))
    assert [item.reason for item in index.broken] == ["audio too long"] * 3
    assert len(readings) == 1


def test_another_template_counts_the_texts_again_and_reads_no_audio(three, open_index, prompter, readings, monkeypatch):
    before = open_index(three).num_tokens
    prompter.tokenizer.chat_template = "system: be brief\n" + prompter.tokenizer.chat_template
    after = open_index(three).num_tokens
    assert all(a > b for a, b in zip(after, before, strict=True))
    assert len(readings) == 1
    monkeypatch.setattr(_texts, "_count", None)  # counting once more would fail
    assert open_index(three).num_tokens == after


def test_a_damaged_index_is_made_anew_and_said_so(three, open_index, capsys):
    first = open_index(three)
    with open(sidecar_path(str(three)), "r+b") as file:
        file.truncate(50)
    assert open_index(three) == first
    assert "damaged index" in capsys.readouterr().err


@pytest.mark.slow
def test_many_shards_are_indexed_by_several_processes_to_the_same_result(
    tmp_path, make_shards, open_index, monkeypatch
):
    make_shards(tmp_path / "many", 16, 0.1, per_shard=1)
    paths = sorted((tmp_path / "many").glob("*.tar"))
    monkeypatch.setattr(_index, "_MAX_PROCESSES", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    several = open_index(*paths)
    for path in paths:
        os.remove(sidecar_path(str(path)))
    monkeypatch.setattr(_index, "_MAX_PROCESSES", 1)
    assert open_index(*paths) == several
    assert keys(several) == [f"train-{i:03d}" for i in range(16)]


@pytest.fixture
def two_long(tmp_path, write_shard, flac):
    """Return two shards, each of one recording that is split, at another place."""
    paths = []
    for name, pause, text in (("a", 1.0, "one"), ("b", 2.5, "one two three four")):
        segments = [{"start": 0.0, "end": pause, "text": text}, {"start": pause, "end": 4.0, "text": text}]
        sample = {"flac": flac(4.0), "json": {"text": f"{text} {text}", "segments": segments}}
        paths.append(write_shard(tmp_path / f"{name}.tar", [(name, sample)]))
    return paths


def test_chunks_kept_by_an_earlier_version_are_taken(tmp_path, two_long, open_index, monkeypatch):
    limits = Limits(max_audio_seconds=3.0, long_audio="split")
    before = open_index(*two_long, limits=limits)
    for path in (tmp_path / "cache" / "index").glob("*.chunks.npz"):
        header, arrays = load_arrays(path.read_bytes())
        save_arrays(path, {"broken": header["broken"]}, arrays)  # it did not say what it is of
    monkeypatch.setattr(_texts, "_cut", None)
    assert open_index(*two_long, limits=limits) == before


def test_chunks_of_another_shard_are_made_anew(tmp_path, two_long, open_index):
    limits = Limits(max_audio_seconds=3.0, long_audio="split")
    before = open_index(*two_long, limits=limits)
    first, second = (tmp_path / "cache" / "index").glob("*.chunks.npz")
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    assert open_index(*two_long, limits=limits) == before
