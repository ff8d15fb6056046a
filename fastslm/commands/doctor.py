"""``fastslm doctor``: versions, devices, the state of the installation, and versions known to be bad."""

import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastslm.configuration.installed import KNOWN_BAD, installed
from fastslm.errors import FastSLMError
from fastslm.processes.children import num_usable_cores

_PACKAGES = [
    "torch",
    "lightning",
    "transformers",
    "peft",
    "torchmetrics",
    "webdataset",
    "omegaconf",
    "jsonargparse",
    "deepspeed",
    "accelerate",
    "soundfile",
    "soxr",
    "rapidfuzz",
    "espeakng-loader",
]
_USAGE = """\
usage: fastslm doctor
       fastslm doctor --llm FOLDER
       fastslm doctor --config CONFIG [--config CONFIG ...] [options of fit]

Prints versions, devices and the state of this installation. With --llm, also whether an LLM (a folder or hub name)
answers step by step as it reads in one pass. With --config, what fit would do is tried on ten of its own recordings, in
about a minute: prompt and labels as text, tokens a second, loss before training, whether one batch can be overfitted,
and whether answers end; 'fastslm doctor --config configs/hta.yaml --help' shows more."""
_OPTIONAL = {"espeakng-loader": "pip install 'fastslm[demo]' to synthesise the embedded corpus"}


def problems(versions: dict[str, str | None]) -> Iterator[str]:
    """Yield what is wrong with a set of installed versions.

    Args:
        versions: version by package, None where it is not installed.
    """
    for package, bad, why in KNOWN_BAD:
        if versions.get(package) == bad:
            yield f"{package} {bad} is {why}."
    for package in _PACKAGES:
        if versions.get(package) is None and package not in _OPTIONAL:
            if package in ("deepspeed", "accelerate") and platform.system() != "Linux":
                continue
            yield f"{package} is not installed: pip install -c constraints.txt fastslm."


def llm_problems(pretrained: str) -> list[str]:
    """Load an LLM on the CPU, print what it is, and return why it cannot be trained with, if it cannot."""
    from fastslm.path.stepwise import check_stepwise
    from fastslm.plugins import class_of

    try:
        llm = class_of("llms", "CausalLM")(pretrained)
        llm.load()
        print(f"  LLM              {pretrained}: embeddings of {llm.width}, {llm.context_length} positions")
        note = check_stepwise(llm)
    except FastSLMError as error:
        return [str(error)]
    return [] if note is None else [note]


def main(arguments: Sequence[str]) -> int:
    """Print the report; the exit status is 1 when something is wrong."""
    if any(argument.partition("=")[0] in ("--config", "-c") for argument in arguments):
        from fastslm.sanity.command import main as check_configuration

        return check_configuration(arguments[1:])
    if len(arguments) > 1 and not (len(arguments) == 3 and arguments[1] == "--llm"):
        if arguments[1] in ("-h", "--help"):
            print(_USAGE)
            return 0
        print(
            f"fastslm: error: {' '.join(arguments)}: options of fit need a --config, and --llm one folder. 'fastslm"
            " doctor --help' shows what there is.",
            file=sys.stderr,
        )
        return 2
    import fastslm

    print(f"fastslm {fastslm.__version__}, Python {platform.python_version()}, {platform.platform()}")
    spec = importlib.util.find_spec("fastslm.modules")
    rooms = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else "missing"
    print(f"  {sys.executable}\n  plug-ins from: {rooms}")
    names = dict.fromkeys([*_PACKAGES, *(package for package, _, _ in KNOWN_BAD)])
    versions = {package: installed(package) for package in names}
    for package in _PACKAGES:
        missing = f"not installed ({_OPTIONAL[package]})" if package in _OPTIONAL else "not installed"
        print(f"  {package:16} {versions[package] or missing}")
    _print_devices()
    found = list(problems(versions))
    if importlib.util.find_spec("fastslm.modules") is None:
        found.append("fastslm.modules cannot be found: install with pip install -e . (again, after a new folder).")
    if len(arguments) > 1:
        found += llm_problems(arguments[2])
    for problem in found:
        print(f"PROBLEM: {problem}")
    print("Everything is in order." if not found else f"{len(found)} problems.")
    return 1 if found else 0


def _print_devices() -> None:
    print(f"  CPU cores usable {num_usable_cores()}, free disk {shutil.disk_usage('.').free / 2**30:.0f} GiB here")
    if Path("/dev/shm").is_dir():
        print(f"  /dev/shm         {shutil.disk_usage('/dev/shm').total / 2**30:.1f} GiB")
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        print("  GPU              none visible to torch")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        print(f"  GPU {i}            {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
