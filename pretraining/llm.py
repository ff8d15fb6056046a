"""Trains the small Qwen3-architecture LLM that the package ships: it never gets audio.

    python -m pretraining.llm
    python -m pretraining.llm --init_from fastslm/demo/llm --steps 1500 --learning_rate 1.5e-3 --noise 0.5

It learns what any language model brings along and an untrained one lacks: the chat template, the words of numbers, and
to write down in order what stands in its context. Where speech tokens will stand it is shown embeddings of numbers on
a grid of time, with an unknown vector where nobody speaks, mixed with other words and noise; and its own answer so far
comes with wrong and missing words, so that it learns to find its place again.
"""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fastslm.datamodules.spoken.numbers import draw_numbers, number_words
from fastslm.modules.llms.causal_lm import CausalLM
from fastslm.path.batch import Dialogue
from fastslm.path.loss import label_loss
from fastslm.path.prompt import Prompter, messages_of
from fastslm.path.splice import lay_out, splice

SLOT_SECONDS = 0.6  # 1.67 tokens per second
SILENCE = -1


def numbers_said(rng: np.random.Generator, count: int, replaced_share: float) -> Iterator[int]:
    """Yield numbers of a draw, a share of them replaced by others, so that some come twice or nearly so.

    Three in four replacements change or drop one of a number's two words, as a hearer does who errs.
    """
    previous = 0
    for value in itertools.islice(draw_numbers(rng, repeats=False), count):
        if rng.random() < replaced_share:
            tens, ones = value - value % 10, value % 10
            if tens >= 20 and ones and rng.random() < 0.75:
                value = int(rng.choice([tens, ones, tens + rng.integers(1, 10), 10 * rng.integers(2, 10) + ones]))
            else:
                value = int(rng.integers(0, 100))
        if previous >= 20 and previous % 10 == 0 and 0 < value < 10:
            value += 10  # "twenty" and "two" would read "twenty two"
        yield value
        previous = value


