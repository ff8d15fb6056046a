"""What is asked of audio: task, words and language, as the token ids on either side of the speech tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastslm.contracts import Task
from fastslm.errors import ConfigError, DataError
from fastslm.path.prompt import AUDIO_END, Prompter, as_text, asked, checked_text, plain
from fastslm.tasks import find_task


@dataclass(frozen=True)
class Request:
    """What is asked of one recording.

    Attributes:
        task: its name, such as ``asr``.
        prompt: words in place of the task's own; where those ask with one field of a sample, as ``sqqa`` does with its
            question, that field.
        language: what to answer in, in English (``Korean``); for tasks that translate.
        brought: what the name stands for where a model brings its own tasks; None takes the installed one.

    Raises:
        ConfigError: the task is unknown, lacks its question, needs several fields and has no words of one's own,
            or has a language and does not translate; or one of the words is no text.
    """

    task: str = "asr"
    prompt: str | None = None
    language: str | None = None
    brought: Task | None = None

    def __post_init__(self) -> None:
        for name in ("task", "prompt", "language"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "task"):
                raise ConfigError(f"{name}: {value!r} must be text.")
            try:
                checked_text(value or "", name)
            except DataError as error:
                raise ConfigError(f"{error}.") from error
        if len(self._needed) > 1 and (self.prompt is None or _fields(self._bare)):
            raise ConfigError(
                f"task: {self.task} cannot be asked of audio alone: its words need {' and '.join(self._needed)}, and a"
                " request brings one of them at most, as its prompt. Evaluate it on samples that have them"
                f"{'' if _fields(self._bare) else ', or give words of your own as the prompt'}."
            )
        if len(self._needed) == 1 and not (self.prompt or "").strip():
            raise ConfigError(f"task: {self.task} needs a {self._needed[0]}; give one as the prompt.")
        if self.prompt is not None and not self.prompt.strip():
            raise ConfigError("prompt: it is empty. Say what to ask, or leave it out for the task's own words.")
        if self.language is not None and not self.language.strip():
            raise ConfigError("language: it is empty. Name the language to answer in, or leave it out.")
        if self.language is None and self.definition.translates and not self.definition.default_language:
            raise ConfigError(f"language: task {self.task} translates; name the language to answer in.")
        if self.language is not None and not self.definition.translates:
            raise ConfigError(
                f"language: {self.language!r} is what tasks such as ast translate into; task {self.task} does not."
                " Transcripts are in the language of the audio."
            )

    @property
    def definition(self) -> Task:
        """What the name of the task stands for."""
        return self.brought or find_task(self.task)

    def messages(self) -> list[dict[str, str]]:
        """Return the user's turn, as training puts it."""
        task, words = self.definition, ""
        if self.prompt is not None and len(self._needed) != 1:
            task, words = self._bare, f"\n{as_text(self.prompt.strip())}"
        fields = {**dict.fromkeys(self._needed, self.prompt), "target_language": self.language}
        return [{"role": "user", "content": asked(task, fields) + words}]

    @property
    def _needed(self) -> list[str]:
        return _fields(self.definition)

    @property
    def _bare(self) -> Task:
        """The task without its words behind the audio, where words of one's own come."""
        return replace(self.definition, prompt=self.definition.prompt.partition("{audio}")[0] + "{audio}")

    def ids(self, prompter: Prompter) -> tuple[list[int], list[int]]:
        """Return the prompt's ids before and after the speech tokens.

        Raises:
            ConfigError: the chat template does not keep the place of the audio, or refuses or rewrites the words.
        """
        try:
            ids: Sequence[int] = prompter.prompt_ids(self.messages()).tolist()
        except DataError as error:
            raise ConfigError(f"model.llm.pretrained: {error}.") from error
        if ids.count(prompter.audio_id) != 1:
            raise ConfigError("model.llm.pretrained: its chat template leaves out the audio, or repeats it.")
        place = ids.index(prompter.audio_id)
        return list(ids[:place]), list(ids[place + 1 :])

    @property
    def words(self) -> str:
        """What is asked, without marks."""
        return plain(self.messages()[0]["content"].partition(AUDIO_END)[2]).strip()


def _fields(task: Task) -> list[str]:
    """Return the fields of a sample that a task's words need."""
    return [name for name in task.needed_fields if name != "target_language"]
