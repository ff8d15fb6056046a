"""Kaldi data folders to shards."""

import json

import numpy as np
import pytest


@pytest.fixture
def data(tmp_path):
    """Return a writer of a Kaldi folder from the lines of its files."""

    def write(**files):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for name, lines in files.items():
            (folder / name.replace("_scp", ".scp")).write_text("".join(line + "\n" for line in lines))
        return folder

    return write


def test_segments_are_cut_out_of_their_recordings(build, save, data, tone):
    call = save("call.flac", samples=np.concatenate([tone(1.0, 300), tone(2.0, 600), tone(1.5, 900)]))
    folder = data(
        wav_scp=[f"call {call}"],
        segments=["call-1 call 0.0 1.0", "call-2 call 1.0 3.0", "call-3 call 3.0 -1"],
        text=["call-1 one", "call-2 two words", "call-3 three"],
        utt2spk=["call-1 anna", "call-2 ben", "call-3 anna"],
        utt2lang=["call-1 en", "call-2 de", "call-3 en"],
        spk2gender=["anna f", "ben m"],
    )
    samples = build(folder)
    assert list(samples) == ["call-1", "call-2", "call-3"]
    assert samples["call-2"].fields == {
        "text": "two words", "speaker": "ben", "language": "de", "gender": "m", "recording": "call", "duration": 2.0,
    }  # fmt: skip
    np.testing.assert_allclose(samples["call-2"].audio, tone(2.0, 600), atol=1e-4)
    np.testing.assert_allclose(samples["call-3"].audio, tone(1.5, 900), atol=1e-4)


def test_without_segments_each_recording_is_an_utterance(build, save, data):
    folder = data(wav_scp=[f"a {save('a.wav', 1.0)}", f"b\t{save('b b.flac', 2.0)}"], text=["a first one", "b second"])
    samples = build(folder)
    assert {key: (s.fields["text"], s.seconds) for key, s in samples.items()} == {
        "a": ("first one", 1.0), "b": ("second", 2.0),
    }  # fmt: skip


def test_the_sides_of_a_telephone_call_are_taken_apart(build, data, save, tone):
    path = save("call.wav", samples=np.stack([tone(2.0, 300), tone(2.0, 700)], axis=1))
    folder = data(
        wav_scp=[f"call-A {path}", f"call-B {path}"],
        reco2file_and_channel=["call-A call A", "call-B call B"],
        text=["call-A left", "call-B right"],
    )
    samples = build(folder, "--keep-audio")
    np.testing.assert_allclose(samples["call-A"].audio, tone(2.0, 300), atol=1e-4)
    np.testing.assert_allclose(samples["call-B"].audio, tone(2.0, 700), atol=1e-4)


@pytest.mark.parametrize("segments", [[], ["one left 0 1", "two right 0.5 1.5"]])
@pytest.mark.parametrize("channels", [1, 2])
def test_two_recordings_of_one_file_are_refused_where_nothing_says_which_channel_each_is(
    build, data, save, reasons, segments, channels
):
    path = save("call.wav", 2.0, channels=channels)
    names = ("one", "two") if segments else ("left", "right")
    folder = data(
        wav_scp=[f"left {path}", f"right {path}", f"other {save('other.wav', 1.0, channels=2)}"],
        text=[*(f"{name} words" for name in names), "other words"],
        **({"segments": [*segments, "other other 0 1"]} if segments else {}),
    )
    samples = build(folder, "--max-broken-share", 0.9, "--keep-audio")
    assert set(samples) == ({"other"} if channels == 2 else {"other", *names})
    assert reasons() == ({"unknown channel": 2} if channels == 2 else {})


@pytest.mark.parametrize(
    ("names", "taken"),
    [("1", None), ("11", None), ("01", [300, 700]), ("12", [300, 700]), ("2", [700]), ("0", [300]), ("B", [700])],
)
def test_a_channel_that_may_be_counted_from_0_or_from_1_is_refused(
    build, data, save, tone, reasons, tmp_path, names, taken
):
    wav, channels, text = [], [], []
    for i, name in enumerate(names):
        path = save(f"{i}.wav", samples=np.stack([tone(1.0, 300), tone(1.0, 700)], axis=1))
        wav, channels, text = [*wav, f"r{i} {path}"], [*channels, f"r{i} c {name}"], [*text, f"r{i} word"]
    samples = build(data(wav_scp=wav, reco2file_and_channel=channels, text=text), status=0 if taken else 2)
    assert reasons() == ({} if taken else {"unknown channel": len(names)})
    if not taken:
        assert "1 may be the first (counted from 1)" in (tmp_path / "out/broken.jsonl").read_text()
    for sample, hertz in zip(samples.values(), taken or [], strict=True):
        np.testing.assert_allclose(sample.audio, tone(1.0, hertz), atol=1e-4)


