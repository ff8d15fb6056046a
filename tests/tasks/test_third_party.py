"""Tasks of other packages: which corpora are read again for them, and what is said of those that cannot be used."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fastslm.cli import main
from fastslm.datamodules.index import build, scan
from fastslm.datamodules.index.build import IndexBuilder
from fastslm.datamodules.index.dialogues import tokenizer_digest
from fastslm.datamodules.index.sidecar import read_sidecar, write_sidecar
from fastslm.datamodules.index.texts import count_ids
from fastslm.errors import ConfigError
from fastslm.inference.exported import tasks_in
from fastslm.inference.model import Model
from fastslm.path.prompt import Prompter
from fastslm.plugins import class_of
from fastslm.tasks import find_task, tasks

SOURCE = """
from fastslm.contracts import Task
from fastslm.metrics import SampleMean

topics = Task("topics", "{audio}\\nName the topics.", "topics")
same = Task("same", "{audio} Once more.", "text", metrics={"wer": SampleMean(min)}, error="wer")
other = Task("another", "{audio}", "text")
plain = "no task"
"""
NAMES = ("topics", "same", "other", "plain", "absent")
POINTS = {name: f"fastslm_torn:{name}" for name in NAMES}


@pytest.fixture
def prompter(demo_tokenizer):
    return Prompter(demo_tokenizer)


@pytest.fixture
def shards(tmp_path, write_shard, flac):
    """Return a shard of transcripts and one of keywords."""
    speech = write_shard(tmp_path / "a.tar", [("a", {"flac": flac(1.0), "json": {"text": "one two"}})])
    fields = {"task": "keywords", "keywords": "seven, nine", "themes": "numbers"}
    return str(speech), str(write_shard(tmp_path / "b.tar", [("b", {"flac": flac(1.0), "json": fields})]))


@pytest.fixture
def indexed(tmp_path, shards, prompter, monkeypatch):
    """Return what indexes both shards, and gives their lengths, the tars that were scanned and the texts counted."""

    def run():
        seen, counted = [], []
        monkeypatch.setattr(build, "scan_tar", lambda path, *more: seen.append(path[-5]) or scan.scan_tar(path, *more))
        monkeypatch.setattr(
            "fastslm.datamodules.index.texts.count_ids",
            lambda fields, *more: counted.append(fields.get("task", "asr")) or count_ids(fields, *more),
        )
        found = IndexBuilder(prompter, tmp_path / "cache").index(shards)
        return [index.texts.num_tokens.tolist() for index in found], "".join(seen), counted

    return run


def test_a_new_task_leaves_the_digest_and_the_indexes_of_other_corpora_alone(page, package, prompter, indexed, shards):
    before = tokenizer_digest(prompter)
    assert before == "566deb4bb2f860e2"  # of the shipped tokenizer, in all indexes so far
    lengths, scanned, _ = indexed()
    assert (lengths[1], scanned) == ([], "ab")
    with page.on_path(package):
        assert tokenizer_digest(prompter) == before
        again, scanned, counted = indexed()
        assert again[0] == lengths[0]
        assert len(again[1]) == 1
        assert (scanned, counted) == ("b", [])  # what was no sample before is one now
        assert indexed()[1:] == ("", [])
    rows = [read_sidecar(shard) for shard in shards]
    assert [row.prompts for row in rows] == [
        {}, {"keywords": ["{audio}\nList the keywords of the audio clip.", "keywords"]}
    ]  # fmt: skip


def test_another_prompt_has_the_texts_of_that_task_counted_again_and_no_others(page, package, indexed, make_package):
    with page.on_path(package):
        short = indexed()[0]
    prompt = "{audio}\nList the keywords of the audio clip, each in one word."
    longer = f"from fastslm.contracts import Task\nkeywords = Task('keywords', {prompt!r}, 'keywords')"
    with page.on_path(make_package("fastslm_other", longer, keywords="fastslm_other:keywords")):
        lengths, scanned, counted = indexed()
        assert lengths[0] == short[0]
        assert lengths[1][0] > short[1][0]
        assert (scanned, counted) == ("", ["keywords"])
        assert indexed()[1:] == ("", [])  # kept in the cache
    with page.on_path(package):
        assert indexed() == (short, "", [])


def test_another_answer_field_has_the_shard_read_again(page, package, indexed, make_package, shards):
    with page.on_path(package):
        indexed()
    themes = "from fastslm.contracts import Task\nkeywords = Task('keywords', '{audio} Themes?', 'themes')"
    with page.on_path(make_package("fastslm_other", themes, keywords="fastslm_other:keywords")):
        assert indexed()[1] == "b"
        assert read_sidecar(shards[1])["text_characters"].tolist() == [len("numbers")]


def test_without_the_task_its_samples_are_findings_and_the_index_stays(page, package, indexed, prompter, tmp_path):
    with page.on_path(package):
        indexed()
    lengths, scanned, _ = indexed()
    assert (lengths[1], scanned) == ([-1], "")
    found = IndexBuilder(prompter, tmp_path / "cache").index([str(tmp_path / "b.tar")])[0].texts.broken
    assert [(item.reason, item.detail[:24]) for item in found] == [("missing text", "unknown task 'keywords',")]


def test_an_index_from_before_there_were_other_tasks_is_taken_as_it_is(page, package, indexed, prompter, shards):
    rows = scan.scan_tar(shards[0], prompter)
    assert rows.prompts == {}
    write_sidecar(shards[0], rows)
    assert b"prompts" not in Path(shards[0] + ".index.npz").read_bytes()
    with page.on_path(package):
        lengths, scanned, counted = indexed()
    assert (scanned, counted) == ("b", [])
    assert np.array_equal(lengths[0], rows["text_tokens"])


def test_the_index_command_takes_in_samples_of_a_task_that_came_later(page, package, shards, capsys):
    assert main(["shards", "index", shards[1]]) == 1  # zero samples is no success
    assert "0 samples" in capsys.readouterr().out
    with page.on_path(package):
        assert main(["shards", "index", shards[1]]) == 0
    assert "1 shard, 1 sample" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:plug-in")
def test_tasks_that_cannot_be_used_are_named_with_their_distribution_and_break_no_other(page, make_package, capsys):
    with page.on_path(make_package("fastslm_torn", SOURCE, **POINTS)):
        assert main(["plugins"]) == 1
        lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "fastslm-torn 1.0" in line}
        assert set(tasks()) == {"asr", "ast", "ssum", "sqqa", "topics"}
        with pytest.raises(ConfigError, match=r"unknown task 'other': fastslm-torn 1\.0 cannot be used: its entry"):
            find_task("other")
    for name, problem in {
        "same": "its metric 'wer' has the name of one of task asr of fastslm",
        "other": "its entry point must have the name of the task, another",
        "plain": "it is no object of fastslm.contracts.Task",
        "absent": "AttributeError",
    }.items():
        assert f"cannot be used: {problem}" in lines[name]


def test_a_task_without_an_answer_field_is_refused_in_one_sentence(page, make_package, capsys):
    source = "from fastslm.contracts import Task\ntopics = Task('topics', '{audio}')"
    with page.on_path(make_package("fastslm_torn", source, topics="fastslm_torn:topics")):
        assert main(["transcribe", "x.wav", "--task", "topics"]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
    assert "fastslm-torn 1.0 cannot be used: ConfigError: task 'topics': has no answer_field; name the field" in said


def test_what_a_plug_in_prints_at_its_import_is_no_part_of_the_output(page, make_package, capsys):
    source = "from fastslm.contracts import Task\nprint('ready')\ntopics = Task('topics', '{audio}', 'text')"
    with page.on_path(make_package("fastslm_loud", source, topics="fastslm_loud:topics")):
        assert "topics" in tasks()
        assert capsys.readouterr() == ("", "ready\n")
        del sys.modules["fastslm_loud"]
        with pytest.raises(ConfigError, match="no part of a model"):
            class_of("abstractors", "fastslm_loud.topics")
        assert capsys.readouterr() == ("", "ready\n")


def test_two_tasks_of_one_name_are_refused_in_one_sentence(page, package, make_package, capsys):
    source = "from fastslm.contracts import Task\nkeywords = Task('keywords', '{audio}', 'text')"
    other = make_package("fastslm_torn", source, keywords="fastslm_torn:keywords")
    with page.on_path(package), page.on_path(other):
        for command in (["plugins"], ["transcribe", "x.wav"], ["shards", "build", "x", "--out", "y"]):
            assert main(command) == 2
            said = capsys.readouterr().err.strip()
            assert said.startswith("fastslm: error: two plug-ins are called 'keywords'")
            assert "of fastslm-keywords 1.0" in said
            assert said.endswith("of fastslm-torn 1.0. Uninstall one.") or said.endswith(
                "of fastslm-keywords 1.0. Uninstall one."
            )


def test_a_folder_from_before_tasks_were_exported_is_asked_in_the_words_of_the_installed_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "fastslm"}))
    (tmp_path / "processor_config.json").write_text(json.dumps({"enable_thinking": False}))
    assert tasks_in(tmp_path) == {}
    assert Model(None, "x", tasks=tasks_in(tmp_path)).request("ssum").words == "Summarize the audio clip."


def test_a_table_may_have_nothing_but_the_answers_of_the_task(page, package, tmp_path, flac, capsys):
    (tmp_path / "a.flac").write_bytes(flac(1.0))
    (tmp_path / "t.csv").write_text('path,kw\na.flac,"seven, nine"\n')
    command = ["shards", "build", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"), "--column", "keywords=kw"]
    assert main(command) == 2
    assert "'keywords' is none of" in capsys.readouterr().err
    with page.on_path(package):
        assert main([*command, "--task", "keywords"]) == 0
    assert "1 sample, 1 s of audio" in capsys.readouterr().out


def test_a_damaged_list_of_tasks_in_an_exported_folder_is_named(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "fastslm"}))
    (tmp_path / "processor_config.json").write_text(json.dumps({"tasks": [{"name": "x", "prompts": "{audio}"}]}))
    assert main(["transcribe", "x.wav", "--model", str(tmp_path), "--task", "x"]) == 2
    assert "no task can be read from processor_config.json" in capsys.readouterr().err
