"""Going on after SIGKILL: real processes that load, log and save their place, killed again and again."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time

import lightning as L
import pytest
import torch

from fastslm.datamodules.webdataset import WebDatasetModule
from fastslm.training.lightning_module import SpeechLMModule

EPOCHS = 2


def train(settings, trainer, folder, together):
    """Load two epochs of batches on one rank; each step is logged, and saved once all ranks have done it."""
    data = WebDatasetModule(**settings)
    data.trainer, rank = trainer, trainer.global_rank
    progress = data.trainer.fit_loop.epoch_loop.batch_progress.current
    with contextlib.suppress(FileNotFoundError), open(folder / "state.json") as file:
        saved = json.load(file)
        data.load_state_dict(saved["data"])
        data.trainer.current_epoch, progress.ready = saved["epoch"], saved["ready"]
    data.setup("fit")
    while data.trainer.current_epoch < EPOCHS:
        loader = data.train_dataloader()
        if data._sampler.epoch != data.trainer.current_epoch:  # saved at the end of an epoch
            data.trainer.current_epoch, progress.ready = data._sampler.epoch, 0
            if data.trainer.current_epoch == EPOCHS:
                break
        for batch in loader:
            progress.ready += 1
            with open(folder / f"rank-{rank}.jsonl", "a") as log:
                row = {"epoch": data.trainer.current_epoch, "step": progress.ready, "keys": batch.keys}
                row["epoch_of_batch"] = batch.epoch
                log.write(json.dumps({**row, "audio": int(batch.audio.sum()), "weights": batch.weights}) + "\n")
            together.wait(60)
            if rank == 0:
                state = {"data": data.state_dict(), "epoch": data.trainer.current_epoch, "ready": progress.ready}
                (folder / "state.partial").write_text(json.dumps(state))
                os.replace(folder / "state.partial", folder / "state.json")
        data.trainer.current_epoch += 1
        progress.ready = 0
    (folder / f"done-{rank}").touch()


def start(settings, make_trainer, world_size, folder):
    """Return the running processes of all ranks; each is a group of its own with its workers."""
    context = multiprocessing.get_context("fork")  # importing torch anew would take most of the time
    together = context.Barrier(world_size)

    def run(rank):
        os.setpgid(0, 0)
        train(settings, make_trainer(rank, world_size), folder, together)

    processes = [context.Process(target=run, args=(rank,)) for rank in range(world_size)]
    for process in processes:
        process.start()
    return processes


def kill(processes):
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.is_alive():
            process.kill()
        process.join()


def rows(folder, rank):
    with contextlib.suppress(FileNotFoundError), open(folder / f"rank-{rank}.jsonl") as file:
        lines = file.read().splitlines()
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # the last one, when the kill came in its middle
                yield json.loads(line)


def trained(folder, world_size):
    """Return what each step of each rank was trained on, the last time that it was done."""
    found = {}
    for rank in range(world_size):
        for row in rows(folder, rank):
            assert row["epoch_of_batch"] == row["epoch"]
            found[rank, row["epoch"], row["step"]] = (row["keys"], row["audio"])
    return found


@pytest.fixture
def make_trainer(make_module, fake_trainer):
    model = make_module()
    return lambda rank, world_size: fake_trainer(model, rank, world_size)


@pytest.fixture
def settings(tmp_path, make_shards):
    pattern = make_shards(tmp_path / "shards", 17, [0.2, 0.5, 0.9, 1.4, 2.5], per_shard=5)
    return {
        "train_shards": pattern, "val_shards": pattern, "batch_samples": 2, "seed": 5,
        "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip


def run_to_end(settings, make_trainer, world_size, folder):
    folder.mkdir(exist_ok=True)
    processes = start(settings, make_trainer, world_size, folder)
    for process in processes:
        process.join(300)
    assert all((folder / f"done-{rank}").exists() for rank in range(world_size))


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (1, 4), (2, 0), (2, 2)])
def test_after_ten_kills_the_batches_are_those_of_an_uninterrupted_run(
    tmp_path, settings, make_trainer, world_size, num_workers
):
    settings["num_workers"] = num_workers
    run_to_end(settings, make_trainer, world_size, tmp_path / "whole")
    killed = tmp_path / "killed"
    killed.mkdir()
    rng = random.Random(world_size * 10 + num_workers)
    kills = 0
    while kills < 10:
        before = sum(1 for rank in range(world_size) for _ in rows(killed, rank))
        processes = start(settings, make_trainer, world_size, killed)
        target = before + rng.randint(1, 2 * world_size)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and any(p.is_alive() for p in processes):
            if sum(1 for rank in range(world_size) for _ in rows(killed, rank)) >= target:
                break
            time.sleep(rng.random() * 0.01)
        kill(processes)
        kills += 1
        if (killed / "done-0").exists():
            break
    if not (killed / "done-0").exists():
        run_to_end(settings, make_trainer, world_size, killed)
    assert kills >= 5
    assert trained(killed, world_size) == trained(tmp_path / "whole", world_size)


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_one_kill_and_another_number_of_workers_change_nothing(tmp_path, settings, make_trainer, num_workers):
    run_to_end({**settings, "num_workers": 0}, make_trainer, 1, tmp_path / "whole")
    killed = tmp_path / "killed"
    killed.mkdir()
    processes = start({**settings, "num_workers": num_workers}, make_trainer, 1, killed)
    while sum(1 for _ in rows(killed, 0)) < 4 and processes[0].is_alive():
        time.sleep(0.005)
    kill(processes)
    run_to_end({**settings, "num_workers": 0}, make_trainer, 1, killed)
    assert trained(killed, 1) == trained(tmp_path / "whole", 1)


# -- under Lightning ----------------------------------------------------------------------------------


class Listener(SpeechLMModule):
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

    def validation_step(self, batch, batch_idx):
        pass

    on_validation_epoch_start = on_validation_epoch_end = lambda self: None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_save_checkpoint(self, checkpoint):
        pass

    def on_load_checkpoint(self, checkpoint):
        pass


class SaveEach(L.Callback):
    """Saves after each batch, after each epoch, and once more when training has ended."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, *_):
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / "end.ckpt")

    def on_train_epoch_end(self, trainer, *_):
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"epoch-{trainer.current_epoch}.ckpt")

    def on_train_batch_end(self, trainer, *_):
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@pytest.fixture
def lightning_run(tmp_path, tiny_encoder, tiny_llm):
    """Return a runner of three epochs under Lightning, from the start or from a checkpoint."""
    from fastslm.modules.abstractors.avg_pool import AvgPool
    from fastslm.modules.encoders.whisper import WhisperEncoder
    from fastslm.modules.llms.causal_lm import CausalLM

    def run(settings, save_to=None, checkpoint=None, max_steps=-1, max_epochs=3, limit_val_batches=0):
        encoder, llm = WhisperEncoder(str(tiny_encoder)), CausalLM(str(tiny_llm))
        model = Listener(encoder, AvgPool, llm, window_seconds=2.0, tokens_per_window=4)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=max_epochs, max_steps=max_steps, limit_val_batches=limit_val_batches,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, logger=False,
            use_distributed_sampler=False, num_sanity_val_steps=0,
            callbacks=[SaveEach(save_to)], default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(model, datamodule=WebDatasetModule(**settings, num_workers=0), ckpt_path=checkpoint)
        return model.seen

    return run


