"""The text side: a dialogue to token ids and labels through the tokenizer's own chat template."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastslm.contracts import Task
from fastslm.errors import ConfigError, DataError
from fastslm.path.batch import Dialogue, Int64Array
from fastslm.tasks import find_task, tasks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUDIO, AUDIO_BEGIN, AUDIO_END = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
#: Added to the tokenizer in this order, so that ids agree with the released checkpoint.
SPECIAL_TOKENS = (AUDIO, AUDIO_BEGIN, AUDIO_END, "<|EN|>", "<|KO|>", "<|ASR|>", "<|AST|>", "<|SSUM|>", "<|SQQA|>")

#: The tasks that the released checkpoint was trained for, which have a token each.
RELEASED_TASKS = ("asr", "ast", "ssum", "sqqa")
_CLIP = f"{AUDIO_BEGIN}{AUDIO}{AUDIO_END}"

_MAX_RENDERED = 256

#: For base models without a chat template of their own.
_PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n"
    "{% endfor %}{{ 'assistant: ' if add_generation_prompt else '' }}"
)


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
    named = {name: _words(fields, name, task.name) for name in task.needed_fields}
    target = fields.get("target_language") or task.default_language
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
    return _text(value, f"the field {name!r}").strip()


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _turns(messages: Any, needs_answer: bool) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise DataError("'messages' must be a list of turns, each with 'role' and 'content'")
    turns = [
        {name: _text(message.get(name), f"{name!r} of turn {i} of 'messages'") for name in ("role", "content")}
        for i, message in enumerate(messages, 1)
    ]
    if not needs_answer and turns and turns[-1]["role"] == "user":
        turns.append({"role": "assistant", "content": ""})
    if not turns or turns[-1]["role"] != "assistant" or (needs_answer and not turns[-1]["content"].strip()):
        raise DataError("'messages' must end with an assistant turn that has content")
    return turns


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} must be text, and is {value!r:.40}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{what} holds half a character at position {error.start}") from error
    return value


class Prompter:
    """Turns dialogues into token ids.

    Adds the special tokens to the tokenizer it is given. Labels are the assistant's words and the token that ends its
    turn, in every turn; the template's own words are never predicted.

    Args:
        tokenizer: a fast tokenizer; without a chat template it gets a plain one.
        enable_thinking: passed to templates that know it (Qwen3); off, an empty thought precedes the answer.

    Attributes:
        audio_id: the id that marks a recording.
        stop_ids: ids that end an answer.

    Raises:
        ConfigError: the tokenizer is a slow one, or has no end-of-text token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", enable_thinking: bool = False) -> None:
        if not tokenizer.is_fast:
            raise ConfigError("model.llm.pretrained: the tokenizer is a slow one; offsets need tokenizer.json.")
        if tokenizer.eos_token is None:
            raise ConfigError("model.llm.pretrained: the tokenizer has no eos_token, so no answer would ever end.")
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(SPECIAL_TOKENS)}, replace_extra_special_tokens=False
        )
        if tokenizer.chat_template is None:
            tokenizer.chat_template = _PLAIN_TEMPLATE
        self.tokenizer = tokenizer
        self.enable_thinking = enable_thinking
        self._rendered: dict[tuple[Any, ...], str] = {}  # most samples of a corpus ask the same
        self.audio_id = cast(int, tokenizer.convert_tokens_to_ids(AUDIO))
        self.end_of_turn = self._find_end_of_turn()
        ids = tokenizer(self.end_of_turn, add_special_tokens=False)["input_ids"]
        self.stop_ids = sorted({int(ids[0]), int(tokenizer.eos_token_id)})

    def _render(self, messages: Sequence[Mapping[str, str]], generate: bool) -> str:
        from jinja2 import TemplateError

        turns = tuple(tuple(sorted(message.items())) for message in messages)
        place = (turns, generate, self.tokenizer.chat_template)
        if place in self._rendered:
            return self._rendered[place]
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generate,
                enable_thinking=self.enable_thinking,
            )
        except TemplateError as error:
            raise DataError(f"the chat template refuses the dialogue: {error}") from error
        if len(self._rendered) >= _MAX_RENDERED:
            self._rendered.clear()
        self._rendered[place] = str(text)
        return str(text)

    def _find_end_of_turn(self) -> str:
        probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "qwertz"}]
        rest = self._render(probe, generate=False).rpartition("qwertz")[2]
        ids = self.tokenizer(rest, add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        return str(self.tokenizer.decode(ids[:1]) if ids and ids[0] in special else self.tokenizer.eos_token)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> Int64Array:
        """Return the ids ``[L]`` of a dialogue that ends with the user's turn, up to where the answer begins."""
        text = self._render(messages, generate=True)
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)

    def dialogue(
        self, messages: Sequence[Mapping[str, str]], num_recordings: int, task: str, language: str = ""
    ) -> Dialogue:
        """Return the ids and labels of a dialogue whose last turn is the assistant's.

        Raises:
            DataError: the placeholders do not match the recordings, or the template refuses the dialogue, rewrites its
            words or leaves a turn out.
        """
        prompt = self._render(messages[:-1], generate=True)
        answer = messages[-1]["content"].strip()
        text = prompt + answer + self.end_of_turn
        spans = [*self._earlier_answers(messages[:-1], prompt), (len(prompt), len(text))]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.array(encoded["input_ids"], np.int64)
        starts, ends = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
        predicted = np.zeros(len(ids), bool)
        for begin, end in spans:
            predicted |= (ends > begin) & (starts < end)
        found = int((ids == self.audio_id).sum())
        if found != num_recordings:
            raise DataError(
                f"the dialogue marks {found} recordings with {AUDIO}, and the sample holds {num_recordings}"
            )
        num_prompt_ids = int(np.argmax(ends > len(prompt)))
        return Dialogue(ids, np.where(predicted, ids, -100), num_prompt_ids, answer, task, language)

    def _earlier_answers(self, messages: Sequence[Mapping[str, str]], text: str) -> list[tuple[int, int]]:
        """Return where the assistant's earlier answers and their ends stand in a rendered dialogue.

        The template is rendered once more with a mark in place of each turn's words; what stands between the marks is
        the template's own, so that an answer such as "as" is never found in its "assistant".
        """
        marked = [{**message, "content": f"\ue000{i}\ue001"} for i, message in enumerate(messages)]
        first, *between = re.split("\ue000\\d+\ue001", self._render(marked, generate=True))
        spans, cursor = [], len(first)
        if len(between) != len(messages) or not text.startswith(first):
            raise DataError("the chat template leaves out or repeats a turn")
        for message, following in zip(messages, between, strict=True):
            words = message["content"]
            if not text.startswith(words + following, cursor):
                words = words.strip()  # as many templates do
                if not text.startswith(words + following, cursor):
                    raise DataError(f"the chat template rewrites the {message['role']}'s words {words[:40]!r}")
            begin, cursor = cursor, cursor + len(words)
            if message["role"] == "assistant":
                spans.append((begin, cursor + (len(self.end_of_turn) if following.startswith(self.end_of_turn) else 0)))
            cursor += len(following)
        if cursor != len(text):
            raise DataError("the chat template rewrites the dialogue")
        return spans
