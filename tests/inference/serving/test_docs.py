"""The examples of docs/serving.md, as they stand there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
SECTION = PAGE[PAGE.index("## A server of one's own") : PAGE.index("## The LLM alone")]


@pytest.mark.slow
def test_the_examples_of_the_page_run_and_give_the_text_of_the_model(
    serve, run_folder, model, tmp_path, noise, write_audio
):
    talk = write_audio(tmp_path / "talk.mp3", noise(5, seed=3))
    (shell,) = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    with serve(run_folder, "--name", "hta", key="") as server:

        def run(command):
            words = [word.replace("http://127.0.0.1:8000", server.url) for word in command]
            return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=90).stdout

        asked = [run([*shlex.split(line), "--fail-with-body", "-sS"]) for line in shell.splitlines()]
        (tmp_path / "example.py").write_text(python.replace("http://127.0.0.1:8000", server.url))
        printed = run([sys.executable, "example.py"])
    text = model.transcribe(talk).text
    assert json.loads(asked[0])["text"] == text
    assert "1\n00:00:00,000 --> 00:00:02,000" in asked[1]
    assert '"type": "transcript.text.done"' in asked[2]
    assert len(asked) == 4
    assert printed.startswith(text)
    assert len(printed) > len(text) + 5


def test_every_option_of_the_command_is_on_the_page():
    from fastslm.commands.serve import _parser

    options = {name for action in _parser()._actions for name in action.option_strings if name.startswith("--")}
    assert not [name for name in options - {"--help", "--device"} if name not in SECTION]
