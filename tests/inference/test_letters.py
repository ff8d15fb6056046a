"""Transcripts by letters: the search against all spellings there are, the LLM over words, and runs without an LLM."""

import itertools
import math
import shutil
import threading

import numpy as np
import pytest
import soundfile
import torch
from tiny_run import settings_of, write_run

import fastslm
from fastslm import cli
from fastslm.checkpoint.run import open_run
from fastslm.errors import CheckpointError, ConfigError, DataError
from fastslm.export.folder import export_model
from fastslm.inference.guards import Audio
from fastslm.inference.letters import _LLM_WEIGHT, _WORD_BONUS, LetterSearch
from fastslm.inference.words import Vocabulary, WordModel
from fastslm.path.letters import BLANK, LetterHead

WORDS = {b"a": -2.0, b"b": -3.0, b"ab": -1.0, b"ba": -6.0}


class KnownWords:
    """Stands for a WordModel: each word has a probability of its own, whatever is before it."""

    def __init__(self):
        self.known = {()}

    def __contains__(self, history):
        return history in self.known

    def ahead(self, history, letters):
        return max((p for word, p in WORDS.items() if word.startswith(letters)), default=-9.0)

    def ids(self, history):
        return [list(WORDS).index(word) if word in WORDS else 9 for word in history]

    def sign_after(self, history):
        return []

    def grow(self, wanted, kept):
        self.known = {()} | (self.known & set(kept)) | {(*history, word) for history, word in wanted}
        return [WORDS.get(word, -9.0) for _, word in wanted]


def slots(num, seed):
    """Return log-probabilities of a, b, space and blank ``[num, 257]``; nothing else is spelled."""
    scores = np.full((num, BLANK + 1), -40.0)
    scores[:, [*b"ab ", BLANK]] = np.random.default_rng(seed).normal(scale=1.5, size=(num, 4))
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def best_of_all(log_probs):
    """Return the ids of the best words among all that the slots could spell."""
    likely = {}
    for way in itertools.product([*b"ab ", BLANK], repeat=len(log_probs)):
        text = bytes(letter for letter, _ in itertools.groupby(way) if letter != BLANK)
        if not text.startswith(b" ") and b"  " not in text:
            likelihood = math.exp(sum(log_probs[i, letter] for i, letter in enumerate(way)))
            likely[text] = likely.get(text, 0.0) + likelihood
    worth = {
        text: math.log(p) + sum(_LLM_WEIGHT * WORDS.get(word, -9.0) + _WORD_BONUS for word in text.split())
        for text, p in likely.items()
    }
    return KnownWords().ids(tuple(max(worth, key=worth.get).split()))


@pytest.mark.parametrize("seed", range(12))
def test_the_search_finds_the_best_of_all_spellings(seed):
    log_probs = slots(6, seed)
    search = LetterSearch(beams=200)
    search.begin(KnownWords())
    search.read(log_probs)
    assert search.end() == best_of_all(log_probs)


def test_a_word_goes_on_across_the_end_of_a_window():
    sure = np.full((4, BLANK + 1), -30.0)
    for slot, letter in zip(sure, (*b"a ", *b"ab"), strict=True):
        slot[letter] = 0.0
    search = LetterSearch(beams=8)
    search.begin(KnownWords())
    search.read(sure[:3])
    assert search.end_of_window() == KnownWords().ids((b"a",))
    search.begin(KnownWords())
    search.read(sure[3:])
    assert search.end() == KnownWords().ids((b"ab",))
    assert search.ids == KnownWords().ids((b"a", b"ab"))


# -- the LLM over words --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm(model):
    return model.path.llm


@pytest.fixture(scope="module")
def vocabulary(model):
    return Vocabulary(model.path.prompter.tokenizer, threading.Lock())


@torch.inference_mode()
def log_probs_of(llm, ids):
    """Return what a whole pass over ids expects after each of them ``[S, V]``."""
    ids = torch.tensor([ids])
    positions = torch.arange(ids.shape[1])
    logits = llm(llm.embed(ids), torch.ones_like(ids), positions)
    return logits.float().log_softmax(-1)[-ids.shape[1] :].reshape(ids.shape[1], -1)


def prompt_of(llm, ids):
    return llm.embed(torch.tensor(ids))


