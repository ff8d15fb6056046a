"""NeMo manifests to shards."""

import json

import numpy as np


def test_each_line_becomes_a_sample_with_all_its_fields(build, manifest, tone):
    samples = build(manifest(6, language="en"))
    assert list(samples) == [f"u{i:03d}" for i in range(6)]
    for i, sample in enumerate(samples.values()):
        expected = {"text": f"word {i}", "speaker": f"s{i % 3}", "number": i, "language": "en"}
        assert sample.fields == {**expected, "duration": 1.0 + 0.5 * (i % 5)}
        assert (sample.extension, sample.rate) == ("flac", 16_000)
        np.testing.assert_allclose(sample.audio, tone(1.0 + 0.5 * (i % 5), 200 + 30 * i), atol=1e-4)


def test_offset_and_duration_cut_out_that_stretch_of_the_file(build, save, json_lines, tmp_path, tone):
    path = save("long.flac", samples=np.concatenate([tone(2.0, 300), tone(1.5, 700), tone(1.0, 500)]))
    rows = [
        {"audio_filepath": "long.flac", "offset": 2.0, "duration": 1.5, "text": "middle"},
        {"audio_filepath": str(path), "offset": 0.0, "duration": 2.0, "text": "first"},
        {"audio_filepath": str(path), "offset": 3.5, "text": "last"},
    ]
    samples = build(json_lines(tmp_path / "m.json", rows))
    assert list(samples) == ["long-000002000", "long-000000000", "long-000003500"]
    middle, first, last = samples.values()
    np.testing.assert_allclose(middle.audio, tone(1.5, 700), atol=1e-4)
    np.testing.assert_allclose(first.audio, tone(2.0, 300), atol=1e-4)
    np.testing.assert_allclose(last.audio, tone(1.0, 500), atol=1e-4)
    assert middle.fields == {"text": "middle", "duration": 1.5}


def test_other_rates_and_stereo_become_16_khz_mono(build, save, json_lines, tmp_path, tone):
    rows = [
        {"audio_filepath": str(save("a.wav", 2.0, 300, rate=44_100)), "text": "a"},
        {"audio_filepath": str(save("b.flac", 2.0, 300, channels=2)), "text": "b"},
        {"audio_filepath": str(save("c.mp3", 2.0, 300, rate=24_000)), "text": "c"},
        {"audio_filepath": str(save("d.ogg", 2.0, 300, rate=8_000)), "text": "d"},
    ]
    samples = build(json_lines(tmp_path / "m.jsonl", rows))
    for key, loudness in {"a": 1.0, "b": 0.75, "c": 1.0, "d": 1.0}.items():
        sample = samples[key]
        assert (sample.rate, sample.audio.ndim) == (16_000, 1)
        assert abs(sample.seconds - 2.0) < 0.1
        spectrum = np.abs(np.fft.rfft(sample.audio))
        assert abs(np.argmax(spectrum) / sample.seconds - 300) < 2
        assert abs(np.abs(sample.audio[4000:20_000]).max() - 0.3 * loudness) < 0.03


def test_keep_audio_keeps_the_bytes_of_whole_files_and_encodes_parts(build, save, json_lines, tmp_path):
    mp3, wav = save("a.mp3", 2.0, rate=44_100), save("b.wav", 2.0, rate=8_000, channels=2)
    rows = [
        {"audio_filepath": str(mp3), "text": "a"},
        {"audio_filepath": str(wav), "duration": 2.0, "text": "b"},
        {"audio_filepath": str(wav), "offset": 0.5, "duration": 1.0, "text": "part", "id": "part"},
    ]
    samples = build(json_lines(tmp_path / "m.jsonl", rows), "--keep-audio")
    assert samples["a"].members["mp3"] == mp3.read_bytes()
    assert samples["b"].members["wav"] == wav.read_bytes()
    assert samples["b"].fields["duration"] == 2.0
    assert (samples["part"].extension, samples["part"].rate, samples["part"].seconds) == ("flac", 16_000, 1.0)


def test_keys_are_fit_for_a_tar_and_unique(build, save, json_lines, tmp_path):
    save("x/a.b.wav"), save("y/a.b.wav")
    rows = [
        {"audio_filepath": "x/a.b.wav", "text": "1"},
        {"audio_filepath": "y/a.b.wav", "text": "2"},
        {"audio_filepath": "y/a.b.wav", "text": "3", "id": "a_b"},
        {"audio_filepath": "y/a.b.wav", "text": "4", "id": "강의/7"},
        {"audio_filepath": "y/a.b.wav", "text": "5", "id": "k" * 500},
    ]
    samples = build(json_lines(tmp_path / "m.jsonl", rows))
    keys = list(samples)
    assert keys[:4] == ["a_b", "a_b~2", "a_b~3", "강의_7"]
    assert keys[4].startswith("kkkk")
    assert len(keys[4]) == 120
    assert [sample.fields["text"] for sample in samples.values()] == list("12345")


