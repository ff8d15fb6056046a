"""Transcripts from the letters that speech tokens spell, with the LLM as the language model: beam search over CTC.

Graves and Jaitly, "Towards End-to-End Speech Recognition with Recurrent Neural Networks" (ICML 2014), section 4; Hannun
et al., "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent DNNs" (arXiv
1408.2873), whose language model is one over words, as here.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.errors import ConfigError, DataError
from fastslm.path.letters import BLANK
from fastslm.path.request import Request

from .answering import AnsweringModel
from .audio import AudioSource
from .engine import Decoding
from .generated import Generated
from .listening import encode
from .results import Answer, Progress, Segment, Timings
from .segments import Segments
from .words import History, WordModel

_SPACE = ord(" ")
#: Weight of the LLM's log-probabilities beside those of the letters, and what a word is worth; docs/stages.md.
_LLM_WEIGHT, _WORD_BONUS = 0.5, 2.0
#: Hypotheses where none are asked for, most new words that the LLM reads at a time, and how far behind the best one.
_BEAMS, _MOST_WORDS, _BEHIND = 24, 8, 5.0
#: Letters below this log-probability are not tried, and slots whose blank is this likely hold no letter.
_LEAST_LETTER, _SURE_BLANK = -7.0, -0.002
#: Ids of the text so far that the LLM reads again at the beginning of a window.
_CONTEXT_IDS = 64

_NEVER = -math.inf

#: Words, and the letters of one that is not finished.
Hypothesis = tuple[History, bytes]

_FIRST_WORD = re.compile(r"\s*\S+")


def _added(a: float, b: float) -> float:
    """Return the log of the sum of two probabilities given by their logs."""
    low, high = min(a, b), max(a, b)
    return high if low == _NEVER else high + math.log1p(math.exp(low - high))


class LetterSearch:
    """Beam search over the letters of one recording, window by window.

    A hypothesis is words and the letters of one that is not finished. It is worth the log-probability of its letters
    (the ways to spell it that end in a blank, and the others), and for each word the LLM's, weighted. An unfinished
    word is judged by how likely the LLM finds words that begin so. At the end of a window the best hypothesis alone
    goes on, so that neither time nor memory grow with the recording.

    Args:
        beams: hypotheses side by side.

    Attributes:
        ids: of the words that are settled.
        first_is_earlier: the first word that was settled last has all of its letters in a window before.
    """

    def __init__(self, beams: int) -> None:
        self.beams = beams
        self.ids: list[int] = []
        self.first_is_earlier = False
        self._unfinished: tuple[bytes, tuple[float, float]] = (b"", (0.0, _NEVER))
        self._after_pause = False  # the space behind the last word may still come

    def begin(self, words: WordModel) -> None:
        """Begin a window: a language model over words that has read what is before it."""
        word, ways = self._unfinished
        self.words = words
        self._scores: dict[History, float] = {(): 0.0}
        self._hypotheses: dict[Hypothesis, tuple[float, float]] = {((), word): ways}

    def read(self, log_probs: np.ndarray) -> None:
        """Read the slots of a window ``[S, 257]``: log-probabilities of letters and blank."""
        for slot in log_probs:
            self._read_slot(slot)

    def _read_slot(self, slot: np.ndarray) -> None:
        blank = float(slot[BLANK])
        if blank > _SURE_BLANK:
            self._hypotheses = {key: (_added(*ways) + blank, _NEVER) for key, ways in self._hypotheses.items()}
            return
        letters = [int(letter) for letter in np.flatnonzero(slot > _LEAST_LETTER) if letter != BLANK]
        new: dict[Hypothesis, tuple[float, float]] = {}

        def add(key: Hypothesis, ends_blank: float, ends_letter: float) -> None:
            known = new.get(key, (_NEVER, _NEVER))
            new[key] = _added(known[0], ends_blank), _added(known[1], ends_letter)

        for (history, word), (ends_blank, ends_letter) in self._hypotheses.items():
            both = _added(ends_blank, ends_letter)
            add((history, word), both + blank, _NEVER)
            last = word[-1] if word else _SPACE
            for letter in letters:
                likely, before = float(slot[letter]), both
                if letter == last:  # the same one goes on; a second one needs a blank before it
                    add((history, word), _NEVER, ends_letter + likely)
                    before = ends_blank
                if before == _NEVER or (letter == _SPACE and not word and (history or not self._after_pause)):
                    continue
                if letter == _SPACE:
                    add(((*history, word) if word else history, b""), _NEVER, before + likely)
                else:
                    add((history, word + bytes([letter])), _NEVER, before + likely)
        self._judge_words(new)
        ranked = sorted(new, key=lambda key: -self._worth(key, new[key]))
        self._hypotheses = {key: new[key] for key in ranked[: self.beams]}

    def _worth(self, key: Hypothesis, ways: tuple[float, float]) -> float:
        history, word = key
        ahead = _LLM_WEIGHT * self.words.ahead(history, word) if word else 0.0
        return _added(*ways) + self._scores[history] + ahead

    def _judge_words(self, hypotheses: dict[Hypothesis, tuple[float, float]]) -> None:
        """Ask the LLM about words that have just been finished, and drop those far behind."""
        finished = [key for key in hypotheses if key[0] not in self.words]
        if not finished:
            return
        worth: dict[Hypothesis, float] = {
            key: self._scores[key[0][:-1]]
            + _LLM_WEIGHT * self.words.ahead(key[0][:-1], key[0][-1])
            + _added(*hypotheses[key])
            for key in finished
        }
        best = max([*worth.values(), *(self._worth(k, w) for k, w in hypotheses.items() if k not in worth)])
        finished.sort(key=lambda key: -worth[key])
        asked = [key for key in finished[:_MOST_WORDS] if worth[key] > best - _BEHIND]
        for key in set(finished) - set(asked):
            del hypotheses[key]
        if asked:
            self._grow([key[0] for key in asked], [history for history, _ in hypotheses])

    def _grow(self, histories: Sequence[History], known: Sequence[History]) -> None:
        wanted = [(history[:-1], history[-1]) for history in dict.fromkeys(histories)]
        for (history, word), score in zip(wanted, self.words.grow(wanted, known), strict=True):
            self._scores[(*history, word)] = self._scores[history] + _LLM_WEIGHT * score + _WORD_BONUS

    def end_of_window(self) -> list[int]:
        """Settle what was read, but for a word that goes on in the next window, and return the ids of the words.

        A word that the whole window adds nothing to does not go on: what follows such a pause is another one.
        """
        history, word = key = max(self._hypotheses, key=lambda key: self._worth(key, self._hypotheses[key]))
        if word and key == ((), self._unfinished[0]):
            return self.end()
        ids, ways = self._settle(history), self._hypotheses[key]
        top = max(ways)
        self._unfinished = word, (ways[0] - top, ways[1] - top)
        self._after_pause &= key == ((), b"")
        return ids

    def end(self) -> list[int]:
        """Settle all of it, the last word finished, and return the ids of the words since the last window's end."""
        wanted: list[History] = [(*history, word) for history, word in self._hypotheses if word]
        unknown = [history for history in wanted if history not in self.words]
        if unknown:
            self._grow(unknown, [*wanted, *(history for history, _ in self._hypotheses)])
        worth: dict[History, float] = {}
        for (history, word), ways in self._hypotheses.items():
            whole: History = (*history, word) if word else history
            worth[whole] = max(worth.get(whole, _NEVER), self._scores[whole] + _added(*ways))
        best = max(worth, key=lambda whole: worth[whole])
        ids, sign = self._settle(best), self.words.sign_after(best)
        self.ids += sign
        self._unfinished, self._after_pause = (b"", (0.0, _NEVER)), True
        return [*ids, *sign]

    def _settle(self, history: History) -> list[int]:
        before = self._unfinished[0]
        self.first_is_earlier = before != b"" and history[:1] == (before,)
        ids = self.words.ids(history)
        self.ids += ids
        return ids


