"""The text side: a dialogue to token ids and labels through the tokenizer's own chat template."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastslm.batch import Dialogue
from fastslm.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUDIO, AUDIO_BEGIN, AUDIO_END = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
#: Added to the tokenizer in this order, so that ids agree with the released checkpoint.
SPECIAL_TOKENS = (AUDIO, AUDIO_BEGIN, AUDIO_END, "<|EN|>", "<|KO|>", "<|ASR|>", "<|AST|>", "<|SSUM|>", "<|SQQA|>")

#: What is asked, and which field of a sample answers it.
TASKS: Mapping[str, tuple[str, str]] = {
    "asr": ("<|ASR|>{audio}\nTranscribe the audio clip into text.", "text"),
    "ast": ("<|AST|>{audio}\nTranslate the audio clip into {target_language}.", "translation"),
    "ssum": ("<|SSUM|>{audio}\nSummarize the audio clip.", "summary"),
    "sqqa": ("<|SQQA|>{audio}\n{question}", "answer"),
}
_CLIP = f"{AUDIO_BEGIN}{AUDIO}{AUDIO_END}"

#: For base models without a chat template of their own.
_PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n"
    "{% endfor %}{{ 'assistant: ' if add_generation_prompt else '' }}"
)


def messages_of(fields: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a sample's dialogue from the fields of its JSON.

    A sample either brings ``messages`` (role and content, each recording marked by ``<|AUDIO|>``) or a ``task`` of
    ``asr``, ``ast``, ``ssum``, ``sqqa`` (``asr`` when it says nothing) and the field that answers it.

    Raises:
        DataError: the task is unknown, or the field that it needs is missing or empty.
    """
    if "messages" in fields:
        messages = fields["messages"]
        if not messages or messages[-1].get("role") != "assistant" or not messages[-1].get("content", "").strip():
            raise DataError("'messages' must end with an assistant turn that has content")
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
    task = str(fields.get("task", "asr"))
    if task not in TASKS:
        raise DataError(f"unknown task {task!r}, known: {', '.join(TASKS)}.{nearest(task, TASKS)}")
    question, answer_field = TASKS[task]
    answer = str(fields.get(answer_field) or "").strip()
    if not answer:
        raise DataError(f"task {task!r} needs the field {answer_field!r}, which is missing or empty")
    if task == "sqqa" and not str(fields.get("question") or "").strip():
        raise DataError("task 'sqqa' needs the field 'question', which is missing or empty")
    target = fields.get("target_language") or "English"
    content = question.format(audio=_CLIP, question=fields.get("question"), target_language=target)
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


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
        self.audio_id = int(tokenizer.convert_tokens_to_ids(AUDIO))
        self.end_of_turn = self._find_end_of_turn()
        ids = tokenizer(self.end_of_turn, add_special_tokens=False)["input_ids"]
        self.stop_ids = sorted({int(ids[0]), int(tokenizer.eos_token_id)})

    def _render(self, messages: Sequence[Mapping[str, str]], generate: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generate, enable_thinking=self.enable_thinking
        )
        return str(text)

    def _find_end_of_turn(self) -> str:
        probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "qwertz"}]
        rest = self._render(probe, generate=False).rpartition("qwertz")[2]
        ids = self.tokenizer(rest, add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        return self.tokenizer.decode(ids[:1]) if ids and ids[0] in special else str(self.tokenizer.eos_token)

    def dialogue(self, messages: Sequence[Mapping[str, str]], num_recordings: int, task: str) -> Dialogue:
        """Return the ids and labels of a dialogue whose last turn is the assistant's.

        Raises:
            DataError: the placeholders do not match the recordings, or the template rewrites an answer.
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
        return Dialogue(ids, np.where(predicted, ids, -100), num_prompt_ids, answer, task)

    def _earlier_answers(self, messages: Sequence[Mapping[str, str]], text: str) -> list[tuple[int, int]]:
        """Return where the assistant's earlier answers and their ends stand in a rendered dialogue."""
        spans, cursor = [], 0
        for message in messages:
            content = message["content"].strip()
            at = text.find(content, cursor)
            if at < 0:
                raise DataError(f"the chat template rewrites the {message['role']}'s words {content[:40]!r}")
            cursor = at + len(content)
            if message["role"] == "assistant":
                ends = text.startswith(self.end_of_turn, cursor)
                spans.append((at, cursor + (len(self.end_of_turn) if ends else 0)))
        return spans
