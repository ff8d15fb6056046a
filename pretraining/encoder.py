"""Trains the small Whisper-architecture encoder that the package ships, with CTC over letters and over words.

    python -m pretraining.encoder --config pretraining/encoder.yaml
    python -m pretraining.encoder --config pretraining/encoder.yaml --init_from fastslm/demo/encoder \
        --learning_rate 0.0012 --max_minutes 30

Data: the training voices of an embedded corpus of its own, nothing else. Every window goes through a random vocal
tract, tempo, channel and noise, all applied to its mel spectrogram, so that the frames do not depend on espeak-ng's
own sound and held-out voices are not far away.
"""

import io
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as HFWhisperEncoder
from transformers.models.whisper.modeling_whisper import sinusoids

from fastslm.datamodules.spoken.numbers import CorpusSettings, build_corpus, number_words
from fastslm.modules.encoders.mel import LogMel, pad_with_context
from fastslm.modules.encoders.whisper import WhisperEncoder

LETTERS = " abcdefghijklmnopqrstuvwxyz"  # class i + 1; class 0 is CTC's blank
WORDS = sorted({word for number in range(100) for word in number_words(number).split()})
MEL_BINS, MEL_FRAMES_PER_SECOND = 80, 100
SLOWEST, FASTEST = 0.8, 1.25  # tempo: source frames for one frame


