"""Whatever is given to a command: no traceback, no hang, and a message that names what was wrong.

Commands, options and what an option takes are found in the parsers, so that new ones are tried, too.
"""

import argparse
import contextlib
import inspect
import io
import os
import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import jsonargparse
import pytest
import soundfile
import yaml
from forked import Forks
from odd_values import ADDRESSES, NUMBERS, TEXTS, make_paths
from tiny_run import settings_of, write_run

from fastslm.cli import _COMMANDS, main
from fastslm.plugins import discover

ZOO = "zoo"
CASES = int(os.environ.get("FASTSLM_FUZZ_CASES", "4"))
SEED = int(os.environ.get("FASTSLM_FUZZ_SEED", "0"))
TRAINING = ("fit", "validate", "test", "predict")
#: Arguments with which a command works, so that one of them at a time can be odd.
WORKING = {
    "transcribe": ["zoo/audio.wav", "--model", "zoo/run", "--max-new-tokens", "2"],
    "ask": ["zoo/audio.wav", "Who?", "--model", "zoo/run", "--max-new-tokens", "2"],
    "attention": ["zoo/audio.wav", "--ckpt", "zoo/run"],
    "export": ["zoo/run", "out"],
    "push": ["zoo/exported", "me/x"],
    "import-release": ["zoo/weights.pt", "out", "--llm", "zoo/llm", "--encoder", "zoo/encoder"],
    "checkpoint inspect": ["zoo/run"],
    "checkpoint convert": ["zoo/run", "out"],
    "shards build": ["zoo/rows.csv", "--out", "out", "--workers", "1"],
    "shards index": ["zoo/train-000000.tar", "--workers", "1"],
    "shards check": ["zoo/train-000000.tar", "--workers", "1"],
    "shards stats": ["zoo/train-000000.tar", "--workers", "1"],
    "shards reshard": ["zoo/train-000000.tar", "--out", "out", "--workers", "1"],
    "evaluate": ["zoo/run", "zoo/train-000000.tar", "--max-new-tokens", "2", "--out", "out"],
    "ablate": ["--config", "zoo/run.yaml", "--variant", "A", "--model.abstractor=AvgPool", "--out", "out", "--list"],
    "doctor": ["--config", "zoo/run.yaml", "--steps", "1", "--recordings", "1"],
    "plugins": [],
    "serve": ["zoo/audio.wav"],  # no model, or it would serve
    **{name: ["--config", "zoo/run.yaml"] for name in ("plan", "fit", "predict")},
    **{
        name: ["--config", "zoo/run.yaml", "--ckpt_path", "zoo/run/checkpoints/last.ckpt"]
        for name in ("validate", "test")
    },
}


class _Found(BaseException):
    def __init__(self, parser):
        self.parser = parser


def parsers_of(command):
    """Return the parser of a command, or of each of its subcommands, by name; None for one that has none."""

    def stop(parser, *_, **__):
        raise _Found(parser)

    parser = None
    with pytest.MonkeyPatch.context() as patch:
        for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            patch.setattr(kind, "parse_args", stop)
            patch.setattr(kind, "parse_known_args", stop)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                main([command, "--config", "configs/hta.yaml"])
            except _Found as stopped:
                parser = stopped.parser
    for action in parser._actions if parser and command not in TRAINING else ():
        if isinstance(action, argparse._SubParsersAction):
            return {f"{command} {name}": below for name, below in action.choices.items()}
    return {command: parser}