@torch.inference_mode()
def test_words_have_the_probabilities_of_whole_passes_whatever_they_are_read_beside(llm, vocabulary):
    begin = [1, 5]
    words = WordModel(llm, vocabulary, prompt_of(llm, begin))
    histories = [()]
    for wanted in (
        [((), b"seven"), ((), b"unheardof"), ((), b"two")],
        [((b"seven",), b"two"), ((b"unheardof",), b"seven")],
        [((b"seven", b"two"), b"eight"), ((b"seven",), b"nine"), ((b"unheardof", b"seven"), b"xyzzy")],
    ):
        scores = words.grow(wanted, histories)
        for (history, word), score in zip(wanted, scores, strict=True):
            before, whole = [*begin, *words.ids(history)], [*begin, *words.ids((*history, word))]
            expected = log_probs_of(llm, whole)
            told = sum(float(expected[i - 1, whole[i]]) for i in range(len(before), len(whole)))
            assert score == pytest.approx(told, abs=1e-4)
            histories.append((*history, word))
    assert words.grow([((), b"one")], [()])  # all others are forgotten
    assert (b"seven",) not in words


class Commas:
    """An LLM that finds a comma likely after each word, and one word behind it: by the last id alone."""

    def __init__(self, llm, vocabulary):
        self.llm, self.table = llm, torch.zeros(640, 640)
        self.comma = next(i for i in vocabulary.sign_ids.tolist() if vocabulary.tokenizer.decode([i]) == ",")
        self.word = vocabulary.spellings(b"seven")[0][0]
        self.table[:, self.comma], self.table[self.comma, self.comma] = 8.0, 0.0
        self.table[self.comma, self.word] = 9.0

    def __getattr__(self, name):
        return getattr(self.llm, name)

    def embed(self, ids):
        return ids[..., None].float().expand(*ids.shape, 32)

    def extend(self, embeddings, attention_mask, cache):
        self.llm.extend(torch.zeros_like(embeddings), attention_mask, cache)  # the cache grows
        return self.table[embeddings[:, -1, 0].long()]

    def branch(self, embeddings, parents, wanted, cache):
        return self.table[embeddings[wanted, 0].long()]


@torch.inference_mode()
def test_a_sign_stands_between_words_where_the_llm_finds_the_next_word_behind_it(llm, vocabulary):
    commas = Commas(llm, vocabulary)
    words = WordModel(commas, vocabulary, commas.embed(torch.tensor([1])))
    words.grow([((), b"two")], [()])
    with_sign, without = words.grow([((b"two",), b"seven"), ((b"two",), b"eight")], [(b"two",)])
    expected = commas.table.log_softmax(-1)
    two = words.ids((b"two",))[-1]
    assert words.ids((b"two", b"seven"))[-2:] == [commas.comma, commas.word]
    told = expected[two, commas.comma] + expected[commas.comma, commas.word]
    assert with_sign == pytest.approx(float(told), abs=1e-4)
    assert commas.comma not in words.ids((b"two", b"eight"))  # which is likelier without it
    assert without == pytest.approx(float(expected[two, words.ids((b"two", b"eight"))[-1]]), abs=1e-4)
    assert without < with_sign
    assert words.ahead((b"two", b"seven"), b"seven") == pytest.approx(float(told), abs=0.05)
    assert words.sign_after((b"two", b"seven")) == [commas.comma]


@torch.inference_mode()
def test_first_letters_are_as_likely_as_the_words_that_begin_so(llm, vocabulary):
    words = WordModel(llm, vocabulary, prompt_of(llm, [1]))
    expected = log_probs_of(llm, [1])[0].exp()
    tokenizer = vocabulary.tokenizer
    starts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    mass = sum(float(expected[i]) for i, text in enumerate(starts) if text.lower().startswith(" se"))
    assert words.ahead((), b"se") >= math.log(mass)
    assert words.ahead((), b"s") > words.ahead((), b"se")
    endless = [words.ahead((), b"q" * size) for size in (20, 40, 80)]
    assert endless[0] > endless[1] + 20 > endless[2] + 60  # a word that never ends gains nothing


def test_an_llm_that_forgets_what_it_has_read_is_refused(llm, vocabulary, monkeypatch):
    monkeypatch.setattr(type(llm.new_cache()), "can_cut", property(lambda cache: False))
    with pytest.raises(ConfigError, match="sliding window"):
        WordModel(llm, vocabulary, prompt_of(llm, [1]))


# -- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def letters_run(tmp_path_factory, tiny_encoder, wordy_llm):
    """Return a run that was trained by letters alone, with a head that spells."""
    settings = settings_of(
        tiny_encoder, wordy_llm, answer_weight=0.0, alignment_weight=1.0, letters_per_token=3,
        train_parts=["abstractor", "projector"],
    )  # fmt: skip
    settings["llm"]["init_args"] |= {"lora": None}
    folder = write_run(tmp_path_factory.mktemp("letters"), settings)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    contents = torch.load(checkpoint, weights_only=True)
    torch.manual_seed(0)
    head = LetterHead(32, 3)
    with torch.no_grad():
        head.letters.weight *= 6
        head.letters.bias.fill_(-12.0)
        head.letters.bias[list(b"abcdefghijklmnopqrstuvwxyz  ")] = 0.0
        head.letters.bias[[32, BLANK]] = 2.0
    contents["state_dict"] |= {f"path.alignment.{name}": value for name, value in head.state_dict().items()}
    torch.save(contents, checkpoint)
    return folder


