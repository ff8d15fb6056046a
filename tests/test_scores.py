"""Scores by task: against sacrebleu, against counting by hand, and over languages."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU as SacreBLEU
from sacrebleu.metrics import CHRF as SacreCHRF

from fastslm.metrics import Scores
from fastslm.metrics.by_sample import SampleMean, answer_f1, exact_match, rouge_l
from fastslm.metrics.translation import BLEU, CHRF, tokenizer_for

_LATIN = "the cat sat on mat . , it's U.S. 3.5 1,000 &quot; a-b (x) $5 können 100% don't foo/bar Größe naïve"
_OTHERS = "안녕하세요 오늘은 날씨가 좋다 我 是 学生 。 これは ペン です hello 42"
LATIN, OTHERS = _LATIN.split(), _OTHERS.split()


def sentences(words):
    return st.lists(st.sampled_from(words), min_size=1, max_size=12).map(" ".join)


def corpora(words):
    kinds = st.sampled_from(["same", "cut", "other", "empty"])
    return st.lists(st.tuples(sentences(words), kinds), min_size=1).flatmap(
        lambda pairs: st.tuples(
            st.just([reference for reference, _ in pairs]),
            st.tuples(*(hypotheses(reference, kind, words) for reference, kind in pairs)).map(list),
        )
    )


def hypotheses(reference, kind, words):
    fixed = {"same": reference, "cut": " ".join(reference.split()[:-1]), "empty": ""}
    return st.just(fixed[kind]) if kind in fixed else sentences(words)


def row(task, reference, hypothesis, language="", weight=1.0):
    return {
        "task": task, "reference": reference, "hypothesis": hypothesis, "language": language, "weight": weight
    }  # fmt: skip


def scores_of(*rows):
    scores = Scores()
    scores.add(rows)
    return scores.compute()


@pytest.mark.parametrize(("language", "words"), [("German", LATIN), ("ko", OTHERS), ("zh-CN", OTHERS)])
@given(data=st.data())
def test_bleu_and_chrf_are_those_of_sacrebleu(language, words, data):
    references, found = data.draw(corpora(words))
    theirs = SacreBLEU(tokenize=tokenizer_for(language)).corpus_score(found, [references])
    assert 100 * BLEU().over(references, found, language) == pytest.approx(theirs.score)
    assert 100 * CHRF().over(references, found) == pytest.approx(SacreCHRF().corpus_score(found, [references]).score)


@pytest.mark.parametrize(
    ("language", "cut_by"),
    [
        ("English", "13a"),
        ("de", "13a"),
        ("", "13a"),
        ("Chinese", "zh"),
        ("zh_TW", "zh"),
        ("ko", "char"),
        ("ja-JP", "char"),
        ("cmn-Hans-CN", "zh"),
        ("Chinese (Simplified)", "zh"),
        ("kor", "char"),
    ],
)
def test_languages_without_spaces_are_cut_by_characters(language, cut_by):
    assert tokenizer_for(language) == cut_by


def test_a_language_whose_name_says_nothing_is_told():
    with pytest.warns(UserWarning, match="language 'Elbonian': is not known here; its BLEU is that of words"):
        assert tokenizer_for("Elbonian") == "13a"


@pytest.mark.parametrize(
    ("reference", "hypothesis", "score"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        # Longest common subsequence "the cat on mat": 4 of 6 words and 4 of 6.
        ("the cat sat on the mat", "the cat lay on a mat", 4 / 6),
        ("three numbers", "three", 2 * 1.0 * 0.5 / 1.5),
        ("one two", "two one", 0.5),
        ("The cat.", "the CAT", 1.0),
        ("안녕 세상", "안녕 세상", 1.0),
        ("one", "", 0.0),
        ("one", "two", 0.0),
    ],
)
def test_rouge_l_by_hand(reference, hypothesis, score):
    assert rouge_l(reference, hypothesis) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "accuracy", "f1"),
    [
        ("forty two", "forty two", 1.0, 1.0),
        ("The forty-two.", "fortytwo", 1.0, 1.0),
        ("forty two", "it is forty two", 0.0, 2 * 0.5 * 1.0 / 1.5),
        ("forty two", "", 0.0, 0.0),
        ("caf\u00e9", "cafe\u0301", 1.0, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(reference, hypothesis, accuracy, f1):
    assert exact_match(reference, hypothesis) == accuracy
    assert answer_f1(reference, hypothesis) == pytest.approx(f1, abs=1e-6)


def test_each_task_has_its_own_scores():
    found = scores_of(
        row("asr", "one two", "one three", "en"),
        row("ast", "eins zwei drei vier", "eins zwei drei vier", "German"),
        row("ssum", "two numbers", "two numbers"),
        row("sqqa", "two", "three"),
        row("dialogue", "anything", "else"),
    )
    exact = {"bleu": 1.0, "chrf": 1.0, "rouge_l": 1.0, "answer_accuracy": 0.0, "answer_f1": 0.0}
    assert found == pytest.approx({"wer": 0.5, "cer": 4 / 6, **exact})


def test_word_errors_are_pooled_over_languages_and_bleu_is_their_mean():
    found = scores_of(
        row("asr", "one two three", "one two three", "en"),
        row("asr", "eins", "zwei", "de"),
        row("ast", "eins zwei drei vier", "eins zwei drei vier", "German"),
        row("ast", "안녕하세요", "아니요", "Korean"),
    )
    assert found["wer"] == pytest.approx(1 / 4)
    assert (found["wer/en"], found["wer/de"]) == (0.0, 1.0)
    assert found["bleu"] == pytest.approx((found["bleu/German"] + found["bleu/Korean"]) / 2)
    assert found["bleu/German"] == pytest.approx(1.0)


def test_a_language_whose_answers_have_nothing_to_divide_by_is_left_out_of_the_mean(monkeypatch):
    monkeypatch.setattr(BLEU, "figure", lambda _self, sums: 0.5 if sum(sums) else math.nan)
    found = scores_of(row("ast", "eins zwei drei vier", "eins", "German"), row("ast", "", "", "Korean"))
    assert math.isnan(found["bleu/Korean"])
    assert found["bleu"] == found["bleu/German"] == 0.5


def test_one_language_is_not_named_twice():
    assert set(scores_of(row("asr", "one", "one", "en"))) == {"wer", "cer"}


def test_a_sample_of_weight_zero_counts_nowhere():
    assert scores_of(row("sqqa", "one", "two", weight=0.0), row("sqqa", "one", "one")) == {
        "answer_accuracy": 1.0,
        "answer_f1": 1.0,
    }
    assert scores_of(row("asr", "one", "two", weight=0.0)) == {}


def test_a_mean_of_nothing_is_nan():
    assert math.isnan(SampleMean(rouge_l).over([], []))


def test_scores_do_not_depend_on_how_rows_come():
    rows = [row("ast", f"eins zwei drei {i} fünf", f"eins zwei {i} fünf", "German") for i in range(5)]
    rows += [row("ssum", f"{i} numbers from one", f"{i} from one") for i in range(3)]
    apart = Scores()
    for one in rows:
        apart.add([one])
    assert apart.compute() == pytest.approx(scores_of(*rows))
