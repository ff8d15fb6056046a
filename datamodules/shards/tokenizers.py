"""The tokenizer that text lengths in an index are counted with, loaded once in each process."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fastslm.errors import ConfigError, FastSLMError
from fastslm.files import no_file_in

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

    if Path(tokenizer).is_dir() and (odd := no_file_in(Path(tokenizer))):
        raise ConfigError(f"--tokenizer {tokenizer}: {odd}.")
    try:
        return Prompter(AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False))
    except FastSLMError:
        raise
    except Exception as error:  # transformers raises whatever the files make it stumble over
        raise ConfigError(f"--tokenizer {tokenizer}: cannot be loaded ({reason(error)})") from error
