"""Word errors of transcripts, recording by recording and over a set: counts, rates and bootstrap intervals."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from fastslm.errors import MissingExtraError
from fastslm.inference.guards import repeated_phrase

from .normalise import words

#: Lengths of recordings that are told apart, in seconds: name, from, below.
LENGTHS = (
    ("0-30 s", 0.0, 30.0),
    ("30 s-5 min", 30.0, 300.0),
    ("5-30 min", 300.0, 1800.0),
    ("30 min and more", 1800.0, float("inf")),
)
#: A transcript that lacks so many of its last words ends too early.
_FEWEST_LOST = 10
#: Words that a phrase over and over covers at least: a refrain is none.
_FEWEST_REPEATED = 12
_NUM_DRAWS = 2000
#: Most pairs of words that are compared at once, 20 bytes each in kaldialign, and about the words of a part beyond.
_MOST_PAIRS, _PIECE = 4_000_000, 1000


@dataclass(frozen=True)
class Transcript:
    """What a system made of one recording.

    Attributes:
        key: name of the recording in its set.
        reference: what was said; empty where nothing was.
        hypothesis: the system's text.
        seconds: length of the recording.
        work_seconds: time the system took; None where it is not known.
        normaliser: one of ``normalise.NORMALISERS``.
    """

    key: str
    reference: str
    hypothesis: str
    seconds: float
    work_seconds: float | None = None
    normaliser: str = "english"


@dataclass(frozen=True)
class Counts:
    """Errors of one recording, in words after normalising.

    Attributes:
        key: name of the recording.
        seconds: its length.
        num_words: of the reference.
        substitutions: words in place of others.
        deletions: words of the reference that are missing.
        insertions: words that are too many.
        num_transcribed: words of the hypothesis.
        repeats: the hypothesis says one phrase over and over.
        ends_early: the last ``_FEWEST_LOST`` words of the reference, or more, are missing.
        work_seconds: see ``Transcript``.
    """

    key: str
    seconds: float
    num_words: int
    substitutions: int
    deletions: int
    insertions: int
    num_transcribed: int
    repeats: bool = False
    ends_early: bool = False
    work_seconds: float | None = None

    @property
    def errors(self) -> int:
        """All of them."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class Score:
    """Scores of a set of recordings, or of those of one length.

    Attributes:
        num_recordings: with speech, which the rates are over.
        hours: of audio, recordings without speech included.
        num_words: of the references.
        substitutions: over all recordings.
        deletions: over all recordings.
        insertions: over all recordings.
        interval: of the word error rate, 95 %, by bootstrap over recordings; None with a single one.
        num_repeating: transcripts that say one phrase over and over.
        num_ending_early: transcripts that lack the last words of the reference.
        num_silent: recordings without speech.
        num_hallucinated: those of them for which there is text.
        words_in_silence: words for them.
        real_time_factor: seconds of work for each second of audio; None where it is not known.
    """

    num_recordings: int
    hours: float
    num_words: int
    substitutions: int
    deletions: int
    insertions: int
    interval: tuple[float, float] | None
    num_repeating: int
    num_ending_early: int
    num_silent: int
    num_hallucinated: int
    words_in_silence: int
    real_time_factor: float | None = None

    @property
    def wer(self) -> float | None:
        """Errors for each word of the references; None where there are no words."""
        errors = self.substitutions + self.deletions + self.insertions
        return errors / self.num_words if self.num_words else None


def check_installed() -> None:
    """Refuse to begin what could not be scored in the end.

    Raises:
        MissingExtraError: the extra ``evaluate`` is not installed.
    """
    compare(Transcript("", "", "", 0.0))


def compare(transcript: Transcript) -> Counts:
    """Count the errors of a transcript, aligned as the Open ASR Leaderboard aligns.

    Both texts are normalised; words that differ by a space alone ("white paper", "whitepaper") are no error.

    Raises:
        MissingExtraError: the extra ``evaluate`` is not installed.
    """
    try:
        from kaldialign import edit_distance
    except ImportError as error:
        raise MissingExtraError("kaldialign", extra="evaluate", purpose="scores of transcripts") from error

    reference, hypothesis = (words(t, transcript.normaliser) for t in (transcript.reference, transcript.hypothesis))
    parts = list(_parts(reference, hypothesis))
    found = [edit_distance(*part, merge_compounds=True) for part in parts]
    num_words, wrong, lost, extra = (sum(int(each[k]) for each in found) for k in ("ref_len", "sub", "del", "ins"))
    names = {word: place for place, word in enumerate(dict.fromkeys(hypothesis))}
    return Counts(
        transcript.key,
        transcript.seconds,
        num_words,
        wrong,
        lost,
        extra,
        len(hypothesis),
        repeated_phrase([names[word] for word in hypothesis], fewest_tokens=_FEWEST_REPEATED) is not None,
        lost >= _FEWEST_LOST and _ends_early(*parts[-1]),
        transcript.work_seconds,
    )


