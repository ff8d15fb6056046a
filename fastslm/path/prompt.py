"""The text side: a dialogue to token ids and labels through the tokenizer's own chat template."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from fastslm.contracts import Task
from fastslm.errors import ConfigError, DataError
from fastslm.path.batch import Dialogue, Int64Array
from fastslm.path.encoding import Span, TextEncoder
from fastslm.path.template import add_lead_in, lead_in, settle_template, switches
from fastslm.tasks import find_task, tasks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUDIO, AUDIO_BEGIN, AUDIO_END = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
#: Added to the tokenizer in this order, so that ids agree with the released checkpoint.
SPECIAL_TOKENS = (AUDIO, AUDIO_BEGIN, AUDIO_END, "<|EN|>", "<|KO|>", "<|ASR|>", "<|AST|>", "<|SSUM|>", "<|SQQA|>")

#: The tasks that the released checkpoint was trained for, which have a token each.
RELEASED_TASKS = ("asr", "ast", "ssum", "sqqa")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_CLIP = f"{AUDIO_BEGIN}{AUDIO}{AUDIO_END}"

_MOST_PROMPTS = 256  # kept, for most samples of a corpus ask the same

#: In a user's turn the special tokens stand for what they mark, unless this stands behind their first character.
_AS_TEXT = "\ue002"
_MARKS = re.compile(f"<({_AS_TEXT}?)({'|'.join(re.escape(mark[1:]) for mark in SPECIAL_TOKENS)})")


def as_text(words: str) -> str:
    """Return words of a sample or a user for a turn of messages: what spells a special token there stays text."""
    return _MARKS.sub(lambda mark: f"<{_AS_TEXT}{mark[2]}", words)


def plain(content: str) -> str:
    """Return a turn's content for people, as ``as_text`` found it."""
    return _MARKS.sub(lambda mark: f"<{mark[2]}", content)


def recordings_in(messages: Sequence[Mapping[str, str]]) -> int:
    """Return how many recordings the turns of messages mark."""
    asked = (mark for turn in messages if turn["role"] != "assistant" for mark in _MARKS.finditer(turn["content"]))
    return sum(mark[0] == AUDIO for mark in asked)


def _live(content: str) -> list[Span]:
    """Return where special tokens that mark something stand in the plain content of a turn."""
    found, removed = [], 0
    for mark in _MARKS.finditer(content):
        removed += len(mark[1])
        if not mark[1]:
            found.append((mark.start() - removed, mark.end() - removed))
    return found


def messages_of(fields: Mapping[str, Any], needs_answer: bool = True) -> list[dict[str, str]]:
    """Return a sample's dialogue from the fields of its JSON.

    A sample either brings ``messages`` (role and content, each recording marked by ``<|AUDIO|>``) or the name of an
    installed ``task`` (``asr`` when it says nothing) and the field that answers it.

    Args:
        fields: the sample's JSON.
        needs_answer: refuse a sample without an answer; otherwise the dialogue of such a one ends with an empty turn.

    Raises:
        DataError: the task is unknown, or a field that it needs is missing, empty or no text.
    """
    if fields.get("messages") is not None:
        return _turns(fields["messages"], needs_answer)
    try:
        task = find_task(str(fields.get("task") or "asr"))
    except ConfigError as error:
        raise DataError(str(error)) from error
    blank = not needs_answer and _is_blank(fields.get(task.answer_field))
    answer = "" if blank else _words(fields, task.answer_field, task.name)
    return [{"role": "user", "content": asked(task, fields)}, {"role": "assistant", "content": answer}]


def asked(task: Task, fields: Mapping[str, Any]) -> str:
    """Return the user's turn of a task about a recording.

    Raises:
        DataError: a field that its prompt names is missing, empty or no text.
    """
    named = {name: as_text(_words(fields, name, task.name)) for name in task.needed_fields}
    target = as_text(
        checked_text(fields.get("target_language") or task.default_language, "the field 'target_language'")
    )
    return task.prompt.format(**({"target_language": target} | named), audio=_CLIP)


