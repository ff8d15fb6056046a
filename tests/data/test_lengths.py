"""Headers that are wrong about the length, and files put end to end: what is decoded is all that the bytes hold."""

import io
import struct
import time
from functools import partial

import numpy as np
import pytest
import soundfile

from fastslm.audio.decoding import decode, decoded, read_info, streams_of, told_seconds
from fastslm.errors import DataError, MissingExtraError

av = pytest.importorskip("av")
RATE = 16_000


def tone(seconds, hz=400, rate=RATE):
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(samples, container="WAV", subtype=None, rate=RATE):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype, format=container)
    return buffer.getvalue()


def ffmpeg(samples, container, codec, rate=RATE, layout="mono", bit_rate=None, hole=(0, 0), **options):
    """Return what FFmpeg makes of samples ``[N]``; at ``hole[0]`` s its times leap by ``hole[1]`` s."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        size = stream.codec_context.frame_size or 1152
        for begin in range(0, len(samples), size):
            frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + size].copy(), "flt", layout)
            frame.sample_rate, frame.pts = rate, begin + (hole[1] * rate if begin >= hole[0] * rate else 0)
            for part in av.AudioResampler(stream.format.name).resample(frame):
                output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return buffer.getvalue()


class Made(dict):
    """Files by name, each encoded when a test first asks for it: collecting tests would take seconds more otherwise."""

    def __getitem__(self, name):
        if callable(found := super().__getitem__(name)):
            self[name] = found = found()
        return found


def bare_mp3(samples, rate=RATE, bit_rate=64_000):
    """Return an MP3 without a first frame that tells its length, as Icecast and FFmpeg's pipes give it."""
    return ffmpeg(samples, "mp3", "libmp3lame", rate, bit_rate=bit_rate, write_xing="0", id3v2_version="0")


def frames_of(data):
    """Return the samples of a file at its own rate as FFmpeg decodes them, from the first packet to the last."""
    with av.open(io.BytesIO(data)) as container:
        return np.concatenate([frame.to_ndarray().mean(axis=0) for frame in container.decode(audio=0)])


def dominant(samples):
    spectrum = np.abs(np.fft.rfft(samples.astype(float)))
    return np.fft.rfftfreq(len(samples), 1 / RATE)[spectrum.argmax()]


def check_length(data, seconds, within=2 / RATE):
    """Check that index, use and decoder agree on a length, and that no samples are made up."""
    samples = decode(io.BytesIO(data))
    assert len(samples) / RATE == pytest.approx(seconds, abs=within)
    assert abs(read_info(io.BytesIO(data)).num_samples - len(samples)) <= 1
    assert told_seconds(io.BytesIO(data)) == pytest.approx(len(samples) / RATE, abs=2 / RATE)
    assert np.abs(samples.astype(int)).max() < 0.6 * 32768  # no header was taken for samples
    return samples


def check_packets(data, seconds):
    """Check a length whose packets are longer than what they hold by an encoder's padding."""
    samples = decode(io.BytesIO(data))
    assert len(samples) / RATE == pytest.approx(seconds, abs=0.15)
    assert abs(read_info(io.BytesIO(data)).num_samples - len(samples)) <= 0.07 * RATE
    return samples


def remarks_of(data):
    remarks = []
    decode(io.BytesIO(data), remarks=remarks)
    assert tuple(remarks) == read_info(io.BytesIO(data)).remarks
    return remarks


# -- WAV ----------------------------------------------------------------------------------------------


def wav(samples, riff_bytes, data_bytes, before=b"", behind=b""):
    fmt = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    body = (samples * 32767).astype("<i2").tobytes()
    return (
        b"RIFF" + struct.pack("<I", riff_bytes) + fmt + before + b"data" + struct.pack("<I", data_bytes) + body + behind
    )


