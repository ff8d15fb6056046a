"""Consecutive utterances of one speaker or chapter joined into long recordings, each with its time in ``segments``."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastslm.audio.rate import SAMPLE_RATE_HZ

from .listing import unit_of
from .part import draw
from .segments import shifted, spell
from .utterance import Utterance, answer_field, is_timed, task_of

Samples = npt.NDArray[np.int16]


def can_join(utterance: Utterance) -> bool:
    """Say whether the answer of two such utterances is the answer of the one and then that of the other."""
    return len(utterance.audio) == 1 and is_timed(utterance.fields)


def group_runs(
    utterances: Sequence[Utterance], joins: str, min_seconds: float, max_seconds: float, pause_seconds: float, seed: int
) -> list[list[Utterance]]:
    """Return runs of utterances to join, in order; what cannot be joined is a run of its own.

    The length that a recording of a group aims at is drawn between the limits, so that all lengths occur (evenly on a
    logarithmic scale). Recordings are within the limits wherever the group has enough speech for that.
    Utterances are of known length, and come in the order of the sources.
    """
    groups: dict[tuple[Any, ...], list[Utterance]] = {}
    for utterance in utterances:
        fields = utterance.fields
        alike = tuple(str(fields.get(name) or "") for name in ("language", "target_language"))
        source, unit = unit_of(utterance, joins) if can_join(utterance) else (0, f"alone {utterance.key}")
        groups.setdefault((source, unit, task_of(fields), *alike), []).append(utterance)
    runs = []
    for (_, *name), members in groups.items():
        random = np.random.default_rng(list(draw(seed, str(tuple(name)))))
        runs += _runs(members, min_seconds, max_seconds, pause_seconds, random)
    return runs


def _length(run: Sequence[Utterance], pause_seconds: float) -> float:
    return math.fsum(u.seconds or 0.0 for u in run) + pause_seconds * (len(run) - 1)


def _runs(
    members: Sequence[Utterance], shortest: float, longest: float, pause: float, random: np.random.Generator
) -> list[list[Utterance]]:
    runs: list[list[Utterance]] = []
    run: list[Utterance] = []
    length = target = 0.0
    for utterance in members:
        longer = length + pause + (utterance.seconds or 0.0)
        if not run or length >= target or longer > longest:
            run = []
            runs.append(run)
            target = math.exp(random.uniform(math.log(shortest), math.log(longest)))
            longer = utterance.seconds or 0.0
        run.append(utterance)
        length = longer
    if len(runs) > 1 and _length(runs[-1], pause) < shortest:
        runs[-2:] = _balanced(runs[-2] + runs[-1], len(runs[-2]), shortest, longest, pause)
    return runs


def _balanced(run: list[Utterance], cut: int, shortest: float, longest: float, pause: float) -> list[list[Utterance]]:
    """Return a run whole if it is short enough, otherwise in two parts within the limits, otherwise cut at ``cut``."""
    if _length(run, pause) <= longest:
        return [run]
    fitting = []
    for place in range(1, len(run)):
        lengths = _length(run[:place], pause), _length(run[place:], pause)
        if shortest <= min(lengths) and max(lengths) <= longest:
            fitting.append((abs(lengths[0] - lengths[1]), place))
    place = min(fitting)[1] if fitting else cut
    return [run[:place], run[place:]]


def join(parts: Sequence[tuple[Utterance, Samples]], pause_seconds: float) -> tuple[Samples, dict[str, Any]]:
    """Return the audio of a run of utterances, and the fields of the recording that they make.

    Fields that are the same in all utterances are kept, and no others.
    """
    pause = np.zeros(round(pause_seconds * SAMPLE_RATE_HZ), np.int16)
    chunks: list[Samples] = []
    segments: list[dict[str, Any]] = []
    position = 0
    for utterance, samples in parts:
        if chunks:
            chunks.append(pause)
            position += len(pause)
        segments += _segments(utterance, position / SAMPLE_RATE_HZ, len(samples) / SAMPLE_RATE_HZ)
        chunks.append(samples)
        position += len(samples)
    first = parts[0][0].fields
    rest = [utterance.fields for utterance, _ in parts[1:]]
    fields = {name: value for name, value in first.items() if all(f.get(name) == value for f in rest)}
    answers = {"text", answer_field(first) or "text"}
    for name in answers:
        texts = [str(utterance.fields.get(name) or "").strip() for utterance, _ in parts]
        fields[name] = " ".join(text for text in texts if text)
    return np.concatenate(chunks), {**fields, "segments": segments}


def _segments(utterance: Utterance, begin: float, seconds: float) -> list[dict[str, Any]]:
    """Return the segments of an utterance that begins at ``begin`` of the joined recording."""
    own, answer = utterance.fields.get("segments"), answer_field(utterance.fields) or "text"
    if own and spell(own, answer, utterance.fields[answer]):
        return shifted(own, begin, begin + seconds)
    segment = {"start": round(begin, 3), "end": round(begin + seconds, 3), "text": utterance.fields.get("text", "")}
    if answer != "text":
        segment[answer] = utterance.fields[answer]
    return [{**segment, "key": utterance.key}]
