"""jsonargparse's messages, which are exact and long, as one sentence with the nearest name that exists."""

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from fastslm.configuration.renamed import RENAMED
from fastslm.errors import nearest
from fastslm.plugins import Plugin, no_such_part
from fastslm.trust import refusal

_LONGEST = 300
#: What PEFT calls the settings of ``LoRA``.
_OF_PEFT = {"target_modules": "targets", "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
#: Where settings stand that users of other trainers look for under these names.
_OF_OTHER_TRAINERS = {
    "lr": "model.optimizer.learning_rate",
    "learning_rate": "model.optimizer.learning_rate",
    "weight_decay": "model.optimizer.weight_decay",
    "warmup_steps": "model.optimizer.warmup_steps",
    "warmup_ratio": "model.optimizer.warmup_steps",
    "lora_r": "model.llm.lora.rank",
    "lora_rank": "model.llm.lora.rank",
    "lora": "model.llm.lora",
    "rank": "model.llm.lora.rank",
    "batch_size": "data.batch_samples",
    "train_batch_size": "data.batch_samples",
    "per_device_train_batch_size": "data.batch_samples",
    "micro_batch_size": "data.batch_samples",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_grad_norm": "trainer.gradient_clip_val",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "nodes": "trainer.num_nodes",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "seed": "seed_everything",
    "output_dir": "run_folder",
    "resume": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
}
#: What a value must be, by the parser's name of its type.
_KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'NoneType'>": "null",
    "<class 'collections.abc.Sequence'>": "a list",
    "<class 'tuple'>": "a list",
    "<class 'dict'>": "a mapping",
    "collections.abc.Sequence[int]": "a list of whole numbers",
    "collections.abc.Sequence[str]": "a list of names",
}


def shorten(message: str, options: Iterable[str], plugins: Sequence[Plugin]) -> str:
    """Return what is wrong, where, and the nearest name.

    Args:
        message: what the parser said.
        options: the names of all options.
        plugins: installed parts, whose constructor arguments are options of the key they stand at.
    """
    options = list(options)
    key = _key(message)
    for old, new in RENAMED.items():
        if re.search(rf"(?<![\w.]){re.escape(old)}(?![\w.])", message):
            return f"{old}: this key is now {new.replace('.init_args', '')}. Set it there."
    for module in re.findall(r"No module named '([\w.]+)'", message):
        if why := refusal(module):
            return f"{key}: {why}."
    if found := re.search(r"given class_path '([\w.]+)':\s+No module named '([\w.]+)'", message):
        where = "Install its package, or name the folder that it lies in by PYTHONPATH."
        return f"{key}: {found[1]} cannot be imported, since there is no module {found[2]!r}. {where}"
    if found := re.search(r"[Uu]nrecognized arguments?: --?([\w.+-]+)", message):
        name = found[1].split("=")[0]
        return f"unknown option --{name}.{_nearest(name, options)} 'fastslm COMMAND --help' lists all options."
    if found := re.search(r"(?:Group '([\w.]+)' )?does not accept option '([\w.]+)'", message):
        return _unknown(".".join(filter(None, found.groups())), options)
    if key == "model.optimizer" and re.search(
        r"import path string: |Given value type: <class 'str'>|Subclasses are disabled", message
    ):
        ways = "settings such as model.optimizer.learning_rate, which --print_config shows"
        return f"{key}: the optimizer is AdamW. It takes {ways}, and no other class."
    beside = r"""class_path'?[=:] ?'[\w.]+', '?(?!init_args|dict_kwargs)(\w+)'?[=:]"""
    if found := re.search(beside, message) or re.search(r"Option 'class_path' is not accepted()", message):
        what, place = repr(found[1]) if found[1] else "an argument", _place(message[: found.start()]) or key
        return (
            f"{place}: {what} stands beside class_path, where it is not read. Put it a level deeper, under init_args."
        )
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return f"{key}: there is no {found[2]!r} in {found[1]}.{nearest(found[2], dir(sys.modules.get(found[1])))}"
    of_class = r"Not a valid subclass of .*Given value type: <class '(?:bool|int|float)'>\s+Given value: (\S+)"
    if found := re.search(of_class, message, re.DOTALL) or re.search(r"import path string: (true|false)\b", message):
        return f"{_place(message[: found.start()])}: {found[1]} must be a mapping of settings, or null."
    if found := re.search(r"[Ee]xpected a dot import path string: (\S+)", message):
        for plugin in plugins:
            if plugin.problem and plugin.name == found[1]:
                return f"{key}: {plugin.name} of {plugin.distribution} cannot be used: {plugin.problem}."
        names = [plugin.name for plugin in plugins if plugin.kind == _kind(key) and isinstance(plugin.loaded, type)]
        if names:
            return no_such_part(key, found[1], names)
        return f"{key}: there is no class {found[1]!r}. 'fastslm fit --help' lists those that it can be."
    if found := re.search(
        r"the following arguments are required: (?:(?:fit|validate|test|predict)\.)?([\w.]+)|, but got None\.", message
    ):
        key = ".".join([*re.findall(r'[Pp]arser key "([^"]+)"', message)[:1], *filter(None, found.groups())])
        example = ", such as --config configs/hta.yaml" if key == "model.abstractor" else ""
        return f"{key}: it has no value, and needs one. Set it in a config{example}, or by --{key}."
    if mistyped := _mistyped(message):
        return mistyped
    if found := re.search(r"(?:Option|Key) '([\w.]+)' is not (?:accepted|expected)|NestedArg\(key='([\w.]+)'", message):
        name = found[1] or found[2]
        before = message[: found.start()]
        known = _arguments_of(before) or _arguments(plugins, key)
        keys = re.findall(r'[Pp]arser key "([^"]+)"', before)
        if not known and (unknown := ".".join([*keys, name])) not in options:
            return _unknown(unknown, options)
        if known and name not in known:
            place = ".".join(keys) or key
            other = _OF_PEFT.get(name) or _OF_OTHER_TRAINERS.get(name, "").rpartition(".")[2]
            hint = f" Did you mean {other!r}?" if other in known else nearest(name, known)
            return f"{place}: unknown argument {name!r}.{hint} It takes: {', '.join(sorted(known))}."
    return _clipped(message)


