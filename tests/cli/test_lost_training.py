"""A training that has gone wrong stops with a sentence, and leaves what went well behind."""

import contextlib
import functools
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, get_worker_info

from fastslm.cli import main
from fastslm.datamodules.loading.dataset import ShardDataset
from fastslm.datamodules.webdataset import WebDatasetModule
from fastslm.errors import ConfigError
from fastslm.modules.abstractors.hta import HTA
from fastslm.modules.llms.causal_lm import CausalLM
from fastslm.path.model import SpeechLM
from fastslm.processes.signals import EXIT_STATUS
from fastslm.training import lightning_module
from fastslm.training.first_gradients import FirstGradients


@pytest.fixture
def stopped(run_config, capsys):
    """Return a runner of ``fastslm fit``, or of another command, that must end in a sentence; gives it."""

    def run(*flags, command="fit"):
        assert main([command, "--config", str(run_config), *flags]) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return next(line for line in message.splitlines() if line.startswith("fastslm: error:"))

    return run


@pytest.fixture
def break_loss(monkeypatch):
    """Return a function that gives a value for the loss of a later pass: of the nth in training or in validation."""

    def at(number, value, *, training):
        passed, forward = [], SpeechLM.forward

        def broken(self, batch, *arguments, **named):
            output = forward(self, batch, *arguments, **named)
            if self.training == training:
                passed.append(batch.keys)
                if len(passed) == number:
                    output.loss_sum = output.loss_sum * 0 + value
            return output

        monkeypatch.setattr(SpeechLM, "forward", broken)
        return passed

    return at


def last_step(folder):
    manifest = next(iter(folder.glob("checkpoints/step-*/checkpoint.json")), None)
    return None if manifest is None else yaml.safe_load(manifest.read_text())["step"]


