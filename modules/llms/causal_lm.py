"""Any Hugging Face causal LM, with LoRA: reads embeddings, predicts at label positions only, writes greedily."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fastslm.contracts import KVCache, LanguageModel
from fastslm.errors import ConfigError, MissingExtraError, nearest
from fastslm.path.base_folder import cannot_load, read_config
from fastslm.path.loss import label_loss
from fastslm.path.one_sequence import one_sequence
from fastslm.path.pretrained import dtype_on, reason, resolve
from fastslm.settings import Change, setting

from ._lean_norm import make_norms_lean
from ._liger import use_liger
from ._loss_head import give_loss, losing, rows_of
from ._new_rows import enlarge
from ._packing import packed_arguments
from ._recomputing import Recomputing, keeping_products
from ._tree import agree, places_tokens, tree_mask

_KEY = "model.llm.pretrained"
_NO_TOKENIZER = (
    ": tokenizer.json (or tokenizer.model, or vocab.json with merges.txt) is missing or empty. Copy the tokenizer files"
    " of the model into the folder."
)
#: Model types that forget their convolution's state when they read on by several positions at once.
_ONE_BY_ONE = ("recurrent_gemma",)
#: Model types that read padding at the left as input, and that count it as positions.
_NOT_BESIDE_OTHERS = ("recurrent_gemma", "mpt")
#: Linear layers (of Jamba, of Gemma 3n) whose weights are read without a call: an adapter there would have no effect,
#: and a data-parallel step would wait for its gradient.
_NEVER_CALLED = ("dt_proj", "correction_coefs")
#: How classes of linear layers end.
_LINEAR = ("Linear", "Conv1D", "Linear4bit")


@dataclass
class LoRA:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on linear layers of the LLM.

    Attributes:
        rank: rank of an adapter.
        alpha: the adapter's output is scaled by alpha / rank.
        dropout: dropout in front of an adapter, 0..1 (the release: 0.01). It costs a mask of each layer's input.
        targets: ``all-linear``, or a list of names of linear layers, such as ``[q_proj, v_proj]``.

    Raises:
        ConfigError: a number is out of its range.
    """

    rank: int = setting(16, changes="weights")
    alpha: float = setting(64, changes="weights")
    dropout: float = setting(0.0, changes="nothing")
    targets: Literal["all-linear"] | Sequence[str] = setting("all-linear", changes="weights")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"model.llm.lora.rank: {self.rank} must be at least 1.")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"model.llm.lora.alpha: {self.alpha:g} must be a number above 0.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.llm.lora.dropout: {self.dropout:g} must be 0 or more, and below 1.")


