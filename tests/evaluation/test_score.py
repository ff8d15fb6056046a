"""Word errors are those of whisper-normalizer and kaldialign, rates over all words, intervals over recordings."""

import random
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kaldialign import batch_error_rate
from kaldialign import edit_distance as distance
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

import fastslm.evaluation.score as score_module
from fastslm.evaluation.normalise import normaliser_of, words
from fastslm.evaluation.score import Counts, Transcript, by_length, compare, score
from fastslm.metrics.languages import code_of

#: Reference, hypothesis, language, substitutions, deletions, insertions, words: counted by hand.
BY_HAND = [
    ("Good morning, Mr. Brown!", "good morning mister brown", "en", 0, 0, 0, 4),
    ("the colour of twenty-five cars", "The color of 25 cars.", "en", 0, 0, 0, 5),
    ("um, I don't know, uh", "I do not know", "English", 0, 0, 0, 4),
    ("a white paper", "a whitepaper", "en", 0, 0, 0, 3),
    ("he said it", "he set it down", "en", 1, 0, 1, 3),
    ("one two three four", "1 2 4", "", 1, 0, 2, 1),
    ("Wie geht's, Müller?", "wie gehts müller", "de", 0, 0, 0, 4),
    ("Ça va bien", "ca va", "French", 1, 1, 0, 3),
    ("我喜欢你", "我喜你", "zh", 0, 1, 0, 4),
    ("", "thank you", "en", 0, 0, 2, 0),
    ("(laughs) hello", "hello", "en", 0, 0, 0, 1),
]


@pytest.mark.parametrize(
    ("normaliser", "languages"),
    [
        ("english", "| en | eng | en_US | English (US) | American English | English-US | ENGLISH"),
        (
            "characters",
            "zh | cn | jp | zho | cmn | cmn-Hans-CN | Mandarin Chinese | Chinese (Simplified) | yue | Cantonese",
        ),
        ("characters", "ja | jpn | ja-JP | Japanese | tha | Thai (Thailand) | lao | Lao | mya | Burmese | khm | bod"),
        ("basic", "de | deu | pt-BR | Brazilian Portuguese | Swiss German | kor | Norwegian Nynorsk | Haitian Creole"),
    ],
)
def test_languages_are_known_by_codes_tags_and_names(normaliser, languages):
    for language in languages.split("|"):
        assert normaliser_of(language) == normaliser, language
        assert code_of(language) is not None, language


def counts_of(reference, hypothesis, language=""):
    return compare(Transcript("a", reference, hypothesis, 1.0, normaliser=normaliser_of(language)))


@pytest.mark.parametrize(("reference", "hypothesis", "language", "sub", "lost", "extra", "num_words"), BY_HAND)
def test_errors_are_those_counted_by_hand(reference, hypothesis, language, sub, lost, extra, num_words):
    found = counts_of(reference, hypothesis, language)
    assert (found.substitutions, found.deletions, found.insertions) == (sub, lost, extra)
    assert found.num_words == num_words


VOCABULARY = "the a white paper whitepaper colour color I'm twenty five 25 $3 uh Mr. résumé cannot not can"
WORDS = st.lists(st.sampled_from(VOCABULARY.split()), min_size=1, max_size=12).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6), st.sampled_from(["en", "de"]))
def test_the_rate_of_a_set_is_that_of_whisper_normalizer_and_kaldialign_to_the_last_digit(pairs, language):
    normalise = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    references = [tuple(normalise(reference).split()) for reference, _ in pairs]
    hypotheses = [tuple(normalise(hypothesis).split()) for _, hypothesis in pairs]
    kept = [i for i, reference in enumerate(references) if reference]
    expected = batch_error_rate([references[i] for i in kept], [hypotheses[i] for i in kept], merge_compounds=True)
    found = score([counts_of(*pair, language) for pair in pairs])
    assert (found.substitutions, found.deletions, found.insertions) == (
        expected["sub"], expected["del"], expected["ins"]
    )  # fmt: skip
    assert found.wer == (expected["err_rate"] if kept else None)


@pytest.mark.parametrize("split", [False, True])
def test_scripts_that_write_vowels_as_letters_go_through_whispers_own_normaliser(split):
    marks = "".join(chr(i) for i in range(0x300, 0x5C8) if unicodedata.category(chr(i)) == "Mn")  # Hebrew and Greek
    others = "\u064e\ufe0f\u20e3\u20dd\U000e0100❤☎¿§"
    letters = "".join(map(chr, [*range(0x2FF), *range(0x370, 0x530), *range(0x30A0, 0x3100), *range(0x4E00, 0x4F00)]))
    text = "".join(
        f"{letter}{mark} " for letter in letters for mark in ("", *random.Random(0).sample(marks + others, 5))
    )
    mine = words(text, "characters" if split else "basic")
    assert mine == BasicTextNormalizer(split_letters=split)(text).split()


