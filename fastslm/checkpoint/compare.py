"""What differs between a checkpoint and this run: refused where weights would mean something else, told where not."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from fastslm.checkpoint import facts
from fastslm.checkpoint.reader import Checkpoint
from fastslm.checkpoint.state import Purpose

#: Change what the weights mean, whatever they are used for.
_MODEL = (
    "model.abstractor*",
    "model.encoder.class_path",
    "model.encoder.init_args.initialize",
    "model.encoder.init_args.overrides*",
    "model.llm.class_path",
    "model.llm.init_args.initialize",
    "model.llm.init_args.overrides*",
    "model.llm.init_args.lora.rank",
    "model.llm.init_args.lora.alpha",
    "model.llm.init_args.lora.targets*",
    "model.window_seconds",
)
#: Of the model, yet of no influence on what its weights mean.
_HARMLESS = (
    "model.*.pretrained",  # told apart by fingerprint
    "model.*.dtype",
    "model.*.attention",
    "model.*.gradient_checkpointing",
    "model.*.context_length",
    "model.*.quantize*",
    "model.llm.init_args.lora.*",
    "model.encoder_batch_windows",
    "model.alignment_weight",
    "model.frame_cache",
    "model.recompute",
    "model.spec_augment*",
    "model.answer_noise",
    "model.mix_style",
    "model.token_noise",
    "model.compile*",
    "model.max_generated",
    "model.max_new_tokens",
    "model.new_tokens_per_second",
    "model.watchdog*",
    "model.optimizer*",
)
#: Restored with the optimizer: another value has no effect on a run that goes on.
_RESTORED = (
    "model.optimizer.learning_rate",
    "model.optimizer.part_learning_rates*",
    "model.optimizer.weight_decay",
    "model.optimizer.betas*",
)
#: Where things lie and what is printed: nobody needs to hear of it.
_SILENT = (
    "run_folder",
    "ckpt_path",
    "init_from",
    "watchdog_seconds",
    "weights_only",
    "config*",
    "trainer.default_root_dir",
    "trainer.logger*",
    "trainer.callbacks*dirpath",
    "trainer.enable_*",
    "trainer.log_every_n_steps",
    "model.verbose*",
)
_ABSENT = object()


@dataclass
class Differences:
    """What differs, one line each.

    Attributes:
        refused: what makes the checkpoint of no use here.
        told: what the user should know.
    """

    refused: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def compare(checkpoint: Checkpoint, module: Any, config: Mapping[str, Any], purpose: Purpose) -> Differences:
    """Compare a checkpoint with the model and configuration here; needs no weights.

    Args:
        checkpoint: what is to be loaded.
        module: the module here, its weights loaded or not.
        config: its resolved configuration as nested plain values.
        purpose: what the weights are wanted for.
    """
    found = Differences()
    if checkpoint.config and config:
        has_adapters = any(".lora_" in name for name in checkpoint.names())
        _compare_configs(checkpoint.config, config, purpose, has_adapters, found)
    if checkpoint.manifest:
        _compare_bases(checkpoint.manifest.get("base_models", {}), facts.base_models(module), found)
        _compare_vocabularies(checkpoint.manifest.get("vocabulary", {}), facts.vocabulary(module), found)
        _compare_versions(checkpoint.manifest.get("versions", {}), facts.package_versions(), found)
    return found


def _compare_configs(
    stored: Mapping[str, Any], present: Mapping[str, Any], purpose: Purpose, has_adapters: bool, found: Differences
) -> None:
    before, now = (_meant(config, has_adapters) for config in (stored, present))
    classes = [key for key in before.keys() & now.keys() if key.endswith(".class_path") and before[key] != now[key]]
    swapped = tuple(f"{key.removesuffix('class_path')}init_args" for key in classes)
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if old == new or _matches(key, _SILENT) or _says_nothing(key, old, new, swapped):
            continue
        line = f"{key.replace('.init_args', '')}: {_shown(old)} in the checkpoint, {_shown(new)} here"
        if key == "model.tokens_per_window":
            refused = not (purpose == "evaluate" and isinstance(old, list))  # trained for many rates: any will do
        elif _ABSENT in (old, new):
            refused = False  # a key of another version, whose default says the same, or an overlay's
        elif purpose == "evaluate" and not key.startswith("model."):
            continue  # data and trainer of an evaluation are its own
        elif _matches(key, _MODEL):
            refused = True
        else:
            refused = purpose == "resume" and key.startswith("model.") and not _matches(key, _HARMLESS)
        if purpose == "initialize" and not refused and not key.startswith(("model.", "data.")):
            continue  # a new run has a trainer of its own
        if purpose == "resume" and _matches(key, _RESTORED):
            line += " (no effect: optimizer and schedule go on with the checkpoint's)"
        (found.refused if refused else found.told).append(line)


def _meant(config: Mapping[str, Any], has_adapters: bool) -> dict[str, Any]:
    """Return dotted keys and values of a configuration, without those of adapters that are not made."""
    flat = dict(_flat(config))
    if has_adapters or "lora" in (flat.get("model.train_parts") or ()):
        return flat
    return {key: value for key, value in flat.items() if not key.startswith("model.llm.init_args.lora")}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and leaf values; the callbacks count as one value, by class."""
    if prefix == "trainer.callbacks":
        yield prefix, [item.get("class_path") for item in value or [] if isinstance(item, Mapping)]
    elif isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value


