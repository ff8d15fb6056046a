"""Writes a trained model as one self-contained Hugging Face folder: weights, configuration, processor, code, card."""

import copy
import importlib
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.checkpoint.run import Run, speech_settings
from fastslm.errors import ConfigError
from fastslm.export.card import model_card
from fastslm.export.checksum import ROOM, write_checksum, write_list
from fastslm.export.remote.configuration_fastslm import FastSLMConfig
from fastslm.export.remote.modeling_fastslm import names_in_folders, renamed
from fastslm.export.remote.token_counts import token_counts
from fastslm.export.sources import export_sources
from fastslm.export.stock import llm_state, save_stock_llm
from fastslm.files import whole_folder
from fastslm.path.foreign_code import code_digests
from fastslm.path.model import SpeechLM
from fastslm.path.template import keep_switches
from fastslm.tasks import tasks

#: Of a file of weights; what is more becomes several. That of transformers and the hub.
_SHARD_SIZE = "5GB"
_MODEL_CLASS = "FastSLMForConditionalGeneration"
_AUTO_MAP = {
    "AutoConfig": "configuration_fastslm.FastSLMConfig",
    "AutoModel": "engine_fastslm.FastSLMModel",
    "AutoModelForCausalLM": f"modeling_fastslm.{_MODEL_CLASS}",
    "AutoProcessor": "processing_fastslm.FastSLMProcessor",
    "AutoFeatureExtractor": "processing_fastslm.FastSLMFeatureExtractor",
}
#: What ``transformers.pipeline`` runs for these tasks in place of its own.
_PIPELINES = {
    "automatic-speech-recognition": {"impl": "pipeline_fastslm.FastSLMPipeline", "pt": ["AutoModelForCausalLM"]}
}


def export_model(run: Run, folder: Path, *, merge_lora: bool = False) -> None:
    """Write the whole model; ``AutoModel.from_pretrained(folder, trust_remote_code=True)`` loads it anywhere.

    Args:
        run: what was trained.
        folder: new or empty.
        merge_lora: add the adapters to the LLM's weights; otherwise they stay apart, and loading needs peft.

    Raises:
        CheckpointError: the folder holds something.
        ConfigError: a part of the model cannot be exported, or the LLM has not learnt to read speech.
    """
    if not run.llm_reads:
        raise ConfigError(
            "model.answer_weight: 0, so the LLM of this run has not learnt to read speech, and exported folders take"
            " no letters along. Train stage 1 from it ('fastslm fit --init_from'), and export that."
        )
    path = run.path
    sources = export_sources(type(path.encoder), type(path.abstractor))
    config = _config(run, merge_lora)
    state = _state(path, merge_lora)
    with whole_folder(folder) as partial:
        for name, text in sources.items():
            (partial / name).write_text(text, encoding="utf-8")
        config.save_pretrained(partial)
        _check(partial, state)
        _save_weights(state, partial)
        _generation_config(path, run.settings.get("max_new_tokens")).save_pretrained(partial)
        keep_switches(path.prompter.tokenizer, path.prompter.enable_thinking)
        path.prompter.tokenizer.save_pretrained(partial)
        _write_processor(run, partial)
        write_list(partial)
        (partial / "README.md").write_text(model_card(run, folder.name, merged=merge_lora), encoding="utf-8")


def export_llm(run: Run, folder: Path) -> None:
    """Write the LLM alone, adapters merged, as a stock folder of its own architecture.

    Raises:
        CheckpointError: the folder holds something.
        ConfigError: the LLM cannot be exported.
    """
    path = run.path
    keep_switches(path.prompter.tokenizer, path.prompter.enable_thinking)
    with whole_folder(folder) as partial:
        save_stock_llm(path.llm, partial, merged=True)
        _generation_config(path).save_pretrained(partial)
        (partial / "README.md").write_text(model_card(run, folder.name, merged=True, llm_only=True), encoding="utf-8")


def _config(run: Run, merged: bool) -> FastSLMConfig:
    path, settings = run.path, run.settings
    llm = path.llm.stock_model()
    dtypes = {"encoder": _dtype(path.encoder), "abstractor": _dtype(path.abstractor), "llm": llm.dtype}
    narrow = {dtype for dtype in dtypes.values() if dtype != torch.float32}
    if len(narrow) > 1:
        raise ConfigError(
            f"model: the parts have the dtypes {', '.join(f'{p} {d}' for p, d in dtypes.items())}. A folder holds"
            " float32 and one 16-bit dtype at most; set model.encoder.init_args.dtype and model.llm.init_args.dtype"
            " alike."
        )
    dtype = narrow.pop() if narrow else torch.float32
    abstractor, speech = settings["abstractor"], speech_settings(settings)
    budget = max(speech.budgets(path.encoder), key=lambda budget: budget.tokens_per_window)
    arguments = {} if isinstance(abstractor, str) else abstractor.get("init_args") or {}
    kinds = {"encoder": type(path.encoder), "abstractor": type(path.abstractor)}
    # Copies: transformers settles things such as the attention in the very objects that it is given.
    spoken = {name: value for name, value in asdict(speech).items() if name not in ("tokens_per_window", "tail")}
    config = FastSLMConfig(
        encoder_config=copy.deepcopy(path.encoder.export_config()),
        text_config=copy.deepcopy(llm.config),
        class_paths={name: f"{kind.__module__}.{kind.__qualname__}" for name, kind in kinds.items()},
        code={name: run.code.get(name, here) for name, here in code_digests(kinds.values()).items()},
        encoder=path.encoder.export_arguments(),
        abstractor=dict(arguments),
        budget=asdict(budget),
        tokens_per_window=path.abstractor.budget.tokens_per_window,
        path=spoken,
        path_names=sorted(spoken),
        lora=None if merged else _lora(path),
        float32_parts=[] if dtype == torch.float32 else [p for p, d in dtypes.items() if d == torch.float32],
        audio_token_id=path.prompter.audio_id,
        stop_ids=list(path.prompter.stop_ids),
        new_tokens_per_second=settings.get("new_tokens_per_second", 4.0),
        context_length=path.llm.context_length,
        trained_on=run.trained_on.plain(),
        tie_word_embeddings=bool(getattr(llm.config, "tie_word_embeddings", False)),
        architectures=[_MODEL_CLASS],
        custom_pipelines=copy.deepcopy(_PIPELINES),
        dtype=dtype,
    )
    config.auto_map = {name: target for name, target in _AUTO_MAP.items() if name.startswith(("AutoC", "AutoM"))}
    return config