NOISE = np.random.default_rng(0).bytes(100_000)
APE_TAG = b"APETAGEX" + struct.pack("<IIII", 2000, 20_000, 1, 0xA0000000) + bytes(20_008)
NOTE = b"LIST" + struct.pack("<I", 14) + b"INFOINAM" + struct.pack("<I", 2) + b"a\0"
STALE_WAVS = {
    "data size 0": wav(tone(3), 0, 0),
    "all sizes of an empty file": wav(tone(3), 36, 0),
    "data size 0 behind a chunk of padding": wav(tone(3), 4088, 0, b"FLLR" + struct.pack("<I", 4044) + bytes(4044)),
    "data size not known": wav(tone(3), 0xFFFFFFFF, 0xFFFFFFFF),
    "data size of another program that does not know it": wav(tone(3), 0x7FFFFFFF, 0x7FFFF000),
    "last updated at 1 s": wav(tone(3), 36 + 32_000, 32_000),
    "a float WAV last updated at 1 s": (data := encode(tone(3), "WAV", "FLOAT")).replace(
        b"data" + struct.pack("<I", 192_000), b"data" + struct.pack("<I", 64_000)
    ),
    "RF64 that was never closed": encode(tone(3), "RF64").replace(struct.pack("<Q", 96_000), bytes(8)),
}
GOOD_WAVS = {
    "plain": wav(tone(3), 36 + 96_000, 96_000),
    "with a note behind": wav(tone(3), 36 + 96_022, 96_000, behind=NOTE),
    "with a note before": wav(tone(3), 36 + 96_022, 96_000, before=NOTE),
    "padded with zeros": wav(tone(3), 36 + 96_000, 96_000, behind=bytes(512)),
    "with a newline behind": wav(tone(3), 36 + 96_000, 96_000, behind=b"\r\n"),
    "BW64": encode(tone(3), "RF64").replace(b"RF64", b"BW64", 1),
    "with a riff size of another file": wav(tone(3), 1234, 96_000),
    "with an APE tag behind": wav(tone(3), 36 + 96_000, 96_000, behind=APE_TAG),
    "with an ID3 tag behind": wav(tone(3), 36 + 96_000, 96_000, behind=b"ID3\4" + NOISE),
    "with an XMP packet behind": wav(tone(3), 36 + 96_000, 96_000, behind=b"<?xpacket begin=''?>" + NOISE),
    "with a note that says too much": wav(tone(3), 36 + 96_000, 96_000, behind=b"LIST\xff\xff\0\0" + NOISE[:9999]),
    "with zeros behind its closed end": wav(tone(3), 36 + 96_000, 96_000, behind=bytes(1 << 20)),
    "with a note and zeros behind": wav(tone(3), 36 + 96_022, 96_000, behind=NOTE + bytes(1 << 20)),
}


@pytest.mark.parametrize("data", [*STALE_WAVS.values(), *GOOD_WAVS.values()], ids=[*STALE_WAVS, *GOOD_WAVS])
def test_a_wav_is_as_long_as_its_bytes(data):
    check_length(data, 3.0)


@pytest.mark.parametrize("byte_rate", [0, 1, 256_000, 0xFFFFFFFF])
def test_the_bytes_of_a_second_are_those_of_its_samples_whatever_a_header_says(byte_rate):
    stale = bytearray(STALE_WAVS["last updated at 1 s"])
    stale[28:32] = struct.pack("<I", byte_rate)
    check_length(bytes(stale), 3.0)
    assert remarks_of(bytes(stale)) == remarks_of(STALE_WAVS["last updated at 1 s"])


def test_a_wav_whose_header_says_less_is_told_and_one_that_knows_no_length_is_not():
    (remark,) = remarks_of(STALE_WAVS["last updated at 1 s"])
    assert remark.startswith("length differs from header: it says 1.00 s, the file holds 3.00 s")
    assert not remarks_of(STALE_WAVS["data size not known"])
    assert not any(remarks_of(data) for data in GOOD_WAVS.values())


@pytest.mark.parametrize("container", ["AIFF", "AU", "CAF"])
@pytest.mark.parametrize("tag", [APE_TAG, b"ID3\4" + NOISE], ids=["ape", "id3"])
def test_a_tag_behind_other_containers_is_no_sound(container, tag):
    data = encode(tone(3), container) + tag
    check_length(data, 3.0)
    assert not remarks_of(data)


def test_a_wav_whose_samples_come_before_their_format_is_read():
    pytest.importorskip("av")
    data = wav(tone(3), 36 + 96_000, 96_000)
    check_length(data[:12] + data[36:] + data[12:36], 3.0)


