"""An exported speech language model: transformers' interface around the same ``SpeechLM`` that was trained."""

import copy
import inspect
import re
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, LogitsProcessor, PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils.hub import cached_file

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.contracts import LanguageModel, TokenBudget
from fastslm.export.remote.configuration_fastslm import FastSLMConfig
from fastslm.export.remote.parts import Abstractor, Encoder
from fastslm.path.batch import Batch, Dialogue
from fastslm.path.build import build
from fastslm.path.finite import check_logits
from fastslm.path.model import SpeechLM
from fastslm.path.settings import SpeechSettings


def _refuse_more_adapters(*_: Any, **__: Any) -> None:
    """Refuse what PEFT would do without a word: draw the trained adapters anew, or switch them off.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "The LLM of this model has trained adapters of its own, which another one would replace or switch off: export"
        " the run again with --merge-lora, and add adapters to that model."
    )


class TextModel(LanguageModel):
    """A causal LM from its configuration, with adapters in its layers when they are not merged."""

    def __init__(self, config: Any, lora: dict[str, Any] | None) -> None:
        super().__init__()
        self.causal_lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        self.causal_lm.generation_config = GenerationConfig()  # fills in nothing: each call brings the whole of it
        self.width = self.causal_lm.get_input_embeddings().weight.shape[-1]  # may be narrower than the layers
        if lora is not None:
            try:
                from peft import LoraConfig, inject_adapter_in_model
                from peft.tuners.tuners_utils import BaseTunerLayer
            except ImportError as error:
                raise ImportError(
                    "This model's adapters are not merged, and need the package peft: pip install peft, or export again"
                    " with --merge-lora."
                ) from error
            inject_adapter_in_model(LoraConfig(task_type="CAUSAL_LM", **lora), self.causal_lm)
            for layer in self.causal_lm.modules():
                if isinstance(layer, BaseTunerLayer):  # PEFT calls these wherever it adds an adapter to a model
                    vars(layer).update(update_layer=_refuse_more_adapters, set_adapter=_refuse_more_adapters)

    def load(self) -> None:
        """Do nothing: weights come with the folder."""

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings ``[..., D_llm]`` of token ids ``[...]``."""
        return self.causal_lm.get_input_embeddings()(input_ids)  # type: ignore[no-any-return]

    def forward(  # type: ignore[override]  # it never packs
        self, embeddings: Tensor, attention_mask: Tensor | None, positions: Tensor
    ) -> Tensor:
        """Return logits ``[N, V]`` at flat ``positions``."""
        logits: Tensor = self.causal_lm(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False).logits
        return logits.flatten(0, 1)[positions]

    def generate(
        self, embeddings: Tensor, attention_mask: Tensor, max_new_tokens: int, stop_ids: Sequence[int]
    ) -> Tensor:
        """Return continuations ``[B, L]`` int64."""
        return self.causal_lm.generate(  # type: ignore[no-any-return]
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
        )


class _Finite(LogitsProcessor):  # type: ignore[misc]
    """Refuses logits that are no numbers, and leaves others as they are."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return ``scores``."""
        check_logits(scores, self.embeddings)
        return scores


def path_of(config: FastSLMConfig, llm: TextModel, encoder: Any = Encoder, abstractor: Any = Abstractor) -> SpeechLM:
    """Return the path that a configuration describes, without weights.

    Args:
        config: of the exported model.
        llm: its LLM.
        encoder: class of its encoder.
        abstractor: class of its compressor.

    Raises:
        ValueError: a setting of it is missing, and a default would be another model.
    """
    missing = [name for name in config.path_names if name not in config.path]
    if missing or config.tokens_per_window is None:
        lost = missing or ["tokens_per_window"]
        raise ValueError(f"config.json lacks {', '.join(lost)}, which it was written with. Get the folder anew.")
    marks: Any = SimpleNamespace(audio_id=config.audio_token_id, stop_ids=config.stop_ids)
    rates = [config.tokens_per_window, config.budget["tokens_per_window"]]  # the second decided the weights' sizes
    tail: Literal["full", "proportional"] = "full" if config.budget["full_tail"] else "proportional"
    settings = SpeechSettings(tokens_per_window=rates, tail=tail, **config.path)
    made = partial(abstractor, **config.abstractor)
    return build(
        encoder.of_config(config.encoder_config, **config.encoder), made, llm, marks, settings, train_parts=None
    )


