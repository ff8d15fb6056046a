"""Shards to batches through the data module: order, workers, ranks, broken samples, limits, resuming."""

import os
import resource
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizer_kinds import make_tokenizer

from fastslm.callbacks.data_health import DataHealth
from fastslm.datamodules.index.scan import scan_tar
from fastslm.datamodules.index.sidecar import write_sidecar
from fastslm.datamodules.index.sources import expand
from fastslm.datamodules.reading.audio import decode, open_region
from fastslm.datamodules.webdataset import Source, WebDatasetModule
from fastslm.errors import ConfigError, DataError
from fastslm.path.batch import Batch
from fastslm.path.prompt import Prompter, messages_of


def keys_and_weights(loader):
    return [(key, weight) for batch in loader for key, weight in zip(batch.keys, batch.weights, strict=True)]


def contents(batch):
    return (batch.keys, batch.audio.tolist(), batch.num_samples, [d.input_ids.tolist() for d in batch.dialogues])


# -- batches ----------------------------------------------------------------------------------------


def test_a_batch_holds_the_audio_and_the_words_of_its_samples(tmp_path, make_shards, data_of, flac):
    data = data_of(val_shards=make_shards(tmp_path, 3, [1.0, 2.0, 3.0]))
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert batch.keys == ["train-002", "train-001", "train-000"]
    assert [d.reference for d in batch.dialogues] == ["number 2", "number 1", "number 0"]
    assert batch.num_samples == [48_000, 32_000, 16_000]
    assert batch.audio_seconds == 6.0
    (tmp_path / "one.flac").write_bytes(flac(2.0, seed=1))
    with open(tmp_path / "one.flac", "rb") as file:
        assert batch.audio[48_000:80_000].tolist() == decode(file).tolist()


def test_workers_change_nothing(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 9, [0.5, 1.0, 2.0])
    epochs = []
    for num_workers in (0, 2):
        data = data_of(train_shards=pattern, val_shards=pattern, batch_samples=2, num_workers=num_workers)
        data.setup("fit")
        epochs.append([contents(batch) for batch in data.train_dataloader()])
    assert epochs[0] == epochs[1]
    assert len(epochs[0]) == 5


