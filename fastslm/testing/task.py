"""The tests that every task has to pass, as a class to subclass in a pytest file.

from fastslm.testing import TaskContract

class TestKeywords(TaskContract):
    task = keywords
    sample = {"task": "keywords", "keywords": "budget, deadline"}
"""

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from fastslm.contracts import Metric, Task
from fastslm.errors import ConfigError, DataError
from fastslm.path.pretrained import resolve
from fastslm.path.prompt import AUDIO, Prompter, answer_language, messages_of
from fastslm.path.request import Request
from fastslm.tasks import find_task

_WRONG = ("", "something else altogether", "..")


class TaskContract:
    """What ``Task`` and its ``Metric``s promise, as tests on one sample; all together take a second.

    Attributes:
        task: the task.
        sample: the JSON of a sample of it, with an answer of four words or more where n-grams are counted.
    """

    task: ClassVar[Task]
    sample: ClassVar[Mapping[str, Any]]

    def test_it_is_installed_by_its_name(self) -> None:
        """``fastslm plugins`` lists it, and samples and requests find it."""
        assert find_task(self.task.name) is self.task
        assert self.sample.get("task", "asr") == self.task.name

    def test_it_asks_about_the_recording_and_is_answered(self) -> None:
        """The prompt marks one recording, and the answer is what the model is to say."""
        user, assistant = messages_of(self.sample)
        assert user["content"].count(AUDIO) == 1
        assert assistant["content"] == self._answer()
        prompter = self._prompter()
        dialogue = prompter.dialogue([user, assistant], 1, self.task.name)
        labels = dialogue.labels[dialogue.labels >= 0][:-1]  # the last one ends the turn
        assert prompter.tokenizer.decode(labels).strip() == self._answer()

    def test_the_prompt_does_not_tell_the_answer(self) -> None:
        """Another answer leaves what is asked as it is."""
        other = messages_of({**self.sample, self.task.answer_field: "qwertz"})
        assert other[0] == messages_of(self.sample)[0]

    def test_a_sample_without_what_it_needs_is_refused(self) -> None:
        """The answer's field and those of the prompt are named where they are missing."""
        for name in (self.task.answer_field, *self.task.needed_fields):
            said = ""
            try:
                messages_of({key: value for key, value in self.sample.items() if key != name})
            except DataError as error:
                said = str(error)
            assert repr(name) in said, f"a sample without {name!r} is accepted"

    def test_it_can_be_asked_for_after_training(self) -> None:
        """A request without a sample asks in the same words; so does one of an exported model."""
        needed = [str(self.sample[name]) for name in self.task.needed_fields if name != "target_language"]
        prompt, language = needed[0] if len(needed) == 1 else None, None
        if self.task.translates:
            language = answer_language(self.sample, self.task.name)
        exported = Task(**json.loads(json.dumps(self.task.plain())))
        for definition in (self.task, exported):
            try:
                request = Request(self.task.name, prompt, language, definition)
            except ConfigError:
                assert len(needed) > 1  # a request brings one of them at most
                continue
            assert request.messages() == messages_of(self.sample)[:1]

    def test_right_answers_are_best_and_wrong_ones_are_not(self) -> None:
        """Every metric has its best figure for the right answer, and the error is further from it for wrong ones."""
        right = self._answer()
        for name, metric in self.task.metrics.items():
            assert math.isclose(self._figure(metric, [right]), metric.best, abs_tol=1e-6), name
            for wrong in _WRONG:
                figure = self._figure(metric, [wrong])
                assert math.isfinite(figure), name
                if name == self.task.error:
                    assert not math.isclose(figure, metric.best, abs_tol=1e-6), f"{name} of {wrong!r}"

    def test_counts_add_up(self) -> None:
        """Counts are of one length, finite, and the same whatever was counted before."""
        answers = [self._answer(), *_WRONG]
        for name, metric in self.task.metrics.items():
            first, again = ([list(self._counts(metric, answer)) for answer in order] for order in (answers, answers))
            backwards = [list(self._counts(metric, answer)) for answer in reversed(answers)]
            assert first == again == backwards[::-1], f"{name} depends on what was counted before"
            assert len({len(counts) for counts in first}) == 1, name
            assert all(math.isfinite(value) for counts in first for value in counts), name
            assert self._figure(metric, answers) == self._figure(metric, answers), name
            nothing = [0.0] * len(first[0])
            try:
                metric.figure(nothing)
            except ArithmeticError as error:
                raise AssertionError(f"{name} of nothing is no nan, but {type(error).__name__}: {error}") from error

    def _answer(self) -> str:
        return str(self.sample[self.task.answer_field]).strip()

    def _counts(self, metric: Metric, hypothesis: str) -> Any:
        return metric.counts(self._answer(), hypothesis, answer_language(self.sample, self.task.name))

    def _figure(self, metric: Metric, hypotheses: list[str]) -> float:
        language = answer_language(self.sample, self.task.name)
        return metric.over([self._answer()] * len(hypotheses), hypotheses, language)

    @staticmethod
    def _prompter() -> Prompter:
        from transformers import AutoTokenizer

        return Prompter(
            AutoTokenizer.from_pretrained(resolve("fastslm:demo/llm", "fastslm.testing"), trust_remote_code=False)
        )