def computed(ours: Abstractor, config: FastSLMConfig, kind: Any = Abstractor) -> dict[str, Tensor]:
    """Return what a compressor computes rather than stores, such as position tables, by name, on the CPU.

    Args:
        ours: the compressor.
        config: of the exported model.
        kind: its class.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        twin = kind(ours.in_width, ours.out_width, TokenBudget(**config.budget), **config.abstractor)
        twin.set_tokens_per_window(ours.budget.tokens_per_window)
    stored = ours.state_dict().keys()
    return {name: value for name, value in twin.named_buffers() if name not in stored}


def flat(input_features: Tensor | None, audio_feature_lens: Iterable[Any] | None) -> tuple[Tensor, list[int]]:
    """Return recordings ``[R, N]``, or already end to end, ``[N]``, and the samples of each; see ``Batch``.

    Raises:
        ValueError: they are floats, whose scale nobody knows, or lengths and rows do not match.
    """
    if input_features is not None and input_features.is_floating_point():
        raise ValueError(
            f"input_features is {input_features.dtype}, and holds samples, which are int16 as the processor makes them:"
            " leave them so, as inputs.to(device, dtype) does."
        )
    lengths = None if audio_feature_lens is None else [int(n) for n in audio_feature_lens]
    rows: list[Tensor] = []
    if input_features is not None:
        joined = input_features.ndim == 1
        rows = list(torch.split(input_features, lengths or len(input_features)) if joined else input_features)
    lengths = [len(row) for row in rows] if lengths is None else lengths
    if len(lengths) != len(rows) or any(n > len(row) for n, row in zip(lengths, rows, strict=True)):
        rows_of = [len(row) for row in rows][:1]
        raise ValueError(f"audio_feature_lens says {lengths}, and input_features has {len(rows)} rows of {rows_of}.")
    parts = [row[:n] for n, row in zip(lengths, rows, strict=True)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int16), lengths


def names_in_folders(causal_lm: Any) -> dict[str, str]:
    """Return how the names of weights begin in a folder, where serving engines read them, by how they do in the model.

    Args:
        causal_lm: the LLM in the model.
    """
    llm, base = "path.llm.causal_lm.", causal_lm.base_model_prefix
    heads = {f"{llm}{name}.": f"{name}." for name, _ in causal_lm.named_children() if name != base}
    parts = {"encoder": "audio_tower", "abstractor": "abstractor", "layer_mix": "layer_mix"}
    return {f"path.{old}.": f"{new}." for old, new in parts.items()} | {f"{llm}{base}.": "language_model.", **heads}


def renamed(name: str, beginnings: dict[str, str]) -> str:
    """Return the name of a weight with another beginning, where it has one of these."""
    old = next((old for old in beginnings if name.startswith(old)), "")
    return beginnings.get(old, "") + name.removeprefix(old)


def _take_names_of_folders(model: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Give weights that are about to be loaded their names in the model: Trainer reads them from a folder itself."""
    beginnings = {prefix + new: prefix + old for old, new in names_in_folders(model.path.llm.causal_lm).items()}
    for name in list(state):
        state[renamed(name, beginnings)] = state.pop(name)


def _unsplit(model: nn.Module) -> set[str]:
    """Return the classes of transformers' layers in a model that must lie on one device whole."""
    return {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}


#: Options of ``generate`` that take the prompt from its ids. The LLM gets embeddings.
_READ_PROMPT_IDS = (
    "assistant_early_exit",
    "assistant_model",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "guidance_scale",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "use_mtp",
)
#: Those that change nothing at 1.
_NEUTRAL_AT_ONE = ("encoder_repetition_penalty", "guidance_scale")


class _Backbone(nn.Module):
    """A model up to its LLM's head.

    Args:
        whole: that model; its parameters are not those of this.
    """

    _tp_plan = _pp_plan = None  # transformers asks base models for these

    whole: Any

    def __init__(self, whole: Any) -> None:
        super().__init__()
        object.__setattr__(self, "whole", whole)

    def forward(self, input_ids: Tensor, *others: Any, **named: Any) -> Any:
        """Return the LLM's hidden states; arguments are those of the whole model.

        Raises:
            ValueError: the states would not stand where the ids do.
        """
        inputs = self.whole._llm_inputs(input_ids, *others, **named)
        if inputs["inputs_embeds"].shape[:2] != input_ids.shape:
            raise ValueError(
                "This trainer compares hidden states with the ids of labels, and a recording has more tokens than its"
                " one mark: give whole prompts, which processor(audio=..., text=...) makes of texts with <|AUDIO|>."
            )
        return self.whole.path.llm.causal_lm.base_model(**inputs)


class FastSLMForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Speech and text in, text out; recordings of any length.

    Inputs come from ``FastSLMProcessor``: ``input_ids`` and ``attention_mask`` ``[B, L]`` with one placeholder for each
    recording, or one for each of its speech tokens; ``input_features`` int16 ``[R, N]``, a row of samples at 16 kHz for
    each recording, and ``audio_feature_lens`` ``[R]``, its samples.
    """

    config_class = FastSLMConfig
    encoder_class: Any = Encoder
    abstractor_class: Any = Abstractor
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: FastSLMConfig) -> None:
        super().__init__(config)
        llm = TextModel(config.text_config, config.lora)
        self.path = path_of(config, llm, self.encoder_class, self.abstractor_class)
        # transformers asks direct children only for these, and the LLM is further down.
        llm_name = "path.llm.causal_lm"
        tied = llm.causal_lm.all_tied_weights_keys
        self._tied_weights_keys = {f"{llm_name}.{head}": f"{llm_name}.{table}" for head, table in tied.items()}
        self._no_split_modules = {*_unsplit(llm.causal_lm), *_unsplit(self.path.encoder)}
        self._keep_in_fp32_modules_strict = {f"path.{part}." for part in config.float32_parts}
        if config.lora is not None:  # before anything of the model is changed for them
            self.__dict__.update(add_adapter=_refuse_more_adapters, load_adapter=_refuse_more_adapters)
        self._takes_positions = "position_ids" in inspect.signature(llm.causal_lm.forward).parameters
        self._computed_done = False
        renaming = [WeightRenaming("^" + re.escape(n), m) for m, n in names_in_folders(llm.causal_lm).items()]
        register_checkpoint_conversion_mapping(type(self).__name__, renaming, overwrite=True)
        self.register_load_state_dict_pre_hook(_take_names_of_folders)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill in what is computed rather than stored, such as position tables: ``from_pretrained`` leaves it empty."""
        super()._init_weights(module)
        if self._computed_done or not any(part is module for part in self.path.abstractor.modules()):
            return
        self._computed_done = True
        tables = computed(self.path.abstractor, self.config, self.abstractor_class)
        for name, buffer in self.path.abstractor.named_buffers():
            if name in tables:
                buffer.copy_(tables[name])

    def save_pretrained(self, save_directory: Any, *args: Any, **named: Any) -> None:
        """Write the model with all code of the folder that it came from; transformers copies what is loaded now."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        pipelines = getattr(self.config, "custom_pipelines", None) or {}
        entries = [*(getattr(self.config, "auto_map", None) or {}).values(), *(p["impl"] for p in pipelines.values())]
        for module in sorted({entry.rpartition("--")[2].partition(".")[0] for entry in entries}):
            try:
                origin = Path(cached_file(self.config._name_or_path, f"{module}.py")).parent
            except OSError as error:
                warnings.warn(f"{target} lacks {module}.py, without which it cannot be loaded: {error}", stacklevel=2)
                continue
            for file in origin.glob("*.py"):
                if not (target / file.name).exists():
                    shutil.copyfile(file, target / file.name)
        super().save_pretrained(save_directory, *args, **named)

    def get_input_embeddings(self) -> nn.Module:
        """Return the LLM's embedding table."""
        return self.path.llm.causal_lm.get_input_embeddings()  # type: ignore[no-any-return, operator, union-attr]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's embedding table."""
        self.path.llm.causal_lm.set_input_embeddings(value)  # type: ignore[operator, union-attr]

    def get_output_embeddings(self) -> nn.Module:
        """Return the LLM's head."""
        return self.path.llm.causal_lm.get_output_embeddings()  # type: ignore[no-any-return, operator, union-attr]

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's head."""
        self.path.llm.causal_lm.set_output_embeddings(value)  # type: ignore[operator, union-attr]

    def resize_token_embeddings(self, *arguments: Any, **named: Any) -> nn.Module:
        """Give the LLM's tables another number of tokens, as transformers does, and return the embedding table."""
        causal_lm: Any = self.path.llm.causal_lm
        table: nn.Module = causal_lm.resize_token_embeddings(*arguments, **named)
        self.config.text_config.vocab_size = causal_lm.config.get_text_config().vocab_size
        return table

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_feature_lens: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """Return the LLM's output; its logits ``[B, S, V]`` stand where each placeholder has become speech tokens.

        Of whole prompts, with one mark for each speech token, they stand where the ids do: S is L, and padding stays
        where it is. Of others, rows are padded at the right with labels, and at the left without.

        Args:
            input_ids: ``[B, L]``.
            attention_mask: ``[B, L]``, 0 at padding.
            input_features: int16 ``[R, N]``; None for text alone.
            audio_feature_lens: samples of each recording ``[R]``; None where no row is padded.
            labels: ``[B, L]``, -100 where nothing is to be predicted.
            inputs_embeds: the spliced sequence itself, ``[B, S, D_llm]``, in place of ids and audio.
            others: passed to the LLM.

        Raises:
            ValueError: there are neither ids nor embeddings, or there is audio beside embeddings.
        """
        given = (input_ids, attention_mask, input_features, audio_feature_lens, labels, inputs_embeds)
        causal_lm: Any = self.path.llm.causal_lm
        return causal_lm(**self._llm_inputs(*given, **others))

    @property
    def base_model(self) -> nn.Module:
        """What trl's trainers run, which multiply by the head themselves: hidden states at the ids of whole prompts."""
        return _Backbone(self)

    def _llm_inputs(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_feature_lens: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Return what the LLM is called with; arguments are those of ``forward``."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Give input_ids (and input_features with audio_feature_lens), or inputs_embeds.")
            inputs_embeds, attention_mask, labels, _ = self._splice(
                input_ids, attention_mask, input_features, audio_feature_lens, labels, in_place=True
            )
            self._room(inputs_embeds, attention_mask)
            in_place = inputs_embeds.shape[:2] == input_ids.shape
            if in_place and attention_mask is not None and self._takes_positions:  # wherever the padding is
                others.setdefault("position_ids", (attention_mask.cumsum(1) - 1).clamp(min=0))
        elif input_features is not None:
            raise ValueError(
                "inputs_embeds is the whole sequence, and input_features beside it would not be heard: give one of"
                " them. PEFT's prompt learning gives both; train LoRA instead."
            )
        labelled = {} if labels is None else {"labels": labels}
        return {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, **labelled, **others}

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_feature_lens: Tensor | None = None,
        generation_config: Any = None,
        **others: Any,
    ) -> Any:
        """Return the answers' ids ``[B, L]``, without the prompt; options are those of transformers' ``generate``.

        Without ``max_new_tokens`` the limit follows the longest audio of a row. It is never more than the LLM's context
        has room for.

        Raises:
            ValueError: there are no ids, an option reads more ids than there are, ids and audio leave no room in the
                LLM's context, or its logits are no numbers.
        """
        if input_ids is None:
            raise ValueError("Give input_ids, and input_features with audio_feature_lens, as the processor makes them.")
        settings = copy.deepcopy(generation_config or self.generation_config)
        settings.update(**self.generation_config.to_dict(), defaults_only=True)  # what the caller leaves open
        most, longest = others.pop("max_new_tokens", None), others.pop("max_length", None)
        others = settings.update(**others)  # as one configuration: the model is shared by threads, and keeps none
        given = {name: others.get(name, getattr(settings, name, None)) for name in _READ_PROMPT_IDS}
        if useless := [n for n, value in given.items() if value and not (value == 1 and n in _NEUTRAL_AT_ONE)]:
            raise ValueError(
                f"generate: {', '.join(useless)} would read the ids of the whole prompt, and speech tokens have none:"
                " leave it out."
            )
        embeddings, mask, _, seconds = self._splice(input_ids, attention_mask, input_features, audio_feature_lens, None)
        room = self._room(embeddings, mask, least=1)
        if mask is None:
            mask = torch.ones(embeddings.shape[:2], dtype=torch.int64, device=embeddings.device)
        most = settings.max_new_tokens if most is None else most
        longest = settings.max_length if longest is None else longest
        if longest is not None:  # of prompt and answer
            if most is None and longest <= embeddings.shape[1]:
                raise ValueError(
                    f"max_length is {longest}, prompt included, and the prompt alone makes {embeddings.shape[1]}"
                    " positions, those of its audio among them: give max_new_tokens. (Seq2SeqTrainer sets a"
                    " max_length of 20 in model.generation_config, where there is none.)"
                )
            settings.max_length = min(longest, embeddings.shape[1] + room)
        elif most is None:
            most = int(32 + self.config.new_tokens_per_second * seconds)
        if most is not None:
            settings.max_new_tokens = min(most, room)
        others["logits_processor"] = [_Finite(embeddings), *(others.get("logits_processor") or [])]
        causal_lm: Any = self.path.llm.causal_lm
        return causal_lm.generate(inputs_embeds=embeddings, attention_mask=mask, generation_config=settings, **others)

    @torch.no_grad()
    def prompt_embeds(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_feature_lens: Tensor | None = None,
    ) -> list[Tensor]:
        """Return for each row what the LLM reads, ``[S, D_llm]``, as engines with prompt embeddings take it."""
        embeddings, mask, *_ = self._splice(input_ids, attention_mask, input_features, audio_feature_lens, None)
        if mask is None:
            return list(embeddings)
        return [row[kept.bool()] for row, kept in zip(embeddings, mask, strict=True)]

    def _splice(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        input_features: Tensor | None,
        audio_feature_lens: Tensor | None,
        labels: Tensor | None,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, float]:
        """Return embeddings ``[B, S, D_llm]``, their mask (None when nothing is padded), labels ``[B, S]`` and seconds.

        The seconds are those of audio in the row that has most. Whole prompts stay ``in_place``, padding included.
        """
        samples, lengths = flat(input_features, audio_feature_lens)
        speech = self.path.listen(Batch(samples.to(self.device), lengths, [], [], []))
        dialogues, seconds, place = [], [0.0], 0
        shown = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        shown = shown.cpu().bool()
        kept = self._kept(input_ids.cpu(), shown, [len(rows) for rows in speech.rows])
        for i, (row, keep) in enumerate(zip(input_ids.cpu(), kept, strict=True)):
            ids = row[keep].numpy()
            targets = torch.full_like(row, -100) if labels is None else labels[i].cpu()
            dialogues.append(Dialogue(ids, targets[keep].numpy(), len(ids), reference="", task="dialogue"))
            count = int((ids == self.config.audio_token_id).sum())
            seconds.append(sum(lengths[place : place + count]) / SAMPLE_RATE_HZ)
            place += count
        layout = self.path.text.layout(dialogues, speech.rows, prompt_only=labels is None)
        whole = in_place and layout.num_tokens == tuple(shown.sum(1).tolist())
        if whole:
            source, mask = torch.zeros_like(shown, dtype=torch.int64), layout.attention_mask
            source[shown] = layout.source.flatten() if mask is None else layout.source[mask.bool()]
            layout = replace(layout, source=source, attention_mask=None if shown.all() else shown.long())
        embeddings = self.path.text.embed(layout, speech.tokens)
        device = embeddings.device
        mask = None if layout.attention_mask is None else layout.attention_mask.to(device)
        if labels is None:
            return embeddings, mask, None, max(seconds)
        if whole:
            # Nothing comes before the first of a row to predict it, and no speech token is an id.
            unlabelled = ~shown | (shown.cumsum(1) == 1) | (input_ids == self.config.audio_token_id).cpu()
            return embeddings, mask, labels.to(device).masked_fill(unlabelled.to(device), -100), max(seconds)
        spread = torch.full((embeddings.shape[0] * embeddings.shape[1],), -100, device=device)
        spread[layout.predicting.to(device) + 1] = layout.labels.to(device)
        return embeddings, mask, spread.reshape(embeddings.shape[:2]), max(seconds)

    def _room(self, embeddings: Tensor, mask: Tensor | None, least: int = 0) -> int:
        """Return how many positions the LLM's context has behind the longest of these rows.

        Args:
            embeddings: ``[B, S, D_llm]``.
            mask: ``[B, S]``, 0 at padding; None where there is none.
            least: that there must be.

        Raises:
            ValueError: there are fewer.
        """
        longest = embeddings.shape[1] if mask is None else int(mask.sum(1).max())
        context = int(self.config.audio_config.max_source_positions)
        if context - longest < least:
            raise ValueError(
                f"The prompt makes {longest} positions, those of its audio among them, and the LLM has {context}. Give"
                " shorter recordings, or transcribe section by section (section_minutes of fastslm)."
            )
        return context - longest

    def _kept(self, input_ids: Tensor, kept: Tensor, counts: list[int]) -> Tensor:
        """Return which ids to read ``[B, L]``: no padding, and of as many marks as a recording has tokens the first.

        Args:
            input_ids: on the CPU.
            kept: which are no padding, on the CPU.
            counts: tokens of each recording.
        """
        marks = kept & (input_ids == self.config.audio_token_id)
        if not counts or int(marks.sum()) != sum(counts):
            return kept  # one mark for each recording
        first = torch.zeros(sum(counts), dtype=torch.bool)
        first[torch.tensor([0, *counts[:-1]]).cumsum(0)] = True
        return kept.masked_scatter(marks, first)