class _WordModels:
    """Language models for the words of each window, by what the LLM has learned.

    One that has not learned to read speech tokens has read the text so far. One that has, has read its prompt with the
    tokens of this window and of the one before, and the text of the one before: Watanabe et al., "Hybrid CTC/Attention
    Architecture for End-to-End Speech Recognition" (IEEE JSTSP 2017), section III-C, over words.

    Args:
        model: with its text side.
        request: what is asked.

    Raises:
        ConfigError: no token of the LLM begins a word.
    """

    def __init__(self, model: AnsweringModel, request: Request) -> None:
        self._model, self._words = model, model.vocabulary()
        self._first = model.vocabulary(spaced=False) if model.llm_reads else None
        tokenizer = model.path.prompter.tokenizer
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        before, after = model.ids_of(request) if model.llm_reads else ([begin], [])
        self._memory = model.new_memory()
        self._before, self._after = self._embed(before), self._embed(after)
        self._last_tokens, self._num_ids = self._before[:0], 0

    def __call__(self, tokens: Tensor, ids: Sequence[int]) -> WordModel:
        """Return one for a window.

        Args:
            tokens: of the window ``[K, D_llm]``.
            ids: of all words so far.
        """
        llm = self._model.path.llm
        if not self._model.llm_reads:
            return WordModel(llm, self._words, torch.cat([self._before, self._embed(ids[-_CONTEXT_IDS:])]))
        tokens = tokens.to(self._before.dtype)
        said = self._embed(ids[self._num_ids :])
        prompt = torch.cat([self._before, self._last_tokens, tokens, self._after, said])
        self._last_tokens, self._num_ids = tokens, len(ids)
        return WordModel(llm, self._words, prompt, None if ids else self._first)

    def _embed(self, ids: Sequence[int]) -> Tensor:
        return self._memory.embed(ids, self._model.device)


