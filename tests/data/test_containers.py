"""Audio in seldom containers and codecs, files that were cut off, and what is no audio at all."""

import io
import struct

import numpy as np
import pytest
import soundfile

from fastslm.audio.decoding import decode, read_info, told_seconds
from fastslm.errors import DataError

av = pytest.importorskip("av")
RATE = 16_000
TONE = (0.3 * np.sin(2 * np.pi * 400 * np.arange(3 * RATE) / RATE)).astype(np.float32)


def encode(container, subtype=None, endian=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, TONE, RATE, subtype, endian, container)
    return buffer.getvalue()


def ffmpeg(container, codec, late_seconds=0, samples=TONE, rate=RATE, size=1152, **options):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        if codec == "wmav2":
            stream.bit_rate = 64_000  # without which it does not open
        size = stream.codec_context.frame_size or size
        for begin in range(0, len(samples), size):
            frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + size].copy(), "flt", "mono")
            frame.sample_rate, frame.pts = rate, begin + late_seconds * rate
            for part in av.AudioResampler(stream.format.name).resample(frame):
                output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def video(container, codec, late_seconds=0):
    """Return the tone beside grey pictures."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        pictures, sound = output.add_stream("mpeg4", rate=10), output.add_stream(codec, rate=RATE, layout="mono")
        pictures.width = pictures.height = 32
        for tenth in range(30):
            picture = av.VideoFrame.from_ndarray(np.full((48, 32), 128, np.uint8), "yuv420p")
            picture.pts = tenth
            output.mux(pictures.encode(picture))
            begin = tenth * RATE // 10
            frame = av.AudioFrame.from_ndarray(TONE[None, begin : begin + RATE // 10].copy(), "flt", "mono")
            frame.sample_rate, frame.pts = RATE, begin + late_seconds * RATE
            for part in av.AudioResampler(sound.format.name).resample(frame):
                output.mux(sound.encode(part))
        output.mux([*pictures.encode(None), *sound.encode(None)])
    return buffer.getvalue()


def with_(data, place, form, number):
    return data[:place] + struct.pack(form, number) + data[place + struct.calcsize(form) :]


def frames_of(data):
    note = max(data.find(b"Info"), data.find(b"Xing"))
    return note + 8, int.from_bytes(data[note + 8 : note + 12], "big")


PICTURE = b"ID3\x04\x00\x00\x01\x00\x00\x00" + bytes(1 << 21)  # a tag of 2 MB
SELDOM = {
    "MP3 in WAV": lambda: ffmpeg("wav", "libmp3lame"),
    "ALAC in CAF": lambda: ffmpeg("caf", "alac"),
    "FLAC in Ogg": lambda: ffmpeg("ogg", "flac"),
    "MP2": lambda: ffmpeg("mp2", "mp2"),
    "Creative's VOC": lambda: ffmpeg("voc", "pcm_u8"),
    "raw AAC": lambda: ffmpeg("adts", "aac"),
    "WavPack in Matroska": lambda: ffmpeg("matroska", "wavpack", size=2 * RATE),  # no packet has a duration
    "live Matroska": lambda: ffmpeg("matroska", "pcm_s16le", live="1"),
    "WebM that begins late": lambda: ffmpeg("webm", "libopus", late_seconds=5),
    "Matroska that begins late": lambda: ffmpeg("matroska", "pcm_s16le", late_seconds=5),
    "MP3 behind zeros": lambda: bytes(4096) + encode("MP3"),
    "MP3 with a tag and zeros": lambda: b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10 + 500) + encode("MP3"),
    "AAC with a picture in its tag": lambda: PICTURE + ffmpeg("adts", "aac"),
    "WavPack with a picture in its tag": lambda: PICTURE + ffmpeg("wv", "wavpack"),
    "WAV of mu-law": lambda: encode("WAV", "ULAW"),
    "WAV of ADPCM": lambda: encode("WAV", "MS_ADPCM"),
    "big-endian WAV": lambda: encode("WAV", endian="BIG"),
    "Wave64": lambda: encode("W64"),
}


@pytest.mark.parametrize("make", SELDOM.values(), ids=SELDOM)
def test_what_ffmpeg_reads_comes_in_whole(make):
    data = make()
    samples = decode(io.BytesIO(data))
    assert len(samples) == pytest.approx(3 * RATE, abs=0.1 * RATE)
    assert read_info(io.BytesIO(data)).num_samples == pytest.approx(len(samples), abs=0.1 * RATE)
    spectrum = np.abs(np.fft.rfft(samples[8000:40_000].astype(float)))
    assert spectrum.argmax() / 2 == pytest.approx(400, abs=4)


@pytest.mark.parametrize("late_seconds", [0, 5])
@pytest.mark.parametrize("container", ["webm", "matroska"])
def test_opus_in_matroska_has_its_first_samples(container, late_seconds):
    """FFmpeg tells the time of the second packet as the time of the stream."""
    data = ffmpeg(container, "libopus", late_seconds)
    in_ogg = decode(io.BytesIO(ffmpeg("ogg", "libopus")))
    samples = decode(io.BytesIO(data))
    assert len(samples) == len(in_ogg)
    assert np.abs(samples.astype(int) - in_ogg).max() < 700  # of 9,830: two encodings of one tone, and not shifted
    assert read_info(io.BytesIO(data)).num_samples == pytest.approx(len(samples), abs=0.002 * RATE)
    part = decode(io.BytesIO(data), 1.0, 2.0)
    shifted = [in_ogg[RATE + 200 + lag : 2 * RATE - 200 + lag] for lag in range(-16, 17)]  # times are milliseconds
    assert min(np.abs(part.astype(int)[200:-200] - other).max() for other in shifted) < 700


@pytest.mark.parametrize("container", ["amr", "3gp"])
@pytest.mark.parametrize(
    ("head", "speech", "noise"), [(b"#!AMR\n", 0x3C, 0x44), (b"#!AMR-WB\n", 0x44, 0x4C)], ids=["narrow", "wide"]
)
def test_pauses_that_amr_leaves_out_are_silence(container, head, speech, noise):
    """DTX, as phones do: eight frames of a pause are one that says how it sounds, and seven without data."""
    size, bits = (31 if b"WB" not in head else 60), np.random.default_rng(0)
    talk = [b"".join(bytes([speech]) + bits.bytes(size) for _ in range(50)) for _ in range(2)]
    data = head + talk[0] + (bytes([noise]) + bytes(5) + b"\x7c" * 7) * 6 + talk[1]
    if container == "3gp":
        buffer = io.BytesIO()
        with av.open(io.BytesIO(data)) as amr, av.open(buffer, "w", format="3gp") as output:
            stream = output.add_stream_from_template(amr.streams.audio[0])
            for packet in amr.demux(amr.streams.audio[0]):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
        data = buffer.getvalue()
    samples = decode(io.BytesIO(data))
    assert read_info(io.BytesIO(data)).num_samples == len(samples) == (100 + 48) * 320
    begin, end = 51 * 320, 97 * 320  # resampled, so that it rings a little
    assert np.abs(samples[begin:end].astype(int)).max() <= 1 < np.abs(samples[end + 640 :]).max()
    np.testing.assert_array_equal(decode(io.BytesIO(data), 1.5, 1.8), samples[RATE * 3 // 2 : RATE * 9 // 5])


def test_speech_behind_a_pause_in_one_packet_of_amr_is_no_silence():
    """FFmpeg's decoder refuses the pause, and what follows it in the packet is lost: the file is refused."""
    speech = bytes([0x3C]) + np.random.default_rng(0).bytes(31)
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(b"#!AMR\n" + speech * 20)) as amr,
        av.open(buffer, "w", format="nut") as output,  # takes packets as they are
    ):
        stream = output.add_stream_from_template(amr.streams.audio[0])
        for i in range(40):
            packet = av.Packet((speech if i < 20 else b"\x44" + bytes(5)) + speech)
            packet.stream, packet.pts, packet.dts, packet.duration = stream, i * 320, i * 320, 320
            packet.time_base = amr.streams.audio[0].time_base
            output.mux(packet)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(io.BytesIO(buffer.getvalue()))


