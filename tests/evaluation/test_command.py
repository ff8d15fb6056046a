"""``fastslm evaluate`` on shards: a model beside other systems, named sets, lengths, and what a kill leaves."""

import json
import os

import numpy as np
import pytest
import yaml

from fastslm.cli import main
from fastslm.datamodules.evaluation.recordings import RegionSource
from fastslm.errors import ConfigError
from fastslm.evaluation.transcripts import read_transcripts
from fastslm.inference import load as load_module
from tests.inference.tiny_run import settings_of, write_run

RATE = 16_000


@pytest.fixture
def shards(tmp_path, write_shard, flac):
    """Return the folder of two sets: ``clean`` with four recordings, one without speech, and ``long`` with one."""
    said = ["the white paper", "twenty five cars", "good morning mister brown", ""]
    samples = [
        (f"utt{i}", {"flac": flac(1.0 + i, seed=i), "json": {"text": text, "task": "asr"}})
        for i, text in enumerate(said)
    ]
    write_shard(tmp_path / "sets" / "clean-000000.tar", samples)
    talk = {"flac": flac(31.0, seed=9), "json": {"text": "well it is late", "language": "en"}}
    other = {"flac": flac(1.0), "json": {"task": "ssum", "text": "x", "summary": "short"}}
    write_shard(tmp_path / "sets" / "long-000000.tar", [("talk", talk), ("sum", other)])
    return tmp_path / "sets"


def texts(folder, **found):
    folder.mkdir()
    for name, text in found.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def run(capsys, *words):
    status = main(["evaluate", *map(str, words)])
    return status, capsys.readouterr()


GOOD = {
    "utt0": "The whitepaper.",
    "utt1": "25 cars",
    "utt2": "good morning Mr Brown",
    "utt3": "thank you",
    "talk": "well it's late",
}


def test_transcripts_of_other_systems_stand_beside_each_other(capsys, tmp_path, shards):
    bad = texts(tmp_path / "bad", **{**GOOD, "utt1": "25 card", "utt3": ""})
    status, shown = run(
        capsys, texts(tmp_path / "good", **GOOD), f"clean={shards}/clean-*.tar", f"{shards}/long-*.tar",
        "--beside", f"bad={bad}", "--out", tmp_path / "out", "--hub-dataset", "clean=org/speech:clean",
    )  # fmt: skip
    assert status == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    rates = {(r["system"], r["data"]): r["overall"]["wer"] for r in results}
    assert rates == {("good", "clean"): 0, ("good", "long"): 0, ("bad", "clean"): 1 / 9, ("bad", "long"): 0}
    assert "good on clean: text for 1 of 1, 2 words" in shown.out
    assert "bad on clean: text for 0 of 1" in shown.out
    assert "long: 1 samples left out: no transcript is asked for" in shown.err
    (entry,) = yaml.safe_load((tmp_path / "out" / ".eval_results" / "clean.yaml").read_text())
    assert entry["dataset"] == {"id": "org/speech", "task_id": "clean"}
    assert entry["value"] == 0
    assert "Normaliser english (Whisper's, of whisper-normalizer;" in entry["notes"]
    assert "Written to" in shown.err
    assert ".eval_results/clean.yaml." in shown.err
    assert (tmp_path / "out" / "wer.png").stat().st_size > 1000
    assert (tmp_path / "out" / "report.md").read_text() == shown.out


def test_transcripts_that_are_the_references_word_for_word_are_told(capsys, tmp_path, shards):
    rows = {"utt0": "the white paper", "utt1": "25 cars", "utt2": "good morning mister brown", "utt3": ""}
    path = tmp_path / "a.jsonl"
    for last, told in (("", True), ("thanks", False)):
        rows["utt3"] = last
        lines = (json.dumps({"id": key, "text": text, "output": "no"}) for key, text in rows.items())
        path.write_text("\n".join(lines))
        status, shown = run(capsys, path, f"clean={shards}/clean-*.tar", "--out", tmp_path / "out")
        assert status == 0
        assert ("all transcripts of set clean are the references, word for word" in shown.err) is told


