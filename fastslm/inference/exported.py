"""Models that ``fastslm export`` wrote, from a folder or the hub, run by the package's own code and not by theirs."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from fastslm.checkpoint.trained_on import TrainedOn
from fastslm.contracts import Task
from fastslm.errors import CheckpointError, ConfigError, FastSLMError, HubError
from fastslm.export.checksum import verify_checksums, verify_list
from fastslm.files import no_file_in, open_file
from fastslm.path.base_folder import EXPORTED_TYPES, refuse_kernels
from fastslm.path.foreign_code import warn_of_other_code
from fastslm.path.model import SpeechLM
from fastslm.path.pretrained import reason
from fastslm.path.prompt import Prompter, plain
from fastslm.path.request import Request
from fastslm.path.template import check_template, switches
from fastslm.plugins import class_of

from .model import Model
from .template_trial import try_template

_CONFIG, _PROCESSOR = "config.json", "processor_config.json"
_TYPE, _OLD_TYPE = EXPORTED_TYPES
#: Of a repository, what loading it here needs: everything but the code that it brings for others, and its card.
_NOT_NEEDED = ["*.py", "*.md", ".*"]


def is_exported(folder: Path) -> bool:
    """Say whether this is a folder that ``fastslm export`` wrote."""
    return _configuration(folder / _CONFIG).get("model_type") in EXPORTED_TYPES


def _configuration(file: Path) -> dict[str, Any]:
    try:
        with open_file(file) as opened:
            values = json.loads(opened.read())
    except (OSError, ValueError, RecursionError):  # no such file, or not one of a model
        return {}
    return values if isinstance(values, dict) else {}


def looks_like_hub(name: str) -> bool:
    """Say whether a name may be one of the hub, OWNER/NAME."""
    return name.count("/") == 1 and all(name.split("/")) and not name.startswith((".", "~"))


def download(name: str) -> Path:
    """Return the folder of an exported model of the hub, from the hub's cache where it is there already.

    Args:
        name: OWNER/NAME.

    Raises:
        CheckpointError: the repository holds no exported model.
        HubError: the hub cannot be reached, or does not give it.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        config = _configuration(Path(hf_hub_download(name, _CONFIG)))
        kind = config.get("model_type")
        if kind == _TYPE or (kind == _OLD_TYPE and "class_paths" in config):
            return Path(snapshot_download(name, ignore_patterns=_NOT_NEEDED))
    except Exception as error:  # huggingface_hub lets errors of its HTTP library through, which is another every year
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            kind = None
        else:
            raise HubError(
                f"model {name}: there is no such folder here, and the hub does not give it: {reason(error)} If it is"
                f" there, fetch it where there is a network ('hf download {name}', for a private one after"
                " 'hf auth login')."
            ) from error
    what = f"its config.json is one of {kind!r}" if kind else "it has no config.json of one"
    raise CheckpointError(
        f"model {name}: this repository of the hub is no model that 'fastslm export' wrote: {what}. Base models are"
        " trained with --model.llm.pretrained."
    )


def tasks_in(folder: Path) -> dict[str, Task]:
    """Return the tasks that an exported folder describes, by name; none for other models.

    Raises:
        CheckpointError: they are damaged.
    """
    file = folder / _PROCESSOR
    try:
        if not is_exported(folder):
            return {}
        with open_file(file) as opened:
            stored = json.loads(opened.read()).get("tasks", [])
        return {values["name"]: Task(**values) for values in stored}
    except (OSError, RecursionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"model {folder}: no task can be read from {_PROCESSOR}: {reason(error)}") from error


