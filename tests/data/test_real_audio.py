"""Speech made by espeak-ng, in every format a corpus comes in: what arrives in a batch is what was said."""

import io
import json

import numpy as np
import pytest
import soundfile
import soxr

from fastslm.datamodules.reading.audio import decode, read_info
from fastslm.errors import DataError, MissingExtraError

pytest.importorskip("espeakng_loader")
av = pytest.importorskip("av")

RATE = 16_000
TEXT = "the quick brown fox jumps over the lazy dog and forty two other animals"


@pytest.fixture(scope="module")
def speech():
    """Return a sentence, int16 at 22050 Hz."""
    from fastslm.datamodules.spoken.espeak import Espeak

    with Espeak() as engine:
        engine.set_voice("en-us", 150, 50)
        return engine.speak(TEXT), engine.sample_rate


def at(speech, rate, seconds=None, num_channels=1):
    """Return speech as float ``[N, channels]`` at a rate, repeated or cut to a length; channels differ in loudness."""
    samples, own_rate = speech
    mono = soxr.resample(samples.astype(np.float32) / 32768, own_rate, rate)
    if seconds is not None:
        mono = np.resize(mono, round(seconds * rate))
    return np.stack([mono * 0.8 * share for share in (1.0, 0.5)[:num_channels]], axis=1)


def encode(samples, rate, extension):
    buffer = io.BytesIO()
    kinds = {
        "wav": ("WAV", "PCM_16"),
        "flac": ("FLAC", "PCM_16"),
        "mp3": ("MP3", "MPEG_LAYER_III"),
        "opus": ("OGG", "OPUS"),
    }
    if extension in kinds:
        container, subtype = kinds[extension]
        with soundfile.SoundFile(buffer, "w", rate, samples.shape[1], subtype, format=container) as sound:
            for begin in range(0, len(samples), rate):
                sound.write(samples[begin : begin + rate])
        return buffer.getvalue()
    container, codec = {"m4a": ("ipod", "aac"), "aac": ("adts", "aac"), "webm": ("webm", "libopus")}[extension]
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        for begin in range(0, len(samples), 1024 if codec == "aac" else 960):
            part = samples[begin : begin + (1024 if codec == "aac" else 960)].T.astype(np.float32)
            if codec == "libopus":
                part = (part.T.ravel() * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), "fltp" if codec == "aac" else "s16", layout)
            frame.sample_rate, frame.pts = rate, begin
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def likeness(found, expected):
    """Return the largest correlation of two recordings over shifts of up to 0.1 s: codecs add a delay."""
    size = 1 << int(np.ceil(np.log2(len(found) + len(expected))))
    product = np.fft.rfft(found.astype(float), size) * np.conj(np.fft.rfft(expected.astype(float), size))
    across = np.fft.irfft(product, size)
    near = np.concatenate([across[:1600], across[-1600:]])
    return near.max() / (np.linalg.norm(found.astype(float)) * np.linalg.norm(expected.astype(float)))


CASES = [
    *((extension, rate) for extension in ("wav", "flac") for rate in (8_000, 16_000, 22_050, 44_100, 48_000)),
    *(("mp3", rate) for rate in (16_000, 22_050, 44_100, 48_000)),
    *(("opus", rate) for rate in (8_000, 16_000, 48_000)),
    *(("m4a", rate) for rate in (16_000, 22_050, 44_100, 48_000)),
    ("aac", 44_100),
    ("webm", 48_000),
]


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize(("extension", "rate"), CASES)
def test_speech_of_any_format_is_decoded_as_it_was_spoken(speech, extension, rate, num_channels):
    spoken = at(speech, rate, num_channels=num_channels)
    data = encode(spoken, rate, extension)
    info = read_info(io.BytesIO(data))
    decoded = decode(io.BytesIO(data))
    seconds = len(spoken) / rate
    assert len(decoded) == pytest.approx(seconds * RATE, abs=0.15 * RATE)
    assert info.num_samples == pytest.approx(len(decoded), abs=0.05 * RATE)
    assert info.num_channels == num_channels
    expected = soxr.resample(spoken.mean(axis=1), rate, RATE)
    lossless = extension in ("wav", "flac")
    assert likeness(decoded, expected) > (0.9999 if lossless else 0.9)
    assert np.abs(decoded).max() == pytest.approx(np.abs(expected).max() * 32768, rel=0.02 if lossless else 0.35)