IN_PARTS = {
    "G.722 in WAV": ("wav", "g722", RATE),
    "Yamaha's ADPCM in WAV": ("wav", "adpcm_yamaha", RATE),
    "Flash's ADPCM in WAV": ("wav", "adpcm_swf", 44_100),
    "MP3 in WAV": ("wav", "libmp3lame", RATE),
    "WMA": ("asf", "wmav2", 44_100),
    "FLV": ("flv", "aac", 44_100),
    "raw AC-3": ("ac3", "ac3", 44_100),
    "raw AAC": ("adts", "aac", RATE),
    "transport stream": ("mpegts", "aac", RATE),
    "AVI": ("avi", "pcm_s16le", RATE),
    "M4A": ("ipod", "aac", RATE),
    "Matroska": ("matroska", "pcm_s16le", RATE),
}


@pytest.mark.parametrize(("container", "codec", "rate"), IN_PARTS.values(), ids=IN_PARTS)
def test_a_part_is_that_stretch_of_the_whole_wherever_a_container_says_it_lies(container, codec, rate):
    noise = np.random.default_rng(0).normal(0, 0.1, 8 * rate).astype(np.float32)
    data = ffmpeg(container, codec, samples=noise, rate=rate)
    whole = decode(io.BytesIO(data)).astype(int)
    for first in (0.05, 1.0, 2.5, 6.75):
        begin, part = round(first * RATE), decode(io.BytesIO(data), first, first + 1.0)
        assert len(part) == RATE
        assert np.abs(part[400:-400] - whole[begin + 400 : begin + RATE - 400]).max() < 200  # of 10,000, by the edges
    assert read_info(io.BytesIO(data)).num_samples == pytest.approx(len(whole), abs=0.1 * RATE)