def test_apostrophes_that_the_normaliser_tells_apart_are_told(capsys, tmp_path, write_shard, flac):
    said = {"a": "I don\u2019t know", "b": "it\u2019s late", "c": "we'll go", "d": "so be it"}
    rows = [(key, {"flac": flac(1.0), "json": {"text": text}}) for key, text in said.items()]
    write_shard(tmp_path / "s" / "x.tar", rows)
    system = texts(tmp_path / "t", **{**said, "a": "I don't know", "c": "we\u2019ll go", "d": "that\u2019s it"})
    for more, told in (([], True), (["--normaliser", "basic"], False)):
        shown = run(capsys, system, tmp_path / "s", "--out", tmp_path / "out", *more)[1].err
        assert ("t: in 2 recordings of set s one text has \u2019 for an apostrophe and the other '," in shown) is told


def test_a_name_with_bars_and_lines_is_one_cell(capsys, tmp_path, shards):
    good = texts(tmp_path / "good", **GOOD)
    words = [good, f"clean={shards}/clean-*.tar", "--out", tmp_path / "out", "--name", "a|b\nc"]
    status, shown = run(capsys, *words)
    assert status == 0
    head, _, row = shown.out.splitlines()[:3]
    assert row.startswith("| a\\|b c | clean |")
    assert row.replace("\\|", "").count("|") == head.count("|")


def test_a_set_without_speech_has_no_rate_for_the_hub_and_says_so(capsys, tmp_path, write_shard, flac):
    write_shard(tmp_path / "quiet.tar", [("hum", {"flac": flac(1.0), "json": {"text": "", "task": "asr"}})])
    good = texts(tmp_path / "good", hum="")
    words = [good, f"quiet={tmp_path}/quiet.tar", "--out", tmp_path / "out", "--hub-dataset", "quiet=org/speech:quiet"]
    status, shown = run(capsys, *words)
    assert status == 0
    assert "quiet: nothing is said in this set, so --hub-dataset quiet writes nothing." in shown.err
    assert not (tmp_path / "out" / ".eval_results").exists()


def test_transcripts_beside_a_model_are_matched_before_it_transcribes(capsys, tmp_path, shards, model):
    few = texts(tmp_path / "few", utt0="25 cards")
    words = [model, f"clean={shards}/clean-*.tar", "--out", tmp_path / "out", "--beside", f"few={few}"]
    status, shown = run(capsys, *words)
    assert status == 2
    assert "few, set clean: 3 of 4 recordings have no transcript" in shown.err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def model(tmp_path, tiny_encoder, tiny_llm):
    return write_run(tmp_path / "run", settings_of(tiny_encoder, tiny_llm))


def test_a_model_is_scored_on_what_it_transcribes_and_a_second_run_goes_on(capsys, tmp_path, shards, model):
    words = [model, f"clean={shards}/clean-*.tar", "--out", tmp_path / "out", "--max-new-tokens", "5"]
    status, first = run(capsys, *words)
    assert status == 0
    answers = tmp_path / "out" / "answers" / "clean.jsonl"
    made_with, *rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert made_with["max_new_tokens"] == 5
    assert sorted(row["key"] for row in rows) == ["utt0", "utt1", "utt2", "utt3"]
    assert all(row["work_seconds"] > 0 for row in rows)

    whole = answers.read_text()
    answers.write_text(whole[: whole.rindex('{"key"') + 20])  # a kill in the middle of the last line
    status, second = run(capsys, *words)
    assert status == 0
    assert "3 of 4 recordings have their answer" in second.err
    assert [json.loads(line)["text"] for line in answers.read_text().splitlines()[1:]] == [row["text"] for row in rows]
    strip_speed = lambda text: [line.rpartition("|")[0].rpartition("|")[0] for line in text.splitlines()]  # noqa: E731
    assert strip_speed(second.out) == strip_speed(first.out)

    status, third = run(capsys, *words[:-1], "6")
    assert status == 2
    assert "made with other settings (max_new_tokens 5, now 6)" in third.err
    assert run(capsys, *words[:-1], "6", "--overwrite")[0] == 0


