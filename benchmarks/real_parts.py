"""Pretrained parts with a compressor between them: a training step by station, and transcription beside Whisper's own.

    python -m benchmarks.real_parts --encoder WHISPER --llm LLM RECORDING [RECORDING ...]

The training step is of the given recordings, one batch, with some three words a second as text: its audio seconds per
second, and the share of each station. Then the same recordings are transcribed one by one, each 30 s at a time by
transformers' own Whisper (greedy, with the decoder of the same weights), and by encoder, compressor and LLM, which
generate as many tokens as Whisper did: seconds of both by turns, and their ratio. Compressor and LoRA are untrained:
what is measured is the work, not the text. Words, errors and all that follows from training: ``fastslm evaluate``.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, WhisperForConditionalGeneration

from benchmarks.inference import decode
from benchmarks.train_step import RATE, batch_of, measure_step, print_step, put_together
from fastslm.inference.audio import FileSource
from fastslm.inference.engine import read
from fastslm.inference.model import Model
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.model import SpeechLM
from fastslm.path.settings import SpeechSettings

START = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
#: configs/hta.yaml
HTA_OPTIONS: dict[str, Any] = {"pooled_residual": "attention", "distance_bias": True}


def build(encoder_folder: str, llm_folder: str) -> SpeechLM:
    """Return encoder, HTA as configured and LLM with LoRA, at 1.67 tokens per second."""
    encoder, llm = WhisperEncoder(encoder_folder), CausalLM(llm_folder, lora=LoRA())
    settings = SpeechSettings(window_seconds=30.0, tokens_per_window=50, encoder_batch_windows=4)
    return put_together(encoder, llm, settings, ("abstractor", "projector", "lora"), HTA_OPTIONS)


def samples_of(path: Path) -> np.ndarray:
    """Return a recording, int16 at 16 kHz."""
    return np.concatenate(list(FileSource(path).blocks()))


def whispered(whisper: WhisperForConditionalGeneration, processor: Any, audio: np.ndarray) -> int:
    """Return the tokens that Whisper generates for a recording, 30 s at a time."""
    num_tokens = 0
    for begin in range(0, len(audio), 30 * RATE):
        part = audio[begin : begin + 30 * RATE].astype(np.float32) / 32768
        features = processor(part, sampling_rate=RATE, return_tensors="pt").input_features
        # As ids, since folders without the lists of languages do not take them by name.
        start = processor.tokenizer.convert_tokens_to_ids(START)
        limits = {"do_sample": False, "num_beams": 1, "max_new_tokens": 440}
        ids = whisper.generate(features, decoder_input_ids=torch.tensor([start]), **limits)
        num_tokens += int((ids != whisper.config.eos_token_id).sum())
    return num_tokens


def generate(model: Model, path: Path, num_new: int) -> None:
    """Encode a recording, read it and generate exactly ``num_new`` tokens."""
    cache = model.new_memory().cache
    embeddings = model.prompt_embeds(path)
    with torch.inference_mode():
        decode(model, cache, read(model.path.llm, embeddings[None], cache), num_new)


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of an action and its result."""
    begin = time.perf_counter()
    result = action()
    return time.perf_counter() - begin, result


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, metavar="FOLDER", help="a Whisper model with its decoder")
    parser.add_argument("--llm", required=True, metavar="FOLDER")
    parser.add_argument("--repeats", type=int, default=3, help="steps, and rounds over the recordings")
    parser.add_argument("recordings", nargs="+", type=Path, metavar="RECORDING")
    options = parser.parse_args()

    path = build(options.encoder, options.llm)
    lengths = [len(samples_of(recording)) / RATE for recording in options.recordings]
    batch = batch_of(path, lengths)
    real = np.concatenate([samples_of(recording) for recording in options.recordings])
    batch = replace(batch, audio=torch.from_numpy(real))
    print_step(measure_step(path, batch, options.repeats))

    model = Model(path.requires_grad_(False).eval(), "untrained")
    whisper = WhisperForConditionalGeneration.from_pretrained(options.encoder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(options.encoder, trust_remote_code=False)
    seconds, num_tokens = {"whisper": 0.0, "ours": 0.0}, 0
    for turn in range(options.repeats + 1):  # the first round warms up
        for recording in options.recordings:
            theirs, count = timed(partial(whispered, whisper, processor, samples_of(recording)))
            mine, _ = timed(partial(generate, model, recording, count))
            if turn:
                seconds["whisper"] += theirs
                seconds["ours"] += mine
                num_tokens += count
    audio = sum(lengths) * options.repeats
    print(f"transcription: {audio:.0f} s of audio, {num_tokens} tokens by each")
    for name, spent in seconds.items():
        print(f"  {name:8} {spent:7.2f} s   {audio / spent:5.1f} audio seconds per second")
    print(f"  ours / whisper {seconds['ours'] / seconds['whisper']:.2f}")


if __name__ == "__main__":
    main()