class CausalLM(LanguageModel):
    """A causal LM loaded through transformers.

    Args:
        pretrained: hub name, local folder, or ``fastslm:...`` for a folder inside this package; holds the tokenizer
            too.
        initialize: ``pretrained`` loads weights; ``random`` builds the architecture from the folder's config alone.
        overrides: values that replace those of the folder's config when ``initialize`` is ``random``.
        lora: adapters; made when ``model.train_parts`` names lora. Null leaves the LLM without.
        dtype: dtype of the weights that do not train; ``auto`` is bfloat16 on a GPU that has it, else float32.
        attention: transformers' attention implementation; null lets it choose what the model supports, and so does
            ``flash_attention_2`` without a GPU or the package flash-attn, which a line says.
        gradient_checkpointing: recompute layers in the backward pass instead of keeping their activations. ``auto``
            recomputes as many as must be so that the others' fit into half of what is free, decided anew for each
            batch; under ZeRO-3 and FSDP2, and where the LLM itself trains, all. ``selective`` keeps the products of
            matrices and attention and recomputes what is cheap.
        packing: dialogues of a batch stand end to end in one row, without padding, which ``data.batch_tokens`` then
            does not count. ``auto`` does so where ``attention: flash_attention_2`` is in use on a GPU. An LLM that
            cannot keep them apart is found when training starts, and gets padded batches.
        context_length: positions to allow; null takes the model's own.
        quantize: ``nf4`` holds the frozen linear layers in 4 bits (QLoRA, Dettmers et al., arXiv 2305.14314), a quarter
            of bfloat16's memory, slower, and trained through adapters only; needs the extra ``qlora``.
        new_rows: where the special tokens outgrow the embedding table, its new rows are told apart, the same at every
            load; ``alike`` gives all of them the mean row, as runs from before this setting have it.
        liger: fused norms, rotary embeddings and gated layers, with the extra ``liger`` and on a GPU; elsewhere, and
            for LLMs that it does not know, a line says so and the LLM stays as it is.

    Raises:
        ConfigError: nothing usable at ``pretrained``, an unknown override, or a tokenizer that is missing.
    """

    changes: ClassVar[Mapping[str, Change]] = {
        "initialize": "weights",
        "overrides": "weights",
        "pretrained": "nothing",  # told apart by fingerprint
        "dtype": "nothing",
        "attention": "nothing",
        "gradient_checkpointing": "nothing",
        "packing": "nothing",
        "context_length": "nothing",
        "quantize": "nothing",
        "liger": "nothing",
    }

    def __init__(
        self,
        pretrained: str,
        *,
        initialize: Literal["pretrained", "random"] = "pretrained",
        overrides: dict[str, Any] | None = None,
        lora: LoRA | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None,
        gradient_checkpointing: bool | Literal["auto", "selective"] = False,
        packing: bool | Literal["auto"] = "auto",
        context_length: int | None = None,
        quantize: Literal["nf4"] | None = None,
        new_rows: Literal["alike"] | None = None,
        liger: bool = False,
    ) -> None:
        super().__init__()
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoTokenizer

        self.pretrained = pretrained
        self.initialize = initialize
        self.lora = lora
        self._dtype_setting: str = dtype
        self.dtype = dtype_on(torch.device("cpu"), dtype)  # until `settle` knows the device
        self.attention = attention
        self.gradient_checkpointing = gradient_checkpointing
        self.packing = packing
        self.quantize = quantize
        self.new_rows = new_rows
        self.liger = liger
        self.missed_targets: str | None = None
        self._device = torch.device("cpu")
        if quantize is not None and (initialize == "random" or lora is None):
            raise ConfigError(
                "model.llm.quantize: 4-bit weights are pretrained ones that stay frozen, trained through adapters. Set"
                " initialize: pretrained and lora, or leave quantize out."
            )
        config = read_config(pretrained, _KEY)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
            raise ConfigError(
                f"{_KEY}: {pretrained!r} is a {config.model_type!r} model, which is no LLM that continues a text. If it"
                " is the speech encoder, it belongs to model.encoder.pretrained."
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(resolve(pretrained, _KEY), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{_KEY}: no tokenizer at {pretrained!r}{_NO_TOKENIZER} ({reason(error)})") from error
        if self.tokenizer.vocab_size <= len(self.tokenizer.all_special_ids):  # what transformers makes of no file
            raise ConfigError(f"{_KEY}: no tokenizer at {pretrained!r}{_NO_TOKENIZER}")
        if overrides and initialize != "random":
            raise ConfigError("model.llm.overrides: only with initialize: random; pretrained weights fix them.")
        for name, value in (overrides or {}).items():
            if name.startswith("_") or not hasattr(config, name):  # those hidden ones name code, too
                raise ConfigError(f"model.llm.overrides: unknown {name!r}.{nearest(name, config.to_dict())}")
            setattr(config, name, value)
        self._describe(config, context_length)
        self.causal_lm: Any = None
        self._positions: Tensor | None = None
        self._reads_trees: bool | None = None  # None: not tried yet
        self._recomputing: Recomputing | None = None

    @classmethod
    def around(cls, causal_lm: Any, tokenizer: Any, context_length: int | None = None) -> "CausalLM":
        """Return an LLM around a causal LM of transformers that is there already, adapters and all."""
        made = cls.__new__(cls)
        super(cls, made).__init__()
        made.pretrained, made.initialize, made.lora = causal_lm.config.name_or_path, "pretrained", None
        made.new_rows, made.liger = None, False
        made.dtype, made.attention, made.gradient_checkpointing, made.quantize = causal_lm.dtype, None, False, None
        made._dtype_setting = str(causal_lm.dtype).removeprefix("torch.")
        made.tokenizer = tokenizer
        made._describe(causal_lm.config, context_length)
        made._positions = made._recomputing = made._reads_trees = None
        made._hold(causal_lm)
        return made

    def _describe(self, config: Any, context_length: int | None) -> None:
        self.config, self.can_batch = config, config.model_type not in _NOT_BESIDE_OTHERS
        text_config = config.get_text_config()
        # OPT-350m embeds in 512 features and has layers of 1024; `_hold` knows from the table itself.
        self.width = int(getattr(text_config, "word_embed_proj_dim", None) or text_config.hidden_size)
        names = ("max_position_embeddings", "max_seq_len")  # the second is MPT's
        own_length = next(filter(None, (getattr(text_config, name, None) for name in names)), 1 << 30)
        if context_length is not None and context_length < 1:
            raise ConfigError(f"model.llm.context_length: {context_length} must be at least 1, or null.")
        self._own_length, self.context_length = int(own_length), context_length or int(own_length)
        if self.context_length > self._own_length and _has_table(config):
            self.context_length = self._own_length  # 1 << 30 is what exports of before have of an MPT
            if context_length != 1 << 30:
                named = f"model.llm.context_length: {context_length} positions, and {self.pretrained!r}"
                _warn(f"{named} has {self._own_length}, which are taken.")

    def _hold(self, causal_lm: Any) -> None:
        from transformers import GenerationConfig

        # Penalties, sampling and ends of the base model are those of its own answers; ours are greedy, here as in use.
        causal_lm.generation_config = GenerationConfig()
        # The head sees label positions only: logits of a 150k vocabulary at every position would be the largest
        # tensor of the step. A hook, so that scaling and capping after the head stay the model's own.
        causal_lm.get_output_embeddings().register_forward_pre_hook(self._select_positions)
        causal_lm.register_forward_pre_hook(self._stay_in_context, with_kwargs=True)
        self.takes_labels = give_loss(causal_lm)
        self.causal_lm = causal_lm
        table = causal_lm.get_input_embeddings().weight
        self.width = int(getattr(table, "ds_shape", table.shape)[-1])  # ZeRO-3 leaves an empty tensor here

    def settle(self, device: torch.device) -> None:
        """Choose dtype and attention, and whether to pack."""
        self._device, self.dtype = device, dtype_on(device, self._dtype_setting)
        # Where it is missing, transformers would fetch one from the hub and run it, if the package `kernels` is there.
        if self.attention == "flash_attention_2" and (device.type != "cuda" or find_spec("flash_attn") is None):
            lacking = "needs a GPU" if device.type != "cuda" else "needs the package flash-attn, which is not installed"
            _warn(f"model.llm.attention: flash_attention_2 {lacking}. The LLM runs with torch's attention.")
            self.attention = None
        self.can_pack = self.attention == "flash_attention_2" if self.packing == "auto" else self.packing

    def leave_out_adapters(self) -> None:
        """Make no adapters in ``load``."""
        self.lora = None

    def load(self) -> None:
        """Bring the weights, enlarge the embedding table if the tokenizer outgrew it, and add the adapters."""
        if self.causal_lm is not None:
            return
        from transformers import AutoModelForCausalLM

        if self.initialize == "random":
            model = AutoModelForCausalLM.from_config(
                self.config, dtype=self.dtype, attn_implementation=self.attention, trust_remote_code=False
            )
        else:
            quantized = {} if self.quantize is None else {"quantization_config": self._quantization()}
            try:
                model, info = AutoModelForCausalLM.from_pretrained(
                    resolve(self.pretrained, _KEY),
                    dtype=self.dtype,
                    attn_implementation=self.attention,
                    output_loading_info=True,
                    trust_remote_code=False,
                    **quantized,
                )
            except Exception as error:  # transformers, and libraries for quantized weights, raise whatever they like
                raise cannot_load(self.pretrained, _KEY, self.config, error) from error
            if info["missing_keys"]:
                missing = ", ".join(sorted(info["missing_keys"])[:3])
                raise ConfigError(f"{_KEY}: {self.pretrained!r} lacks {len(info['missing_keys'])} weights: {missing}")
        if self.context_length > self._own_length:
            _warn(
                f"model.llm.context_length: {self.context_length} positions, and {self.pretrained!r} was made for"
                f" {self._own_length}: what it makes of longer audio may be of no use."
            )
        num_ids = max(len(self.tokenizer), *(i + 1 for i in self.tokenizer.added_tokens_decoder), 0)  # may have gaps
        if num_ids > model.get_input_embeddings().num_embeddings:
            tokens = self.tokenizer.convert_ids_to_tokens(range(num_ids))
            enlarge(model, tokens, apart=self.new_rows != "alike")
        if self.lora is not None:
            from ._lean_lora import make_lean

            self.missed_targets = self._add_adapters(model, self.lora)
            make_lean(model, in_place=self.gradient_checkpointing != "selective")
        make_norms_lean(model)
        if self.liger and (lacking := use_liger(model, self._device)) is not None:
            _warn(f"model.llm.liger: {lacking}. The LLM runs without them.")
        if self.gradient_checkpointing:
            selective = self.gradient_checkpointing == "selective"
            contexts = {"context_fn": keeping_products(self.lora.rank if self.lora else 0)} if selective else {}
            model.activation_checkpointing_enable({"use_reentrant": False, **contexts})
            self._recomputing = Recomputing(model) if self.gradient_checkpointing == "auto" else None
        self._hold(model.train())  # from_pretrained leaves evaluation mode, which turns checkpointing off

    def _apply(self, fn, recurse: bool = True) -> "CausalLM":  # type: ignore[no-untyped-def]
        """Move or cast, but never the frequencies of rotary embeddings: in bfloat16 they are up to 0.4 % off."""
        kept = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and name.endswith("inv_freq") and buffer.dtype == torch.float32
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, buffer in kept:
            moved = module._buffers[name]
            if moved is not None and moved.dtype != torch.float32:
                module._buffers[name] = buffer.to(moved.device)
        return self

    def _quantization(self) -> Any:
        """Return transformers' settings for 4-bit weights, where this machine can have them."""
        if find_spec("bitsandbytes") is None:
            raise MissingExtraError("bitsandbytes", "qlora", "model.llm.quantize")
        from transformers import BitsAndBytesConfig
        from transformers.integrations import is_deepspeed_zero3_enabled

        if is_deepspeed_zero3_enabled():
            raise ConfigError(
                "model.llm.quantize: ZeRO-3 cannot shard 4-bit weights. Use configs/hardware/8gpu_zero2.yaml, or leave"
                " quantize out."
            )
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=self.dtype,
        )

    @staticmethod
    def _add_adapters(model: Any, lora: LoRA) -> str | None:
        """Add adapters, and return what is wrong with their targets: PEFT passes over names that no layer has."""
        from peft import LoraConfig, inject_adapter_in_model

        layers = dict(model.named_modules())
        present = {name.rpartition(".")[2] for name in layers}
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
            exclude_modules=[name for name in _NEVER_CALLED if name in present] or None,
            task_type="CAUSAL_LM",
        )
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            if "lora_dropout" in str(error):  # PEFT adapts stacked experts, and has no dropout for them
                raise ConfigError(
                    f"model.llm.lora.dropout: {lora.dropout:g} cannot be had for the experts of this LLM, whose weights"
                    " are stacked in one tensor. Set it to 0, or name the layers to adapt in model.llm.lora.targets."
                ) from error
            if "Mamba" in str(error):
                raise ConfigError(
                    "model.llm.lora.targets: PEFT cannot adapt out_proj and conv1d of Mamba layers. Name the layers to"
                    " adapt without them, such as '[in_proj]', and q_proj, v_proj of a hybrid's attention."
                ) from error
            missed = _missed_targets(lora.targets, config, layers)
            raise ConfigError(missed or f"model.llm.lora.targets: {reason(error)}") from error
        return _missed_targets(lora.targets, config, layers)

    def _select_positions(self, _module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._positions is None:
            return None
        (hidden, *rest) = arguments
        return (hidden.flatten(0, 1)[self._positions], *rest)

    def _stay_in_context(
        self, _module: Any, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Hold written tokens at the last position of the context, which rows that are done would pass in a batch."""
        position_ids = named.get("position_ids")
        if position_ids is not None and position_ids.shape[-1] == 1:
            named = {**named, "position_ids": position_ids.clamp(max=self.context_length - 1)}
        return arguments, named

    def _recomputed(self, embeddings: Tensor) -> contextlib.AbstractContextManager[None]:
        if self._recomputing is None:
            return contextlib.nullcontext()
        trains = any(p.requires_grad for n, p in self.causal_lm.named_parameters() if ".lora_" not in n)
        return self._recomputing.decided(embeddings, all_again=self.in_step or trains)

    @property
    def _is_causal(self) -> bool:
        """Whether every position reads those before it only."""
        text = self.config.get_text_config()
        return getattr(text, "is_causal", True) and not getattr(text, "use_bidirectional_attention", None)

    def stock_model(self) -> Any:
        """Return the model inside; a subclass may compute something else, and has to say what."""
        return self.causal_lm if type(self) is CausalLM else super().stock_model()

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings ``[..., D_llm]`` of token ids ``[...]``."""
        return self.causal_lm.get_input_embeddings()(input_ids)  # type: ignore[no-any-return]

    def forward(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        lengths: Sequence[int] | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return logits ``[N, V]`` at ``positions``, or the loss there; see ``LanguageModel.forward``."""
        if self._is_causal:  # what stands at the right is seen by nobody: no mask, which fused attention cannot take
            attention_mask = None
        packed: dict[str, Any] = {}
        masks: contextlib.AbstractContextManager[Any] = one_sequence()
        if lengths is not None:
            packed, masks = packed_arguments(lengths, embeddings.device, self.causal_lm.config.get_text_config())
        head = self.causal_lm.get_output_embeddings()
        loss: contextlib.AbstractContextManager[list[Tensor]] = contextlib.nullcontext([])
        if labels is not None and len(labels) > rows_of(head):
            loss = losing(head, labels)
        self._positions = positions
        try:
            with self._recomputed(embeddings), masks, loss as losses:
                output = self.causal_lm(
                    inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False, **packed
                )
        finally:
            self._positions = None
        if labels is None:
            return output.logits  # type: ignore[no-any-return]
        return losses[0] if losses else label_loss(output.logits, labels)

    @torch.no_grad()
    def generate(
        self, embeddings: Tensor, attention_mask: Tensor, max_new_tokens: int, stop_ids: Sequence[int]
    ) -> Tensor:
        """Return greedy continuations ``[B, L]``; see ``LanguageModel.generate``."""
        from transformers import GenerationConfig

        stops = list(stop_ids)
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=stops[0]
        )
        return self.causal_lm.generate(  # type: ignore[no-any-return]
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            generation_config=settings,
            synced_gpus=self.in_step,
        )

    def new_cache(self) -> KVCache:
        """Return an empty cache for ``extend``."""
        from ._kv_cache import HFCache, modules_with_state

        return HFCache(self.causal_lm.config, modules_with_state(self.causal_lm))

    def extend(self, embeddings: Tensor, attention_mask: Tensor | None, cache: KVCache) -> Tensor:
        """Read on and return the logits ``[B, V]`` of the last position; see ``LanguageModel.extend``."""
        from ._kv_cache import HFCache, positions_of

        assert isinstance(cache, HFCache)
        num_new = embeddings.shape[1]
        if num_new > 1 and cache.num_positions and self.config.model_type in _ONE_BY_ONE:
            for end in range(1, num_new + 1):
                seen = None if attention_mask is None else attention_mask[:, : cache.num_positions + 1]
                logits = self.extend(embeddings[:, end - 1 : end], seen, cache)
            return logits
        with cache.states_in_place():
            output = self.causal_lm(
                inputs_embeds=embeddings,
                attention_mask=attention_mask,
                position_ids=None if attention_mask is None else positions_of(attention_mask, num_new),
                past_key_values=cache.layers_of,
                use_cache=True,
                logits_to_keep=1,
            )
        cache.add(num_new)
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def branch(self, embeddings: Tensor, parents: Sequence[int], wanted: Sequence[int], cache: KVCache) -> Tensor:
        """Return the logits ``[N, V]`` behind tokens that branch off what was read; see ``LanguageModel.branch``.

        They are read in one pass where the architecture takes a mask for it, which is found out by the first tree.
        """
        if self._reads_trees and cache.can_cut:
            return self._branch(embeddings, parents, wanted, cache)
        by_rows = super().branch(embeddings, parents, wanted, cache)
        branches = len(set(parents)) < len(parents)  # on a single way any mask does
        if self._reads_trees is None and branches and cache.can_cut:
            try:
                at_once = self._branch(embeddings, parents, wanted, cache.copy())
                self._reads_trees = places_tokens(self.causal_lm) and agree(at_once, by_rows)
            except Exception:  # whatever an architecture makes of such a mask: rows do as well
                self._reads_trees = False
        return by_rows

    def _branch(self, embeddings: Tensor, parents: Sequence[int], wanted: Sequence[int], cache: KVCache) -> Tensor:
        from ._kv_cache import HFCache

        assert isinstance(cache, HFCache)
        before = cache.num_positions
        mask, position_ids = tree_mask(parents, before, embeddings)
        try:
            output = self.causal_lm(
                inputs_embeds=embeddings[None],
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=cache.layers_of,
                use_cache=True,
                logits_to_keep=torch.tensor(list(wanted), device=embeddings.device),
            )
            return output.logits[0]  # type: ignore[no-any-return]
        finally:
            cache.add(cache.layers_of.get_seq_length() - before)
            cache.cut(before)


def _warn(note: str) -> None:
    """Warn once, on the first rank."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]

    rank_zero_warn(note, stacklevel=5)


def _missed_targets(named: str | Sequence[str], config: Any, layers: Mapping[str, Any]) -> str | None:
    """Return which target no layer is called, for people; None where all are found.

    Args:
        named: the targets of the setting.
        config: PEFT's, used, when names of experts that transformers stacks are none of its targets any more.
        layers: modules of the LLM by name, before it had adapters.
    """
    usable = {f".{name}": layer for name, layer in layers.items() if not name.endswith(_NEVER_CALLED)}
    for target in () if isinstance(named, str) else sorted(config.target_modules):
        if any(name.endswith(f".{target}") for name in usable):
            continue
        linear = {n.rpartition(".")[2] for n, layer in usable.items() if type(layer).__name__.endswith(_LINEAR)}
        return (
            f"model.llm.lora.targets: no layer of this LLM that can have an adapter is called {target!r}."
            f"{nearest(target, linear)} There are {', '.join(sorted(linear))}."
        )
    return None


def _has_table(config: Any) -> bool:
    """Say whether an LLM has a table of positions, and none beyond its end."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    is_stateful = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._is_stateful
    return getattr(config.get_text_config(), "rope_parameters", None) is None and not is_stateful
