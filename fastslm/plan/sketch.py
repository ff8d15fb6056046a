"""A model without memory: its parts counted, and its steps run with tensors that have shapes only."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastslm.path.device_type import simulated_on
from fastslm.path.loss import answer_loss
from fastslm.path.one_sequence import one_sequence
from fastslm.path.parts import parameters_by_part, settle_parts
from fastslm.path.prompt import messages_of
from fastslm.path.splice import splice
from fastslm.plan.live import LiveBytes, tensor_bytes
from fastslm.training.lightning_module import SpeechLMModule

#: NF4 with double quantisation: 4 bits, and the scales of blocks of 64 in 8 bits (Dettmers et al., 2023, section 3).
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Part:
    """Parameters of one part of the model.

    Attributes:
        name: encoder, abstractor, projector, lora or llm.
        parameters: how many.
        trainable: how many of them train.
        frozen_bytes: memory of those that do not, as they are loaded.
    """

    name: str
    parameters: int
    trainable: int
    frozen_bytes: int


@dataclass(frozen=True)
class Peaks:
    """Bytes beyond weights and optimizer states, at the worst moment of each half of a step.

    Attributes:
        listening: from audio to tokens; the gradients of the step before are still there.
        reading: LLM, loss and the whole backward pass; the gradients grow meanwhile.
    """

    listening: int
    reading: int

    @property
    def worst(self) -> int:
        """The larger of the two."""
        return max(self.listening, self.reading)


class Sketch:
    """The path of a module with parameters that have shape and dtype, and no memory.

    Args:
        module: a module whose weights were not loaded; its parts are used up.
        autocast: dtype of mixed precision; None computes in the dtype of the weights.
        trainable_dtype: dtype of the weights that train.
        device: where the model would run, which decides a dtype of ``auto``; nothing is put there. None is the CPU.
    """

    def __init__(
        self,
        module: SpeechLMModule,
        autocast: torch.dtype | None = None,
        trainable_dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.module, self.autocast, self.device = module, autocast, device or torch.device("cpu")
        encoder, _, llm = module.parts
        self.quantized = getattr(llm, "quantize", None) is not None
        # another package's may have no way to be built without its weights
        bare = [part for part in (encoder, llm) if hasattr(part, "initialize")]
        for part in bare:
            _without_weights(part)
        settle_parts(encoder, llm, self.device, module.settings.train_parts)
        for part in (encoder, llm):
            with torch.device("meta") if part in bare else contextlib.nullcontext():
                part.load()
        with torch.device("meta"):
            self.path = module.build(frame_cache=False).train()
        self.parts = self._count()
        self.training_peaks = functools.cache(self._training_peaks)  # kinds of hardware ask for the same ones
        self.inference_peaks = functools.cache(self._inference_peaks)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)  # shapes, dtypes and a device, and no memory
        for root in (self.path, encoder):
            _give_fake_memory(root, self._mode, trainable_dtype)

    def _count(self) -> list[Part]:
        named = parameters_by_part(self.path)
        if "encoder" not in named:  # frozen, and outside the module tree
            named["encoder"] = list(self.path.encoder.named_parameters())
        order = ("encoder", "abstractor", "projector", "lora", "llm")
        return [
            Part(
                name=part,
                parameters=sum(p.numel() for _, p in named[part]),
                trainable=sum(p.numel() for _, p in named[part] if p.requires_grad),
                frozen_bytes=round(sum(self._bytes_of(n, p) for n, p in named[part] if not p.requires_grad)),
            )
            for part in order
            if part in named
        ]

    def _bytes_of(self, name: str, parameter: Tensor) -> float:
        # bitsandbytes cuts down the matrices of linear layers; embeddings, head and norms stay.
        linear = parameter.ndim == 2 and ".layers." in name and ".lora_" not in name
        return parameter.numel() * (_NF4_BYTES if self.quantized and linear else parameter.element_size())

    # -- lengths ---------------------------------------------------------------------------------------------------

    def positions(self, num_windows: int, num_labels: int) -> int:
        """Return the LLM positions of one recording with its prompt and an answer of ``num_labels`` ids."""
        return num_windows * self.path.abstractor.budget.tokens_per_window + self._num_prompt_ids + num_labels

    @property
    def _num_prompt_ids(self) -> int:
        dialogue = self.module.prompter.dialogue(messages_of({"text": "."}), 1, "asr")
        return dialogue.num_prompt_ids - 1

    def kv_bytes_per_position(self) -> int | None:
        """Return the KV cache of one position; None where the LLM's configuration does not tell."""
        config = getattr(self.path.llm, "config", None)
        if config is None:
            return None
        text = config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        dtype: torch.dtype = getattr(self.path.llm, "dtype", torch.float32)
        return int(2 * text.num_hidden_layers * heads * width * dtype.itemsize)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _training_peaks(self, num_windows: int, num_labels: int) -> Peaks:
        """Simulate a training step on one recording, and return what it needs beyond weights and optimizer states."""
        trainable = [p for p in self.path.parameters() if p.requires_grad]
        with self._watched() as live:
            for parameter in trainable:
                parameter.grad = torch.empty_like(parameter)
            live.reset_peak()
            audio = torch.empty(num_windows * self.path.listener.window_samples, dtype=torch.int16)
            tokens, others = self.listen(num_windows, live)
            listening = live.peak - live.now["weights"]
            live.reset_peak()
            loss = self._read(tokens, num_labels)
            del tokens
            for parameter in trainable:
                parameter.grad = None
            loss.backward()
            del loss, audio, others
            reading = live.peak - live.now["weights"]
            for parameter in trainable:
                parameter.grad = None
        alignment = self._alignment_bytes(num_windows, num_labels)
        return Peaks(listening, reading + alignment)

    def _inference_peaks(self, num_windows: int, chunk: int) -> Peaks:
        """Simulate encoding a recording and reading ``chunk`` positions; the KV cache comes on top."""
        training = self.path.training
        self.path.eval()
        with self._watched() as live, torch.no_grad():
            audio = torch.empty(num_windows * self.path.listener.window_samples, dtype=torch.int16)
            tokens, _ = self.listen(num_windows, live)
            listening = live.peak - live.now["weights"]
            live.reset_peak()
            embeddings = torch.zeros(1, chunk, self.path.llm.width, dtype=tokens.dtype)
            self.path.llm(embeddings, None, torch.zeros(1, dtype=torch.int64))
            reading = live.peak - live.now["weights"]
            del audio
        self.path.train(training)
        return Peaks(listening, reading)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[LiveBytes]:
        """Simulate within it; gives the count of what is alive, the weights among it."""
        live = LiveBytes()
        with self._mode, live, self._autocast(), one_sequence(), simulated_on(self.device.type):
            live.adopt({*self.path.parameters(), *self.path.encoder.parameters(), *self.path.buffers()}, "weights")
            yield live

    @contextlib.contextmanager
    def simulated(self) -> Iterator[None]:
        """Within it, what runs on the path has shapes only, in the precision of the run."""
        with self._mode, self._autocast():
            yield

    def _autocast(self) -> Any:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast("cpu", self.autocast)

    def listen(self, num_windows: int, live: LiveBytes | None = None) -> tuple[Tensor, list[Tensor]]:
        """Do as ``Listener`` does: groups of windows, whose tokens stay.

        Args:
            num_windows: of the recording.
            live: counts what is alive. Full groups leave equally much behind, so with it three are simulated, and bytes
                of the same number stand for the others: a quarter of an hour has dozens.

        Returns:
            The tokens, and the bytes of groups that were not simulated, which must live as long as the tokens' graph.
        """
        listener, device = self.path.listener, torch.device("cpu")
        most = listener.settings.windows_at_once(self.device)
        full, rest = divmod(num_windows, most)
        groups, kept = [], list[Tensor]()
        for _ in range(full if live is None else min(full, 3)):
            before = 0 if live is None else live.total
            groups.append(listener.silence(most, device).values)
            if live is not None and len(groups) == 2:
                others = max(0, full - 3)
                left = live.total - before - tensor_bytes(groups[-1:])
                groups += [torch.empty_like(groups[-1], requires_grad=False) for _ in range(others)]
                kept.append(torch.empty(max(0, left) * others, dtype=torch.uint8))
        if rest:
            groups.append(listener.silence(rest, device).values)
        return torch.cat(groups), kept

    def _read(self, tokens: Tensor, num_labels: int) -> Tensor:
        """Do as ``SpeechLM.forward`` does with tokens and text, and return the loss."""
        num_text = self._num_prompt_ids + num_labels
        text = self.path.llm.embed(torch.zeros(num_text, dtype=torch.int64))
        source = torch.zeros(1, num_text + tokens.shape[0] * tokens.shape[1], dtype=torch.int64)
        embeddings = splice(text, tokens, source)
        places, labels = torch.zeros(2, num_labels, dtype=torch.int64)
        return answer_loss(self.path.llm, embeddings, None, places, labels)

    def _alignment_bytes(self, num_windows: int, num_labels: int) -> int:
        """Return what the CTC loss keeps, in float32: tokens twice, and logits, their softmax and its gradient."""
        if self.path.alignment is None:
            return 0
        tokens = num_windows * self.path.abstractor.budget.tokens_per_window
        classes = min(num_labels, len(self.module.prompter.tokenizer)) + 1
        return 4 * tokens * (2 * self.path.llm.width + 4 * classes)