def options_of(command, parser):
    """Return the options of a command as (flag, whether it is a number, how many values it takes)."""
    if parser is None:
        return []
    if command in TRAINING:
        parser = parser._subparsers._group_actions[0].choices[command]
    found = []
    for action in parser._actions:
        if action.option_strings and not isinstance(action, argparse._HelpAction):
            many = 2 if action.nargs == 2 else 0 if action.nargs == 0 and command not in TRAINING else 1
            found.append((action.option_strings[-1], action.type in (int, float), many))
    if command in (*TRAINING, "plan", "doctor", "ablate"):
        for plugin in discover():
            place = {"encoders": "model.encoder", "llms": "model.llm", "abstractors": "model.abstractor",
                     "datamodules": "data"}.get(plugin.kind)  # fmt: skip
            if place and isinstance(plugin.loaded, type):
                found += [(f"--{place}.{name}", False, 1) for name in inspect.signature(plugin.loaded).parameters]
        found = list(dict.fromkeys(found))
    return found


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, tiny_encoder, tiny_llm, make_shards, flac):
    """Return a folder with good and odd files in ``zoo``, the paths to try from there on, and the forks."""
    base = Path(tempfile.mkdtemp(prefix="fuzz-", dir=tmp_path_factory.getbasetemp()))
    folder = base / ZOO
    folder.mkdir()
    shutil.copytree(tiny_encoder, folder / "encoder")
    shutil.copytree(tiny_llm, folder / "llm")
    (folder / "audio.flac").write_bytes(flac(1.2))
    soundfile.write(folder / "audio.wav", *soundfile.read(folder / "audio.flac"))
    make_shards(folder, 3)
    make_shards(folder, 2, name="val")
    (folder / "rows.csv").write_text("id,audio,text\na,audio.wav,one\nb,audio.flac,two\n")
    before = Path.cwd()
    try:
        os.chdir(base)
        settings = settings_of(f"{ZOO}/encoder", f"{ZOO}/llm")
        write_run(folder / "run", settings)
        (folder / "run.yaml").write_text(yaml.safe_dump(config_of_a_fit(settings)))
        assert main(["export", f"{ZOO}/run", f"{ZOO}/exported"]) == 0
        paths = make_paths(folder)
    finally:
        os.chdir(before)
    yield base, paths, Forks(base)
    shutil.rmtree(base, ignore_errors=True)


def config_of_a_fit(settings):
    """Return a configuration of one step on the zoo's shards."""
    names = ("encoder", "abstractor", "llm", "window_seconds", "tokens_per_window")
    shards = {f"{split}_shards": f"{ZOO}/val-*.tar" for split in ("val", "test", "predict")}
    data = {"train_shards": f"{ZOO}/train-*.tar", **shards, "batch_samples": 2, "num_workers": 0, "cache_dir": "cache"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return {
        "run_folder": "fitted",
        "model": {**{name: settings[name] for name in names}, "max_new_tokens": 2, "frame_cache": False},
        "data": {"class_path": "WebDatasetModule", "init_args": data},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 1, "log_every_n_steps": 1, **quiet},
    }


def cases_of(command, options, paths, generator):
    """Yield argument lists for ever, each with the values in it that are odd."""
    words = command.split()
    working = WORKING.get(command, [f"{ZOO}/audio.wav"])
    places = [i for i, word in enumerate(working) if not word.startswith("--")]
    while True:
        given, odd = list(working), []
        for _ in range(generator.choice((1, 1, 1, 2, 3))):
            if options and (not places or generator.random() < 0.7):
                flag, number, many = generator.choice(options)
                kinds = (NUMBERS, NUMBERS, TEXTS) if number else (paths, paths, TEXTS, NUMBERS, ADDRESSES)
                values = [generator.choice(generator.choice(kinds)) for _ in range(many)]
                given += [flag, *values] if many != 1 or generator.random() < 0.5 else [f"{flag}={values[0]}"]
                odd += [(flag, value) for value in values] or [(flag, "")]
            elif places:
                place = generator.choice(places)
                given[place] = generator.choice(generator.choice((paths, paths, paths, TEXTS, ADDRESSES)))
                odd.append((working[place - 1] if place and working[place - 1].startswith("--") else "", given[place]))
        if generator.random() < 0.03 and given:
            del given[generator.randrange(len(given))]
            odd.append(("", ""))
        yield [*words, *given], odd


def complaint(ended, odd, usual):
    """Return what is wrong with how a command ended; nothing where all is well, or as usual without a network."""
    if ended.status is None:
        return "it did not end"
    for bad in (
        "Traceback (most recent call last)",
        "Segmentation fault",
        "core dumped",
        "AssertionError",
        "Fatal Python",
    ):
        if bad in ended.told:
            return bad
    if ended.status < 0 or ended.status not in (0, 1, 2, 130, 141):
        return f"its status is {ended.status}"
    if ended.status == 2 and ended.err != usual.err:
        said = [line for line in ended.err.splitlines() if re.search(r"^(fastslm[^:]*: (error: )?|usage: )", line)]
        if not said:
            return "nothing says why it ended"
        if len(max(said, key=len)) > 6000 + max((len(value) for _, value in odd), default=0):
            return "the message is too long"
        if not any(named(flag, value, ended.err) for flag, value in odd):
            return f"nothing names any of {odd}"
    return ""


