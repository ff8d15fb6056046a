"""Spoken question answering: the answer to a question about the recording."""

from fastslm.contracts import Task
from fastslm.metrics import SampleMean
from fastslm.metrics.by_sample import answer_f1, exact_match

sqqa = Task(
    name="sqqa",
    prompt="<|SQQA|>{audio}\n{question}",
    answer_field="answer",
    metrics={"answer_accuracy": SampleMean(exact_match), "answer_f1": SampleMean(answer_f1)},
    error="answer_accuracy",
)