def ogg(subtype, seconds=40):
    samples = np.resize(TONE, seconds * RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, subtype, format="OGG")
    return buffer.getvalue()


def pages_of(data):
    begins = [i for i in range(len(data)) if data.startswith(b"OggS\0", i)]
    return [data[begin:end] for begin, end in zip(begins, [*begins[1:], len(data)], strict=True)]


OGG_DAMAGE = {
    "a flipped bit": lambda pages: [
        *pages[:4],
        pages[4][:300] + bytes([pages[4][300] ^ 1]) + pages[4][301:],
        *pages[5:],
    ],
    "zeros": lambda pages: [*pages[:4], bytes(len(pages[4])), *pages[5:]],
    "a page that is not there": lambda pages: [*pages[:4], *pages[5:]],
    "rubbish between pages": lambda pages: [*pages[:4], b"rubbish OggS rubbish", *pages[4:]],
}


@pytest.mark.parametrize("damage", OGG_DAMAGE.values(), ids=OGG_DAMAGE)
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_damage_in_an_ogg_file_is_no_silent_hole(subtype, damage):
    """Decoders leave a damaged page out, and what is behind it moves."""
    data = b"".join(damage(pages_of(ogg(subtype))))
    for read in (decode, read_info):
        with pytest.raises(DataError, match=r"Ogg page.* OUT\.flac"):
            read(io.BytesIO(data))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_rubbish_between_two_ogg_streams_is_passed_over(subtype):
    one = ogg(subtype)
    assert len(decode(io.BytesIO(one + b"rubbish" + one))) == 2 * len(decode(io.BytesIO(one)))


def test_a_broadcast_that_a_recorder_joined_late_is_read():
    pages = pages_of(ogg("OPUS"))
    headers = [page for page in pages if page[6:14] == bytes(8)]
    late = b"".join([*headers, *pages[len(headers) + 3 :]])
    assert len(decode(io.BytesIO(late))) > 30 * RATE


CUT = {
    "AIFF": lambda: encode("AIFF"),
    "AIFF-C": lambda: encode("AIFF", "ULAW"),
    "AU": lambda: encode("AU"),
    "CAF": lambda: encode("CAF"),
    "Wave64": lambda: encode("W64"),
    "RF64": lambda: encode("RF64"),
    "big-endian WAV": lambda: encode("WAV", endian="BIG"),
    "NIST": lambda: encode("NIST"),
    "NIST of mu-law": lambda: encode("NIST", "ULAW"),
    "NIST of A-law": lambda: encode("NIST", "ALAW"),
    "Matroska of PCM": lambda: ffmpeg("matroska", "pcm_s16le"),
    "WebM": lambda: ffmpeg("webm", "libopus", cluster_time_limit="200"),
    "Matroska with a picture": lambda: video("matroska", "pcm_s16le"),
    "AVI": lambda: ffmpeg("avi", "pcm_s16le"),
    "AVI with a picture": lambda: video("avi", "libmp3lame"),
    "WMV": lambda: video("asf", "libmp3lame"),
    "Creative's VOC": lambda: ffmpeg("voc", "pcm_s16le"),
    "SoX": lambda: ffmpeg("sox", "pcm_s32le"),
}