class Recordings:
    """The corpus as spectrograms of log10 mel power, and when each word is said."""

    def __init__(self, folder: Path, split: str) -> None:
        self.mels: list[Tensor] = []  # [M, T] float16
        self.words: list[list[tuple[float, str]]] = []  # middle of each word in mel frames, and the word
        mel = LogMel(MEL_BINS)
        for path in sorted(folder.glob(f"{split}-*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    data = tar.extractfile(member).read()
                    if member.name.endswith(".flac"):
                        audio = torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="int16")[0])
                        audio = pad_with_context(audio, len(audio) // 160 * 160)
                        self.mels.append(mel.log_power(audio[None])[0].half())
                    else:
                        self.words.append([w for row in json.loads(data)["segments"] for w in spread(row)])
        lengths = np.array([m.shape[1] for m in self.mels], float)
        self.shares = lengths / lengths.sum()

    def draw(self, rng: np.random.Generator, count: int, num_frames: int, augment: bool) -> tuple[Tensor, list[str]]:
        """Return normalised windows ``[count, M, num_frames]`` cut anywhere, and the words whose middle they hold."""
        longest = int(num_frames * FASTEST) + 2
        power = torch.full((count, MEL_BINS, longest), -10.0)
        tempo = np.exp(rng.uniform(np.log(SLOWEST), np.log(FASTEST), count)) if augment else np.ones(count)
        texts = []
        for i in range(count):
            recording = rng.choice(len(self.mels), p=self.shares)
            mel = self.mels[recording]
            start = int(rng.integers(0, max(1, mel.shape[1] - num_frames // 2)))
            chunk = mel[:, start : start + longest]
            power[i, :, : chunk.shape[1]] = chunk
            end = start + num_frames * tempo[i]
            texts.append(" ".join(word for middle, word in self.words[recording] if start <= middle < end))
        power = power[..., :num_frames] if not augment else colour(power, tempo, num_frames, rng)
        power = torch.maximum(power, power.amax((1, 2), keepdim=True) - 8.0)
        return (power + 4.0) / 4.0, texts


def spread(segment: dict) -> list[tuple[float, str]]:
    """Return the words of a spoken number with the middle of each in mel frames, by their share of the letters."""
    words = segment["text"].split()
    ends = np.cumsum([len(word) for word in words]) / sum(map(len, words))
    middles = ends - np.array([len(word) for word in words]) / sum(map(len, words)) / 2
    seconds = segment["start"] + middles * (segment["end"] - segment["start"])
    return [(float(s) * MEL_FRAMES_PER_SECOND, word) for s, word in zip(seconds, words, strict=True)]


def colour(power: Tensor, tempo: np.ndarray, num_frames: int, rng: np.random.Generator) -> Tensor:
    """Return log10 mel power ``[B, M, num_frames]`` at another tempo, from another vocal tract, channel and room."""
    count, num_bins, longest = power.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape))).float()

    # One resampling of the picture: time by the tempo, frequency by the vocal tract (a shift of the mel axis).
    stretch, shift = uniform(0.88, 1.12)[:, None], uniform(-2.0, 2.0)[:, None]
    rows = torch.arange(num_bins)[None] * stretch + shift
    columns = torch.arange(num_frames)[None] * torch.from_numpy(tempo).float()[:, None]
    grid = torch.stack(
        [
            (columns / (longest - 1) * 2 - 1)[:, None].expand(-1, num_bins, -1),
            (rows / (num_bins - 1) * 2 - 1)[:, :, None].expand(-1, -1, num_frames),
        ],
        dim=-1,
    )
    power = F.grid_sample(power[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
    # Channel: a smooth random filter, and for some a narrow band.
    power = power + F.interpolate(uniform(-0.9, 0.9, 1, 8), num_bins, mode="linear", align_corners=True)[:, 0, :, None]
    bins = torch.arange(num_bins)[None, :, None]
    power = power - 4.0 * ((bins > uniform(50, 78, 1, 1)) & (uniform(0, 1, 1, 1) < 0.4))
    power = power - 3.0 * ((bins < uniform(1, 6, 1, 1)) & (uniform(0, 1, 1, 1) < 0.3))
    # Noise: power of a random slope below the loudest, itself jittering.
    slope = uniform(-1.5, 0.5, 1, 1) * bins / num_bins
    level = power.amax((1, 2), keepdim=True) + uniform(-7.0, -2.0, 1, 1) + slope
    noise = level + 0.2 * torch.from_numpy(rng.standard_normal(power.shape, dtype=np.float32))
    noisy = torch.logaddexp(power * np.log(10), noise * np.log(10)) / np.log(10)
    untouched = uniform(0, 1, 1, 1) < 0.2
    return torch.where(untouched, power, noisy)


class Heads(nn.Module):
    """CTC classes from frames: letters for detail, words for what the letters come to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.letters = nn.Linear(width, len(LETTERS) + 1)
        self.words = nn.Linear(width, len(WORDS) + 1)

    def loss(self, frames: Tensor, texts: list[str], letters_weight: float) -> Tensor:
        """Return the weighted mean CTC loss of both."""
        letters = [[LETTERS.index(c) + 1 for c in text] for text in texts]
        words = [[WORDS.index(w) + 1 for w in text.split()] for text in texts]
        by_letters, by_words = _ctc(self.letters(frames), letters), _ctc(self.words(frames), words)
        return letters_weight * by_letters + (1 - letters_weight) * by_words

    def read(self, frames: Tensor) -> list[str]:
        """Return the best paths as texts, by words."""
        return [" ".join(WORDS[c - 1] for c in path) for path in _best(self.words(frames))]


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


def shortening_at(rng: np.random.Generator, progress: float) -> int:
    """Return by what a window is shortened: thirds of it first, later one in four.

    Few words leave CTC few alignments to choose from, so it finds the right one sooner.
    """
    return 3 if progress < 0.15 else int(rng.choice([1, 1, 1, 3]))


def train(
    out: Path = Path("fastslm/demo/encoder"),
    cache: Path = Path("~/.cache/fastslm"),
    window_seconds: float = 6.0,
    width: int = 128,
    layers: int = 4,
    heads: int = 2,
    ffn_width: int = 512,
    steps: int = 12000,
    batch_windows: int = 32,
    learning_rate: float = 2e-3,
    max_minutes: float = 60.0,
    init_from: Path | None = None,
    seed: int = 0,
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
        init_from: folder of an encoder with the same widths to go on from, at any window; null starts from nothing.
        seed: of weights and of everything drawn.
    """
    torch.manual_seed(seed)
    settings = CorpusSettings(
        train_recordings=960,
        dev_recordings=32,
        length_skew=1.0,
        min_pause_seconds=0.3,
        max_pause_seconds=1.6,
        repeats=True,
        seed=1000,
    )
    folder = build_corpus(cache.expanduser(), settings)
    data = {split: Recordings(folder, split) for split in ("train", "dev")}
    config = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=ffn_width,
        num_mel_bins=MEL_BINS,
        max_source_positions=int(window_seconds * 50),
        decoder_layers=0,
        decoder_attention_heads=heads,
        decoder_ffn_dim=ffn_width,
        dropout=0.0,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    config._attn_implementation = "eager"  # on a CPU, with heads this small, faster than sdpa's backward
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out)
    encoder = WhisperEncoder(str(out), initialize="random")
    encoder.whisper = HFWhisperEncoder(config)
    num_positions = config.max_source_positions
    positions = sinusoids(num_positions, width)
    if init_from is not None:
        known = HFWhisperEncoder.from_pretrained(init_from).state_dict()
        encoder.whisper.load_state_dict({k: v for k, v in known.items() if "embed_positions" not in k}, strict=False)
    encoder.train()
    ctc = Heads(width)
    parameters = [p for m in (encoder, ctc) for p in m.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.2f} M encoder parameters")
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    rng = np.random.default_rng(seed)
    num_frames = int(window_seconds * MEL_FRAMES_PER_SECOND)
    begin, running = time.time(), 0.0
    for step in range(steps):
        progress = max(step / steps, (time.time() - begin) / 60 / max_minutes)
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 300) * 0.5 * (1 + np.cos(np.pi * progress))
        shortening = shortening_at(rng, 1.0 if init_from else progress)
        mel, texts = data["train"].draw(rng, batch_windows * shortening, num_frames // shortening, augment=True)
        # Short windows stand anywhere among the positions, or the later ones would be new when whole windows come.
        start = int(rng.integers(0, num_positions - num_positions // shortening + 1))
        encoder.whisper.embed_positions.weight.data = positions.roll(-start, 0)
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the processor knows bf16
            frames = encoder._encode(mel).float()
        loss = ctc.loss(frames, texts, letters_weight=0.5 if progress < 0.7 else 0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running = 0.98 * running + 0.02 * loss.item() if step else loss.item()
        if step % 250 == 0:
            encoder.whisper.embed_positions.weight.data = positions
            report = evaluate(encoder, ctc, data["dev"], num_frames)
            print(f"step {step} {progress:.0%} loss {running:.3f} {report}", flush=True)
            encoder.whisper.save_pretrained(out)
    encoder.whisper.embed_positions.weight.data = positions
    print(evaluate(encoder, ctc, data["dev"], num_frames, 512))
    encoder.whisper.save_pretrained(out)


@torch.no_grad()
def evaluate(encoder: WhisperEncoder, ctc: Heads, dev: Recordings, num_frames: int, count: int = 64) -> str:
    """Return the word error rates on held-out voices, clean and coloured, as text."""
    encoder.eval()
    report = []
    for augment in (False, True):
        rng = np.random.default_rng(1)
        references, read = [], []
        for _ in range(count // 32):
            mel, texts = dev.draw(rng, 32, num_frames, augment)
            references += texts
            read += ctc.read(encoder._encode(mel))
        report.append(f"{'coloured' if augment else 'clean'} WER {word_error_rate(references, read):.1%}")
    encoder.train()
    return "; ".join(report)


if __name__ == "__main__":
    auto_cli(train)
