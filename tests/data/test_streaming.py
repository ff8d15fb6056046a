"""Shards that are commands (``pipe:``): equal steps, every error counted, a run without end never hangs."""

from collections import Counter

import pytest

from fastslm.errors import ConfigError, DataError


@pytest.fixture
def streamed(tmp_path, make_shards, data_of):
    """Return a maker of data modules whose shards come out of ``cat``, nine recordings in three shards."""
    pattern = make_shards(tmp_path, 9, [0.3, 0.6, 1.2])

    def make(**settings):
        pipes = [f"pipe:cat {tmp_path}/train-{i:06d}.tar" for i in range(3)]
        data = data_of(
            **{"train_shards": pipes, "val_shards": pattern, "batch_samples": 2, "stream_steps": 12, **settings}
        )
        data.setup("fit")
        return data

    return make


@pytest.mark.parametrize(
    ("world_size", "num_workers"), [(1, 0), (1, 2), (3, 0), pytest.param(3, 2, marks=pytest.mark.slow)]
)
def test_every_rank_has_as_many_steps(streamed, num_workers, world_size):
    for rank in range(world_size):
        loader = streamed(num_workers=num_workers, rank=rank, world_size=world_size, stream_steps=7).train_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) == 7
        assert all(0 < len(batch) <= 2 for batch in batches)


def test_a_batch_holds_the_audio_and_the_words_of_its_samples(streamed):
    for batch in streamed().train_dataloader():
        for key, dialogue, num_samples in zip(batch.keys, batch.dialogues, batch.num_samples, strict=True):
            number = int(key.removeprefix("train-"))
            assert dialogue.reference == f"number {number}"
            assert num_samples == [4800, 9600, 19_200][number % 3]


def test_all_samples_come_about_equally_often(streamed):
    keys = Counter(key for batch in streamed(stream_steps=200).train_dataloader() for key in batch.keys)
    assert len(keys) == 9
    assert min(keys.values()) > 15  # 400 draws from 9, with replacement of shards


def test_ranks_workers_and_epochs_have_orders_of_their_own(streamed):
    orders = {
        tuple(key for batch in streamed(rank=rank, world_size=2, epoch=epoch).train_dataloader() for key in batch.keys)
        for rank in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_the_same_seed_gives_the_same_order(streamed):
    first, second = ([batch.keys for batch in streamed(seed=3).train_dataloader()] for _ in range(2))
    assert first == second


def test_a_resumed_stream_has_the_steps_that_were_left_and_another_order(streamed):
    data = streamed(steps_done=5)
    whole = [batch.keys for batch in data.train_dataloader()]
    again = streamed(steps_done=5)
    again.load_state_dict(data.state_dict())
    loader = again.train_dataloader()
    rest = [batch.keys for batch in loader]
    assert (len(rest), len(loader)) == (7, 12)
    assert rest != whole[5:]


def test_errors_are_counted_and_the_stream_goes_on(tmp_path, streamed, write_shard, flac):
    bad = [("x", {"flac": flac(0.3)}), ("y", {"flac": b"?", "json": {"text": "y"}}), ("z", {"json": {"text": "z"}})]
    write_shard(tmp_path / "bad.tar", [*bad, ("long", {"flac": flac(3.0), "json": {"text": "long"}})])
    write_shard(tmp_path / "cut.tar", [(f"c{i}", {"flac": flac(0.3), "json": {"text": "c"}}) for i in range(4)])
    with open(tmp_path / "cut.tar", "r+b") as file:
        file.truncate(6000)
    pipes = [f"pipe:cat {tmp_path}/{name}.tar" for name in ("train-000000", "bad", "cut", "none")]
    data = streamed(train_shards=pipes, max_audio_seconds=2.0, stream_steps=40)
    batches = list(data.train_dataloader())
    assert len(batches) == 40
    reasons = Counter(item["reason"] for batch in batches for item in batch.broken)
    assert {"missing json", "unreadable audio", "missing audio", "audio too long", "unreadable shard"} <= set(reasons)
    keys = {item["key"] for batch in batches for item in batch.broken}
    assert {"x", "y", "z", "long"} <= keys


def test_a_stream_is_read_behind_zeros_and_behind_damage(tmp_path, streamed):
    first, second = ((tmp_path / f"train-{i:06d}.tar").read_bytes() for i in (0, 1))
    (tmp_path / "joined.tar").write_bytes(first + b"\x55" * 512 + second)
    data = streamed(train_shards=[f"pipe:cat {tmp_path}/joined.tar"])
    batches = list(data.train_dataloader())
    assert len({key for batch in batches for key in batch.keys}) == 6
    assert {item["reason"] for batch in batches for item in batch.broken} == {"truncated shard"}


def test_a_stream_of_which_nothing_can_be_read_stops_the_run(tmp_path, streamed):
    data = streamed(train_shards=[f"pipe:cat {tmp_path}/none.tar 2>/dev/null"])
    with pytest.raises(DataError, match="failures in a row"):
        list(data.train_dataloader())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"val_shards": "pipe:cat a.tar"}, r"data\.val_shards: 'pipe:' cannot be read sample by sample"),
        ({"train_shards": ["pipe:cat a.tar", "b.tar"]}, "either all shards are commands"),
        ({"long_audio": "split"}, "need shards that are read by offset"),
        ({"chunk_seconds": 3.0}, "need shards that are read by offset"),
        ({"stream_steps": 0}, "must be above 0"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(streamed, settings, words):
    with pytest.raises(ConfigError, match=words):
        streamed(**settings)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "cat missing.tar",
            "200 failures in a row, the last one in pipe:cat missing.tar: unreadable shard: ",
        ),
        pytest.param(
            "true",
            "200 failures in a row, the last one in pipe:true: unreadable shard: empty file",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "head -c 10240 /dev/zero",
            "200 shards in a row hold no sample, the last one pipe:head",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_command_that_gives_nothing_ends_in_one_sentence(streamed, num_workers, command, words):
    with pytest.raises(DataError) as raised:
        list(streamed(train_shards=f"pipe:{command}", num_workers=num_workers).train_dataloader())
    assert str(raised.value).startswith(f"streaming: {words}")
    assert "Traceback" not in str(raised.value)