def test_a_phrase_over_and_over_is_told_and_a_refrain_is_not():
    assert counts_of("he left", "he left " + "thank you " * 8).repeats
    assert not counts_of("no no no", "no no no").repeats


def heard(said, generator, share):
    """Yield words with a share of errors, and if there are any some words in two parts."""
    for word in said:
        kind = generator.random()
        if kind < share:
            yield from [] if kind < share / 3 else [word, "so"] if kind < share * 2 / 3 else ["other"]
        elif share and generator.random() < 0.05:
            yield from (word[:2], word[2:])
        else:
            yield word


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6])
def test_long_texts_are_compared_in_pieces_that_have_the_errors_of_the_whole(monkeypatch, share):
    generator, sizes = random.Random(0), []
    said = ["".join(generator.choices("abcd", k=4)) for _ in range(1500)]
    texts = " ".join(said), " ".join(heard(said, generator, share))
    whole = compare(Transcript("a", *texts, 1.0, normaliser="basic"))
    monkeypatch.setattr(score_module, "_MOST_PAIRS", 10_000)
    monkeypatch.setattr(score_module, "_PIECE", 100)
    monkeypatch.setattr(
        "kaldialign.edit_distance", lambda *texts, **how: sizes.append(max(map(len, texts))) or distance(*texts, **how)
    )
    assert compare(Transcript("a", *texts, 1.0, normaliser="basic")) == whole
    assert 100 < max(sizes) < 300
    assert whole.errors >= 1000 * share


def test_a_transcript_that_ends_early_is_told_whatever_stands_in_it_beyond_what_was_said():
    said = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60)]
    filled = [f"{word} so" for word in said[:15]] + said[15:]
    assert counts_of(" ".join(said), " ".join(filled[:48])).ends_early
    assert not counts_of(" ".join(said), " ".join(filled)).ends_early
    assert not counts_of(" ".join(said), " ".join(filled[12:])).ends_early


def test_a_transcript_that_ends_early_is_told_from_one_with_gaps():
    said = [f"word{chr(97 + i)}" for i in range(25)]
    assert counts_of(" ".join(said), " ".join(said[:14])).ends_early
    assert not counts_of(" ".join(said), " ".join(said[::2] + said[-1:])).ends_early
    assert not counts_of(" ".join(said), " ".join(said[:20])).ends_early


def test_recordings_without_speech_count_for_hallucinations_alone():
    found = score([counts_of("hello there", "hello there"), counts_of("", "thank you"), counts_of("", "")])
    assert found.wer == 0
    assert (found.num_recordings, found.num_silent, found.num_hallucinated, found.words_in_silence) == (1, 2, 1, 2)
    assert score([counts_of("", "thank you")]).wer is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    truth, covered = 0.2, 0
    for seed in range(60):
        errors = generator.binomial(20, truth, size=40)
        low, high = score([Counts(str(i), 1.0, 20, int(e), 0, 0, 20) for i, e in enumerate(errors)], seed).interval
        covered += low <= truth <= high
    assert 51 <= covered <= 60


def test_the_interval_is_the_same_every_time_and_there_is_none_for_one_recording():
    many = [Counts(str(i), 1.0, 10, i % 3, 0, 0, 10) for i in range(30)]
    assert score(many).interval == score(many).interval
    assert score(many[:1]).interval is None


def test_lengths_are_told_apart_at_their_bounds():
    parts = by_length([Counts(str(s), s, 1, 0, 0, 0, 1) for s in (1.0, 29.99, 30.0, 299.0, 300.0, 1800.0, 9000.0)])
    assert {name: len(part) for name, part in parts.items()} == {
        "0-30 s": 2, "30 s-5 min": 2, "5-30 min": 1, "30 min and more": 2
    }  # fmt: skip


def test_the_real_time_factor_is_over_what_was_timed():
    timed = Counts("a", 10.0, 1, 0, 0, 0, 1, work_seconds=5.0)
    assert score([timed, Counts("b", 30.0, 1, 0, 0, 0, 1)]).real_time_factor == 0.5
    assert score([Counts("b", 30.0, 1, 0, 0, 0, 1)]).real_time_factor is None
