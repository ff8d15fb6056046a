"""Using a model, stage by stage, against the plain loop on the same weights: one hour of audio, and a batch of files.

    python -m benchmarks.inference
    python -m benchmarks.inference --minutes 5 --files 4        a quick look

Prints for one long recording the time and the peak memory of each stage (reading the file, encoder and compressor,
prefill, decoding), ours beside a plain loop's, and their ratios; then 16 short files in a batch against one by one.

The plain loop is what a short script does: the whole file decoded to floats, all its windows in one encoder batch, one
forward pass of the LLM over the whole prompt with logits at every position, and then token by token with transformers'
own cache. Weights are those of the embedded default with a random compressor, audio is noise, and both write the same
number of tokens: what is measured is the work, not the text. Everything is measured in one run, by turns; on a busy
machine look at the ratios only.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import DynamicCache

from benchmarks.train_step import RATE, Clock, build, noise, peak_mib
from fastslm.inference.audio import FileSource
from fastslm.inference.engine import read
from fastslm.inference.listening import encode
from fastslm.inference.model import Model
from fastslm.path.request import Request

STAGES = ("read", "encode", "prefill", "decode")


def ours(model: Model, path: Path, num_new: int, stages: Clock) -> None:
    """Blocks, groups of windows, chunks, a cache with room; the stages apart, so that each can be timed."""
    memory = model.new_memory()
    before, after = model.ids_of(Request())
    stages.run("read", lambda: sum(len(block) for block in FileSource(path).blocks()))
    tokens = stages.run("encode", lambda: torch.cat([h.tokens for h in encode(model.path, [FileSource(path)])]))
    stages.seconds["encode"] -= stages.seconds["read"]  # it reads the file again, block by block
    embeddings = torch.cat([memory.embed(before, model.device), tokens, memory.embed(after, model.device)])
    with torch.inference_mode():
        logits = stages.run("prefill", lambda: read(model.path.llm, embeddings[None], memory.cache))
        stages.run("decode", lambda: decode(model, memory.cache, logits, num_new))


def decode(model: Model, cache: Any, logits: torch.Tensor, num_new: int) -> None:
    """Write exactly ``num_new`` tokens."""
    for _ in range(num_new):
        logits = model.path.llm.extend(model.path.llm.embed(logits.argmax(-1)[:, None]), None, cache)


@torch.no_grad()
def plain(model: Model, path: Path, num_new: int, stages: Clock) -> None:
    """The whole file, all windows at once, logits of every position, a cache that is copied for each token."""
    listener, llm = model.path.listener, model.path.llm
    samples, _ = stages.run("read", lambda: soundfile.read(path, dtype="float32"))

    def encode() -> torch.Tensor:
        audio = torch.from_numpy((samples * 32767).astype(np.int16))
        windows = listener.cut([len(audio)])
        settings = listener.settings
        listener.settings = replace(settings, encoder_batch_windows=len(windows))
        try:
            speech = listener(audio, windows)
        finally:
            listener.settings = settings
        return speech.tokens.flatten(0, 1)[torch.from_numpy(speech.rows[0])]

    tokens = stages.run("encode", encode)
    before, after = (llm.embed(torch.tensor(ids)) for ids in model.ids_of(Request()))
    hf, cache = llm.causal_lm, DynamicCache(config=llm.causal_lm.config)
    embeddings = torch.cat([before, tokens, after])[None]
    output = stages.run("prefill", lambda: hf(inputs_embeds=embeddings, past_key_values=cache, use_cache=True))

    def write() -> None:
        logits = output.logits[:, -1]
        for _ in range(num_new):
            embedded = llm.embed(logits.argmax(-1)[:, None])
            logits = hf(inputs_embeds=embedded, past_key_values=cache, use_cache=True).logits[:, -1]

    stages.run("decode", write)


def one_recording(model: Model, minutes: float, num_new: int, folder: Path) -> None:
    """Print the stages of one long recording."""
    path = folder / "long.flac"
    soundfile.write(path, noise(60 * minutes), RATE)
    measured = {"ours": Clock(STAGES), "plain": Clock(STAGES)}
    memory = {}
    for name, action in (("ours", ours), ("plain", plain)):
        action(model, path, 2, Clock(STAGES))  # the first pass warms up
        action(model, path, num_new, measured[name])
        memory[name] = peak_mib(lambda action=action: action(model, path, 2, Clock(STAGES)))  # type: ignore[misc]
    print(f"one recording of {minutes:g} minutes, {num_new} new tokens:")
    print(f"  {'':8} {'ours':>9} {'plain':>9}   ours / plain")
    for stage in STAGES:
        mine, theirs = (measured[name].seconds[stage] for name in ("ours", "plain"))
        print(f"  {stage:8} {mine:8.2f}s {theirs:8.2f}s   {mine / theirs:6.2f}")
    mine, theirs = (sum(measured[name].seconds.values()) for name in ("ours", "plain"))
    print(f"  {'all':8} {mine:8.2f}s {theirs:8.2f}s   {mine / theirs:6.2f}    {60 * minutes / mine:.0f}x real time")
    mine, theirs = memory["ours"], memory["plain"]
    print(f"  {'memory':8} {mine:6.0f}MiB {theirs:6.0f}MiB   {mine / theirs:6.2f}")


def many_files(model: Model, num_files: int, num_new: int, folder: Path) -> None:
    """Print a batch against its files one by one."""
    paths = [folder / f"{i}.flac" for i in range(num_files)]
    for i, path in enumerate(paths):
        soundfile.write(path, noise(10 + i, i), RATE)

    def together() -> None:
        model.transcribe_batch(paths, max_new_tokens=num_new)

    def one_by_one() -> None:
        for path in paths:
            model.transcribe(path, max_new_tokens=num_new)

    seconds = {}
    for action in (together, one_by_one):
        action()
        begin = time.perf_counter()
        action()
        seconds[action] = time.perf_counter() - begin
    ratio = seconds[together] / seconds[one_by_one]
    print(f"{num_files} files of 10 to {9 + num_files} s, at most {num_new} new tokens each:")
    print(f"  together {seconds[together]:.2f}s, one by one {seconds[one_by_one]:.2f}s, ratio {ratio:.2f}")


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="length of the long recording")
    parser.add_argument("--files", type=int, default=16, help="files of the batch")
    parser.add_argument("--new-tokens", type=int, default=256, help="tokens generated for the long recording")
    options = parser.parse_args()
    path = build(encoder_batch_windows=32).requires_grad_(False).eval()
    path.llm.context_length = 1 << 20
    model = Model(path, "the embedded default with a random compressor")
    with tempfile.TemporaryDirectory() as folder:
        one_recording(model, options.minutes, options.new_tokens, Path(folder))
        many_files(model, options.files, 48, Path(folder))


if __name__ == "__main__":
    main()
