"""Transcripts, questions and streams on the tiny model: audio encoded once, limits and loops reported."""

import threading

import numpy as np
import pytest
import torch
from tokenizer_kinds import KINDS, make_tokenizer

from fastslm.contracts import Task
from fastslm.errors import ConfigError, DataError
from fastslm.inference import answering
from fastslm.inference.engine import Decoding
from fastslm.inference.generated import Generated
from fastslm.inference.results import Answer
from fastslm.inference.text import TextChunks
from fastslm.path.batch import Batch, Sample
from fastslm.path.prompt import messages_of
from fastslm.path.request import Request


class Counted:
    """Counts windows in the encoder and positions in the LLM."""

    def __init__(self, model, monkeypatch):
        self.windows, self.positions = 0, []
        encode, extend = model.path.encoder.forward, model.path.llm.extend

        def counting_encode(samples, *rest):
            self.windows += len(samples)
            return encode(samples, *rest)

        def counting_extend(embeddings, mask, cache):
            self.positions.append(embeddings.shape[1])
            return extend(embeddings, mask, cache)

        monkeypatch.setattr(model.path.encoder, "forward", counting_encode)
        monkeypatch.setattr(model.path.llm, "extend", counting_extend)

    @property
    def prefilled(self):
        return sum(n for n in self.positions if n > 1)


def test_a_transcript_is_what_training_generates_from_the_same_audio(model, noise):
    samples = noise(7.7)
    dialogue = model.path.prompter.dialogue(messages_of({"text": "one two"}), 1, "asr")
    batch = Batch.of([Sample("a", dialogue, [samples])])
    expected = model.path.generate(batch, 24)[0].tolist()
    stops = model.path.prompter.stop_ids
    expected = expected[: next((i for i, token in enumerate(expected) if token in stops), 24)]
    answer = model.transcribe(samples, max_new_tokens=24)
    assert list(answer.tokens) == expected[: len(answer.tokens)]
    assert len(answer.tokens) == len(expected) or answer.loop


def test_an_answer_tells_how_it_came_about(model, noise):
    answer = model.transcribe(noise(7.7), max_new_tokens=5)
    assert isinstance(answer, Answer)
    assert isinstance(answer.text, str)
    assert (answer.seconds, answer.speech_tokens) == (7.7, 16)
    assert answer.token_rate == pytest.approx(16 / 7.7)
    assert answer.timings.encode > 0
    assert answer.timings.prefill > 0
    assert answer.timings.decode > 0
    assert answer.speed == pytest.approx(7.7 / answer.timings.total)
    assert answer.task == "asr"
    assert answer.prompt == "Transcribe the audio clip into text."


def test_reaching_the_limit_is_reported_and_the_default_limit_follows_the_audio(model, noise, monkeypatch):
    cut = model.transcribe(noise(3), max_new_tokens=4)
    assert len(cut.tokens) == 4
    assert cut.truncated
    assert "cut off at 4 tokens" in cut.warnings[0]
    monkeypatch.setattr(model.path.prompter, "stop_ids", [])
    monkeypatch.setattr(answering.guards, "find_loop", lambda ids, text: None)
    for seconds in (1, 10):
        assert model.limit(seconds, None, 10) == 32 + 4 * seconds
    assert model.limit(10_000, None, 4000) == 96  # what is left of the context


def test_audio_is_encoded_and_read_once_for_all_questions(model, noise, monkeypatch):
    samples, questions = noise(21), ["How many voices?", "Who speaks first of all?", "Why?"]
    alone = [model.ask(samples, question, max_new_tokens=6).tokens for question in questions]
    counted = Counted(model, monkeypatch)
    answers = model.ask(samples, questions, max_new_tokens=6)
    assert [answer.tokens for answer in answers] == alone
    assert [answer.prompt for answer in answers] == questions
    assert counted.windows == 11
    before, _ = model.ids_of(Request("sqqa", "Why?"))
    after = sum(len(model.ids_of(Request("sqqa", question))[1]) for question in questions)
    rereads = sum(n for answer in answers for n in [answer.attempts - 1])  # a fallback reads its question again
    assert counted.prefilled >= len(before) + 42 + after
    assert rereads or counted.prefilled == len(before) + 42 + after


