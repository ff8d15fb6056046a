"""Shards written on the fly: what the index finds in whole, damaged and ambiguous ones."""

import io
import os
import tarfile
from collections import Counter

import pytest

from fastslm.datamodules._index import Limits, index_shard, index_shards
from fastslm.errors import DataError
from fastslm.prompt import Prompter

NO_LIMITS = Limits(max_audio_seconds=900.0, long_audio="drop")


@pytest.fixture
def prompter(demo_tokenizer):
    return Prompter(demo_tokenizer)


@pytest.fixture
def index_of(tmp_path, write_shard, prompter):
    """Return the index of a shard that holds the given samples."""

    def index(samples, limits=NO_LIMITS):
        return index_shard(str(write_shard(tmp_path / "shard.tar", samples)), prompter, limits)

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


def test_an_entry_says_where_the_bytes_are_and_what_they_cost(three, prompter, flac):
    index = index_shard(str(three), prompter, NO_LIMITS)
    assert keys(index) == ["a", "b", "c"]
    assert not index.broken
    entry = index.entries[1]
    ((offset, size),) = entry.audio_regions
    assert three.read_bytes()[offset : offset + size] == flac(1.0, 1)
    assert three.read_bytes()[entry.json_region[0] :][: entry.json_region[1]] == b'{"text": "number b"}'
    assert entry.num_samples == [16_000]
    messages = [{"role": "user", "content": "<|AUDIO|>"}, {"role": "assistant", "content": "number b"}]
    assert entry.num_text_ids > len(prompter.dialogue(messages, 1, "asr").input_ids)


def test_folders_are_part_of_the_key_and_the_first_dot_ends_it(index_of, flac):
    index = index_of([("v1.0/a", {"flac": flac(1), "json": {"text": "x"}})])
    assert keys(index) == ["v1.0/a"]