def test_a_flac_of_32_bits_is_read():
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", "flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono", format="s32")
        stream.bit_rate = 0
        stream.codec_context.options = {"strict": "experimental"}
        samples = (tone(3) * 2**31).astype(np.int32)[None]
        frame = av.AudioFrame.from_ndarray(samples, "s32", "mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    check_length(buffer.getvalue(), 3.0)


@pytest.mark.parametrize(
    "behind", [bytes(100_000), APE_TAG, np.random.default_rng(0).bytes(300_000)], ids=["zeros", "ape", "random"]
)
@pytest.mark.parametrize("claimed", [0, RATE, 12 * RATE])
def test_a_flac_is_as_long_as_its_frames_whatever_lies_behind_them(claimed, behind):
    data = bytearray(encode(tone(12), "FLAC"))
    info = int.from_bytes(data[21:26], "big")
    data[21:26] = (info >> 36 << 36 | claimed).to_bytes(5, "big")
    check_length(bytes(data) + behind, 12.0)
    assert any("it says 1.00 s" in remark for remark in remarks_of(bytes(data) + behind)) == (claimed == RATE)


def test_a_wav_past_4_gib_is_as_long_as_its_bytes(tmp_path):
    size = (1 << 32) + 320_000
    with open(tmp_path / "long.wav", "wb") as file:
        file.write(wav(tone(10), (size + 36) % (1 << 32), size % (1 << 32)))
        file.truncate(44 + size)  # zeros that take no room on the disk
    with open(tmp_path / "long.wav", "rb") as file:
        info = read_info(file)
        assert info.num_frames == size // 2
        assert "it says 10.00 s" in info.remarks[0]
        assert len(decode(file, 134_220.0, 134_221.0)) == RATE


def test_an_empty_wav_with_a_note_is_empty():
    with pytest.raises(DataError, match="no samples"):
        decode(io.BytesIO(wav(tone(0), 36 + 22, 0, behind=NOTE)))


def test_a_wav_of_nothing_but_zeros_is_refused_at_once():
    began = time.process_time()
    with pytest.raises(DataError, match="unreadable audio"):
        read_info(io.BytesIO(b"RIFF\0\0\0\0WAVE" + bytes(20_000_000)))
    assert time.process_time() - began < 2


# -- AIFF, AU, CAF ------------------------------------------------------------------------------------


def changed(data, changes):
    data = bytearray(data)
    for place, new in changes.items():
        data[place : place + len(new)] = new
    return bytes(data)


def stale(container, subtype, seconds, rate=RATE):
    """Return a file of 3 s whose header says another length, as recorders that died leave it; None: unknown."""
    data = encode(tone(3, rate=rate), container, subtype, rate)
    frame_bytes = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}[subtype]
    num_bytes = -1 if seconds is None else round(seconds * rate) * frame_bytes
    if container == "AU":
        return changed(data, {8: (num_bytes & 0xFFFFFFFF).to_bytes(4, "big")})
    if container == "CAF":
        return changed(data, {data.find(b"data") + 4: struct.pack(">q", num_bytes + 4 if num_bytes > 0 else num_bytes)})
    places = {data.find(b"COMM") + 10: num_bytes // frame_bytes, data.find(b"SSND") + 4: num_bytes + 8}
    return changed(data, {place: value.to_bytes(4, "big") for place, value in places.items()})


@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("container", ["AIFF", "AU", "CAF"])
def test_other_containers_are_as_long_as_their_bytes(container, subtype, rate):
    for seconds in (1.0, 0.0) if container == "AIFF" else (1.0, None):
        data = stale(container, subtype, seconds, rate)
        check_length(data, 3.0)
        if seconds == 1.0:
            assert remarks_of(data)[0].startswith("length differs from header: it says 1.00 s, the file holds 3.00 s")
    whole = encode(tone(3, rate=rate), container, subtype, rate)
    check_length(whole, 3.0)
    assert not remarks_of(whole)


# -- FLAC ---------------------------------------------------------------------------------------------


def flac_with_total(data, total):
    changed = bytearray(data)
    changed[21:26] = (int.from_bytes(data[21:26], "big") >> 36 << 36 | total).to_bytes(5, "big")
    return bytes(changed)


FLACS = Made(
    {
        "of libsndfile": lambda: encode(tone(3), "FLAC"),
        "of libsndfile, 24 bits": lambda: encode(tone(3), "FLAC", "PCM_24"),
        "of FFmpeg": lambda: ffmpeg(tone(3), "flac", "flac"),
        "whose last frame has few bytes": lambda: encode(
            np.concatenate([tone(3)[:-77], np.zeros(77, np.float32)]), "FLAC"
        ),
        "with ID3v1 behind": lambda: encode(tone(3), "FLAC") + b"TAG" + bytes(125),
    }
)


@pytest.mark.parametrize("total", [None, 0, 1, RATE, (1 << 36) - 1, 1 << 35])
@pytest.mark.parametrize("name", FLACS)
def test_a_flac_is_as_long_as_its_frames(name, total):
    data = FLACS[name] if total is None else flac_with_total(FLACS[name], total)
    check_length(data, 3.0)
    assert bool(remarks_of(data)) == (total not in (None, 0))
    part = decode(io.BytesIO(data), 1.0, 2.0)
    assert part.tolist() == decode(io.BytesIO(data))[RATE : 2 * RATE].tolist()


def test_a_flac_of_unknown_length_that_was_cut_gives_its_whole_frames():
    whole = encode(np.random.default_rng(0).uniform(-0.1, 0.1, 3 * RATE), "FLAC")
    data = flac_with_total(whole, 0)[:-3000]
    expected = decode(io.BytesIO(whole))
    found = check_length(data, 2.8, within=0.3)
    assert found.tolist() == expected[: len(found)].tolist()
    with pytest.raises(DataError, match="unreadable audio"):
        decode(io.BytesIO(whole[:-3000]))


def packets_of(data):
    with av.open(io.BytesIO(data)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


@pytest.mark.parametrize("total", [None, 0, RATE, (1 << 36) - 1])
def test_a_flac_whose_first_frames_are_those_of_a_later_place_holds_its_frames_once(total):
    """So ``ffmpeg -ss 1 -i a.flac -c copy b.flac`` leaves it, with the length of the longer one in its header."""
    data = encode(np.random.default_rng(0).uniform(-0.1, 0.1, 5 * RATE), "FLAC")
    frames = packets_of(data)
    header = data[: data.index(frames[0])]
    cut = header + b"".join(frames[5:])
    cut = cut if total is None else flac_with_total(cut, total)
    expected = decode(io.BytesIO(data))[5 * 4096 :]
    assert check_length(cut, len(expected) / RATE).tolist() == expected.tolist()
    assert bool(remarks_of(cut)) == (total != 0)
    for first in (0.5, 2.0):
        begin = round(first * RATE)
        assert decode(io.BytesIO(cut), first, first + 1.0).tolist() == expected[begin : begin + RATE].tolist()
    with pytest.raises(DataError, match="breaks off"):
        decode(io.BytesIO(header + b"".join(frames[5:-5])))


def cut_without_encoding(data, container, first):
    """Return the packets of a file from a number on, whose times lie as far before 0 as a second."""
    buffer = io.BytesIO()
    options = {"avoid_negative_ts": "disabled"}
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format=container, options=options) as output:
        stream = source.streams.audio[0]
        copy = output.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size][first:]
        shift = packets[0].pts + stream.codec_context.sample_rate
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            output.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize("rate", [8_000, RATE])
def test_an_ogg_vorbis_whose_first_page_holds_more_than_its_time_says_is_read_to_its_end(rate):
    """So ``ffmpeg -ss 1 -i a.ogg -c copy b.ogg`` leaves it."""
    data = encode(np.random.default_rng(0).uniform(-0.1, 0.1, 6 * rate), "OGG", "VORBIS", rate)
    cut = cut_without_encoding(data, "ogg", 20)
    found, expected = decode(io.BytesIO(cut)), decode(io.BytesIO(data))
    check_length(cut, len(found) / RATE)
    assert np.abs(found[RATE:-200].astype(int) - expected[-len(found) :][RATE:-200]).max() < 50  # of 3,000
    assert "it was cut out of a longer one" in str(remarks_of(cut))
    for first in (0.5, 2.0):
        begin, part = round(first * RATE), decode(io.BytesIO(cut), first, first + 1.0)
        assert np.abs(part[200:-200].astype(int) - found[begin + 200 : begin + RATE - 200]).max() < 50


