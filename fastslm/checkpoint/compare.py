"""What differs between a checkpoint and this run: refused where weights would mean something else, told where not."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as dataclass_fields
from fnmatch import fnmatchcase
from typing import Any, get_args, get_type_hints

from fastslm.checkpoint import facts
from fastslm.checkpoint.reader import Checkpoint
from fastslm.checkpoint.state import Purpose
from fastslm.configuration.renamed import renamed
from fastslm.path.foreign_code import changed_code
from fastslm.plugins import class_of
from fastslm.settings import Change

#: Where things lie and what is printed: of no interest to anybody.
_SILENT = (
    "run_folder",
    "ckpt_path",
    "init_from",
    "watchdog_seconds",
    "weights_only",
    "verbose",
    "config*",
    "trainer.default_root_dir",
    "trainer.logger*",
    "trainer.callbacks*dirpath",
    "trainer.enable_*",
    "trainer.log_every_n_steps",
)
_ABSENT = object()
_LONGEST, _BEFORE = 90, 12  # characters that are shown of a value, and of what two have in common


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
        stored, present = (_meant(renamed(given), has_adapters) for given in (checkpoint.config, config))
        _compare_configs(stored, present, Changes.of(module), purpose, found)
    if "base_models" in checkpoint.manifest:
        _compare_bases(checkpoint.manifest.get("base_models", {}), facts.base_models(module), purpose, found)
        _compare_vocabularies(checkpoint.manifest.get("vocabulary", {}), facts.vocabulary(module), found)
        _compare_versions(checkpoint.manifest.get("versions", {}), facts.package_versions(), found)
        _compare_code(checkpoint.manifest.get("code", {}), config.get("model", {}), found)
    return found


@dataclass(frozen=True)
class Changes:
    """What another value of each key of a model's configuration changes; said where the settings are declared.

    Attributes:
        fields: settings of dataclasses, by their dotted key.
        arguments: constructor arguments of parts, by part, where they say.
        otherwise: what the others of a part change, by part.
    """

    fields: Mapping[str, Mapping[str, Any]]
    arguments: Mapping[str, Mapping[str, Change]]
    otherwise: Mapping[str, Change]

    @staticmethod
    def of(module: Any) -> "Changes":
        """Return what the settings of a model and its parts say."""
        encoder, _, llm = module.parts
        known = {"model": type(module.settings), "model.optimizer": type(module.optimizer_settings)}
        known |= {f"model.{part}.{name}": kind for part, name, kind in _nested(("encoder", encoder), ("llm", llm))}
        return Changes(
            {f"{prefix}.{f.name}": f.metadata for prefix, kind in known.items() for f in dataclass_fields(kind)},
            {"encoder": type(encoder).changes, "llm": type(llm).changes},
            {"abstractor": "weights", "encoder": "run", "llm": "run"},
        )

    def of_key(self, key: str) -> Change:
        """Return what a key of the configuration below ``model`` changes."""
        _, part, *rest = key.replace(".init_args", "").split(".")
        found = self._metadata(key)
        if found is not None:
            return found.get("changes", "run")  # type: ignore[no-any-return]
        if part not in self.otherwise:
            return "nothing" if part == "optimizer" else "run"
        if rest[:1] == ["class_path"]:
            return "weights"
        return self.arguments.get(part, {}).get(rest[0] if rest else "", self.otherwise[part])

    def is_restored(self, key: str) -> bool:
        """Return whether a run that goes on takes the value from its checkpoint."""
        return bool((self._metadata(key) or {}).get("restored"))

    def _metadata(self, key: str) -> Mapping[str, Any] | None:
        """Return what the field says that a key stands for, or is inside of."""
        names = key.replace(".init_args", "").split(".")
        keys = (".".join(names[:end]) for end in range(len(names), 1, -1))
        return next((self.fields[name] for name in keys if name in self.fields), None)


def _nested(*parts: tuple[str, Any]) -> Iterator[tuple[str, str, type]]:
    """Yield part, argument and class of the constructor arguments that are dataclasses, such as LoRA."""
    for part, module in parts:
        for name, hint in get_type_hints(type(module).__init__).items():
            for kind in get_args(hint) or (hint,):
                if is_dataclass(kind):
                    yield part, name, kind  # type: ignore[misc]


def _compare_configs(
    before: Mapping[str, Any], now: Mapping[str, Any], changes: Changes, purpose: Purpose, found: Differences
) -> None:
    classes = [key for key in before.keys() & now.keys() if key.endswith(".class_path") and before[key] != now[key]]
    swapped = tuple(f"{key.removesuffix('class_path')}init_args" for key in classes)
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if old == new or any(fnmatchcase(key, silent) for silent in _SILENT) or _says_nothing(key, old, new, swapped):
            continue
        then, here = _shown_beside(old, new)
        line = f"{key.replace('.init_args', '')}: {then} in the checkpoint, {here} here"
        if key == "model.tokens_per_window":
            refused = not (purpose == "evaluate" and isinstance(old, list))  # trained for many rates: any will do
        elif _ABSENT in (old, new):
            refused = False  # a key of another version, whose default says the same, or an overlay's
        elif purpose == "evaluate" and not key.startswith("model."):
            continue  # data and trainer of an evaluation are its own
        elif key.startswith("model."):
            change = changes.of_key(key)
            refused = change == "weights" or (change == "run" and purpose == "resume")
        else:
            refused = False
        if purpose == "initialize" and not refused and not key.startswith(("model.", "data.")):
            continue  # a new run has a trainer of its own
        if purpose == "resume" and changes.is_restored(key):
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


def _shown_beside(old: Any, new: Any) -> tuple[str, str]:
    """Return two values as they would stand in a config; of long ones the part where they begin to differ."""
    texts = ["not set" if v is _ABSENT else json.dumps(v, ensure_ascii=False, default=str) for v in (old, new)]
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    begin = max(0, same - _BEFORE) if max(map(len, texts)) > _LONGEST else 0
    parts = [f"{'...' * bool(begin)}{text[begin:]}" for text in texts]
    then, here = (part if len(part) <= _LONGEST else f"{part[: _LONGEST - 3]}..." for part in parts)
    return then, here


def _compare_bases(before: Mapping[str, Any], now: Mapping[str, Any], purpose: Purpose, found: Differences) -> None:
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
        if (mark := old.get("tokenizer")) and new.get("tokenizer", mark) != mark:
            texts = found.refused if purpose == "resume" else found.told
            texts.append(f"model.{part}.pretrained: {names}, and its tokenizer or chat template has other content")


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


def _compare_code(before: Mapping[str, str], settings: Mapping[str, Any], found: Differences) -> None:
    parts = {f"{part}s": settings.get(part) for part in ("encoder", "abstractor", "llm")}
    paths = {kind: given.get("class_path") if isinstance(given, Mapping) else given for kind, given in parts.items()}
    kinds = [class_of(kind, path) for kind, path in paths.items() if path]
    found.told += [
        f"the code of {name} is other than when the checkpoint was saved" for name in changed_code(before, kinds)
    ]