def test_members_that_are_no_sample_are_passed_over(tmp_path, three, prompter):
    with tarfile.open(three, "a") as tar:
        for name in ("README", ".DS_Store", "folder/._a.flac"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    index = index_shard(str(three), prompter, NO_LIMITS)
    assert (keys(index), reasons(index)) == (["a", "b", "c"], [])


def test_recordings_of_a_dialogue_are_in_the_order_of_their_numbers(index_of, flac):
    messages = [{"role": "user", "content": "<|AUDIO|>" * 11}, {"role": "assistant", "content": "eleven"}]
    recordings = {f"{i}.flac": flac(0.1 * (i + 1)) for i in range(11)}
    (entry,) = index_of([("a", {**recordings, "json": {"messages": messages}})]).entries
    assert entry.num_samples == [1600 * (i + 1) for i in range(11)]


def test_a_dialogue_may_have_no_audio(index_of):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    (entry,) = index_of([("a", {"json": {"messages": messages}})]).entries
    assert (entry.num_samples, entry.audio_regions) == ([], [])


# -- samples that cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"flac": "audio"}, "missing json"),
        ({"json": {"text": "x"}}, "missing audio"),
        ({"json": {"text": "x"}, "m4a": "audio"}, "missing audio"),
        ({"flac": "audio", "json": {}}, "missing text"),
        ({"flac": "audio", "json": {"text": "  "}}, "missing text"),
        ({"flac": "audio", "json": {"text": 7}}, "missing text"),
        ({"flac": "audio", "json": {"task": "dance", "text": "x"}}, "missing text"),
        ({"flac": "audio", "json": {"messages": "hello"}}, "missing text"),
        ({"flac": "audio", "json": {"text": "<|AUDIO|>"}}, "unusable text"),
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
    assert [(entry.key, entry.num_samples) for entry in index.entries] == [("a", [16_000]), ("b", [32_000])]
    assert reasons(index) == [("a", "duplicate key")] * 2


def test_halves_of_two_samples_of_one_key_are_never_put_together(index_of, flac):
    fields = {"json": {"text": "x"}}
    index = index_of([("a", {"flac": flac(1)}), ("b", {"flac": flac(1), **fields}), ("a", {"flac": flac(2), **fields})])
    assert keys(index) == ["b"]
    assert sorted(reasons(index)) == [("a", "duplicate key"), ("a", "missing json")]


# -- damaged shards ---------------------------------------------------------------------------------


def test_a_shard_cut_between_samples_is_noticed(three, prompter):
    os.truncate(three, offsets(three)["c.flac"][0])
    index = index_shard(str(three), prompter, NO_LIMITS)
    assert keys(index) == ["a", "b"]
    assert [item.reason for item in index.broken] == ["truncated shard"]


def test_a_shard_cut_between_the_members_of_a_sample_is_noticed(three, prompter):
    os.truncate(three, offsets(three)["c.json"][0])
    index = index_shard(str(three), prompter, NO_LIMITS)
    assert keys(index) == ["a", "b"]
    assert Counter(item.reason for item in index.broken) == {"truncated shard": 1, "missing json": 1}


@pytest.mark.parametrize("member", ["c.flac", "c.json"])
def test_a_shard_cut_inside_a_member_is_noticed(three, prompter, member):
    os.truncate(three, offsets(three)[member][2] - 5)
    index = index_shard(str(three), prompter, NO_LIMITS)
    assert keys(index) == ["a", "b"]
    assert reasons(index) == [("c", "truncated shard")]


def test_a_shard_cut_inside_a_header_is_noticed(three, prompter):
    os.truncate(three, offsets(three)["c.flac"][0] + 100)
    index = index_shard(str(three), prompter, NO_LIMITS)
    assert keys(index) == ["a", "b"]
    assert [item.reason for item in index.broken] == ["truncated shard"]


def test_a_shard_with_a_damaged_header_in_its_middle_is_noticed(three, prompter):
    at = offsets(three)["b.flac"][0]
    data = bytearray(three.read_bytes())
    data[at : at + 512] = b"\x55" * 512
    three.write_bytes(data)
    index = index_shard(str(three), prompter, NO_LIMITS)
    assert keys(index) == ["a"]
    assert [item.reason for item in index.broken] == ["truncated shard"]


@pytest.mark.parametrize("data", [b"", b"\0" * 10240, b"no tar" * 1000, b"\x1f\x8b compressed" * 100])
def test_a_shard_without_samples_stops_the_run(tmp_path, prompter, data):
    (tmp_path / "shard.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"shard .*shard\.tar: (holds no sample|not an uncompressed tar)"):
        index_shard(str(tmp_path / "shard.tar"), prompter, NO_LIMITS)


def test_a_missing_shard_stops_the_run(tmp_path, prompter):
    with pytest.raises(DataError, match=r"none\.tar: No such file"):
        index_shards([str(tmp_path / "none.tar")], prompter, NO_LIMITS, tmp_path / "cache")


def test_a_folder_in_place_of_a_shard_stops_the_run(tmp_path, prompter):
    with pytest.raises(DataError, match="Is a directory"):
        index_shards([str(tmp_path)], prompter, NO_LIMITS, tmp_path / "cache")


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
    assert [entry.num_samples for entry in index.entries] == [[68_800], [35_200], [56_000]]


def test_a_recording_at_the_limit_is_whole(index_of, flac):
    (entry,) = index_of(long_sample(flac), Limits(10.0, "split")).entries
    assert (entry.key, entry.segments, entry.num_samples) == ("a", None, [160_000])


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


# -- the cache --------------------------------------------------------------------------------------


def test_the_index_is_read_from_the_cache_and_is_the_same(tmp_path, three, prompter, monkeypatch):
    first = index_shards([str(three)], prompter, NO_LIMITS, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)  # a second reading of the shard would fail
        assert index_shards([str(three)], prompter, NO_LIMITS, tmp_path / "cache") == first


def test_entries_of_split_recordings_survive_the_cache(tmp_path, write_shard, flac, prompter):
    path = write_shard(tmp_path / "long.tar", long_sample(flac))
    made, read = (index_shards([str(path)], prompter, Limits(5.0, "split"), tmp_path / "cache") for _ in range(2))
    assert made == read
    assert read[0].entries[0].segments == (0, 2)


def test_a_changed_shard_is_indexed_anew(tmp_path, three, write_shard, flac, prompter):
    index_shards([str(three)], prompter, NO_LIMITS, tmp_path / "cache")
    write_shard(three, [("d", {"flac": flac(1), "json": {"text": "new"}})])
    (index,) = index_shards([str(three)], prompter, NO_LIMITS, tmp_path / "cache")
    assert keys(index) == ["d"]


def test_other_limits_and_other_templates_are_indexed_anew(tmp_path, three, prompter):
    index_shards([str(three)], prompter, NO_LIMITS, tmp_path / "cache")
    (index,) = index_shards([str(three)], prompter, Limits(0.5, "drop"), tmp_path / "cache")
    assert [item.reason for item in index.broken] == ["audio too long"] * 3
    (before,) = index_shards([str(three)], prompter, NO_LIMITS, tmp_path / "cache")
    prompter.tokenizer.chat_template = "system: be brief\n" + prompter.tokenizer.chat_template
    (after,) = index_shards([str(three)], prompter, NO_LIMITS, tmp_path / "cache")
    assert after.entries[0].num_text_ids > before.entries[0].num_text_ids


def test_a_damaged_cache_is_made_anew(tmp_path, three, prompter):
    first = index_shards([str(three)], prompter, NO_LIMITS, tmp_path / "cache")
    (stored,) = (tmp_path / "cache" / "index").iterdir()
    stored.write_text(stored.read_text()[:50])
    assert index_shards([str(three)], prompter, NO_LIMITS, tmp_path / "cache") == first


def test_a_cache_that_cannot_be_written_is_an_error_in_words(tmp_path, three, prompter):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cannot keep the index .* Set data\.cache_dir"):
        index_shards([str(three)], prompter, NO_LIMITS, tmp_path / "cache")