def test_batches_keep_the_limits(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 8, [1.0, 5.0])  # 1 and 3 windows of 2 s
    data = data_of(train_shards=pattern, val_shards=pattern, batch_samples=3, batch_windows=4)
    data.setup("fit")
    windows = [[-(-n // 32_000) for n in batch.num_samples] for batch in data.train_dataloader()]
    assert all(len(counts) <= 3 and sum(counts) <= 4 for counts in windows)


def test_planned_costs_are_those_of_the_path(tmp_path, make_shards, data_of, make_module):
    module = make_module()
    data = data_of(val_shards=make_shards(tmp_path, 3, [0.3, 2.0, 4.7]), module=module)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    module.configure_model()
    listener = module.path.listener
    layout = module.path.text.layout(batch.dialogues, listener.rows(listener.cut(batch.num_samples)), batch.weights)
    longest = max(layout.num_tokens)
    again = data_of(val_shards=data.shards["val"], module=make_module(context_length=longest))
    again.setup("validate")
    assert not again.broken["val"]
    tighter = data_of(val_shards=data.shards["val"], module=make_module(context_length=longest - 1))
    tighter.setup("validate")
    assert [(item.key, item.reason) for item in tighter.broken["val"]] == [("train-002", "context too long")]
    assert f"{longest} positions, the LLM was made for {longest - 1}" in tighter.broken["val"][0].detail


def test_a_split_recording_gives_its_chunks_with_their_own_words(tmp_path, write_shard, flac, data_of):
    segments = [{"start": 0.2, "end": 1.8, "text": "one"}, {"start": 2.2, "end": 3.5, "text": "two"}]
    recording = flac(4.0)
    write_shard(tmp_path / "long.tar", [("a", {"flac": recording, "json": {"text": "one two", "segments": segments}})])
    data = data_of(val_shards=str(tmp_path / "long.tar"), max_audio_seconds=2.5, long_audio="split")
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert batch.keys == ["a/0", "a/1"]
    assert [d.reference for d in batch.dialogues] == ["one", "two"]
    (tmp_path / "whole.flac").write_bytes(recording)
    descriptor = os.open(tmp_path / "whole.flac", os.O_RDONLY)
    assert batch.audio.tolist() == decode(open_region(descriptor, 0, len(recording))).tolist()
    os.close(descriptor)


def test_training_takes_chunks_beside_the_whole_recording(tmp_path, write_shard, flac, data_of):
    segments = [{"start": 0.2, "end": 1.8, "text": "one"}, {"start": 2.2, "end": 3.8, "text": "two"}]
    fields = {"text": "one two", "segments": segments}
    shard = write_shard(tmp_path / "train.tar", [("a", {"flac": flac(4.0), "json": fields})])
    write_shard(tmp_path / "val.tar", [("b", {"flac": flac(4.0), "json": fields})])
    data = data_of(train_shards=str(shard), val_shards=str(tmp_path / "val.tar"), chunk_seconds=2.5)
    data.setup("fit")
    found = {
        key: (dialogue.reference, count)
        for batch in data.train_dataloader()
        for key, dialogue, count in zip(batch.keys, batch.dialogues, batch.num_samples, strict=True)
    }
    assert found == {"a": ("one two", 64_000), "a/0": ("one", 32_000), "a/1": ("two", 32_000)}
    assert [key for batch in data.val_dataloader() for key in batch.keys] == ["b"]


def test_dialogues_without_audio_make_a_batch(tmp_path, write_shard, data_of):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    write_shard(tmp_path / "text.tar", [(key, {"json": {"messages": messages}}) for key in "ab"])
    data = data_of(val_shards=str(tmp_path / "text.tar"))
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert (len(batch), batch.num_samples, len(batch.audio)) == (2, [], 0)
    assert [d.task for d in batch.dialogues] == ["dialogue", "dialogue"]


@pytest.mark.slow
def test_more_shards_than_a_process_may_open_are_read(tmp_path, write_shard, data_of):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    for i in range(120):
        write_shard(tmp_path / f"{i:03d}.tar", [(f"{i}", {"json": {"messages": messages}})])
    data = data_of(val_shards=str(tmp_path / "*.tar"))
    data.setup("validate")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 80, limits[1]))
    try:
        rows = keys_and_weights(data.val_dataloader())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sorted(int(key) for key, _ in rows) == list(range(120))


# -- ranks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num", [1, 4, 7])
def test_validation_counts_each_sample_once_over_all_ranks(tmp_path, make_shards, data_of, num, world_size):
    pattern = make_shards(tmp_path, num, [0.2, 0.5])
    loaders = []
    for rank in range(world_size):
        data = data_of(val_shards=pattern, rank=rank, world_size=world_size, eval_batch_samples=2)
        data.setup("validate")
        loaders.append(data.val_dataloader())
    assert len({len(loader) for loader in loaders}) == 1
    rows = [row for loader in loaders for row in keys_and_weights(loader)]
    assert sorted(key for key, weight in rows if weight) == [f"train-{i:03d}" for i in range(num)]
    assert {weight for _, weight in rows} <= {0.0, 1.0}


def test_ranks_share_an_epoch_of_training(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 10, 0.2)
    rows = []
    for rank in range(2):
        data = data_of(train_shards=pattern, val_shards=pattern, rank=rank, world_size=2, batch_samples=2)
        data.setup("fit")
        rows += keys_and_weights(data.train_dataloader())
    assert sorted(rows) == [(f"train-{i:03d}", 1.0) for i in range(10)]


# -- broken samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_that_breaks_when_read_is_reported_and_the_batch_goes_on(
    tmp_path, make_shards, data_of, damage, num_workers
):
    pattern = make_shards(tmp_path, 3)
    damage(tmp_path / "train-000000.tar", "train-001")
    data = data_of(val_shards=pattern, num_workers=num_workers)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert list(zip(batch.keys, batch.weights, strict=True)) == [("train-000", 1.0), ("train-002", 1.0)]
    (item,) = batch.broken
    assert (item["shard"], item["key"]) == (str(tmp_path / "train-000000.tar"), "train-001")
    assert item["reason"] == "unreadable audio"
    assert item["detail"]