@pytest.mark.parametrize("text", ["forty two and nine", "na\u00efve \u65e5\u672c\u8a9e \U0001f600 zwei", "", "x"])
def test_text_is_shown_as_it_is_written_and_never_half_a_character(model, text):
    ids, shown = model.path.prompter.tokenizer(text, add_special_tokens=False)["input_ids"], []
    chunks = TextChunks(model, shown.append)
    for count in range(1, len(ids) + 1):
        chunks.update(ids[:count])
    chunks.finish(ids)
    assert "".join(shown) == model.text_of(ids)
    assert not any("\ufffd" in chunk for chunk in shown)
    assert len(shown) > 2 or len(ids) < 4


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_shown_with_its_spaces_around_tokens_that_say_nothing(model, monkeypatch, kind):
    tokenizer = make_tokenizer(kind)
    monkeypatch.setattr(model.path.prompter, "tokenizer", tokenizer)
    words = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("forty", " two", " of")]
    ids = [1, *words[0], 1, 1, *words[1], 1, *words[2], 1]  # 1 is a control token
    shown = []
    chunks = TextChunks(model, shown.append)
    for count in range(1, len(ids) + 1):
        chunks.update(ids[:count])
    chunks.finish(ids)
    assert "".join(shown) == model.text_of(ids)


def test_answers_are_shown_token_by_token(model, noise):
    shown = []
    answer = model.ask(noise(3), "What?", max_new_tokens=6, on_text=shown.append)
    assert "".join(shown) == model.text_of(answer.tokens)


def test_a_question_with_a_setting_of_another_method_says_which_method_was_called(model, noise):
    with pytest.raises(TypeError, match=r"Model\.ask\(\) takes no 'task'\. Other tasks .* are those of Model\.transcr"):
        model.ask(noise(1), "Who?", task="asr")


def test_a_batch_gives_the_answers_of_its_files_alone(model, noise):
    recordings = [noise(seconds, seed) for seed, seconds in enumerate((0.7, 9.1, 4.0, 2.2))]
    together = model.transcribe_batch(recordings, max_new_tokens=15)
    for samples, answer in zip(recordings, together, strict=True):
        alone = model.transcribe(samples, max_new_tokens=15)
        assert answer.tokens == alone.tokens
        assert (answer.seconds, answer.speech_tokens, answer.loop) == (alone.seconds, alone.speech_tokens, alone.loop)


def test_a_batch_with_beams_gives_the_answers_of_its_files_alone(model, noise):
    recordings = [noise(seconds, seed) for seed, seconds in enumerate((0.7, 4.1))]
    together = model.transcribe_batch(recordings, beams=3, max_new_tokens=8)
    alone = [model.transcribe(samples, beams=3, max_new_tokens=8) for samples in recordings]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


def test_one_recording_that_fails_in_the_llm_leaves_the_others_of_its_batch(model, noise, monkeypatch):
    recordings = [noise(2), noise(3), noise(1)]
    alone = [model.transcribe(recording, max_new_tokens=5).tokens for recording in recordings]
    extend = type(model.path.llm).extend

    def failing(llm, embeddings, *others):
        if embeddings.shape[1] > 20 and (embeddings.shape[0] > 1 or embeddings.shape[1] == longest):
            raise ConfigError("model.llm: its logits are no numbers in float16.")
        return extend(llm, embeddings, *others)

    before, after = model.ids_of(model.request("asr", None, None))
    longest = len(before) + len(after) + 6
    monkeypatch.setattr(type(model.path.llm), "extend", failing)
    first, second, third = model.transcribe_batch(recordings, max_new_tokens=5)
    assert (first.tokens, third.tokens) == (alone[0], alone[2])
    assert "no numbers" in str(second)


def test_what_cannot_be_read_stands_in_its_place_in_a_batch(model, noise, tmp_path):
    (tmp_path / "text.wav").write_text("no audio at all")
    results = model.transcribe_batch([noise(1), tmp_path / "text.wav", noise(2)], max_new_tokens=3)
    assert [type(result) for result in results] == [Answer, DataError, Answer]
    assert "text.wav: unreadable audio" in str(results[1])
    assert model.transcribe_batch([tmp_path / "nowhere.wav"])[0].args[0].endswith("No such file or directory")