@pytest.mark.parametrize("seconds", [0.02, 0.5, 20])
@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_an_ogg_vorbis_that_was_not_cut_needs_no_further_package(seconds, rate):
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (round(seconds * rate), 2))
    (stream,) = streams_of(io.BytesIO(encode(noise, "OGG", "VORBIS", rate)))
    assert stream.decoder == "sound"


@pytest.mark.parametrize("blocks", [5, 6])
@pytest.mark.parametrize("claim", ["of the blocks", "with the byte behind", "too small"])
def test_a_gsm_wav_has_the_samples_of_its_blocks_and_none_of_the_byte_that_pads_them(blocks, claim):
    data = bytearray(encode(tone(320 * blocks / 8_000, rate=8_000) / 2, "WAV", "GSM610", 8_000))
    begin = data.index(b"data") + 8
    size = {"of the blocks": 65 * blocks, "with the byte behind": len(data) - begin, "too small": 65}[claim]
    data[begin - 4 : begin] = size.to_bytes(4, "little")
    check_length(bytes(data), 320 * blocks / 8_000)


# -- MP3 ----------------------------------------------------------------------------------------------


def without_first_frame(data):
    """Return an MP3 of 16 kHz without its first frame, the note of its encoder."""
    begin = data.find(b"\xff\xf3")
    size = 72 * (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[data[begin + 2] >> 4] * 1000 // RATE
    size += data[begin + 2] >> 1 & 1
    assert b"Info" in data[begin : begin + size] or b"Xing" in data[begin : begin + size]
    return data[begin + size :]


def of_changing_rate(samples, rate=RATE):
    buffer = io.BytesIO()
    channels = samples.ndim
    with soundfile.SoundFile(buffer, "w", rate, channels, format="MP3", bitrate_mode="VARIABLE") as file:
        file.write(samples)
    return buffer.getvalue()


QUIET_THEN_LOUD = np.concatenate([tone(5) * 0.01, np.random.default_rng(0).uniform(-0.3, 0.3, 5 * RATE)])
MP3S = Made(
    {
        "of libsndfile": lambda: encode(tone(3), "MP3"),
        "of FFmpeg": lambda: ffmpeg(tone(3), "mp3", "libmp3lame"),
        "of FFmpeg, 44.1 kHz": lambda: ffmpeg(tone(3, rate=44_100), "mp3", "libmp3lame", 44_100),
        "without a note": lambda: bare_mp3(tone(3)),
        "without a note, 16 kbit/s at 11 kHz": lambda: bare_mp3(tone(3, rate=11_025), 11_025, 16_000),
        "without a note, 44.1 kHz": lambda: bare_mp3(tone(3, rate=44_100), 44_100),
        "whose note was cut off": lambda: without_first_frame(encode(tone(3), "MP3")),
        "of changing rate, whose note was cut off": lambda: without_first_frame(of_changing_rate(QUIET_THEN_LOUD)),
        "two end to end": lambda: encode(tone(3), "MP3") + encode(tone(2, 1500), "MP3"),
        "two end to end without notes": lambda: bare_mp3(tone(3)) + bare_mp3(tone(2, 1500)),
        "a tag between two": lambda: encode(tone(3), "MP3") + b"TAG" + bytes(125) + encode(tone(2, 1500), "MP3"),
        "a tag behind": lambda: encode(tone(3), "MP3") + b"TAG" + bytes(125),
        "zeros between tag and frames": lambda: (
            b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10 + 500) + bare_mp3(tone(3))
        ),
    }
)


