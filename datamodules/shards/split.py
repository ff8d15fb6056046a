"""Long recordings cut in the pauses between their segments, so that each chunk keeps exactly its own words."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import DataError
from fastslm.tasks import tasks

from ..reading.audio import decode
from .opening import info_of, opened
from .segments import Gap, gaps_of, shifted, spell
from .utterance import Audio, Refused, Utterance, answer_field, is_timed, task_of

#: A gap as wide as this is a pause, and worth a shorter chunk.
PAUSE_SECONDS = 0.1
_FRAME_SECONDS = 0.02
_LONGEST_SEARCH_SECONDS = 10.0
_ROUNDING_SECONDS = 0.002  # of two cuts, each to a millisecond


def choose_gaps(gaps: Sequence[Gap], total_seconds: float, limit_seconds: float) -> list[Gap]:
    """Return the gaps, or parts of them, to cut in: chunks are at most ``limit_seconds`` long where the gaps allow it.

    Each chunk is made as long as a pause in the second half of what is allowed lets it be: the widest one is taken. A
    gap that is no pause is cut in only where there is no pause at all in reach. A pause after which no gap is in reach
    is cut in twice, and what lies between belongs to no chunk.

    Args:
        gaps: all of the recording, from its begin to its end.
        total_seconds: its length.
        limit_seconds: longest chunk.
    """
    chosen: list[Gap] = []
    pause, begin = gaps[0], 0.0
    while total_seconds - begin > limit_seconds:
        later = [gap for gap in gaps if gap.after > pause.after]
        last = begin + limit_seconds
        reach = [gap._replace(end=min(gap.end, last)) for gap in later if gap.begin <= last and gap.end > begin]
        far = [gap for gap in reach if gap.begin - begin >= limit_seconds / 2]
        pauses = [gap for gap in reach if gap.end - gap.begin >= PAUSE_SECONDS]
        if far and (max(gap.end - gap.begin for gap in far) >= PAUSE_SECONDS or not pauses):
            cut = max(far, key=lambda gap: (gap.end - gap.begin, gap.begin))
        elif pauses or reach:
            cut = (pauses or reach)[-1]
        elif later:
            late = max(later[0].begin - limit_seconds + _ROUNDING_SECONDS, pause.end - _LONGEST_SEARCH_SECONDS)
            if begin < late <= pause.end:
                cut = pause._replace(begin=late)
                chosen[-1:] = [gap._replace(end=min(gap.end, late)) for gap in chosen[-1:]]
            else:
                cut = later[0]  # what lies before it is too long, and refused as a chunk
        else:
            break
        chosen.append(cut)
        pause, begin = next(gap for gap in gaps if gap.after == cut.after), cut.begin
    return chosen


def quietest(samples: npt.NDArray[np.int16]) -> float:
    """Return the middle of the quietest stretch of samples at 16 kHz, in seconds from their begin."""
    frame = round(_FRAME_SECONDS * SAMPLE_RATE_HZ)
    if len(samples) <= frame:
        return len(samples) / SAMPLE_RATE_HZ / 2
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    loudness = np.rint(energy[frame:] - energy[:-frame])
    # In even silence the middle is as quiet as any other place, and leaves a pause on both sides.
    (places,) = np.nonzero(loudness <= loudness.min() + frame)
    return float(places[len(places) // 2] + frame / 2) / SAMPLE_RATE_HZ


def find_cuts(audio: Audio, gaps: Sequence[Gap]) -> list[float]:
    """Return where in each gap a recording is quietest, in seconds from the begin of ``audio``.

    Raises:
        DataError: the recording cannot be read there.
    """
    offset, cuts = audio.start_seconds or 0.0, []
    for gap in gaps:
        begin, end = gap.begin, min(gap.end, gap.begin + _LONGEST_SEARCH_SECONDS)
        if end - begin < 2 * _FRAME_SECONDS:
            cuts.append((gap.begin + gap.end) / 2)
            continue
        with opened(audio) as (file, _):
            cuts.append(begin + quietest(decode(file, offset + begin, offset + end)))
    return [round(cut, 3) for cut in cuts]


def split(utterance: Utterance, limit_seconds: float) -> list[Utterance | Refused]:
    """Return the chunks of a recording of known length, itself where it is short enough.

    A chunk that stays too long is refused; the others are kept.

    Raises:
        DataError: it is too long, and cannot be cut without separating words from their audio.
    """
    seconds = utterance.seconds
    assert seconds is not None
    if seconds <= limit_seconds:
        return [utterance]
    fields, answer = utterance.fields, answer_field(utterance.fields)
    if len(utterance.audio) != 1 or not is_timed(fields):
        raise DataError(
            f"too long to keep whole: {seconds:.1f} s, and its {task_of(fields) or 'dialogue'} is of it all"
        )
    segments = fields.get("segments")
    if not isinstance(segments, list) or not segments:
        raise DataError(f"too long without segments: {seconds:.1f} s, and nothing says when which words are spoken")
    assert answer is not None
    total, audio = info_of(utterance.audio[0])[0].seconds, utterance.audio[0]
    if audio.is_cut_already(total):
        seconds = total
        utterance = replace(utterance, audio=[replace(audio, start_seconds=None, seconds=total)])
    names = [name for name in _timed_fields() if spell(segments, name, fields.get(name))]
    if answer not in names:
        raise DataError(f"unusable segments: they do not spell the field {answer!r} of the recording")
    gaps = choose_gaps(gaps_of(segments, seconds), seconds, limit_seconds)
    bounds = list(zip([0, *(gap.after for gap in gaps)], [0.0, *find_cuts(utterance.audio[0], gaps)], strict=True))
    spoken = [(first, last) for first, last in pairwise([*bounds, (len(segments), seconds)]) if first[0] < last[0]]
    return [_chunk(utterance, number, names, *bound, limit_seconds) for number, bound in enumerate(spoken)]


def _timed_fields() -> list[str]:
    """Return the fields that may be spelled by segments, whichever task the utterance is for."""
    return list(dict.fromkeys(["text", *(task.answer_field for task in tasks().values() if task.timed)]))


def _chunk(
    whole: Utterance, number: int, names: Sequence[str], first: tuple[int, float], last: tuple[int, float], limit: float
) -> Utterance | Refused:
    """Return the chunk between two bounds, each a number of segments and a time in seconds."""
    (segment, begin), (stop, end) = first, last
    key = f"{whole.key}+{number:04d}"
    if end - begin > limit:
        detail = f"{end - begin:.1f} s from {begin:.1f} s on without a gap between segments"
        return Refused(whole.where, key, "too long between pauses", detail)
    segments = whole.fields["segments"][segment:stop]
    moved = shifted(segments, -begin, end - begin)
    texts = {name: " ".join(s[name].strip() for s in segments).strip() for name in names}
    if not all(texts.values()):
        return Refused(whole.where, key, "empty text", f"nothing is said between {begin:.1f} and {end:.1f} s")
    fields = {name: value for name, value in whole.fields.items() if name not in _timed_fields()}
    audio = whole.audio[0]
    stretch = replace(audio, start_seconds=(audio.start_seconds or 0.0) + begin, seconds=end - begin, num_bytes=0)
    return replace(whole, key=key, audio=[stretch], fields={**fields, **texts, "segments": moved})