@pytest.fixture(scope="module")
def speller(letters_run):
    return fastslm.load(letters_run, device="cpu")


def test_a_run_without_an_llm_that_reads_transcribes_by_its_letters(speller, noise):
    audio, told, texts = noise(9), [], []
    answer = speller.transcribe(audio, on_segment=told.append, on_text=texts.append)
    assert answer.text
    assert (answer.segments, answer.seconds, answer.truncated) == ((), 9.0, False)
    assert [(s.start, s.end) for s in told] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert " ".join(s.text for s in told) == answer.text == "".join(texts).strip()
    with_segments = speller.transcribe(audio, segments=True)
    assert (list(with_segments.segments), with_segments.text) == (told, answer.text)
    assert speller.transcribe(audio).tokens == answer.tokens


@pytest.mark.parametrize(
    ("windows", "texts"),
    [
        (["one two", "", "", " three", ""], {0: "one two", 6: "three"}),
        (["one two", "", "three four "], {0: "one two", 4: "three four"}),
        (["one tw", "o three", " four"], {0: "one", 2: "two three", 4: "four"}),
        (["one two ", "", " ", "three", " four"], {0: "one two", 6: "three", 8: "four"}),
        (["", "one", "", "", "two"], {2: "one", 8: "two"}),
    ],
)
def test_each_word_stands_in_the_window_of_its_letters(speller, noise, monkeypatch, windows, texts):
    coming, told = iter(windows), []

    def spell(_):
        log_probs = torch.full((1, 30, BLANK + 1), -30.0)
        log_probs[..., BLANK] = 0.0
        for i, letter in enumerate(next(coming).encode()):
            log_probs[0, 2 * i + 1, [letter, BLANK]] = torch.tensor([0.0, -30.0])
        return log_probs

    monkeypatch.setattr(speller.letters, "log_probs", spell)
    answer = speller.transcribe(noise(2 * len(windows)), on_segment=told.append)
    assert {segment.start: segment.text for segment in told} == texts
    assert " ".join(texts.values()) == answer.text


def test_letters_are_read_window_by_window_and_not_in_one_pass(speller, reader, noise, monkeypatch):
    passes = []
    monkeypatch.setattr(
        fastslm.inference.guards, "Audio", lambda *seconds: passes.append(seconds[2]) or Audio(*seconds)
    )
    speller.transcribe(noise(9))
    reader.transcribe(noise(9), letters=True)
    reader.transcribe(noise(3), letters=True)
    assert passes == [2, 4, 3]


def test_chunks_of_a_search_among_letters_are_together_its_text_where_a_tokenizer_drops_the_first_space(
    speller, noise, monkeypatch
):
    as_it_stands, texts = speller.text_of, []
    monkeypatch.setattr(speller, "text_of", lambda ids: as_it_stands(ids).removeprefix(" "))  # as Llama 2's does
    answer = speller.transcribe(noise(9), on_text=texts.append)
    assert len(texts) > 1
    assert "".join(texts) == answer.text


def test_what_the_llm_says_without_having_learnt_to_read_is_not_taken_for_a_transcript(speller, noise):
    written = fastslm.inference.model.batch.transcribe(
        speller, [noise(5)], speller.request(), fastslm.inference.engine.Decoding(), None, None, None
    )
    assert speller.transcribe(noise(5)).text != written[0].text
    assert not any("has not learnt" in doubt for doubt in speller.transcribe(noise(5)).doubts)
    stream = speller.stream([noise(5)])
    *_, _seconds = stream
    for answer in (written[0], speller.ask(noise(5), "Who?"), stream.answer()):
        assert "comes from an LLM that has not learnt to read speech (model.answer_weight was 0)" in answer.doubts


