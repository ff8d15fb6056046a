"""Reads the authors' released checkpoint into a run folder; every key of the file is used, or the import is refused."""

import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.checkpoint import facts, trainable_state
from fastslm.checkpoint.reader import verify_archive
from fastslm.checkpoint.state import some
from fastslm.checkpoint.unpickled import read_tensors
from fastslm.errors import CheckpointError
from fastslm.export.stock import save_stock_llm
from fastslm.files import whole_folder
from fastslm.path.model import SpeechLM
from fastslm.release.names import Slot, geometry, slots
from fastslm.training.from_settings import build_module
from fastslm.training.lightning_module import SpeechLMModule

KEY_LIST = "released_keys.tsv"
_CHANGED = "differs from the base model: taken over"
_SHOWN = 8
_KINDS = ("float16", "bfloat16", "float32", "float64")
_TABLE_TOLERANCE = 1e-2  # the position tables may have been rounded to bfloat16


@dataclass(frozen=True)
class Use:
    """What became of one key.

    Attributes:
        name: our name of the weight.
        part: what it belongs to.
        shape: of the tensor in the file.
        dtype: of the tensor in the file.
        done: what was done with it.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    dtype: str
    done: str


@dataclass
class Imported:
    """What became of a released checkpoint.

    Attributes:
        folder: the run folder that was written.
        uses: what was done with each key of the file, by released name.
        vocabulary: rows of the embedding table, and the ids of the added tokens in it.
    """

    folder: Path
    uses: dict[str, Use]
    vocabulary: tuple[int, dict[str, int]]

    def table(self) -> str:
        """Return keys and parameters by part and use, as text."""
        keys: Counter[tuple[str, str]] = Counter()
        parameters: Counter[tuple[str, str]] = Counter()
        for use in self.uses.values():
            keys[use.part, use.done] += 1
            parameters[use.part, use.done] += torch.Size(use.shape).numel()
        rows = [f"  {'part':18} {'keys':>6} {'parameters':>15}  what was done"]
        rows += [f"  {part:18} {n:6} {parameters[part, done]:15,}  {done}" for (part, done), n in keys.items()]
        rows.append(f"  {'all':18} {sum(keys.values()):6} {sum(parameters.values()):15,}")
        return "\n".join(rows)


def import_release(
    checkpoint: Path,
    folder: Path,
    *,
    encoder: str = "openai/whisper-large-v3",
    llm: str = "Qwen/Qwen3-4B",
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    lora_alpha: float = 64.0,
) -> Imported:
    """Write a run folder that holds the released model.

    Args:
        checkpoint: the plain state dict that the authors published.
        folder: where the run goes; must not exist, or be empty.
        encoder: base of the speech encoder, hub name or folder.
        llm: base of the LLM, hub name or folder, with its tokenizer.
        dtype: dtype of encoder and LLM when the model is used.
        lora_alpha: scale of the adapters, which the file does not tell.

    Raises:
        CheckpointError: the file is damaged, lacks weights, holds others, or their shapes do not fit the base models.
        ConfigError: a base model cannot be found.
    """
    with whole_folder(folder) as partial:
        state = _read(checkpoint)
        settings = _settings(state, encoder=encoder, llm=llm, dtype=dtype, lora_alpha=lora_alpha)
        module, settings = build_module(settings)
        module.configure_model()
        assert module.path is not None
        targets = slots(module.path)
        _check(state, targets, checkpoint, tied=_tied_head(module.path))
        uses = _fill(module.path, state, targets)
        for part, key in (("speech encoder", "encoder"), ("LLM", "llm")):
            if any(use.done == _CHANGED for use in uses.values() if use.part == part):
                settings[key]["init_args"]["pretrained"] = str(folder.absolute() / key)
                _save_base(module.path, key, partial / key)
                getattr(module.path, key).pretrained = str(partial / key)
        _write(module, settings, partial, folder, uses)
        return Imported(folder, uses, _vocabulary(module))


def _read(checkpoint: Path) -> dict[str, Tensor]:
    state = read_tensors(checkpoint)
    if zipfile.is_zipfile(checkpoint):
        verify_archive(checkpoint, checkpoint)
    strange = [str(n) for n, value in state.items() if not (isinstance(n, str) and isinstance(value, Tensor))]
    if strange:
        raise CheckpointError(
            f"{checkpoint} is no plain state dict: {some(strange, _SHOWN)} are no tensors, or have no text as their"
            " name. The release is one file of tensors, Stage3_FastSLM.pt."
        )
    other = [f"{name} {_kind(value)}" for name, value in state.items() if _kind(value) not in _KINDS]
    if other:
        raise CheckpointError(
            f"{checkpoint} holds other kinds of tensors than the release, which has floats of 16 or 32 bits:"
            f" {some(other, _SHOWN)}. Give the file as it was released, not quantised or converted."
        )
    return state


def _kind(value: Tensor) -> str:
    """Return a tensor's dtype, and where it is not an ordinary one in memory, of what kind it is."""
    plain = value.layout == torch.strided and not value.is_meta
    dtype = str(value.dtype).removeprefix("torch.")
    return dtype if plain else f"{dtype}, {'meta' if value.is_meta else str(value.layout).removeprefix('torch.')}"