def test_a_batch_whose_samples_are_all_broken_is_replaced_by_one_that_counts_nowhere(
    tmp_path, make_shards, data_of, damage
):
    pattern = make_shards(tmp_path, 4, [2.0, 2.0, 1.0, 1.0], per_shard=4)
    damage(tmp_path / "train-000000.tar", "train-000", "train-001")
    data = data_of(val_shards=pattern, eval_batch_samples=2)
    data.setup("validate")
    first, second = data.val_dataloader()
    assert [item["key"] for item in first.broken] == ["train-000", "train-001"]
    assert first.weights == [0.0]
    assert first.keys[0] in ("train-002", "train-003")
    assert (second.keys, second.weights, second.broken) == (["train-002", "train-003"], [1.0, 1.0], [])


def test_a_broken_sample_that_also_fills_a_step_is_reported_once(tmp_path, make_shards, data_of, damage):
    pattern = make_shards(tmp_path, 3, [1.0, 1.0, 2.0])  # the longest comes first: 2 | 0, then 1 | 1 again
    damage(tmp_path / "train-000000.tar", "train-001")
    batches = []
    for rank in range(2):
        data = data_of(val_shards=pattern, rank=rank, world_size=2, eval_batch_samples=1)
        data.setup("validate")
        batches += data.val_dataloader()
    assert [item["key"] for batch in batches for item in batch.broken] == ["train-001"]
    assert sorted(k for batch in batches for k, w in zip(batch.keys, batch.weights, strict=True) if w) == [
        "train-000",
        "train-002",
    ]
    assert all(len(batch) for batch in batches)


def test_a_data_set_of_which_nothing_can_be_read_is_an_error(tmp_path, make_shards, data_of, damage):
    pattern = make_shards(tmp_path, 2)
    damage(tmp_path / "train-000000.tar", "train-000", "train-001")
    data = data_of(val_shards=pattern)
    data.setup("validate")
    with pytest.raises(DataError, match="not one of its data set's samples can be read"):
        list(data.val_dataloader())


def test_too_many_broken_samples_stop_the_run_with_a_summary(tmp_path, make_shards, write_shard, flac, data_of):
    pattern = make_shards(tmp_path, 6)
    write_shard(tmp_path / "train-bad.tar", [("x", {"flac": flac(1)}), ("y", {"flac": b"?", "json": {"text": "y"}})])
    with pytest.raises(DataError) as error:
        data_of(val_shards=pattern, max_broken_share=0.2).setup("validate")
    text = str(error.value)
    assert "data.val_shards: 2 of 8 samples are broken, more than data.max_broken_share 0.2 allows" in text
    assert f"1 x missing json (first: shard {tmp_path}/train-bad.tar, sample 'x'" in text
    assert "1 x unreadable audio" in text
    tolerant = data_of(val_shards=pattern, max_broken_share=0.25)
    tolerant.setup("validate")
    assert Counter(item.reason for item in tolerant.broken["val"]) == {"missing json": 1, "unreadable audio": 1}


def test_recordings_that_the_settings_refuse_stop_nothing(tmp_path, make_shards, data_of):
    data = data_of(val_shards=make_shards(tmp_path, 6, [1.0, 9.0]), max_audio_seconds=5.0, max_broken_share=0.0)
    data.setup("validate")
    assert sorted(key for key, _ in keys_and_weights(data.val_dataloader())) == ["train-000", "train-002", "train-004"]
    assert Counter(item.reason for item in data.broken["val"]) == {"audio too long": 3}


def test_shards_without_a_usable_sample_stop_the_run(tmp_path, make_shards, data_of):
    with pytest.raises(DataError, match=r"1 shards hold no usable sample\. 2 x audio too long"):
        data_of(val_shards=make_shards(tmp_path, 2, 9.0), max_audio_seconds=5.0).setup("validate")


def test_the_callback_shows_what_was_left_out(tmp_path, make_shards, data_of, capsys):
    data = data_of(val_shards=make_shards(tmp_path, 3, [1.0, 9.0]), max_audio_seconds=5.0)
    data.setup("validate")
    trainer = SimpleNamespace(
        datamodule=data, is_global_zero=True, training=False, state=SimpleNamespace(fn="validate")
    )
    DataHealth().on_validation_start(trainer, None)
    assert "val data: left out 1 x audio too long (first: " in capsys.readouterr().out


