"""What ``DataSource`` promises, as tests."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch.loops.progress import _BatchProgress, _OptimizationProgress, _Progress, _SchedulerProgress

from fastslm.errors import DataError
from fastslm.path.batch import Batch
from fastslm.path.prompt import Prompter
from fastslm.training.data_source import DataSource, ModelFacts

_DEMO_LLM = Path(__file__).parents[1] / "demo" / "llm"


class DataSourceContract:
    """What ``DataSource`` promises, as tests with a stand-in for model and trainer: no weights, one process.

    Attributes:
        build: makes the source of the data in a folder, and the data if they are not there. It needs the splits
            ``train`` and ``val``, and at least 4 batches of training.
        build_other: the same class with other data, or with settings that change the batches.
        world_sizes: numbers of ranks that the tests use.
        other_ranks: whether a run may go on exactly with another number of ranks.
        most_samples: in a batch of training; None is not tested.
        most_windows: of 2 s, in a batch of training of more than one sample; None is not tested.
        most_positions: of the LLM, padding included, in such a batch; None is not tested.
    """

    build: ClassVar[Callable[[Path], DataSource]]
    build_other: ClassVar[Callable[[Path], DataSource]]
    world_sizes: ClassVar[tuple[int, ...]] = (1, 2, 3)
    other_ranks: ClassVar[bool] = True
    most_samples: ClassVar[int | None] = None
    most_windows: ClassVar[int | None] = None
    most_positions: ClassVar[int | None] = None

    def test_an_epoch_has_each_sample_once(self, tmp_path: Path) -> None:
        """Over all ranks each sample counts once, whatever the number of ranks; what fills up weighs nothing."""
        keys = sorted(self._started(tmp_path).keys("train"))
        for world_size in self.world_sizes:
            batches = [batch for rank in self._ranks(tmp_path, world_size) for batch in rank]
            assert sorted(_counted(batches)) == keys, f"with {world_size} ranks"

    def test_ranks_have_equally_many_batches(self, tmp_path: Path) -> None:
        """As many as the loader's length says, in training and in validation."""
        for world_size in self.world_sizes:
            for split in ("train", "val"):
                counts = []
                for rank in range(world_size):
                    loader = _loader(self._started(tmp_path, rank, world_size), split)
                    counts.append(len(list(loader)))
                    assert counts[-1] == len(loader), f"{counts[-1]} batches of {split}, its length says {len(loader)}"
                assert len(set(counts)) == 1, f"ranks have {counts} batches of {split}"

    def test_batches_are_what_the_model_takes(self, tmp_path: Path) -> None:
        """Audio of int16, as long as ``num_samples`` says, a placeholder for each recording, weights of 0 or 1."""
        source = self._started(tmp_path)
        audio_id = source.model.prompter.audio_id
        for split in ("train", "val"):
            for batch in _batches(source, split):
                assert batch.audio.dtype == torch.int16, f"audio is {batch.audio.dtype}"
                assert batch.audio.ndim == 1
                assert sum(batch.num_samples) == len(batch.audio)
                assert len(batch.keys) == len(batch.dialogues) == len(batch.weights) > 0
                assert set(batch.weights) <= {0.0, 1.0}
                placeholders = sum(dialogue.num_recordings(audio_id) for dialogue in batch.dialogues)
                assert placeholders == len(batch.num_samples)

    def test_batches_keep_their_limits(self, tmp_path: Path) -> None:
        """One sample that is too much by itself makes a batch of its own."""
        source = self._started(tmp_path)
        for batch in _batches(source, "train"):
            positions = _positions(batch, source.model.prompter.audio_id)
            windows, padded = int(_costs([batch.num_samples])[0].sum()), max(positions) * len(batch)
            assert len(batch) <= (self.most_samples or len(batch))
            assert len(batch) == 1 or windows <= (self.most_windows or windows)
            assert len(batch) == 1 or padded <= (self.most_positions or padded)

    def test_keys_are_unique_and_the_same_on_every_rank(self, tmp_path: Path) -> None:
        """``keys`` names each sample once, in one order."""
        for split in ("train", "val"):
            keys = self._started(tmp_path).keys(split)
            assert len(set(keys)) == len(keys) > 0, f"keys of {split} are not unique"
            assert self._started(tmp_path, rank=1, world_size=2).keys(split) == keys

    def test_an_epoch_can_be_repeated(self, tmp_path: Path) -> None:
        """The same epoch has the same batches, with the same audio."""
        for epoch in (0, 2):
            first, second = (list(_batches(self._started(tmp_path, epoch=epoch), "train")) for _ in range(2))
            assert _content(first) == _content(second)

    def test_each_epoch_has_an_order_of_its_own(self, tmp_path: Path) -> None:
        """Another epoch has the same samples in another order."""
        first, second = (list(_batches(self._started(tmp_path, epoch=epoch), "train")) for epoch in (0, 1))
        assert sorted(_counted(first)) == sorted(_counted(second))
        assert _counted(first) != _counted(second), "two epochs have one order"

    def test_a_resumed_run_has_exactly_what_was_left(self, tmp_path: Path) -> None:
        """After any number of batches, a new source with the state of the old one gives the batches that were left."""
        for world_size, epoch in ((1, 0), (2, 1)):
            whole = self._ranks(tmp_path, world_size, epoch)
            assert len(whole[0]) >= 4 // world_size, "build should give more batches, for this test to mean something"
            for done in sorted({0, 1, len(whole[0]) // 2, len(whole[0]) - 1}):
                states = [self._state(tmp_path, rank, world_size, epoch, done) for rank in range(world_size)]
                assert all(state == states[0] for state in states), f"ranks have different states: {states}"
                for rank in range(world_size):
                    resumed = self._started(tmp_path, rank, world_size, epoch, done)
                    resumed.load_state_dict(_stored(states[0]))
                    loader = _loader(resumed, "train")
                    rest = list(loader)
                    where = f"after {done} of {len(whole[rank])} batches on rank {rank} of {world_size}"
                    assert _content(rest) == _content(whole[rank][done:]), where
                    assert len(loader) == len(whole[rank]), f"{where}: the length is not that of the whole epoch"

    def test_another_number_of_ranks_goes_on_with_what_was_left(self, tmp_path: Path) -> None:
        """Each sample that is left in the epoch comes once."""
        keys = sorted(self._started(tmp_path).keys("train"))
        for before, after in ((1, 2), (2, 1), (2, 3)) if self.other_ranks else ():
            seen = _counted([batch for rank in self._ranks(tmp_path, before) for batch in rank[:1]])
            state = _stored(self._state(tmp_path, 0, before, 0, 1))
            for rank in range(after):
                resumed = self._started(tmp_path, rank, after, 0, 1)
                resumed.load_state_dict(state)
                seen += _counted(list(_batches(resumed, "train")))
            assert sorted(seen) == keys, f"{before} ranks, then {after}"

    def test_a_run_that_ended_within_an_epoch_goes_on_in_it(self, tmp_path: Path) -> None:
        """Lightning closes an epoch wherever training ends; what was left of it is trained on all the same."""
        whole = list(_batches(self._started(tmp_path, epoch=1), "train"))
        resumed = self._started(tmp_path, epoch=2, done=2)
        resumed.load_state_dict(_stored(self._state(tmp_path, 0, 1, 1, 2)))
        loader = resumed.train_dataloader()
        assert resumed.epoch == 1, "the trainer is left in the next epoch: call go_on_in"
        assert _content(list(loader)) == _content(whole[2:])

    def test_a_run_that_ended_with_an_epoch_goes_on_with_the_next(self, tmp_path: Path) -> None:
        """The state after the last batch of an epoch gives all of the next one, and the old one counts as over."""
        whole = [list(_batches(self._started(tmp_path, epoch=epoch), "train")) for epoch in (0, 1)]
        resumed = self._started(tmp_path, epoch=0, done=len(whole[0]))
        resumed.load_state_dict(_stored(self._state(tmp_path, 0, 1, 0, len(whole[0]))))
        loader = resumed.train_dataloader()
        assert resumed.batches_done >= len(loader), "the trainer does not see that the epoch is over: call go_on_after"
        closed = self._started(tmp_path)
        _place(closed, epoch=1, done=len(whole[0]), is_begun=False)
        closed.load_state_dict(_stored(self._state(tmp_path, 0, 1, 0, len(whole[0]))))
        closed.train_dataloader()
        assert closed.batches_done == 0, "the trainer takes the next epoch for done: call go_on_after"
        _place(resumed, epoch=1, done=0)
        _tell_epoch(loader, 1)
        assert _content(list(loader)) == _content(whole[1])

    def test_the_epoch_after_a_resumed_one_is_whole(self, tmp_path: Path) -> None:
        """A resumed source has its place in one epoch alone."""
        expected = list(_batches(self._started(tmp_path, epoch=1), "train"))
        resumed = self._started(tmp_path, done=2)
        resumed.load_state_dict(_stored(self._state(tmp_path, 0, 1, 0, 2)))
        list(_batches(resumed, "train"))
        _place(resumed, epoch=1, done=0)
        assert _content(list(_batches(resumed, "train"))) == _content(expected)

    def test_a_state_of_other_data_is_refused(self, tmp_path: Path) -> None:
        """With ``DataError``, before a batch is read."""
        other = _start(type(self).build_other(tmp_path / "other"))
        batches = iter(_loader(other, "train"))
        next(batches)
        _place(other, epoch=0, done=1)
        state = _stored(other.state_dict())
        assert state, "there is no state after a batch of training"
        source = self._started(tmp_path, done=1)
        with pytest.raises(DataError):  # noqa: PT012 -- either may be the one to find out
            source.load_state_dict(state)
            source.train_dataloader()

    def test_validation_has_each_sample_once(self, tmp_path: Path) -> None:
        """Over all ranks each sample has weight 1 once, and what fills up weight 0; the same every time."""
        keys = sorted(self._started(tmp_path).keys("val"))
        for world_size in (*self.world_sizes, len(keys) + 1):  # with as many ranks something has to fill up
            ranks = [self._started(tmp_path, rank, world_size) for rank in range(world_size)]
            first = [list(_batches(source, "val")) for source in ranks]
            assert sorted(_counted([batch for batches in first for batch in batches])) == keys, f"{world_size} ranks"
            second = [list(_batches(source, "val")) for source in ranks]
            assert [_content(batches) for batches in first] == [_content(batches) for batches in second]

    def test_steps_are_whole_under_accumulation(self, tmp_path: Path) -> None:
        """With two micro-batches to a step every batch knows the labels of its step, and each sample comes once."""
        source = self._started(tmp_path, num_micro_batches=2)
        batches = list(_batches(source, "train"))
        assert len(batches) % 2 == 0
        assert all(batch.step is not None and batch.step.num_micro_batches == 2 for batch in batches)
        assert sorted(_counted(batches)) == sorted(source.keys("train"))

    def test_broken_samples_are_told(self, tmp_path: Path) -> None:
        """``broken`` is by split, and the share that may break is a share."""
        source = self._started(tmp_path)
        assert set(source.broken) <= {"train", "val", "test", "predict"}
        assert 0.0 <= source.max_broken_share <= 1.0

    def _started(
        self,
        folder: Path,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        done: int = 0,
        num_micro_batches: int = 1,
    ) -> DataSource:
        return _start(type(self).build(folder), rank, world_size, epoch, done, num_micro_batches)

    def _ranks(self, folder: Path, world_size: int, epoch: int = 0) -> list[list[Batch]]:
        """Return the batches of an epoch on each rank."""
        return [list(_batches(self._started(folder, r, world_size, epoch), "train")) for r in range(world_size)]

    def _state(self, folder: Path, rank: int, world_size: int, epoch: int, done: int) -> dict[str, Any]:
        """Return the state of a source some batches into an epoch."""
        source = self._started(folder, rank, world_size, epoch)
        batches = iter(_loader(source, "train"))
        for _ in range(done):
            next(batches)
        _place(source, epoch, done)
        return source.state_dict()


def _facts() -> ModelFacts:
    """Return a model of windows of 2 s and 4 tokens a second, with the tokenizer that the package ships."""
    from transformers import AutoTokenizer

    prompter = Prompter(AutoTokenizer.from_pretrained(_DEMO_LLM, trust_remote_code=False))
    return ModelFacts(prompter, context_length=4096, samples_per_frame=320, audio_costs=_costs)


def _costs(num_samples: Any) -> tuple[Any, Any]:
    flat = [[max(1, -(-n // samples)) for samples in (32_000, 4000)] for row in num_samples for n in row]
    owner = np.repeat(np.arange(len(num_samples)), [len(row) for row in num_samples])
    costs = np.zeros((len(num_samples), 2), np.int64)
    np.add.at(costs, owner, np.array(flat, np.int64).reshape(-1, 2))
    return costs[:, 0], costs[:, 1]


def _positions(batch: Batch, audio_id: int) -> list[int]:
    """Return the LLM positions of each dialogue."""
    tokens = [int(_costs([[count]])[1][0]) for count in batch.num_samples]
    positions, first = [], 0
    for dialogue in batch.dialogues:
        count = dialogue.num_recordings(audio_id)
        positions.append(len(dialogue.input_ids) - count + sum(tokens[first : first + count]))
        first += count
    return positions


class _Trainer(SimpleNamespace):
    """What a data source asks of a trainer."""

    @property
    def current_epoch(self) -> int:
        """The epoch, counted as Lightning does."""
        return int(self.fit_loop.epoch_progress.current.processed)


def _start(
    source: DataSource, rank: int = 0, world_size: int = 1, epoch: int = 0, done: int = 0, num_micro_batches: int = 1
) -> DataSource:
    """Bring a source to where Lightning asks for its loaders."""
    facts = _facts()
    loop = SimpleNamespace(
        epoch_progress=_Progress(),
        epoch_loop=SimpleNamespace(
            batch_progress=_BatchProgress(),
            scheduler_progress=_SchedulerProgress(),
            automatic_optimization=SimpleNamespace(optim_progress=_OptimizationProgress()),
        ),
    )
    trainer: Any = _Trainer(
        lightning_module=SimpleNamespace(facts=lambda: facts),
        global_rank=rank,
        local_rank=rank,
        world_size=world_size,
        is_global_zero=rank == 0,
        accumulate_grad_batches=num_micro_batches,
        state=SimpleNamespace(fn="fit"),
        fit_loop=loop,
    )
    source.trainer = trainer
    _place(source, epoch, done)
    source.prepare_data()
    source.setup("fit")
    return source


def _place(source: DataSource, epoch: int, done: int, *, is_begun: bool = True) -> None:
    """Let the stand-in for a trainer be some batches into an epoch, or before it, with the counts of the last one."""
    trainer: Any = source.trainer
    epochs = trainer.fit_loop.epoch_progress
    for counts in (epochs.current, epochs.total):
        counts.ready = counts.started = epoch + is_begun
        counts.processed = counts.completed = epoch
    counts = trainer.fit_loop.epoch_loop.batch_progress.current
    counts.ready = counts.started = counts.processed = counts.completed = done


def _loader(source: DataSource, split: str) -> Any:
    """Return a loader as Lightning asks for it, and told the epoch as Lightning does."""
    if split != "train":
        return source.val_dataloader()
    loader = source.train_dataloader()
    _tell_epoch(loader, source.epoch)
    return loader


def _tell_epoch(loader: Any, epoch: int) -> None:
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)


def _batches(source: DataSource, split: str) -> Iterator[Batch]:
    yield from _loader(source, split)


def _stored(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state after it was saved and loaded as checkpoints are."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    stored: dict[str, Any] = torch.load(file, weights_only=True)
    return stored


def _counted(batches: list[Batch]) -> list[str]:
    """Return the keys that count."""
    return [key for batch in batches for key, weight in zip(batch.keys, batch.weights, strict=True) if weight]


def _content(batches: list[Batch]) -> list[tuple[list[str], list[float], list[int], bytes]]:
    """Return what makes two rows of batches the same."""
    return [(batch.keys, batch.weights, batch.num_samples, batch.audio.numpy().tobytes()) for batch in batches]