class _WordSegments(Segments):
    """Text by window. The last word of a window is settled with the next one, and stands where its letters are."""

    _last = Segment(0.0, 0.0, "")

    def add(self, start: float, end: float, search: LetterSearch) -> str:
        """Take a window whose words have just been settled, and return their text."""
        text = self.text_of(search.ids)
        word = _FIRST_WORD.match(text) if search.first_is_earlier else None
        size = word.end() if word else 0
        self._last = replace(self._last, text=self._last.text + text[:size])
        self.end()
        self._last = Segment(start, end, text[size:])
        return text

    def end(self) -> None:
        """Show the last window."""
        self.show(self._last.start, self._last.end, self._last.text)


def check(decoding: Decoding, max_new_tokens: int | None, section_minutes: float | None) -> None:
    """Refuse what a search among letters does not do.

    Raises:
        ConfigError: it is asked to draw, to end early, or to go by sections.
    """
    given = {
        "temperature": decoding.temperature > 0,
        "top_p": decoding.top_p < 1,
        "max_new_tokens": max_new_tokens is not None,
        "section_minutes": section_minutes is not None,
    }
    if names := ", ".join(name for name, is_given in given.items() if is_given):
        raise ConfigError(
            f"{names}: a search among letters draws nothing, goes window by window, and ends with the audio. Leave that"
            " out."
        )


@torch.inference_mode()
def transcribe(
    model: AnsweringModel,
    source: AudioSource,
    request: Request,
    decoding: Decoding,
    on_progress: Progress | None = None,
    on_text: Callable[[str], None] | None = None,
    on_segment: Callable[[Segment], None] | None = None,
) -> Answer:
    """Return the transcript of a recording by the letters that its speech tokens spell; see ``Model.transcribe``.

    Raises:
        ConfigError: the LLM cannot be a language model over words; see ``WordModel`` and ``Vocabulary``.
        DataError: the audio cannot be read.
    """
    assert model.letters is not None
    search = LetterSearch(decoding.beams if decoding.beams > 1 else _BEAMS)
    new_words = _WordModels(model, request)
    started = time.perf_counter()
    encoding, seconds, signal, num_tokens = 0.0, 0.0, 0, 0
    segments = _WordSegments(model, on_segment)

    def told(start: float, end: float) -> None:
        text = segments.add(start, end, search)
        if on_text and text:
            on_text(text)
        if on_progress:
            on_progress("generated", len(search.ids))

    window: tuple[float, float] | None = None
    begun = started
    for part in encode(model.path, [source]):
        encoding += time.perf_counter() - begun
        first = 0
        for count, num_samples in zip(part.counts, part.num_samples, strict=True):
            if window is not None:
                search.end_of_window()
                told(*window)
            tokens = part.tokens[first : first + count]
            search.begin(new_words(tokens, search.ids))
            search.read(model.letters.log_probs(tokens[None].float())[0].cpu().numpy())
            window = (seconds, seconds + num_samples / SAMPLE_RATE_HZ)
            first, seconds = first + count, window[1]
        signal, num_tokens = signal + part.num_signal_samples, num_tokens + len(part.tokens)
        if on_progress:
            on_progress("encoded", part.seconds)
        begun = time.perf_counter()
    if window is None:
        raise DataError("there is no audio in it.")
    search.end()
    told(*window)
    segments.end()
    windows_read = 2 if model.llm_reads else 1  # together, see ``_WordModels``
    return model.result(
        Generated(search.ids, "stop"),
        request,
        seconds=seconds,
        signal_seconds=signal / SAMPLE_RATE_HZ,
        longest_pass=min(seconds, windows_read * model.path.listener.window_samples / SAMPLE_RATE_HZ),
        speech_tokens=num_tokens,
        timings=Timings(encoding, 0.0, time.perf_counter() - started - encoding),
        source=source.name,
        segments=segments.all,
        by_letters=True,
    )