@pytest.fixture
def read_with_callback(tmp_path, make_shards, data_of, damage):
    """Return what runs validation over 24 samples, two of them broken, under the eyes of the callback."""

    def read(max_broken_share, order):
        pattern = make_shards(tmp_path, 24, 0.3, per_shard=24)
        damage(tmp_path / "train-000000.tar", "train-001", "train-005")
        data = data_of(val_shards=pattern, eval_batch_samples=4, max_broken_share=max_broken_share)
        data.setup("validate")
        health = DataHealth()
        trainer = SimpleNamespace(datamodule=data, global_rank=0, state=SimpleNamespace(fn="validate"))
        for i, batch in enumerate(order(list(data.val_dataloader()))):
            health.on_validation_batch_end(trainer, None, None, batch, i)
        health.on_validation_epoch_end(trainer, None)

    return read


@pytest.mark.parametrize("order", [iter, reversed])
def test_the_callback_stops_the_run_when_too_much_breaks_while_reading(read_with_callback, order):
    with pytest.raises(DataError, match=r"2 of 2\d samples read are broken, more than data.max_broken_share 0.05"):
        read_with_callback(0.05, order)


def test_the_callback_tells_at_the_end_what_broke_while_reading(read_with_callback, capsys):
    read_with_callback(0.5, iter)
    assert "rank 0: 2 of 24 samples broken: 2 x unreadable audio in " in capsys.readouterr().out


def test_the_callback_tells_what_spells_control_tokens(tmp_path, flac, write_shard, data_of, capsys):
    texts = ["one", "two <|im_end|> three <|im_end|>", "four", "<|AUDIO|> five <|im_end|>"]
    samples = [(f"s{i}", {"flac": flac(0.3), "json": {"text": text}}) for i, text in enumerate(texts)]
    data = data_of(val_shards=str(write_shard(tmp_path / "a.tar", samples)), eval_batch_samples=4)
    data.setup("validate")
    health, (batch,) = DataHealth(), data.val_dataloader()
    trainer = SimpleNamespace(datamodule=data, global_rank=0, state=SimpleNamespace(fn="validate"))
    health.on_validation_batch_end(trainer, None, None, batch, 0)
    health.on_validation_epoch_end(trainer, None)
    said = "rank 0: 2 of 4 samples spell out control tokens, which are read as text: 2 x <|im_end|>, 1 x <|AUDIO|>"
    assert f"{said} (first: sample 's1')" in capsys.readouterr().out


def test_the_callback_tells_what_the_tokenizer_does_not_know(tmp_path, capsys):
    prompter = Prompter(make_tokenizer("unigram"))
    texts = ["one", "two <unk>", "gr\u00fc\u00dfe \u65e5", "\u00fcber"]
    dialogues = [prompter.dialogue(messages_of({"text": text}), 1, "asr") for text in texts]
    batch = Batch(torch.zeros(0, dtype=torch.int16), [], dialogues, ["a", "b", "c", "d"], [1.0] * 4)
    health, trainer = (
        DataHealth(),
        SimpleNamespace(datamodule=None, global_rank=0, state=SimpleNamespace(fn="validate")),
    )
    health.on_validation_batch_end(trainer, None, None, batch, 0)
    health.on_validation_epoch_end(trainer, None)
    said = capsys.readouterr().out
    assert "1 of 4 samples spell out control tokens, which are read as text: 1 x <unk> (first: sample 'b')" in said
    assert "in 2 of 4 samples or their prompts the tokenizer does not know these characters: 2 x '\u00fc'" in said
    assert "read as its unk_token (first: sample 'c')" in said


# -- resuming ---------------------------------------------------------------------------------------


def resumed(data_of, pattern, state, **settings):
    data = data_of(train_shards=pattern, val_shards=pattern, batch_samples=2, **settings)
    data.load_state_dict(state)
    data.setup("fit")
    return data


@pytest.mark.parametrize(("epoch", "steps_done"), [(0, 0), (0, 2), (3, 4)])
def test_a_resumed_run_reads_what_the_first_one_had_left(tmp_path, make_shards, data_of, epoch, steps_done):
    pattern = make_shards(tmp_path, 10, [0.2, 0.4])
    data = data_of(
        train_shards=pattern, val_shards=pattern, batch_samples=2, epoch=epoch, steps_done=steps_done, seed=5
    )
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    whole = [batch.keys for batch in loader]
    again = resumed(data_of, pattern, data.state_dict(), seed=5).train_dataloader()
    again.sampler.set_epoch(epoch)
    assert [batch.keys for batch in again] == whole[steps_done:]


