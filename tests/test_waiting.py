"""A training step never asks the device for a value: the host would wait until everything queued is done.

The step runs on "meta" tensors, which have no values: whoever asks for one (item, tolist, bool, nonzero, a copy to the
host) raises.
"""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastslm.modules.abstractors.conv import Conv
from fastslm.modules.abstractors.frame_fusion import FrameFusion
from fastslm.modules.abstractors.hta import HTA
from fastslm.modules.encoders.parakeet import ParakeetEncoder
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.batch import Batch, Sample
from fastslm.path.loss import label_loss
from fastslm.path.one_sequence import one_sequence
from fastslm.path.prompt import messages_of
from fastslm.training.frame_augment import FrameAugment
from fastslm.training.spec_augment import SpecAugment

HTA_WITH_BIAS = partial(HTA, head_width=16, distance_bias=True)


@pytest.fixture(autouse=True)
def _no_autocast_on_meta(monkeypatch):
    """Torch has none there, not even one that is switched off."""
    autocast = torch.autocast

    def maybe(device_type, *arguments, **named):
        return nullcontext() if device_type == "meta" else autocast(device_type, *arguments, **named)

    monkeypatch.setattr(torch, "autocast", maybe)


class Uploads(TorchDispatchMode):
    """Notes copies from the host that would wait for the device."""

    def __init__(self):
        super().__init__()
        self.waiting, self.count = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            if source.device.type == "cpu" and result.device.type == "meta":
                self.count += 1
                at_once = args[2:3] == (True,) or (kwargs or {}).get("non_blocking")
                self.waiting += [] if at_once else [tuple(source.shape)]
        return result


def audio(seconds):
    return (np.random.default_rng(0).standard_normal(round(seconds * 16_000)) * 2000).astype(np.int16)


@pytest.fixture
def on_meta(tiny_llm, put_together):
    """Return a maker of a path without values, and of a batch for it."""

    def make(encoder, abstractor=HTA_WITH_BIAS, **settings):
        llm = CausalLM(str(tiny_llm), lora=LoRA(rank=2, dropout=0.1), initialize="random", gradient_checkpointing=True)
        encoder.initialize = "random"
        with torch.device("meta"):
            encoder.load()
            llm.load()
            path = put_together(
                encoder, abstractor, llm, window_seconds=2.0, tokens_per_window=5,
                train_parts=("abstractor", "projector", "lora"), **settings,
            ).to("meta").train()  # fmt: skip

        def sample(seconds, text):
            dialogue = path.prompter.dialogue(messages_of({"text": text}), 1, "asr")
            return Sample(text, dialogue, [audio(seconds)])

        batch = Batch.of([sample(7.3, "forty two"), sample(1.0, "seven")])
        batch.audio = batch.audio.to("meta")
        return path, batch

    return make


def step(path, batch):
    """Do what a step does, and return the copies from the host."""
    uploads = Uploads()
    trained = [p for p in path.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3)
    with uploads:
        output = path(batch, num_groups=5)
        loss = output.loss_sum / output.num_labels
        if output.alignment_sum is not None:
            loss = loss + output.alignment_sum / output.num_aligned
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    assert all(p.grad is not None for p in trained)
    return uploads


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recompute": True},
        {"mix_style": 0.5, "token_noise": 0.5, "answer_noise": 0.2},
        {"spec_augment": SpecAugment()},
        {"match_embedding_norm": True},
        {"frame_augment": FrameAugment()},
    ],
    ids=str,
)
def test_a_step_waits_neither_for_values_nor_for_copies(on_meta, tiny_encoder, settings):
    path, batch = on_meta(WhisperEncoder(str(tiny_encoder)), **settings)
    uploads = step(path, batch)
    assert uploads.count >= 4  # lengths, ids, places, labels: the counter sees what it is there for
    assert uploads.waiting == []


@pytest.mark.parametrize("abstractor", [Conv, FrameFusion, partial(HTA, head_width=16, pooled_residual="attention")])
def test_no_compressor_waits(on_meta, tiny_encoder, abstractor):
    assert step(*on_meta(WhisperEncoder(str(tiny_encoder)), abstractor)).waiting == []


@pytest.mark.slow
def test_no_encoder_that_masks_its_own_padding_waits(on_meta, tiny_encoder, tiny_parakeet):
    """Those of transformers that take a mask (WaveformEncoder) ask once a group whether anything is masked."""
    for encoder in (WhisperEncoder(str(tiny_encoder), mel_range="recording"), ParakeetEncoder(str(tiny_parakeet))):
        assert step(*on_meta(encoder)).waiting == []


def test_dialogues_end_to_end_wait_no_more(on_meta, tiny_encoder):
    path, batch = on_meta(WhisperEncoder(str(tiny_encoder)))
    path.llm.packs = True
    assert step(path, batch).waiting == []


def test_the_search_for_packed_sequences_is_left_out_only_within_a_step_of_this_thread():
    from transformers import masking_utils

    with one_sequence():
        positions = torch.tensor([[0, 1, 0, 1]])
        assert masking_utils.find_packed_sequence_indices(positions) is None
    assert masking_utils.find_packed_sequence_indices(positions).tolist() == [[0, 0, 1, 1]]


def test_padding_at_the_right_changes_nothing_and_needs_no_mask(tiny_llm):
    llm = CausalLM(str(tiny_llm))
    llm.load()
    masks = []
    llm.causal_lm.model.layers[0].register_forward_pre_hook(
        lambda _module, _inputs, named: masks.append(named["attention_mask"]), with_kwargs=True
    )
    embeddings = llm.embed(torch.randint(0, 50, (2, 9))).detach()
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 4:] = 0
    positions, labels = torch.tensor([2, 7, 9, 12]), torch.tensor([1, 2, 3, 4])
    loss = label_loss(llm(embeddings, mask, positions), labels)
    logits = llm.causal_lm(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).logits
    assert masks[0] is None
    assert masks[1] is not None
    torch.testing.assert_close(loss, label_loss(logits.flatten(0, 1)[positions], labels), rtol=1e-5, atol=0)
