"""A sample's JSON to its dialogue, and the length of that in ids of a tokenizer."""

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from fastslm.errors import DataError
from fastslm.path.batch import Dialogue
from fastslm.path.prompt import RELEASED_TASKS, Prompter, answer_language, messages_of
from fastslm.tasks import find_task, tasks


def parse_fields(data: bytes) -> dict[str, Any]:
    """Return a sample's JSON.

    Raises:
        DataError: it is not a JSON object.
    """
    try:
        value = json.loads(data, object_pairs_hook=unambiguous)
    except (ValueError, RecursionError) as error:
        raise DataError(f"unreadable json: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"unreadable json: a {type(value).__name__} where an object was expected")
    return value


def fields_of(data: bytes, crc32: int) -> dict[str, Any]:
    """Return a sample's JSON of the bytes that its index says.

    Raises:
        DataError: they are others, or no JSON object.
    """
    if zlib.crc32(data) != crc32:
        raise DataError("checksum differs: its json was modified after indexing")
    return parse_fields(data)


def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, for ``json.loads``, which takes the last of two values of a name in silence.

    Raises:
        ValueError: a name has two values.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        for name, other in pairs:
            if value[name] != other:
                raise ValueError(f"{name!r} stands twice in an object, as {other!r:.60} and as {value[name]!r:.60}")
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
    """Return 16 hex digits that change with the tokenizer, its chat template or the prompts of the release's tasks.

    Those of other tasks are compared by shard, see ``prompts_of``: a new task leaves the counts of all corpora alone.
    """
    tokenizer = prompter.tokenizer
    probe = tokenizer(f"{tokenizer.chat_template} 0123456789 The quick brown fox", add_special_tokens=False)
    released = [[task.name, [task.prompt, task.answer_field]] for task in map(find_task, RELEASED_TASKS)]
    identity = [released, len(tokenizer), probe["input_ids"], prompter.enable_thinking]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def prompts_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Return prompt and answer field of those tasks that ``tokenizer_digest`` does not cover and that are installed."""
    known = {name: tasks()[name] for name in sorted(set(names) - set(RELEASED_TASKS)) if name in tasks()}
    return {name: [task.prompt, task.answer_field] for name, task in known.items()}


def is_outdated(prompts: Mapping[str, list[str]], broken: Iterable[Mapping[str, str]]) -> bool:
    """Say whether an index was made before a task was installed that it needs, or for another answer field of it.

    Args:
        prompts: ``prompts_of`` the tasks of its samples when it was made.
        broken: its findings.
    """
    now = prompts_of(prompts)
    missed = [found[1] for item in broken if (found := re.match("unknown task '(.*?)'", item["detail"]))]
    return bool(prompts_of(missed)) or any(now[name][1] != prompts[name][1] for name in now)


def with_answer(fields: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return the fields of a sample with another answer to its task."""
    return {**fields, tasks()[task_of(fields)].answer_field: answer}
