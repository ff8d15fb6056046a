"""What a model gives back: text, and how it came about."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import Tensor

from fastslm.redaction import redacted

#: Called with what has happened (``encoded`` or ``generated``) and how much: seconds of audio, or tokens so far.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Timings:
    """Seconds spent on one answer.

    In a batch, ``encode`` and ``prefill`` are the file's share by its audio, and ``decode`` is that of the batch.

    Attributes:
        encode: reading the audio, encoder and compressor; 0 where the audio was encoded before.
        prefill: the LLM reading prompt and speech tokens.
        decode: the LLM writing.
    """

    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.encode + self.prefill + self.decode

    def __add__(self, other: "Timings") -> "Timings":
        return Timings(self.encode + other.encode, self.prefill + other.prefill, self.decode + other.decode)


@dataclass(frozen=True)
class Loop:
    """A phrase that an answer repeats without end.

    Attributes:
        start: index of the first token of its first occurrence.
        period: tokens of the phrase; 0 where no phrase stands out and the text as a whole says little.
        repeats: how often it comes, rounded down.
    """

    start: int
    period: int
    repeats: int


@dataclass(frozen=True)
class Segment:
    """Text between two times, in seconds; the times are those of windows."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Answer:
    """An answer and how it came about.

    Attributes:
        text: the answer.
        tokens: its token ids, without the one that ends it.
        seconds: seconds of audio it is about.
        speech_tokens: LLM tokens that the audio became.
        timings: where the time went.
        task: its name, such as ``asr``.
        prompt: what was asked, as the user or the task put it.
        source: name of the audio; without passwords and signatures where it is a URL.
        truncated: it ends because it reached the limit of new tokens, not because it was finished.
        loop: the phrase it repeats without end, after every attempt to do better; None when it does not.
        attempts: decodings it took; above 1, earlier ones ran into a loop.
        temperature: that of the attempt which gave this text.
        segments: the text by time, where it was asked for.
        doubts: what speaks against the text, a sentence each; part of ``warnings``.
        remarks: what is doubtful about the audio, each of the form ``reason: detail``.
    """

    text: str
    tokens: tuple[int, ...]
    seconds: float
    speech_tokens: int
    timings: Timings
    task: str = "asr"
    prompt: str = ""
    source: str = ""
    truncated: bool = False
    loop: Loop | None = None
    attempts: int = 1
    temperature: float = 0.0
    segments: tuple[Segment, ...] = ()
    doubts: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", redacted(self.source))

    @property
    def token_rate(self) -> float:
        """LLM tokens for each second of audio."""
        return self.speech_tokens / self.seconds if self.seconds else 0.0

    @property
    def speed(self) -> float:
        """Seconds of audio for each second of work."""
        return self.seconds / self.timings.total if self.timings.total else 0.0

    @property
    def warnings(self) -> list[str]:
        """What a reader of the text has to know, one sentence each; empty when all is well."""
        found = []
        if self.truncated:
            where = "at the end of a section" if len(self.segments) > 1 else f"at {len(self.tokens)} tokens"
            found.append(
                f"cut off {where}, by max_new_tokens or the LLM's context: what follows in the audio is missing"
            )
        if self.loop is not None:
            what = f"a phrase {self.loop.repeats} times over" if self.loop.period else "itself"
            found.append(
                f"repeats {what} from token {self.loop.start} on, after {self.attempts} attempts;"
                " shorter sections (section_minutes or --section-minutes) often help"
            )
        return [*found, *self.doubts]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        values = asdict(self)
        del values["doubts"]  # they are among the warnings
        values["tokens"] = len(self.tokens)
        values["segments"] = [asdict(segment) for segment in self.segments]
        rounded = {name: round(value, 4) for name, value in asdict(self.timings).items()}
        extra = {"token_rate": round(self.token_rate, 4), "speed": round(self.speed, 2), "warnings": self.warnings}
        return {**values, "seconds": round(self.seconds, 3), "timings": rounded, **extra}


class Embedding(NamedTuple):
    """Audio as LLM tokens; unpacks as ``tokens, times``.

    Attributes:
        tokens: ``[K, D_llm]``.
        times: second at which each token's share of the audio begins ``[K]`` float32.
    """

    tokens: Tensor
    times: Tensor