def test_the_model_is_looked_up_once(capsys, tmp_path, shards, model, monkeypatch):
    loaded = []

    def load(path, device):
        loaded.append(path)
        raise ConfigError("enough")

    monkeypatch.setattr(load_module, "load", load)
    assert run(capsys, model, f"clean={shards}/clean-*.tar", "--out", tmp_path / "out")[0] == 2
    assert loaded == [load_module.find_model(model)]


ROW = {"key": "utt0", "text": "a", "work_seconds": 1, "error": ""}
DAMAGED = ["{}", *(json.dumps(ROW | {name: [1]}) for name in ROW)]


@pytest.mark.slow
def test_kept_answers_that_are_damaged_are_named_and_what_a_kill_cut_is_not_read(capsys, tmp_path, shards, model):
    words = [model, f"clean={shards}/clean-*.tar", "--out", tmp_path / "out", "--max-new-tokens", "5"]
    assert run(capsys, *words)[0] == 0
    answers = tmp_path / "out" / "answers" / "clean.jsonl"
    whole = answers.read_bytes()
    changed = whole.replace(b'"text": "', b'"text": "x', 1)
    for content, said in (
        *((whole + line.encode() + b"\n", "line 6 is damaged (it is no answer: ") for line in DAMAGED),
        (whole + b"[]\n", "line 6 is damaged (it holds a list, and no object). Remove the line"),
        (b"1\n" + whole, "line 1 is damaged (it holds a int, and no object). Remove it to transcribe all."),
        (changed, "line 2 is damaged (it has changed since it was written, its checksum differs)"),
    ):
        answers.write_bytes(content)
        status, shown = run(capsys, *words)
        assert status == 2
        assert f"clean.jsonl: {said}" in shown.err
    answers.write_bytes(whole + '{"key": "utt0", "text": "\ub2e4'.encode()[:-1])  # within a character
    status, shown = run(capsys, *words)
    assert status == 0
    assert answers.read_bytes() == whole
    answers.unlink()
    os.mkfifo(answers)
    status, shown = run(capsys, *words)
    assert status == 2
    assert "clean.jsonl: cannot be read: it is a pipe" in shown.err


def test_an_answer_of_other_audio_under_the_same_name_is_made_anew(capsys, tmp_path, write_shard, flac, model):
    words = [model, f"set={tmp_path}/set.tar", "--out", tmp_path / "out", "--max-new-tokens", "5"]
    answers = []
    for seed in (1, 2):
        audio = {"a": flac(1.0, 0), "b": flac(1.5, seed)}
        samples = [(key, {"flac": data, "json": {"text": key}}) for key, data in audio.items()]
        write_shard(tmp_path / "set.tar", samples)
        status, shown = run(capsys, *words)
        assert status == 0
        rows = map(json.loads, (tmp_path / "out" / "answers" / "set.jsonl").read_text().splitlines()[1:])
        answers.append({row["key"]: row for row in rows})
    assert "set: 1 answers in" in shown.err
    assert "are of other audio" in shown.err
    assert "set: 1 of 2 recordings have their answer." in shown.err
    assert answers[0]["a"] == answers[1]["a"]
    assert answers[0]["b"]["audio"] != answers[1]["b"]["audio"]


def test_the_answers_of_an_earlier_evaluation_are_scored_beside_another_as_they_were(capsys, tmp_path, shards, model):
    words = [model, f"clean={shards}/clean-*.tar", "--max-new-tokens", "5", "--out"]
    answers = tmp_path / "first" / "answers" / "clean.jsonl"
    assert run(capsys, *words, tmp_path / "first")[0] == 0
    assert run(capsys, *words, tmp_path / "second", "--beside", f"first={answers}")[0] == 0
    new, old = json.loads((tmp_path / "second" / "results.json").read_text())["results"]
    assert [row["errors"] for row in old["recordings"]] == [row["errors"] for row in new["recordings"]]
    assert old["overall"]["wer"] == new["overall"]["wer"]


