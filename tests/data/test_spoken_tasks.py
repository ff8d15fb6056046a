"""What is asked of spoken numbers: by hand, and dealt out to the recordings of a corpus."""

import json
import tarfile

import pytest

from fastslm.datamodules.index.dialogues import dialogue_of
from fastslm.datamodules.spoken.tasks import TASKS, build_tasks, fields_for, german_words
from fastslm.datamodules.spoken_numbers import SpokenNumbers
from fastslm.errors import ConfigError
from fastslm.path.batch import Batch
from fastslm.path.prompt import Prompter

WORDS = ["forty two", "seven", "ninety nine"]
FIELDS = {
    "task": "asr",
    "language": "en",
    "text": " ".join(WORDS),
    "segments": [{"start": float(i), "end": i + 0.5, "text": word} for i, word in enumerate(WORDS)],
}
ANSWERS = {
    "Which number comes first?": "forty two",
    "Which number comes last?": "ninety nine",
    "Which number is the largest?": "ninety nine",
    "Which number is the smallest?": "seven",
    "How many numbers are there?": "three",
    "Which number comes after forty two?": "seven",
    "Which number comes after seven?": "ninety nine",
}


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "null"), (1, "eins"), (16, "sechzehn"), (17, "siebzehn"), (21, "einundzwanzig"), (30, "dreißig"),
     (42, "zweiundvierzig"), (67, "siebenundsechzig"), (99, "neunundneunzig")],
)  # fmt: skip
def test_numbers_in_german(value, words):
    assert german_words(value) == words


def test_a_translation_and_a_summary_by_hand():
    translated = fields_for("ast", "a", FIELDS)
    assert (translated["target_language"], translated["translation"]) == (
        "German",
        "zweiundvierzig sieben neunundneunzig",
    )
    assert fields_for("ssum", "a", FIELDS)["summary"] == "three numbers from seven to ninety nine"


def test_every_kind_of_question_is_asked_and_answered_right():
    asked = [fields_for("sqqa", str(i), FIELDS) for i in range(200)]
    assert {fields["question"]: fields["answer"] for fields in asked} == ANSWERS


@pytest.mark.parametrize("task", TASKS)
def test_a_task_becomes_a_dialogue_with_its_task_and_language(task, demo_tokenizer):
    fields = json.loads(json.dumps(fields_for(task, "a", FIELDS)))
    dialogue = dialogue_of(fields, Prompter(demo_tokenizer), 1)
    assert dialogue.task == task
    assert dialogue.language == ("German" if task == "ast" else "en")
    prompt = demo_tokenizer.decode(dialogue.input_ids[: dialogue.num_prompt_ids])
    asked = {
        "asr": "Transcribe",
        "ast": "into German",
        "ssum": "Summarize",
        "sqqa": "number",
        "dialogue": "What is said?",
    }
    assert asked[task] in prompt
    answers = {
        "asr": FIELDS["text"],
        "ast": "sieben",
        "ssum": "three numbers",
        "sqqa": fields.get("answer"),
        "dialogue": "",
    }
    assert answers[task] in dialogue.reference


def corpus_of(folder, write_shard, flac, num=7):
    for split in ("train", "dev"):
        samples = [(f"{split}-{i:03d}", {"flac": flac(0.5, seed=i), "json": FIELDS}) for i in range(num)]
        write_shard(folder / f"{split}-000000.tar", samples[:4])
        write_shard(folder / f"{split}-000001.tar", samples[4:])
    return folder


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_each_recording_takes_part_in_one_task(tmp_path, write_shard, flac):
    corpus = corpus_of(tmp_path / "corpus", write_shard, flac)
    folder = build_tasks(corpus, ["asr", "sqqa"])
    asr, questions = members(folder / "train-asr.tar"), members(folder / "train-sqqa.tar")
    assert sorted(name for name in asr if name.endswith(".flac")) == [f"train-{i:03d}.flac" for i in (0, 2, 4, 6)]
    assert sorted(name for name in questions if name.endswith(".flac")) == [f"train-{i:03d}.flac" for i in (1, 3, 5)]
    assert asr["train-004.flac"] == flac(0.5, seed=4)
    assert json.loads(questions["train-003.json"])["task"] == "sqqa"
    assert build_tasks(corpus, ["asr", "sqqa"]) == folder
    assert not list(tmp_path.glob(".*.partial"))


def test_a_build_that_fails_leaves_nothing_under_the_final_name(tmp_path, write_shard, flac):
    corpus = corpus_of(tmp_path / "corpus", write_shard, flac)
    shard = corpus / "dev-000001.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(tarfile.ReadError):
        build_tasks(corpus, ["asr"])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["corpus"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"ars": 1.0}, "unknown task 'ars'.*asr"),
        ({}, "none are given"),
        (dict.fromkeys(TASKS, 1.0), "3 recordings cannot"),
    ],
)
def test_tasks_that_cannot_be_are_refused(tasks, message):
    with pytest.raises(ConfigError, match=message):
        SpokenNumbers(tasks=tasks, dev_recordings=3)


def test_the_language_of_a_sample_reaches_the_batch(demo_tokenizer):
    dialogue = dialogue_of({"task": "ast", "translation": "x"}, Prompter(demo_tokenizer), 1)
    assert dialogue.language == "English"  # what the prompt asks for when the sample does not say
    assert Batch.of([]).dialogues == []
