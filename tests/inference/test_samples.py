"""Audio in the forms in which other libraries hand it over: taken for what it is, or a sentence says why not."""

import array
import contextlib
import copy
import io
import multiprocessing
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslm.errors import ConfigError, DataError, FastSLMError
from fastslm.inference.audio import open_audio

RATE = 16_000
SPEECH = (np.sin(np.arange(RATE) / 9) * np.linspace(2000, 9000, RATE)).astype(np.int16)
FLOATS = SPEECH.astype(np.float32) / 32768


def samples_of(audio, rate=None):
    return np.concatenate(list(open_audio(audio, rate).blocks()))


def flac(samples=SPEECH, rate=RATE):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC")
    return buffer.getvalue()


class Decoder:
    """What datasets gives for a column of audio, as torchcodec decodes it."""

    def get_all_samples(self):
        return SimpleNamespace(data=torch.from_numpy(FLOATS)[None], sample_rate=RATE, duration_seconds=1.0)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(FLOATS.astype(np.float64), id="float64"),
        pytest.param(SPEECH.astype(">i2"), id="big-endian int16"),
        pytest.param(FLOATS.astype(">f4"), id="big-endian float32"),
        pytest.param(SPEECH.astype(np.int32) << 16, id="int32"),
        pytest.param(SPEECH.astype(np.int64), id="int16 in int64"),
        pytest.param(SPEECH.tolist(), id="list of integers"),
        pytest.param(FLOATS.tolist(), id="list of floats"),
        pytest.param(array.array("h", SPEECH.tolist()), id="array of int16"),
        pytest.param(memoryview(FLOATS), id="memory of floats"),
        pytest.param(np.ma.array(FLOATS), id="masked array, nothing masked"),
        pytest.param(FLOATS[::-1].copy()[::-1], id="backward strides"),
        pytest.param(SPEECH[::-1].copy()[::-1], id="backward strides of int16"),
        pytest.param(np.repeat(SPEECH, 3)[::3], id="every third"),
        pytest.param(np.frombuffer(SPEECH.tobytes(), np.int16), id="read-only"),
        pytest.param(torch.from_numpy(FLOATS).clone().requires_grad_(), id="tensor with a gradient"),
        pytest.param(torch.from_numpy(SPEECH), id="int16 tensor"),
        pytest.param(FLOATS[None], id="[1, N]"),
        pytest.param(FLOATS[None, None], id="[1, 1, N]"),
        pytest.param(FLOATS[:, None], id="[N, 1]"),
        pytest.param(np.stack([FLOATS] * 6, 1), id="[N, 6]"),
        pytest.param((FLOATS, RATE), id="samples and rate"),
        pytest.param((torch.from_numpy(FLOATS)[None], RATE), id="torchaudio"),
        pytest.param((RATE, SPEECH), id="rate and samples"),
        pytest.param({"array": FLOATS, "sampling_rate": RATE, "path": None}, id="datasets"),
        pytest.param({"raw": FLOATS, "sampling_rate": RATE}, id="pipelines"),
        pytest.param({"waveform": torch.from_numpy(FLOATS)[None], "sample_rate": RATE}, id="pyannote"),
        pytest.param({"bytes": flac(), "path": "a.flac"}, id="datasets, not decoded"),
        pytest.param(Decoder(), id="torchcodec's decoder"),
        pytest.param(Decoder().get_all_samples(), id="torchcodec's samples"),
        pytest.param(flac(), id="bytes"),
        pytest.param(bytearray(flac()), id="bytearray"),
        pytest.param(memoryview(flac()), id="memory of a file"),
        pytest.param(io.BytesIO(flac()), id="BytesIO"),
    ],
)
def test_forms_that_hold_the_samples_exactly_give_them(form):
    np.testing.assert_allclose(samples_of(form), SPEECH, atol=1)


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        (torch.from_numpy(FLOATS).bfloat16(), 64),
        (torch.from_numpy(FLOATS).half(), 8),
        (FLOATS.astype(np.float16), 8),
        ((SPEECH // 256 + 128).astype(np.uint8), 256),
        ((SPEECH // 256).astype(np.int8), 256),
    ],
)
def test_narrow_forms_give_them_as_well_as_they_can(form, tolerance):
    np.testing.assert_allclose(samples_of(form), SPEECH, atol=tolerance)


def test_files_that_are_open_stay_where_their_owner_is(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(flac())
    written = io.BytesIO()
    written.write(flac())  # and not rewound, as after soundfile.write
    with open(path, "rb") as file, soundfile.SoundFile(path) as sound:
        file.read(7)
        for form in (file, written, sound, {"path": str(path), "bytes": None}, path, str(path)):
            np.testing.assert_array_equal(samples_of(form), SPEECH)
        assert file.tell() == 7
    assert written.tell() == len(flac())


@pytest.mark.parametrize("rate", [44_100, 44_100.0, np.int64(44_100), np.float32(44_100)])
def test_a_rate_may_be_any_kind_of_number(rate):
    fast = soxr.resample(FLOATS, RATE, 44_100)
    for form, told in ((fast, rate), ((fast, rate), None), ({"array": fast, "sampling_rate": rate}, None)):
        assert len(samples_of(form, told)) == pytest.approx(RATE, abs=2)


@pytest.mark.parametrize("rate", [0, -1, 16, 44.1, 44_100.5, float("nan"), float("inf"), "16000", True, 10**9])
def test_a_rate_that_is_none_is_said(rate):
    with pytest.raises(DataError, match=r"sample_rate_hz: .*not kHz"):
        open_audio(FLOATS, rate)
    with pytest.raises(DataError, match="sample_rate_hz"):
        open_audio(flac(), rate)


@pytest.mark.parametrize(
    ("form", "why"),
    [
        (np.stack([FLOATS] * 20), r"\[20, 16000\] may be 20 channels or 20 recordings"),
        (np.stack([FLOATS] * 4), "transcribe_batch"),
        (FLOATS.reshape(2, 2, 4000), r"\[2, 2, 4000\]"),
        (FLOATS * 32768, "must be in -1..1, and reaches"),
        (FLOATS.astype(np.complex64), "complex64"),
        (FLOATS.astype(object), "object"),
        (np.zeros(9, bool), "bool"),
        (SPEECH.astype(np.int64) << 20, "int64"),
        (np.ma.array(FLOATS, mask=SPEECH > 0), "masked"),
        (np.where(SPEECH[5] == SPEECH, np.nan, FLOATS), "not numbers"),
        (np.where(SPEECH[5] == SPEECH, np.inf, FLOATS), "not numbers"),
        (FLOATS[:0], "no samples"),
        ([], "no samples"),
        (np.float32(0.5), "it is"),
        (0.5, "it is 0.5"),
        (None, "it is None"),
        ((sample for sample in FLOATS), "generator"),
        (["a.wav", "b.wav"], "transcribe_batch"),
        ([[0.1, 0.2], [0.3]], "cannot be read as samples"),
        ({}, "nothing"),
        ({"array": FLOATS}, "needs their rate"),
        ({"text": "a"}, "'text'"),
        (b"", "the file is empty"),
        (SPEECH.tobytes(), "unreadable audio"),
        (io.StringIO("a"), "mode 'rb'"),
        ("no\0path", "zero byte"),
        ("\ud800", "no file system"),
        ("a" * 5000, "cannot be opened"),
        ((FLOATS, RATE, RATE), "cannot be read as samples"),
        ((FLOATS, "16000"), "cannot be read as samples"),
    ],
)
def test_what_is_no_audio_is_one_sentence(form, why):
    with pytest.raises(DataError, match=why) as refused:
        samples_of(form)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 500


def test_a_rate_that_contradicts_the_audio_is_refused():
    with pytest.raises(DataError, match="44100 was given, and the audio brings 16000"):
        open_audio((FLOATS, RATE), 44_100)
    np.testing.assert_array_equal(samples_of((SPEECH, RATE), 16_000.0), SPEECH)


# -- the methods of a model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": "1"}, {"top_p": float("nan")},
        {"seed": 10**30}, {"seed": 0.5}, {"beams": 0}, {"beams": 2.5}, {"beams": True}, {"beams": 10**6},
        {"max_new_tokens": 0}, {"max_new_tokens": -5}, {"max_new_tokens": 1.5}, {"section_minutes": float("nan")},
        {"section_minutes": float("inf")}, {"section_minutes": 0}, {"section_minutes": "5"}, {"prompt": ""},
        {"prompt": 5}, {"task": "translate"}, {"task": ["asr"]}, {"task": None}, {"language": "en"}, {"on_progress": 5},
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_named_before_anything_is_done(model, wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        model.transcribe("/nowhere", **wrong)


@pytest.mark.slow
def test_very_low_temperatures_and_many_beams_are_fine(model):
    greedy = model.transcribe(SPEECH, max_new_tokens=4)
    assert model.transcribe(SPEECH, max_new_tokens=4, temperature=1e-30).tokens == greedy.tokens
    assert model.transcribe(SPEECH, max_new_tokens=2, beams=100).text is not None
    assert model.transcribe(SPEECH, max_new_tokens=10**15, prompt="one").text is not None


@pytest.mark.parametrize("audios", ["a.wav", Path("a.wav"), b"abc", None, 5, FLOATS, {"array": FLOATS}])
def test_a_batch_is_a_list(model, audios):
    with pytest.raises(ConfigError, match="audios: must be a list of recordings"):
        model.transcribe_batch(audios)


def test_a_batch_may_hold_every_form_and_errors_stand_in_their_place(model):
    forms = [SPEECH, (FLOATS, RATE), flac(), None, b"zz", torch.from_numpy(FLOATS)]
    answers = model.transcribe_batch(iter(forms), max_new_tokens=4)
    expected = model.transcribe(SPEECH, max_new_tokens=4).text
    assert [getattr(answer, "text", None) for answer in answers] == [expected, expected, expected, None, None, expected]
    assert all(isinstance(answers[i], DataError) for i in (3, 4))
    assert model.transcribe_batch([]) == []
    two = model.transcribe_batch(np.stack([SPEECH, SPEECH]), max_new_tokens=4)
    assert [answer.text for answer in two] == [expected, expected]


@pytest.mark.parametrize("questions", [None, 5, b"Who?", [5], [""], {"a": 1}])
def test_questions_that_are_none_are_refused(model, questions):
    with pytest.raises(ConfigError):
        model.ask(SPEECH, questions)


def test_a_stream_keeps_the_axes_that_it_has_seen(model):
    stereo = np.stack([FLOATS, FLOATS])
    expected = model.transcribe(stereo, max_new_tokens=4).tokens
    stream = model.stream()
    for begin, end in ((0, 400), (400, 402), (402, 403), (403, RATE)):
        stream.push(stereo[:, begin:end])
    stream.finish()
    assert stream.seconds == 1.0
    assert stream.transcribe(max_new_tokens=4).tokens == expected
    for wrong in (None, "a.wav", FLOATS * 32768):
        with pytest.raises(DataError):
            model.stream().push(wrong)
    for wrong in (SPEECH.astype(np.int32), SPEECH.tolist()):
        with pytest.raises(DataError, match=r"has no scale\. If .* int16, give np\.asarray\(chunk, np\.int16\)"):
            model.stream().push(wrong)
    for wrong in (SPEECH.tobytes(), memoryview(SPEECH.tobytes())):
        with pytest.raises(DataError, match=r"not bytes\. If .* int16, give np\.frombuffer\(chunk, np\.int16\)"):
            model.stream().push(wrong)
    with pytest.raises(DataError, match="sample_rate_hz"):
        model.stream(sample_rate_hz=0)


# -- processes and copies --------------------------------------------------------------------------------------------


def test_models_and_answers_are_pickled_and_copied(model):
    answer = model.transcribe(SPEECH, max_new_tokens=4)
    assert pickle.loads(pickle.dumps(answer)) == answer
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.transcribe(SPEECH, max_new_tokens=4).tokens == answer.tokens


def _transcribe(model, results):
    results.put(model.transcribe(SPEECH, max_new_tokens=4).tokens)


def test_a_forked_process_answers_though_its_parent_had_threads(model):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = model.transcribe(SPEECH, max_new_tokens=4).tokens
        torch.randn(600, 600) @ torch.randn(600, 600)  # starts the threads
        context = multiprocessing.get_context("fork")
        results = context.Queue()
        with model._text_lock:  # as another thread may hold it
            child = context.Process(target=_transcribe, args=(model, results), daemon=True)
            child.start()
        try:
            assert results.get(timeout=60) == expected
        finally:
            child.kill()
            child.join()
    finally:
        torch.set_num_threads(before)


def test_threads_share_a_model(model):
    expected = model.transcribe(SPEECH, max_new_tokens=4).tokens
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(model.transcribe(SPEECH, max_new_tokens=4).tokens))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# -- anything ---------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
ARRAYS = st.builds(
    lambda shape, kind, scale: (np.resize(FLOATS, shape) * np.array(scale)).astype(kind).reshape(shape),
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    st.sampled_from(["f2", "f4", ">f4", "f8", "i1", "u1", "i2", ">i2", "u2", "i4", "i8", "c8", "?", "U3", "O"]),
    st.sampled_from([0.0, 1.0, 100.0, 1e9]),
)
PLAIN = st.one_of(NUMBERS, ARRAYS, st.binary(max_size=60), st.text(max_size=8), ARRAYS.map(np.transpose))
FORMS = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(["array", "bytes", "path", "sampling_rate", "raw", "x"]), inner, max_size=3),
    ),
    max_leaves=4,
)  # fmt: skip
ARGUMENTS = st.dictionaries(
    st.sampled_from(
        ["task", "prompt", "language", "beams", "temperature", "top_p", "seed", "section_minutes", "sample_rate_hz"]
    ),
    st.one_of(NUMBERS, st.sampled_from(["asr", "ast", "sqqa", "Korean", "Who?", 2, 0.5, 16_000.0])),
    max_size=3,
)


@settings(max_examples=150)
@given(form=FORMS, rate=NUMBERS)
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_given_as_audio_is_samples_or_our_error(form, rate):
    with contextlib.suppress(FastSLMError):
        samples = samples_of(form, rate)
        assert samples.dtype == np.int16
        assert samples.ndim == 1


@settings(max_examples=60)
@given(form=FORMS, arguments=ARGUMENTS)
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_asked_of_a_model_is_an_answer_or_our_error(model, form, arguments):
    for call in (
        lambda: model.transcribe(SPEECH[:4000], max_new_tokens=2, **arguments),
        lambda: model.transcribe(form, max_new_tokens=2, **arguments),
        lambda: model.transcribe_batch(form, max_new_tokens=2),
        lambda: model.ask(SPEECH[:4000], form, max_new_tokens=2),
    ):
        with contextlib.suppress(FastSLMError):
            call()