def test_what_cannot_be_used_is_counted_by_reason_and_listed(build, save, json_lines, tmp_path, reasons, capsys):
    good = str(save("good.wav", 2.0))
    (tmp_path / "noise.flac").write_bytes(bytes(range(256)) * 40)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(save("whole.wav", 3.0).read_bytes()[:20_000])
    rows = [
        {"audio_filepath": good, "text": "fine"},
        {"audio_filepath": "nowhere.wav", "text": "x"},
        {"audio_filepath": "noise.flac", "text": "x"},
        {"audio_filepath": "noise.flac", "duration": 2.0, "text": "with a duration that is believed at first"},
        {"audio_filepath": str(cut), "text": "x"},
        {"audio_filepath": good, "text": "  "},
        {"audio_filepath": good},
        {"audio_filepath": good, "offset": 5.0, "duration": 1.0, "text": "past the end"},
        {"audio_filepath": good, "offset": 1.5, "duration": 2.0, "text": "past the end"},
        {"audio_filepath": good, "offset": 5.0, "text": "past the end"},
        {"audio_filepath": good, "duration": 9.0, "text": "the file is shorter"},
        {"audio_filepath": good, "task": "translate", "text": "x"},
        {"audio_filepath": good, "offset": "soon", "text": "x"},
        {"text": "no audio"},
        {"audio_filepath": good, "text": 7},
    ]
    path = json_lines(tmp_path / "m.jsonl", rows)
    path.write_text(path.read_text() + '{"audio_filepath": "good.wav", "te\n[1]\n')
    samples = build(path, "--max-broken-share", 0.99)
    assert [sample.fields["text"] for sample in samples.values()] == ["fine"]
    assert reasons() == {
        "missing file": 1, "unreadable audio": 3, "empty text": 2, "offset past the end": 3,
        "audio shorter than stated": 1, "unusable fields": 3, "missing audio": 1, "unreadable line": 2,
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "16 of 17 utterances left out" in printed
    assert "offset past the end" in printed


def test_too_many_broken_ones_stop_the_build_and_are_listed(build, save, json_lines, tmp_path, reasons, capsys):
    rows = [{"audio_filepath": str(save("a.wav")), "text": "x"}] * 8 + [{"audio_filepath": "none.wav", "text": "x"}] * 2
    path = json_lines(tmp_path / "m.jsonl", rows)
    assert build(path, "--max-broken-share", 0.1, status=2) == {}
    assert reasons() == {"missing file": 2}
    assert "2 of 10 utterances are broken" in capsys.readouterr().err
    assert len(build(path, "--max-broken-share", 0.2)) == 8


def test_tasks_come_from_the_line_or_from_the_command(build, save, json_lines, tmp_path):
    wav = str(save("a.wav"))
    rows = [
        {"audio_filepath": wav, "id": "st", "de": "hallo", "task": "ast", "target_language": "German", "text": "hello"},
        {"audio_filepath": wav, "id": "qa", "task": "sqqa", "question": "who?", "answer": "me"},
        {"audio_filepath": wav, "id": "sum", "summary": "short"},
        {"id": "free", "audio_filepath": wav, "messages": [
            {"role": "user", "content": "<|audio_bos|><|AUDIO|><|audio_eos|> What is this?"},
            {"role": "assistant", "content": "A tone."}]},
        {"id": "text", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    ]  # fmt: skip
    path = json_lines(tmp_path / "m.jsonl", rows)
    samples = build(path, "--task", "ssum", "--language", "en", "--column", "translation=de")
    assert {key: sample.fields.get("task") for key, sample in samples.items()} == {
        "st": "ast", "qa": "sqqa", "sum": "ssum", "free": None, "text": None,
    }  # fmt: skip
    assert samples["st"].fields["translation"] == "hallo"
    assert "de" not in samples["st"].fields
    assert all(sample.fields["language"] == "en" for sample in samples.values())
    assert samples["text"].extension is None


def test_files_of_several_splits_go_into_one_set_with_a_note(build, save, json_lines, tmp_path):
    rows = [{"audio_filepath": str(save(f"{i}.flac")), "text": "a"} for i in range(3)]
    names = ("train_a.jsonl", "train_b.jsonl", "corpus-dev.jsonl")
    files = [json_lines(tmp_path / name, [row]) for name, row in zip(names, rows, strict=True)]
    assert len(build(files)) == 3
    note = json.loads((tmp_path / "out" / "notes.jsonl").read_text())
    assert note["reason"] == "several splits in one"
    assert f"train ({files[0]}), validation ({files[2]}) go into one set of shards" in note["detail"]
    assert len(build(files[:2], out="train")) == 2
    assert not (tmp_path / "train" / "notes.jsonl").read_text()


def test_manifests_of_one_name_in_folders_of_several_splits_are_noted(build, save, json_lines, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        json_lines(tmp_path / split / "m.jsonl", [{"audio_filepath": str(save(f"{split}.flac")), "text": "a"}])
    assert len(build([tmp_path / "train/m.jsonl", tmp_path / "test/m.jsonl"])) == 2
    assert "several splits in one" in (tmp_path / "out" / "notes.jsonl").read_text()