def _settings(
    state: Mapping[str, Tensor], *, encoder: str, llm: str, dtype: str, lora_alpha: float
) -> dict[str, dict[str, Any]]:
    """Return the ``model`` part of the configuration: the preset, with the sizes that the file shows."""
    from fastslm.configuration.find import find_config

    preset = yaml.safe_load(Path(find_config("configs/preset/release.yaml")).read_text(encoding="utf-8"))["model"]
    try:
        sizes = geometry(state)
    except KeyError as missing:
        raise CheckpointError(f"1 missing: {missing.args[0]}. This is no released FastSLM checkpoint.") from missing
    except IndexError as error:
        raise CheckpointError(
            "a query, position table or adapter has too few dimensions. This is no released FastSLM checkpoint."
        ) from error
    preset["encoder"]["init_args"] |= {"pretrained": encoder, "dtype": dtype}
    preset["llm"]["init_args"] |= {"pretrained": llm, "dtype": dtype}
    preset["llm"]["init_args"]["lora"] |= {
        "rank": sizes["lora_rank"],
        "alpha": lora_alpha,
        "targets": sizes["lora_targets"],
    }
    preset["abstractor"]["init_args"] |= {
        "queries_per_stage": sizes["queries_per_stage"],
        "refinement_depth": sizes["refinement_depth"],
    }
    frame_seconds = 320 / SAMPLE_RATE_HZ  # of any Whisper
    preset["window_seconds"] = round(sizes["num_frames"] * frame_seconds, 6)
    preset["tokens_per_window"] = sizes["tokens_per_window"]
    return preset  # type: ignore[no-any-return]


def _tied_head(path: SpeechLM) -> str | None:
    """Return the released name of an output head that is the embedding table, which a file may leave out."""
    tied = path.llm.stock_model().config.tie_word_embeddings
    return "llm.base_model.model.lm_head.weight" if tied else None


def _check(state: Mapping[str, Tensor], targets: Mapping[str, Slot], checkpoint: Path, tied: str | None) -> None:
    missing = [name for name in targets if name not in state and name != tied]
    leftover = [name for name in state if name not in targets]
    shapes = [
        f"{name} {tuple(state[name].shape)} where the model has {tuple(slot.tensor.shape)}"
        for name, slot in targets.items()
        if name in state and _shaped(state[name], slot.tensor) is None
    ]
    problems = [
        f"{len(names)} {what}: {some(names, _SHOWN)}"
        for what, names in (("missing", missing), ("left over", leftover), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint} is not the released checkpoint of these base models: {'; '.join(problems)}. Nothing was"
            " written. --encoder and --llm must name the models it was trained on."
        )


def _shaped(value: Tensor, ours: Tensor) -> Tensor | None:
    """Return ``value`` in the shape of ``ours``; the release has queries and tables of one more dimension of 1."""
    if value.shape == ours.shape:
        return value
    return value[0] if value.shape == (1, *ours.shape) else None


