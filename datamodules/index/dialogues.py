"""A sample's JSON to its dialogue, and the length of that in ids of a tokenizer."""

import hashlib
import json
from typing import Any

from fastslm.errors import DataError
from fastslm.path.batch import Dialogue
from fastslm.path.prompt import TASKS, Prompter, answer_language, messages_of


def parse_fields(data: bytes) -> dict[str, Any]:
    """Return a sample's JSON.

    Raises:
        DataError: it is not a JSON object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"unreadable json: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"unreadable json: a {type(value).__name__} where an object was expected")
    return value


def task_of(fields: dict[str, Any]) -> str:
    """Return what a sample asks for: its ``task``, or ``dialogue`` for free messages, ``asr`` otherwise."""
    return str(fields.get("task") or ("asr" if fields.get("messages") is None else "dialogue"))


def dialogue_of(fields: dict[str, Any], prompter: Prompter, num_recordings: int, needs_answer: bool = True) -> Dialogue:
    """Return the dialogue of a sample's fields; without ``needs_answer`` also of one that has no answer.

    Raises:
        DataError: the text is missing or does not fit the recordings.
    """
    try:
        messages = messages_of(fields, needs_answer)
    except DataError as error:
        raise DataError(f"missing text: {error}") from error
    try:
        task = task_of(fields)
        return prompter.dialogue(messages, num_recordings, task, answer_language(fields, task))
    except DataError as error:
        raise DataError(f"unusable text: {error}") from error


def count_ids(fields: dict[str, Any], prompter: Prompter, num_recordings: int) -> int:
    """Return the ids of a sample's dialogue, each recording one placeholder; -1 where the prompter refuses it.

    One without an answer is counted too, up to where the answer would stand and the end of the turn.
    """
    try:
        return len(dialogue_of(fields, prompter, num_recordings, needs_answer=False).input_ids)
    except DataError:  # said again, in words, by whoever uses the sample: see `_index`
        return -1


def tokenizer_digest(prompter: Prompter) -> str:
    """Return 16 hex digits that change with the tokenizer, its chat template or the prompts of the tasks."""
    tokenizer = prompter.tokenizer
    probe = tokenizer(f"{tokenizer.chat_template} 0123456789 The quick brown fox", add_special_tokens=False)
    identity = [list(TASKS.items()), len(tokenizer), probe["input_ids"], prompter.enable_thinking]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