def _dtype(module: torch.nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _lora(path: SpeechLM) -> dict[str, Any] | None:
    settings: Any = getattr(path.llm, "lora", None)
    if settings is None:
        return None
    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    made: Any = getattr(path.llm.stock_model(), "peft_config", {}).get("default")
    excluded = getattr(made, "exclude_modules", None)
    return {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": targets,
        **({"exclude_modules": sorted(excluded)} if excluded else {}),
    }


def _state(path: SpeechLM, merged: bool) -> dict[str, Tensor]:
    """Return every weight by its name in the folder, each storage once."""
    llm = path.llm.stock_model()
    state = {f"path.encoder.{name}": value for name, value in path.encoder.state_dict().items()}
    for part in ("layer_mix", "abstractor"):
        if (module := getattr(path, part)) is not None:
            state |= {f"path.{part}.{name}": value for name, value in module.state_dict().items()}
    text = llm_state(llm, merged=True) if merged else llm.state_dict()
    tied = set(getattr(llm, "all_tied_weights_keys", {}))
    state |= {f"path.llm.causal_lm.{name}": value for name, value in text.items() if name not in tied}
    names = names_in_folders(llm)
    return {renamed(name, names): value.detach().cpu().contiguous() for name, value in state.items()}


def _save_weights(state: dict[str, Tensor], folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict, split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=_SHARD_SIZE
    )
    for name, weights in split.filename_to_tensors.items():
        # One call for each file: of several, it writes the metadata into their index alone.
        save_torch_state_dict(
            {weight: state[weight] for weight in weights},
            folder,
            filename_pattern=name.replace(".safetensors", "{suffix}.safetensors"),
            max_shard_size=_SHARD_SIZE,
            metadata={"format": "pt", **ROOM},
        )
        write_checksum(folder / name)
        (folder / name).chmod(0o644)  # it makes them readable for their owner alone
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _generation_config(path: SpeechLM, max_new_tokens: int | None = None) -> Any:
    from transformers import GenerationConfig

    stops = list(path.prompter.stop_ids)
    return GenerationConfig(do_sample=False, eos_token_id=stops, pad_token_id=stops[0], max_new_tokens=max_new_tokens)


def _write_processor(run: Run, folder: Path) -> None:
    settings = run.path.listener.settings
    at_once = settings.windows_at_once(torch.device("cuda"))
    extractor = {
        "sampling_rate": SAMPLE_RATE_HZ,
        "chunk_length": settings.window_seconds * at_once,
        "feature_extractor_type": "FastSLMFeatureExtractor",
    }
    asked = [task.plain() for task in tasks().values()]  # those it was not trained for do no harm
    processor = {
        "enable_thinking": run.path.prompter.enable_thinking,
        "tasks": asked,
        "token_counts": token_counts(run.path.listener),
        "needs_chat_template": True,  # the prompter gave it one where there was none
    }
    names = ("AutoProcessor", "AutoFeatureExtractor")
    for file, values in (("preprocessor_config.json", extractor), ("processor_config.json", processor)):
        values = {**values, "processor_class": "FastSLMProcessor", "auto_map": {n: _AUTO_MAP[n] for n in names}}
        (folder / file).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _check(folder: Path, state: dict[str, Tensor]) -> None:
    """Build the exported model from the exported files, without weights, and compare names and shapes.

    Raises:
        ConfigError: they differ, or the files do not run.
    """
    package = f"_fastslm_export_{folder.parent.name.replace('.', '_').replace('-', '_')}"
    spec = importlib.util.spec_from_loader(package, loader=None, is_package=True)
    assert spec is not None
    spec.submodule_search_locations = [str(folder)]
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        modeling = importlib.import_module(f"{package}.modeling_fastslm")
        config = modeling.FastSLMConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = getattr(modeling, _MODEL_CLASS)(config)
        names = names_in_folders(model.path.llm.causal_lm)
        expected = {renamed(name, names): tuple(value.shape) for name, value in model.state_dict().items()}
        tied = {renamed(name, names) for name in model.all_tied_weights_keys}
    except Exception as error:  # whatever a third party's compressor does when it is built
        raise ConfigError(
            f"the exported files cannot build the model: {type(error).__name__}: {error}. Arguments of a compressor"
            " must be plain values."
        ) from error
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = [n for n in expected.keys() | found.keys() if n not in tied and expected.get(n) != found.get(n)]
    if wrong:
        raise ConfigError(
            f"the exported files build another model: {len(wrong)} weights differ, such as {sorted(wrong)[0]}."
            " Arguments of a compressor must be plain values."
        )