def test_threads_that_share_a_model_get_what_they_get_alone(model, noise):
    recordings = [noise(1 + i, i) for i in range(4)]
    alone = [model.transcribe(samples, max_new_tokens=10).tokens for samples in recordings]
    found, errors = [None] * 12, []

    def work(i):
        try:
            found[i] = model.transcribe(recordings[i % 4], max_new_tokens=10).tokens
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert found == alone * 3


def test_a_loop_is_written_anew_from_where_it_began_and_what_helped_is_told(model):
    looping, tried = [5, 6, 7] + [8, 9] * 40, []

    def attempt(decoding, start):
        tried.append((decoding.temperature, start))
        rest = [11, 12, 13] if decoding.temperature == 0.4 else [8, 9] * 40
        return Generated([*start, *rest], "stop") if start else Generated(looping, "loop")

    written = model.guarded(attempt, Decoding())
    assert tried == [(0.0, []), (0.2, [5, 6, 7, 8, 9]), (0.4, [5, 6, 7, 8, 9])]
    assert (written.ids, written.attempts, written.temperature) == ([5, 6, 7, 8, 9, 11, 12, 13], 3, 0.4)


def test_a_loop_that_nothing_helps_against_is_reported(model):
    written = model.guarded(lambda how, start: Generated([8, 9] * 40, "loop"), Decoding())
    assert (written.attempts, written.temperature) == (6, 0.0)
    answer = Answer("", tuple(written.ids), 1.0, 1, None, loop=model.loop_of(written), attempts=written.attempts)
    assert "repeats a phrase 40 times over from token 0 on, after 6 attempts" in answer.warnings[0]


def test_decoding_stops_by_itself_in_a_loop(model, noise, monkeypatch):
    llm = model.path.llm

    def always_the_same(embeddings, mask, cache):
        logits = torch.zeros(len(embeddings), 640)
        logits[:, 300] = 50.0  # so likely that no temperature helps
        return logits

    monkeypatch.setattr(llm, "extend", always_the_same)
    answer = model.transcribe(noise(2), max_new_tokens=4000)
    assert answer.loop is not None
    assert answer.loop.period == 1
    assert len(answer.tokens) < 300
    assert not answer.truncated


# -- requests ------------------------------------------------------------------------------------------


def test_prompts_are_those_of_training(model):
    prompter = model.path.prompter
    cases = [
        (Request(), {"text": "x"}),
        (Request("ast", language="Korean"), {"task": "ast", "translation": "x", "target_language": "Korean"}),
        (Request("ast"), {"task": "ast", "translation": "x"}),
        (Request("ssum"), {"task": "ssum", "summary": "x"}),
        (Request("sqqa", "Who?"), {"task": "sqqa", "answer": "x", "question": "Who?"}),
    ]
    for request, fields in cases:
        dialogue = prompter.dialogue(messages_of(fields), 1, request.task)
        before, after = request.ids(prompter)
        assert [*before, prompter.audio_id, *after] == dialogue.input_ids[: dialogue.num_prompt_ids].tolist()


def test_words_of_ones_own_stand_in_place_of_the_tasks(model):
    tokenizer = model.path.prompter.tokenizer
    own = tokenizer.decode(Request("asr", "one two").ids(model.path.prompter)[1])
    assert "one two" in own
    before = Request("asr", "one two").ids(model.path.prompter)[0]
    assert before == Request("asr").ids(model.path.prompter)[0]


@pytest.mark.parametrize("prompt", [None, "Who speaks?"])
def test_a_task_that_needs_several_fields_of_a_sample_cannot_be_asked_of_audio_alone(prompt):
    task = Task("contexts", "Context: {context}\n{audio}\nIn one word: {question}", "answer")
    with pytest.raises(ConfigError, match=r"contexts cannot be asked of audio alone.* context and question"):
        Request("contexts", prompt, None, task)