def test_a_checkpoint_at_the_end_of_an_epoch_goes_on_with_the_next(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 10, 0.2)
    data = data_of(train_shards=pattern, val_shards=pattern, batch_samples=2, epoch=1, steps_done=5)
    data.setup("fit")
    again = resumed(data_of, pattern, data.state_dict()).train_dataloader()
    again.sampler.set_epoch(2)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    assert [batch.keys for batch in again] == [batch.keys for batch in loader]


def test_a_checkpoint_of_other_data_is_refused(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 10, 1.0)
    data = data_of(train_shards=pattern, val_shards=pattern, batch_samples=2)
    data.setup("fit")
    state = data.state_dict()
    make_shards(tmp_path, 10, 1.5)
    with pytest.raises(DataError, match="trained on other data"):
        resumed(data_of, pattern, state).train_dataloader()


def test_a_shard_modified_with_the_same_length_is_refused_on_resume(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 10, 1.0)
    data = data_of(train_shards=pattern, val_shards=pattern, batch_samples=2)
    data.setup("fit")
    state = data.state_dict()
    shard = tmp_path / "train-000001.tar"
    changed = bytearray(shard.read_bytes())
    at = changed.index(b"number 4")
    changed[at : at + 8] = b"number 5"
    shard.write_bytes(changed)
    write_sidecar(shard, scan_tar(shard))  # even where its new content was accepted
    with pytest.raises(DataError, match="the plan hash differs"):
        resumed(data_of, pattern, state).train_dataloader()


@pytest.mark.parametrize(
    ("first_world", "second_world", "steps"), [(1, 2, 3), (2, 1, 2), (2, 3, 1), (3, 2, 2), (4, 7, 1)]
)
def test_with_another_number_of_ranks_every_sample_left_comes_once(
    tmp_path, make_shards, data_of, keys_of, first_world, second_world, steps
):
    pattern = make_shards(tmp_path, 23, [0.2, 0.4])
    first = []
    for rank in range(first_world):
        data = data_of(train_shards=pattern, val_shards=pattern, batch_samples=2, rank=rank, world_size=first_world)
        data.setup("fit")
        batches = list(data.train_dataloader())[:steps]
        data.trainer.fit_loop.epoch_loop.batch_progress.current.ready = steps
        first += keys_of(batches)
        state = data.state_dict()
    assert set(state) == {"seed", "epoch", "step", "plan_hash"}
    second, again = [], []
    for rank in range(second_world):
        data = resumed(data_of, pattern, state, rank=rank, world_size=second_world, steps_done=steps)
        loader = data.train_dataloader()
        batches = list(loader)
        assert len(loader) == steps + len(batches)
        second += keys_of(batches)
        # ... and once more, one step later, back on one rank
        data.trainer.fit_loop.epoch_loop.batch_progress.current.ready = steps + 1
        again += keys_of(batches[:1])
        later = data.state_dict()
    whole = sorted(f"train-{i:03d}" for i in range(23))
    assert sorted(first + second) == whole
    last = (
        keys_of(resumed(data_of, pattern, later, steps_done=steps + 1).train_dataloader()) if len(batches) > 1 else []
    )
    if len(batches) > 1:
        assert sorted(first + again + last) == whole


# -- sources ----------------------------------------------------------------------------------------


def sources(tmp_path, make_shards, *weights):
    return [
        Source(name, make_shards(tmp_path / name, num, 0.2, name=name), weight)
        for (name, num), weight in zip((("big", 12), ("small", 3)), weights, strict=True)
    ]


def epochs_of(data, num):
    loader = data.train_dataloader()
    for epoch in range(num):
        loader.sampler.set_epoch(epoch)
        yield [key for batch in loader for key in batch.keys]


def test_sources_without_weights_give_every_sample_once(tmp_path, make_shards, data_of):
    named = sources(tmp_path, make_shards, None, None)
    data = data_of(train_shards=named, val_shards=named[0].shards, batch_samples=2)
    data.setup("fit")
    everything = sorted([*(f"big-{i:03d}" for i in range(12)), *(f"small-{i:03d}" for i in range(3))])
    assert [sorted(keys) for keys in epochs_of(data, 2)] == [everything] * 2


