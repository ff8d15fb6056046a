"""What a folder is that was given for a base model, and is none that transformers can load."""

import fnmatch
import json
from pathlib import Path
from typing import Any

from fastslm.errors import ConfigError
from fastslm.files import no_file_in
from fastslm.path.pretrained import reason, resolve

#: The type of exported models, and that of version 0.1, which the authors' own folders on the hub have too.
EXPORTED_TYPES = ("fastslm_speech", "fastslm")
_CONFIG = "config.json"
_WANTED = "Give the Hugging Face folder (config.json and safetensors)"
_POINTER = b"version https://git-lfs"
#: Files that transformers reads of a base model, beside one kind of weights, the first that is there.
_TEXTS = ("*.json", "*.jinja", "*.model", "*.txt")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_GGUF = f"is a model of llama.cpp (GGUF), whose weights are not trained on. {_WANTED} that it was made from."
_MOST_LAYERS = 10_000
_MERGE = "Merge it into its base model first (merge_and_unload), and give that."
_WITH_ADAPTER = f"holds an adapter of PEFT beside the model. {_MERGE}"


def base_folder(name: str, key: str) -> str:
    """Return what transformers' ``from_pretrained`` takes for ``name``, which may be a base model as far as one sees.

    Args:
        name: see ``resolve``.
        key: the configuration key the name came from, for the error.

    Raises:
        ConfigError: nothing is there, or something else.
    """
    path = Path(name)
    if path.is_file():
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        raise ConfigError(f"{key}: {name} {_GGUF if is_gguf else f'is a file. {_WANTED}.'}")
    found = resolve(name, key)
    if path.is_dir() and (what := _what_else(path)):
        raise ConfigError(f"{key}: {name} {what}")
    return found


def _what_else(folder: Path) -> str:
    """Return what a folder is if not one of transformers; an empty text if it may be one."""
    names = {path.name for path in folder.iterdir()}
    kinds = {Path(name).suffix for name in names}
    if not names:
        return f"is empty. {_WANTED}."
    if odd := no_file_in(folder):
        return f"{odd}. {_WANTED}."
    weights = next((found for pattern in _WEIGHTS if (found := fnmatch.filter(names, pattern))), [])
    texts = [name for pattern in _TEXTS for name in fnmatch.filter(names, pattern)]
    if pointers := sorted(name for name in weights + texts if _is_pointer(folder / name)):
        return f"holds {pointers[0]} as a pointer of Git LFS alone. Run 'git lfs pull' in it, or download it again."
    if "model.bin" in names and any(name.startswith(("vocabulary.", "shared_vocabulary.")) for name in names):
        return f"is a model of CTranslate2 (faster-whisper). {_WANTED} of transformers that it was converted from."
    if "weights.npz" in names:
        return f"is a model of MLX. {_WANTED} of transformers that it was converted from."
    if ".gguf" in kinds and ".safetensors" not in kinds:
        return _GGUF
    if "adapter_config.json" in names:
        return _WITH_ADAPTER if _CONFIG in names else f"is an adapter of PEFT alone. {_MERGE}"
    if "checkpoints" in names or "checkpoint.json" in names:
        return f"is a run of fastslm. To train on from it: --init_from {folder}; here, give the base model it names."
    if _CONFIG not in names:
        for suffix, kind in ((".onnx", "a model of ONNX"), (".nemo", "a model of NeMo")):
            if suffix in kinds:
                return f"is {kind}. {_WANTED} of the same model."
        return f"holds no {_CONFIG}, and is no model of transformers. {_WANTED}."
    config = _read(folder / _CONFIG)
    if not isinstance(config, dict):
        return f"has a {_CONFIG} that cannot be read ({config}). Copy or download the folder again."
    if config.get("model_type") in EXPORTED_TYPES:
        return (
            f"is an exported model of fastslm, encoder, compressor and LLM in one: use it by fastslm transcribe --model"
            f" {folder}; to train, give the base model it was made from."
        )
    if "model_type" not in config:
        return f"has a {_CONFIG} without a model_type, and is no model of transformers. {_WANTED}."
    return ""


def _is_pointer(path: Path) -> bool:
    """Return whether a file is what ``git clone`` leaves in the place of a large one without Git LFS."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def read_config(name: str, key: str) -> Any:
    """Return transformers' configuration of a base model.

    Args:
        name: see ``resolve``.
        key: the configuration key the name came from, for the error.

    Raises:
        ConfigError: there is none, or it is not of a base model alone, computed by transformers' own code.
    """
    from transformers import AutoConfig

    folder = base_folder(name, key)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a value makes it stumble over
        raise no_configuration(name, key, error) from error
    refuse_kernels(config, name, key)
    _refuse_depth(config.to_dict(), name, key)
    refuse_adapter(name, key)
    return config


def _refuse_depth(values: dict[str, Any], name: str, key: str) -> None:
    """Refuse a number of layers that no model has: building them would end all memory before weights are looked at."""
    for setting, value in values.items():
        if isinstance(value, dict):
            _refuse_depth(value, name, key)
        elif str(setting).endswith("layers") and isinstance(value, int) and value > _MOST_LAYERS:
            raise ConfigError(
                f"{key}: {name} has {value:,} {setting} by its {_CONFIG}, which is damaged. Copy it again."
            )


def refuse_kernels(config: Any, name: str, key: str) -> None:
    """Refuse a configuration of transformers, or its values, that has code of the hub compute a part of the model.

    Raises:
        ConfigError: it names such code.
    """
    for setting, value in (config if isinstance(config, dict) else vars(config)).items():
        if "_implementation" in str(setting) and "/" in str(value):
            named = setting.removesuffix("_internal")
            raise ConfigError(
                f"{key}: {name} wants code of the hub for a part of the model ({named.lstrip('_')}: {value}), and such"
                " code is never run here. Take that key out of its configuration."
            )
        if isinstance(value, dict) or hasattr(value, "model_type"):
            refuse_kernels(value, name, key)


def refuse_adapter(name: str, key: str) -> None:
    """Refuse a base model with an adapter beside it, also on the hub: transformers would load that one's base model.

    Raises:
        ConfigError: there is one.
    """
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(resolve(name, key)) is not None:
        raise ConfigError(f"{key}: {name} {_WITH_ADAPTER}")


def cannot_load(name: str, key: str, config: Any, error: BaseException) -> ConfigError:
    """Return what to say where transformers does not load the weights of a base model."""
    is_quantized = getattr(config, "quantization_config", None) is not None
    way_out = " It is quantized: give the model that it was made from." if is_quantized else ""
    return ConfigError(f"{key}: cannot load {name!r}: {reason(error)}{way_out}")


def _read(file: Path) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return reason(error)
    return found if isinstance(found, dict) else "it holds no names and values"


def no_configuration(name: str, key: str, error: BaseException) -> ConfigError:
    """Return what to say where no configuration of a base model was found."""
    if Path(name).is_dir() or name.startswith("fastslm:"):
        return ConfigError(f"{key}: no model configuration at {name!r}: {reason(error)}")
    return ConfigError(
        f"{key}: {name!r} is no folder here, and the hub does not give it: {reason(error)} Give the path of a folder,"
        f" or fetch it where there is a network: hf download {name} (a gated one after hf auth login)."
    )
