"""The shipped contract of data sources: ours and a third party's keep it, and each promise that breaks is noticed."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from fastslm.datamodules.listed import Listed, ListedSource
from fastslm.datamodules.plan.plan import BatchLimits
from fastslm.datamodules.webdataset import WebDatasetModule
from fastslm.errors import ConfigError, DataError
from fastslm.modules.abstractors.avg_pool import AvgPool
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM
from fastslm.path.batch import Batch, Sample
from fastslm.path.broken import Broken
from fastslm.path.prompt import messages_of
from fastslm.testing import DataSourceContract
from fastslm.testing import data_source as _contract
from fastslm.training.data_source import DataSource
from fastslm.training.lightning_module import SpeechLMModule

PLUGIN = Path(__file__).parents[1] / "plugin" / "folder_source" / "fastslm_folder_source"


def loaded(name):
    """Return the module of a plug-in that is not installed."""
    spec = importlib.util.spec_from_file_location(name, PLUGIN / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FolderSource = loaded("folder_source").FolderSource


def fill(folder, num=11, words="number", seed=0):
    """Write recordings of 0.2 to 1.2 s and their transcripts, unless they are there; return the folder."""
    for split, count in (("train", num), ("val", 5)):
        if (folder / split).exists():
            continue
        (folder / split).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng([seed, i]).standard_normal(3200 * (1 + i % 6)) * 2000
            soundfile.write(folder / split / f"{i:02d}.wav", noise.astype(np.int16), 16_000)
            (folder / split / f"{i:02d}.txt").write_text(f"{words} {i}")
    return folder


def of_folder(kind):
    """Return the contract on a source of WAV files."""

    class Contract(DataSourceContract):
        build = staticmethod(lambda folder: kind(str(fill(folder)), batch_samples=2, num_workers=0, seed=3))
        build_other = staticmethod(
            lambda folder: kind(str(fill(folder, words="letter")), batch_samples=2, num_workers=0, seed=3)
        )

    return Contract


class TestFolderSource(of_folder(FolderSource)):
    pass


@pytest.mark.slow
class TestFolderSourceInWorkers(DataSourceContract):
    build = staticmethod(lambda folder: FolderSource(str(fill(folder)), batch_samples=2, seed=3))
    build_other = staticmethod(lambda folder: FolderSource(str(fill(folder)), batch_samples=3, seed=3))
    world_sizes = (2,)


class TestWebDatasetModule(DataSourceContract):
    most_samples, most_windows, most_positions = 2, 2, 150

    @pytest.fixture(autouse=True)
    def _shards(self, make_shards):
        def build(folder, batch_samples=2, **settings):
            if not folder.exists() or not list(folder.glob("*.tar")):
                make_shards(folder, 11, [0.2, 0.5, 0.9, 1.4])
                make_shards(folder, 5, [0.2, 0.5], name="val")
            return WebDatasetModule(
                str(folder / "train-*.tar"),
                str(folder / "val-*.tar"),
                batch_samples=batch_samples,
                num_workers=0,
                seed=3,
                batch_windows=2,
                batch_tokens=150,
                cache_dir=str(folder / "cache"),
                **settings,
            )

        type(self).build = staticmethod(build)
        type(self).build_other = staticmethod(lambda folder: build(folder, batch_samples=3))


class TestSpokenNumbers(DataSourceContract):
    @pytest.fixture(autouse=True)
    def _corpus(self, tmp_path_factory):
        pytest.importorskip("espeakng_loader", reason="the extra 'demo' is not installed")
        from fastslm.datamodules.spoken_numbers import SpokenNumbers

        cache = tmp_path_factory.getbasetemp() / "spoken-numbers-contract"  # built once

        def build(folder, seed=3):
            return SpokenNumbers(
                train_recordings=12,
                dev_recordings=4,
                min_seconds=3.0,
                max_seconds=5.0,
                chunk_seconds=2.0,
                batch_samples=2,
                num_workers=0,
                cache_dir=str(cache),
                seed=seed,
            )

        type(self).build = staticmethod(build)
        type(self).build_other = staticmethod(lambda folder: build(folder, seed=4))


# -- a source that stands on DataSource alone --------------------------------------------------------------------------


class Rows(Dataset):
    def __init__(self, prompter, rows):
        self.prompter, self.rows = prompter, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        key, weight = self.rows[index]
        audio = np.full(1600 * (1 + int(key)), int(key), np.int16)
        return Batch.of([Sample(key, self.prompter.dialogue(messages_of({"text": key}), 1, "asr"), [audio], weight)])


class Rest(DataLoader):
    """Batches from some place of an epoch on; its length is that of the whole."""

    def __init__(self, rows, done):
        super().__init__(rows, batch_size=None, shuffle=False)
        self.done = done

    def __len__(self):
        return len(self.dataset) + self.done


class Plain(DataSource):
    """One sample to a batch, in an order that follows from the epoch; shared out in turn."""

    def __init__(self, num=9):
        super().__init__()
        self.num, self.restored, self.at = num, None, (0, 0)

    def keys(self, split):
        return [str(i) for i in range(self.num if split == "train" else 5)]

    def _rows(self, keys):
        rows = [(key, 1.0) for key in keys]
        rows += [(keys[0], 0.0)] * (-len(rows) % self.world_size)
        return rows[self.rank :: self.world_size]

    def _epoch(self, epoch):
        return self._rows(np.random.default_rng([7, epoch]).permutation(self.keys("train")).tolist())

    def training_batches(self):
        if self.restored is None:
            self.at = (self.epoch, 0)
            return Rest(Rows(self.model.prompter, self._epoch(self.epoch)), 0)
        epoch, done = self.restored["epoch"], self.restored["done"]
        self.restored, rows = None, self._epoch(epoch)
        if done < len(rows):
            self.go_on_in(epoch)
            self.at = (epoch, 0)
            return Rest(Rows(self.model.prompter, rows[done:]), done)
        loader = Rest(Rows(self.model.prompter, self._epoch(epoch + 1)), 0)
        self.go_on_after(len(loader))
        self.at = (epoch + 1, self.batches_done)
        return loader

    def evaluation_batches(self, split):
        return DataLoader(Rows(self.model.prompter, self._rows(self.keys(split))), batch_size=None)

    def state_dict(self):
        epoch, before = self.at
        return {"num": self.num, "epoch": epoch, "done": self.batches_done - before}

    def load_state_dict(self, state_dict):
        if state_dict["num"] != self.num:
            raise DataError("the checkpoint is of other data.")
        self.restored = state_dict


class GrowingEpochs(Plain):
    def _epoch(self, epoch):
        return [*super()._epoch(epoch), *[("0", 0.0)] * epoch]


class TestPlain(DataSourceContract):
    other_ranks = False
    build = staticmethod(lambda folder: Plain())
    build_other = staticmethod(lambda folder: Plain(10))


class TestPlainWithGrowingEpochs(DataSourceContract):
    other_ranks = False
    build = staticmethod(lambda folder: GrowingEpochs())
    build_other = staticmethod(lambda folder: GrowingEpochs(10))


# -- planted violations ----------------------------------------------------------------------------------------------


class LosesASample(FolderSource):
    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "step": state_dict["step"] + self.world_size})


class IgnoresTheState(FolderSource):
    def load_state_dict(self, state_dict):
        pass


class KeepsNoState(FolderSource):
    def state_dict(self):
        return {}


class TakesAnyState(FolderSource):
    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "plan_hash": self.state_dict()["plan_hash"]})


class StatesOfRanksDiffer(FolderSource):
    def state_dict(self):
        return {**super().state_dict(), "rank": self.rank}


class LengthOfTheRest(FolderSource):
    def training_batches(self):
        loader = super().training_batches()
        loader.sampler._steps_done = 0
        return loader


class Floats(FolderSource):
    @classmethod
    def audio(cls, sample):
        return [recording / np.float32(32768) for recording in super().audio(sample)]


class Halves(FolderSource):
    @classmethod
    def audio(cls, sample):
        return [recording[: len(recording) // 2] for recording in super().audio(sample)]


class Columns(FolderSource):
    @classmethod
    def audio(cls, sample):
        return [recording[:, None] for recording in super().audio(sample)]


class DuplicateKeys(FolderSource):
    def keys(self, split):
        keys = super().keys(split)
        return [*keys[:-1], keys[0]]


class OtherKeys(FolderSource):
    def keys(self, split):
        return [f"{key}.wav" for key in super().keys(split)]


class UnevenRanks(FolderSource):
    def training_batches(self):
        loader = super().training_batches()
        if self.rank:
            loader.sampler.start += self.world_size
        return loader


class UnevenValidation(Plain):
    def evaluation_batches(self, split):
        keys = self.keys(split)[self.rank :: self.world_size]
        return DataLoader(Rows(self.model.prompter, [(key, 1.0) for key in keys]), batch_size=None)


class CountsFillers(Plain):
    def _rows(self, keys):
        return [(key, 1.0) for key, _ in super()._rows(keys)]


class EveryRankHasAll(Plain):
    def _rows(self, keys):
        return [(key, 1.0) for key in keys]


class OneOrder(FolderSource):
    @property
    def epoch(self):
        return 0


class Draws(FolderSource):
    @classmethod
    def audio(cls, sample):
        return [np.random.default_rng().permutation(recording) for recording in super().audio(sample)]


class WrapsNothing(FolderSource):
    def train_dataloader(self):
        return self.training_batches()


class WeighsWhatFillsUp(FolderSource):
    def evaluation_batches(self, split):
        batches = list(super().evaluation_batches(split))
        for batch in batches:
            batch.weights = [1.0] * len(batch)
        return DataLoader(batches, batch_size=None)


class CountsOneRank(FolderSource):
    def state_dict(self):
        state = super().state_dict()
        return {**state, "step": state["step"] // self.world_size}

    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "step": state_dict["step"] * self.world_size})


class StaysInTheNextEpoch(FolderSource):
    def go_on_in(self, epoch):
        pass


class LeavesTheEpochOpen(GrowingEpochs):
    def go_on_after(self, num_batches):
        pass


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (LosesASample, "a_resumed_run_has_exactly_what_was_left"),
        (IgnoresTheState, "a_resumed_run_has_exactly_what_was_left"),
        (KeepsNoState, "a_resumed_run_has_exactly_what_was_left"),
        (StatesOfRanksDiffer, "a_resumed_run_has_exactly_what_was_left"),
        (LengthOfTheRest, "a_resumed_run_has_exactly_what_was_left"),
        (StaysInTheNextEpoch, "a_run_that_ended_within_an_epoch_goes_on_in_it"),
        (TakesAnyState, "a_state_of_other_data_is_refused"),
        (Floats, "batches_are_what_the_model_takes"),
        (Halves, "an_epoch_has_each_sample_once"),
        (Columns, "an_epoch_has_each_sample_once"),
        (DuplicateKeys, "keys_are_unique_and_the_same_on_every_rank"),
        (OtherKeys, "an_epoch_has_each_sample_once"),
        (UnevenRanks, "ranks_have_equally_many_batches"),
        (OneOrder, "each_epoch_has_an_order_of_its_own"),
        (Draws, "an_epoch_can_be_repeated"),
        (WrapsNothing, "steps_are_whole_under_accumulation"),
        (WeighsWhatFillsUp, "validation_has_each_sample_once"),
        (CountsOneRank, "another_number_of_ranks_goes_on_with_what_was_left"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_promise_that_is_broken_fails_its_test(broken, test, tmp_path):
    assert fails(of_folder(broken), f"test_{test}", tmp_path)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (UnevenValidation, "ranks_have_equally_many_batches"),
        (CountsFillers, "validation_has_each_sample_once"),
        (EveryRankHasAll, "an_epoch_has_each_sample_once"),
        (LeavesTheEpochOpen, "a_run_that_ended_with_an_epoch_goes_on_with_the_next"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_promise_that_a_plain_source_breaks_fails_its_test(broken, test, tmp_path):
    class Contract(DataSourceContract):
        build = staticmethod(lambda folder: broken())
        build_other = staticmethod(lambda folder: broken(10))

    assert fails(Contract, f"test_{test}", tmp_path)


def odd(kind, audio):
    """Return a source whose fourth recording is given by ``audio``."""

    class Odd(kind):
        @classmethod
        def audio(cls, sample):
            given = super().audio(sample)
            return audio(given) if sample.key == "03" else given

    return Odd


def cut_off(given):
    raise ConnectionResetError("connection reset by peer")


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (lambda given: [given[0][:100]], r"length differs: audio gives 0\.01 s, 0\.80 s are listed"),
        (lambda given: [np.tile(given[0], 2)], r"length differs: audio gives 1\.60 s, 0\.80 s are listed"),
        (lambda given: [given[0][:, None]], r"no int16 samples \[N\]: audio gives int16 \[12800, 1\]"),
        (lambda given: [given[0] / 32768], r"no int16 samples \[N\]: audio gives float64 \[12800\]"),
        (lambda given: [given[0].tolist()], r"no int16 samples \[N\]: audio gives list"),
        (lambda given: [*given, *given], "number of recordings differs: audio gives 2, 1 are listed"),
        (lambda given: [], "number of recordings differs: audio gives 0, 1 are listed"),
        (cut_off, "unreadable audio: connection reset by peer"),
    ],
)
def test_audio_that_is_not_as_it_was_listed_is_a_broken_sample(audio, reason, tmp_path):
    source = _contract._start(odd(FolderSource, audio)(str(fill(tmp_path)), batch_samples=2, num_workers=0, seed=3))
    batches = list(_contract._batches(source, "train"))
    assert sorted(_contract._counted(batches)) == [f"{i:02d}" for i in range(11) if i != 3]
    [broken] = [found for batch in batches for found in batch.broken]
    assert broken["key"] == "03"
    assert re.search(reason, f"{broken['reason']}: {broken['detail']}")


@pytest.mark.parametrize(
    ("limit", "most"),
    [("samples", {"most_samples": 2}), ("windows", {"most_windows": 2}), ("tokens", {"most_positions": 150})],
)
def test_batches_beyond_a_limit_are_noticed(limit, most, tmp_path):
    kept = BatchLimits(9, 99, 999)
    kept = replace(kept, **{limit: next(iter(most.values()))})
    for limits, noticed in ((kept, False), (BatchLimits(9, 99, 999), True)):

        class Limited(FolderSource):
            def __init__(self, *arguments, limits=limits, **settings):
                super().__init__(*arguments, **settings)
                self.batch_limits = limits

        contract = type("Contract", (of_folder(Limited),), most)
        assert fails(contract, "test_batches_keep_their_limits", tmp_path) is noticed


def test_a_run_goes_on_in_the_batches_that_it_planned_whether_the_llm_packs_now_or_not(tmp_path):
    def started(packed, state=None):
        source = FolderSource(str(fill(tmp_path / "data")), num_workers=0, seed=3)
        source.batch_limits = BatchLimits(9, 99, 104)
        _contract._start(source, done=1 if state else 0)
        facts = replace(source.model, packed=packed)
        source.trainer.lightning_module = SimpleNamespace(facts=lambda: facts)
        if state:
            source.load_state_dict(state)
        batches = [batch.keys for batch in source.train_dataloader()]
        _contract._place(source, 0, 1)
        return batches, source.state_dict()

    (padded, of_padded), (packed, of_packed) = started(False), started(True)
    assert len(packed) < len(padded)
    for whole, state in ((padded, of_padded), (packed, of_packed)):
        for packs in (False, True):
            assert started(packs, state)[0] == whole[1:]


def test_other_audio_of_the_same_length_is_other_data(tmp_path):
    class Contract(of_folder(FolderSource)):
        build_other = staticmethod(
            lambda folder: FolderSource(str(fill(folder, seed=1)), batch_samples=2, num_workers=0, seed=3)
        )

    Contract().test_a_state_of_other_data_is_refused(tmp_path)


def test_what_keeps_its_promises_fails_none(tmp_path):
    names = [name for name in dir(DataSourceContract) if name.startswith("test_")]
    assert [name for name in names if fails(of_folder(FolderSource), name, tmp_path / name)] == []


def fails(contract, name, folder):
    """Say whether a test of a contract fails."""
    try:
        getattr(contract(), name)(folder)
    except (AssertionError, DataError, pytest.fail.Exception):
        return True
    return False


# -- under Lightning ---------------------------------------------------------------------------------------------------


class Notes(SpeechLMModule):
    """A model of one number that notes what it is given."""

    def on_fit_start(self):
        """There is no model to check."""

    def configure_model(self):
        if not hasattr(self, "number"):
            self.number, self.seen = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.trainer.current_epoch, batch.keys))
        return {"loss": self.number * len(batch)}

    def on_train_batch_start(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_save_checkpoint(self, checkpoint):
        pass

    def on_load_checkpoint(self, checkpoint):
        pass


class SaveEach(L.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_train_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / "end.ckpt")


@pytest.mark.parametrize("kind", [FolderSource, Plain])
def test_lightning_goes_on_from_any_step_with_what_was_left(kind, tmp_path, tiny_encoder, tiny_llm):
    def run(folder, checkpoint=None, max_steps=-1):
        encoder, llm = WhisperEncoder(str(tiny_encoder)), CausalLM(str(tiny_llm))
        model = Notes(encoder, AvgPool, llm, window_seconds=2.0, tokens_per_window=4)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=3, max_steps=max_steps, limit_val_batches=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[SaveEach(folder)], default_root_dir=tmp_path,
        )  # fmt: skip
        source = Plain(5) if kind is Plain else kind(str(fill(tmp_path / "data")), batch_samples=3, num_workers=0)
        trainer.fit(model, datamodule=source, ckpt_path=checkpoint)
        return model.seen

    seen = run(tmp_path / "whole")
    first = sum(epoch == 0 for epoch, _ in seen)
    assert len(seen) == 3 * first
    for step in (1, first - 1, first, first + 1, 2 * first, len(seen) - 1):
        assert run(tmp_path / "again", tmp_path / "whole" / f"{step}.ckpt") == seen[step:], step
        assert run(tmp_path / "part", max_steps=step) == seen[:step]
        assert run(tmp_path / "again", tmp_path / "part" / "end.ckpt") == seen[step:], f"ended at {step}"


# -- what ListedSource does beyond the contract ------------------------------------------------------------------------


class Of(ListedSource):
    def __init__(self, samples, **settings):
        super().__init__(num_workers=0, **settings)
        self.given = samples

    def samples(self, split):
        return self.given

    @classmethod
    def audio(cls, sample):
        if sample.key == "torn":
            raise DataError("unreadable audio: torn")
        return [np.zeros(n, np.int16) for n in sample.num_samples]


def listed(*keys, seconds=1):
    return [Listed(key, {"text": key}, [16_000 * seconds]) for key in keys]


def test_samples_without_text_or_with_too_much_audio_are_left_out_and_told():
    odd = [Listed("mute", {}, [16_000]), Listed("long", {"text": "long"}, [16_000 * 3600]), Broken("f", "lost", "lost")]
    source = _contract._start(Of([*listed("a", "b"), *odd], max_broken_share=0.5))
    assert source.keys("train") == ["a", "b"]
    assert {item.key: item.reason for item in source.broken["train"]} == {
        "mute": "missing text", "long": "context too long", "lost": "lost",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (
            [*listed("a"), Listed("mute", {}, [1])],
            "1 of 2 samples of train are broken, more than data.max_broken_share",
        ),
        (listed("a", "a"), "2 samples of train have the key 'a'"),
        ([], "train holds no usable sample. It is empty"),
        (listed("a", seconds=3600), "no usable sample. 1 x context too long"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_what_is_wrong(samples, words):
    with pytest.raises(DataError, match=words):
        _contract._start(Of(samples))


def test_a_sample_that_breaks_while_it_is_read_is_replaced_and_told():
    source = _contract._start(Of(listed("a", "torn"), eval_batch_samples=1))
    batches = list(source.val_dataloader())
    assert sorted((batch.keys[0], batch.weights[0]) for batch in batches) == [("a", 0.0), ("a", 1.0)]
    assert [(i["key"], i["reason"], i["detail"]) for b in batches for i in b.broken] == [
        ("torn", "unreadable audio", "torn")
    ]


def test_audio_files_that_are_none_are_broken_samples(tmp_path):
    (tmp_path / "a.wav").write_text("no audio")
    assert isinstance(Listed.of_files("a", {"text": "a"}, tmp_path / "a.wav"), Broken)
    assert Listed.of_files("b", {"text": "b"}, tmp_path / "b.wav").reason == "unreadable file"


# -- what is no data source ------------------------------------------------------------------------------------------


def test_a_data_module_that_is_no_source_is_refused_with_what_to_subclass(make_module, tmp_path):
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"LightningDataModule is no subclass of .*DataSource.*Subclass that, or"):
        trainer.fit(make_module(), datamodule=L.LightningDataModule())


def test_a_source_without_a_model_says_what_it_needs():
    with pytest.raises(ConfigError, match="Plain runs inside a Trainer with a SpeechLMModule"):
        Plain().model  # noqa: B018
