"""SpecAugment: what is hidden, when, and that it follows from seed, epoch and sample alone."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastslm.errors import ConfigError
from fastslm.path.batch import Batch, Sample
from fastslm.path.feature_masks import HIDDEN, FeatureMasks
from fastslm.path.prompt import messages_of
from fastslm.path.windows import Windows
from fastslm.training.spec_augment import SpecAugment

RATE = 16_000
#: What is asked of an encoder: 80 mel bins, 100 columns per second.
MEL = SimpleNamespace(feature_bins=80, samples_per_feature=160)


def windows_of(*seconds, window_seconds=2.0):
    return Windows.of([round(s * RATE) for s in seconds], round(window_seconds * RATE))


def sample(path, key, seconds, seed=0):
    audio = (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 2000).astype(np.int16)
    return Sample(key, path.prompter.dialogue(messages_of({"text": "forty two"}), 1, "asr"), [audio])


@pytest.fixture
def noting_path(make_module, noting_mels):
    """Return a path in training mode that notes the log-mel windows its encoder is given."""

    def make(**settings):
        module = make_module(**settings)
        module.configure_model()
        path = module.path.train()
        path.mels = noting_mels(path)

        def mels(batch, seed=0, epoch=0):
            path.mels.clear()
            path.additions.seed = seed
            path(replace(batch, epoch=epoch))
            return torch.cat(path.mels)

        path.mels_of = mels
        return path

    return make


# -- masks --------------------------------------------------------------------------------------------


def test_a_hand_made_mask_hides_its_band_and_its_stretch_and_nothing_else():
    masks = FeatureMasks(torch.tensor([[[1, 3]]]), torch.tensor([[[0, 1], [4, 4]]]))
    hidden = masks.hide(torch.ones(1, 4, 5))
    expected = torch.ones(1, 4, 5)
    expected[:, 1:3, :] = HIDDEN
    expected[:, :, 0] = HIDDEN
    assert torch.equal(hidden, expected)


def test_masks_are_as_many_and_as_wide_as_was_asked_and_within_the_audio():
    augment = SpecAugment(freq_masks=3, freq_width=20, time_masks=4, time_width=0.25)
    masks = augment.draw([f"r{i}" for i in range(300)], windows_of(*[2.0, 0.5, 1.3] * 100), MEL, 0, seed=1, epoch=0)
    assert masks.bins.shape == (300, 3, 2)
    assert masks.columns.shape == (300, 4, 2)
    for spans, length, widest in (
        (masks.bins, torch.full((300, 1), 80), torch.full((300, 1), 20)),
        (masks.columns, torch.tensor([200, 50, 130] * 100)[:, None], torch.tensor([50, 12, 32] * 100)[:, None]),
    ):
        widths = spans[..., 1] - spans[..., 0]
        assert (spans[..., 0] >= 0).all()
        assert (spans[..., 1] <= length).all()
        assert (widths >= 0).all()
        assert (widths <= widest).all()
        assert (widths == widest).any(), "the widest of hundreds of masks is as wide as is allowed"
        assert (widths / widest).mean() == pytest.approx(0.5, abs=0.05)
        assert (spans.float().mean(-1) / length).mean() == pytest.approx(0.5, abs=0.05)


def test_nothing_is_hidden_without_masks_and_everything_may_be():
    nothing = SpecAugment(freq_masks=0, time_masks=0).draw(["a"], windows_of(2.0), MEL, 0, 0, 0)
    mel = torch.randn(1, 80, 200)
    assert torch.equal(nothing.hide(mel), mel)
    wide = SpecAugment(freq_masks=50, freq_width=500, time_masks=0).draw(["a"], windows_of(2.0), MEL, 0, 0, 0)
    assert (wide.hide(mel) == HIDDEN).float().mean() > 0.9


def test_masks_follow_from_seed_epoch_recording_and_window_alone():
    augment = SpecAugment()

    def draw(names, windows, seed=0, epoch=0):
        masks = augment.draw(names, windows, MEL, 0, seed, epoch)
        return [torch.cat([b.ravel(), f.ravel()]).tolist() for b, f in zip(masks.bins, masks.columns, strict=True)]

    alone = draw(["a/0"], windows_of(5.0))
    together = draw(["b/0", "a/0"], windows_of(3.0, 5.0))
    assert together[2:] == alone, "what a recording is batched with changes nothing"
    assert len({str(row) for row in together}) == 5, "each window has masks of its own"
    assert draw(["a/0"], windows_of(5.0), epoch=1) != alone
    assert draw(["a/0"], windows_of(5.0), seed=1) != alone
    assert draw(["a/1"], windows_of(5.0)) != alone


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freq_masks": -1}, r"model\.spec_augment\.freq_masks: -1"),
        ({"time_width": 1.5}, r"model\.spec_augment\.time_width: 1\.5 is outside 0 to 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        SpecAugment(**settings)


# -- in the path --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mel_range", ["window", "recording"])
def test_in_training_the_encoder_sees_the_masked_windows_and_else_all_of_them(noting_path, mel_range):
    augment = SpecAugment(freq_masks=1, freq_width=30, time_masks=2, time_width=0.2)
    path, plain = noting_path(spec_augment=augment, mel_range=mel_range), noting_path(mel_range=mel_range)
    batch = Batch.of([sample(path, "a", 3.0), sample(path, "b", 1.0, seed=1)])
    whole = plain.mels_of(batch)
    windows = path.listener.cut(batch.num_samples)
    masks = augment.draw(["a/0", "b/0"], windows, path.encoder, 0, seed=4, epoch=2)
    assert torch.equal(path.mels_of(batch, seed=4, epoch=2), masks.hide(whole))
    assert not torch.equal(masks.hide(whole), whole)
    assert torch.equal(path.mels_of(batch, seed=4, epoch=2), path.mels_of(batch, seed=4, epoch=2))
    assert not torch.equal(path.mels_of(batch, seed=4, epoch=3), masks.hide(whole))
    path.eval()
    assert torch.equal(path.mels_of(batch), whole)


def test_groups_of_windows_and_recomputing_see_the_same_masks(noting_path):
    settings = {"spec_augment": SpecAugment(), "encoder_batch_windows": 2, "recompute": True}
    path, reference = noting_path(**settings), noting_path(spec_augment=SpecAugment())
    batch = Batch.of([sample(path, "a", 5.0), sample(path, "b", 3.0, seed=1)])
    expected = reference.mels_of(batch)
    path.mels.clear()
    path(batch).loss_sum.backward()  # encodes each group once more
    assert len(path.mels) == 6
    assert torch.equal(torch.cat(path.mels[:3]), expected)
    again = {mel.sum().item() for mel in path.mels[3:]}
    assert again == {mel.sum().item() for mel in path.mels[:3]}


def test_the_frame_cache_excludes_it_with_a_message_that_says_what_to_do(make_module):
    with pytest.raises(ConfigError, match=r"model\.spec_augment.*Set model\.frame_cache to false"):
        make_module(spec_augment=SpecAugment(), frame_cache=True)


def test_dialogues_without_audio_have_nothing_to_hide(noting_path):
    path = noting_path(spec_augment=SpecAugment())
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    assert path(Batch.of([Sample("a", path.prompter.dialogue(messages, 0, "dialogue"), [])])).num_labels > 0