def answer_language(fields: Mapping[str, Any], task: str) -> str:
    """Return the language that a sample's answer is in, as its fields or the task name it; "" where they do not."""
    known = tasks().get(task)
    named = fields.get("target_language" if known and known.translates else "language")
    return str(named or (known.default_language if known else ""))


def _words(fields: Mapping[str, Any], name: str, task: str) -> str:
    value = fields.get(name)
    if _is_blank(value):
        raise DataError(f"task {task!r} needs the field {name!r}, which is missing or empty")
    return checked_text(value, f"the field {name!r}").strip()


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not is_visible(value))


def is_visible(text: str) -> bool:
    """Say whether a text has a character that one sees: no space, mark of order or joiner without width."""
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)


def _turns(messages: Any, needs_answer: bool) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise DataError("'messages' must be a list of turns, each with 'role' and 'content'")
    turns = [
        {name: checked_text(message.get(name), f"{name!r} of turn {i} of 'messages'") for name in ("role", "content")}
        for i, message in enumerate(messages, 1)
    ]
    for i, turn in enumerate(turns, 1):
        if turn["role"] not in _ROLES:  # templates write it between control tokens, as it is
            raise DataError(f"'role' of turn {i} of 'messages' is {turn['role'][:40]!r}, and not {', '.join(_ROLES)}")
    if not needs_answer and turns and turns[-1]["role"] == "user":
        turns.append({"role": "assistant", "content": ""})
    if not turns or turns[-1]["role"] != "assistant" or (needs_answer and not is_visible(turns[-1]["content"])):
        raise DataError("'messages' must end with an assistant turn that has content")
    return turns


