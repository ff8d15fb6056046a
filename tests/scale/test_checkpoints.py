"""Checkpoints of every strategy: going on from them exactly, and their weights under other strategies."""

import json
import shutil

import pytest
import torch

from fastslm.checkpoint import open_checkpoint, verify_trainer_state

STRATEGIES = {
    "ddp": ["--trainer.strategy", "ddp"],
    "zero2": ["--trainer.strategy", "ZeRORehearsal", "--trainer.strategy.stage", "2"],
    "zero3": ["--trainer.strategy", "ZeRORehearsal", "--trainer.strategy.stage", "3"],
    "fsdp2": ["--trainer.strategy", "FSDP2"],
}
#: From whom each takes weights: every strategy gives once and takes once.
GIVERS = {"ddp": "zero2", "zero2": "fsdp2", "zero3": "ddp", "fsdp2": "zero3"}
#: A schedule that does not ask how long the run is, so that half of a run is the first half of the whole.
FIT = ["--model.optimizer.schedule", "constant", "--trainer.val_check_interval", "2"]
HALF, WHOLE = ["--trainer.max_steps", "2"], ["--trainer.max_steps", "4"]
#: What two processes do at once, one does in turns: batches as small, two of them to a step.
TURNS = ["--data.batch_samples", "2", "--trainer.accumulate_grad_batches", "2"]
#: One step that moves nothing, after which the checkpoint holds what the run started from.
STILL = ["--model.optimizer.learning_rate", "0.0", "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]


@pytest.fixture
def job(run_config, tmp_path):
    """Return a maker of jobs; the same samples make a step on any number of processes."""

    def make(name, world_size, *flags, probe=None):
        start = ["fit", "--config", str(run_config), "--run_folder", str(tmp_path / "runs" / name), *FIT]
        devices = ["--trainer.devices", str(world_size), "--data.batch_samples", str(4 // world_size)]
        return {"flags": [*start, *devices, *flags], "probe": str(tmp_path / (probe or name))}

    return make


def tensors_of(folder):
    return open_checkpoint(folder).tensors()


def losses_of(folder, name):
    return json.loads((folder / f"{name}-rank0.json").read_text())["losses"]


def assert_close(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name].float(), value.float(), **tolerance)


def assert_continued(whole, resumed, expected, losses):
    """Compare a run in two halves with one in a chunk: weights, and the losses of the second half."""
    checkpoint = open_checkpoint(resumed)
    verify_trainer_state(checkpoint)
    assert checkpoint.manifest["step"] == 4
    assert losses == pytest.approx(expected[2:], abs=1e-5)
    assert_close(tensors_of(whole), checkpoint.tensors(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_runs_are_continued_exactly_and_weights_go_from_any_strategy_to_others(run_jobs, job, run_config, tmp_path):
    runs = tmp_path / "runs"
    whole = [job(f"{name}-whole", 2, *flags, *WHOLE) for name, flags in STRATEGIES.items()]
    halves = [job(name, 2, *flags, *HALF) for name, flags in STRATEGIES.items()]
    given = [
        job(f"{name}-given", 2, *flags, *STILL, "--init_from", str(runs / GIVERS[name]))
        for name, flags in STRATEGIES.items()
    ]
    done = run_jobs(2, [*halves, *given])
    assert not any("got no gradient" in output for _, output in done)  # some strategies take gradients away at once
    first = next(iter(tensors_of(runs / "ddp").values()))
    for name, giver in GIVERS.items():
        half = tensors_of(runs / name)
        assert_close(tensors_of(runs / giver), tensors_of(runs / f"{name}-given"), rtol=0, atol=1e-7)
        if name.startswith("zero"):  # DeepSpeed's own tool, from its own files, knows the same weights
            shutil.copytree(runs / name / "checkpoints" / "last" / "trainer.ckpt", tmp_path / f"{name}.ckpt")
            assert_close(half, open_checkpoint(tmp_path / f"{name}.ckpt").tensors(), rtol=0, atol=0)
    shutil.copytree(runs / "fsdp2", runs / "fewer", symlinks=True)

    resumed = [
        job(name, 2, *flags, *WHOLE, "--ckpt_path", "last", probe=f"{name}-resumed")
        for name, flags in STRATEGIES.items()
    ]
    run_jobs(2, [*whole, *resumed])
    for name in STRATEGIES:
        expected, losses = losses_of(tmp_path, f"{name}-whole"), losses_of(tmp_path, f"{name}-resumed")
        assert_continued(runs / f"{name}-whole", runs / name, expected, losses)
    assert not torch.equal(first, next(iter(tensors_of(runs / "ddp").values())))  # they did train

    validate = ["validate", "--config", str(run_config), "--trainer.devices", "1", "--run_folder", str(runs / "alone")]
    last = {"flags": [*job("zero3", 1)["flags"], *WHOLE, "--ckpt_path", "last"]}
    ((status, output),) = run_jobs(
        1,
        [
            job("alone", 1, *STILL, "--init_from", str(runs / "zero3-whole")),
            {"flags": [*validate, "--ckpt_path", str(runs / "fsdp2")]},
            job("fewer", 1, *STRATEGIES["fsdp2"], *WHOLE, *TURNS, "--ckpt_path", "last", probe="fewer-resumed"),
            last,
        ],
        check=False,
    )
    assert status == 2, output
    assert "start a new run from the weights with --init_from" in " ".join(output.split())
    assert_close(tensors_of(runs / "zero3-whole"), tensors_of(runs / "alone"), rtol=0, atol=1e-7)
    fewer = losses_of(tmp_path, "fewer-resumed")
    assert_continued(runs / "fsdp2-whole", runs / "fewer", losses_of(tmp_path, "fsdp2-whole"), fewer)
