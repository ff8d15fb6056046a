"""Token noise: training shows the LLM disturbed speech tokens, repeatably; the alignment loss and evaluation do not."""

import numpy as np
import pytest
import torch

from fastslm.errors import ConfigError
from fastslm.path.batch import Batch, Sample
from fastslm.path.prompt import messages_of


@pytest.fixture
def path(make_module):
    torch.manual_seed(0)
    module = make_module(token_noise=0.5, alignment_weight=1.0)
    module.configure_model()
    return module.path


@pytest.fixture
def output(path):
    """Return a function that gives what a pass with a seed says of one recording of two windows."""
    dialogue = path.prompter.dialogue(messages_of({"text": "forty two"}), 1, "asr")
    audio = (np.random.default_rng(0).standard_normal(64_000) * 2000).astype(np.int16)
    batch = Batch.of([Sample("a", dialogue, [audio])])

    def run(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return path(batch)

    return run


def test_training_is_disturbed_the_same_way_with_the_same_seed(path, output):
    path.train()
    losses = [output(seed).loss_sum.item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_the_alignment_loss_and_evaluation_know_nothing_of_it(path, output):
    path.train()
    assert output(0).alignment_sum.item() == output(1).alignment_sum.item()
    path.eval()
    assert output(0).loss_sum.item() == output(1).loss_sum.item()


def test_noise_is_at_most_as_large_as_asked_relative_to_each_token(path):
    path.train()
    tokens = torch.randn(400, 8, 64) * torch.rand(400, 8, 1)
    noise = (path.additions.tokens(tokens) - tokens).pow(2).mean((1, 2)).sqrt() / tokens.pow(2).mean((1, 2)).sqrt()
    assert noise.max() < 0.6
    assert noise.mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("size", [-0.1, 1.1])
def test_a_size_out_of_range_is_named(make_module, size):
    with pytest.raises(ConfigError, match=r"model\.token_noise: .* is outside 0 to 1"):
        make_module(token_noise=size)