def _says_nothing(key: str, old: Any, new: Any, swapped: tuple[str, ...]) -> bool:
    """Return whether a difference is none, or follows from one that is told: the options of another class."""
    if key.startswith(swapped) and (_ABSENT in (old, new) or key.startswith("model.abstractor.")):
        return True
    return _ABSENT in (old, new) and any(value in (None, {}, []) for value in (old, new))


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not set"
    text = json.dumps(value, ensure_ascii=False, default=str)  # as it would stand in a config
    return text if len(text) <= 60 else f"{text[:57]}..."


def _compare_bases(before: Mapping[str, Any], now: Mapping[str, Any], found: Differences) -> None:
    for part in sorted(before.keys() & now.keys()):
        old, new = before[part], now[part]
        names = f"{old['name']!r} in the checkpoint, {new['name']!r} here"
        marks = [(record["revision"], record["fingerprint"]) for record in (old, new)]
        if old["fingerprint"] and new["fingerprint"]:
            differs, by = old["fingerprint"] != new["fingerprint"], "its files have other content"
        elif old["revision"] and new["revision"]:
            differs, by = old["revision"] != new["revision"], "it has another revision"
        else:  # a hub name here and a folder there: nothing but the names can be compared
            differs, by = False, ""
            if old["name"] != new["name"]:
                found.told.append(f"model.{part}.pretrained: {names}; whether they are the same cannot be told")
        if differs:
            found.refused.append(f"model.{part}.pretrained: {names}, and {by} ({marks[0]} and {marks[1]})")


def _compare_vocabularies(before: Mapping[str, Any], now: Mapping[str, Any], found: Differences) -> None:
    if not before or before["digest"] == now["digest"]:
        return
    added = {token: index for token, index in before["added"].items() if now["added"].get(token) != index}
    detail = ""
    if added:
        token, index = next(iter(added.items()))
        detail = f"; {token!r} is {index} in the checkpoint and {now['added'].get(token, 'unknown')} here"
    found.refused.append(
        f"the vocabulary: {before['size']} tokens in the checkpoint, {now['size']} here, and they differ{detail}"
    )


def _compare_versions(before: Mapping[str, str], now: Mapping[str, str], found: Differences) -> None:
    changed = [f"{name} {old} -> {now[name]}" for name, old in before.items() if now.get(name, old) != old]
    if changed:
        found.told.append(f"versions: {', '.join(changed)}")