def open_exported(folder: Path) -> Model:
    """Return an exported model with its weights, on the CPU; the Python files in the folder are not run.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
        ConfigError: a part of the model is not installed here.
    """
    from transformers import AutoTokenizer

    from fastslm.export.remote.configuration_fastslm import FastSLMConfig
    from fastslm.export.remote.modeling_fastslm import FastSLMForConditionalGeneration

    if odd := no_file_in(folder):
        raise CheckpointError(f"model {folder}: {odd}.")
    if (folder / "adapter_config.json").exists():  # transformers would put what it names into the model
        raise CheckpointError(f"model {folder}: adapter_config.json is not part of an exported model. Remove it.")
    verify_list(folder)
    if lost := [name for name in (_PROCESSOR, "tokenizer_config.json") if not (folder / name).exists()]:
        raise CheckpointError(
            f"model {folder}: it lacks {', '.join(lost)}: save the processor there, too"
            " (processor.save_pretrained), which is that of the model it was trained from."
        )
    try:
        stored, _ = FastSLMConfig.get_config_dict(folder, local_files_only=True)
        if "quantization_config" in stored:
            raise ConfigError(
                f"model {folder}: its weights are quantised, and only transformers runs those"
                " (AutoModel.from_pretrained). Give the folder that they were made from."
            )
        config = FastSLMConfig.from_dict({**stored, "model_type": _TYPE})
        refuse_kernels(stored, "its config.json", f"model {folder}")
        kinds = {f"{part}_class": class_of(f"{part}s", config.class_paths[part]) for part in ("encoder", "abstractor")}
        kind: Any = type(FastSLMForConditionalGeneration.__name__, (FastSLMForConditionalGeneration,), kinds)
        warn_of_other_code(config.code, kinds.values(), f"model {folder}")
        model, info = kind.from_pretrained(folder, config=config, output_loading_info=True, local_files_only=True)
        verify_checksums(folder)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False
        )  # with a configuration, as otherwise it looks for the type of the model among its own, and warns
        processor = json.loads((folder / _PROCESSOR).read_text(encoding="utf-8"))
        enable_thinking = bool(processor["enable_thinking"])
        if processor.get("needs_chat_template"):
            check_template(tokenizer)
        _try_template(tokenizer, enable_thinking)
    except FastSLMError:
        raise
    except ImportError as error:  # of peft, or of a tokenizer's package
        raise ConfigError(f"model {folder}: {reason(error)}") from error
    except Exception as error:  # transformers and safetensors raise whatever the bytes make them stumble over
        raise CheckpointError(f"model {folder}: not a readable exported model: {reason(error)}") from error
    wrong = {what: sorted(map(str, names)) for what, names in info.items() if names}
    if wrong:
        counts = (f"{len(names)} {what.replace('_', ' ')}, such as {names[0]}" for what, names in wrong.items())
        raise CheckpointError(f"model {folder}: the weights do not fit the configuration: {'; '.join(counts)}.")
    path: SpeechLM = model.path
    llm = class_of("llms", "CausalLM")
    path.llm = llm.around(path.llm.causal_lm, tokenizer, config.context_length)
    path.prompter = Prompter(tokenizer, enable_thinking)
    path.requires_grad_(False).eval()
    _check_numbers(folder, path, config.new_tokens_per_second)
    limit, trained_on = model.generation_config.max_new_tokens, TrainedOn.of([config.trained_on])
    return Model(path, str(folder), limit, config.new_tokens_per_second, tasks_in(folder), trained_on)


def _check_numbers(folder: Path, path: SpeechLM, new_tokens_per_second: Any) -> None:
    """Refuse what damage leaves of weights, and of a setting that answers are bounded by.

    Raises:
        CheckpointError: they are no numbers.
    """
    for name, weight in path.state_dict().items():
        if weight.is_floating_point() and weight.numel() and not all(map(math.isfinite, torch.aminmax(weight))):
            raise CheckpointError(f"model {folder}: its weights {name} hold what is no number: the folder is damaged.")
    given = new_tokens_per_second
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
        raise CheckpointError(
            f"model {folder}: new_tokens_per_second is {given!r} in {_CONFIG}, and no number from 0 on."
        )


def _try_template(tokenizer: Any, enable_thinking: bool) -> None:
    given = tokenizer.chat_template
    template = given.get("default") if isinstance(given, dict) else given
    if template:  # no plain one, which the prompter gives
        turns = [Request("asr").messages(), Request("sqqa", "Who?").messages()]
        asked = [[{**turn, "content": plain(turn["content"])} for turn in messages] for messages in turns]
        answered = [*asked[0], {"role": "assistant", "content": "He."}]
        tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        try_template(template, [*asked, answered], **switches(enable_thinking), **tokens)