@pytest.mark.parametrize("name", MP3S)
def test_an_mp3_gives_the_samples_that_ffmpeg_gives(name):
    data = MP3S[name]
    expected = frames_of(data)
    info = read_info(io.BytesIO(data))
    assert info.num_frames == len(expected)
    samples = decode(io.BytesIO(data))
    assert len(samples) == pytest.approx(len(expected) * RATE / info.sample_rate_hz, abs=1)
    if info.sample_rate_hz == RATE:
        assert np.abs(samples - expected.clip(-1, 1) * 32768).max() < 2


@pytest.mark.parametrize("name", [name for name in MP3S if "two" in name or "cut off" in name])
def test_a_part_of_an_mp3_is_that_stretch_of_the_whole(name):
    whole, part = decode(io.BytesIO(MP3S[name])), decode(io.BytesIO(MP3S[name]), 1.5, 2.5)
    assert len(part) == RATE
    np.testing.assert_allclose(part, whole[24_000:40_000], atol=2)


@pytest.mark.parametrize("noted", [True, False], ids=["libsndfile", "FFmpeg"])
@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (24_000, 2)])
def test_parts_and_blocks_of_an_mp3_of_changing_rate_are_right_from_the_first_sound_on(rate, channels, noted):
    """A frame may need bits of frames before it: behind a pause, of those of two seconds."""
    loud = np.random.default_rng(0).uniform(-0.3, 0.3, (rate, channels))
    data = of_changing_rate(np.concatenate([np.zeros((6 * rate, channels)), loud]).squeeze(), rate)
    data = data if noted else data.replace(b"Xing", bytes(4))
    assert streams_of(io.BytesIO(data))[0].decoder == ("sound" if noted else "av")
    whole = decode(io.BytesIO(data)).astype(int)
    in_blocks = np.concatenate(list(decoded(io.BytesIO(data), block_seconds=2)))
    assert np.abs(in_blocks - whole).max() < 3
    for start in (5.95, 6.0, 6.05):
        part = decode(io.BytesIO(data), start, start + 0.5)
        expected = whole[round(start * RATE) :][: len(part)]
        assert np.abs(part - expected)[80:-80].max() < 30  # the filter that changes the rate begins with the part