@pytest.mark.parametrize("make", CUT.values(), ids=CUT)
def test_a_file_that_holds_less_than_its_header_says_is_refused(make):
    data = make()
    read_info(io.BytesIO(data))
    part = data[: len(data) * 6 // 10]
    for read in (read_info, decode):
        with pytest.raises(DataError, match=r"header says|breaks off"):
            read(io.BytesIO(part))


RUBBISH = {"a tag": b"TAG" + b"x" * 125, "zeros": bytes(5000), "noise": np.random.default_rng(0).bytes(3000)}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
@pytest.mark.parametrize("codec", ["ac3", "eac3"])
def test_rubbish_behind_raw_ac3_is_passed_over(codec, rubbish):
    data = ffmpeg(codec, codec, rate=48_000, samples=np.resize(TONE, 3 * 48_000))
    samples = decode(io.BytesIO(data + rubbish))
    assert len(samples) == pytest.approx(len(decode(io.BytesIO(data))), abs=0.04 * RATE)  # as FFmpeg: one frame less
    assert read_info(io.BytesIO(data + rubbish)).num_samples == pytest.approx(len(samples), abs=0.1 * RATE)


NO_LENGTH = {
    "AVI of a pipe": lambda: with_(ffmpeg("avi", "pcm_s16le"), 4, "<I", 0xFFFFFFFF),
    "AVI that was not finished": lambda: with_(ffmpeg("avi", "pcm_s16le"), 4, "<I", 0),
    "AVI that counts its head": lambda: with_(data := ffmpeg("avi", "pcm_s16le"), 4, "<I", len(data)),
    "SoX of a pipe": lambda: with_(ffmpeg("sox", "pcm_s32le"), 8, "<Q", 0),
    "Matroska of a pipe": lambda: ffmpeg("matroska", "pcm_s16le", live="1"),
}


@pytest.mark.parametrize("make", NO_LENGTH.values(), ids=NO_LENGTH)
def test_of_a_file_whose_header_knows_no_length_nothing_is_missing(make):
    assert len(decode(io.BytesIO(make()))) == pytest.approx(len(TONE), abs=0.1 * RATE)


@pytest.mark.parametrize("claimed", [0, 24, 50_000, 1 << 62, (1 << 64) - 1])
def test_wave64_is_as_long_as_its_bytes(claimed, capfd):
    data = encode("W64")
    data = with_(data, data.find(b"data") + 16, "<Q", claimed)
    assert len(decode(io.BytesIO(data))) == pytest.approx(3 * RATE, abs=16)
    assert bool(read_info(io.BytesIO(data)).remarks) == (claimed == 50_000)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_whose_note_tells_fewer_frames_is_read_to_its_end(mode, share):
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, 1, format="MP3", bitrate_mode=mode) as file:
        file.write(TONE)
    place, number = frames_of(buffer.getvalue())
    data = with_(buffer.getvalue(), place, ">I", int(number * share))
    assert len(decode(io.BytesIO(data))) == pytest.approx(3 * RATE, abs=0.15 * RATE)
    assert read_info(io.BytesIO(data)).remarks[0].startswith("length differs from header")


@pytest.mark.parametrize("number", [2.0, 1e6])
def test_of_an_mp3_whose_note_tells_more_frames_nothing_is_missing(number):
    data = encode("MP3")
    place, told = frames_of(data)
    samples = decode(io.BytesIO(with_(data, place, ">I", min(int(told * number), 0xFFFFFFFF))))
    assert len(samples) == pytest.approx(3 * RATE, abs=0.15 * RATE)


@pytest.mark.parametrize("rate", [0, 1, 999, 4_000_000_000])
def test_a_rate_that_no_recording_has_is_refused(rate):
    data = with_(encode("WAV"), 24, "<I", rate)
    with pytest.raises(DataError):
        decode(io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "git lfs pull"),
        (b"\n<!DOCTYPE HTML><title>404</title>", "HTML"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "gzip"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"", "empty"),
    ],
)
def test_what_is_no_audio_is_named(data, what):
    with pytest.raises(DataError, match=what):
        read_info(io.BytesIO(data))


