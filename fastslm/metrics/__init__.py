"""What answers are worth: word and character errors, BLEU, chrF, ROUGE-L and answers to questions, by task."""

from fastslm.metrics.error_rate import ErrorRate as ErrorRate
from fastslm.metrics.error_rate import normalise as normalise
from fastslm.metrics.scores import MEASURES as MEASURES
from fastslm.metrics.scores import Scores as Scores
