"""Real audio files, made here: decoding, resampling, reading a part, and files that are broken."""

import contextlib
import io
import os
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from fastslm.datamodules.reading.audio import FileRegion, decode, open_region, read_info
from fastslm.errors import DataError

RATE = 16_000
LOSSLESS = [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")]
LOSSY = [("MP3", "MPEG_LAYER_III", 44_100), ("OGG", "VORBIS", 44_100), ("OGG", "OPUS", 48_000)]


def sweep(seconds, rate_hz, num_channels=1):
    """Return a tone that rises and falls, another in each channel, float64 ``[N, channels]``."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    tones = [0.3 * np.sin(2 * np.pi * (300 + 200 * c) * time + 40 * np.sin(3 * time)) for c in range(num_channels)]
    return np.stack(tones, axis=1)


def encode(samples, rate_hz, container="FLAC", subtype=None):
    """Return the bytes of a file, written in blocks: libsndfile crashes on a long Vorbis write."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate_hz, samples.shape[1], subtype, format=container) as sound:
        for begin in range(0, len(samples), 4096):
            sound.write(samples[begin : begin + 4096])
    return buffer.getvalue()


def one_shot(data):
    """Return what soundfile and soxr make of a whole file at once, in units of int16."""
    samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate_hz != RATE:
        mono = soxr.resample(mono, rate_hz, RATE)
    return mono * 32768.0


class Counting(io.BytesIO):
    """Counts the bytes that were read."""

    num_read = 0

    def readinto(self, buffer):
        count = super().readinto(buffer)
        self.num_read += count
        return count


# -- whole files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(("container", "subtype"), LOSSLESS)
def test_a_file_decodes_to_what_one_call_of_soxr_gives(container, subtype, rate_hz, num_channels):
    data = encode(sweep(0.7, rate_hz, num_channels), rate_hz, container, subtype)
    samples = decode(io.BytesIO(data))
    assert samples.dtype == np.int16
    assert abs(len(samples) - 0.7 * RATE) <= 1
    np.testing.assert_allclose(samples, one_shot(data), atol=0.51)


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize(("container", "subtype", "rate_hz"), LOSSY)
def test_a_lossy_file_decodes_to_what_one_call_of_soxr_gives(container, subtype, rate_hz, num_channels):
    data = encode(sweep(1.3, rate_hz, num_channels), rate_hz, container, subtype)
    np.testing.assert_allclose(decode(io.BytesIO(data)), one_shot(data), atol=0.51)


def test_blocks_leave_no_seam():
    data = encode(sweep(61, 8_000), 8_000)  # three blocks
    np.testing.assert_allclose(decode(io.BytesIO(data)), one_shot(data), atol=0.51)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_the_header_tells_the_samples_there_will_be(rate_hz):
    data = encode(sweep(0.777, rate_hz, 2), rate_hz)
    info = read_info(io.BytesIO(data))
    assert (info.sample_rate_hz, info.num_channels) == (rate_hz, 2)
    assert abs(info.num_samples - len(decode(io.BytesIO(data)))) <= 1


def test_full_scale_is_kept_and_what_is_louder_is_clipped():
    loud = np.array([[1.0], [-1.0], [3.0], [-3.0], [0.0]] * 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = decode(io.BytesIO(encode(loud, RATE, "WAV", "FLOAT")))
    assert samples[:5].tolist() == [32767, -32768, 32767, -32768, 0]


def test_int16_samples_come_back_as_they_were():
    exact = np.array([-32768, -32767, -1, 0, 1, 32767], np.int16)[:, None].repeat(100, axis=0)
    assert decode(io.BytesIO(encode(exact, RATE, "FLAC", "PCM_16"))).tolist() == exact[:, 0].tolist()


def test_decoding_takes_the_samples_and_a_block_of_memory():
    noise = np.random.default_rng(0).standard_normal((44_100 * 60, 2)).astype(np.float32) * 0.1
    file = io.BytesIO(encode(np.tile(noise, (10, 1)), 44_100, "WAV", "PCM_16"))  # 10 minutes, 212 MB as floats
    tracemalloc.start()
    samples = decode(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == pytest.approx(600 * RATE, abs=1)
    assert peak < samples.nbytes + 40e6


# -- parts of files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS)
def test_a_part_is_that_stretch_of_the_whole(container, subtype):
    data = encode(sweep(4, RATE), RATE, container, subtype)
    part = decode(io.BytesIO(data), 1.25, 2.5)
    assert part.tolist() == decode(io.BytesIO(data))[20_000:40_000].tolist()


def test_a_part_at_another_rate_is_that_stretch_of_the_whole_but_for_its_edges():
    data = encode(sweep(4, 44_100), 44_100)
    part, whole = decode(io.BytesIO(data), 1.0, 3.0), decode(io.BytesIO(data))[16_000:48_000]
    assert len(part) == 32_000
    np.testing.assert_allclose(part[400:-400].astype(int), whole[400:-400], atol=2)


@pytest.mark.parametrize("seconds", [0.01, 1.25, 25.0])
def test_a_part_of_a_file_in_which_libsndfile_cannot_go_to_a_place_is_that_stretch_of_the_whole(seconds):
    data = encode(sweep(30, 8_000), 8_000, "WAV", "GSM610")
    part, whole = decode(io.BytesIO(data), seconds, seconds + 1.0), decode(io.BytesIO(data))
    first = round(seconds * RATE)
    np.testing.assert_allclose(part[400:-400].astype(int), whole[first + 400 : first + RATE - 400], atol=2)


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS)
def test_a_part_is_read_without_what_lies_before_it(container, subtype):
    noise = np.random.default_rng(0).standard_normal((180 * RATE, 1)) * 0.1
    file = Counting(encode(noise, RATE, container, subtype))
    part = decode(file, 170.0, 171.0)
    assert len(part) == RATE
    assert file.num_read < 0.1 * len(file.getvalue())


def test_a_part_may_end_after_the_file():
    data = encode(sweep(2, RATE), RATE)
    assert len(decode(io.BytesIO(data), 1.5, 9.0)) == 8_000


def test_a_part_beyond_the_file_is_an_error():
    with pytest.raises(DataError, match="unreadable audio"):
        decode(io.BytesIO(encode(sweep(2, RATE), RATE)), 3.0, 4.0)


# -- broken files -----------------------------------------------------------------------------------


def wav_with(offset, value):
    data = bytearray(encode(sweep(1, RATE), RATE, "WAV", "PCM_16"))
    struct.pack_into("<I", data, offset, value)
    return bytes(data)


BROKEN = {
    "empty file": b"",
    "text named .wav": b"this is no audio at all\n" * 100,
    "header alone": encode(np.zeros((0, 1)), RATE, "WAV", "PCM_16"),
    "header cut short": encode(sweep(1, RATE), RATE, "WAV", "PCM_16")[:30],
    "sample rate 0": wav_with(24, 0),
    "sample rate of 3 GHz": wav_with(24, 3_000_000_000),
    "truncated FLAC": encode(sweep(2, RATE), RATE)[:-4000],
    "truncated WAV": encode(sweep(2, RATE), RATE, "WAV", "PCM_16")[:-4000],
    "truncated MP3": encode(sweep(2, 44_100), 44_100, "MP3", "MPEG_LAYER_III")[:-4000],
    "truncated Opus": encode(sweep(2, 48_000), 48_000, "OGG", "OPUS")[:-4000],
    "truncated Vorbis": encode(sweep(2, 44_100), 44_100, "OGG", "VORBIS")[:-4000],
    "Opus cut in its last page": encode(sweep(2, 48_000), 48_000, "OGG", "OPUS")[:-1],
    "not a number": encode(np.array([[0.1], [np.nan], [0.1]] * 50), RATE, "WAV", "FLOAT"),
    "infinite": encode(np.array([[0.1], [np.inf]] * 50), RATE, "WAV", "FLOAT"),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_an_error_and_never_silence(data):
    with pytest.raises(DataError, match="unreadable audio: "):
        decode(io.BytesIO(data))


@pytest.mark.parametrize("num_bytes", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_whose_length_its_writer_did_not_know_is_read_to_its_end(num_bytes):
    data = wav_with(40, num_bytes)
    assert read_info(io.BytesIO(data)).num_samples == RATE
    assert len(decode(io.BytesIO(data))) == RATE


@given(st.data())
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(data):
    container, subtype = data.draw(st.sampled_from(LOSSLESS))
    damaged = bytearray(SMALL[container, subtype])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(damaged), data.draw(st.sampled_from([64, 1 << 30]))) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        if read_info(io.BytesIO(damaged)).num_samples < 1 << 24:
            assert len(decode(io.BytesIO(damaged)))


SMALL = {kind: encode(sweep(0.2, RATE), RATE, *kind) for kind in LOSSLESS}


# -- a file inside a file ---------------------------------------------------------------------------


@given(
    st.binary(max_size=60),
    st.integers(0, 60),
    st.integers(0, 60),
    st.sampled_from([FileRegion, open_region]),
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(-1, 70)),
            st.tuples(st.just("seek"), st.integers(0, 70), st.just(os.SEEK_SET)),
            st.tuples(st.just("seek"), st.integers(-70, 70), st.sampled_from([os.SEEK_CUR, os.SEEK_END])),
            st.tuples(st.just("tell")),
        )
    ),
)
def test_a_region_behaves_like_a_file_of_its_bytes(tmp_path_factory, data, begin, length, make, calls):
    begin = min(begin, len(data))
    covered = data[begin : begin + length]
    path = tmp_path_factory.getbasetemp() / "region"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        region, expected = make(descriptor, begin, len(covered)), io.BytesIO(covered)
        for name, *arguments in calls:
            assert getattr(region, name)(*arguments) == getattr(expected, name)(*arguments)
    finally:
        os.close(descriptor)


def test_a_region_refuses_to_seek_before_its_start(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    with open(tmp_path / "file", "rb") as file, pytest.raises(ValueError, match="negative"):
        FileRegion(file.fileno(), 5, 5).seek(-1)


def test_audio_inside_another_file_decodes_as_on_its_own(tmp_path):
    data = encode(sweep(1, RATE), RATE)
    (tmp_path / "shard").write_bytes(b"before" * 100 + data + b"after" * 100)
    with open(tmp_path / "shard", "rb") as file:
        region = FileRegion(file.fileno(), 600, len(data))
        assert read_info(region) == read_info(io.BytesIO(data))
        assert decode(FileRegion(file.fileno(), 600, len(data))).tolist() == decode(io.BytesIO(data)).tolist()
