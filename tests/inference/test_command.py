"""``fastslm transcribe`` and ``fastslm ask``: outputs, going on after an interruption, and bad input among good."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from tiny_run import settings_of

from fastslm import cli
from fastslm.commands.notes import NOTES
from fastslm.commands.progress import AudioBar
from fastslm.inference import load as load_module
from fastslm.inference.batch import side_by_side
from fastslm.inference.formats import render
from fastslm.inference.model import Model
from fastslm.inference.results import Answer, Segment, Timings

LIMIT = ("--max-new-tokens", "6")


@pytest.fixture
def run(run_folder, model, monkeypatch, capsys):
    """Return a runner of the command on the tiny model; gives exit status, standard output and standard error."""
    monkeypatch.setattr(load_module, "load", lambda path=None, device=None: model)

    def command(*arguments, model_path=run_folder):
        given = [str(argument) for argument in arguments]
        status = cli.main([given[0], *given[1:], "--model", str(model_path)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


@pytest.fixture
def talks(tmp_path, noise, write_audio):
    """Return a folder of four recordings."""
    folder = tmp_path / "talks"
    for i, name in enumerate(("a.wav", "b.flac", "c.wav", "sub/d.mp3")):
        write_audio(folder / name, noise(1 + i, i))
    return folder


def test_a_file_is_printed(run, model, talks):
    status, out, err = run("transcribe", talks / "a.wav", *LIMIT)
    assert status == 0
    assert out == model.transcribe(talks / "a.wav", max_new_tokens=6).text + "\n"
    assert re.search(r"1 of 1 done: 0:00:01 of audio in 0:00:\d\d, \d+x real time; 1 with warnings", err)
    assert "cut off at 6 tokens" in err


def test_the_model_is_looked_up_once(run_folder, model, talks, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(load_module, "load", lambda path, device=None: loaded.append(path) or model)
    command = ["transcribe", str(talks / "a.wav"), "--model", str(run_folder), *LIMIT]
    assert cli.main(command) == cli.main([*command, "--output", str(tmp_path / "out")]) == 0
    assert loaded == [load_module.find_model(run_folder)] * 2


def test_several_files_are_printed_under_their_names(run, talks):
    status, out, _ = run("transcribe", talks, *LIMIT)
    assert status == 0
    names = re.findall(r"^==> (.*) <==$", out, re.MULTILINE)
    assert [os.path.relpath(name, talks) for name in names] == ["a.wav", "b.flac", "c.wav", "sub/d.mp3"]


def test_json_lines_tell_everything(run, model, talks):
    _, out, _ = run("transcribe", talks, "--format", "jsonl", *LIMIT)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["seconds"] for row in rows] == [1, 2, 3, pytest.approx(4, abs=0.1)]
    expected = model.transcribe(talks / "c.wav", max_new_tokens=6)
    assert (rows[2]["text"], rows[2]["tokens"]) == (expected.text, len(expected.tokens))
    assert rows[2]["truncated"] is True
    assert {"token_rate", "speed", "timings", "warnings", "source"} <= rows[2].keys()


def test_a_folder_becomes_a_folder_and_what_is_finished_is_kept(run, talks, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run("transcribe", talks, "--output", out, *LIMIT)[0] == 0
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*.txt"))
    assert files == ["a.txt", "b.txt", "c.txt", "sub/d.txt"]
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.txt")}
    (out / "b.txt").unlink()
    status, _, err = run("transcribe", talks, "--output", out, *LIMIT)
    assert status == 0
    assert "3 of 4 are finished and kept" in err
    assert "1 of 1 done" in err
    assert all(p.stat().st_mtime_ns == times[p] for p in times if p.name != "b.txt")
    monkeypatch.setattr(load_module, "load", lambda *a, **k: pytest.fail("there is nothing to do"))
    assert run("transcribe", talks, "--output", out, *LIMIT)[0] == 0


def test_transcripts_made_differently_are_not_mixed(run, talks, tmp_path):
    out = tmp_path / "out"
    assert run("transcribe", talks / "a.wav", "--output", out, *LIMIT)[0] == 0
    status, _, err = run("transcribe", talks, "--output", out, "--max-new-tokens", "7")
    assert status == 2
    assert "max_new_tokens 6, now 7" in err
    assert run("transcribe", talks, "--output", out, "--max-new-tokens", "7", "--overwrite")[0] == 0


def test_subtitles_have_the_times_of_windows(run, talks, tmp_path):
    status, out, _ = run("transcribe", talks / "c.wav", "--format", "srt", *LIMIT)
    assert status == 0
    assert re.match(r"1\n00:00:00,000 --> 00:00:02,000\n.+\n\n2\n00:00:02,000 --> 00:00:03,000\n", out)
    status, out, _ = run("transcribe", talks / "c.wav", "--format", "vtt", *LIMIT)
    assert out.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n")
    status, _, err = run("transcribe", talks, "--format", "srt")
    assert status == 2
    assert "--output DIR" in err


def test_cues_are_well_formed_whatever_the_text():
    segments = (Segment(0, 2.5, "a --> b\n\nc"), Segment(3723.25, 3725, "d"))
    answer = Answer("x", (), 1.0, 1, Timings(), segments=segments)
    assert render(answer, "srt") == (
        "1\n00:00:00,000 --> 00:00:02,500\na -> b\nc\n\n2\n01:02:03,250 --> 01:02:05,000\nd\n\n"
    )
    assert render(answer, "vtt").count("-->") == 2


def test_text_is_never_markup_for_a_player():
    text = "x < y and AT&T </i> <inaudible> z\0 &amp;"
    answer = Answer("x", (), 1.0, 1, Timings(), segments=(Segment(0, 1, text),))
    assert "\nx &lt; y and AT&amp;T &lt;/i&gt; &lt;inaudible&gt; z &amp;amp;\n" in render(answer, "vtt")
    assert "\nx < y and AT&T \u2039/i\u203a \u2039inaudible\u203a z &amp;\n" in render(answer, "srt")


def test_recordings_that_share_a_name_keep_their_endings(run, tmp_path, noise, write_audio):
    for name in ("x/talk.wav", "x/talk.flac", "x/other.wav"):
        write_audio(tmp_path / name, noise(0.5))
    run("transcribe", tmp_path / "x", "--output", tmp_path / "out", *LIMIT)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.txt")) == ["other.txt", "talk.flac.txt", "talk.wav.txt"]


@pytest.mark.parametrize("batch_size", ["1", "8"])
def test_bad_files_among_good_ones_do_not_stop_them(run, tmp_path, noise, encoded, write_audio, batch_size):
    folder = tmp_path / "mixed"
    write_audio(folder / "a.wav", noise(1))
    (folder / "b-empty.wav").write_bytes(b"")
    (folder / "c-text.wav").write_text("hello " * 100)
    whole = encoded(noise(20), "FLAC")
    (folder / "d-half.flac").write_bytes(whole[: len(whole) // 2])
    write_audio(folder / "e-short.wav", noise(0.05))
    write_audio(folder / "f-silence.wav", np.zeros(32_000, np.int16))
    write_audio(folder / "g-192k.wav", noise(12), 192_000)
    write_audio(folder / "h-six.wav", np.stack([noise(1)] * 6, 1))
    write_audio(folder / "i.wav", noise(2))
    status, _, err = run("transcribe", folder, "--output", tmp_path / "out", "--batch-size", batch_size, *LIMIT)
    assert status == 1
    done = sorted(p.name for p in (tmp_path / "out").glob("*.txt"))
    assert done == ["a.txt", "e-short.txt", "f-silence.txt", "g-192k.txt", "h-six.txt", "i.txt"]
    for name, why in (("b-empty", "the file is empty"), ("c-text", "unreadable audio"), ("d-half", "unreadable audio")):
        assert re.search(rf"failed: .*{name}\.\w+: {why}", err)
    assert "6 of 9 done" in err
    assert "3 failed" in err
    assert "Traceback" not in err


def test_what_is_finished_is_kept_when_interrupted(run, talks, tmp_path, monkeypatch):
    calls = []
    transcribe = Model.transcribe

    def interrupted(self, *arguments, **settings):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return transcribe(self, *arguments, **settings)

    monkeypatch.setattr(Model, "transcribe", interrupted)
    out = tmp_path / "out"
    status, _, err = run("transcribe", talks, "--output", out, "--batch-size", "1", *LIMIT)
    assert status == 130
    assert "Interrupted: 2 of 4 are finished and kept" in err
    assert sorted(p.name for p in out.rglob("*.txt")) == ["a.txt", "b.txt"]
    monkeypatch.setattr(Model, "transcribe", transcribe)
    assert run("transcribe", talks, "--output", out, "--batch-size", "1", *LIMIT)[0] == 0
    assert len(list(out.rglob("*.txt"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "holds no audio"),
        (["x.wav", "--task", "sqqa"], "give one as the prompt"),
        (["x.wav", "--prompt", ""], "prompt: it is empty"),
        (["x.wav", "--prompt", " \n"], "prompt: it is empty"),
        (["x.wav", "--task", "ast", "--language", ""], "language: it is empty"),
        (["x.wav", "--language", "Korean"], "--language|language: 'Korean'"),
        (["x.wav", "--beam", "0"], "beams: 0"),
        (["x.wav", "--batch-size", "0"], "--batch-size: 0"),
        (["x.wav", "--task", "ssum", "--section-minutes", "5"], "--section-minutes: task ssum"),
        (["x.wav", "--task", "ssum", "--format", "srt"], "--format srt: task ssum"),
        (["x.wav", "--output", "{empty}/file/x"], "cannot be written to"),
    ],
)
def test_commands_that_make_no_sense_end_before_anything_is_loaded(run, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "empty").mkdir()
    if "file" in arguments[-1]:
        (tmp_path / "empty" / "file").write_text("")
    monkeypatch.setattr(load_module, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    status, out, err = run("transcribe", *(a.format(empty=tmp_path / "empty") for a in arguments))
    assert (status, out) == (2, "")
    assert re.search(message, err)
    assert "Traceback" not in err


def test_without_a_model_one_sentence_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["transcribe", "x.wav"]) == 2
    err = capsys.readouterr().err
    assert "fastslm fit --config configs/hta.yaml" in err
    assert len(err.splitlines()) == 1


def test_standard_input_is_transcribed(run, noise, encoded, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encoded(noise(2), "FLAC"))))
    status, out, _ = run("transcribe", "-", *LIMIT)
    assert status == 0
    assert out.strip()


def test_tasks_prompts_and_beams_reach_the_model(run, model, talks):
    path = talks / "b.flac"
    _, out, _ = run("transcribe", path, "--task", "ast", "--language", "Korean", *LIMIT)
    assert out.strip() == model.transcribe(path, task="ast", language="Korean", max_new_tokens=6).text
    _, out, _ = run("transcribe", path, "--prompt", "one two", "--beam", "3", *LIMIT)
    assert out.strip() == model.transcribe(path, prompt="one two", beams=3, max_new_tokens=6).text
    _, out, _ = run("transcribe", path, "--temperature", "1.5", "--seed", "3", *LIMIT)
    assert out.strip() == model.transcribe(path, temperature=1.5, seed=3, max_new_tokens=6).text
    _, out, _ = run("transcribe", path, "--section-minutes", "0.01", *LIMIT)
    assert out.strip() == model.transcribe(path, section_minutes=0.01, max_new_tokens=6).text


def test_questions_are_answered(run, model, talks):
    status, out, _ = run("ask", talks / "b.flac", "Who?", "Why?", *LIMIT)
    answers = model.ask(talks / "b.flac", ["Who?", "Why?"], max_new_tokens=6)
    assert status == 0
    assert out == f"Who?\n  {answers[0].text}\nWhy?\n  {answers[1].text}\n"
    status, out, _ = run("ask", talks / "b.flac", "Who?", "--format", "jsonl", *LIMIT)
    assert json.loads(out)["text"] == answers[0].text
    status, _, err = run("ask", talks / "b.flac", talks / "c.wav", "Who?")
    assert status == 2
    assert "c.wav: is a file, and not a question" in err
    status, _, err = run("ask", talks / "nowhere.wav", "Who?")
    assert status == 2
    assert "nowhere.wav: cannot be opened" in err


@pytest.mark.parametrize("command", ["transcribe", "ask"])
def test_help_teaches_with_examples(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert f"fastslm {command} talk.mp3" in out
    assert "exit status" in out


def test_batches_stay_within_an_hour_of_padded_audio():
    lengths = [100.0] * 5 + [3000.0, 400.0, 9000.0, None, 10.0]
    groups = list(side_by_side([(i, length) for i, length in enumerate(lengths)], 4))
    assert groups == [[0, 1, 2, 3], [4], [5], [6], [7], [8], [9]]


def test_the_bar_shows_audio_time_and_speed():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    with AudioBar(7200.0, terminal) as bar:
        bar("encoded", 3600.0)
        bar("generated", 32)
        bar.finish(3600.0)
    shown = terminal.getvalue()
    assert re.search(r"0:30:00/2:00:00 of audio, \d+x real time, 32 tokens", shown)
    assert re.search(r"1:00:00/2:00:00 of audio, \d+x real time", shown)


@pytest.mark.slow
def test_a_real_interrupt_keeps_whole_files_only(run_folder, talks, tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "fastslm",
        "transcribe",
        str(talks),
        "--model",
        str(run_folder),
        "--output",
        str(out),
    ]
    process = subprocess.Popen([*command, "--batch-size", "1", "--max-new-tokens", "3000"], stderr=subprocess.PIPE)
    while not list(out.rglob("*.txt")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (130, 0)  # 0 when it was done before the signal
    assert b"Traceback" not in err
    assert list(out.rglob("*.txt"))
    assert not [p for p in out.rglob(".*") if p.name != NOTES]


@pytest.mark.slow
def test_the_command_that_a_fit_prints_at_its_end_transcribes_a_new_recording(
    tmp_path, monkeypatch, capsys, tiny_encoder, wordy_llm, make_shards, flac, trained_like_the_demo
):
    settings = settings_of(tiny_encoder, wordy_llm, max_new_tokens=12)
    settings["optimizer"] = {"warmup_steps": 1, "part_learning_rates": {}}
    config = {
        "run_folder": "runs/hta",
        "model": {**settings, "frame_cache": False},
        "data": {
            "class_path": "WebDatasetModule",
            "init_args": {
                "train_shards": make_shards(tmp_path / "data", 4),
                "val_shards": make_shards(tmp_path / "data", 3, seconds=[301.0, 1.5, 2.5], name="val"),
                "batch_samples": 4, "num_workers": 0, "cache_dir": str(tmp_path / "cache"),
            },
        },
        "trainer": {"accelerator": "cpu", "max_steps": 2, "val_check_interval": 2, "enable_progress_bar": False},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(trained_like_the_demo(config)))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", "--config", "run.yaml"]) == 0
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if "fastslm transcribe" in line]
    assert printed.split() == ["fastslm", "transcribe", "runs/hta/sample.flac"]
    sample, rate = soundfile.read("runs/hta/sample.flac", dtype="int16")
    rows = (tmp_path / "runs/hta/predictions-val.jsonl").read_text().splitlines()
    held_out = {row["key"]: row for row in map(json.loads, rows)}
    (key,) = [key for key, row in held_out.items() if round(row["audio_seconds"] * rate) == len(sample)]
    expected, _ = soundfile.read(io.BytesIO(flac(held_out[key]["audio_seconds"], seed=int(key[-3:]))), dtype="int16")
    assert np.array_equal(sample, expected)

    assert cli.main([*printed.split()[1:], "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == held_out[key]["hypothesis"]


def test_a_batch_that_does_not_fit_in_memory_is_done_one_by_one(run, talks, tmp_path, monkeypatch):
    def too_large(self, audios, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Model, "transcribe_batch", too_large)
    status, _, err = run("transcribe", talks, "--output", tmp_path / "out", *LIMIT)
    assert status == 0
    assert "one by one (--batch-size 1)" in err
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 4


@pytest.mark.parametrize("options", [(), ("--section-minutes", "1"), ("--batch-size", "2")])
def test_what_is_doubtful_about_a_file_is_a_warning(run, tmp_path, noise, encoded, write_audio, options):
    (tmp_path / "joined.flac").write_bytes(encoded(noise(2), "FLAC") + encoded(noise(1), "FLAC"))
    write_audio(tmp_path / "phase.wav", np.stack([noise(2), -noise(2)], 1))
    status, out, err = run(
        "transcribe", tmp_path / "joined.flac", tmp_path / "phase.wav", "--format", "jsonl", *options, *LIMIT
    )
    assert status == 0
    assert "joined.flac: length differs from header: it says 2.00 s, the file holds 3.00 s" in err
    assert "phase.wav: channels of opposite phase" in err
    assert "2 of 2 done: 0:00:05 of audio" in err
    assert "2 with warnings" in err
    remarks = [json.loads(line)["remarks"] for line in out.splitlines()]
    assert [len(found) for found in remarks] == [1, 1]
    status, _, err = run("ask", tmp_path / "joined.flac", "what is said?", *LIMIT)
    assert (status, err.count("length differs from header")) == (0, 1)
