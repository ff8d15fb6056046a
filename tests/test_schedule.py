"""Warm-up and decay of learning rates, in steps and as a share of all steps; the optimizer that takes them."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from fastslm.errors import ConfigError
from fastslm.strategies import ZeRORehearsal
from fastslm.strategies.support import fuses_optimizer
from fastslm.training import optim
from fastslm.training.optim import OptimizerSettings, build_schedule, schedule_gap


def factors(settings, max_steps, num):
    """Return the factor on the peak rate in each of the first ``num`` steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, settings, max_steps)
    found = []
    for _ in range(num):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_a_share_of_the_steps_is_as_many_steps():
    by_share = factors(OptimizerSettings(warmup_steps=0.03), 1000, 1000)
    assert by_share == factors(OptimizerSettings(warmup_steps=30), 1000, 1000)
    assert by_share[0] == pytest.approx(1 / 30)
    assert by_share.index(1.0) == 29
    assert by_share[30] == 1.0
    assert by_share[999] == pytest.approx(1 / 970)


def test_the_warm_up_grows_with_the_run():
    assert factors(OptimizerSettings(warmup_steps=0.1), 50, 5)[-1] == 1.0
    assert factors(OptimizerSettings(warmup_steps=0.1), 500, 5)[-1] == pytest.approx(0.1)
    total = OptimizerSettings(warmup_steps=0.1, total_steps=500)
    assert factors(total, 50, 5)[-1] == pytest.approx(0.1)  # of the steps that the decay ends at


def test_none_and_one_are_numbers_of_steps():
    for steps in (0, 0.0, 1, 1.0):
        assert factors(OptimizerSettings(warmup_steps=steps, schedule="constant"), -1, 2) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, None),
        ({"schedule": "constant", "total_steps": 10}, None),
        ({"total_steps": 10}, "total_steps 10: the learning rate is zero from that step on"),
        ({"warmup_steps": 41}, "warmup_steps 41: the run ends at step 40"),
        ({"warmup_steps": 40}, None),  # the last step has the full rate
        ({"warmup_steps": 100, "schedule": "constant"}, "warmup_steps 100: the run ends at step 40"),
    ],
)
def test_a_schedule_that_is_not_that_of_the_run_is_told(settings, words):
    trainer = SimpleNamespace(max_steps=40, max_epochs=-1)
    note = schedule_gap(trainer, OptimizerSettings(**{"warmup_steps": 0.03, **settings}))
    assert note is None if words is None else words in note


@pytest.mark.parametrize(
    ("steps", "max_steps", "words"),
    [
        (-1, 100, r"warmup_steps: -1 must be a whole number of steps, or a share of all steps below 1, such as 0\.03"),
        (1.5, 100, r"warmup_steps: 1\.5 must be a whole number"),
        (
            0.1,
            -1,
            r"warmup_steps: 0\.1 is a share of all steps, and their number is not known\. Set trainer\.max_steps",
        ),
    ],
)
def test_a_warm_up_that_is_no_number_of_steps_says_what_to_give(steps, max_steps, words):
    with pytest.raises(ConfigError, match=words):
        factors(OptimizerSettings(warmup_steps=steps, schedule="constant"), max_steps, 1)


# -- rates by part -----------------------------------------------------------------------------------------------------


def rates(monkeypatch, names, part_learning_rates):
    """Return the rate of each parameter; 1e-3 where no part is named."""
    parts = {part: [(name, torch.nn.Parameter(torch.zeros(2, 2))) for name in found] for part, found in names.items()}
    monkeypatch.setattr(optim, "parameters_by_part", lambda _: {part: list(named) for part, named in parts.items()})
    settings = OptimizerSettings(learning_rate=1e-3, part_learning_rates=part_learning_rates)
    groups = optim.build_optimizer(None, settings).param_groups
    by_parameter = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {name: by_parameter[id(p)] for named in parts.values() for name, p in named}


def test_the_head_that_spells_may_learn_faster_than_the_compressor(monkeypatch):
    names = {"abstractor": ["alignment.slots", "abstractor.query"], "projector": ["abstractor.projector"]}
    assert rates(monkeypatch, names, {"abstractor": 2e-4, "alignment": 5e-4}) == {
        "alignment.slots": 5e-4, "abstractor.query": 2e-4, "abstractor.projector": 1e-3,
    }  # fmt: skip
    assert rates(monkeypatch, names, {"abstractor": 2e-4})["alignment.slots"] == 2e-4


def test_a_rate_for_a_compressor_that_is_nothing_but_its_projector_is_of_no_effect(monkeypatch):
    names = {"abstractor": ["alignment.slots"], "projector": ["abstractor.projector"]}
    found = rates(monkeypatch, names, {"abstractor": 2e-4, "alignment": 5e-4})
    assert found == {"alignment.slots": 5e-4, "abstractor.projector": 1e-3}


def test_a_rate_for_what_does_not_train_is_refused(monkeypatch):
    names = {"abstractor": ["abstractor.query"], "projector": ["abstractor.projector"]}
    for part in ("alignment", "lora"):
        with pytest.raises(ConfigError, match=rf"'{part}' does not train \(it trains: abstractor, projector\)"):
            rates(monkeypatch, names, {part: 1e-4})


# -- AdamW in one kernel ---------------------------------------------------------------------------------------------


def trained(fused):
    torch.manual_seed(0)
    path = SimpleNamespace(matrix=torch.nn.Parameter(torch.randn(20, 30)), vector=torch.nn.Parameter(torch.randn(30)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "parameters_by_part", lambda _: {"projector": list(vars(path).items())})
        optimizer = optim.build_optimizer(path, OptimizerSettings(weight_decay=0.1), fused)
    for _ in range(20):
        for parameter in vars(path).values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return path, optimizer


def test_one_kernel_for_all_weights_gives_the_same_weights_and_a_state_that_either_way_takes():
    (plain, before), (fused, after) = trained(False), trained(True)
    torch.testing.assert_close(vars(fused), vars(plain), rtol=1e-5, atol=1e-6)
    before.load_state_dict(after.state_dict())
    before.step()
    trained(True)[1].load_state_dict(trained(False)[1].state_dict())


def test_it_is_taken_where_nothing_stands_between_optimizer_and_weights():
    cpu, gpu, other = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
    plain, scaled = SimpleNamespace(), SimpleNamespace(scaler=object())
    for strategy, device, precision, taken in (
        (SingleDeviceStrategy(cpu), cpu, plain, True), (SingleDeviceStrategy(gpu), gpu, plain, True),
        (SingleDeviceStrategy(gpu), gpu, scaled, False), (SingleDeviceStrategy(other), other, plain, False),
        (DDPStrategy(parallel_devices=[cpu]), cpu, plain, True), (ZeRORehearsal(stage=2), cpu, plain, False),
    ):  # fmt: skip
        trainer = SimpleNamespace(strategy=strategy, precision_plugin=precision)
        assert fuses_optimizer(trainer) is taken, (strategy, device)
