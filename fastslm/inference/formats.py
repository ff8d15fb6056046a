"""Answers as files: plain text, JSON lines, SubRip and WebVTT."""

import json
from collections.abc import Sequence

from .results import Answer, Segment

FORMATS = ("txt", "jsonl", "srt", "vtt")
#: Formats that need text by time.
TIMED = ("srt", "vtt")


def render(answer: Answer, form: str) -> str:
    """Return an answer in one of ``FORMATS``, with the line ends of a file."""
    if form == "jsonl":
        return json.dumps(answer.to_dict(), ensure_ascii=False) + "\n"
    if form == "srt":
        cues = enumerate(answer.segments, 1)
        return "".join(f"{i}\n{_span(cue, ',')}\n{_cue_text(cue)}\n\n" for i, cue in cues)
    if form == "vtt":
        return "WEBVTT\n\n" + "".join(f"{_span(cue, '.')}\n{_cue_text(cue)}\n\n" for cue in answer.segments)
    return f"{answer.text}\n"


def _cue_text(cue: Segment) -> str:
    """Return a cue's text without what would end the cue: an empty line, or an arrow."""
    lines: Sequence[str] = [line.strip() for line in cue.text.splitlines() if line.strip()]
    return "\n".join(lines).replace("-->", "->")


def _span(cue: Segment, point: str) -> str:
    return f"{_clock(cue.start, point)} --> {_clock(cue.end, point)}"


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def clock(seconds: float) -> str:
    """Return ``1:02:03``, for people."""
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{whole:02}"