def time_grid(
    rng: np.random.Generator, num_numbers: int, replaced_share: float
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return numbers in words, and for each slot of time the place of its number among them, or SILENCE."""
    texts: list[str] = []
    slots: list[int] = []
    now = rng.uniform(0.0, 1.0)
    seconds, pause_scale, stutter_share = rng.uniform(0.4, 1.0), rng.uniform(0.7, 2.0), rng.uniform(0.0, 0.5)
    for value in numbers_said(rng, num_numbers, replaced_share):
        text = number_words(value)
        again = bool(slots) and slots[-1] != SILENCE and texts[slots[-1]] == text  # a pause tells them apart
        slot = max(len(slots) + again, round(now / SLOT_SECONDS + rng.normal(0.0, 0.4)))
        slots += [SILENCE] * (slot - len(slots)) + [len(texts)] * (1 + (rng.random() < stutter_share))
        texts.append(text)
        now = max(now + seconds + pause_scale * rng.uniform(0.4, 1.4), (len(slots) - 1) * SLOT_SECONDS)
    return texts, np.array(slots + [SILENCE] * int(rng.integers(0, 3)))


def speech_like(rng: np.random.Generator, words: Tensor, slots: npt.NDArray[np.int64], noise: float) -> Tensor:
    """Return what stands for speech tokens ``[T, D]``.

    Args:
        rng: draws the noise.
        words: embeddings of the numbers ``[L, D]``.
        slots: place of each slot's number, or SILENCE ``[T]``.
        noise: 0 shows the embeddings themselves, 1 the most disturbed ones.
    """
    norm = words.norm(dim=-1).mean().detach()
    width = words.shape[-1]

    def gaussian(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) / width**0.5

    words = F.normalize(words, dim=-1)
    with_silence = torch.cat([words, F.normalize(gaussian(1, width), dim=-1)])  # SILENCE is the last row
    shown = with_silence[torch.from_numpy(slots)]
    near = np.roll(slots, rng.choice([-1, 1]))
    others = np.where(rng.random(len(slots)) < 0.5, near, rng.integers(-1, len(words), len(slots)))
    others = with_silence[torch.from_numpy(others)]
    share = torch.from_numpy(rng.uniform(0.0, 0.45, len(slots)) * (rng.random(len(slots)) < 0.5)).float()[:, None]
    mixed = torch.lerp(shown, others, noise * share) + noise * float(rng.uniform(0.0, 0.7)) * gaussian(*shown.shape)
    return F.normalize(mixed, dim=-1) * norm * float(np.exp(noise * rng.uniform(-0.5, 0.5)))


def misread(rng: np.random.Generator, dialogue: Dialogue, share: float) -> Dialogue:
    """Return the dialogue with words of the answer's own past wrong or missing; the labels stay right."""
    begin, end = dialogue.num_prompt_ids, len(dialogue.input_ids) - 1
    answer = dialogue.input_ids[begin:end]
    inputs, labels = [], []
    position = 0
    while position < len(answer):
        labels.append(answer[position])
        kind = rng.random()
        if kind < share:
            inputs.append(rng.choice(answer))
        elif kind < 1.3 * share and position + 1 < len(answer):
            position += 1
            inputs.append(answer[position])
        else:
            inputs.append(answer[position])
        position += 1
    return Dialogue(
        np.concatenate([dialogue.input_ids[:begin], np.array(inputs, np.int64), dialogue.input_ids[end:]]),
        np.concatenate([dialogue.labels[:begin], np.array(labels, np.int64), dialogue.labels[end:]]),
        begin,
        dialogue.reference,
        dialogue.task,
    )


def lay_out_embeddings(llm: CausalLM) -> None:
    """Fix the embeddings, of norm 1: "forty two" lies between "forty" and "two".

    Large LLMs have such geometry from their text. Here it makes a hundred classes as easy to tell as their 28 words.
    """
    table = llm.causal_lm.get_input_embeddings().weight.requires_grad_(False)
    table.copy_(F.normalize(torch.randn(table.shape), dim=-1))

    for tens in range(20, 100, 10):
        for ones in range(1, 10):
            parts = [table[row_of(llm, number_words(value))] for value in (tens, ones)]
            table[row_of(llm, number_words(tens + ones))] = F.normalize(parts[0] + parts[1], dim=-1)


def row_of(llm: CausalLM, number: str) -> int:
    """Return the row of a number in the table of embeddings."""
    return int(llm.tokenizer.convert_tokens_to_ids("Ġ" + number.replace(" ", "Ġ")))


class Exercises:
    """Draws dialogues and what stands for their speech tokens."""

    def __init__(self, llm: CausalLM, rng: np.random.Generator) -> None:
        self.llm, self.rng = llm, rng
        self.replaced_share = self.misread_share = 0.0
        self.prompter = Prompter(llm.tokenizer)

    def draw(self, num_numbers: int, noise: float, misread_share: float) -> tuple[Dialogue, Tensor]:
        """Return a dialogue and its speech-like embeddings ``[T, D]``."""
        texts, slots = time_grid(self.rng, num_numbers, self.replaced_share * self.rng.random())
        dialogue = self.prompter.dialogue(messages_of({"text": " ".join(texts)}), 1, "asr")
        ids = torch.from_numpy(dialogue.input_ids[dialogue.num_prompt_ids : -1])
        assert len(ids) == len(texts), "a number is not one token"
        shown = speech_like(self.rng, self.llm.embed(ids), slots, noise)
        return misread(self.rng, dialogue, misread_share), shown

    def batches(self, num_numbers: int, count: int, noise: float) -> tuple[list[Dialogue], Tensor, list[Tensor]]:
        """Return ``count`` dialogues, all embeddings in one, and each one's rows."""
        drawn = [
            self.draw(
                max(1, int(num_numbers * self.rng.uniform(0.7, 1.0))),
                noise,
                noise * self.rng.uniform(0.0, self.misread_share) * (self.rng.random() < 0.6),
            )
            for _ in range(count)
        ]
        rows, start = [], 0
        for _, shown in drawn:
            rows.append(np.arange(start, start + len(shown)))
            start += len(shown)
        return [d for d, _ in drawn], torch.cat([s for _, s in drawn]), rows

    def logits_and_labels(self, num_numbers: int, count: int, noise: float) -> tuple[Tensor, Tensor]:
        """Return logits at label positions and their labels."""
        dialogues, speech, rows = self.batches(num_numbers, count, noise)
        layout = lay_out(dialogues, rows, self.prompter.audio_id)
        embeddings = splice(self.llm.embed(layout.input_ids), speech, layout.source)
        return self.llm(embeddings, layout.attention_mask, layout.predicting), layout.labels

    @torch.no_grad()
    def word_error_rate(self, num_numbers: int, count: int, noise: float) -> float:
        """Return the word error rate of what the LLM writes by itself."""
        from fastslm.metrics import ErrorRate

        dialogues, speech, rows = self.batches(num_numbers, count, noise)
        layout = lay_out(dialogues, rows, self.prompter.audio_id, prompt_only=True)
        embeddings = splice(self.llm.embed(layout.input_ids), speech, layout.source)
        mask = torch.ones_like(layout.source) if layout.attention_mask is None else layout.attention_mask
        answers = self.llm.generate(embeddings, mask, 16 + 3 * num_numbers, self.prompter.stop_ids)
        texts = self.llm.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return ErrorRate("word").over([d.reference for d in dialogues], texts)


def lengths(rng: np.random.Generator, longest: int) -> Iterator[int]:
    """Yield how many numbers the dialogues of a step hold at most, short ones as often as long ones."""
    while True:
        yield (
            int(np.exp(rng.uniform(np.log(2), np.log(longest + 1))))
            if rng.random() < 0.5
            else int(rng.integers(longest // 2, longest + 1))
        )


def train(
    folder: Path = Path("fastslm/demo/llm"),
    out: Path | None = None,
    layers: int = 4,
    steps: int = 3300,
    batch_tokens: int = 6000,
    max_numbers: int = 60,
    learning_rate: float = 3e-3,
    max_minutes: float = 90.0,
    replaced_share: float = 0.4,
    noise: float = 0.8,
    misread_share: float = 0.1,
    init_from: Path | None = None,
    seed: int = 0,
) -> None:
    """Train the shipped LLM and save it as a transformers folder.

    Args:
        folder: config.json and tokenizer.
        out: where config.json and model.safetensors go; null means ``folder``.
        layers: transformer layers.
        steps: optimizer steps.
        batch_tokens: about how many positions a step holds.
        max_numbers: most numbers of a dialogue, reached after a third of the schedule.
        learning_rate: peak of the schedule (linear warm-up, cosine to zero).
        max_minutes: the schedule is shortened to end in time.
        replaced_share: largest share of a dialogue's numbers that may have come before, reached after half of it.
        misread_share: largest share of an answer's own past that is shown wrong or missing.
        noise: how disturbed what stands for speech tokens is at the end, 0 to 1.
        init_from: folder of an LLM to go on from, with the hardest dialogues from the start; null starts anew.
        seed: of weights and of everything drawn.
    """
    torch.manual_seed(seed)
    out = out or folder
    overrides = {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
    llm = CausalLM(str(folder), initialize="random", overrides=overrides, attention="eager")
    llm.load()
    if init_from is None:
        lay_out_embeddings(llm)
    else:
        llm.causal_lm.load_state_dict(
            AutoModelForCausalLM.from_pretrained(init_from, trust_remote_code=False).state_dict()
        )
        llm.causal_lm.get_input_embeddings().weight.requires_grad_(False)
    rng = np.random.default_rng(seed)
    exercises = Exercises(llm, rng)
    exercises.misread_share = misread_share
    print(f"{sum(p.numel() for p in llm.parameters()) / 1e6:.2f} M parameters")
    trained = [p for p in llm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    begin = time.time()
    running = accuracy = 0.0
    for step in range(steps):
        progress = max(step / steps, (time.time() - begin) / 60 / max_minutes)
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 200) * 0.5 * (1 + np.cos(np.pi * progress))
        # From short, clean and unambiguous to long, noisy and ambiguous: copying has to be found first.
        difficulty = 1.0 if init_from else progress
        size = next(lengths(rng, max(8, int(max_numbers * min(1.0, difficulty * 3)))))
        shown_noise = noise * float(np.clip((difficulty - 0.15) / 0.3, 0.0, 1.0))
        exercises.replaced_share = replaced_share * float(np.clip((difficulty - 0.2) / 0.3, 0.0, 1.0))
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the processor knows bf16
            logits, labels = exercises.logits_and_labels(size, max(4, batch_tokens // (30 + 5 * size)), shown_noise)
        loss = label_loss(logits, labels) / len(labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        right = (logits.argmax(-1) == labels).float().mean().item()
        running, accuracy = 0.95 * running + 0.05 * loss.item(), 0.95 * accuracy + 0.05 * right
        if step % 100 == 0:
            print(
                f"step {step} {progress:.0%} noise {shown_noise:.2f} loss {running:.4f} right {accuracy:.2%}",
                flush=True,
            )
        if step % 500 == 499:
            print(f"  WER of 40 numbers without noise {exercises.word_error_rate(40, 16, 0.0):.1%}", flush=True)
            llm.causal_lm.save_pretrained(out)
    llm.causal_lm.save_pretrained(out)
    for share in (0.0, 0.2, 0.4):
        exercises.replaced_share = share
        for shown_noise in (0.0, 0.5):
            rate = exercises.word_error_rate(50, 32, shown_noise)
            print(f"50 numbers, up to {share:.0%} replaced, noise {shown_noise}: WER {rate:.1%}", flush=True)


if __name__ == "__main__":
    auto_cli(train)
