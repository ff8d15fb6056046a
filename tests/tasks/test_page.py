"""docs/tasks.md, followed from its first command to its last."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys

import pytest
import yaml

from fastslm.cli import main

pytestmark = pytest.mark.slow  # as the pages in docs/add are
EXPECTED = ["pip", "plugins", "pytest", "build", "stats", "fit", "validate", "transcribe", "export", "transcribe"]


@pytest.fixture(scope="module")
def installed(page, tmp_path_factory):
    """Return a folder that the page's package is installed in, by pip."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "fastslm_keywords.py"):
        (source / name).write_text(page.files[name])
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--target"]
    done = subprocess.run([*pip, target, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def outputs(page, installed, tmp_path_factory, tiny_encoder, tiny_llm, flac):
    """Return the folder that the commands were run in, and what each printed."""
    folder = tmp_path_factory.mktemp("followed")
    for name, seconds in (("one", 3.1), ("two", 2.0), ("three", 1.2)):
        (folder / f"{name}.flac").write_bytes(flac(seconds))
    for name, text in page.files.items():
        (folder / name).write_text(text)
    data = yaml.safe_load(page.files["data.yaml"])["data"]
    tiny = {
        "model": {
            "encoder": {"init_args": {"pretrained": str(tiny_encoder)}},
            "abstractor": {"init_args": {"head_width": 16}},
            "llm": {"init_args": {"pretrained": str(tiny_llm)}},
            "window_seconds": 2.0,
            "tokens_per_window": 4,
            "max_new_tokens": 4,
            "frame_cache": False,
        },
        "data": {**data, "init_args": {**data["init_args"], "num_workers": 0, "cache_dir": str(folder / "cache")}},
        "trainer": {"accelerator": "cpu", "max_steps": 2, "val_check_interval": 1, "log_every_n_steps": 1},
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(tiny))
    with contextlib.chdir(folder), page.on_path(installed):
        return folder, [_run(shlex.split(command), installed) for command in page.commands]


def _run(words, package):
    if words[0] == "pip":
        return ""  # the fixture has done it
    if words[0] == "pytest":
        environment = {**os.environ, "PYTHONPATH": str(package)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout
        return done.stdout
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(words[1:]) == 0, shlex.join(words)
    return printed.getvalue()


def test_every_command_is_run(page):
    assert [next(word for word in EXPECTED if f" {word} " in f" {line} ") for line in page.commands] == EXPECTED


def test_it_is_listed_with_its_distribution(outputs):
    line = next(line for line in outputs[1][1].splitlines() if line.split()[:1] == ["keywords"])
    assert line.split()[1:] == ["fastslm-keywords", "1.0", "fastslm_keywords:keywords"]


def test_it_passes_the_contract(outputs):
    assert "7 passed" in outputs[1][2]


def test_its_samples_are_built_and_counted_beside_others(outputs):
    assert outputs[1][3].startswith("3 samples")
    rows = {line.split()[0]: line.split()[2] for line in outputs[1][4].splitlines() if line.startswith(("asr", "key"))}
    assert rows == {"asr": "1", "keywords": "2"}


def test_it_trains_and_is_scored_beside_others_in_the_error_of_the_run(outputs):
    folder, found = outputs
    rows = (folder / "runs" / "keywords" / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    last = next(row for row in reversed(rows) if row.split(",")[columns.index("val/error")])
    values = dict(zip(columns, last.split(","), strict=True))
    wer, f1, error = (float(values[f"val/{name}"]) for name in ("wer", "keyword_f1", "error"))
    assert error == pytest.approx((wer + (1 - f1)) / 2)
    answers = (folder / "runs" / "keywords" / "predictions-val.jsonl").read_text().splitlines()
    assert sorted((row["task"], row["reference"]) for row in map(json.loads, answers)) == [
        ("asr", "one two three"), ("keywords", "nine"), ("keywords", "seven, forty two")
    ]  # fmt: skip
    for command in (5, 6):
        assert f"keyword_f1 {f1:.4f}" in found[command]


def test_the_exported_folder_asks_in_its_words_where_it_is_not_installed(outputs, monkeypatch, capsys):
    folder, found = outputs
    stored = json.loads((folder / "exported" / "processor_config.json").read_text())["tasks"]
    assert stored[-1]["prompt"] == "{audio}\nList the keywords of the audio clip."
    assert "Further tasks: keywords." in (folder / "exported" / "README.md").read_text()
    assert sorted(path.name for path in (folder / "exported").glob("*task*")) == ["tasks.py"]
    monkeypatch.chdir(folder)
    assert found[7] == found[9]
    options = ["--task", "keywords", "--format", "jsonl"]
    assert main(["transcribe", "one.flac", "--model", "exported", *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["task"], answer["prompt"]) == ("keywords", "List the keywords of the audio clip.")
    assert answer["text"] == found[9].strip()
    assert main(["transcribe", "one.flac", "--model", "runs/keywords", "--task", "keywords"]) == 2
    assert "unknown task 'keywords', installed: asr, ast, sqqa, ssum." in capsys.readouterr().err


def test_the_exported_processor_asks_in_its_words_without_fastslm(outputs):
    code = """
import sys, numpy
sys.modules["fastslm"] = None
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
def asked(**request):
    return processor.tokenizer.decode(processor(numpy.zeros(16000, numpy.float32), **request)["input_ids"][0])
print(asked(task="keywords"), asked(task="ast", language="Korean"), asked(task="keywords", text="Only one."))
try:
    asked(task="keyword")
except ValueError as error:
    print("REFUSED", error)
"""
    folder, _ = outputs
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(folder / "exported")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    said, clip = " ".join(done.stdout.split()), "<|audio_bos|><|AUDIO|><|audio_eos|>"
    for words in (f"user {clip} List the keywords", f"<|AST|>{clip} Translate the audio clip into Korean", "Only one."):
        assert words in said
    assert "REFUSED unknown task 'keyword': this model does not know it." in done.stdout
