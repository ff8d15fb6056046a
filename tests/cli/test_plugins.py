"""Compressors of other distributions, as their users meet them: wheels in an environment without the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from fastslm.testing import AbstractorContract

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "plugin"
pytestmark = pytest.mark.slow


def checked(command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=500, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Return wheels of fastslm and of both plug-ins by name, built from copies: a build leaves things behind."""
    work = tmp_path_factory.mktemp("wheels")
    left_out = shutil.ignore_patterns(
        ".*", "*.egg-info", "__pycache__", "build", "dist", "runs", "tests", "pretraining"
    )
    shutil.copytree(ROOT, work / "fastslm", ignore=left_out)
    for name in ("max_pool", "torn"):
        shutil.copytree(PLUGINS / name, work / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", work / "dist"]
    checked([*pip, *(work / name for name in ("fastslm", "max_pool", "torn"))])
    return {path.name.split("-")[0]: path for path in (work / "dist").glob("*.whl")}


@pytest.fixture(scope="module")
def environment(wheels, tmp_path_factory):
    """Return a runner in a fresh environment with the wheels of fastslm and of the good plug-in."""
    folder = tmp_path_factory.mktemp("environment")
    checked([sys.executable, "-m", "venv", "--without-pip", folder])
    python = folder / "bin" / "python"

    def install(name):
        checked([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheels[name]])

    for name in ("fastslm", "fastslm_max_pool"):
        install(name)
    # torch and the rest come from the environment of this test. Only now: pip must not meet what is installed there.
    own = Path(sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder}))
    (own / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*words, check=True, folder=folder):
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
        options = {"cwd": folder, "env": variables}
        words = [python, *words]
        if check:
            return checked(words, **options)
        return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=500, **options)

    run.install = install
    return run


def test_it_is_listed_with_its_distribution_and_the_wheel_is_what_runs(environment):
    shown = environment("-m", "fastslm", "plugins").stdout
    line = next(line for line in shown.splitlines() if line.split()[:1] == ["MaxPool"])
    assert "fastslm-max-pool 1.2" in line
    assert "fastslm_max_pool.max_pool:MaxPool" in line
    where = environment(
        "-c", "import fastslm.modules, fastslm; print(fastslm.__file__, fastslm.modules.__file__)"
    ).stdout
    assert str(ROOT) not in where


def test_it_passes_the_shipped_contract(environment, tmp_path):
    shutil.copy(PLUGINS / "max_pool" / "contract.py", tmp_path)
    done = environment("-m", "pytest", "-q", "-p", "no:cacheprovider", "contract.py", folder=tmp_path)
    tests = [name for name in dir(AbstractorContract) if name.startswith("test_")]
    assert f"{2 * len(tests)} passed" in done.stdout  # of both compressors


def test_it_trains_by_its_short_name_and_its_checkpoint_loads(environment, run_config, tmp_path):
    flags = ("--config", run_config, "--model.abstractor", "MaxPool", "--model.abstractor.gain", "2")
    environment("-m", "fastslm", "fit", *flags, "--trainer.max_steps", "4", "--trainer.val_check_interval", "2")
    assert "gain: 2.0" in (tmp_path / "run" / "config.yaml").read_text()
    environment("-m", "fastslm", "fit", *flags, "--trainer.max_steps", "6", "--ckpt_path", "last")
    assert "WER" in environment("-m", "fastslm", "validate", *flags).stdout
    by_path = [word if word != "MaxPool" else "fastslm_max_pool.MaxPool" for word in flags]
    assert "WER" in environment("-m", "fastslm", "validate", *by_path).stdout


def test_plugins_that_fail_are_named_with_their_distribution_and_break_nothing(environment, run_config):
    environment.install("fastslm_torn")
    listed = environment("-m", "fastslm", "plugins", check=False)
    assert listed.returncode == 1
    lines = {line.split()[0]: line for line in listed.stdout.splitlines() if line.startswith("  ")}
    for name, reason in {
        "Torn": "ModuleNotFoundError: No module named 'a_library_that_nobody_has'",
        "Exits": "SystemExit: usage: exits FILE",
        "Absent": "AttributeError",
        "NoAbstractor": "it is no subclass of fastslm.contracts.Abstractor",
    }.items():
        assert "fastslm-torn 0.3" in lines[name]
        assert reason in lines[name]
    assert "cannot be used" not in lines["MaxPool"] + lines["HTA"]

    steps = ("--trainer.max_steps", "1", "--trainer.val_check_interval", "1")
    fit = ("-m", "fastslm", "fit", "--config", run_config, *steps, "--model.abstractor")
    trained = environment(*fit, "MaxPool")
    assert "fastslm-torn 0.3" in trained.stderr
    chosen = environment(*fit, "Torn", check=False)
    assert chosen.returncode == 2
    assert "Torn of fastslm-torn 0.3 cannot be used: ModuleNotFoundError" in chosen.stderr.splitlines()[-1]
