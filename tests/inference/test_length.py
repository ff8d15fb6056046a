"""Memory that does not grow with the audio, and time that grows with it in proportion; a minute or two, hence slow."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import settings_of, write_run

import fastslm
from fastslm.inference.audio import AudioSource
from fastslm.inference.listening import encode

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
def long_run(tmp_path_factory, tiny_encoder, tiny_llm):
    """Return the run of a tiny model with room for ten hours, 16 windows at a time."""
    settings = settings_of(tiny_encoder, tiny_llm, encoder_batch_windows=16)
    settings["llm"]["init_args"]["context_length"] = 100_000
    return write_run(tmp_path_factory.mktemp("long"), settings)


@pytest.fixture(scope="module")
def lean_run(tmp_path_factory, tiny_encoder, tiny_llm):
    """Return one at the rate of the real thing, 1.67 tokens/s, with as little in it as can be: one layer, no adapters.

    What is held for the audio's length does not depend on the layers, and hours take seconds.
    """
    settings = settings_of(tiny_encoder, tiny_llm, encoder_batch_windows=20, window_seconds=1.8, tokens_per_window=3)
    settings["encoder"]["init_args"] |= {"initialize": "random", "overrides": {"encoder_layers": 1}}
    lean = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "num_attention_heads": 1}
    settings["llm"]["init_args"] |= {"initialize": "random", "overrides": lean, "lora": None, "context_length": 100_000}
    settings["train_parts"] = ["abstractor", "projector"]
    return write_run(tmp_path_factory.mktemp("lean"), settings)


SCRIPT = """
import sys
import fastslm
from test_length import Noise

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

model = fastslm.load(sys.argv[1], device="cpu")
caches, new_cache = [], model.path.llm.new_cache
model.path.llm.new_cache = lambda: caches.append(new_cache()) or caches[-1]
model.transcribe(Noise(2), max_new_tokens=4)  # what is made once
for minutes in map(float, sys.argv[2:]):
    caches.clear()
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
    model.transcribe(Noise(minutes), max_new_tokens=4)
    held = sum(2 * layer.keys.nbytes for layer in caches[0].layers_of.layers)
    print(status("VmHWM") - before - held / 1024, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_beyond_weights_and_kv_cache_is_flat_from_ten_minutes_to_eight_hours(lean_run):
    # The C library hands large blocks back at once, so that resident memory is what is in use.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment |= {"MALLOC_TRIM_THRESHOLD_": "0", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", SCRIPT, str(lean_run), "10", "60", "480"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr
    peaks = list(map(float, done.stdout.split()))
    assert peaks[0] > 10_000, "kibibytes: too little to tell anything"
    assert [peak / peaks[0] for peak in peaks] == pytest.approx([1.0, 1.0, 1.0], abs=0.1), f"{peaks} KiB"


def seconds_of(model, minutes):
    begin = time.thread_time()
    for _ in encode(model.path, [Noise(minutes)]):
        pass
    return time.thread_time() - begin


@pytest.mark.slow
def test_encoding_and_compressing_take_time_in_proportion_to_the_audio(long_run):
    long_model = fastslm.load(long_run, device="cpu")
    torch.set_num_threads(1)
    lengths = [5, 10, 20, 40, 80]
    seconds_of(long_model, 2)
    for _ in range(3):  # a busy machine; the work itself is the same each time
        times = np.min([[seconds_of(long_model, minutes) for minutes in lengths] for _ in range(2)], axis=0)
        exponent = np.polyfit(np.log(lengths), np.log(times), 1)[0]
        if abs(exponent - 1) <= 0.05:
            break
    assert exponent == pytest.approx(1.0, abs=0.05)
