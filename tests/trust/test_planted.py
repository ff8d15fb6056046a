"""Whatever lies in a folder of somebody else, no command and no call runs it."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
import torch

import fastslm
from fastslm.cli import main
from fastslm.errors import FastSLMError


class Payload:
    """Leaves a mark when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def pickled(file, mark):
    file.write_bytes(pickle.dumps(Payload(mark), protocol=2))


def saved_by_torch(file, mark):
    torch.save({"state_dict": Payload(mark), "fastslm_config": Payload(mark)}, file)


def array_of_objects(file, mark):
    np.save(file.with_suffix(".npy"), np.array([Payload(mark)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("header.json", "keys.npy", "shapes.npy"):
            archive.write(file.with_suffix(".npy"), name)
    file.with_suffix(".npy").unlink()


def python_objects_in_yaml(file, mark):
    file.write_text(f"a: !!python/object/apply:builtins.open ['{mark}', w]\nb: ${{oc.create:1}}\n")


def module(file, mark):
    file.write_text(f"open({str(mark)!r}, 'w')\nclass Part: pass\n")


PLANTS = [pickled, saved_by_torch, array_of_objects, python_objects_in_yaml, module]


def certify(folder):
    """Let the manifests of checkpoints say what lies there now, as a stranger would."""
    for manifest in folder.rglob("checkpoint.json"):
        try:
            values = json.loads(manifest.read_text())
        except ValueError:
            continue
        for name in values["files"]:
            data = (manifest.parent / name).read_bytes()
            values["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        values.pop("sha256", None)
        manifest.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    path = tmp_path_factory.mktemp("talk") / "a.wav"
    soundfile.write(path, np.random.default_rng(0).standard_normal(16_000) * 0.1, 16_000)
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Return a run of one step and what is exported of it."""
    folder = tmp_path_factory.mktemp("given")
    steps = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", f"--run_folder={folder / 'run'}"]
    demo = ["--config=configs/hta.yaml", "--config=configs/preset/demo.yaml"]
    subprocess.run([sys.executable, "-m", "fastslm", "fit", *demo, *steps], check=True, capture_output=True)
    assert main(["export", str(folder / "run"), str(folder / "exported")]) == 0
    return folder


def commands(model, talk, out):
    """Return every command that reads a model."""
    demo = ["--config=configs/hta.yaml", "--config=configs/preset/demo.yaml", "--trainer.max_steps=1"]
    yield ["transcribe", talk, "--model", model, "--max-new-tokens", "2"]
    yield ["ask", talk, "Who?", "--model", model, "--max-new-tokens", "2"]
    yield ["attention", talk, "--ckpt", model, "--out", out / "a.png"]
    yield ["export", model, out / "exported"]
    yield ["checkpoint", "inspect", model, "--tensors"]
    yield ["checkpoint", "convert", model, out / "converted"]
    yield ["checkpoint", "convert", model, out / "universal", "--to", "universal"]
    yield ["import-release", model, out / "release"]
    yield ["plan", *demo[:2], f"--config={model / 'config.yaml'}"]
    yield ["fit", *demo, f"--init_from={model}", f"--run_folder={out / 'new'}", "--trainer.limit_val_batches=0"]
    yield ["fit", *demo, f"--ckpt_path={model}", f"--run_folder={out / 'more'}", "--trainer.limit_val_batches=0"]
    yield ["validate", *demo[:2], f"--ckpt_path={model}", "--trainer.limit_val_batches=1"]
    yield ["fit", f"--config={model / 'config.yaml'}", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]


def run(arguments):
    """Run a command in this process; whatever it says, it comes to an end."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize("which", ["run", "exported"])
def test_nothing_that_is_planted_in_a_model_runs_in_any_command(given, which, turn, talk, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    mark = tmp_path / "code-ran"
    files = [file for file in (given / which).rglob("*") if file.is_file() and not file.is_symlink()]
    small = [file for file in files if file.name != "metrics.csv" and "tensorboard" not in str(file)]
    for number, file in enumerate(small):
        model = tmp_path / f"{number}"
        shutil.copytree(given / which, model, symlinks=True)
        PLANTS[(number + turn) % len(PLANTS)](model / file.relative_to(given / which), mark)
        certify(model)
        for name in ("strange.py", "yaml.py", "sitecustomize.py"):
            module(model / name, mark)
        monkeypatch.chdir(model)
        monkeypatch.syspath_prepend("")
        out = tmp_path / f"out-{number}"
        out.mkdir()
        known = list(commands(model, talk, out))
        arguments = known[(number + 5 * turn) % len(known)]  # all of them in turn
        run(arguments)
        assert not mark.exists(), (file, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS)
def test_nothing_that_is_planted_beside_shards_runs(plant, make_shards, tmp_path, monkeypatch):
    mark = tmp_path / "code-ran"
    folder = make_shards(tmp_path / "shards", 3)
    shard = sorted((tmp_path / "shards").rglob("*.tar"))[0]
    assert folder
    assert main(["shards", "index", str(shard)]) == 0
    for file in sorted(shard.parent.iterdir()):
        kept = file.read_bytes()
        plant(file, mark)
        for command in (["check"], ["stats"], ["index", "--force"], ["index"]):
            run(["shards", command[0], str(shard), *command[1:]])
            assert not mark.exists(), (file, command)
        run(["fit", "--data=WebDatasetModule", f"--data.train_shards={shard}", f"--run_folder={tmp_path / 'run'}",
             "--trainer.max_steps=1", "--trainer.limit_val_batches=0"])  # fmt: skip
        assert not mark.exists(), file
        file.write_bytes(kept)


def test_a_pickle_in_place_of_any_weights_is_one_error(tmp_path):
    mark = tmp_path / "code-ran"
    for number, plant in enumerate((pickled, saved_by_torch)):
        for name in ("last.ckpt", "best.ckpt", "weights.pt", "model.safetensors", "model.bin", "model.gguf"):
            folder = tmp_path / f"{number}" / "checkpoints"
            folder.mkdir(parents=True, exist_ok=True)
            plant(folder / name, mark)
            with pytest.raises(FastSLMError):
                fastslm.load(folder / name)
    assert not mark.exists()
