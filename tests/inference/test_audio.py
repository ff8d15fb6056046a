"""Audio of any format, rate and number of channels in blocks, and clear words about what is none."""

import http.server
import io
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from fastslm.audio import decoding
from fastslm.audio.ffmpeg import needs_av
from fastslm.commands.outputs import find_jobs
from fastslm.errors import DataError, MissingExtraError
from fastslm.inference import audio
from fastslm.inference.audio import ArraySource, DownloadedSource, FileSource, find_audio, open_audio

RATE = 16_000


def samples_of(source):
    return np.concatenate(list(source.blocks()))


@pytest.mark.parametrize(("form", "suffix"), [("WAV", "wav"), ("FLAC", "flac"), ("AIFF", "aiff"), ("W64", "w64")])
def test_lossless_files_give_their_samples(tmp_path, noise, write_audio, form, suffix):
    samples = noise(23.4)
    source = FileSource(write_audio(tmp_path / f"a.{suffix}", samples, format=form))
    assert source.seconds == pytest.approx(23.4)
    np.testing.assert_array_equal(samples_of(source), samples)
    np.testing.assert_array_equal(samples_of(source), samples)  # from the start again


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "opus"])
def test_lossy_files_give_about_their_samples(tmp_path, noise, write_audio, suffix):
    samples = noise(23.4)
    settings = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    source = FileSource(write_audio(tmp_path / f"a.{suffix}", samples, **settings))
    found = samples_of(source)
    assert abs(len(found) - len(samples)) < 0.1 * RATE
    assert source.seconds == pytest.approx(23.4, abs=0.1)


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_any_channels_become_mono_at_16_khz(tmp_path, write_audio, rate, channels):
    generator = np.random.default_rng(0)
    times = np.arange(round(11.3 * rate)) / rate  # longer than a block
    wave = 0.3 * np.sin(2 * np.pi * 440 * times)[:, None] * generator.uniform(0.5, 1.0, channels)
    source = FileSource(write_audio(tmp_path / "a.wav", wave.astype(np.float32), rate, subtype="FLOAT"))
    whole = soxr.resample(wave.mean(axis=1).astype(np.float32), rate, RATE)
    found = samples_of(source)
    assert abs(len(found) - len(whole)) <= 1
    num = min(len(found), len(whole))
    np.testing.assert_allclose(found[:num] / 32768, whole[:num], atol=2e-4)


def test_no_block_is_longer_than_some_seconds(tmp_path, noise, write_audio):
    source = FileSource(write_audio(tmp_path / "a.mp3", noise(45)))
    assert max(len(block) for block in source.blocks()) <= (audio.BLOCK_SECONDS + 1) * RATE


@pytest.mark.parametrize("suffix", ["m4a", "mkv", "webm"])
def test_what_soundfile_cannot_read_is_read_by_av(tmp_path, noise, suffix):
    av = pytest.importorskip("av")
    samples = noise(12)
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        codec, rate = ("libopus", 48_000) if suffix == "webm" else ("aac", 16_000)
        stream = container.add_stream(codec, rate=rate, layout="mono")
        shaped = soxr.resample(samples.astype(np.float32) / 32768, RATE, rate)[None]
        frame = av.AudioFrame.from_ndarray(shaped.astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(stream.format.name, "mono", rate, frame_size=stream.frame_size or 960)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    found = samples_of(FileSource(path))
    assert abs(len(found) - len(samples)) < 0.2 * RATE
    shift = np.argmax(np.correlate(found[:8000].astype(float), samples[2000:4000].astype(float), "valid")) - 2000
    assert abs(shift) < 0.2 * RATE


def test_without_av_its_formats_name_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastslm\[av\]'"):
        FileSource(tmp_path / "a.m4a")


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("empty.wav", b"", "the file is empty"),
        ("text.wav", b"this is a text and no audio\n" * 20, "unreadable audio"),
        ("zeros.flac", bytes(5000), "unreadable audio: .*; raw samples need a header, such as WAV's"),
    ],
)
def test_what_is_no_audio_is_refused(tmp_path, name, contents, message):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(DataError, match=message):
        samples_of(FileSource(tmp_path / name))


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "/dev/null"])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="a pipe or a device"):
        FileSource(tmp_path / name)


