"""Augmentation: what each stage does, and that it follows from seed, epoch and key alone."""

import numpy as np
import pytest

from fastslm.datamodules.augmentation import Augmentation, Gain, Noise, Speed, augmented
from fastslm.errors import ConfigError

RATE = 16_000


def tone(seconds=2.0, hz=440.0, level=8000):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


def rng(seed=0):
    return np.random.default_rng(seed)


def loudest_hz(audio):
    return np.argmax(np.abs(np.fft.rfft(audio * np.hanning(len(audio))))) * RATE / len(audio)


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.25])
def test_speed_changes_length_and_pitch(factor):
    changed = Speed(factor, factor)(tone(), rng())
    assert changed.dtype == np.int16
    assert len(changed) == pytest.approx(2.0 * RATE / factor, abs=3)
    assert loudest_hz(changed) == pytest.approx(440 * factor, rel=0.01)


def test_speed_in_blocks_leaves_no_seam():
    changed = Speed(0.9, 0.9)(tone(65.0), rng()).astype(float)
    assert abs(np.diff(changed, 3)[100:-100]).max() < 120  # a click would be thousands


def test_no_recording_grows_beyond_what_was_planned():
    stage = Speed(0.9, 1.1)
    for seed in range(50):
        assert len(stage(tone(0.5), rng(seed))) <= stage.max_stretch * 0.5 * RATE


def test_gain_scales_and_clips():
    assert abs(Gain(-6.0206, -6.0206)(tone(), rng()).astype(int) - tone() / 2).max() <= 1
    assert Gain(40, 40)(tone(), rng()).max() == 32767
    assert Gain(40, 40)(tone(), rng()).min() == -32768


@pytest.mark.parametrize("snr_db", [0, 10, 20])
def test_noise_has_the_ratio_it_should(snr_db):
    noise = Noise(snr_db, snr_db)(tone(40.0, level=4000), rng()).astype(float) - tone(40.0, level=4000)
    ratio = np.mean(np.square(tone(40.0, level=4000), dtype=float)) / np.mean(noise**2)
    assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=0.2)


def test_silence_stays_silent():
    assert not Noise(0, 0)(np.zeros(1000, np.int16), rng()).any()


@pytest.mark.parametrize(
    "stage", [Speed(0.9, 0.9, 0.3), Noise(10, 10, 0.3), Gain(-6, -6, 0.3)], ids=lambda s: type(s).__name__
)
def test_a_stage_is_used_as_often_as_its_probability_says(stage):
    used = sum(not np.array_equal(stage(tone(0.1), rng(seed)), tone(0.1)) for seed in range(300))
    assert 60 < used < 120


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Speed(1.1, 0.9), "in order"),
        (lambda: Speed(0.0, 1.0), "within 0.25 to 4"),
        (lambda: Gain(3, -3), "is above max_db"),
        (lambda: Noise(30, 10), "is above max_snr_db"),
        (lambda: Gain(probability=2), "outside 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


# -- reproducible -------------------------------------------------------------------------------------


def test_a_change_follows_from_seed_epoch_and_key():
    stages = [Speed(), Noise(), Gain()]
    results = {
        identity: augmented([tone()], stages, *identity)[0].tobytes()
        for identity in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    }
    assert len(set(results.values())) == 4
    assert augmented([tone()], stages, 0, 0, "a")[0].tobytes() == results[0, 0, "a"]


def test_two_recordings_of_a_sample_are_changed_apart():
    first, second = augmented([tone(), tone()], [Noise()], 0, 0, "a")
    assert not np.array_equal(first, second)


class Reverse(Augmentation):
    """A stage of a user's own."""

    def __call__(self, audio, rng):
        return audio[::-1].copy()


def contents(batches):
    return {k: batch.audio.sum().item() for batch in batches for k in batch.keys if len(batch) == 1}


def test_training_gets_the_same_changes_with_any_workers_and_after_a_resume(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 6, [0.5, 1.0])
    settings = {
        "train_shards": pattern, "val_shards": pattern, "batch_samples": 1, "augmentations": [Speed(), Noise(), Gain()],
    }  # fmt: skip
    seen = {}
    for epoch in (0, 1):
        for num_workers in (0, 2):
            data = data_of(**settings, num_workers=num_workers, epoch=epoch)
            data.setup("fit")
            seen[epoch, num_workers] = contents(data.train_dataloader())
    assert seen[0, 0] == seen[0, 2]
    assert seen[1, 0] == seen[1, 2]
    assert not set(seen[0, 0].values()) & set(seen[1, 0].values())
    data = data_of(**settings, steps_done=4)
    data.setup("fit")
    again = data_of(**settings, steps_done=4)
    again.load_state_dict(data.state_dict())
    again.setup("fit")
    rest = contents(again.train_dataloader())
    assert len(rest) == 2
    assert rest.items() <= seen[0, 0].items()


def test_validation_gets_what_was_recorded(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 3, 0.5)
    plain = data_of(val_shards=pattern)
    changed = data_of(val_shards=pattern, augmentations=[Reverse()])
    for data in (plain, changed):
        data.setup("validate")
    (first,), (second,) = plain.val_dataloader(), changed.val_dataloader()
    assert first.audio.equal(second.audio)


def test_batches_are_planned_for_the_longest_that_recordings_can_become(tmp_path, make_shards, data_of):
    pattern = make_shards(tmp_path, 8, 1.9)  # a window of 2 s holds each, but not at 0.9 of its speed
    settings = {"train_shards": pattern, "val_shards": pattern, "batch_windows": 4, "batch_samples": 8}
    sizes = []
    for stages in ([], [Speed(0.9, 1.1)]):
        data = data_of(**settings, augmentations=stages)
        data.setup("fit")
        batches = list(data.train_dataloader())
        sizes.append(max(map(len, batches)))
        assert all(sum(-(-n // 32_000) for n in batch.num_samples) <= 4 for batch in batches)
    assert sizes == [4, 2]
