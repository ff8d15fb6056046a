"""Pages that say how to add a part, followed to the letter: files as they stand there, installed, tested, trained."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

PAGES = Path(__file__).parents[2] / "docs" / "add"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.md")))
def test_a_part_made_by_the_page_passes_its_contract_is_listed_trains_and_is_exported(page, tmp_path, run_config):
    text = (PAGES / f"{page}.md").read_text()
    files = re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', text, re.DOTALL)
    assert len(files) == 3
    package = tmp_path / "package"
    package.mkdir()
    for name, content in files:
        (package / name).write_text(content)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation"]
    checked([*pip, "--target", site, package])
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    tests = next(name for name, _ in files if name.startswith("test_"))
    checked([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", package / tests], environment)
    listed = checked([sys.executable, "-m", "fastslm", "plugins"], environment)
    name = re.search(r"^\[project\.entry-points.*\]\n(\w+) =", files[2][1], re.MULTILINE)[1]
    assert re.search(rf"^  {name} +my-\w+ 0\.1", listed, re.MULTILINE)
    (command,) = re.findall(r"^fastslm (fit (?:.*\\\n)*.*)$", text, re.MULTILINE)
    words = shlex.split(command.replace("\\\n", ""))
    checked([sys.executable, "-m", "fastslm", *words, "--print_config"], environment)
    words = without_parts_of_the_hub(words)
    words[words.index("configs/hta.yaml")] = str(run_config)  # the page's own starts the demo, minutes long
    words = [str(recordings(tmp_path / word)) if word == "recordings" else word for word in words]
    steps = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    assert "WER" in checked([sys.executable, "-m", "fastslm", *words, *steps], environment)
    assert "Longest:" in checked([sys.executable, "-m", "fastslm", "plan", *words[1:]], environment)
    exported = tmp_path / "exported"
    checked([sys.executable, "-m", "fastslm", "export", run_config.parent / "run", exported], environment)
    load = "import sys, transformers; transformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)"
    checked([sys.executable, "-c", load, exported])  # without the package


@pytest.mark.slow
def test_what_the_page_on_training_from_python_trains_is_loaded_transcribes_and_is_exported(
    tmp_path, run_config, make_shards
):
    text = (PAGES.parent / "api" / "train.md").read_text()
    (script,) = re.findall(r'```python title="train\.py"\n(.*?)```', text, re.DOTALL)
    (tmp_path / "train.py").write_text(script.replace("max_steps=1000", "max_steps=2"))
    (command,) = re.findall(r"^fastslm (fit .*) > run\.yaml$", text, re.MULTILINE)
    words = [str(run_config) if word == "configs/hta.yaml" else word for word in shlex.split(command)]
    done = subprocess.run([sys.executable, "-m", "fastslm", *words], capture_output=True, text=True, check=True)
    (tmp_path / "run.yaml").write_text(done.stdout)
    for split in ("train", "dev"):
        make_shards(tmp_path / "shards", 6, seconds=[1.0, 3.0], name=split)
    checked([sys.executable, "train.py"], folder=tmp_path)
    recording = recordings(tmp_path / "recordings") / "val" / "0.wav"
    checked([sys.executable, "-m", "fastslm", "transcribe", recording, "--model", tmp_path / "runs" / "mine"])
    checked([sys.executable, "-m", "fastslm", "export", tmp_path / "runs" / "mine", tmp_path / "exported"])


def without_parts_of_the_hub(words):
    """Return a page's words without the LLM and the shards that a reader has; the test's configuration has others."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    theirs = [i for i, (_, value) in enumerate(pairs) if re.match(r"configs/llm|WebDatasetModule$|shards/", value)]
    return [word for i, word in enumerate(words) if i not in theirs and i - 1 not in theirs]


def recordings(folder):
    """Return a folder with recordings and transcripts for training and validation."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for i in range(4):
            noise = np.random.default_rng(i).standard_normal(16_000 * (1 + i)) * 2000
            soundfile.write(folder / split / f"{i}.wav", noise.astype(np.int16), 16_000)
            (folder / split / f"{i}.txt").write_text(f"number {i}")
    return folder


def checked(command, environment=None, folder=None):
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