def checked_text(value: Any, what: str) -> str:
    """Return a value that is text which can be encoded.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, str):
        raise DataError(f"{what} must be text, and is {value!r:.40}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{what} holds half a character at position {error.start}") from error
    return value


@dataclass(frozen=True)
class _Prompt:
    """A rendered dialogue up to where the answer begins.

    Attributes:
        text: without the spaces at its end.
        lead: the space between it and the answer; tokenizers make one token of a space and the word behind it.
        words: where in the text words of people stand.
        ids: ``[L]``.
        predicted: which of them are an earlier answer or its end ``[L]``.
        spelt: see ``Encoded``.
        unknown: see ``Encoded``.
    """

    text: str
    lead: str
    words: list[Span]
    ids: Int64Array
    predicted: npt.NDArray[np.bool_]
    spelt: tuple[str, ...]
    unknown: tuple[str, ...]


class Prompter:
    """Turns dialogues into token ids, for training, validation, use and exported models alike.

    Adds the special tokens to the tokenizer it is given, and settles its chat template. Labels are the assistant's
    words and the token that ends its turn, in every turn; the template's own words are never predicted. What people say
    is text, whatever it spells.

    Args:
        tokenizer: a fast tokenizer; without a chat template it gets a plain one.
        enable_thinking: passed to templates that know it (Qwen3); off, an empty thought precedes the answer, and where
            a template has more before an answer that is there than behind a question, prompts get that, too.

    Attributes:
        audio_id: the id that marks a recording.
        end_of_turn: the token that the template puts behind an answer, or the one that ends a text.
        stop_ids: ids that end an answer: these two, and what the template puts behind an answer that is not the last.

    Raises:
        ConfigError: the tokenizer is a slow one, has no end-of-text token, or has a chat template that refuses the
            simplest dialogue.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", enable_thinking: bool = False) -> None:
        if not tokenizer.is_fast:
            raise ConfigError("model.llm.pretrained: the tokenizer is a slow one; offsets need tokenizer.json.")
        if tokenizer.eos_token is None:
            raise ConfigError("model.llm.pretrained: the tokenizer has no eos_token, so no answer would ever end.")
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(SPECIAL_TOKENS)}, replace_extra_special_tokens=False
        )
        settle_template(tokenizer)
        self.tokenizer = tokenizer
        self.enable_thinking = enable_thinking
        self._encode = TextEncoder(tokenizer)
        self._prompts: dict[tuple[Any, ...], _Prompt] = {}
        self.audio_id = cast(int, tokenizer.convert_tokens_to_ids(AUDIO))
        try:
            prompt, before, ends = self._around_answers()
        except DataError as error:
            raise ConfigError(
                f"model.llm.pretrained: {error}. A chat template must take a question and its answer."
            ) from error
        if not enable_thinking and (missing := lead_in(prompt, before, self._encode.controls.values())):
            add_lead_in(tokenizer, missing)
            prompt, before, ends = self._around_answers()
        gap = before.removeprefix(prompt) if before.startswith(prompt) else ""
        self._gap = "" if gap.strip(" ") else gap
        self.end_of_turn = ends[0] or str(tokenizer.eos_token)
        stops = {self.end_of_turn, str(tokenizer.eos_token), *filter(None, ends)}
        self.stop_ids = sorted(cast(list[int], tokenizer.convert_tokens_to_ids(list(stops))))

    def _around_answers(self) -> tuple[str, str, list[str]]:
        """Return a prompt, what stands before its answer, and the tokens behind the last answer and an earlier one."""
        asked, answered = {"role": "user", "content": "x"}, {"role": "assistant", "content": "qwertz"}
        prompt = self._render([asked], generate=True)
        before, shown, last = self._render([asked, answered], generate=False).rpartition("qwertz")
        if not shown:
            raise DataError("the chat template leaves out or rewrites an answer")
        try:
            two = self._render([asked, answered, asked], generate=True)
        except DataError:  # a template of one question: samples with more are refused one by one
            two = ""
        earlier = two.rpartition("qwertz")[2] if "qwertz" in two else ""
        return prompt, before, [self._encode.control_at(text) for text in (last, earlier)]

    def _render(self, messages: Sequence[Mapping[str, str]], generate: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generate,
                **switches(self.enable_thinking),
            )
        except Exception as error:  # a template's own, or whatever its expressions make of what they are given
            raise DataError(f"the chat template refuses the dialogue: {error}") from error
        return str(text)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> Int64Array:
        """Return the ids ``[L]`` of a dialogue that ends with the user's turn, up to where the answer begins.

        Raises:
            DataError: the template refuses the dialogue, rewrites its words or leaves a turn out.
        """
        return self._prompt(messages).ids

    def prompt_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text that has these ids, for programs that encode it themselves.

        Raises:
            DataError: see ``prompt_ids``, or the words of people spell a control token, which it would be there.
        """
        prompt = self._prompt(messages)
        if prompt.spelt:
            raise DataError(f"the words spell {', '.join(prompt.spelt)}, which another program reads as control tokens")
        return prompt.text

    def dialogue(
        self, messages: Sequence[Mapping[str, str]], num_recordings: int, task: str, language: str = ""
    ) -> Dialogue:
        """Return the ids and labels of a dialogue whose last turn is the assistant's.

        Raises:
            DataError: the placeholders do not match the recordings, or the template refuses the dialogue, rewrites its
            words or leaves a turn out.
        """
        prompt = self._prompt(messages[:-1])
        answer = messages[-1]["content"].strip()
        ids, spelt, unknown = self._with_answer(prompt, answer)
        num_prompt_ids = len(prompt.ids)
        found = int((ids == self.audio_id).sum())
        if found != num_recordings:
            raise DataError(
                f"the dialogue marks {found} recordings with {AUDIO}, and the sample holds {num_recordings}"
            )
        labels = np.where(np.append(prompt.predicted, np.ones(len(ids) - num_prompt_ids, bool)), ids, -100)
        return Dialogue(ids, labels, num_prompt_ids, answer, task, language, spelt, unknown)

    def _with_answer(self, prompt: _Prompt, answer: str) -> tuple[Int64Array, tuple[str, ...], tuple[str, ...]]:
        """Return the ids of a prompt with its answer; what any words spelt, and what is not known: see ``Encoded``."""
        text = prompt.text + prompt.lead + answer
        begin = len(text) - len(answer)
        whole = self._encode(text + self.end_of_turn, [*prompt.words, (begin, len(text))])
        if np.array_equal(whole.ids[: len(prompt.ids)], prompt.ids):
            return whole.ids, whole.spelt, whole.unknown
        # A token would reach from the prompt into the answer, and in use the prompt is all there is.
        lead = len(prompt.lead)
        alone = self._encode(prompt.lead + answer + self.end_of_turn, [(lead, lead + len(answer))])
        ids = np.concatenate([prompt.ids, alone.ids])
        return ids, prompt.spelt + alone.spelt, prompt.unknown + alone.unknown

    def _prompt(self, messages: Sequence[Mapping[str, str]]) -> _Prompt:
        place = (tuple(tuple(sorted(message.items())) for message in messages), self.tokenizer.get_chat_template())
        if place not in self._prompts:
            if len(self._prompts) >= _MOST_PROMPTS:
                self._prompts.clear()
            self._prompts[place] = self._made(messages)
        return self._prompts[place]

    def _made(self, messages: Sequence[Mapping[str, str]]) -> _Prompt:
        said = [m["content"].strip() if m["role"] == "assistant" else plain(m["content"]) for m in messages]
        shown = [{**message, "content": words} for message, words in zip(messages, said, strict=True)]
        text = self._render(shown, generate=True)
        words, answers = [], []
        for message, turn, (begin, end, following) in zip(messages, shown, self._places(shown, text), strict=True):
            if message["role"] == "assistant":
                words.append((begin, end))
                answers.append((begin, end))
                if control := self._encode.control_at(following):
                    place = text.index(control, end)
                    answers.append((place, place + len(control)))
            else:
                shift = begin - turn["content"].index(text[begin:end])  # a template may have stripped it
                edges = [begin, *(edge + shift for mark in _live(message["content"]) for edge in mark), end]
                words += [*zip(edges[::2], edges[1::2], strict=True)]
        kept = text.rstrip(" ")
        words.sort()
        encoded = self._encode(kept, words)
        predicted = np.zeros(len(encoded.ids), bool)
        for begin, end in answers:
            predicted |= (encoded.ends > begin) & (encoded.starts < end)
        return _Prompt(
            kept, text[len(kept) :] + self._gap, words, encoded.ids, predicted, encoded.spelt, encoded.unknown
        )

    def _places(self, messages: Sequence[Mapping[str, str]], text: str) -> list[tuple[int, int, str]]:
        """Return where each turn's words stand in a rendered dialogue, and what follows them up to the next.

        The template is rendered once more with a mark in place of each turn's words; what stands between the marks is
        the template's own, so that an answer such as "as" is never found in its "assistant". Their order is the
        template's, too: Mistral's puts the system's words into the last question.
        """
        marked = [{**message, "content": f"\ue000{i}\ue001"} for i, message in enumerate(messages)]
        first, *rest = re.split("\ue000(\\d+)\ue001", self._render(marked, generate=True))
        order, between = [int(number) for number in rest[::2]], rest[1::2]
        places: dict[int, tuple[int, int, str]] = {}
        cursor = len(first)
        if sorted(order) != list(range(len(messages))) or not text.startswith(first):
            raise DataError("the chat template leaves out or repeats a turn")
        for turn, following in zip(order, between, strict=True):
            message = messages[turn]
            words = message["content"]
            if not text.startswith(words + following, cursor):
                words = words.strip()  # as many templates do
                if not text.startswith(words + following, cursor):
                    raise DataError(f"the chat template rewrites the {message['role']}'s words {words[:40]!r}")
            places[turn] = (cursor, cursor + len(words), following)
            cursor += len(words) + len(following)
        if cursor != len(text):
            raise DataError("the chat template rewrites the dialogue")
        return [places[turn] for turn in range(len(messages))]
