"""One sample of a shard from its utterances: audio decoded and encoded anew or kept, fields completed."""

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import DataError

from ..reading.audio import decode, read_info
from ..reading.tar import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS
from .join import join
from .opening import opened
from .segments import at_speed, check_inside
from .utterance import Audio, Noted, Refused, Utterance

Samples = npt.NDArray[np.int16]
_BLOCK_SAMPLES = 1 << 20
_KEY = "(_?(id|idx|index|name|no|nr|number|selector|tag))?"
_CHANNEL = re.compile(rf"(audio_?)?(chan(nel)?|ch|side){_KEY}", re.IGNORECASE)
_TRACK = re.compile(rf"(audio_?)?(track|mic|stream){_KEY}", re.IGNORECASE)  # also of an album, or of a broadcast
_SIDE = re.compile("[0-9ablr]|left|right", re.IGNORECASE)
_CHANNELS = re.compile(r"(audio_?)?channels", re.IGNORECASE)  # a number is how many there are, a list which
_ALL = frozenset(("", "-1", "all", "both", "mix", "mixed", "mono", "stereo", "average", "nan", "none"))


@dataclass(slots=True)
class Job:
    """One sample to make: an utterance, or a run of utterances to join.

    Attributes:
        utterances: at least one; several are joined.
        joined: whether to give the sample ``segments``, as all recordings of a joined corpus have.
    """

    utterances: list[Utterance]
    joined: bool = False

    @property
    def key(self) -> str:
        """Name of the sample: that of its first utterance."""
        return self.utterances[0].key

    @property
    def seconds(self) -> float:
        """Length of its audio, as far as is known."""
        return math.fsum(utterance.seconds or 0.0 for utterance in self.utterances)


@dataclass(frozen=True)
class AudioOptions:
    """How audio is written.

    Attributes:
        keep_audio: keep the encoded bytes of recordings that are used whole, and encode only parts and joins.
        pause_seconds: silence between joined utterances.
        speed: what recordings are played at, tempo and pitch together as on a tape: above 1 shorter and higher (Ko et
            al. 2015, "Audio augmentation for speech recognition").
    """

    keep_audio: bool = False
    pause_seconds: float = 0.3
    speed: float = 1.0

    @property
    def prefix(self) -> str:
        """What names of samples begin with, so that those of another speed are others."""
        return "" if self.speed == 1.0 else f"sp{self.speed:g}-".replace(".", "_")


@dataclass(slots=True)
class Rendered:
    """What became of a job: the members of its sample in order (none where all is refused), and what is to be said."""

    members: list[tuple[str, bytes]] = field(default_factory=list)
    seconds: float = 0.0
    refused: list[Refused] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)


def render(job: Job, options: AudioOptions) -> Rendered:
    """Return the sample of a job; utterances that cannot be used are left out of it and listed."""
    if job.joined:
        return _render_joined(job, options)
    utterance, remarks = job.utterances[0], list[str]()
    try:
        remarks += _mixed(utterance)
        encoded = [_encode(audio, options, remarks) for audio in utterance.audio]
        seconds = math.fsum(length for _, _, length in encoded)
        fields = at_speed(utterance.fields, options.speed)
        remarks += check_inside(fields.get("segments"), seconds)
    except DataError as error:
        return Rendered(refused=[Refused.of(utterance, error)])
    if encoded:
        fields = {**fields, "duration": round(seconds, 6)}
    audio = [(extension, data) for extension, data, _ in encoded]
    return _sample(f"{options.prefix}{job.key}", job, fields, audio, seconds, [], Noted.of(utterance, remarks))


def _render_joined(job: Job, options: AudioOptions) -> Rendered:
    parts: list[tuple[Utterance, Samples]] = []
    refused, noted = [], list[Noted]()
    for utterance in job.utterances:
        remarks: list[str] = []
        try:
            remarks += _mixed(utterance)
            parts.append((utterance, _samples(utterance.audio[0], remarks)))
            noted += Noted.of(utterance, remarks)
        except DataError as error:
            refused.append(Refused.of(utterance, error))
    if not parts:
        return Rendered(refused=refused)
    samples, fields = join(parts, options.pause_seconds * options.speed)
    samples, fields = _sped(samples, options.speed), at_speed(fields, options.speed)
    seconds = len(samples) / SAMPLE_RATE_HZ
    fields["duration"] = round(seconds, 6)
    audio = [("flac", to_flac(samples))]
    return _sample(f"{options.prefix}{job.key}", job, fields, audio, seconds, refused, noted)


def _sample(
    key: str,
    job: Job,
    fields: dict[str, Any],
    audio: Sequence[tuple[str, bytes]],
    seconds: float,
    refused: list[Refused],
    noted: list[Noted],
) -> Rendered:
    try:
        data = to_json(fields)
    except (ValueError, TypeError, RecursionError) as error:
        refused = [*refused, *(Refused(u.where, u.key, "unusable fields", str(error)) for u in job.utterances)]
        return Rendered(refused=refused)
    several = len(audio) > 1
    members = [(f"{key}.{i}.{e}" if several else f"{key}.{e}", content) for i, (e, content) in enumerate(audio)]
    return Rendered([*members, (f"{key}.json", data)], seconds, refused, noted)