def test_weights_set_the_shares_and_no_sample_comes_again_before_all_of_its_source(tmp_path, make_shards, data_of):
    named = sources(tmp_path, make_shards, 1.0, 1.0)
    data = data_of(train_shards=named, val_shards=named[0].shards, batch_samples=2)
    data.setup("fit")
    epochs = list(epochs_of(data, 4))
    for keys in epochs:  # 15 samples, half of each: 8 and 7, by the first's larger remainder
        assert sorted(Counter(key.split("-")[0] for key in keys).values()) == [7, 8]
    for name, size in (("big", 12), ("small", 3)):
        counts = Counter(key for keys in epochs for key in keys if key.startswith(name))
        assert len(counts) == size
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("weights", [(None, None), (1.0, 1.0)])
def test_a_source_of_which_nothing_is_usable_says_why(tmp_path, make_shards, data_of, weights):
    named = sources(tmp_path, make_shards, *weights)
    (tmp_path / "long").mkdir()
    named[1] = Source("long", make_shards(tmp_path / "long", 2, 3.0, name="long"), weights[1])
    data = data_of(train_shards=named, val_shards=named[0].shards, max_audio_seconds=1.0, long_audio="drop")
    with pytest.raises(DataError, match=r"source 'long' has no usable sample\. 2 x audio too long"):
        data.setup("fit")


def test_temperature_brings_sources_closer(tmp_path, make_shards, data_of):
    named = sources(tmp_path, make_shards, None, None)
    data = data_of(train_shards=named, val_shards=named[0].shards, temperature=2.0)
    data.setup("fit")
    (keys,) = epochs_of(data, 1)
    # 12 ** 0.5 : 3 ** 0.5 is 2 : 1, of 15 samples
    assert Counter(key.split("-")[0] for key in keys) == {"big": 10, "small": 5}


def test_a_temperature_that_leaves_a_source_out_is_named(tmp_path, make_shards, data_of):
    named = sources(tmp_path, make_shards, None, None)
    data = data_of(train_shards=named, val_shards=named[0].shards, temperature=1e-300)
    with pytest.raises(ConfigError, match=r"1 of 2 sources \(first 'small'\) give no sample .* or data\.temperature"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((1.0, None), "source 'small' has no weight"),
        ((1.0, -1.0), "must be above 0"),
        ((1.0, 1e-9), "1 of 2 sources \\(first"),
    ],
)
def test_weights_that_make_no_sense_are_refused(tmp_path, make_shards, data_of, weights, words):
    named = sources(tmp_path, make_shards, *weights)
    with pytest.raises(ConfigError, match=words):
        data_of(train_shards=named, val_shards=named[0].shards).setup("fit")


# -- keys -------------------------------------------------------------------------------------------


def test_equal_keys_in_two_shards_are_told_apart(tmp_path, make_shards, data_of, keys_of, capsys):
    make_shards(tmp_path / "one", 3, 0.2)
    make_shards(tmp_path / "two", 2, 0.2)
    data = data_of(val_shards=[f"{tmp_path}/one/*.tar", f"{tmp_path}/two/*.tar"])
    data.setup("validate")
    keys = keys_of(data.val_dataloader())
    expected = [f"train-{i:03d}@{tmp_path}/{name}/train-000000.tar" for name in ("one", "two") for i in range(2)]
    assert sorted(keys) == sorted(["train-002", *expected])
    assert "4 samples have a key that is also in another shard" in capsys.readouterr().out


def test_a_shard_that_is_named_twice_is_refused(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 3, 0.2)
    with pytest.raises(DataError, match="is named more than once"):
        data_of(val_shards=[pattern, pattern]).setup("validate")


# -- modified after indexing ------------------------------------------------------------------------


def test_a_sample_modified_after_indexing_is_left_out_and_counted(tmp_path, make_shards, data_of, keys_of):
    pattern = make_shards(tmp_path, 6, 0.5)
    data_of(val_shards=pattern).setup("validate")
    shard = tmp_path / "train-000000.tar"
    changed = bytearray(shard.read_bytes())
    at = changed.index(b"number 1")
    changed[at : at + 8] = b"number 9"
    shard.write_bytes(changed)
    data = data_of(val_shards=pattern, max_broken_share=0.5)
    data.setup("validate")
    assert [(item.key, item.reason) for item in data.broken["val"]] == [("train-001", "checksum differs")]
    assert "fastslm shards index --force" in data.broken["val"][0].detail
    assert "train-001" not in keys_of(data.val_dataloader())


