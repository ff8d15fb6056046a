"""Speech summarisation: what the recording comes to."""

from fastslm.contracts import Task
from fastslm.metrics import SampleMean
from fastslm.metrics.by_sample import rouge_l

ssum = Task(
    name="ssum",
    prompt="<|SSUM|>{audio}\nSummarize the audio clip.",
    answer_field="summary",
    metrics={"rouge_l": SampleMean(rouge_l)},
    error="rouge_l",
)
