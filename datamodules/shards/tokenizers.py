"""The tokenizer that text lengths in an index are counted with, loaded once in each process."""

from functools import lru_cache
from typing import TYPE_CHECKING

from fastslm.errors import ConfigError

if TYPE_CHECKING:
    from fastslm.path.prompt import Prompter


@lru_cache(maxsize=1)
def prompter_of(tokenizer: str | None) -> "Prompter | None":
    """Return what counts text with the tokenizer of that name or folder; None counts nothing.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if tokenizer is None:
        return None
    from transformers import AutoTokenizer

    from fastslm.path.pretrained import reason
    from fastslm.path.prompt import Prompter

    try:
        return Prompter(AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tokenizer {tokenizer}: cannot be loaded ({reason(error)})") from error