@pytest.mark.parametrize("without_av", [False, True])
def test_a_text_called_wav_is_refused_with_and_without_av(tmp_path, monkeypatch, without_av):
    if without_av:
        monkeypatch.setattr(decoding, "has_av", lambda: False)
    (tmp_path / "text.wav").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n")
    with pytest.raises(DataError, match="unreadable audio"):
        FileSource(tmp_path / "text.wav")


@pytest.mark.parametrize("form", ["FLAC", "WAV", "OGG"])
def test_half_a_file_is_refused(tmp_path, noise, encoded, form):
    whole = encoded(noise(30), form)
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="unreadable audio"):
        samples_of(FileSource(tmp_path / "half"))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        open_audio(tmp_path / "nowhere.wav")
    with pytest.raises(DataError, match="folder"):
        open_audio(tmp_path)


def test_a_wav_without_samples_and_one_with_nonsense_are_refused(tmp_path, write_audio):
    with pytest.raises(DataError, match="no samples"):
        FileSource(write_audio(tmp_path / "none.wav", np.zeros(0, np.int16)))
    broken = write_audio(tmp_path / "nan.wav", np.full(1000, np.nan, np.float32), subtype="FLOAT")
    with pytest.raises(DataError, match="not numbers"):
        samples_of(FileSource(broken))


def test_samples_in_memory_are_taken_in_many_forms(noise):
    import torch

    samples = noise(3)
    floats = samples.astype(np.float32) / 32768
    forms = [samples, floats, floats.astype(np.float64), torch.from_numpy(floats), floats[:, None]]
    forms += [np.stack([floats, floats], 1), np.stack([floats, floats])]  # channels last, channels first
    for form in forms:
        np.testing.assert_array_equal(samples_of(ArraySource(form)), samples)
    np.testing.assert_array_equal(samples_of(ArraySource(np.array([2.0, -2.0]))), [32767, -32768])


@pytest.mark.parametrize("samples", [np.zeros((2, 3, 4)), np.full(5, 1 << 40), "abc", np.zeros(0, np.float32)])
def test_samples_that_are_no_audio_are_refused(samples):
    with pytest.raises(DataError):
        samples_of(ArraySource(samples))


class _NoPath:
    def __fspath__(self):
        return 5


def closed_file():
    file = io.BytesIO(b"RIFF")
    file.close()
    return file


@pytest.mark.parametrize(
    ("audio", "rate", "words"),
    [
        ("", None, "the name of the recording is empty"),
        (_NoPath(), None, "gives no path"),
        (closed_file(), None, "an open file cannot be read: I/O operation on closed file"),
        (memoryview(bytes(100))[::2], None, "unreadable audio|no audio|nothing known"),
        (np.zeros(5, "M8[s]"), None, "it is ndarray of datetime64"),
        (np.zeros(5, np.int16), 10**400, "must be a whole number of samples per second"),
    ],
    ids=["no name", "no path", "a closed file", "every second byte", "dates", "an endless rate"],
)
def test_what_cannot_be_audio_is_one_sentence(audio, rate, words):
    with pytest.raises(DataError, match=words) as refused:
        open_audio(audio, rate)
    assert len(str(refused.value)) < 300


def test_standard_input_may_be_any_format(noise, encoded, monkeypatch):
    samples = noise(2)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encoded(samples, "FLAC"))))
    source = open_audio("-")
    assert source.name == "standard input"
    np.testing.assert_array_equal(samples_of(source), samples)


