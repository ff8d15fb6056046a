"""Warm-up and decay of learning rates: in steps, and as a share of all steps."""

import pytest
import torch

from fastslm.errors import ConfigError
from fastslm.training.optim import OptimizerSettings, build_schedule


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