@torch.no_grad()
def _fill(path: SpeechLM, state: Mapping[str, Tensor], targets: Mapping[str, Slot]) -> dict[str, Use]:
    """Copy what was trained, compare the rest, and return what was done with each key."""
    from tqdm import tqdm

    changed = dict.fromkeys(("speech encoder", "LLM"), False)
    for name, value in tqdm(state.items(), "released weights", unit="keys", leave=False):
        slot = targets[name]
        shaped = _shaped(value, slot.tensor)
        assert shaped is not None
        ours = shaped.to(slot.tensor.dtype)
        if not ours.isfinite().all():
            raise CheckpointError(
                f"{name} holds values that are not finite as {_kind(ours)}: the checkpoint is damaged, or needs another"
                " --dtype."
            )
        if slot.use == "computed":
            error = float((ours.float() - slot.tensor.float()).abs().max())
            if error > _TABLE_TOLERANCE:
                raise CheckpointError(
                    f"{name} differs by {error:.3g} from Whisper's sinusoids, which the model computes: this is"
                    " another version of the method."
                )
        elif slot.use == "trained":
            slot.tensor.copy_(ours)
        elif not torch.equal(slot.tensor, ours):
            changed[slot.part] = True
            slot.tensor.copy_(ours)
    _refuse_loose_head(path, state)
    done = {"trained": "taken over", "computed": "equal to the computed ones"}
    return {
        name: Use(
            slot.name,
            slot.part,
            tuple(state[name].shape),
            str(state[name].dtype).removeprefix("torch."),
            done.get(slot.use) or (_CHANGED if changed[slot.part] else "equal to the base model's"),
        )
        for name, slot in ((name, targets[name]) for name in state)
    }


def _refuse_loose_head(path: SpeechLM, state: Mapping[str, Tensor]) -> None:
    head, table = state.get(_tied_head(path) or ""), state.get("llm.base_model.model.model.embed_tokens.weight")
    if head is not None and table is not None and not torch.equal(head, table):
        raise CheckpointError(
            "llm.base_model.model.lm_head.weight differs from the embedding table, which this LLM shares with its head."
        )


def _save_base(path: SpeechLM, key: str, folder: Path) -> None:
    """Write a base model that the release changed, in the form its ``pretrained`` is read from."""
    if key == "llm":
        save_stock_llm(path.llm, folder, merged=False)
        return
    whisper: Any = path.encoder.whisper
    whisper.save_pretrained(folder, save_original_format=False)


def _write(
    module: SpeechLMModule, settings: Mapping[str, Any], partial: Path, folder: Path, uses: Mapping[str, Use]
) -> None:
    """Write a run folder as training leaves one: configuration, checkpoint, and the list of keys."""
    import lightning

    config = {"run_folder": str(folder.absolute()), "model": dict(settings)}
    (partial / "checkpoints").mkdir(parents=True)
    (partial / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    checkpoint = {
        "state_dict": trainable_state(module, module.state_dict()),
        "fastslm_config": config,
        "fastslm_manifest": _manifest(module, settings),
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
    }
    torch.save(checkpoint, partial / "checkpoints" / "last.ckpt")
    lines = ["released name\tname here\tpart\tshape\tdtype\twhat was done"]
    for name, use in uses.items():
        lines.append("\t".join((name, use.name, use.part, str(use.shape), use.dtype, use.done)))
    (partial / KEY_LIST).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _manifest(module: SpeechLMModule, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is compared when the run is used: base models that have changed give other answers."""
    bases = facts.base_models(module)
    for key, record in bases.items():
        record["name"] = settings[key]["init_args"]["pretrained"]
    return {
        "step": 0,
        "epoch": 0,
        "base_models": bases,
        "vocabulary": facts.vocabulary(module),
        "token_budget": facts.token_budget(module),
        "versions": facts.package_versions(),
        "data": {},
    }


def _vocabulary(module: SpeechLMModule) -> tuple[int, dict[str, int]]:
    from fastslm.path.prompt import SPECIAL_TOKENS

    assert module.path is not None
    table = module.path.llm.stock_model().get_input_embeddings()
    ids = module.prompter.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    return table.num_embeddings, dict(zip(SPECIAL_TOKENS, ids, strict=True))
