"""The embedded corpus: long recordings of spoken numbers, synthesised on this machine into WebDataset shards.

Light on purpose (no torch): the build's worker processes import this file alone.
"""

import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastslm.configuration.installed import installed
from fastslm.errors import DataError
from fastslm.files import whole_folder
from fastslm.processes.children import ProcessPool, shielded_context, without_script

SAMPLE_RATE_HZ = 16_000
#: Raised when the same recipe would give other samples: an old corpus is then built anew.
FORMAT_VERSION = 4
#: A recording of this length has room for the slowest voice's longest number.
MIN_SECONDS = 3.0

_CHANNEL_BANDS, _CHANNEL_TAPS = 8, 128

ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
_TRAIN_NAMES = (
    "f1 f2 f4 f5 m1 m2 m3 m4 m6 m8 Alex Alicia Andrea Andy Annie Denis Diogo Gene Henrique Hugo Lee Mario Michael"
    " Mike Nguyen Reed adam announcer aunty belinda benjamin boris caleb david ed edward grandma grandpa gustave ian"
    " john klatt2 klatt4 linda marcelo max miguel pablo paul pedro quincy rob robert shelby steph steph3 travis"
)
_DEV_NAMES = "f3 m5 m7 anika antonio iven3 klatt3 Jacky norbert michel steph2 victor"
TRAIN_VOICES = tuple(_TRAIN_NAMES.split())
#: Held out whole: no accent, rate or pitch of these occurs in training.
DEV_VOICES = tuple(_DEV_NAMES.split())

_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_FROM_TWENTY = "twenty thirty forty fifty sixty seventy eighty ninety"
_ONES, _TENS = _TO_NINETEEN.split(), _FROM_TWENTY.split()


