"""Which of encoder, LLM and data the user named, and so whether the embedded demo takes their places."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastslm.configuration.find import shipped_configs
from fastslm.configuration.yaml_values import load_values
from fastslm.errors import ConfigError

#: What `configs/preset/demo.yaml` itself names: weights inside this package, and the embedded corpus.
_DEMO_WEIGHTS, _DEMO_DATA = "fastslm:demo/", "SpokenNumbers"
_WORDS = {"encoder": "encoder", "llm": "LLM"}
_EXAMPLES = {
    "encoder": "--config configs/encoder/whisper_small.yaml or --model.encoder.pretrained PATH",
    "llm": "--config configs/llm/qwen3_0.6b.yaml or --model.llm.pretrained PATH",
}


@dataclass
class NamedParts:
    """What configs and flags name.

    Attributes:
        encoder: weights or class of the encoder; None where nothing names one.
        llm: weights or class of the LLM, likewise.
        data: class of the data, or a key of its shards; None where nothing but the embedded corpus is named.
        data_class: whether a class of data is given.
        demo: whether the demo preset is among the configs.
    """

    encoder: str | None = None
    llm: str | None = None
    data: str | None = None
    data_class: bool = False
    demo: bool = False


@dataclass
class Preset:
    """What a command starts from besides ``base.yaml``.

    Attributes:
        configs: files, right behind ``base.yaml``.
        flags: right behind these.
        notice: one line for the user; empty where there is nothing to say.
    """

    configs: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    notice: str = ""


def demo_preset() -> Path:
    """Return the file of the embedded demo."""
    return shipped_configs() / "preset" / "demo.yaml"


def preset_for(named: NamedParts) -> Preset:
    """Return what a command starts from besides ``base.yaml``.

    Args:
        named: what the user named.

    Raises:
        ConfigError: an encoder without an LLM, an LLM without an encoder, or one of them together with the demo preset.
    """
    given = {part: name for part in _WORDS if (name := getattr(named, part)) is not None}
    own = {part: name for part, name in given.items() if not name.startswith(_DEMO_WEIGHTS)}
    if named.demo and own:
        part, name = next(iter(own.items()))
        raise ConfigError(
            f"--config configs/preset/demo.yaml: its token noise, CTC and learning rates are for the demo's own small"
            f" models, and model.{part} is {name}; leave this config out, then configs/base.yaml holds, which is made"
            " for pretrained models."
        )
    if named.demo or len(given) == 2:
        return Preset()
    for part, name in given.items():
        other = "llm" if part == "encoder" else "encoder"
        raise ConfigError(
            f"model.{other}: no {_WORDS[other]} is named for the {_WORDS[part]} {name}; add {_EXAMPLES[other]}."
        )
    preset = Preset([str(demo_preset())])
    if named.data is None:
        preset.notice = "No encoder, LLM or data named: taking the embedded demo (configs/preset/demo.yaml)."
    else:
        preset.flags = [] if named.data_class else ["--data=WebDatasetModule"]
        preset.notice = (
            f"No encoder or LLM named for {named.data}: taking those of the embedded demo (configs/preset/demo.yaml),"
            " which know spoken numbers only; for other speech name both, such as --config"
            " configs/encoder/whisper_small.yaml --config configs/llm/qwen3_0.6b.yaml."
        )
    return preset


def named_parts(arguments: Sequence[str]) -> NamedParts:
    """Return what a command's arguments name, by config file or flag; later ones win, as in the parser.

    Args:
        arguments: the subcommand and its options, every ``--config`` a file that exists.
    """
    found = NamedParts()
    for key, value in _given(arguments):
        if key != "config":
            _take(found, key, value)
        elif _is_demo(Path(value)):
            found.demo = True
        else:
            _take(found, "", _content(Path(value)))
    return found


def _given(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of configs and of flags for model and data, with their values."""
    for i, argument in enumerate(arguments):
        flag, equals, text = argument.partition("=")
        if not flag.startswith("-"):
            continue
        if not equals:
            text = next((value for value in arguments[i + 1 : i + 2] if not value.startswith("--")), "")
        key = "config" if flag == "-c" else flag.lstrip("-").removesuffix("+")
        if key == "config":
            yield key, text
        elif key.split(".")[0] in ("model", "data"):
            value = _parsed(text)
            is_file = isinstance(value, str) and value.endswith((".yaml", ".yml")) and Path(value).is_file()
            yield key, _content(Path(text)) if is_file else value


def _take(found: NamedParts, key: str, value: Any) -> None:
    """Note what a key and its value, which may hold more keys, name."""
    if isinstance(value, Mapping):
        # A class before the weights it is given, whatever order they stand in.
        for name in sorted(value, key=lambda name: name != "class_path"):
            _take(found, f"{key}.{name}".lstrip("."), value[name])
        return
    words = [word for word in key.split(".") if word != "init_args"]
    if value is None or len(words) > 3:
        return
    part, last = words[-2 if len(words) > 2 else -1], words[-1]
    if words[0] == "model" and part in _WORDS and last in (part, "class_path", "pretrained"):
        setattr(found, part, str(value))
    elif words[0] == "data" and last in ("data", "class_path"):
        found.data = None if str(value).rpartition(".")[2] == _DEMO_DATA else str(value).rpartition(".")[2]
        found.data_class = True
    elif words[0] == "data" and last.endswith("_shards"):
        found.data = found.data or key


def _is_demo(path: Path) -> bool:
    try:
        return path.read_bytes() == demo_preset().read_bytes()
    except OSError:
        return False


def _content(path: Path) -> Any:
    try:
        return load_values(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):  # the parser says what is wrong with it
        return None


def _parsed(text: str) -> Any:
    try:
        return load_values(text)
    except yaml.YAMLError:
        return text
