"""Recordings to windows: nothing left out, nothing twice, edges that see what they should."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslm.modules.encoders.mel import CONTEXT_SAMPLES, pad_with_context
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.path.windows import Windows
from fastslm.plan.live import LiveBytes

WINDOW = 1600

lengths = st.lists(st.integers(1, 4 * WINDOW), max_size=5)


def covered(windows):
    return [
        n for start, count in zip(windows.start, windows.num_samples, strict=True) for n in range(start, start + count)
    ]


@given(lengths)
def test_windows_cover_every_sample_once_and_in_order(num_samples):
    assert covered(Windows.of(num_samples, WINDOW)) == list(range(sum(num_samples)))


@given(lengths)
def test_a_window_never_reaches_into_the_next_recording(num_samples):
    windows = Windows.of(num_samples, WINDOW)
    owner = np.repeat(np.arange(len(num_samples)), num_samples)
    for start, count, recording in zip(windows.start, windows.num_samples, windows.recording, strict=True):
        assert set(owner[start : start + count]) == {recording}


@given(lengths)
def test_only_the_last_window_of_a_recording_is_short(num_samples):
    windows = Windows.of(num_samples, WINDOW)
    followed = [a == b for a, b in zip(windows.recording, windows.recording[1:], strict=False)]
    assert all(count == WINDOW for count, inside in zip(windows.num_samples, followed, strict=False) if inside)


@given(lengths, st.integers(1, 7))
def test_groups_are_bounded_and_hold_each_window_once(num_samples, size):
    windows = Windows.of(num_samples, WINDOW)
    groups = [list(range(*group.indices(len(windows)))) for group in windows.groups(size)]
    assert [i for group in groups for i in group] == list(range(len(windows)))
    assert all(1 <= len(group) <= size for group in groups)


def test_windows_by_hand():
    windows = Windows.of([10, 4, 3], 4)
    assert windows.start == (0, 4, 8, 10, 14)
    assert windows.num_samples == (4, 4, 2, 4, 3)
    assert windows.recording == (0, 0, 0, 1, 2)


@pytest.fixture
def whisper(tiny_encoder):
    return WhisperEncoder(str(tiny_encoder))


def test_no_recording_gives_no_window(whisper):
    windows = Windows.of([], WINDOW)
    assert len(windows) == 0
    assert list(windows.groups(4)) == []
    assert windows.num_frames(whisper).tolist() == []


def test_a_frame_begun_is_a_frame(whisper):
    assert Windows.of([1, 320, 321, 1600], WINDOW).num_frames(whisper).tolist() == [1, 1, 2, 5]


@given(lengths, st.integers(0, 2**31))
def test_alone_a_window_is_its_samples_then_zeros_mirrored_at_both_edges(num_samples, seed):
    audio = torch.from_numpy(np.random.default_rng(seed).integers(-9, 10, sum(num_samples)).astype(np.int16))
    windows = Windows.of(num_samples, WINDOW)
    if len(windows):
        taken = windows.take(audio, slice(0, len(windows)))
        assert taken.shape == (len(windows), WINDOW)
        for row, start, count in zip(pad_with_context(taken, WINDOW), windows.start, windows.num_samples, strict=True):
            assert torch.equal(row, pad_with_context(audio[start : start + count], WINDOW))


@given(st.lists(st.integers(CONTEXT_SAMPLES + 1, 4 * WINDOW), min_size=1, max_size=3), st.integers(0, 2**31))
def test_across_a_window_is_a_chunk_of_its_mirrored_recording(num_samples, seed):
    rng = np.random.default_rng(seed)
    recordings = [rng.integers(-9, 10, n).astype(np.int16) for n in num_samples]
    windows = Windows.of(num_samples, WINDOW)
    taken = windows.take(torch.from_numpy(np.concatenate(recordings)), slice(0, len(windows)), CONTEXT_SAMPLES)
    rows = iter(taken)
    for recording in recordings:
        mirrored = np.pad(recording, CONTEXT_SAMPLES, mode="reflect")
        for begin in range(0, len(recording), WINDOW):
            chunk = mirrored[begin : begin + WINDOW + 2 * CONTEXT_SAMPLES]
            expected = np.pad(chunk, (0, WINDOW + 2 * CONTEXT_SAMPLES - len(chunk)))
            assert next(rows).tolist() == expected.tolist()


def test_windows_of_a_group_are_copied_once_and_nothing_else_of_their_size_is_made():
    audio = torch.zeros(5 * WINDOW + 3, dtype=torch.int16)
    windows = Windows.of([len(audio)], WINDOW)
    live = LiveBytes()
    with live:
        taken = windows.take(audio, slice(0, 6))
    assert live.peak == taken.nbytes + audio.nbytes


def test_a_recording_too_short_to_mirror_is_followed_by_silence():
    (row,) = Windows.of([3], WINDOW).take(torch.tensor([5, 6, 7], dtype=torch.int16), slice(0, 1), CONTEXT_SAMPLES)
    assert row.shape == (WINDOW + 2 * CONTEXT_SAMPLES,)
    assert row[CONTEXT_SAMPLES - 2 : CONTEXT_SAMPLES + 5].tolist() == [7, 6, 5, 6, 7, 0, 0]


def test_a_group_takes_only_its_windows():
    audio = torch.arange(5 * WINDOW)
    windows = Windows.of([5 * WINDOW], WINDOW)
    whole = windows.take(audio, slice(0, 5), CONTEXT_SAMPLES)
    assert torch.equal(windows.take(audio, slice(2, 4), CONTEXT_SAMPLES), whole[2:4])


@given(st.lists(st.integers(1, 4 * WINDOW), min_size=1, max_size=5), st.integers(0, 2 * WINDOW))
def test_cut_from_a_whole_spectrogram_a_recording_has_the_windows_that_its_mel_frames_fill(num_samples, shortest):
    windows = Windows.of(num_samples, WINDOW, min_rest=160, min_samples=shortest)
    frames = [max(n, shortest) // 160 for n in num_samples]
    expected = [max(1, -(-n // (WINDOW // 160))) for n in frames]
    assert [windows.recording.count(i) for i in range(len(num_samples))] == expected
    totals = [0] * len(num_samples)
    for recording, count in zip(windows.recording, windows.num_samples, strict=True):
        totals[recording] += count // 160
    assert totals == frames


@given(
    st.lists(st.integers(1, 3 * WINDOW), min_size=1, max_size=4),
    st.integers(0, 2 * WINDOW),
    st.sampled_from([0, CONTEXT_SAMPLES]),
)
def test_a_short_recording_is_encoded_as_if_silence_had_been_recorded_after_it(num_samples, shortest, margin):
    rng = np.random.default_rng(0)
    recordings = [rng.integers(1, 10, n).astype(np.int16) for n in num_samples]
    longer = [np.pad(r, (0, max(0, shortest - len(r)))) for r in recordings]
    short = Windows.of(num_samples, WINDOW, min_samples=shortest)
    padded = Windows.of([len(r) for r in longer], WINDOW)
    assert short.num_samples == padded.num_samples
    found = short.take(torch.from_numpy(np.concatenate(recordings)), slice(0, len(short)), margin)
    assert torch.equal(found, padded.take(torch.from_numpy(np.concatenate(longer)), slice(0, len(padded)), margin))
