"""What is asked of audio: task, words and language, as the token ids on either side of the speech tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastslm.errors import ConfigError, nearest
from fastslm.path.prompt import AUDIO, AUDIO_BEGIN, AUDIO_END, TASKS, Prompter, messages_of

#: Tasks whose answer follows the audio in time, so that it can be written section by section.
TIMED_TASKS = ("asr", "ast")


@dataclass(frozen=True)
class Request:
    """What is asked of one recording.

    Attributes:
        task: ``asr``, ``ast``, ``ssum`` or ``sqqa``.
        prompt: words in place of the task's own; for ``sqqa`` the question.
        language: language to translate into, in English (``Korean``); for ``ast`` only, which otherwise takes English.

    Raises:
        ConfigError: the task is unknown, ``sqqa`` has no question, or another task than ``ast`` has a language.
    """

    task: str = "asr"
    prompt: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"task: {self.task!r} is none of {', '.join(TASKS)}.{nearest(self.task, TASKS)}")
        if self.task == "sqqa" and not (self.prompt or "").strip():
            raise ConfigError("task: sqqa answers a question; give one as the prompt.")
        if self.language is not None and self.task != "ast":
            raise ConfigError(
                f"language: {self.language!r} is what task ast translates into; task {self.task} has none. Transcripts"
                " are in the language of the audio."
            )
        if self.prompt is not None and AUDIO in self.prompt:
            raise ConfigError(f"prompt: leave out {AUDIO}; the audio stands in front of the prompt.")

    def messages(self) -> list[dict[str, str]]:
        """Return the user's turn, as training puts it."""
        template, answer_field = TASKS[self.task]
        if self.task == "sqqa" or self.prompt is None:
            fields = {"task": self.task, answer_field: "-", "question": self.prompt, "target_language": self.language}
            return messages_of(fields)[:-1]
        tag = template.partition("{audio}")[0]
        return [{"role": "user", "content": f"{tag}{AUDIO_BEGIN}{AUDIO}{AUDIO_END}\n{self.prompt.strip()}"}]

    def ids(self, prompter: Prompter) -> tuple[list[int], list[int]]:
        """Return the prompt's ids before and after the speech tokens.

        Raises:
            ConfigError: the chat template does not keep the place of the audio.
        """
        ids: Sequence[int] = prompter.prompt_ids(self.messages()).tolist()
        if ids.count(prompter.audio_id) != 1:
            raise ConfigError("model.llm.pretrained: its chat template leaves out the audio, or repeats it.")
        place = ids.index(prompter.audio_id)
        return list(ids[:place]), list(ids[place + 1 :])

    @property
    def words(self) -> str:
        """What is asked, without marks."""
        return self.messages()[0]["content"].partition("\n")[2]
