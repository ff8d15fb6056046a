"""Speech translation: the words of the recording in another language."""

from fastslm.contracts import Task
from fastslm.metrics import BLEU, CHRF

ast = Task(
    name="ast",
    prompt="<|AST|>{audio}\nTranslate the audio clip into {target_language}.",
    answer_field="translation",
    default_language="English",
    metrics={"bleu": BLEU(), "chrf": CHRF()},
    error="bleu",
    timed=True,
)