def _without_weights(part: Any) -> None:
    """Let ``load`` build the architecture alone."""
    part.initialize = "random"
    if getattr(part, "quantize", None) is not None:
        part.quantize = None
    if getattr(part, "gradient_checkpointing", None) == "auto":
        part.gradient_checkpointing = True  # what it comes down to where memory is scarce
    tokenizer, config = getattr(part, "tokenizer", None), getattr(part, "config", None)
    if tokenizer is not None and config is not None:
        text = config.get_text_config()
        text.vocab_size = max(text.vocab_size, len(tokenizer))  # what `load` enlarges the table to


def _give_fake_memory(root: nn.Module, mode: Any, trainable_dtype: torch.dtype) -> None:
    """Replace parameters and buffers by fake ones on the CPU; tied ones stay tied."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in root.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in [(name, tensor) for name, tensor in tensors.items() if tensor is not None]:
                if id(tensor) not in made:
                    dtype = trainable_dtype if tensor.requires_grad else tensor.dtype
                    with mode:
                        fake = torch.empty(tensor.shape, dtype=dtype)
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = (tensor, fake)
                tensors[name] = made[id(tensor)][1]  # type: ignore[assignment]


def quadratic(points: dict[int, int]) -> np.poly1d:
    """Return the polynomial through up to three points, of as low a degree as they allow."""
    degree = min(2, len(points) - 1)
    return np.poly1d(np.polyfit(list(points), list(points.values()), degree))