def test_mp3s_of_two_rates_end_to_end_are_both_there():
    data = bare_mp3(tone(3, 300)) + bare_mp3(tone(4, 1500, 44_100), 44_100)
    samples = decode(io.BytesIO(data))
    assert len(samples) / RATE == pytest.approx(7, abs=0.2)
    assert dominant(samples[:RATE]) == pytest.approx(300, abs=2)
    assert dominant(samples[-2 * RATE : -RATE]) == pytest.approx(1500, abs=2)


def test_of_joined_mp3s_the_note_of_the_first_is_told():
    (remark,) = remarks_of(MP3S["two end to end"])
    assert remark.startswith("length differs from header: it says 3.")
    assert "the file holds 5." in remark
    assert not remarks_of(MP3S["without a note"])


@pytest.mark.parametrize("behind", [bytes(5000), b"\x55" * 5000], ids=["zeros", "noise"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100])
def test_rubbish_behind_an_mp3_does_not_make_its_encoders_delay_missing_sound(rate, behind):
    """At 8 kHz delay and padding are 0.2 s, which are in the frames that its note counts, and not in the samples."""
    data = encode(tone(3, rate=rate), "MP3", rate=rate)
    whole = len(decode(io.BytesIO(data)))
    assert len(decode(io.BytesIO(data + behind))) == pytest.approx(whole, abs=0.15 * RATE)
    assert read_info(io.BytesIO(data + behind)).num_samples == pytest.approx(whole, abs=0.15 * RATE)