@pytest.mark.parametrize("extension", ["wav", "flac", "mp3", "opus", "m4a", "webm"])
@pytest.mark.parametrize("seconds", [0.2, 2.0])
def test_short_recordings_are_whole(speech, extension, seconds):
    rate = 48_000
    data = encode(at(speech, rate, seconds), rate, extension)
    decoded = decode(io.BytesIO(data))
    assert seconds * RATE - 1 <= len(decoded) <= (seconds + 0.15) * RATE
    assert read_info(io.BytesIO(data)).num_samples == pytest.approx(len(decoded), abs=0.05 * RATE)


@pytest.mark.parametrize("extension", ["m4a", "webm"])
def test_a_part_of_a_file_of_a_video_codec_is_that_stretch(speech, extension):
    rate = 48_000
    data = encode(at(speech, rate, 20.0), rate, extension)
    whole, part = decode(io.BytesIO(data)), decode(io.BytesIO(data), 7.0, 9.0)
    assert len(part) == 2 * RATE
    assert likeness(part[400:-400], whole[7 * RATE + 400 : 9 * RATE - 400]) > 0.999


def test_an_m4a_cut_short_is_refused_since_its_table_of_contents_comes_last(speech):
    whole = encode(at(speech, 48_000, 5.0), 48_000, "m4a")
    with pytest.raises(DataError, match="unreadable audio"):
        decode(io.BytesIO(whole[: len(whole) // 2]))


def test_a_stream_without_a_length_that_is_cut_is_refused_or_as_long_as_its_packets(speech):
    for extension in ("webm", "aac"):
        whole = encode(at(speech, 48_000, 5.0), 48_000, extension)
        for length in range(len(whole) // 2, len(whole) // 2 + 40):
            file = io.BytesIO(whole[:length])
            try:
                found = len(decode(file))
            except DataError:  # the cut fell into a packet
                continue
            assert read_info(file).num_samples == pytest.approx(found, abs=0.1 * RATE)


@pytest.mark.slow
@pytest.mark.parametrize(("extension", "rate"), [("flac", 16_000), ("mp3", 44_100), ("opus", 48_000), ("m4a", 44_100)])
def test_twenty_minutes_arrive_whole(speech, extension, rate, tmp_path, write_shard, data_of):
    spoken = at(speech, rate, 1200.0)
    write_shard(tmp_path / "a.tar", [("a", {extension: encode(spoken, rate, extension), "json": {"text": TEXT}})])
    data = data_of(val_shards=str(tmp_path / "a.tar"), max_audio_seconds=1300.0, batch_tokens=1 << 20)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert not batch.broken
    decoded = batch.audio.numpy()
    assert len(decoded) == pytest.approx(1200 * RATE, abs=0.15 * RATE)
    for begin in (0, 600, 1190):  # in the beginning, the middle and at the end
        part = soxr.resample(spoken[begin * rate : (begin + 8) * rate, 0], rate, RATE)
        assert likeness(decoded[begin * RATE : (begin + 8) * RATE], part) > 0.9


def test_a_corpus_of_mixed_formats_makes_one_batch(speech, tmp_path, write_shard, data_of):
    samples = []
    for i, (extension, rate) in enumerate(
        [("wav", 8_000), ("flac", 22_050), ("mp3", 44_100), ("opus", 48_000), ("m4a", 44_100)]
    ):
        data = encode(at(speech, rate, num_channels=1 + i % 2), rate, extension)
        samples.append((f"s{i}", {extension: data, "json": json.dumps({"text": TEXT}).encode()}))
    write_shard(tmp_path / "mixed.tar", samples)
    data = data_of(val_shards=str(tmp_path / "mixed.tar"))
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert sorted(batch.keys) == [f"s{i}" for i in range(5)]
    assert not batch.broken
    expected = at(speech, RATE)[:, 0]
    for recording in np.split(batch.audio.numpy(), np.cumsum(batch.num_samples)[:-1]):
        assert likeness(recording, expected) > 0.85


def test_without_the_extra_the_missing_package_is_named(speech, monkeypatch):
    import sys

    data = encode(at(speech, 44_100, 1.0), 44_100, "m4a")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastslm\[av\]'"):
        decode(io.BytesIO(data))