@pytest.fixture
def uneven(tmp_path, settings, make_shards):
    """Return settings of a corpus whose epochs have different numbers of steps."""
    pattern = make_shards(tmp_path / "uneven", 29, [0.2, 0.5, 0.9, 1.4, 2.5, 3.9])
    (tmp_path / "saved").mkdir()
    return settings | {"train_shards": pattern, "batch_windows": 2, "seed": 1}


def test_a_run_that_ended_in_order_goes_on_with_what_was_left_of_its_epoch(tmp_path, uneven, lightning_run):
    """Lightning closes the epoch it is in when the last step is done, wherever that is."""
    seen = lightning_run(uneven)
    first = sum(epoch == 0 for epoch, _ in seen)
    for step in (1, first - 1, first, first + 1, len(seen) - 1):
        assert lightning_run(uneven, save_to=tmp_path / "saved", max_steps=step) == seen[:step]
        assert lightning_run(uneven, checkpoint=str(tmp_path / "saved" / "end.ckpt")) == seen[step:], step


@pytest.mark.parametrize("by", ["max_epochs", "max_steps"])
def test_a_run_that_ended_with_an_epoch_goes_on_with_all_of_the_next(tmp_path, uneven, lightning_run, by):
    """Lightning has closed the epoch, and validated at its end."""
    seen = lightning_run(uneven, limit_val_batches=1)
    ends = [sum(epoch <= number for epoch, _ in seen) for number in range(3)]
    checkpoint, done = None, 0
    for number, end in enumerate(ends, 1):
        limits = {"max_epochs": number} if by == "max_epochs" else {"max_steps": end}
        part = lightning_run(uneven, tmp_path / "saved", checkpoint, limit_val_batches=1, **limits)
        assert part == seen[done:end]
        checkpoint, done = str(tmp_path / "saved" / "end.ckpt"), end
    resumed = lightning_run(uneven, checkpoint=str(tmp_path / "saved" / "epoch-1.ckpt"), limit_val_batches=1)
    assert resumed == seen[ends[1] :]


