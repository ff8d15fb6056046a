"""What answers are worth: word and character errors, BLEU, chrF, ROUGE-L and answers to questions, by task."""

from fastslm.metrics.by_sample import SampleMean as SampleMean
from fastslm.metrics.error_rate import ErrorRate as ErrorRate
from fastslm.metrics.error_rate import normalise as normalise
from fastslm.metrics.scores import Scores as Scores
from fastslm.metrics.translation import BLEU as BLEU
from fastslm.metrics.translation import CHRF as CHRF