def test_urls_are_fetched(tmp_path, noise, write_audio):
    samples = noise(2)
    write_audio(tmp_path / "a.flac", samples)
    write_audio(tmp_path / "für dich.flac", samples)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            for name in ("a.flac", "für dich.flac", "f%C3%BCr%20dich.flac", "a.flac?x=1&y=z#t=3"):
                np.testing.assert_array_equal(samples_of(open_audio(f"{url}/{name}")), samples)
            np.testing.assert_array_equal(samples_of(open_audio(f"HTTP{url[4:]}/a.flac")), samples)
            with pytest.raises(DataError, match=r"cannot be fetched.*404"):
                open_audio(f"{url}/b.flac")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(DataError, match="cannot be fetched"):
        open_audio(f"{url}/a.flac")
    np.testing.assert_array_equal(samples_of(open_audio((tmp_path / "a.flac").as_uri())), samples)
    with pytest.raises(DataError, match="cannot be fetched"):
        open_audio("nosuchprotocol://x/a.flac")


def test_folders_are_searched_below(tmp_path, noise, write_audio):
    for name in ("b.wav", "sub/a.FLAC", "sub/deep/c.mp3"):
        write_audio(tmp_path / name, noise(0.2))
    (tmp_path / "notes.txt").write_text("x")
    assert [str(p.relative_to(tmp_path)) for p in find_audio(tmp_path)] == ["b.wav", "sub/a.FLAC", "sub/deep/c.mp3"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no audio"):
        find_audio(tmp_path / "none")


def test_links_are_followed_and_what_macos_adds_is_left_out(tmp_path, noise, write_audio, capsys):
    write_audio(tmp_path / "disk/1/a.wav", noise(0.2)), write_audio(tmp_path / "store/b.wav", noise(0.2))
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks/linked").symlink_to("../disk/1")
    (tmp_path / "talks/b.wav").symlink_to("../store/b.wav")
    (tmp_path / "talks/circle").symlink_to(".")
    (tmp_path / "disk/1/._a.wav").write_bytes(bytes(300))
    assert [str(p.relative_to(tmp_path)) for p in find_audio(tmp_path / "talks")] == [
        "talks/b.wav",
        "talks/linked/a.wav",
    ]
    assert "1 files that macOS added" in capsys.readouterr().err
    jobs = find_jobs([str(tmp_path / "talks")], tmp_path / "out", "txt")
    assert [str(job.output.relative_to(tmp_path)) for job in jobs] == ["out/b.txt", "out/linked/a.txt"]


@pytest.mark.parametrize("end", ["", "/", "/x/.", "/x/..", "/x/./", "?name=a.mp3"])
def test_an_address_that_names_no_file_is_called_audio(end):
    (job,) = find_jobs([f"http://host{end}"], Path("out"), "txt")
    assert job.output == Path("out/audio.txt")


def test_containers_are_told_by_their_first_bytes():
    heads = {
        b"\0\0\0\x20ftypM4A ": True,
        b"\x1aE\xdf\xa3____": True,
        b"RIFF\0\0\0\0AVI ": True,
        b"RIFF\0\0\0\0WAVE": False,
    }
    heads |= {b"\xff\xf1\x50\x80________": True, b"\xff\xfb\x90\x00________": False, b"fLaC": False, b"": False}
    assert {head: needs_av(io.BytesIO(head)) for head in heads} == heads


def test_soundfile_lists_what_the_extensions_promise():
    known = {name.lower() for name in soundfile.available_formats()}
    assert {"wav", "flac", "mp3", "ogg", "aiff", "au", "caf", "w64"} <= known


def test_what_came_through_a_pipe_is_kept_without_a_name_and_read_as_often_as_needed(
    tmp_path, monkeypatch, noise, encoded
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    samples = noise(25.0)
    source = DownloadedSource(io.BytesIO(encoded(samples, "FLAC")), "standard input")
    assert not list(tmp_path.iterdir())  # so that no kill can leave it
    first, second = source.blocks(), source.blocks()
    both = [(next(first), next(second)) for _ in range(2)]
    assert all(np.array_equal(one, other) for one, other in both)
    np.testing.assert_array_equal(np.concatenate(list(source.blocks())), samples)