def to_json(fields: dict[str, Any]) -> bytes:
    """Return fields as JSON in UTF-8; numbers that are none become null, dates become text.

    Raises:
        ValueError: a text holds half a character.
    """
    return json.dumps(_finite(fields), ensure_ascii=False, default=str).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _encode(audio: Audio, options: AudioOptions, remarks: list[str]) -> tuple[str, bytes, float]:
    """Return extension, bytes and seconds of a recording as it will stand in the shard; ``remarks`` takes doubts.

    Raises:
        DataError: it cannot be read.
    """
    if options.keep_audio and audio.channel is None:
        with opened(audio, verified=True) as (file, extension):
            seconds = read_info(file).seconds
            if audio.stretch(seconds) == (0.0, seconds) and extension in AUDIO_EXTENSIONS + VIDEO_EXTENSIONS:
                remarks += audio.doubts(seconds)
                file.seek(0)
                decode(file, remarks=remarks)  # kept as it is, but not unseen
                file.seek(0)
                return extension, file.read(), seconds
    samples = _sped(_samples(audio, remarks), options.speed)
    return "flac", to_flac(samples), len(samples) / SAMPLE_RATE_HZ


def _sped(samples: Samples, speed: float) -> Samples:
    if speed == 1.0:
        return samples
    sped: Samples = soxr.resample(samples, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ)
    return sped


def _is_channel(name: str, value: Any) -> bool:
    if _CHANNELS.fullmatch(name):
        return isinstance(value, list)
    if _TRACK.fullmatch(name):
        return bool(_SIDE.fullmatch(str(value).strip()))
    return bool(_CHANNEL.fullmatch(name)) and str(value).strip().lower() not in _ALL


def _mixed(utterance: Utterance) -> list[str]:
    """Return a remark where a row names a channel, which its text may be of alone, and all of them were mixed.

    Raises:
        DataError: the text is surely of one channel, and it is not clear of which.
    """
    named = next((name for name, value in utterance.fields.items() if _is_channel(name, value)), None)
    for audio in utterance.audio:
        if audio.channel is not None or (named is None and not audio.is_side):
            continue
        with opened(audio) as (file, _):
            num_channels = read_info(file).num_channels
        if num_channels > 1 and audio.is_side:
            raise DataError(
                f"unknown channel: it is not clear which of the {num_channels} channels of {audio.path} is meant; write"
                " A or B in reco2file_and_channel, where 1 may be the first (counted from 1) or the second (from 0)"
            )
        if num_channels > 1 and named is not None:
            value = utterance.fields[named]
            return [f"channel not taken: {named} is {value!r}, and all channels are mixed; make a file of each"]
    return []


def _samples(audio: Audio, remarks: list[str] | None = None) -> Samples:
    """Return mono samples at 16 kHz of the stretch that a reference names; ``remarks`` takes what is doubtful.

    Raises:
        DataError: it cannot be read.
    """
    with opened(audio, verified=True) as (file, _):
        seconds = read_info(file).seconds
        begin, end = audio.stretch(seconds)
        if remarks is not None:
            remarks += audio.doubts(seconds)
        file.seek(0)
        return decode(file, begin, None if end == seconds else end, audio.channel, remarks)


def to_flac(samples: Samples) -> bytes:
    """Return mono samples at 16 kHz as a FLAC file."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", SAMPLE_RATE_HZ, 1, "PCM_16", format="FLAC") as sound:
        for begin in range(0, len(samples), _BLOCK_SAMPLES):
            sound.write(samples[begin : begin + _BLOCK_SAMPLES])
    return buffer.getvalue()


def size_of(audio: Audio, keep_audio: bool, bytes_per_second: float) -> float:
    """Return how many bytes a recording will take in a shard, as far as can be told without reading it."""
    if keep_audio and audio.start_seconds is None and audio.num_bytes:
        return audio.num_bytes
    return (audio.seconds or 0.0) * bytes_per_second


def measured_bytes_per_second(audio: Sequence[Audio]) -> float:
    """Return what a second of some recordings takes as FLAC; a usual value where none of them can be read."""
    num_bytes, seconds = 0, 0.0
    for reference in audio:
        start, length = reference.start_seconds or 0.0, min(reference.seconds or 20.0, 20.0)
        try:
            samples = _samples(replace(reference, start_seconds=start, seconds=length))
        except DataError:  # counted when its turn comes
            continue
        num_bytes += len(to_flac(samples))
        seconds += len(samples) / SAMPLE_RATE_HZ
    return num_bytes / seconds if seconds else 18_000.0