def named(flag, value, text):
    """Say whether a message names a flag or its value, as it is or as Python or YAML spell it."""
    value = value.split("?")[0].replace("user:pass", "***")  # secrets are left out
    spelt = (
        value,
        # A set with its name, name=path; the name of a class, which ends where a space is.
        f"{value.partition('=')[2]}: there is no such file" if not flag and "=" in value else "",
        value.split()[0] if flag.endswith(".help") and value.strip() else "",
        repr(value)[1:-1],
        value.encode("ascii", "backslashreplace").decode(),
        os.path.normpath(value),
        value[:40],
        os.path.basename(value) if len(value) > 200 else "",
    )
    name = flag.lstrip("-")
    words = [name, name.replace("-", "_"), name.rpartition(".")[2], name.rpartition(".")[0], *spelt]
    return any(word and word in text for word in words) or not (flag or value.strip()) or value.startswith("-")


#: What is there and no file, or cannot be there.
NO_FILES = ("fifo", "fifo.tar", "socket", "a\0b", "n" * 300, "piped-run", "piped-llm")
#: Options that take paths and that a command works without.
PATH_OPTIONS = {
    "transcribe": ("--output",), "attention": ("--out",), "evaluate": ("--beside",), "shards stats": ("--plot",),
    "shards build": ("--audio-root", "--tokenizer"), "shards index": ("--tokenizer",),
    "doctor": ("--llm",), "import-release": ("--source",),
    "fit": (
        "--run_folder", "--init_from", "--ckpt_path", "--data.train_shards", "--data.cache_dir",
        "--model.llm.pretrained", "--model.encoder.pretrained",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", WORKING)
def test_what_is_no_file_is_waited_for_nowhere(command, zoo):
    base, _, forks = zoo
    known = {flag for flag, _, _ in options_of(command, parsers_of(command.split()[0])[command])}
    working = WORKING[command]
    places = [i for i, word in enumerate(working) if word.startswith(ZOO) or working[i - 1] == "--out" or word == "out"]
    given = [(place, None) for place in places]
    given += [(None, flag) for flag in PATH_OPTIONS.get(command, ()) if flag in known]
    wrong, folder = [], base / "no-files"

    def run(words):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        subprocess.run(["cp", "-a", base / ZOO, folder], check=True)
        return forks.run([*command.split(), *words], folder, 90)

    usual = run(working)
    for place, flag in given:
        for name in NO_FILES:
            path = f"{ZOO}/{name}"
            words = [*working, flag, path] if place is None else [*working[:place], path, *working[place + 1 :]]
            ended = run(words)
            if why := complaint(ended, [(flag or "", path)], usual):
                wrong.append(f"{why}: fastslm {command} {' '.join(map(repr, words))[:500]}\n{ended.told[-900:]}")
    assert not wrong, f"{len(wrong)}:\n" + "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("command", _COMMANDS)
def test_odd_arguments_are_answered(command, zoo):
    for name, parser in parsers_of(command).items():
        check(name, parser, zoo)


def check(command, parser, zoo):
    base, paths, forks = zoo
    generator = random.Random(f"{command} {SEED}")
    options = options_of(command, parser)
    wrong, limit = [], 300 if command == "plan" else 120
    folder = base / "usual"
    folder.mkdir()
    subprocess.run(["cp", "-a", base / ZOO, folder], check=True)
    usual = forks.run([*command.split(), *WORKING.get(command, [])], folder, limit)
    shutil.rmtree(folder, ignore_errors=True)
    for i, (arguments, odd) in zip(range(CASES), cases_of(command, options, paths, generator), strict=False):
        folder = base / f"case-{i}"
        folder.mkdir()
        subprocess.run(["cp", "-a", base / ZOO, folder], check=True)
        ended = forks.run(arguments, folder, limit)
        if why := complaint(ended, odd, usual):
            wrong.append(f"{why}: fastslm {' '.join(map(repr, arguments))[:900]}\n{ended.told[-2500:]}")
        shutil.rmtree(folder, ignore_errors=True)
    assert not wrong, f"{len(wrong)} of {CASES}:\n" + "\n\n".join(wrong)
