"""Lhotse cut sets, read as the JSON lines they are: cuts of one recording each, in files on disk."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastslm.errors import DataError

from ..utterance import TOLERANCE_SECONDS, Audio, Noted, Refused, Utterance, stem
from ._lines import first_object, json_lines, located
from .options import SourceOptions

#: What the library writes beside the words; all else that a supervision or a cut has is kept as a field.
_OWN = {"id", "recording_id", "start", "duration", "channel", "text", "alignment", "custom"}


def detect(path: str) -> bool:
    """Say whether this is a set of cuts."""
    first = first_object(path)
    return str(first.get("type", "")).endswith("Cut") or {"recording", "supervisions"} <= set(first)


def read(path: str, options: SourceOptions) -> Iterator[Utterance | Refused | Noted]:
    """Yield the cuts; one with several supervisions becomes one sample with ``segments``."""
    roots = [options.audio_root or os.getcwd(), os.path.dirname(os.path.abspath(path))]
    for where, cut in json_lines(path):
        if isinstance(cut, Refused):
            yield cut
            continue
        key = str(cut.get("id", "?"))
        try:
            utterance = _utterance(cut, key, where, roots)
            yield from _of_other_recording(cut, utterance)
            yield utterance
        except DataError as error:
            yield Refused.at(where, key, error)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            yield Refused(where, key, "unreadable line", f"no cut as Lhotse writes it: {error!r}")


def _utterance(cut: Mapping[str, Any], key: str, where: str, roots: list[str]) -> Utterance:
    if cut.get("type", "MonoCut") not in ("MonoCut", "MultiCut"):
        raise DataError(f"unsupported cut: a {cut['type']}; write the audio out first (CutSet.save_audios)")
    recording = cut.get("recording")
    if not isinstance(recording, Mapping):
        raise DataError("missing audio: the cut has no recording (features alone cannot be used)")
    steps = recording.get("transforms") or []
    kinds = {str(step.get("name", "?") if isinstance(step, Mapping) else step) for step in steps}
    if kinds - {"Resample"}:  # these shards are resampled anyway
        raise DataError(f"unsupported cut: its recording is transformed on the fly by {', '.join(sorted(kinds))}")
    start, seconds = float(cut["start"]), float(cut["duration"])
    path, channel = _source(recording, cut, roots)
    _check_inside(cut, seconds)
    whole = start == 0.0 and abs(seconds - float(recording["duration"])) < 1e-3
    audio = Audio(path, None if whole else start, seconds, channel, whole_seconds=float(recording["duration"]))
    return Utterance(key, [audio], _fields(cut, seconds), where, str(recording["id"]))


def _check_inside(cut: Mapping[str, Any], seconds: float) -> None:
    """Raise DataError where a supervision, and so its text, is of more than the cut's audio or of other channels."""
    wanted = _channels(cut)
    for supervision in cut.get("supervisions") or []:
        begin = float(supervision["start"])
        end = begin + float(supervision.get("duration", 0.0))
        if not (begin >= -TOLERANCE_SECONDS and end <= seconds + TOLERANCE_SECONDS):
            raise DataError(
                f"text leaves the cut: a supervision lies at {begin:g} to {end:g} s, of {seconds:g} s; cut where nobody"
                " speaks, or drop it (CutSet.trim_to_supervisions)"
            )
        spoken = supervision.get("channel", wanted)
        if not set([spoken] if isinstance(spoken, int) else spoken) <= set(wanted):
            raise DataError(f"text of another channel: a supervision is of channel {spoken}, and the cut of {wanted}")


def _of_other_recording(cut: Mapping[str, Any], utterance: Utterance) -> Iterator[Noted]:
    """Note, or raise, where a supervision names another recording than that of its cut.

    ``Cut.save_audio`` of the library gives the file's name to the recording, and leaves supervisions as they were;
    ``CutSet.save_audios`` calls the file like the cut.

    Raises:
        DataError: no writing of audio explains it.
    """
    own = utterance.group
    named = {str(s["recording_id"]) for s in cut.get("supervisions") or [] if s.get("recording_id")} - {own}
    if not named or own == utterance.key:
        return
    detail = f"a supervision is of {min(named)!r}, and the cut of {own!r}"
    (audio,) = utterance.audio
    if own != stem(audio.path) or audio.start_seconds is not None:
        raise DataError(f"text of another recording: {detail}")
    yield Noted(utterance.where, utterance.key, "text of another recording", f"{detail}, as save_audio leaves it, too")


def _channels(cut: Mapping[str, Any]) -> list[int]:
    wanted = cut.get("channel", 0)
    return [wanted] if isinstance(wanted, int) else list(wanted)


def _source(recording: Mapping[str, Any], cut: Mapping[str, Any], roots: list[str]) -> tuple[str, int | None]:
    """Return the file that holds a cut's audio, and the channel in it where that is a choice."""
    wanted = _channels(cut)
    sources = [s for s in recording["sources"] if set(wanted) & set(s["channels"])]
    if len(sources) != 1:
        raise DataError(f"unsupported cut: channels {wanted} lie in {len(sources)} sources, and must lie in one")
    source = sources[0]
    if source["type"] != "file":
        raise DataError(f"unsupported audio source: of type {source['type']!r}; only files are read")
    channels = sorted(source["channels"])
    if 1 < len(wanted) < len(channels):
        raise DataError(
            f"unsupported cut: of channels {wanted} of the {len(channels)} in one file; one is taken, or all are mixed"
        )
    single = channels.index(wanted[0]) if len(wanted) == 1 and len(channels) > 1 else None
    return located(str(source["source"]), roots), single


def _fields(cut: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    supervisions: Sequence[Mapping[str, Any]] = sorted(cut.get("supervisions") or [], key=lambda s: float(s["start"]))
    fields = _plain(cut.get("custom"))
    for name in {name for s in supervisions for name in (*s, *(s.get("custom") or {})) if name not in _OWN}:
        values = [{**(s.get("custom") or {}), **s}.get(name) for s in supervisions]
        if all(value == values[0] for value in values):  # what differs stands in no field of the whole
            fields |= _plain({name: values[0]})
    fields = dict(sorted(fields.items()))
    fields["text"] = " ".join(str(s.get("text") or "").strip() for s in supervisions).strip()
    if len(supervisions) > 1:
        fields["segments"] = [_segment(s, seconds) for s in supervisions]
    return fields


def _segment(supervision: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    start = float(supervision["start"])
    end = start + float(supervision["duration"])
    segment: dict[str, Any] = {"start": max(0.0, round(start, 3)), "end": min(round(end, 3), seconds)}
    segment["text"] = str(supervision.get("text") or "").strip()
    return segment | {name: supervision[name] for name in ("speaker", "language") if supervision.get(name)}


def _plain(custom: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return custom fields without arrays and manifests, which are no part of a sample's JSON."""
    return {name: value for name, value in (custom or {}).items() if isinstance(value, str | int | float | bool | list)}