def _unknown(name: str, options: Sequence[str]) -> str:
    return f"unknown key {name!r}.{_nearest(name, options)} 'fastslm COMMAND --print_config' shows all keys."


def _nearest(name: str, options: Sequence[str]) -> str:
    """Return what may be meant: a setting of that name at another level or of another trainer, or one spelt like it."""
    last = name.rpartition(".")[2]
    elsewhere = [option for option in options if option.rpartition(".")[2] == last]
    if last in _OF_OTHER_TRAINERS and not elsewhere:
        elsewhere = [_OF_OTHER_TRAINERS[last]]
    return f" Did you mean {min(elsewhere, key=len)!r}?" if elsewhere else nearest(name, options)


def _mistyped(message: str) -> str | None:
    """Return what a value must be, the innermost one, if the message is of a value of another type."""
    if found := re.search(r"Expected a tuple with (\d+) elements\. Got value: (.+)", message):
        keys = re.findall(r'[Pp]arser key "([^"]+)"', message[: found.start()])
        return f"{'.'.join(keys)}: {found[2]} must be a list of {found[1]} values."
    innermost, told = 0, None
    for types, label in ((r"Expected a (.+?)\. (?=Got value)", "Got value"), (r"Subtypes: \[(.+)\]", "Given value")):
        for found in re.finditer(types, message):
            value = re.search(rf"{label}: (.+?)(?:\. Got value: .*)?$", message[found.end() :], re.MULTILINE)
            kinds = [_words(name) for name in re.findall(r"[\w.]+\[[^\]]*\]|<[^>]*>", found[1])]
            if value and kinds and all(kinds):
                keys = re.findall(r'Parser key "([^"]+)"', message[: found.start()])  # outermost to that of the value
                if told is None or len(keys) > innermost:
                    innermost, told = len(keys), f"{'.'.join(keys)}: {value[1]} must be {' or '.join(kinds)}."
    return told


def _words(name: str) -> str:
    """Return what values of a type are, by the parser's name of it; an empty text for types without words."""
    choices = re.fullmatch(r"typing\.Literal\[(.+)\]", name)
    if choices is None:
        return _KINDS.get(name, "")
    return f"one of {choices[1]}" if "," in choices[1] else choices[1]


def _key(message: str) -> str:
    found = re.search(r'[Pp]arser key "([^"]+)"|^--([\w.]+)\.help:', message)
    return (found[1] or found[2]) if found else "configuration"


def _place(before: str) -> str:
    """Return the key that a message names in parts, the outermost first."""
    return ".".join(re.findall(r'[Pp]arser key "([^"]+)"', before))


def _kind(key: str) -> str:
    """Return the group of plug-ins that stand at a key; an empty text where it takes other classes."""
    kinds = {"abstractor": "abstractors", "encoder": "encoders", "llm": "llms", "data": "datamodules"}
    return {**kinds, "callbacks": "callbacks"}.get(key.rpartition(".")[2], "")


def _arguments_of(message: str) -> set[str]:
    """Return what the class takes that a message names last; nothing where it names none that is imported."""
    paths = re.findall(r"given class_path '([\w.]+)'", message)
    module, _, name = paths[-1].rpartition(".") if paths else ("", "", "")
    kind = getattr(sys.modules.get(module), name, None)
    return _parameters(kind) if isinstance(kind, type) else set()


def _arguments(plugins: Sequence[Plugin], key: str) -> set[str]:
    chosen = [plugin.loaded for plugin in plugins if plugin.kind == _kind(key) and isinstance(plugin.loaded, type)]
    return {name for kind in chosen for name in _parameters(kind)}


def _parameters(kind: Any) -> set[str]:
    hidden = {"self", "in_width", "out_width", "budget"}  # the model passes these
    return set(inspect.signature(kind).parameters) - hidden


def _clipped(message: str) -> str:
    lines = [line.strip(" -\t") for line in message.splitlines() if line.strip(" -\t")]
    text = " ".join(lines)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
