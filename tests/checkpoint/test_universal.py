"""DeepSpeed's state for another number of processes: made once, and never read where it is not what was written."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from fastslm.checkpoint import universal
from fastslm.checkpoint.universal import make_universal

MOMENT = "checkpoint/zero/path.weight/exp_avg.pt"


@pytest.fixture
def conversions(monkeypatch):
    """Stand in for DeepSpeed's converter; returns the folders that it was asked for."""
    asked = []

    def convert(command, **named):
        folder = universal.Path(command[command.index("--output_folder") + 1])
        (folder / "zero" / "path.weight").mkdir(parents=True)
        for name in ("fp32", "exp_avg"):
            torch.save({"param": torch.ones(100)}, folder / "zero" / "path.weight" / f"{name}.pt")
        asked.append(folder)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(universal.subprocess, "run", convert)
    return asked


def flip(folder):
    content = bytearray((folder / MOMENT).read_bytes())
    content[len(content) // 2] ^= 64
    (folder / MOMENT).write_bytes(content)


DAMAGES = {
    "a bit": flip,
    "no content": lambda folder: (folder / MOMENT).write_bytes(b""),
    "no folder": lambda folder: shutil.rmtree((folder / MOMENT).parent),
    "no list of files": lambda folder: (folder / "files.json").unlink(),
    "half a list": lambda folder: (folder / "files.json").write_text('{"latest": '),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_universal_state_that_is_damaged_is_made_anew_and_said_to_be(damage, conversions, tmp_path, capsys):
    state, out = tmp_path / "trainer.ckpt", tmp_path / "universal.ckpt"
    make_universal(state, out)
    sound = (out / MOMENT).read_bytes()
    DAMAGES[damage](out)
    make_universal(state, out)
    assert len(conversions) == 2
    assert (out / MOMENT).read_bytes() == sound
    assert capsys.readouterr().err == f"fastslm: {out} is damaged or not complete, and is made anew from {state}.\n"


def test_a_universal_state_that_is_whole_is_used_again(conversions, tmp_path, capsys):
    for _ in range(2):
        make_universal(tmp_path / "trainer.ckpt", tmp_path / "universal.ckpt")
    assert len(conversions) == 1
    assert not capsys.readouterr().err
