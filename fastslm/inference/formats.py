"""Answers as files: plain text, JSON lines, SubRip and WebVTT."""

import json
import re
from collections.abc import Sequence
from html import escape

from .results import Answer, Segment

FORMATS = ("txt", "jsonl", "srt", "vtt")
#: Formats that need text by time.
TIMED = ("srt", "vtt")
#: What players of SubRip, which knows no escapes, take for a tag; marks that look alike show it instead.
_TAG, _AS_TEXT = re.compile(r"<(/?[a-zA-Z][^<>]*)>"), "\u2039\\1\u203a"


def render(answer: Answer, form: str) -> str:
    """Return an answer in one of ``FORMATS``, with the line ends of a file."""
    if form == "jsonl":
        return json.dumps(answer.to_dict(), ensure_ascii=False) + "\n"
    if form == "srt":
        cues = enumerate(answer.segments, 1)
        return "".join(f"{i}\n{_span(cue, ',')}\n{_TAG.sub(_AS_TEXT, _cue_text(cue))}\n\n" for i, cue in cues)
    if form == "vtt":
        lines = (f"{_span(cue, '.')}\n{escape(_cue_text(cue), quote=False)}\n\n" for cue in answer.segments)
        return "WEBVTT\n\n" + "".join(lines)
    return f"{answer.text}\n"


def _cue_text(cue: Segment) -> str:
    """Return a cue's text without what would end the cue: an empty line, or an arrow."""
    lines: Sequence[str] = [line.strip() for line in cue.text.replace("\0", "").splitlines() if line.strip()]
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
