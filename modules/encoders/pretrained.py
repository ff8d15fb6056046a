"""What encoders loaded through transformers share: configuration, weights, dtype, and frames of several layers."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from fastslm.contracts import Encoder
from fastslm.errors import ConfigError, nearest
from fastslm.path.base_folder import cannot_load, read_config, refuse_kernels
from fastslm.path.pretrained import dtype_on, reason, resolve
from fastslm.settings import Change

KEY = "model.encoder.pretrained"


class _Known(str):
    """The name of a folder whose configuration is at hand, so that nothing is read."""

    config: Any


class PretrainedEncoder(Encoder):
    """An encoder around a model of transformers, its weights read from a folder or the hub.

    A subclass says what it accepts (``family``, ``_encoder_config``), what follows from the configuration
    (``_describe``), how samples become frames (``forward``) and, where ``AutoModel`` would bring more than the encoder,
    which class of transformers has the weights (``_architecture``).
    It may change the configuration in ``_describe``: the encoder's is a copy of its own.

    Args:
        pretrained: hub name, local folder, or ``fastslm:...`` for a folder inside this package.
        initialize: ``pretrained`` loads weights; ``random`` builds the architecture from the folder's config alone.
        overrides: values that replace those of the folder's config when ``initialize`` is ``random``.
        dtype: dtype of the weights and of the frames; ``auto`` is bfloat16 on a GPU that has it, else float32. The
            front end is always float32.
        layers: give the frames after these layers, counted from 1, or after ``all`` of them; None gives those after
            the last.

    Raises:
        ConfigError: nothing usable at ``pretrained``, another architecture, an unknown override, or no such layer.

    Attributes:
        family: the models it accepts, as in "is not ...".
        inner_name: attribute that holds the model of transformers; checkpoints have it in their names.
        config: the encoder's part of the configuration.
        dtype: dtype of the weights; of ``auto`` it is float32 until ``settle`` has seen the device.
    """

    family: ClassVar[str]
    inner_name: ClassVar[str] = "model"
    #: From names in a checkpoint of a whole model to those of the encoder, where transformers does not know by itself.
    _key_mapping: ClassVar[dict[str, str] | None] = None
    _attention: ClassVar[str | None] = None

    changes: ClassVar[Mapping[str, Change]] = {
        "initialize": "weights",
        "overrides": "weights",
        "layers": "weights",
        "pretrained": "nothing",  # told apart by fingerprint
        "dtype": "nothing",
    }

    model: Any
    config: Any

    def __init__(
        self,
        pretrained: str,
        *,
        initialize: Literal["pretrained", "random"] = "pretrained",
        overrides: dict[str, Any] | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        layers: Sequence[int] | Literal["all"] | None = None,
    ) -> None:
        super().__init__()
        self.pretrained = str(pretrained)
        self.initialize = initialize
        self._automatic = dtype == "auto"
        self.dtype: torch.dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        self._source = pretrained
        self.config = self._read(overrides)
        self._describe(self.config)
        self.layers = _chosen(layers, self._num_layers(self.config))
        setattr(self, self.inner_name, None)

    @classmethod
    def of_config(cls, config: Any, **arguments: Any) -> Self:
        """Return the architecture without weights, its state dict named as that after ``load``.

        Args:
            config: configuration of transformers, of the encoder or of a whole model around it.
            arguments: what the constructor takes; ``export_arguments`` of an encoder for the same frames.
        """
        known = _Known(config.name_or_path or cls.__name__)
        known.config = config
        made = cls(known, **arguments)
        model = made._built()
        made.dtype, made._automatic = model.dtype, False  # that of the model it becomes a part of
        setattr(made, cls.inner_name, made._fitted(model))
        return made

    def export_arguments(self) -> dict[str, Any]:
        """Return what ``of_config`` needs beside the configuration, as JSON values."""
        return {"layers": list(self.layers)} if self.layers else {}

    def export_config(self) -> Any:
        """Return the configuration of the model of transformers."""
        return self.inner.config

    @property
    def inner(self) -> Any:
        """The model of transformers; None before ``load``."""
        return getattr(self, self.inner_name)

    # -- what a subclass says --------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def _encoder_config(cls, config: Any) -> Any:
        """Return the encoder's part of a configuration; None when it is of another architecture."""

    def _architecture(self, config: Any) -> Any:
        """Return the class of transformers that has the encoder's weights and no others."""
        from transformers import AutoModel

        return AutoModel._model_mapping[type(config)]

    @abstractmethod
    def _describe(self, config: Any) -> None:
        """Set width, rate and the other attributes of the contract; raise ``ConfigError`` for what cannot work."""

    def _num_layers(self, config: Any) -> int:
        """Return the number of the encoder's layers."""
        return int(config.num_hidden_layers)

    def _is_unused(self, name: str) -> bool:
        """Return whether ``forward`` has no use for a weight, so that a checkpoint may lack it."""
        return False

    def _fitted(self, model: Any) -> Any:
        """Return the model as ``forward`` uses it; names of weights stay."""
        return model

    # -- weights ---------------------------------------------------------------------------------------------------

    def settle(self, device: torch.device) -> None:
        """Resolve the dtype ``auto`` for a device; to be called before ``load``."""
        if self._automatic:
            self.dtype = dtype_on(device, "auto")
            self._automatic = False

    def load(self) -> None:
        """Bring the weights; those of heads and decoders in the checkpoint are not read into memory."""
        if self.inner is not None:
            return
        model = self._built().to(self.dtype) if self.initialize == "random" else self._loaded()
        setattr(self, self.inner_name, self._fitted(model))

    def train(self, mode: bool = True) -> Self:
        """Set training mode; batch norms keep the statistics they were trained with, so that rows stay independent."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def _read(self, overrides: dict[str, Any] | None) -> Any:
        from huggingface_hub.errors import StrictDataclassError

        if isinstance(self._source, _Known):
            whole = self._source.config
            refuse_kernels(whole, self.pretrained, KEY)
        else:
            whole = read_config(self.pretrained, KEY)
        config = copy.deepcopy(self._encoder_config(whole))
        if config is None:
            from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

            is_llm = type(whole) in MODEL_FOR_CAUSAL_LM_MAPPING
            raise ConfigError(
                f"{KEY}: {self.pretrained!r} is a {whole.model_type!r} model, not {self.family}. Give a folder of that"
                f" family, or another encoder.{' An LLM belongs to model.llm.pretrained.' if is_llm else ''}"
            )
        if overrides and self.initialize != "random":
            raise ConfigError("model.encoder.overrides: only with initialize: random; pretrained weights fix them.")
        for name, value in (overrides or {}).items():
            if name.startswith("_") or not hasattr(config, name):  # those hidden ones name code, too
                raise ConfigError(f"model.encoder.overrides: unknown {name!r}.{nearest(name, config.to_dict())}")
            try:
                setattr(config, name, value)
            except (TypeError, ValueError, StrictDataclassError) as error:
                raise ConfigError(f"model.encoder.overrides: {name} cannot be {value!r}: {reason(error)}") from error
        return config

    def _preprocessor(self) -> dict[str, Any]:
        """Return what the folder's preprocessor_config.json says, empty when there is none."""
        from transformers import FeatureExtractionMixin

        if isinstance(self._source, _Known):
            return {}
        try:
            found, _ = FeatureExtractionMixin.get_feature_extractor_dict(resolve(self.pretrained, KEY))
        except OSError:
            return {}
        return dict(found)

    def _built(self) -> Any:
        return self._architecture(self.config)(self.config)

    def _loaded(self) -> Any:
        architecture = self._architecture(self.config)
        # Of a whole model, all other weights are expected and left in the file, without a report on the screen.
        silent = type(architecture.__name__, (architecture,), {"_keys_to_ignore_on_load_unexpected": [r"."]})
        settings = {"key_mapping": self._key_mapping, "attn_implementation": self._attention}
        try:
            model, info = silent.from_pretrained(  # type: ignore[attr-defined]
                resolve(self.pretrained, KEY),
                config=self.config,
                dtype=self.dtype,
                output_loading_info=True,
                **{name: value for name, value in settings.items() if value is not None},
            )
        except Exception as error:  # transformers, and libraries for quantized weights, raise whatever they like
            raise cannot_load(self.pretrained, KEY, self.config, error) from error
        missing = sorted(name for name in info["missing_keys"] if not self._is_unused(name))
        if missing:
            raise ConfigError(
                f"{KEY}: {self.pretrained!r} lacks {len(missing)} weights, such as {', '.join(missing[:3])}"
            )
        model.__class__ = architecture  # a class that can be found by name, for pickles and `save_pretrained`
        model.__dict__.pop("_weight_conversions", None)  # it would be saved under the names of the whole model
        return model

    # -- layers ----------------------------------------------------------------------------------------------------

    def _run(self, layers: Sequence[nn.Module], last: Callable[[], Tensor]) -> Tensor:
        """Return what ``last`` gives, ``[W, F, D_enc]``, or with ``layers`` what those gave on the way, stacked.

        Args:
            layers: all layers of the model, in order.
            last: runs the model, and gives its frames after the last layer and the norm that may follow.
        """
        with self._own_precision():
            if not self.layers:
                return last()
            with _outputs([layers[number - 1] for number in self.layers]) as outputs:
                final = last()
        if self.layers[-1] == len(layers):
            outputs[-1] = final
        return torch.stack(outputs, dim=1)

    def _own_precision(self) -> AbstractContextManager[Any]:
        """Return what turns mixed precision off where it could only cast to and fro: frozen weights in its dtype."""
        weight = next(self.parameters())
        device = weight.device.type
        if weight.requires_grad or not torch.amp.is_autocast_available(device):
            return nullcontext()
        if not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) != weight.dtype:
            return nullcontext()
        return torch.autocast(device, enabled=False)


def first(counts: Tensor, length: int) -> Tensor:
    """Return ``[W, length]`` bool, True at the first ``counts`` ``[W]`` places."""
    return torch.arange(length, device=counts.device) < counts[:, None]


def _chosen(layers: Sequence[int] | Literal["all"] | None, num_layers: int) -> tuple[int, ...]:
    """Return numbers of layers, ascending."""
    if layers is None:
        return ()
    if layers == "all":
        return tuple(range(1, num_layers + 1))
    numbers = list(layers)
    for number in numbers:
        if isinstance(number, str) or not 1 <= number <= num_layers:
            raise ConfigError(f"model.encoder.layers: {number!r} is not a layer. Give numbers from 1 to {num_layers}.")
    if sorted(set(numbers)) != numbers:
        raise ConfigError(f"model.encoder.layers: {numbers} must ascend, each layer once.")
    return tuple(int(number) for number in numbers)


@contextmanager
def _outputs(layers: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Within it, what the layers give is gathered, in the order they run."""
    gathered: list[Tensor] = []

    def keep(layer: nn.Module, arguments: Any, output: Any) -> None:
        gathered.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield gathered
    finally:
        for handle in handles:
            handle.remove()