@pytest.mark.parametrize("late_seconds", [0, 2])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_sound_that_begins_behind_its_video_is_told(container, late_seconds):
    data, remarks = video(container, "aac", late_seconds), []
    decode(io.BytesIO(data), remarks=remarks)
    assert read_info(io.BytesIO(data)).remarks == tuple(remarks)
    told = [remark for remark in remarks if remark.startswith("late sound: it begins ")]
    assert len(told) == bool(late_seconds)
    assert all(float(remark.split()[4]) == pytest.approx(late_seconds, abs=0.1) for remark in told)


@pytest.mark.parametrize("begin", [[4, 20], [0x0401, 0]], ids=["of a game", "of a sampler"])
def test_samples_without_a_header_are_no_audio_though_they_begin_as_another_format_does(begin):
    samples = np.array(begin + [8000] * 20_000, "<i2")
    with pytest.raises(DataError, match="no format of recordings; raw samples need a header"):
        read_info(io.BytesIO(samples.tobytes()))


def test_a_dictation_of_a_psion_is_a_recording():
    header = b"ALawSoundFile**\0\x0f\x10" + struct.pack(">II6x", 8000, 1)
    info = read_info(io.BytesIO(header + bytes(range(256)) * 32))
    assert (info.sample_rate_hz, info.num_channels) == (8000, 1)
    assert info.seconds == pytest.approx(1.0, abs=0.1)


def test_a_file_is_what_its_bytes_are_whatever_its_name(tmp_path, capfd):
    kinds = {
        "WAV": encode("WAV"),
        "MP3": encode("MP3"),
        "M4A": ffmpeg("mp4", "aac"),
        "nothing": b"",
        "few": b"\xff\xfb\x90",
    }
    for kind, data in kinds.items():
        told = set()
        for suffix in ("", ".mp3", ".wav", ".m4a", ".flac", ".ogg", ".txt"):
            (tmp_path / f"a{suffix}").write_bytes(data)
            with open(tmp_path / f"a{suffix}", "rb") as file:
                try:
                    told.add(str(read_info(file)))
                except DataError as error:
                    told.add(str(error))
        assert len(told) == 1, kind
    assert "Traceback" not in capfd.readouterr().err


def test_a_voc_of_many_blocks_holds_its_samples_and_no_headers():
    data = ffmpeg("voc", "pcm_s16le")
    samples = decode(io.BytesIO(data))
    assert (len(samples), read_info(io.BytesIO(data)).num_samples) == (len(TONE), len(TONE))
    np.testing.assert_allclose(samples, TONE * 32767, atol=2)


UNKNOWN_CODEC = {
    "Matroska": lambda: ffmpeg("matroska", "flac").replace(b"A_FLAC", b"A_NONE"),
    "WAV": lambda: with_(ffmpeg("wav", "adpcm_yamaha"), 20, "<H", 0x674F),
}


@pytest.mark.parametrize("make", UNKNOWN_CODEC.values(), ids=UNKNOWN_CODEC)
@pytest.mark.parametrize("read", [read_info, decode, told_seconds])
def test_a_codec_that_ffmpeg_does_not_know_is_refused(read, make):
    with pytest.raises(DataError, match="FFmpeg has no decoder for its codec"):
        read(io.BytesIO(make()))


@pytest.mark.parametrize("subtype", ["PCM_16", "ULAW", "ALAW"])
def test_of_a_nist_that_holds_more_than_its_header_says_all_is_read_and_it_is_told(subtype):
    data = encode("NIST", subtype)
    data += data[1024:]
    info = read_info(io.BytesIO(data))
    assert info.num_samples == len(decode(io.BytesIO(data))) == 2 * len(TONE)
    assert "it says 3.00 s, the file holds 6.00 s" in str(info.remarks)


@pytest.mark.parametrize("coding", ["pcm,embedded-shorten-v2.00", "ulaw,embedded-shorten-v2.00", "pcm,embedded-wv"])
def test_a_nist_that_is_compressed_is_named_as_such_with_what_unpacks_it(coding):
    data = encode("NIST").replace(
        b"sample_coding -s3 pcm\n", b"sample_coding -s%d %s\n" % (len(coding), coding.encode())
    )
    for read in (read_info, decode):
        with pytest.raises(DataError, match=rf"compressed \({coding}\): sph2pipe"):
            read(io.BytesIO(data[: len(data) // 3]))
