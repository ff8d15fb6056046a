"""The step contract in one process: what is counted ahead is what the path counts, and silent groups change nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fastslm.path.batch import Batch, Sample
from fastslm.path.prompt import messages_of
from fastslm.training.step import StepLabels, WholeSteps, agree, labels_of, share_of_mean


@pytest.fixture
def module(make_module):
    made = make_module(alignment_weight=1.0, encoder_batch_windows=2)
    made.configure_model()
    return made


def speech(module, seconds, text="one two three", weight=1.0):
    audio = (np.random.default_rng(0).standard_normal(round(seconds * 16_000)) * 2000).astype(np.int16)
    return Sample(f"{seconds}", module.prompter.dialogue(messages_of({"text": text}), 1, "asr"), [audio], weight)


def text_only(module):
    messages = [{"role": "user", "content": "what is two"}, {"role": "assistant", "content": "two"}]
    return Sample("text", module.prompter.dialogue(messages, 0, "dialogue"), [])


def test_labels_counted_from_the_text_alone_are_those_that_the_path_counts(module):
    path = module.path.train()
    for samples in (
        [speech(module, 3.0), speech(module, 7.0, "four"), text_only(module)],
        [speech(module, 3.0), speech(module, 5.0, weight=0.0)],
        [text_only(module)],
    ):
        batch = Batch.of(samples)
        output = path(batch)
        counted = labels_of([batch], module.prompter.audio_id)
        assert (counted.labels, counted.aligned) == (output.num_labels, output.num_aligned)


@pytest.mark.parametrize("recompute", [False, True])
def test_silent_groups_that_keep_ranks_in_step_change_neither_loss_nor_gradients(module, recompute):
    path = module.path.train()
    path.listener.recompute = recompute
    calls = []
    path.abstractor.register_forward_pre_hook(lambda *_: calls.append(1))

    def results(batch, num_groups):
        calls.clear()
        path.zero_grad()
        output = path(batch, num_groups=num_groups)
        (output.loss_sum + output.alignment_sum).backward()
        gradients = [p.grad.clone() for p in path.parameters() if p.requires_grad]
        return output.loss_sum.detach(), output.alignment_sum.detach(), gradients, len(calls)

    for samples in ([speech(module, 3.0)], [speech(module, 7.0), text_only(module)], [text_only(module)]):
        batch = Batch.of(samples)
        loss, alignment, gradients, _ = results(batch, 1)
        padded_loss, padded_alignment, padded_gradients, num_calls = results(batch, 5)
        torch.testing.assert_close(padded_loss, loss)
        torch.testing.assert_close(padded_alignment, alignment)
        for padded, plain in zip(padded_gradients, gradients, strict=True):
            torch.testing.assert_close(padded, plain)
        assert num_calls == (10 if recompute else 5)  # again in the backward pass
        assert path.listener.num_groups(batch.num_samples) <= 5


def test_a_batch_without_transcripts_adds_nothing_to_the_alignment_loss(module):
    output = module.path.train()(Batch.of([text_only(module)]))
    assert output.num_aligned == 0
    assert output.alignment_sum.item() == 0.0


def test_one_process_agrees_with_itself():
    agreed = agree(StepLabels(7, 3, np.array([2, 5])), num_groups=4, asked=True, device=torch.device("cpu"))
    assert agreed.ids.tolist() == [2, 5]
    assert (agreed.labels, agreed.aligned, agreed.num_groups, agreed.asked, agreed.world_size) == (7, 3, 4, True, 1)


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4), min_size=1, max_size=4))
def test_shares_averaged_over_ranks_and_micro_batches_are_the_mean_over_all_labels(steps):
    """Each rank has as many micro-batches as the first; what is missing has no labels."""
    micro_batches = max(map(len, steps))
    counts = np.array([row + [0] * (micro_batches - len(row)) for row in steps])
    sums = np.random.default_rng(0).uniform(0, 9, counts.shape) * (counts > 0)
    shares = [
        share_of_mean(torch.tensor(value, dtype=torch.float64), int(counts.sum()), len(steps), micro_batches)
        for value in sums.ravel()
    ]
    assert float(torch.stack(shares).mean()) == pytest.approx(sums.sum() / max(counts.sum(), 1))


class Loader(DataLoader):
    """Gives ready batches."""

    def __init__(self, batches):
        super().__init__(batches, batch_size=None)


@given(st.integers(1, 9), st.integers(1, 4))
def test_every_batch_knows_the_labels_of_its_whole_step_and_epochs_end_with_one(num_batches, micro_batches):
    from fastslm.path.batch import Dialogue

    def batch(labels):
        ids = np.zeros(labels + 1, np.int64)
        return Batch.of([Sample("a", Dialogue(ids, np.where(np.arange(labels + 1), 5, -100), 1, "", "x"), [])])

    sizes = np.random.default_rng(num_batches).integers(0, 9, num_batches).tolist()
    loader = WholeSteps(Loader([batch(size) for size in sizes]), micro_batches, audio_id=99)
    given_batches = list(loader)
    assert len(given_batches) == len(loader)
    assert len(given_batches) % micro_batches == 0
    for begin in range(0, len(given_batches), micro_batches):
        step = given_batches[begin : begin + micro_batches]
        assert {item.step.labels for item in step} == {sum(sizes[begin : begin + micro_batches])}
        assert [item.step.place for item in step] == list(range(micro_batches))
    assert [sum(item.weights) for item in given_batches] == [1.0] * num_batches + [0.0] * (len(loader) - num_batches)