@pytest.mark.slow
def test_every_epoch_is_whole_however_many_steps_the_first_one_had(tmp_path, uneven, lightning_run):
    """Lightning takes the number of steps from the first loader, and epochs differ in theirs."""
    seen = lightning_run(uneven, save_to=tmp_path / "saved")
    epochs = [[keys for epoch, keys in seen if epoch == number] for number in range(3)]
    assert len({len(batches) for batches in epochs}) > 1, "the seed no longer gives epochs of different length"
    for batches in epochs:
        assert sorted(key for keys in batches for key in keys) == [f"train-{i:03d}" for i in range(29)]
    ends = {len(epochs[0]), len(epochs[0]) + len(epochs[1])}
    for step in sorted({1, 7, 33, len(seen) - 1, *ends, *(end + 1 for end in ends), *(end - 1 for end in ends)}):
        assert lightning_run(uneven, checkpoint=str(tmp_path / "saved" / f"{step}.ckpt")) == seen[step:], step


class Steps(Listener):
    """Notes the samples of each optimizer step, and those of the step that its first batch was planned in."""

    def training_step(self, batch, batch_idx):
        place = batch.step.place if batch.step else 0
        self.pieces = [*getattr(self, "pieces", []), (place, sorted(batch.keys))]
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        self.steps = [*getattr(self, "steps", []), self.pieces]
        self.pieces = []


class SaveAfter(L.Callback):
    """Saves after some batches, wherever in a step that is."""

    def __init__(self, folder, batches):
        self.folder, self.batches = folder, batches

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.folder is not None and batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.folder / "some.ckpt")


@pytest.fixture
def steps_of(tmp_path, tiny_encoder, tiny_llm):
    """Return a runner of one epoch that gives the micro-batches of each optimizer step."""
    from fastslm.modules.abstractors.avg_pool import AvgPool
    from fastslm.modules.encoders.whisper import WhisperEncoder
    from fastslm.modules.llms.causal_lm import CausalLM

    def run(settings, accumulate, save_after=None, checkpoint=None):
        encoder, llm = WhisperEncoder(str(tiny_encoder)), CausalLM(str(tiny_llm))
        model = Steps(encoder, AvgPool, llm, window_seconds=2.0, tokens_per_window=4)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, limit_val_batches=0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            accumulate_grad_batches=accumulate, default_root_dir=tmp_path,
            callbacks=[SaveAfter(tmp_path if save_after else None, save_after)],
        )  # fmt: skip
        trainer.fit(model, datamodule=WebDatasetModule(**settings, num_workers=0), ckpt_path=checkpoint)
        return model.steps

    return run


@pytest.mark.parametrize(("before", "batches", "after"), [(1, 3, 2), (2, 6, 4), (2, 3, 2), (4, 4, 1), (2, 1, 2)])
def test_a_resumed_run_takes_whole_steps_wherever_it_was_saved(tmp_path, settings, steps_of, before, batches, after):
    whole = steps_of(settings, before, save_after=batches)
    assert {len(step) for step in whole} == {before}
    resumed = steps_of(settings, after, checkpoint=str(tmp_path / "some.ckpt"))
    for step in resumed:
        assert [place for place, _ in step] == list(range(after))
    done = [keys for step in whole for _, keys in step][: batches - batches % before]
    left = sorted(key for step in whole for _, keys in step for key in keys)
    for keys in done:
        left = [key for key in left if key not in keys]
    assert sorted({key for step in resumed for _, keys in step for key in keys}) == left


def test_a_fake_trainer_has_what_the_data_module_asks_of_a_real_one(fake_trainer):
    real, fake = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), fake_trainer(None)
    names = [name for name in vars(fake) if name != "lightning_module"]
    assert all(hasattr(real, name) for name in names)
    assert isinstance(real.fit_loop.epoch_loop.batch_progress.current.ready, int)
