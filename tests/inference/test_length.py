"""Memory that does not grow with the audio, and time that grows with it in proportion; minutes, hence slow."""

import time

import numpy as np
import pytest
import torch
from tiny_run import settings_of, write_run
from torch.profiler import ProfilerActivity, profile

import fastslm
from fastslm.inference.audio import AudioSource
from fastslm.inference.hearing import hear

RATE, BLOCK = 16_000, 160_000


class Noise(AudioSource):
    """Noise of any length that is never in memory as a whole."""

    def __init__(self, minutes):
        self.name, self.seconds, self.num_blocks = f"{minutes} minutes", 60.0 * minutes, round(6 * minutes)

    def blocks(self):
        block = np.random.default_rng(0).integers(-3000, 3000, BLOCK).astype(np.int16)
        for i in range(self.num_blocks):
            yield np.roll(block, 17 * i)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory, tiny_encoder, tiny_llm):
    """Return the tiny model with room for ten hours, 16 windows at a time."""
    settings = settings_of(tiny_encoder, tiny_llm, encoder_batch_windows=16)
    settings["llm"]["init_args"]["context_length"] = 100_000
    return fastslm.load(write_run(tmp_path_factory.mktemp("long"), settings), device="cpu")


def peak_memory(model, minutes):
    """Return the bytes that torch holds at most beyond weights and KV cache; every allocation is added up."""
    caches, new_cache = [], model.path.llm.new_cache
    model.path.llm.new_cache = lambda: caches.append(new_cache()) or caches[-1]
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            model.transcribe(Noise(minutes), max_new_tokens=4)
    finally:
        del model.path.llm.new_cache
    (cache,) = caches
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    reserved = sum(room.nbytes for layer in cache.layers_of.layers for room in layer._rooms)
    # The cache grows with what was read: at the moment of event i it holds that share of what it ends with.
    growing = np.linspace(0, reserved, len(held))
    return float((held - growing).max())


@pytest.mark.slow
def test_peak_memory_is_flat_from_ten_minutes_to_eight_hours(long_model):
    peak_memory(long_model, 1)  # constants that are made once
    short, long = peak_memory(long_model, 10), peak_memory(long_model, 480)
    assert long / short == pytest.approx(1.0, abs=0.1), f"{short / 2**20:.1f} MiB, then {long / 2**20:.1f} MiB"


def seconds_of(model, minutes):
    begin = time.thread_time()
    for _ in hear(model.path, [Noise(minutes)]):
        pass
    return time.thread_time() - begin


@pytest.mark.slow
def test_encoding_and_compressing_take_time_in_proportion_to_the_audio(long_model):
    torch.set_num_threads(1)
    lengths = [5, 10, 20, 40, 80]
    seconds_of(long_model, 2)
    for _ in range(3):  # a busy machine; the work itself is the same each time
        times = np.min([[seconds_of(long_model, minutes) for minutes in lengths] for _ in range(2)], axis=0)
        exponent = np.polyfit(np.log(lengths), np.log(times), 1)[0]
        if abs(exponent - 1) <= 0.05:
            break
    assert exponent == pytest.approx(1.0, abs=0.05)