def test_a_text_that_rotted_before_a_tokenizer_counted_it_is_one_broken_sample(tmp_path, make_shards, data_of):
    """Neither size nor time of the shard says so, and its text is read for the first time."""
    pattern = make_shards(tmp_path, 6, 0.5)
    shard = tmp_path / "train-000000.tar"
    write_sidecar(shard, scan_tar(shard))
    whole, status = shard.read_bytes(), shard.stat()

    def put(data):
        shard.write_bytes(data)
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))

    def broken():
        data = data_of(val_shards=pattern, max_broken_share=0.5)
        data.setup("validate")
        return [(item.shard, item.key, item.reason) for item in data.broken["val"]]

    rotten = bytearray(whole)
    rotten[whole.index(b"number 1") - 10] ^= 0x04
    put(rotten)
    assert broken() == [(str(shard), "train-001", "checksum differs")]
    put(whole)
    assert broken() == []


def test_a_sample_modified_while_the_run_goes_on_is_reported(tmp_path, make_shards, data_of, keys_of):
    pattern = make_shards(tmp_path, 6, 0.5)
    data = data_of(val_shards=pattern)
    data.setup("validate")
    shard = tmp_path / "train-000000.tar"
    changed = bytearray(shard.read_bytes())
    at = changed.index(b"number 1")
    changed[at : at + 8] = b"number 9"
    shard.write_bytes(changed)
    (batch,) = data.val_dataloader()
    assert [(item["key"], item["reason"]) for item in batch.broken] == [("train-001", "checksum differs")]
    assert "train-001" not in batch.keys


def test_a_shard_that_vanishes_during_the_run_is_reported(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 6, 0.5)
    data = data_of(val_shards=pattern)
    data.setup("validate")
    (tmp_path / "train-000001.tar").unlink()
    (batch,) = data.val_dataloader()
    assert [(item["key"], item["reason"]) for item in batch.broken] == [
        (f"train-{i:03d}", "vanished shard") for i in (3, 4, 5)
    ]
    assert sorted(batch.keys) == ["train-000", "train-001", "train-002"]


# -- settings ---------------------------------------------------------------------------------------


def test_braces_and_globs_name_shards(tmp_path):
    for name in ("a-000000", "a-000001", "a-000002", "b-0"):
        (tmp_path / f"{name}.tar").touch()
    here = str(tmp_path)
    assert expand(f"{here}/a-{{000000..000001}}.tar", "k") == [f"{here}/a-000000.tar", f"{here}/a-000001.tar"]
    assert expand(f"{here}/a-*.tar", "k") == [f"{here}/a-{i:06d}.tar" for i in range(3)]
    assert expand([f"{here}/b-*.tar", f"{here}/a-000001.tar"], "k") == [f"{here}/b-0.tar", f"{here}/a-000001.tar"]
    assert expand(f"{here}/{{b-*,a-*1}}.tar", "k") == [f"{here}/b-0.tar", f"{here}/a-000001.tar"]


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/a.tar", "k") == [f"{tmp_path}/a.tar"]


def test_a_pattern_that_matches_nothing_is_an_error_that_names_its_key(tmp_path):
    with pytest.raises(DataError, match=r"data.train_shards: no file matches '.*none-\*\.tar'"):
        expand(f"{tmp_path}/none-*.tar", "data.train_shards")


def test_missing_shards_are_an_error_that_names_the_key(data_of):
    with pytest.raises(ConfigError, match=r"data\.train_shards: no shards are given"):
        data_of().setup("fit")


def test_test_and_prediction_fall_back_to_the_shards_before_them(tmp_path, make_shards, data_of):
    data = data_of(val_shards=make_shards(tmp_path, 2, 0.2))
    for stage, loader in (("test", data.test_dataloader), ("predict", data.predict_dataloader)):
        data.setup(stage)
        assert np.size(keys_and_weights(loader())) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_audio_seconds": 0}, "data.max_audio_seconds"),
        ({"batch_tokens": 0}, "must be above 0"),
        ({"temperature": 0}, "data.temperature"),
        ({"max_broken_share": 1.5}, "data.max_broken_share: 1.5 is outside 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        WebDatasetModule(**settings)
