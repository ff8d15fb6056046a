"""A path with its text side: prompts to ids, ids to text, limits, and attempts that do not run in circles."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fastslm.checkpoint.trained_on import TrainedOn
from fastslm.contracts import Task
from fastslm.errors import ConfigError, DataError
from fastslm.path.letters import LetterHead
from fastslm.path.model import SpeechLM
from fastslm.path.request import Request

from . import guards
from .engine import Decoding, Memory
from .generated import Generated
from .results import Answer, Segment, Timings
from .words import Vocabulary

_FALLBACK_TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)


def way_out(request: Request) -> str:
    """Return what to do where a recording is too long for the LLM's context."""
    if request.definition.timed:
        return "Transcribe it section by section (section_minutes or --section-minutes)."
    return "Give a shorter recording, or a part of it: such an answer is about the whole."


class AnsweringModel:
    """What ``Model`` and the ways in which it answers (streams, sections, batches) stand on.

    Args:
        path: the model, in evaluation mode.
        source: where it came from, for people.
        max_new_tokens: most tokens of an answer; None takes 32 and ``new_tokens_per_second`` for each second of audio.
        new_tokens_per_second: see ``max_new_tokens``.
        tasks: what it brings itself, by name; for others the installed ones are taken.
        trained_on: what it was trained on, as far as that is known.
        letters: reads the letters that speech tokens spell, where training kept what does.
        llm_reads: whether the LLM has learned to read speech tokens; transcripts are those of ``letters`` where not.
    """

    def __init__(
        self,
        path: SpeechLM,
        source: str,
        max_new_tokens: int | None = None,
        new_tokens_per_second: float = 4.0,
        tasks: Mapping[str, Task] | None = None,
        trained_on: TrainedOn | None = None,
        letters: LetterHead | None = None,
        llm_reads: bool = True,
    ) -> None:
        self.path = path
        self.source = source
        self.max_new_tokens = max_new_tokens
        self.new_tokens_per_second = new_tokens_per_second
        self.tasks = tasks or {}
        self.trained_on = trained_on or TrainedOn()
        self.letters, self.llm_reads = letters, llm_reads
        self._begin_in_process()

    def _begin_in_process(self) -> None:
        self._text_lock = threading.Lock()  # fast tokenizers must not be used by two threads at once
        self._process = os.getpid()
        self._vocabularies: dict[bool, Vocabulary] = {}  # hold the lock

    def __getstate__(self) -> dict[str, Any]:
        made_here = ("_text_lock", "_process", "_vocabularies")
        return {name: value for name, value in self.__dict__.items() if name not in made_here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_in_process()

    def _note_fork(self) -> None:
        """Go on in a forked process, which has none of its parent's threads and would wait for them for ever.

        Raises:
            ConfigError: the model is on a GPU, which no forked process can use.
        """
        if self._process == os.getpid():
            return
        if self.device.type == "cuda":
            raise ConfigError(
                "device: a forked process cannot use its parent's GPU. Start it by spawn, and load there."
            )
        torch.set_num_threads(1)
        self._begin_in_process()

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.path.abstractor.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the LLM's embeddings."""
        with torch.inference_mode():
            return self.path.llm.embed(torch.zeros(1, dtype=torch.int64, device=self.device)).dtype

    def request(self, task: str = "asr", prompt: str | None = None, language: str | None = None) -> Request:
        """Return what is asked, in the words that the model was trained with where it brings them.

        Raises:
            ConfigError: the request makes no sense, or the task is known neither to the model nor here.
        """
        self._note_fork()
        return Request(task, prompt, language, self.tasks.get(task) if isinstance(task, str) else None)

    def new_memory(self) -> Memory:
        """Return an empty memory of the LLM."""
        return Memory(self.path.llm, self.path.prompter.stop_ids)

    def ids_of(self, request: Request) -> tuple[list[int], list[int]]:
        """Return the prompt's ids before and after the speech tokens."""
        with self._text_lock:
            return request.ids(self.path.prompter)

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of ids, as it stands."""
        with self._text_lock:
            return str(self.path.prompter.tokenizer.decode(list(ids), skip_special_tokens=True))

    def vocabulary(self, spaced: bool = True) -> Vocabulary:
        """Return the tokens with which words begin, by their letters; made at the first call.

        Args:
            spaced: see ``Vocabulary``.
        """
        if spaced not in self._vocabularies:
            self._vocabularies[spaced] = Vocabulary(self.path.prompter.tokenizer, self._text_lock, spaced)
        return self._vocabularies[spaced]

    def limit(self, seconds: float, given: int | None, num_positions: int, way_out: str = "") -> int:
        """Return the most new tokens of an answer.

        Args:
            seconds: audio it is about.
            given: what the caller asked for; None follows the audio.
            num_positions: positions of the prompt.
            way_out: what the caller can do where it is the audio that is too long, a sentence; empty: nothing.

        Raises:
            DataError: the prompt leaves no room in the LLM's context.
        """
        room = self.path.llm.context_length - num_positions
        settings = self.path.listener.settings
        speech = seconds * self.path.abstractor.budget.tokens_per_window / settings.window_seconds
        if room < 1 and (speech < num_positions / 2 or not way_out):
            raise DataError(
                f"the prompt makes {num_positions} positions, {speech:.0f} of them of audio, and the LLM has"
                f" {self.path.llm.context_length}. Ask in fewer words."
            )
        if room < 1:
            raise DataError(
                f"{seconds / 60:.1f} minutes of audio make {num_positions} positions, and the LLM has"
                f" {self.path.llm.context_length}. {way_out}"
            )
        return min(given or self.max_new_tokens or self.longest_answer(seconds), room)

    def longest_answer(self, seconds: float) -> int:
        """Return how many tokens an answer about so much audio may have, where nothing else is said."""
        return int(32 + self.new_tokens_per_second * seconds)

    def guarded(self, attempt: Callable[[Decoding, list[int]], Generated], decoding: Decoding) -> Generated:
        """Return an answer that does not run in circles if there is a way, with its attempts and its temperature.

        The first attempt is as asked; each further one keeps the text up to the loop and draws from there, at a
        rising temperature.

        Args:
            attempt: writes an answer that begins with given ids.
            decoding: as asked.
        """
        best = replace(attempt(decoding, []), temperature=decoding.temperature)
        loop = self.loop_of(best)
        if loop is None:
            return best
        kept = best.ids[: loop.start + loop.period] if loop.period else []
        for hotter in (t for t in _FALLBACK_TEMPERATURES if t > decoding.temperature):
            best.attempts += 1
            again = attempt(decoding.at(hotter), kept)
            if self.loop_of(again) is None:
                return replace(again, attempts=best.attempts, temperature=hotter)
        return best

    def loop_of(self, generated: Generated) -> Any:
        """Return the loop in an answer, or None."""
        return guards.find_loop(generated.ids, self.text_of(generated.ids))

    def result(
        self,
        generated: Generated,
        request: Request,
        *,
        seconds: float,
        signal_seconds: float,
        speech_tokens: int,
        timings: Timings,
        source: str,
        segments: Sequence[Segment] = (),
        longest_pass: float | None = None,
        by_letters: bool = False,
    ) -> Answer:
        """Put an answer together, with what is doubtful about it.

        Args:
            generated: its ids, and how they came about.
            request: what was asked.
            seconds: of audio.
            signal_seconds: those that hold more than silence.
            speech_tokens: of the audio.
            timings: where time went.
            source: name of the audio.
            segments: text by time.
            longest_pass: seconds of audio that were read together; None is all.
            by_letters: it is what the speech tokens spell, and not what the LLM reads in them.
        """
        text = self.text_of(generated.ids)
        audio = guards.Audio(seconds, signal_seconds, seconds if longest_pass is None else longest_pass)
        doubts = guards.doubts(text, request, audio, self.trained_on)
        if not (self.llm_reads or by_letters):
            doubts.append("comes from an LLM that has not learnt to read speech (model.answer_weight was 0)")
        return Answer(
            text=text.strip(),
            tokens=tuple(generated.ids),
            seconds=seconds,
            speech_tokens=speech_tokens,
            timings=timings,
            task=request.task,
            prompt=request.words,
            source=source,
            truncated=generated.end == "limit",
            loop=guards.find_loop(generated.ids, text),
            attempts=generated.attempts,
            temperature=generated.temperature,
            segments=tuple(segments),
            doubts=tuple(doubts),
        )
