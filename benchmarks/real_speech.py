"""Shards of real recorded speech to confirm a ranking on: digits of the Free Spoken Digit Dataset, joined with pauses.

    git clone https://github.com/Jakobovski/free-spoken-digit-dataset
    python -m benchmarks.real_speech free-spoken-digit-dataset/recordings OUT
    fastslm fit --config configs/hta.yaml --config OUT/data.yaml

The data set (Z. Jackson and contributors, CC BY-SA 4.0) has files `{digit}_{speaker}_{take}.wav`, 8 kHz. A recording
joins all ten digits of one speaker in random order, each from a take of its own, with pauses of 0.8 to 2.4 s as in the
embedded corpus, at 16 kHz. Training draws takes anew for every recording; the last takes of every digit and speaker are
kept for validation, where each take stands in exactly one recording.
"""

import argparse
import collections
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import webdataset

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RATE = 16_000
CONFIG = """\
# Spoken digits of the Free Spoken Digit Dataset, CC BY-SA 4.0: github.com/Jakobovski/free-spoken-digit-dataset
data:
  class_path: WebDatasetModule
  init_args:
    train_shards: {folder}/train.tar
    val_shards: {folder}/dev.tar
    chunk_seconds: 14.4
    batch_samples: 64
    batch_windows: 60
"""

Takes = dict[str, dict[int, list[np.ndarray]]]  # of each speaker and digit, in order


def read_takes(folder: Path) -> Takes:
    """Return all takes, int16 at 16 kHz.

    Raises:
        SystemExit: there are none.
    """
    found: dict[tuple[str, int], list[tuple[int, Path]]] = collections.defaultdict(list)
    for path in folder.glob("*.wav"):
        if match := re.fullmatch(r"(\d)_([a-z]+)_(\d+)\.wav", path.name):
            found[match[2], int(match[1])].append((int(match[3]), path))
    if not found:
        raise SystemExit(f"real_speech: {folder} holds no files such as 7_jackson_12.wav")
    takes: Takes = collections.defaultdict(dict)
    for (speaker, digit), paths in sorted(found.items()):
        takes[speaker][digit] = [_read(path) for _, path in sorted(paths)]
    return takes


def _read(path: Path) -> np.ndarray:
    audio, rate = soundfile.read(path, dtype="float32")
    audio = (np.clip(soxr.resample(audio, rate, RATE), -1, 1) * 32767).astype(np.int16)
    return audio  # type: ignore[no-any-return]


def join(spoken: list[tuple[int, np.ndarray]], generator: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the digits one after the other with pauses, and what the sample's JSON says."""
    parts, segments, at = [], [], 0
    for digit, audio in spoken:
        pause = round(generator.uniform(0.4, 1.2) * RATE)  # half of it before the digit, half after
        segments.append({"start": at / RATE, "end": (at + 2 * pause + len(audio)) / RATE, "text": WORDS[digit]})
        parts += [np.zeros(pause, np.int16), audio, np.zeros(pause, np.int16)]
        at += 2 * pause + len(audio)
    text = " ".join(WORDS[digit] for digit, _ in spoken)
    return np.concatenate(parts), {"text": text, "duration": at / RATE, "segments": segments}


def training(takes: Takes, held_out: int, count: int, generator: np.random.Generator) -> Iterator[Any]:
    """Yield ``count`` recordings of takes drawn at random."""
    speakers = sorted(takes)
    for _ in range(count):
        digits = takes[speakers[generator.integers(len(speakers))]]
        order = generator.permutation(10).tolist()
        yield join([(d, digits[d][generator.integers(len(digits[d]) - held_out)]) for d in order], generator)


def validation(takes: Takes, held_out: int, generator: np.random.Generator) -> Iterator[Any]:
    """Yield recordings of the last takes, each used once."""
    for _, digits in sorted(takes.items()):
        for i in range(1, held_out + 1):
            yield join([(d, digits[d][-i]) for d in generator.permutation(10).tolist()], generator)


def write(path: Path, recordings: Iterator[Any]) -> None:
    """Write a shard."""
    seconds, count = 0.0, 0
    with webdataset.TarWriter(str(path), mtime=0, user="", group="") as tar:
        for audio, fields in recordings:
            flac = io.BytesIO()
            soundfile.write(flac, audio, RATE, format="FLAC")
            tar.write({"__key__": f"{path.stem}-{count:06d}", "flac": flac.getvalue(), "json": fields})
            seconds, count = seconds + fields["duration"], count + 1
    print(f"{path}: {count} recordings, {seconds / 60:.0f} min")


def main() -> None:
    """Write both shards and the configuration that names them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="folder of the data set's WAV files")
    parser.add_argument("out", type=Path, help="folder of the shards, made if need be")
    parser.add_argument("--train", type=int, default=600, help="training recordings")
    parser.add_argument("--held_out", type=int, default=10, help="last takes of each digit and speaker for validation")
    options = parser.parse_args()
    takes, generator = read_takes(options.recordings), np.random.default_rng(0)
    fewest = min(len(digit) for digits in takes.values() for digit in digits.values())
    if not 0 < options.held_out < fewest:
        parser.error(f"--held_out {options.held_out}: must be 1 to {fewest - 1}, the data set has {fewest} takes")
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / "train.tar", training(takes, options.held_out, options.train, generator))
    write(options.out / "dev.tar", validation(takes, options.held_out, generator))
    (options.out / "data.yaml").write_text(CONFIG.format(folder=options.out.resolve()), encoding="utf-8")


if __name__ == "__main__":
    main()