@dataclass(frozen=True)
class CorpusSettings:
    """What the corpus holds; a change of any value gives another folder.

    Attributes:
        train_recordings: recordings of the training split.
        dev_recordings: recordings of the held-out split.
        min_seconds: shortest recording, at least 3.
        max_seconds: longest recording.
        length_skew: 1 spreads lengths evenly between the two limits; 2.5 draws a mean two sevenths of the way up.
        min_pause_seconds: shortest silence between two numbers.
        max_pause_seconds: longest silence between two numbers.
        repeats: a number may come again in a recording; otherwise it is a draw, each number at most once until all
            hundred are out.
        vocal_tract: how much longer or shorter a training speaker's vocal tract may be than espeak's voice has it, as
            the logarithm of the ratio; held-out voices stay as they are.
        channel_db: how much louder or softer the channel of a training recording may make a part of the spectrum.
        recordings_per_shard: recordings in one tar.
        seed: chooses numbers, voices, rates, pitches, pauses and noise.
    """

    train_recordings: int = 480
    dev_recordings: int = 40
    min_seconds: float = 20.0
    max_seconds: float = 120.0
    length_skew: float = 2.5
    min_pause_seconds: float = 0.8
    max_pause_seconds: float = 2.4
    repeats: bool = False
    vocal_tract: float = 0.16
    channel_db: float = 9.0
    recordings_per_shard: int = 40
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the settings, this format and the installed voices."""
        voices = installed("espeakng-loader") or "none"
        recipe = [asdict(self), FORMAT_VERSION, voices, ACCENTS, TRAIN_VOICES, DEV_VOICES]
        text = json.dumps(recipe, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def number_words(value: int) -> str:
    """Return 0..99 in English words: 42 is ``forty two``.

    Raises:
        ValueError: ``value`` is outside 0..99.
    """
    if not 0 <= value <= 99:
        raise ValueError(f"number_words: {value} is outside 0..99")
    if value < 20:
        return _ONES[value]
    tens, ones = divmod(value, 10)
    return _TENS[tens - 2] + (f" {_ONES[ones]}" if ones else "")


@dataclass(frozen=True)
class Recording:
    """One synthesised recording: ``samples`` int16 ``[N]`` at 16 kHz, and what its JSON holds."""

    key: str
    samples: npt.NDArray[np.int16]
    fields: dict[str, Any]

    def flac(self) -> bytes:
        """Return the samples as a FLAC file."""
        import soundfile

        buffer = io.BytesIO()
        soundfile.write(buffer, self.samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
        return buffer.getvalue()


def draw_numbers(rng: np.random.Generator, repeats: bool) -> Iterator[int]:
    """Yield numbers of 0..99 without end; without repeats, no pair of them reads as a third ("twenty", "two")."""
    while repeats:
        yield int(rng.integers(0, 100))
    previous = 0
    while True:
        left = rng.permutation(100).tolist()
        while left:
            joins = previous >= 20 and previous % 10 == 0
            place = next((i for i, n in enumerate(left) if not (joins and 0 < n < 10)), 0)
            previous = left.pop(place)
            yield previous


def synthesise(settings: CorpusSettings, split: str, index: int) -> Recording:
    """Return recording ``index`` of ``split`` ("train" or "dev"): the same call gives the same samples.

    Raises:
        MissingExtraError: espeak-ng is not installed.
    """
    import soxr

    from .espeak import Espeak, speak_sequence

    rng = np.random.default_rng([settings.seed, index, {"train": 0, "dev": 1}[split]])
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(TRAIN_VOICES if split == 'train' else DEV_VOICES)}"
    words_per_minute, pitch, pitch_range = (int(rng.integers(*limits)) for limits in ((100, 171), (25, 76), (20, 81)))

    share = rng.uniform(0.0, 1.0) ** settings.length_skew
    seconds = settings.min_seconds + (settings.max_seconds - settings.min_seconds) * share
    texts, pauses, total = [], [float(rng.uniform(0.1, 0.8))], 0.0
    numbers = draw_numbers(rng, settings.repeats)
    while total < seconds - 1.5:
        texts.append(number_words(next(numbers)))
        pauses.append(float(rng.uniform(settings.min_pause_seconds, settings.max_pause_seconds)))
        # An estimate good enough to end near the drawn length; the exact one is measured below.
        total += pauses[-1] + len(texts[-1].split()) * 60.0 / words_per_minute
    with Espeak() as engine:
        engine.set_voice(voice, words_per_minute, pitch, pitch_range)
        raw, times = speak_sequence(engine, texts, pauses)
        raw_rate_hz = float(engine.sample_rate)
    if split == "train":
        # Played faster or slower, formants, pitch and tempo change as with a smaller or larger speaker.
        faster = math.exp(rng.uniform(-settings.vocal_tract, settings.vocal_tract))
        raw_rate_hz, times = raw_rate_hz * faster, [(begin / faster, end / faster) for begin, end in times]
    speech = soxr.resample(raw.astype(np.float32) / 32768.0, raw_rate_hz, SAMPLE_RATE_HZ)
    if split == "train":
        speech = _through_channel(speech, rng.uniform(-settings.channel_db, settings.channel_db, _CHANNEL_BANDS))
    speech = speech[: int(settings.max_seconds * SAMPLE_RATE_HZ)]
    silence = math.ceil(settings.min_seconds * SAMPLE_RATE_HZ) - len(speech)
    speech = np.pad(speech, (0, max(0, silence)))
    kept = [i for i, (_, end) in enumerate(times) if end <= len(speech) / SAMPLE_RATE_HZ]
    peak, noise = rng.uniform(0.2, 0.9), 10 ** rng.uniform(-4.0, -2.3)
    speech = speech * (peak / max(float(np.abs(speech).max()), 1e-3))
    speech = speech + noise * rng.standard_normal(len(speech), dtype=np.float32)
    fields = {
        "task": "asr",
        "language": "en",
        "text": " ".join(texts[i] for i in kept),
        "speaker": voice,
        "duration": len(speech) / SAMPLE_RATE_HZ,
        "segments": [{"start": round(times[i][0], 3), "end": round(times[i][1], 3), "text": texts[i]} for i in kept],
    }
    samples = (np.clip(speech, -1.0, 1.0) * 32767.0).astype(np.int16)
    if len(kept) < len(times):  # a number cut by the length limit would be there in part and never transcribed
        samples[int((times[len(kept)][0] - 0.01) * SAMPLE_RATE_HZ) :] //= 1000
    return Recording(f"{split}-{index:06d}", samples, fields)


def _through_channel(speech: npt.NDArray[np.float32], gains_db: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return speech of the same length with the bands of its spectrum louder or softer, without a delay.

    The bands are equally wide up to 700 Hz and equally many octaves above, and one passes smoothly into the next.
    """
    bins = np.linspace(0.0, SAMPLE_RATE_HZ / 2, _CHANNEL_TAPS // 2 + 1)
    places = np.log1p(bins / 700.0) / math.log1p(SAMPLE_RATE_HZ / 2 / 700.0) * (len(gains_db) - 1)
    response = 10 ** (np.interp(places, np.arange(len(gains_db)), gains_db) / 20)
    taps = np.fft.fftshift(np.fft.irfft(response, _CHANNEL_TAPS))[1:] * np.hanning(_CHANNEL_TAPS - 1)
    return np.convolve(speech, taps.astype(np.float32), "same")


def _encoded(job: tuple[CorpusSettings, str, int]) -> tuple[str, bytes, dict[str, Any]]:
    recording = synthesise(*job)
    return recording.key, recording.flac(), recording.fields


def _write_shards(folder: Path, settings: CorpusSettings, num_processes: int) -> None:
    import webdataset
    from tqdm import tqdm

    counts = {"train": settings.train_recordings, "dev": settings.dev_recordings}
    jobs = [(settings, split, index) for split, count in counts.items() for index in range(count)]
    with ProcessPool(num_processes, shielded_context("spawn")) as pool:
        with without_script():  # it may wait for this very corpus
            done = pool.map(_encoded, jobs, chunksize=4)
        done = tqdm(done, total=len(jobs), desc="Synthesising spoken numbers", unit="recording")
        names = (f"{split}-{index // settings.recordings_per_shard:06d}.tar" for _, split, index in jobs)
        for name, recordings in itertools.groupby(zip(names, done, strict=True), key=lambda pair: pair[0]):
            with webdataset.TarWriter(str(folder / name), mtime=0, user="", group="") as writer:
                for _, (key, flac, fields) in recordings:
                    writer.write({"__key__": key, "flac": flac, "json": json.dumps(fields).encode()})
    (folder / "settings.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")


def build_once(folder: Path, write: Callable[[Path], None], what: str) -> Path:
    """Have ``write`` fill a folder unless it is there, and return it; several processes may call this at once.

    It is renamed when complete, so a kill never leaves half of it under the final name.

    Raises:
        DataError: it cannot be written; ``what`` says what.
    """
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with whole_folder(folder, alone=True) as begun:
                    write(begun)
    except OSError as error:
        raise DataError(f"cannot {what} {folder}: {error}") from error
    return folder


def build_corpus(cache_folder: Path, settings: CorpusSettings, num_processes: int | None = None) -> Path:
    """Build the corpus unless a whole one with these settings is there, and return its folder.

    All cores that this process may use are used, where ``num_processes`` is None.

    Returns:
        The folder with ``train-*.tar``, ``dev-*.tar`` and ``settings.json``.

    Raises:
        DataError: the folder cannot be written, or a limit of the settings is out of range.
        MissingExtraError: espeak-ng is not installed and no corpus has been built.
    """
    if not MIN_SECONDS <= settings.min_seconds <= settings.max_seconds:
        raise DataError(
            f"spoken numbers: min_seconds {settings.min_seconds:g} and max_seconds {settings.max_seconds:g} must obey"
            f" {MIN_SECONDS:g} <= min_seconds <= max_seconds"
        )
    folder = cache_folder / f"spoken-numbers-{settings.fingerprint}"
    workers = num_processes or len(os.sched_getaffinity(0))
    write = partial(_write_shards, settings=settings, num_processes=workers)
    return build_once(folder, write, "build the corpus of spoken numbers in")