def test_an_llm_that_has_not_learnt_to_read_is_not_exported(letters_run, tmp_path):
    with pytest.raises(ConfigError, match="has not learnt to read speech"):
        export_model(open_run(letters_run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_several_recordings_each_has_its_text_or_its_error(speller, noise, tmp_path):
    (tmp_path / "text.wav").write_text("words " * 100)
    soundfile.write(tmp_path / "good.wav", noise(3), 16_000)
    found = speller.transcribe_batch([noise(5), tmp_path / "text.wav", tmp_path / "good.wav"])
    assert found[0].text == speller.transcribe(noise(5)).text
    assert isinstance(found[1], DataError)
    assert "text.wav: unreadable audio" in str(found[1])
    assert found[2].text == speller.transcribe(tmp_path / "good.wav").text


@pytest.mark.parametrize(
    "given", [{"temperature": 0.5}, {"top_p": 0.5}, {"max_new_tokens": 1}, {"section_minutes": 1.0}]
)
def test_letters_are_not_drawn_and_go_to_the_end_by_windows(speller, noise, given):
    with pytest.raises(ConfigError, match=f"{next(iter(given))}: a search among letters"):
        speller.transcribe(noise(2), **given)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, letters_run, tiny_encoder, wordy_llm):
    """Return a model of the same weights whose LLM has learned to read speech tokens."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(letters_run, folder / "run", symlinks=True)
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    contents = torch.load(checkpoint, weights_only=True)
    contents["fastslm_config"]["model"]["answer_weight"] = 1.0
    torch.save(contents, checkpoint)
    return fastslm.load(folder / "run", device="cpu")


def test_an_llm_that_reads_judges_words_behind_its_prompt_with_the_speech_tokens(reader, noise, monkeypatch):
    prompts = []

    class Watched(WordModel):
        def __init__(self, llm, vocabulary, prompt, first=None):
            prompts.append((prompt, first))
            super().__init__(llm, vocabulary, prompt, first)

    monkeypatch.setattr("fastslm.inference.letters.WordModel", Watched)
    answer = reader.transcribe(noise(6), letters=True)
    before, after = reader.ids_of(reader.request())
    embed, tokens = reader.new_memory().embed, reader.embed(noise(6)).tokens
    assert len(prompts) == 3
    for i, (prompt, first) in enumerate(prompts):
        said = answer.tokens[max(0, i - 1) : i]  # a word in each window
        expected = [embed(before, "cpu"), tokens[max(0, 4 * i - 4) : 4 * i + 4], embed([*after, *said], "cpu")]
        torch.testing.assert_close(prompt, torch.cat(expected), atol=1e-4, rtol=1e-4)
        assert first is None if i else not first.spaced  # words have a space before them but for the first one


def test_an_llm_that_reads_answers_itself_unless_it_is_asked_for_letters(reader, noise):
    assert reader.transcribe(noise(3)).text != reader.transcribe(noise(3), letters=True).text
    (together,) = reader.transcribe_batch([noise(3)], letters=True)
    assert together.text == reader.transcribe(noise(3), letters=True).text


def test_letters_are_refused_where_there_are_none(model, reader, noise):
    with pytest.raises(ConfigError, match=r"letters: .* spells none\. Train with model\.letters_per_token"):
        model.transcribe(noise(2), letters=True)
    with pytest.raises(ConfigError, match="letters: task ssum gives no transcript"):
        reader.transcribe(noise(2), letters=True, task="ssum")


def test_the_command_refuses_them_once_and_not_for_each_file(run_folder, letters_run, noise, tmp_path, capsys):
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, noise(2), 16_000)
    command = ["transcribe", str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--device", "cpu", "--model"]
    assert cli.main([*command, str(run_folder), "--letters"]) == 2
    assert capsys.readouterr().err.count("spells none") == 1
    assert cli.main([*command, str(letters_run), "--temperature", "0.5"]) == 2
    assert capsys.readouterr().err.count("a search among letters") == 1
    assert cli.main([*command, str(letters_run), "--max-new-tokens", "5"]) == 2
    assert capsys.readouterr().err.count("max_new_tokens: a search among letters") == 1
    assert cli.main([*command, str(letters_run)]) == 0


@pytest.mark.slow
def test_a_server_of_sections_refuses_them_before_it_begins(letters_run, capfd):
    assert cli.main(["serve", str(letters_run), "--device", "cpu", "--port", "0", "--section-minutes", "5"]) == 2
    assert "section_minutes: a search among letters" in capfd.readouterr().err


@pytest.mark.slow
def test_a_server_asked_for_letters_that_are_not_there_does_not_begin(run_folder, capfd):
    assert cli.main(["serve", str(run_folder), "--device", "cpu", "--port", "0", "--letters"]) == 2
    assert "spells none" in capfd.readouterr().err


def test_letters_that_do_not_fit_their_setting_are_a_damaged_checkpoint(model, letters_run, tmp_path):
    assert model.letters is None
    assert open_run(letters_run).letters is not None
    contents = torch.load(letters_run / "checkpoints" / "last.ckpt", weights_only=True)
    contents["state_dict"].pop("path.alignment.slots.bias")
    torch.save(contents, tmp_path / "cut.ckpt")
    with pytest.raises(CheckpointError, match=r"model\.letters_per_token"):
        open_run(tmp_path / "cut.ckpt")