def test_words_of_ones_own_stand_in_place_of_those_that_need_several_fields():
    task = Task("compare", "{audio}\nCompare {a} with {b}", "answer")
    assert Request("compare", "Who speaks?", None, task).words == "Who speaks?"
    with pytest.raises(ConfigError, match=r"need a and b, .* or give words of your own as the prompt"):
        Request("compare", None, None, task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "asrr"}, "unknown task 'asrr', installed: .* Did you mean 'asr'"),
        ({"task": "sqqa"}, "task: sqqa needs a question"),
        ({"language": "Korean"}, "'Korean' is what tasks such as ast translate into"),
    ],
)
def test_requests_that_make_no_sense_are_refused(model, noise, settings, message):
    with pytest.raises(ConfigError, match=message):
        model.transcribe(noise(1), **settings)


# -- streams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1600, 32_000, 50_001, 400_000])
def test_a_stream_ends_with_the_answer_of_the_whole_recording(model, noise, size):
    samples = noise(13.3)
    chunks = [samples[i : i + size] for i in range(0, len(samples), size)]
    stream = model.stream(chunks)
    tokens = list(stream)
    assert tokens == sorted(tokens)
    answer, whole = stream.answer(max_new_tokens=12), model.transcribe(samples, max_new_tokens=12)
    assert answer.tokens == whole.tokens
    assert (answer.seconds, answer.speech_tokens) == (whole.seconds, whole.speech_tokens)


def test_a_stream_answers_at_any_time_about_what_was_said_so_far(model, noise, monkeypatch):
    samples, stream = noise(9), model.stream()
    counted = Counted(model, monkeypatch)
    for begin, end in ((0, 8000), (8000, 50_000), (50_000, 64_000), (64_000, 144_000)):
        stream.push(samples[begin:end])
        answer = stream.answer(max_new_tokens=8)
        assert answer.seconds == pytest.approx(end / 16_000)
        windows = counted.windows
        assert answer.tokens == model.transcribe(samples[:end], max_new_tokens=8).tokens
        counted.windows = windows
    # Each full window once, and the unfinished one anew for each answer about it: 0.5 s, 3.1 s, 9 s.
    assert counted.windows == 4 + 3


@pytest.mark.parametrize("told", ["on_text", "on_progress"])
def test_a_stream_takes_nothing_from_within_its_own_answer_and_stays_as_it_was(model, noise, told):
    samples, stream = noise(9), model.stream()
    stream.push(samples[:64_000])
    for refused in (lambda *_: stream.push(samples[64_000:]), lambda *_: stream.answer(), lambda *_: stream.finish()):
        with pytest.raises(DataError, match="from within on_text or on_progress"):
            stream.answer(max_new_tokens=8, **{told: refused})
    stream.push(samples[64_000:])
    assert stream.answer(max_new_tokens=8).tokens == model.transcribe(samples, max_new_tokens=8).tokens


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": -1}, {"max_new_tokens": "x"}, {"on_text": 5}, {"on_progress": 5}, {"decoding": 5}]
)
def test_arguments_of_a_stream_that_make_no_sense_are_one_sentence(model, noise, wrong):
    stream = model.stream()
    stream.push(noise(2))
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}: "):
        stream.transcribe(**wrong)
    with pytest.raises(ConfigError, match="chunks: 5"):
        model.stream(5)
    for name in ("on_text", "on_segment"):
        with pytest.raises(ConfigError, match=f"^{name}: 5 must be a function"):
            model.transcribe(noise(2), **{name: 5})


def test_a_stream_of_a_model_with_context_answers_as_if_each_moment_were_the_end(context_model, noise):
    samples, stream = noise(7), context_model.stream()
    for begin, end in ((0, 25_600), (25_600, 27_000), (27_000, 60_000), (60_000, 112_000)):
        stream.push(samples[begin:end])
        whole = context_model.transcribe(samples[:end], max_new_tokens=8)
        answer = stream.answer(max_new_tokens=8)
        assert (answer.tokens, answer.seconds) == (whole.tokens, whole.seconds)
        assert answer.speech_tokens == whole.speech_tokens


def test_a_stream_answers_other_tasks_from_the_same_tokens(model, noise, monkeypatch):
    samples, stream = noise(8), model.stream()
    stream.push(samples)
    expected = model.ask(samples, "Who?", max_new_tokens=8).tokens
    counted = Counted(model, monkeypatch)
    assert stream.ask("Who?", max_new_tokens=8).tokens == expected
    assert counted.windows == 0
    assert stream.transcribe(max_new_tokens=8).tokens == stream.answer(max_new_tokens=8).tokens


