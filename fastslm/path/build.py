"""Puts a path together: for training, for use, for planning and in an exported folder alike."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fastslm.contracts import Abstractor, Encoder, LanguageModel, TokenBudget
from fastslm.errors import ConfigError
from fastslm.path.additions import NOTHING, Additions
from fastslm.path.model import SpeechLM
from fastslm.path.parts import select_trainable
from fastslm.path.prompt import Prompter
from fastslm.path.settings import SpeechSettings

#: What a constructor of an abstractor still needs when its configuration is known.
AbstractorFactory = Callable[[int, int, TokenBudget], Abstractor]


def build(
    encoder: Encoder,
    abstractor: AbstractorFactory,
    llm: LanguageModel,
    prompter: Prompter,
    settings: SpeechSettings,
    *,
    train_parts: Sequence[str] | None = (),
    additions: Callable[[], Additions] = lambda: NOTHING,
    frame_cache: Path | None = None,
    recompute: bool = False,
    stored: Iterable[str] = (),
) -> SpeechLM:
    """Return the path of parts that are loaded, at the first of its token rates.

    Args:
        encoder: loaded.
        abstractor: makes the compressor, for the highest of the token rates.
        llm: loaded.
        prompter: of the LLM's tokenizer.
        settings: windows and tokens.
        train_parts: what trains; the others are frozen. None leaves everything as it is, the encoder in the tree.
        additions: makes what training adds, behind the compressor.
        frame_cache: see ``SpeechLM``.
        recompute: see ``SpeechLM``.
        stored: names of the tensors of the checkpoint whose weights come next.

    Raises:
        ConfigError: the parts do not fit each other, or cannot do what is asked.
    """
    settings.check(encoder)
    budgets = settings.budgets(encoder)
    compressor = abstractor(encoder.width, llm.width, max(budgets, key=lambda budget: budget.tokens_per_window))
    holds_encoder = any(name.startswith("path.encoder.") for name in stored)
    if holds_encoder and frame_cache:
        raise ConfigError(
            "model.frame_cache: an earlier stage has trained the encoder, and frames are kept by the weights of its"
            " base model. Set model.frame_cache to false."
        )
    path = SpeechLM(
        encoder,
        compressor,
        llm,
        prompter,
        settings,
        additions=additions(),
        train_encoder=train_parts is None or "encoder" in train_parts,
        holds_encoder=holds_encoder,
        frame_cache=frame_cache,
        recompute=recompute,
    )
    for rate in reversed(settings.rates):  # each is tried; the first is left set
        compressor.set_tokens_per_window(rate)
    if train_parts is not None:
        select_trainable(path, train_parts)
    return path
