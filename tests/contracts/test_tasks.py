"""Every installed task through the shipped contract, and what the contract and the class notice."""

import math
from dataclasses import replace

import pytest

from fastslm.contracts import Metric, Task
from fastslm.errors import ConfigError
from fastslm.metrics import ErrorRate, SampleMean
from fastslm.path.prompt import RELEASED_TASKS, SPECIAL_TOKENS
from fastslm.plugins import plugins_of
from fastslm.tasks import find_task, tasks
from fastslm.testing import TaskContract

SAMPLES = {
    "asr": {"text": "one two three four", "language": "en"},
    "ast": {"task": "ast", "translation": "eins zwei drei vier", "target_language": "German"},
    "ssum": {"task": "ssum", "summary": "four numbers from one to four"},
    "sqqa": {"task": "sqqa", "question": "How many numbers are there?", "answer": "four"},
}
RIGHT = {
    "name": "topics",
    "prompt": "{audio}\nWhat is it about?",
    "answer_field": "topics",
    "metrics": {"topics_f1": SampleMean(lambda reference, hypothesis: float(reference == hypothesis))},
    "error": "topics_f1",
}
SAMPLE = {"task": "topics", "topics": "numbers, counting", "text": "one two"}


def contract(task, sample):
    return type("Contract", (TaskContract,), {"task": task, "sample": sample})


# One class of tests for each; pytest finds them by their names in this module.
for _name, _sample in SAMPLES.items():
    globals()[f"Test_{_name}"] = contract(find_task(_name), _sample)


def test_every_built_in_task_is_tried():
    own = [plugin.name for plugin in plugins_of("tasks") if plugin.distribution.startswith("fastslm ")]
    assert sorted(SAMPLES) == sorted(own) == sorted(RELEASED_TASKS)


class _Backwards(ErrorRate):
    best = 1.0


class _Blind(SampleMean):
    def counts(self, reference, hypothesis, language):
        return 1.0, 1


class _Remembers(ErrorRate):
    num_calls = 0

    def counts(self, reference, hypothesis, language):
        self.num_calls += 1
        return self.num_calls, 1


class _Uneven(ErrorRate):
    def counts(self, reference, hypothesis, language):
        return [1.0] * len(hypothesis.split())


class _Divides(ErrorRate):
    def figure(self, counts):
        return counts[0] / counts[1]


def planted(**changes):
    return Task(**{**RIGHT, **changes})


@pytest.mark.parametrize(
    ("task", "sample", "test"),
    [
        (planted(), SAMPLE, "test_it_is_installed_by_its_name"),
        (planted(prompt="{audio}{text}<|AUDIO|>"), SAMPLE, "test_it_asks_about_the_recording_and_is_answered"),
        (planted(prompt="{audio}\nIs it {topics}?"), SAMPLE, "test_the_prompt_does_not_tell_the_answer"),
        (
            planted(metrics={"x": _Backwards("word")}, error="x"),
            SAMPLE,
            "test_right_answers_are_best_and_wrong_ones_are_not",
        ),
        (planted(metrics={"x": _Blind(None)}, error="x"), SAMPLE, "test_right_answers_are_best_and_wrong_ones_are_not"),
        (planted(metrics={"x": _Remembers("word")}, error="x"), SAMPLE, "test_counts_add_up"),
        (planted(metrics={"x": _Uneven("word")}, error="x"), SAMPLE, "test_counts_add_up"),
        (planted(metrics={"x": _Divides("word")}, error="x"), SAMPLE, "test_counts_add_up"),
    ],
)
def test_contract_notices(monkeypatch, task, sample, test):
    if test != "test_it_is_installed_by_its_name":
        installed(monkeypatch, task)
        getattr(contract(planted(), SAMPLE)(), test)  # there is such a test
    with pytest.raises((AssertionError, ConfigError)):
        getattr(contract(task, sample)(), test)()


@pytest.mark.parametrize("test", [name for name in dir(TaskContract) if name.startswith("test_")])
def test_a_right_task_of_another_package_passes(monkeypatch, test):
    task = planted()
    installed(monkeypatch, task)
    getattr(contract(task, SAMPLE)(), test)()


def test_a_sample_that_is_accepted_without_what_it_needs_is_noticed(monkeypatch):
    task = planted()
    installed(monkeypatch, task)
    monkeypatch.setattr("fastslm.testing.task.messages_of", lambda fields: [{"content": ""}] * 2)
    with pytest.raises(AssertionError, match="a sample without 'topics' is accepted"):
        contract(task, SAMPLE)().test_a_sample_without_what_it_needs_is_refused()


def test_a_task_whose_plain_values_ask_otherwise_is_noticed(monkeypatch):
    class Forgets(Task):
        def plain(self):
            return {**super().plain(), "prompt": "{audio}"}

    task = Forgets(**RIGHT)
    installed(monkeypatch, task)
    with pytest.raises(AssertionError):
        contract(task, SAMPLE)().test_it_can_be_asked_for_after_training()


def installed(monkeypatch, task):
    """Have ``task`` installed beside the others, for this test."""
    known = {**tasks(), task.name: task}
    for module in ("fastslm.tasks", "fastslm.path.prompt"):
        monkeypatch.setattr(f"{module}.tasks", lambda: known)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_field": ""}, "task 'topics': has no answer_field; name the field"),
        ({"name": ""}, "task '': give it another name"),
        ({"name": "dialogue"}, "'dialogue' is that of free messages"),
        ({"prompt": ""}, "its prompt '' must hold {audio} once"),
        ({"prompt": "{audio}{audio}"}, "must hold {audio} once"),
        ({"prompt": "{audio} {"}, "must hold {audio} once"),
        ({"prompt": "{audio} {}"}, "in other braces names of fields only"),
        *(
            ({"metrics": {name: ErrorRate("word")}, "error": name}, f"its metric '{name}' needs another name")
            for name in ("loss", "error", "wer/de")
        ),
        ({"error": "wer"}, r"its error is 'wer', which is none of its metrics \(topics_f1\)"),
    ],
)
def test_a_task_that_cannot_be_is_refused_in_one_sentence(changes, message):
    with pytest.raises(ConfigError, match=message):
        planted(**changes)


def test_the_built_in_tasks_have_the_tokens_of_the_release():
    tags = tuple(find_task(name).prompt.partition("{audio}")[0] for name in RELEASED_TASKS)
    assert tags == SPECIAL_TOKENS[5:]


def test_a_metric_over_nothing_is_nan():
    assert all(math.isnan(m.over([], [])) for task in tasks().values() for m in task.metrics.values())
    assert all(isinstance(m, Metric) for task in tasks().values() for m in task.metrics.values())


def test_a_task_that_translates_without_a_default_needs_the_language():
    from fastslm.path.request import Request

    task = replace(planted(), prompt="{audio}\nName the topics in {target_language}.")
    with pytest.raises(ConfigError, match="language: task topics translates; name the language"):
        Request("topics", brought=task)
    assert Request("topics", None, "Korean", task).words == "Name the topics in Korean."


def test_the_words_of_a_prompt_may_stand_before_the_audio():
    from fastslm.path.request import Request

    task = replace(planted(), prompt="Listen: {audio}\nWhat is it about?")
    own = Request("topics", " Whom is it about? ", None, task)
    assert own.messages()[0]["content"] == "Listen: <|audio_bos|><|AUDIO|><|audio_eos|>\nWhom is it about?"