def test_the_one_channel_of_a_file_may_have_any_number(build, data, save):
    folder = data(wav_scp=[f"r {save('r.wav')}"], reco2file_and_channel=["r r 1"], text=["r word"])
    assert build(folder)["r"].seconds == 1.0


@pytest.mark.parametrize(
    ("file", "lengths", "reason"),
    [
        ("utt2dur", ["a 30", "b 2.0"], "other length than stated"),
        ("utt2dur", ["a 30", "a 2.0", "b 2.0", "b 30"], "other length than stated"),
        ("reco2dur", ["a 2.5", "b 2.004"], "other length than stated"),
        ("utt2num_samples", ["a 480000", "b 32000"], "other length than stated"),
    ],
)
def test_a_recording_of_another_length_than_its_folder_says_is_refused(
    build, save, data, reasons, file, lengths, reason
):
    wav = [f"{key} {save(f'{key}.wav', 2.0)}" for key in "ab"]
    folder = data(wav_scp=wav, text=["a one", "b two"], **{file: lengths})
    assert list(build(folder, "--max-broken-share", 0.5)) == ["b"]
    assert reasons() == {reason: 1}


@pytest.mark.parametrize("lengths", [["r 2.0", "r 2.00"], ["r 0"], ["r 0.0"], ["r -1"], ["r long"], ["r 2.0 extra"]])
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_length_that_is_none_or_stands_twice_refuses_nothing(build, save, data, lengths, is_cut):
    files = dict.fromkeys(("utt2dur", "reco2dur"), lengths)
    files |= {"segments": ["r r 0 1"]} if is_cut else {}
    folder = data(wav_scp=[f"r {save('r.wav', 2.0)}"], text=["r word"], **files)
    assert build(folder)["r"].seconds == (1.0 if is_cut else 2.0)


def test_segments_of_a_recording_that_is_not_as_long_as_it_was_are_refused(build, save, data, reasons):
    wav = [f"{key} {save(f'{key}.wav', 4.0)}" for key in "ab"]
    segments, lengths = ["u1 a 0 1", "u2 b 0 1"], {"utt2dur": ["u1 1", "u2 1"], "reco2dur": ["a 5.5", "b 4.0"]}
    folder = data(wav_scp=wav, text=["u1 one", "u2 two"], segments=segments, **lengths)
    assert list(build(folder, "--max-broken-share", 0.5)) == ["u2"]
    assert reasons() == {"other length than stated": 1}


@pytest.mark.parametrize("entry", ["sph2pipe -f wav /data/b.sph |", "/data/raw.ark:4096"])
def test_a_command_or_an_archive_is_refused_with_its_line(build, save, data, capsys, entry):
    folder = data(wav_scp=[f"a {save('a.wav')}", f"b {entry}"], text=["a x", "b y"])
    build(folder, status=2)
    error = capsys.readouterr().err
    assert f"{folder}/wav.scp line 2" in error
    assert entry.strip(" |") in error
    assert ("reco2file_and_channel" in error) == entry.endswith("|")


def test_utterances_that_do_not_fit_together_are_counted(build, save, data, reasons):
    folder = data(
        wav_scp=[f"r {save('r.wav', 2.0)}"],
        segments=["u1 r 0 1", "u2 r 0.5", "u3 gone 0 1", "u4 r 1 9", "u5 r 1 2"],
        text=["u1 fine", "u2 x", "u3 x", "u4 x", "u6 x"],
    )
    assert list(build(folder, "--max-broken-share", 0.9)) == ["u1"]
    assert reasons() == {"unreadable line": 1, "missing audio": 2, "offset past the end": 1, "empty text": 1}


def test_recordings_that_no_segment_names_are_counted(build, save, data, tmp_path):
    recordings = [f"r{i} {save(f'r{i}.wav')}" for i in range(3)]
    folder = data(wav_scp=[*recordings, "r3 /gone.wav"], segments=["u r1 0 1"], text=["u fine"])
    assert list(build(folder)) == ["u"]
    (note,) = map(json.loads, (tmp_path / "out/notes.jsonl").read_text().splitlines())
    assert note["reason"] == "recordings left out"
    assert note["detail"] == "3 that no line of segments names: r0, r2, r3"
