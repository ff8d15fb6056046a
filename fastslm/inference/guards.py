"""Answers that are surely or likely wrong: those that run in circles, and those that cannot be of this audio."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastslm.checkpoint.trained_on import TrainedOn, num_characters
from fastslm.path.request import Request

from .results import Loop

#: A phrase of up to so many tokens is looked for.
LONGEST_PHRASE = 64
#: So many occurrences of a phrase, over so many tokens at least, are a loop: "no, no, no, no" is none, nor a refrain.
FEWEST_REPEATS, FEWEST_TOKENS = 4, 32
#: Characters over which compression is judged; the rate of a long text would hide a loop at its end.
_TEXT_WINDOW = 2000
#: zlib makes prose about 2 times smaller over such a window, random digits in words 5 times, a loop 15 times and more.
_HIGHEST_COMPRESSION = 6.0
#: Characters a second, spaces left out: speech has 4 (Chinese) to 20; where training tells its own, so many times that.
_FEWEST_CHARACTERS, _MOST_CHARACTERS, _USUAL = 0.5, 40.0, 3.0
#: Shorter audio may be a pause, and a short text more than its second allows.
_ENOUGH_SECONDS, _MANY_CHARACTERS = 10.0, 40
#: So many times the longest recording of training are a length that was not learnt.
_LONGER = 1.1


def compression_ratio(text: str) -> float:
    """Return the bytes of a text divided by those of its zlib compression."""
    data = text.encode()
    return len(data) / len(zlib.compress(data, 9)) if data else 0.0


def repeated_phrase(
    ids: Sequence[int], fewest_repeats: int = FEWEST_REPEATS, fewest_tokens: int = FEWEST_TOKENS
) -> Loop | None:
    """Return the longest stretch of tokens that repeats one phrase, or None.

    Args:
        ids: tokens of an answer.
        fewest_repeats: occurrences that make a loop.
        fewest_tokens: tokens that all occurrences together must cover.
    """
    tokens = np.asarray(ids)
    best: tuple[int, Loop] | None = None
    for period in range(1, min(LONGEST_PHRASE, len(tokens) // 2) + 1):
        same = np.concatenate([[False], tokens[period:] == tokens[:-period], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])  # where runs of equal tokens begin and end, by turns
        if not len(edges):
            continue
        begins, lengths = edges[::2], edges[1::2] - edges[::2] + period
        longest = int(lengths.argmax())
        covered = int(lengths[longest])
        repeats = covered // period
        if repeats >= fewest_repeats and covered >= fewest_tokens and (best is None or covered > best[0]):
            best = covered, Loop(int(begins[longest]), period, repeats)
    return best[1] if best else None


def find_loop(ids: Sequence[int], text: str) -> Loop | None:
    """Return what an answer repeats without end, or None.

    Args:
        ids: its tokens.
        text: its text; judged where no phrase repeats exactly, as when a loop counts up or changes a word.
    """
    if (loop := repeated_phrase(ids)) is not None:
        return loop
    for begin in range(0, max(1, len(text) - _TEXT_WINDOW // 2), _TEXT_WINDOW // 2):
        chunk = text[begin : begin + _TEXT_WINDOW]
        if len(chunk) > _TEXT_WINDOW // 2 and compression_ratio(chunk) > _HIGHEST_COMPRESSION:
            return Loop(round(len(ids) * begin / len(text)), 0, 0)
    return None


def first_round(ids: Sequence[int]) -> Sequence[int]:
    """Return an answer that ends in a loop up to the end of the loop's first round, any other as it is."""
    loop = repeated_phrase(ids)
    if loop is None or loop.start + loop.period * (loop.repeats + 1) <= len(ids):
        return ids
    return ids[: loop.start + loop.period]


def runs_in_circles(ids: Sequence[int]) -> bool:
    """Say whether the end of an unfinished answer is a loop for sure, so that going on is of no use."""
    tail = ids[-4 * LONGEST_PHRASE :]
    loop = repeated_phrase(tail, 2 * FEWEST_REPEATS, 4 * FEWEST_TOKENS)
    if loop is None:  # a long phrase comes less often in the tail
        loop = repeated_phrase(tail, FEWEST_REPEATS, 4 * LONGEST_PHRASE - 8)
    return loop is not None and loop.start + loop.period * (loop.repeats + 1) > len(tail)


@dataclass(frozen=True)
class Audio:
    """What an answer is about: seconds in all, seconds that hold a signal, and most seconds that were read together."""

    seconds: float
    signal_seconds: float
    longest_pass: float


def doubts(text: str, request: Request, audio: Audio, trained_on: TrainedOn) -> list[str]:
    """Return what speaks against an answer, apart from its own shape; a sentence each, whose subject is the text.

    Args:
        text: the answer.
        request: what was asked.
        audio: what it is about.
        trained_on: what the model was trained on; nothing is said of what is not known.
    """
    found = []
    count, longest = num_characters(text), trained_on.longest_seconds
    if not audio.signal_seconds:
        found.append("is of audio that holds no signal" + (": it is made up" if count else ""))
    elif not count:
        found.append("is empty, though the audio holds a signal")
    elif request.definition.timed:
        usual = trained_on.characters_per_second
        fewest, most = (usual / _USUAL, usual * _USUAL) if usual else (_FEWEST_CHARACTERS, _MOST_CHARACTERS)
        amount = f"has {count} characters for {audio.signal_seconds:.0f} s with a signal"
        if audio.signal_seconds >= _ENOUGH_SECONDS and count < fewest * audio.signal_seconds:
            found.append(f"{amount}: too few for speech, something is missing")
        if count > most * audio.signal_seconds + _MANY_CHARACTERS:
            found.append(f"{amount}: too many for speech, something is made up")
    if trained_on.tasks and not {request.task, "dialogue"} & trained_on.tasks:
        learnt = ", ".join(sorted(trained_on.tasks))
        found.append(f"is for task {request.task}, which the model was not trained on ({learnt})")
    if longest and audio.longest_pass > _LONGER * longest:
        sections = f"; try sections (section_minutes or --section-minutes {longest / 120:.2g})"
        found.append(
            f"comes from {audio.longest_pass:.0f} s read in one pass, and the longest recording of training had"
            f" {longest:.0f} s: words may be missing" + (sections if request.definition.timed else "")
        )
    return found
