"""Trains the small Whisper-architecture encoder that the package ships, with CTC over letters and over words.

    python -m pretraining.encoder --config pretraining/encoder.yaml

Takes about 40 minutes on 2 cores. Data: the training voices of the embedded corpus, nothing else; each utterance is
heard through random gain, noise, band limits and a filter, so that the frames do not depend on espeak-ng's own sound.
"""

import glob
import io
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as HFWhisperEncoder

from fastslm.datamodules._spoken_numbers import CorpusSettings, build_corpus, number_words
from fastslm.mel import SAMPLE_RATE_HZ, LogMel, pad_with_context
from fastslm.modules.encoders.whisper import WhisperEncoder

LETTERS = " abcdefghijklmnopqrstuvwxyz"  # class i + 1; class 0 is CTC's blank
WORDS = sorted({word for number in range(100) for word in number_words(number).split()})


class Windows:
    """Random windows of the corpus with the words that lie whole inside them."""

    def __init__(self, folder: Path, split: str, window_seconds: float) -> None:
        self.num_samples = int(window_seconds * SAMPLE_RATE_HZ)
        self.audio: list[npt.NDArray[np.int16]] = []
        self.segments: list[list[tuple[int, int, str]]] = []
        for path in sorted(glob.glob(str(folder / f"{split}-*.tar"))):
            with tarfile.open(path) as tar:
                for member in tar:
                    data = tar.extractfile(member).read()
                    if member.name.endswith(".flac"):
                        self.audio.append(soundfile.read(io.BytesIO(data), dtype="int16")[0])
                    else:
                        rows = json.loads(data)["segments"]
                        scale = SAMPLE_RATE_HZ
                        self.segments.append(
                            [(int(r["start"] * scale), int(r["end"] * scale), r["text"]) for r in rows]
                        )
        self.weights = np.array([len(a) for a in self.audio], float)
        self.weights /= self.weights.sum()

    def draw(self, rng: np.random.Generator, augment: bool) -> tuple[Tensor, str]:
        """Return one window ``[N]`` float32 and its text."""
        index = rng.choice(len(self.audio), p=self.weights)
        audio = self.audio[index]
        start = int(rng.integers(0, max(1, len(audio) - self.num_samples // 2)))
        window = audio[start : start + self.num_samples].astype(np.float32) / 32768.0
        words = [t for a, b, t in self.segments[index] if a >= start - 800 and b <= start + len(window) + 800]
        window = np.pad(window, (0, self.num_samples - len(window)))
        if augment:
            window = colour(window, rng)
        return torch.from_numpy(window), " ".join(words)


def colour(window: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return the window heard through a random channel: smooth random filter, band limit, noise, gain, echo."""
    spectrum = np.fft.rfft(window)
    hz = np.linspace(0, SAMPLE_RATE_HZ / 2, len(spectrum))
    knots = np.linspace(0, SAMPLE_RATE_HZ / 2, 8)
    gain_db = np.interp(hz, knots, rng.uniform(-9, 9, len(knots)))
    if rng.random() < 0.4:  # telephone and other narrow recordings
        gain_db = gain_db - 60.0 * (hz > rng.uniform(3300, 7000))
    if rng.random() < 0.3:
        gain_db = gain_db - 40.0 * (hz < rng.uniform(80, 300))
    window = np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(window))
    if rng.random() < 0.4:
        delay, level = int(rng.integers(160, 1600)), rng.uniform(0.1, 0.4)
        window[delay:] += level * window[:-delay]
    level = 10 ** rng.uniform(-4.5, -1.7)
    noise = rng.standard_normal(len(window))
    if rng.random() < 0.5:
        noise = np.cumsum(noise) * 0.05
        noise -= np.convolve(noise, np.ones(400) / 400, "same")
    window = window / max(float(np.abs(window).max()), 1e-3) + level * noise
    return (window * 10 ** rng.uniform(-1.5, 0.0)).astype(np.float32)


class Heads(nn.Module):
    """CTC classes from frames: letters for detail, words for what the letters come to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.letters = nn.Linear(width, len(LETTERS) + 1)
        self.words = nn.Linear(width, len(WORDS) + 1)

    def loss(self, frames: Tensor, texts: list[str]) -> Tensor:
        """Return the mean CTC loss of both."""
        letters = [[LETTERS.index(c) + 1 for c in text] for text in texts]
        words = [[WORDS.index(w) + 1 for w in text.split()] for text in texts]
        return 0.5 * (_ctc(self.letters(frames), letters) + _ctc(self.words(frames), words))

    def read(self, frames: Tensor) -> tuple[list[str], list[str]]:
        """Return the best paths as texts, by letters and by words."""
        letters = ["".join(LETTERS[c - 1] for c in path) for path in _best(self.letters(frames))]
        return letters, [" ".join(WORDS[c - 1] for c in path) for path in _best(self.words(frames))]


def _ctc(logits: Tensor, targets: list[list[int]]) -> Tensor:
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(
        log_probs,
        torch.tensor([c for target in targets for c in target]),
        torch.full((len(targets),), log_probs.shape[0]),
        torch.tensor([len(t) for t in targets]),
        zero_infinity=True,
    )


def _best(logits: Tensor) -> list[list[int]]:
    return [[c for c in torch.unique_consecutive(row).tolist() if c] for row in logits.argmax(-1)]


def word_error_rate(references: list[str], hypotheses: list[str]) -> float:
    """Return the corpus word error rate."""
    from rapidfuzz.distance import Levenshtein

    errors = sum(Levenshtein.distance(r.split(), h.split()) for r, h in zip(references, hypotheses, strict=True))
    return errors / sum(len(r.split()) for r in references)


def train(
    out: Path = Path("fastslm/demo/encoder"),
    cache: Path = Path("~/.cache/fastslm"),
    window_seconds: float = 6.0,
    width: int = 128,
    layers: int = 3,
    heads: int = 4,
    ffn_width: int = 512,
    steps: int = 6000,
    batch_windows: int = 32,
    learning_rate: float = 2e-3,
    max_minutes: float = 60.0,
    seed: int = 0,
    init_from: Path | None = None,
) -> None:
    """Train the shipped encoder and save it as a transformers folder.

    Args:
        out: where config.json and model.safetensors go.
        cache: where the embedded corpus is kept.
        window_seconds: window of training and most positions of the encoder.
        width: features of a frame.
        layers: transformer layers.
        heads: attention heads of a layer.
        ffn_width: features inside the feed-forward part.
        steps: optimizer steps.
        batch_windows: windows in a step.
        learning_rate: peak of the schedule (linear warm-up, cosine to zero).
        max_minutes: the schedule is shortened to end in time.
        seed: of weights and of everything drawn.
        init_from: folder of an encoder to go on from; null starts from nothing.
    """
    torch.manual_seed(seed)
    folder = build_corpus(cache.expanduser(), CorpusSettings(train_recordings=960, seed=1000))
    data = {split: Windows(folder, split, window_seconds) for split in ("train", "dev")}
    config = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=ffn_width,
        num_mel_bins=80,
        max_source_positions=int(window_seconds * 50),
        decoder_layers=0,
        decoder_attention_heads=heads,
        decoder_ffn_dim=ffn_width,
        dropout=0.05,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    config._attn_implementation = "sdpa"
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out)
    encoder = WhisperEncoder(str(out if init_from is None else init_from), initialize="random")
    encoder.whisper = HFWhisperEncoder(config)
    positions = torch.arange(config.max_source_positions)[:, None]
    rates = torch.exp(-torch.arange(width // 2) * np.log(10000.0) / (width // 2 - 1))
    encoder.whisper.embed_positions.weight.data = torch.cat([(positions * rates).sin(), (positions * rates).cos()], 1)
    if init_from is not None:
        encoder.whisper = HFWhisperEncoder.from_pretrained(init_from, attn_implementation="sdpa")
    encoder.train()
    heads = Heads(width)
    mel = LogMel(80)
    parameters = [p for m in (encoder, heads) for p in m.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.2f} M encoder parameters")
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    rng = np.random.default_rng(seed)
    begin, progress, running = time.time(), 0.0, 0.0
    for step in range(steps):
        progress = max(step / steps, (time.time() - begin) / 60 / max_minutes)
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 300) * 0.5 * (1 + np.cos(np.pi * progress))
        pairs = [data["train"].draw(rng, augment=rng.random() < 0.75) for _ in range(batch_windows)]
        loss = heads.loss(frames_of(encoder, mel, [audio for audio, _ in pairs]), [text for _, text in pairs])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running = 0.98 * running + 0.02 * loss.item() if step else loss.item()
        if step % 250 == 0 or step == steps - 1:
            print(
                f"step {step} {progress:.0%} loss {running:.3f} {evaluate(encoder, heads, mel, data['dev'])}",
                flush=True,
            )
            encoder.whisper.save_pretrained(out)
    print(evaluate(encoder, heads, mel, data["dev"], 512))
    encoder.whisper.save_pretrained(out)


def frames_of(encoder: WhisperEncoder, mel: LogMel, windows: list[Tensor]) -> Tensor:
    """Return the frames ``[W, F, D_enc]`` of windows of samples."""
    with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the processor knows bf16
        return encoder(mel(torch.stack([pad_with_context(window, len(window)) for window in windows]))).float()


@torch.no_grad()
def evaluate(encoder: WhisperEncoder, heads: Heads, mel: LogMel, dev: Windows, count: int = 96) -> str:
    """Return the word error rates on held-out voices, clean and coloured, by letters and by words, as text."""
    encoder.eval()
    report = []
    for augment in (False, True):
        rng = np.random.default_rng(1)
        pairs = [dev.draw(rng, augment) for _ in range(count)]
        frames = frames_of(encoder, mel, [audio for audio, _ in pairs])
        rates = [word_error_rate([text for _, text in pairs], read) for read in heads.read(frames)]
        report.append(f"{'coloured' if augment else 'clean'} WER {rates[0]:.1%} by letters, {rates[1]:.1%} by words")
    encoder.train()
    return "; ".join(report)


if __name__ == "__main__":
    auto_cli(train)
