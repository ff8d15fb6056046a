"""Trains the small Qwen3-architecture LLM that the package ships: on text alone, it never hears anything.

    python -m pretraining.llm

Takes 12 minutes on 2 cores. It learns what any language model brings along and an untrained one lacks: the
chat template, the words of numbers, and to write down in order what stands in its context. The input is a line of
number words with pause marks and stutters between them, the answer is the same words alone.
"""

import time
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from fastslm.batch import Dialogue
from fastslm.datamodules._spoken_numbers import number_words
from fastslm.loss import label_loss
from fastslm.modules.llms.causal_lm import CausalLM
from fastslm.prompt import Prompter
from fastslm.splice import lay_out

PAUSES = (" .", " ,", " -")


def draw(rng: np.random.Generator, num_numbers: int, prompter: Prompter) -> Dialogue:
    """Return one dialogue: noisy words in, words out."""
    words = " ".join(number_words(int(n)) for n in rng.integers(0, 100, num_numbers)).split()
    if rng.random() < 0.3:  # not only numbers as they are said, also their words in any order
        words = [words[i] for i in rng.permutation(len(words))]
    pause_share, stutter_share = rng.uniform(0.0, 0.7), rng.uniform(0.0, 0.4)
    heard = ""
    for word in words:
        while rng.random() < pause_share:
            heard += str(rng.choice(PAUSES))
        heard += f" {word}" * (2 if rng.random() < stutter_share else 1)
    question = f"<|audio_bos|>{heard}<|audio_eos|>\nTranscribe the audio clip into text."
    if rng.random() < 0.8:
        question = "<|ASR|>" + question
    return prompter.dialogue(
        [{"role": "user", "content": question}, {"role": "assistant", "content": " ".join(merge(words, heard))}],
        0,
        "asr",
    )


def merge(words: list[str], heard: str) -> list[str]:
    """Return the words to write: a stutter is written once, so a word really said twice in a row is said apart."""
    tokens, written = heard.split(), []
    for previous, token in zip(["", *tokens], tokens, strict=False):
        if token not in {p.strip() for p in PAUSES} and token != previous:
            written.append(token)
    return written


def logits_and_labels(llm: CausalLM, prompter: Prompter, dialogues: list[Dialogue]) -> tuple[Tensor, Tensor]:
    """Return logits at label positions and their labels."""
    layout = lay_out(dialogues, [], prompter.audio_id)
    embeddings = llm.embed(layout.input_ids)[layout.source]
    return llm(embeddings, layout.attention_mask, layout.predicting), layout.labels


def train(
    folder: Path = Path("fastslm/demo/llm"),
    out: Path | None = None,
    steps: int = 3000,
    batch_tokens: int = 4000,
    max_numbers: int = 90,
    learning_rate: float = 3e-3,
    max_minutes: float = 12.0,
    seed: int = 0,
) -> None:
    """Train the shipped LLM and save it as a transformers folder.

    Args:
        folder: config.json and tokenizer.
        out: where model.safetensors goes; null means ``folder``.
        steps: optimizer steps.
        batch_tokens: about how many positions a step holds.
        max_numbers: most numbers of a dialogue, reached after a third of the schedule.
        learning_rate: peak of the schedule (linear warm-up, cosine to zero).
        max_minutes: the schedule is shortened to end in time.
        seed: of weights and of everything drawn.
    """
    torch.manual_seed(seed)
    out = out or folder
    llm = CausalLM(str(folder), initialize="random")
    llm.load()
    prompter = Prompter(llm.tokenizer)
    print(f"{sum(p.numel() for p in llm.parameters()) / 1e6:.2f} M parameters")
    optimizer = torch.optim.AdamW(llm.parameters(), learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    rng = np.random.default_rng(seed)
    begin = time.time()
    running = accuracy = 0.0
    for step in range(steps):
        progress = max(step / steps, (time.time() - begin) / 60 / max_minutes)
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 200) * 0.5 * (1 + np.cos(np.pi * progress))
        longest = max(8, int(max_numbers * min(1.0, progress * 3)))
        size = int(rng.integers(2, longest + 1))
        count = max(4, batch_tokens // (30 + 6 * size))
        dialogues = [draw(rng, max(1, int(size * rng.uniform(0.7, 1.0))), prompter) for _ in range(count)]
        logits, labels = logits_and_labels(llm, prompter, dialogues)
        loss = label_loss(logits, labels) / len(labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        right = (logits.argmax(-1) == labels).float().mean().item()
        running, accuracy = 0.95 * running + 0.05 * loss.item(), 0.95 * accuracy + 0.05 * right
        if step % 100 == 0 or step == steps - 1:
            print(
                f"step {step} {progress:.0%} numbers <= {longest} loss {running:.4f} right {accuracy:.2%}", flush=True
            )
        if step % 500 == 499:
            llm.causal_lm.save_pretrained(out)
    llm.causal_lm.save_pretrained(out)
    CausalLM(str(folder), initialize="random").tokenizer.save_pretrained(out)  # without the added tokens


if __name__ == "__main__":
    auto_cli(train)