def test_an_mp3_that_is_shorter_than_its_note_is_refused():
    with pytest.raises(DataError, match="breaks off"):
        read_info(io.BytesIO(MP3S["of FFmpeg"][: len(MP3S["of FFmpeg"]) // 2]))


def test_without_av_an_mp3_that_tells_its_length_is_read_and_for_others_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert len(decode(io.BytesIO(MP3S["of FFmpeg"]))) == 3 * RATE
    with pytest.raises(MissingExtraError, match=r"pip install 'fastslm\[av\]'"):
        decode(io.BytesIO(MP3S["without a note"]))


# -- end to end ---------------------------------------------------------------------------------------

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}


def two_of_ffmpeg(container, codec, **options):
    return tuple(ffmpeg(tone(s, hz, 48_000), container, codec, 48_000, **options) for s, hz in ((3, 300), (2, 1500)))


ENDS = Made(
    {
        "WAV": lambda: (encode(tone(3, 300)), encode(tone(2, 1500))),
        "WAVs of two rates": lambda: (encode(tone(3, 300)), encode(tone(2, 1500, 8000), rate=8000)),
        "FLAC": lambda: (encode(tone(3, 300), "FLAC"), encode(tone(2, 1500), "FLAC")),
        "FLACs of two rates": lambda: (
            encode(tone(3, 300), "FLAC"),
            encode(tone(2, 1500, 44_100), "FLAC", rate=44_100),
        ),
        "Vorbis": lambda: (encode(tone(3, 300), "OGG", "VORBIS"), encode(tone(2, 1500), "OGG", "VORBIS")),
        "Opus": lambda: (encode(tone(3, 300), "OGG", "OPUS"), encode(tone(2, 1500, 48_000), "OGG", "OPUS", 48_000)),
        "Opus of FFmpeg": lambda: tuple(
            ffmpeg(tone(s, hz, 48_000), "ogg", "libopus", 48_000) for s, hz in ((3, 300), (2, 1500))
        ),
        "AIFF": lambda: (encode(tone(3, 300), "AIFF"), encode(tone(2, 1500), "AIFF")),
        "CAF": lambda: (encode(tone(3, 300), "CAF"), encode(tone(2, 1500), "CAF")),
        **{
            f"{container} of {codec} {options or ''}": partial(two_of_ffmpeg, container, codec, **options)
            for container, codec, options in (
                ("ogg", "flac", {}),
                ("mp4", "aac", {}),
                ("mp4", "aac", FRAGMENTS),
                ("ipod", "alac", {}),
                ("mov", "pcm_s16le", {}),
                ("webm", "libopus", {}),
                ("matroska", "flac", {"live": "1"}),
                ("flv", "aac", {}),
                ("tta", "tta", {}),
            )
        },
    }
)


@pytest.mark.parametrize("name", ENDS)
def test_files_put_end_to_end_are_all_there(name):
    first, second = ENDS[name]
    samples = check_packets(first + second, 5.0)
    assert dominant(samples[:RATE]) == pytest.approx(300, abs=2)
    assert dominant(samples[-RATE:]) == pytest.approx(1500, abs=2)
    assert told_seconds(io.BytesIO(first + second)) == pytest.approx(5.0, abs=0.15)
    (remark,) = remarks_of(first + second)
    assert "2" in remark
    later = decode(io.BytesIO(first + second), 3.5, 4.5)
    assert len(later) == pytest.approx(RATE, abs=1)
    assert dominant(later) == pytest.approx(1500, abs=2)


HOLES = {
    "WebM": ("webm", "libopus", {}),
    "live WebM": ("webm", "libopus", {"live": "1"}),
    "Matroska": ("matroska", "pcm_s16le", {}),
    "MP4": ("mp4", "aac", {}),
    "MP4 in fragments": ("mp4", "aac", FRAGMENTS),
    "FLAC in Ogg": ("ogg", "flac", {}),
    "MPEG-TS": ("mpegts", "aac", {}),
}


@pytest.mark.parametrize(("container", "codec", "options"), HOLES.values(), ids=HOLES)
def test_a_hole_in_the_times_of_packets_is_told_and_not_filled(container, codec, options):
    data = ffmpeg(tone(5, 300, 48_000), container, codec, 48_000, hole=(2, 4), **options)
    check_packets(data, 5.0)
    for remarks in (remarks_of(data), remarks_at_decoding(data)):
        assert remarks[0].startswith("length differs from header: the times of its packets say 9.0")


def test_an_ogg_that_lost_packets_says_so():
    data = ffmpeg(tone(5, 300, 48_000), "ogg", "libopus", 48_000, hole=(2, 4))
    with pytest.raises(DataError, match=r"end at 9\.0. s and hold 4\.0. s less: packets are missing"):
        decode(io.BytesIO(data))


BARE = {
    "AAC": lambda: ffmpeg(tone(3), "adts", "aac"),
    "AACs of two rates": lambda: (
        ffmpeg(tone(3, rate=44_100), "adts", "aac", 44_100) + ffmpeg(tone(3, rate=8_000), "adts", "aac", 8_000)
    ),
    "AC-3": lambda: ffmpeg(tone(9, rate=44_100), "ac3", "ac3", 44_100),
    "E-AC-3": lambda: ffmpeg(tone(9, rate=44_100), "eac3", "eac3", 44_100),
}


@pytest.mark.parametrize("make", BARE.values(), ids=BARE)
def test_the_index_knows_a_stream_without_a_container_by_what_is_decoded_of_it(make):
    """FFmpeg makes up times for its packets: at the rate of the first one, and rounded, of AC-3 a second in an hour."""
    data = make()
    assert abs(read_info(io.BytesIO(data)).num_samples - len(decode(io.BytesIO(data)))) <= 1


def test_times_that_begin_anew_in_a_transport_stream_hide_nothing():
    data = b"".join(two_of_ffmpeg("mpegts", "aac"))
    check_packets(data, 5.0)
    assert remarks_of(data) == remarks_at_decoding(data)
    assert "times that begin anew" in remarks_of(data)[0]


@pytest.mark.parametrize("container", ["adts", "mpegts"])
def test_a_stream_that_was_cut_within_a_packet_is_read_up_to_it(container):
    data = ffmpeg(tone(4, 300), container, "aac")
    check_packets(data[: len(data) // 2 + 50], 2.0)


def test_an_mp4_without_its_index_says_so():
    data = ffmpeg(tone(4, 300), "mp4", "aac")
    for read in (read_info, decode):
        with pytest.raises(DataError, match=r"its index \(the box moov\) is missing"):
            read(io.BytesIO(data[: len(data) // 2]))


def test_a_part_behind_the_end_holds_no_samples():
    with pytest.raises(DataError, match="holds no samples"):
        decode(io.BytesIO(ffmpeg(tone(4, 300), "matroska", "aac")), 6.0, 7.0)


# -- channels and tracks ------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("others", [[-1.0], [-1.0, 0.0], [-0.98]])
def test_channels_of_opposite_phase_are_not_mixed_to_silence(rate, others):
    samples = tone(3, 400, rate)
    data = encode(np.stack([samples, *(share * samples for share in others)], 1), rate=rate)
    (remark,) = [*remarks_at_decoding(data)]
    assert remark.startswith("channels of opposite phase: ")
    np.testing.assert_allclose(decode(io.BytesIO(data)), decode(io.BytesIO(encode(samples, rate=rate))), atol=2)


@pytest.mark.parametrize("noise", [0.03, 0.2], ids=["30 dB", "14 dB"])
@pytest.mark.parametrize("in_both", [False, True], ids=["noise of each channel", "the same noise"])
def test_a_voice_of_opposite_phase_outlives_noise_and_keeps_its_phase(noise, in_both):
    draws = np.random.default_rng(0)
    voice = tone(4, 300) * (1 + 0.3 * np.sin(np.arange(4 * RATE) / 5000))
    left, right = (noise * np.std(voice) * draws.standard_normal(len(voice)) for _ in "lr")
    data = encode(0.5 * np.stack([voice + left, (left if in_both else right) - voice], 1))
    (remark,) = remarks_at_decoding(data)
    assert remark == "channels of opposite phase: they cancel each other out in 4.00 s; one of them is taken there"
    assert abs(np.corrcoef(decode(io.BytesIO(data)), voice)[0, 1]) > 0.95


def test_a_constant_offset_is_no_channel_of_opposite_phase():
    noise = 1e-3 * np.random.default_rng(0).standard_normal((RATE, 2))
    assert not remarks_at_decoding(encode(noise + np.array([0.1, -0.1])))


@pytest.mark.parametrize("others", [[1.0], [0.0], [0.5, 0.0, -0.2]])
def test_other_channels_are_mixed_evenly_without_a_remark(others):
    samples = tone(3)
    data = encode(np.stack([samples, *(share * samples for share in others)], 1))
    assert not remarks_at_decoding(data)
    mean = (1 + sum(others)) / (1 + len(others))
    np.testing.assert_allclose(decode(io.BytesIO(data)), samples * mean * 32768, atol=2)


def remarks_at_decoding(data):
    remarks = []
    decode(io.BytesIO(data), remarks=remarks)
    return remarks


def test_of_a_video_with_two_sound_tracks_the_first_is_taken_and_it_is_told():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        streams = [output.add_stream("aac", rate=RATE, layout="mono") for _ in range(2)]
        for stream, hz in zip(streams, (300, 1500), strict=True):
            samples = tone(4, hz)
            for begin in range(0, len(samples) - 1024, 1024):
                frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + 1024].copy(), "fltp", "mono")
                frame.sample_rate, frame.pts = RATE, begin
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    assert remarks_of(buffer.getvalue()) == ["several sound tracks: 2, of which the first is taken"]
    assert dominant(decode(io.BytesIO(buffer.getvalue()))) == pytest.approx(300, abs=2)


def test_a_playlist_opens_no_other_file(tmp_path):
    (tmp_path / "secret.mp3").write_bytes(MP3S["without a note"])
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{tmp_path}/secret.mp3\n#EXT-X-ENDLIST\n"
    with pytest.raises(DataError, match="unreadable audio"):
        decode(io.BytesIO(playlist.encode()))