def _parts(reference: Sequence[str], hypothesis: Sequence[str]) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """Yield two texts in parts that have the errors of the whole, where the whole is too long to be compared at once.

    A shortest way from one text to the other is that of its parts wherever it is cut. It is cut in the longest stretch
    of equal words of every ``_PIECE``, where the leaderboard's way, which counts no error for a compound, passes, too.
    """
    first, second = 0, 0  # of the part, in either text
    longest = 0, 0, 0  # stretch of equal words in it: size and places
    is_long = len(reference) * len(hypothesis) > _MOST_PAIRS
    for block in Levenshtein.editops(reference, hypothesis).as_matching_blocks() if is_long else ():
        for skip in range(0, max(block.size, 1), _PIECE):
            here = min(block.size - skip, _PIECE), block.a + skip, block.b + skip
            longest = max(longest, here)
            size, *cut = longest
            if size and max(here[1] - first, here[2] - second) >= _PIECE:
                ends = cut[0] + size // 2, cut[1] + size // 2
                yield reference[first : ends[0]], hypothesis[second : ends[1]]
                first, second = ends
                longest = 0, 0, 0
    yield reference[first:], hypothesis[second:]


def _ends_early(reference: Sequence[str], hypothesis: Sequence[str]) -> bool:
    from kaldialign import align

    lost = 0
    for _, transcribed in reversed(align(reference, hypothesis, "", merge_compounds=True)):
        if transcribed:
            break
        lost += 1
    return lost >= _FEWEST_LOST


def score(counts: Sequence[Counts], seed: int = 0) -> Score:
    """Return the scores of recordings together; those without speech count for hallucinations alone.

    Args:
        counts: of each recording.
        seed: of the bootstrap's draws.
    """
    spoken = [each for each in counts if each.num_words]
    silent = [each for each in counts if not each.num_words]
    timed = [each for each in counts if each.work_seconds is not None]
    seconds = sum(each.seconds for each in counts)
    timed_seconds = sum(each.seconds for each in timed)
    return Score(
        num_recordings=len(spoken),
        hours=seconds / 3600,
        num_words=sum(each.num_words for each in spoken),
        substitutions=sum(each.substitutions for each in spoken),
        deletions=sum(each.deletions for each in spoken),
        insertions=sum(each.insertions for each in spoken),
        interval=_interval(spoken, seed),
        num_repeating=sum(each.repeats for each in counts),
        num_ending_early=sum(each.ends_early for each in spoken),
        num_silent=len(silent),
        num_hallucinated=sum(each.num_transcribed > 0 for each in silent),
        words_in_silence=sum(each.num_transcribed for each in silent),
        real_time_factor=sum(each.work_seconds or 0.0 for each in timed) / timed_seconds if timed_seconds else None,
    )


def by_length(counts: Iterable[Counts]) -> dict[str, list[Counts]]:
    """Return recordings by their length, the shortest first; lengths that none has are left out."""
    every = list(counts)
    parts = {name: [c for c in every if begin <= c.seconds < end] for name, begin, end in LENGTHS}
    return {name: part for name, part in parts.items() if part}


def _interval(spoken: Sequence[Counts], seed: int) -> tuple[float, float] | None:
    """Return the 2.5 and 97.5 percentiles of the rate over draws of as many recordings, with replacement."""
    if len(spoken) < 2:
        return None
    errors = np.array([each.errors for each in spoken], np.float64)
    num_words = np.array([each.num_words for each in spoken], np.float64)
    generator = np.random.default_rng(seed)
    rates = np.empty(_NUM_DRAWS)
    for draw in range(_NUM_DRAWS):
        chosen = generator.integers(len(spoken), size=len(spoken))
        rates[draw] = errors[chosen].sum() / num_words[chosen].sum()
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)