@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_training_stops_at_the_first_loss_that_is_not_finite(stopped, break_loss, tmp_path, value):
    passed = break_loss(3, value, training=True)
    every = ["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    message = stopped("--trainer.precision", "bf16-mixed", *every)
    assert handlers == {number: signal.getsignal(number) for number in handlers}  # the process may train again
    assert len(passed) == 3
    assert f"stopped at step 3: the training loss is {value:g}." in message
    assert f"Samples: {', '.join(passed[-1])}." in message
    assert "trainer.precision is bf16-mixed" in message
    assert "model.optimizer.learning_rate" in message
    assert last_step(tmp_path / "run") == 2


def test_under_accumulation_the_micro_batch_is_named(stopped, break_loss):
    passed = break_loss(5, math.nan, training=True)
    message = stopped("--trainer.accumulate_grad_batches", "3")
    assert "stopped at step 2:" in message
    assert f"Samples: {', '.join(passed[4])}." in message


def test_a_validation_loss_that_is_not_finite_stops_before_a_checkpoint_is_called_best(stopped, break_loss, tmp_path):
    passed = break_loss(1, math.inf, training=False)
    message = stopped()
    assert f"stopped at step 5: the validation loss is inf. Samples: {', '.join(passed[0])}." in message
    assert not list(tmp_path.glob("run/checkpoints/best*"))


def test_an_llm_that_gives_no_numbers_is_told_and_what_it_answered_stays(stopped, monkeypatch, run_config, tmp_path):
    assert main(["fit", "--config", str(run_config), "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]) == 0
    forward = CausalLM.forward
    monkeypatch.setattr(CausalLM, "forward", lambda *arguments, **named: forward(*arguments, **named) * math.nan)
    assert "the loss is nan. Samples: " in stopped(command="validate")
    assert len((tmp_path / "run" / "predictions-val.jsonl").read_text().splitlines()) == 3
    assert "the LLM's logits are no numbers in float32." in stopped(command="predict")


def test_weights_that_are_no_numbers_are_not_saved(stopped, monkeypatch, tmp_path):
    step = torch.optim.AdamW.step

    def ruin(self, *arguments, **named):
        loss = step(self, *arguments, **named)
        with torch.no_grad():
            self.param_groups[0]["params"][0][0] = math.nan
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", ruin)
    message = stopped("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
    assert "refusing to save: 1 trained tensors hold nan or infinity after the last step: path.abstractor." in message
    assert last_step(tmp_path / "run") is None


def test_a_training_without_a_batch_is_no_success(stopped, monkeypatch, tmp_path):
    monkeypatch.setattr(WebDatasetModule, "training_batches", lambda self: DataLoader([], batch_size=None))
    assert "data: WebDatasetModule gives no training batch, so nothing was trained." in stopped()
    assert last_step(tmp_path / "run") is None


def test_a_loading_process_that_is_killed_is_told_in_one_sentence(stopped, monkeypatch):
    """As a system ends one that is short of memory."""

    def killed(self, *arguments):
        assert get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ShardDataset, "sample", killed)
    message = stopped("--data.num_workers", "1", "--trainer.limit_val_batches", "0")
    assert "a loading process has ended (" in message
    assert "Set data.num_workers lower" in message


@pytest.mark.parametrize("bits", ["16", "bf16"])
def test_weights_that_would_be_rounded_at_each_step_are_refused_before_the_first(stopped, bits):
    message = stopped("--trainer.precision", f"{bits}-true")
    assert f"trainer.precision is {bits}-true: the weights that train would be rounded" in message
    assert f"Use {bits}-mixed" in message


def test_a_layer_that_is_made_in_the_first_pass_is_named_before_the_first_step(stopped, monkeypatch, tmp_path):
    forward = HTA.forward

    def late(self, *arguments, **named):
        if not hasattr(self, "late"):
            self.late = torch.nn.Linear(2, 2)
        return forward(self, *arguments, **named)

    monkeypatch.setattr(HTA, "forward", late)
    message = stopped()
    assert "path.abstractor.late.bias, path.abstractor.late.weight: made in the first pass" in message
    assert "Make all layers in the constructor" in message
    assert last_step(tmp_path / "run") is None


@pytest.mark.slow
def test_a_compiler_that_fails_is_named_and_not_the_llm(stopped, monkeypatch):
    """What is checked of the LLM before training is checked of it, not of what is compiled of it."""

    def broken(graph, inputs):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(lightning_module, "missing_for_compiling", lambda: None)
    monkeypatch.setattr(lightning_module, "compile_layers", lambda llm: llm.causal_lm.compile(backend=broken))
    message = stopped("--model.compile_parts", "[llm]")
    assert "model.compile_parts: torch.compile fails here (BackendCompilerFailed: " in message
    assert "no such instruction" in message
    assert "where a compiler was killed before, remove /" in message


@pytest.mark.slow
def test_a_compiler_that_a_signal_has_ended_too_is_no_mistake_and_loggers_are_closed(monkeypatch, run_config, capsys):
    def ended(graph, inputs):
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("killed")

    monkeypatch.setattr(lightning_module, "missing_for_compiling", lambda: None)
    monkeypatch.setattr(lightning_module, "compile_layers", lambda llm: llm.causal_lm.compile(backend=ended))
    closed = []
    monkeypatch.setattr(CSVLogger, "finalize", lambda self, status: closed.append(status))
    assert main(["fit", "--config", str(run_config), "--model.compile_parts", "[llm]"]) == EXIT_STATUS
    said = capsys.readouterr().err
    assert "stopped after step 0 by a signal, which ended torch.compile too; nothing was saved now" in said
    assert "Traceback" not in said
    assert closed == ["failed"]


@pytest.fixture
def idle_layer(monkeypatch):
    """Give the compressor a layer that no loss depends on."""
    build = HTA.__init__

    @functools.wraps(build)  # the command line reads its arguments
    def more(self, *arguments, **named):
        build(self, *arguments, **named)
        self.idle = torch.nn.Linear(2, 2)

    monkeypatch.setattr(HTA, "__init__", more)


@pytest.mark.slow
def test_a_layer_that_gets_no_gradient_is_named(run_config, capsys, idle_layer):
    assert main(["fit", "--config", str(run_config), "--trainer.max_steps", "2"]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "got no gradient" in line]
    assert "tensors got no gradient in the first pass: path.abstractor.idle.bias, path.abstractor.idle.weight." in note


@pytest.mark.parametrize("finds", [True, False])
def test_ddp_is_told_of_such_a_layer_before_it_waits_for_ever(make_module, finds):
    """Only where it does not look for them itself."""
    module = make_module(train_parts=("projector",))
    module.configure_model()
    watched = FirstGradients(module)
    sum(weight.sum() for name, weight in trained(module) if not name.endswith("projector.bias")).backward()
    trainer = SimpleNamespace(strategy=SimpleNamespace(model=SimpleNamespace(find_unused_parameters=finds)))
    refused = pytest.raises(ConfigError, match=r"projector\.bias\. DDP waits for each of them")
    with contextlib.nullcontext() if finds else refused:
        assert "projector.bias. What no loss depends on stays as it is." in watched.check(trainer)


def trained(module):
    return [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]


def test_a_gradient_that_the_strategy_takes_away_at_once_is_one(make_module):
    """As ZeRO does, which has a buffer of its own for it."""
    module = make_module(train_parts=("projector",))
    module.configure_model()
    weights = [weight for _, weight in trained(module)]
    for weight in weights:
        weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    watched = FirstGradients(module)
    sum(weight.sum() for weight in weights).backward()
    assert all(weight.grad is None for weight in weights)
    trainer = SimpleNamespace(strategy=SimpleNamespace(model=module))
    assert watched.check(trainer) is None