def test_a_stream_resamples_and_mixes_as_a_file_is(model, noise):
    stereo = np.stack([noise(6, 1), noise(6, 2)], 1).astype(np.float32) / 32768  # said to be 6 s at 16 kHz: 2 s at 48
    stream = model.stream([stereo[i : i + 1000] for i in range(0, len(stereo), 1000)], sample_rate_hz=48_000)
    list(stream)
    whole = model.transcribe(stereo, sample_rate_hz=48_000, max_new_tokens=10)
    assert stream.answer(max_new_tokens=10).tokens == whole.tokens
    assert stream.seconds == pytest.approx(2.0, abs=0.001)


def test_a_stream_says_what_it_cannot_do(model, whole_range_model, noise):
    stream = model.stream()
    with pytest.raises(DataError, match="no audio has come"):
        stream.answer()
    with pytest.raises(DataError, match="int16"):
        stream.push(["a", "b"])
    stream.finish()
    with pytest.raises(DataError, match="finished"):
        stream.push(noise(1))
    with pytest.raises(ConfigError, match=r"must know the whole recording beforehand.*mel_range: recording"):
        whole_range_model.stream().push(noise(1))


def test_a_full_stream_refuses_the_next_chunk_and_answers_about_the_others(model, noise, monkeypatch):
    samples = noise(30)
    stream = model.stream(samples[i : i + 50_000] for i in range(0, len(samples), 50_000))
    monkeypatch.setattr(model.path.llm, "context_length", 330)
    with pytest.raises(DataError, match=r"330, of which a stream keeps 2\d\d .* open another stream"):
        list(stream)
    taken = round(stream.seconds * 16_000)
    assert taken in range(50_000, len(samples), 50_000)
    with pytest.raises(DataError, match=r"330\. Ask in fewer words"):
        stream.ask("who " * 300)
    answers = [stream.transcribe(max_new_tokens=3)]
    stream.finish()
    answers += [stream.transcribe(max_new_tokens=3), model.transcribe(samples[:taken], max_new_tokens=3)]
    assert [answer.seconds for answer in answers] == [stream.seconds] * 3 == [taken / 16_000] * 3
    assert answers[0].tokens == answers[1].tokens == answers[2].tokens


def test_one_thread_may_push_while_another_asks(model, noise):
    samples, stream, lengths = noise(20), model.stream(), []

    def push():
        for begin in range(0, len(samples), 8000):
            stream.push(samples[begin : begin + 8000])

    stream.push(samples[:0])
    thread = threading.Thread(target=push)
    thread.start()
    while thread.is_alive():
        if stream.seconds:
            lengths.append(stream.answer(max_new_tokens=2).seconds)
    thread.join()
    stream.finish()
    assert lengths == sorted(lengths)
    assert stream.answer(max_new_tokens=12).tokens == model.transcribe(samples, max_new_tokens=12).tokens


def test_a_question_without_room_is_named_before_the_others_are_answered(model, noise, monkeypatch):
    samples, told = noise(60), []
    monkeypatch.setattr(model.path.llm, "context_length", 200)
    with pytest.raises(DataError, match=r"question 'why why .*and the LLM has 200"):
        model.ask(samples, ["Who?", "why " * 60], max_new_tokens=3, on_text=told.append)
    assert told == []
    assert len(model.ask(samples, ["Who?", "What?"], max_new_tokens=3)) == 2


@pytest.mark.parametrize("task", ["ssum", "sqqa"])
def test_a_recording_too_long_for_an_answer_about_the_whole_is_not_sent_to_sections(model, noise, monkeypatch, task):
    monkeypatch.setattr(model.path.llm, "context_length", 100)
    with pytest.raises(DataError, match=r"and the LLM has 100\. Give a shorter recording") as raised:
        model.transcribe(noise(60), task=task, prompt="Who?")
    assert "section" not in str(raised.value)


def test_a_question_that_fills_the_context_is_named_rather_than_the_audio(model, noise):
    with pytest.raises(DataError, match=r"positions, 4 of them of audio, and the LLM has 4096. Ask in fewer words"):
        model.ask(noise(2), "word " * 9000)