def test_the_transcripts_of_a_model_are_those_that_transcribe_gives(capsys, tmp_path, shards, model, flac):
    import fastslm

    run(capsys, model, f"clean={shards}/clean-*.tar", "--out", tmp_path / "out", "--max-new-tokens", "5")
    rows = (tmp_path / "out" / "answers" / "clean.jsonl").read_text().splitlines()[1:]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows))
    (tmp_path / "a.flac").write_bytes(flac(2.0, seed=1))
    expected = fastslm.load(model).transcribe(tmp_path / "a.flac", max_new_tokens=5).text
    assert read_transcripts(path)["utt1"] == expected


def test_a_recording_that_cannot_be_decoded_counts_as_empty_and_is_said(capsys, tmp_path, write_shard, flac, model):
    good, bad = flac(1.0), bytearray(flac(3.0))
    bad[len(bad) // 2 :] = bytes(len(bad) - len(bad) // 2)
    samples = [("good", {"flac": good, "json": {"text": "a"}}), ("bad", {"flac": bytes(bad), "json": {"text": "b c"}})]
    write_shard(tmp_path / "s" / "x.tar", samples)
    status, shown = run(capsys, model, tmp_path / "s", "--out", tmp_path / "out", "--max-new-tokens", "2")
    assert status == 1
    assert "failed, counts as empty: bad" in shown.err
    result = json.loads((tmp_path / "out" / "results.json").read_text())["results"][0]
    assert result["data"] == "s"
    assert next(r for r in result["recordings"] if r["key"] == "bad")["deletions"] == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--beside", "x"], "--beside x: must be NAME=VALUE"),
        (["--hub-dataset", "dev=a/b:c"], "there is no set 'dev'; the sets are clean"),
        (["--hub-dataset", "clean=b:c"], "must be OWNER/DATASET:TASK"),
        (["--beside", "good=/nowhere.jsonl"], "/nowhere.jsonl: No such file"),
        (["a b=x"], "'a b' cannot name a set"),
        (["--beam", "4", "--letters"], "--beam, --letters: SYSTEM"),
        (["--section-minutes", "5"], "is transcripts, which no model makes. Leave it out."),
    ],
)
def test_a_mistake_is_one_sentence(capsys, tmp_path, shards, more, said):
    good = texts(tmp_path / "good", **GOOD)
    status, shown = run(capsys, good, f"clean={shards}/clean-*.tar", "--out", tmp_path / "out", *more)
    assert status == 2
    assert said in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothere.jsonl", "nothere.jsonl: No such file"),
        ("nothere.csv", "nothere.csv: No such file"),
        ("there.csv", "there.csv: transcripts are read from .jsonl, or from a folder of NAME.txt"),
        ("there.stm", "there.stm: transcripts are read from .jsonl, or from a folder of NAME.txt"),
        ("there.trn", "there.trn: transcripts are read from .jsonl, or from a folder of NAME.txt"),
    ],
)
def test_a_file_of_transcripts_that_cannot_be_read_is_no_model(capsys, tmp_path, shards, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ev").mkdir()
    if name.startswith("there"):
        (tmp_path / "ev" / name).write_text("a 1 b 0.0 1.0 hello\n")
    status, shown = run(capsys, f"ev/{name}", f"{shards}/clean-*.tar")
    assert (status, shown.err.count("\n")) == (2, 1)
    assert said in shown.err


def test_a_language_whose_name_says_nothing_is_told(capsys, tmp_path, write_shard, flac):
    rows = [(key, {"flac": flac(1.0), "json": {"text": "one", "language": "Elbonian"}}) for key in "ab"]
    write_shard(tmp_path / "s" / "x.tar", rows)
    system = texts(tmp_path / "t", a="one", b="one!")
    said = "s: language 'Elbonian' of 2 recordings is not known here; errors are counted by word."
    assert said in run(capsys, system, tmp_path / "s", "--out", tmp_path / "out")[1].err
    more = ["--out", tmp_path / "out", "--normaliser", "basic"]
    assert said not in run(capsys, system, tmp_path / "s", *more)[1].err


def test_a_language_of_another_script_than_the_texts_is_told(capsys, tmp_path, write_shard, flac):
    said = {"": "नमस्ते दुनिया", "xx": "明日は雨", "en,zh": "今天 very 天气很好"}
    said |= {"jp": "明日は雨", "hi": "नमस्ते", "en": "one два"}
    rows = [
        (str(number), {"flac": flac(1.0), "json": {"text": text, "language": language}})
        for number, (language, text) in enumerate(said.items())
    ]
    write_shard(tmp_path / "s" / "x.tar", rows)
    system = texts(tmp_path / "t", **{str(number): text for number, text in enumerate(said.values())})
    shown = run(capsys, system, tmp_path / "s", "--out", tmp_path / "out")[1].err
    doubt = "of 1 recordings is not written in their script"
    told = [line for line in shown.splitlines() if doubt in line]
    assert [line.split("'")[1] for line in told] == ["English", "xx", "en,zh"]
    assert doubt not in run(capsys, system, tmp_path / "s", "--out", tmp_path / "o", "--normaliser", "basic")[1].err


def test_numbers_in_words_are_compared_as_words_where_that_is_asked(capsys, tmp_path, write_shard, flac):
    write_shard(tmp_path / "s" / "x.tar", [("a", {"flac": flac(1.0), "json": {"text": "forty two five seven"}})])
    system = texts(tmp_path / "t", a="forty two five nine")
    rates = []
    for more in ([], ["--normaliser", "basic"]):
        run(capsys, system, tmp_path / "s", "--out", tmp_path / "out", *more)
        rates.append(json.loads((tmp_path / "out" / "results.json").read_text())["results"][0]["overall"]["wer"])
    assert rates == [1.0, 0.25]


def test_no_audio_is_opened_for_transcripts_that_are_there(capsys, tmp_path, shards, monkeypatch):
    monkeypatch.setattr(RegionSource, "_open", lambda self: pytest.fail(f"{self.name} was opened"))
    assert run(capsys, texts(tmp_path / "t", **GOOD), shards, "--out", tmp_path / "out")[0] == 0


@pytest.mark.parametrize("more", [["--section-minutes", "nan"], ["--max-new-tokens", "0"], ["--batch-size", "0"]])
def test_a_number_that_cannot_be_is_refused_before_anything_is_transcribed(capsys, tmp_path, shards, model, more):
    status, shown = run(capsys, model, shards, "--out", tmp_path / "out", *more)
    assert status == 2
    assert more[0].strip("-").replace("-", "_") in shown.err.replace("-", "_")
    assert not (tmp_path / "out").exists()


def test_one_name_in_two_shards_of_a_set_is_refused(capsys, tmp_path, write_shard, flac):
    for i in range(2):
        write_shard(tmp_path / "s" / f"{i}.tar", [("same", {"flac": flac(1.0, seed=i), "json": {"text": "a"}})])
    status, shown = run(capsys, texts(tmp_path / "t", same="a"), tmp_path / "s", "--out", tmp_path / "out")
    assert status == 2
    assert "sample 'same' is in another shard of set 's', too" in shown.err


def test_hours_keep_their_rate_whatever_the_batches(capsys, tmp_path, shards, model):
    rates = []
    for size in (1, 8):
        out = tmp_path / f"out{size}"
        run(capsys, model, shards, "--out", out, "--max-new-tokens", "4", "--batch-size", size)
        (result,) = json.loads((out / "results.json").read_text())["results"]
        rates.append((result["overall"]["wer"], list(result["by_length"])))
    assert rates[0] == rates[1]
    assert rates[0][1] == ["0-30 s", "30 s-5 min"]
    assert np.isfinite(rates[0][0])
