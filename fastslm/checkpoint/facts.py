"""What a checkpoint must say besides its weights: base models, vocabulary, versions, the strategy."""

import hashlib
import platform
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastslm.configuration.installed import installed
from fastslm.path.pretrained import resolve

_PACKAGES = ("fastslm", "torch", "lightning", "transformers", "peft", "safetensors", "deepspeed")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".json")
#: In the names of files that hold a tokenizer and its chat template.
_TOKENIZER = ("token", "template", "merges", "vocab")
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def package_versions() -> dict[str, str]:
    """Return the versions of what takes part in training; what is not installed is left out."""
    found = {package: release for package in _PACKAGES if (release := installed(package)) is not None}
    return {"python": platform.python_version(), **found}


def base_models(module: Any) -> dict[str, dict[str, Any]]:
    """Return name, revision and fingerprint of the encoder and the LLM that a module stands on.

    ``revision`` is the hub's commit where there is one; ``fingerprint`` is of the local files, None without any, or
    of the architecture where weights are random; ``tokenizer``, of the LLM, is of its local files.
    """
    encoder, _, llm = module.parts
    return {part: _base_model(model, part) for part, model in (("encoder", encoder), ("llm", llm))}


def _base_model(model: Any, part: str) -> dict[str, Any]:
    name = getattr(model, "pretrained", None)
    config = getattr(model, "config", None)
    record: dict[str, Any] = {
        "class": type(model).__name__,
        "name": name,
        "initialize": getattr(model, "initialize", None),
        "revision": getattr(config, "_commit_hash", None),
        "fingerprint": None,
    }
    if record["initialize"] == "random" and config is not None:
        record["fingerprint"] = hashlib.sha256(config.to_json_string(use_diff=False).encode()).hexdigest()[:16]
    elif name is not None and Path(folder := resolve(name, f"model.{part}.pretrained")).is_dir():
        record["fingerprint"] = fingerprint(folder)
    if part == "llm" and name is not None and Path(folder := resolve(name, "model.llm.pretrained")).is_dir():
        record["tokenizer"] = fingerprint(folder, of_tokenizer=True)
    return record


def base_fingerprints(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprints of the local folders that a model's settings name, by part, and of the tokenizer."""
    found = {}
    for part in ("encoder", "llm"):
        given = settings.get(part)
        arguments = (given.get("init_args") if isinstance(given, Mapping) else None) or {}
        name = arguments.get("pretrained")
        if name and Path(folder := resolve(str(name), f"model.{part}.pretrained")).is_dir():
            if arguments.get("initialize", "pretrained") == "pretrained":
                found[part] = fingerprint(folder)
            if part == "llm":
                found["tokenizer"] = fingerprint(folder, of_tokenizer=True)
    return found


@lru_cache(maxsize=8)
def fingerprint(folder: str, of_tokenizer: bool = False) -> str:
    """Return 16 hex digits of the configuration and weights in a folder; of large weights, samples spread over them.

    Another training run changes every sample, so this tells models apart at the cost of a few reads.

    Args:
        folder: of a base model.
        of_tokenizer: return those of its tokenizer and chat template instead, which may differ in a byte.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        is_weights = path.suffix in _WEIGHTS and "token" not in path.name
        is_wanted = any(word in path.name for word in _TOKENIZER) if of_tokenizer else is_weights
        if not is_wanted or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if of_tokenizer or size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(file.read())
                continue
            for i in range(_SAMPLES):
                file.seek(i * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def vocabulary(module: Any) -> dict[str, Any]:
    """Return size, added tokens and a digest of all tokens with their ids."""
    tokenizer = module.prompter.tokenizer
    known: Mapping[str, int] = tokenizer.get_vocab()
    rows = "\n".join(f"{index} {token}" for token, index in sorted(known.items(), key=lambda item: item[1]))
    return {
        "size": len(tokenizer),
        "added": dict(sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1])),
        "digest": hashlib.sha256(rows.encode()).hexdigest()[:16],
    }


def token_budget(module: Any) -> dict[str, Any]:
    """Return what audio costs: window, frames and tokens of a window, tokens per second."""
    seconds, rates = module.settings.window_seconds, list(module.settings.rates)
    return {
        "window_seconds": seconds,
        "frames_per_window": module.budget.frames_per_window,
        "tokens_per_window": rates if len(rates) > 1 else rates[0],
        "tokens_per_second": rates[0] / seconds,
        "full_tail": module.budget.full_tail,
    }


def strategy_kind(strategy: Any) -> str:
    """Return which family a strategy is of; the optimizer state goes from run to run within one family only."""
    names = [cls.__name__ for cls in type(strategy).__mro__]
    if "DeepSpeedStrategy" in names:
        stage = (strategy.config or {}).get("zero_optimization", {}).get("stage", 0)
        return f"deepspeed_stage_{stage}"
    if "ModelParallelStrategy" in names:
        return "fsdp2"
    if "FSDPStrategy" in names:
        return "fsdp"
    return "replicated"  # one process or DDP: one file, the same for any number of processes
