"""Transcription: the words of the recording, in its language."""

from fastslm.contracts import Task
from fastslm.metrics import ErrorRate

asr = Task(
    name="asr",
    prompt="<|ASR|>{audio}\nTranscribe the audio clip into text.",
    answer_field="text",
    metrics={"wer": ErrorRate("word"), "cer": ErrorRate("character")},
    error="wer",
    timed=True,
    transcript=True,
)
