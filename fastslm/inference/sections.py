"""Long transcripts section by section: each is generated with the audio and the text of the one before as context.

One pass over hours rarely reads to the end. A section's prompt is the audio of the section before and its own, and the
answer begins with the text of the section before: to the model it is one recording, transcribed up to there. A word
that lies across the seam was cut in half for the section before, so the last word of every section is transcribed again
by the next one, which has all of it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import ConfigError, DataError
from fastslm.path.request import Request

from .answering import AnsweringModel
from .audio import AudioSource
from .engine import Decoding
from .generated import Generated
from .listening import SpeechPart, encode
from .results import Answer, Progress, Segment, Timings
from .segments import Segments
from .text import BROKEN, gap

#: Audio that a window of its own is generated with as context, where text by window is wanted.
_CONTEXT_SECONDS = 60.0
_LONGEST_WORD = 12  # tokens


@dataclass
class _Section:
    """Windows that are generated together.

    Attributes:
        tokens: speech tokens ``[K, D_llm]``, one chunk for each window.
        start: its first second.
        end: its last second.
        ids: its text.
        num_rewritten: ids at its beginning that say what the section before left to it, and are not in this audio.
        begins: its text was written as the beginning of an answer, without a space before its first word.
    """

    tokens: list[Tensor]
    start: float
    end: float
    ids: list[int] = field(default_factory=list)
    num_rewritten: int = 0
    begins: bool = False

    @property
    def num_tokens(self) -> int:
        """Its speech tokens."""
        return sum(map(len, self.tokens))


class _Writer:
    """Encodes, and writes one section after another."""

    def __init__(
        self,
        model: AnsweringModel,
        request: Request,
        decoding: Decoding,
        context_seconds: float,
        max_new_tokens: int | None,
        on_progress: Progress | None,
    ) -> None:
        self.model, self.decoding, self.max_new_tokens = model, decoding, max_new_tokens
        self.context_seconds, self.on_progress = context_seconds, on_progress
        self.before, self.after = model.ids_of(request)
        self.context: list[_Section] = []  # what the next section is generated with
        self.left: list[int] = []  # what the section before left to be generated again
        self.done: list[_Section] = []
        self.attempts, self.temperature, self.truncated = 1, decoding.temperature, False
        self.longest_pass = self.listening = 0.0  # seconds, of audio and of work
        self.num_signal_samples = 0
        self.num_alone = 0  # sections without the one before, for which there was no room
        self.way_out = ""  # where a section alone is too long; by window none is shorter

    def sections(self, windows: Iterator[SpeechPart], num_windows: int) -> Iterator[_Section]:
        """Yield sections of ``num_windows`` windows as they are encoded."""
        tokens: list[Tensor] = []
        start = end = 0.0
        began = time.perf_counter()
        for part in windows:
            self.listening += time.perf_counter() - began
            self.num_signal_samples += part.num_signal_samples
            if self.on_progress:
                self.on_progress("encoded", part.seconds)
            chunks = part.tokens.split(list(part.counts))
            for chunk, num_samples in zip(chunks, part.num_samples, strict=True):
                tokens.append(chunk.clone())  # a view would keep the whole group's tokens
                end += num_samples / SAMPLE_RATE_HZ
                if len(tokens) == num_windows:
                    yield _Section(tokens, start, end)
                    tokens, start = [], end
            began = time.perf_counter()
        if tokens:
            yield _Section(tokens, start, end)

    def write(self, section: _Section, last: bool) -> None:
        """Write a section; all but the last one leave their last word to the next."""
        self._make_room(section)
        start = [token for earlier in self.context for token in earlier.ids]
        start = start[self.context[0].num_rewritten :] if self.context else []
        generated = self.model.guarded(lambda how, more: self._attempt(section, start, how, more), self.decoding)
        self.attempts = max(self.attempts, generated.attempts)
        self.temperature = max(self.temperature, generated.temperature)
        self.truncated |= generated.end == "limit"
        if not generated.ids and self.done:  # it did not write the word that was left to it
            self.done[-1].ids += self.left
        elif self.left:
            section.num_rewritten = self._first_word(generated.ids)
        looping = self.model.loop_of(generated) is not None
        keep = len(generated.ids)
        if not last and generated.end == "stop" and not looping:
            # A word that was only written again stays here: behind a pause the next section has none of its audio.
            keep = max(keep - self._last_word(generated.ids), section.num_rewritten)
        section.begins = not start
        section.ids, self.left = generated.ids[:keep], generated.ids[keep:]
        self.done.append(section)
        # After a loop the next section starts afresh: its own audio and no text to go on repeating.
        self.context = [] if looping else [*self.context, section]
        while len(self.context) > 1 and section.end - self.context[0].start > self.context_seconds + 1e-6:
            self.context.pop(0)
        if self.on_progress:
            self.on_progress("section", section.end - section.start)

    def _make_room(self, section: _Section) -> None:
        """Leave out earlier sections, the first one first, while with them the LLM has no room for the answer."""
        longest = self.model.longest_answer(section.end - section.start)
        answer = min(longest, self.max_new_tokens or self.model.max_new_tokens or longest)
        room = self.model.path.llm.context_length - len(self.before) - len(self.after) - answer
        while self.context and section.num_tokens + sum(s.num_tokens + len(s.ids) for s in self.context) > room:
            self.context.pop(0)
        if not self.context and self.left:  # its audio is not in this section's prompt: the word stays where it was
            self.done[-1].ids += self.left
            self.left, self.num_alone = [], self.num_alone + 1

    def _attempt(self, section: _Section, start: list[int], decoding: Decoding, more: list[int]) -> Generated:
        model, memory = self.model, self.model.new_memory()
        self.longest_pass = max(self.longest_pass, section.end - (self.context or [section])[0].start)
        memory.read(memory.embed(self.before, model.device))
        for part in (*self.context, section):
            for tokens in part.tokens:
                memory.read(tokens.to(model.dtype))
        rest = memory.embed([*self.after, *start, *more], model.device)
        seconds = section.end - section.start
        num_positions = memory.cache.num_positions + len(rest)
        limit = model.limit(seconds, self.max_new_tokens, num_positions, self.way_out)
        generated = memory.answer(rest, limit, decoding, on_ids=self._wrote)
        return Generated([*more, *generated.ids], generated.end)

    def _wrote(self, ids: list[int]) -> None:
        if self.on_progress:
            self.on_progress("generated", len(ids))

    def _first_word(self, ids: Sequence[int]) -> int:
        """Return how many tokens the first word of a text has, or its first letter where spaces do not tell."""
        whole, letter = self.model.text_of(ids[: _LONGEST_WORD + 1]).lstrip(), 0
        for count in range(1, min(len(ids), _LONGEST_WORD) + 1):
            begin = self.model.text_of(ids[:count]).strip()
            if begin.endswith(BROKEN):
                continue
            letter = letter or count
            if begin and whole[len(begin) : len(begin) + 1].isspace():
                return count
        return letter or min(1, len(ids))

    def _last_word(self, ids: Sequence[int]) -> int:
        """Return how many tokens the last word of a text has, or its last letter where spaces do not tell."""
        whole, letter = self.model.text_of(ids).rstrip(), 0
        for count in range(1, min(len(ids), _LONGEST_WORD) + 1):
            shorter = self.model.text_of(ids[:-count]).rstrip()
            if shorter.endswith(BROKEN):
                continue
            letter = letter or count
            if count == len(ids) or whole[len(shorter) : len(shorter) + 1].isspace():
                return count
        return letter or min(1, len(ids))


def transcribe(
    model: AnsweringModel,
    source: AudioSource,
    request: Request,
    decoding: Decoding,
    section_minutes: float | None,
    by_window: bool,
    max_new_tokens: int | None,
    on_progress: Progress | None,
    on_segment: Callable[[Segment], None] | None = None,
) -> Answer:
    """Return a transcript made section by section; see ``Model.transcribe``.

    Raises:
        ConfigError: the task's answer does not follow the audio, or ``section_minutes`` is not above 0.
        DataError: the audio cannot be read, or a section is too long for the LLM's context.
    """
    if not request.definition.timed:
        raise ConfigError(
            f"task {request.task} answers about the whole audio, which cannot be done section by section, nor by time,"
            " as transcripts can."
        )
    seconds = 60 * section_minutes if section_minutes is not None else _CONTEXT_SECONDS
    window_seconds = model.path.listener.window_samples / SAMPLE_RATE_HZ
    num_windows = 1 if by_window else max(1, round(seconds / window_seconds))
    writer = _Writer(model, request, decoding, max(seconds, window_seconds), max_new_tokens, on_progress)
    writer.way_out = "" if by_window else "Take shorter sections (section_minutes or --section-minutes)."
    began = time.perf_counter()
    segments = _SectionSegments(model, on_segment)
    waiting: _Section | None = None
    num_tokens, end = 0, 0.0
    try:
        for section in writer.sections(encode(model.path, [source]), num_windows):
            num_tokens, end = num_tokens + section.num_tokens, section.end
            if waiting is not None:
                writer.write(waiting, last=False)
                segments.add(writer.done[:-1])  # the last one may still get a word
            waiting = section
        assert waiting is not None  # a recording without samples is an error
        writer.write(waiting, last=True)
        segments.add(writer.done, last=True)
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from error
    ids: list[int] = []
    for section in writer.done:
        ids += _behind(model, ids, section.ids) if section.begins else section.ids
    answer = model.result(
        Generated(ids, "limit" if writer.truncated else "stop", writer.attempts, writer.temperature),
        request,
        seconds=end,
        signal_seconds=writer.num_signal_samples / SAMPLE_RATE_HZ,
        longest_pass=writer.longest_pass,
        speech_tokens=num_tokens,
        timings=Timings(encode=writer.listening, decode=time.perf_counter() - began - writer.listening),
        source=source.name,
        segments=segments.all,
    )
    if not writer.num_alone:
        return answer
    shorter = "; take shorter ones (section_minutes or --section-minutes)"
    kind, way_out = ("windows", "") if by_window else ("sections", shorter)
    doubt = (
        f"has {writer.num_alone} {kind} that the LLM's context had no room for beside the one before: words where they"
        f" begin may be wrong{way_out}"
    )
    return replace(answer, doubts=(*answer.doubts, doubt))


def _behind(model: AnsweringModel, before: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Return ids that began an answer as they stand behind other text: with a space, where words have one."""
    head = model.text_of(before)
    text = model.text_of([*before, *ids])[len(head) :]
    if not gap(head, text):
        return list(ids)
    space = model.path.prompter.tokenizer(" ", add_special_tokens=False)["input_ids"]
    return [*space, *ids]


class _SectionSegments(Segments):
    """Text by section."""

    def __init__(self, model: AnsweringModel, on_segment: Callable[[Segment], None] | None) -> None:
        super().__init__(model, on_segment)
        self._ids: list[int] = []
        self._num_sections = 0

    def add(self, done: Sequence[_Section], last: bool = False) -> None:
        """Take the sections that are finished, those of earlier calls among them.

        Args:
            done: they.
            last: no others come.
        """
        for section in done[self._num_sections :]:
            self._ids += section.ids
            text = self.text_of(self._ids, last=last and section is done[-1])
            self.show(round(section.start, 3), round(section.end, 3), text)
            self._num_sections += 1
