"""The chat template that prompts are made with: the tokenizer's own, or a plain one; the same on every day."""

import re
from typing import TYPE_CHECKING

from fastslm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: For base models without a template of their own.
_PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n"
    "{% endfor %}{{ 'assistant:' if add_generation_prompt else '' }}"
)
_CLOCK = "strftime_now"
#: What every template takes for now: the date that Llama 3.2 names where nobody knows the day.
_NOW = {
    "%-d": "26", "%-m": "7", "%d": "26", "%e": "26", "%j": "208", "%a": "Fri", "%A": "Friday", "%b": "Jul",
    "%B": "July", "%m": "07", "%y": "24", "%Y": "2024", "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM",
    "%F": "2024-07-26", "%T": "00:00:00", "%D": "07/26/24", "%x": "07/26/24", "%X": "00:00:00",
    "%c": "Fri Jul 26 00:00:00 2024", "%z": "", "%Z": "",
}  # fmt: skip
#: At the end of a prompt, and what closes it.
_OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
_END_OF_THOUGHT = "\n</think>\n\n"
#: A macro hides the clock that transformers gives to templates. The line break behind it is taken away again.
_FIXED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace({name!r}, {shown!r})" for name, shown in _NOW.items())
    + " }}{% endmacro %}\n"
)


def settle_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give a tokenizer the one template that everything is asked with; it is saved and exported with it.

    - Of several, that is the one named ``default``.
    - A tokenizer without gets a plain one, behind what the tokenizer itself puts before a text (such as ``<bos>``).
    - One that asks for today's date always gets the same: a model sees in use what it saw in training.

    Raises:
        ConfigError: it has several, and none is the default.
    """
    given = tokenizer.chat_template
    if isinstance(given, dict) and given and "default" not in given:
        raise ConfigError(
            f"model.llm.pretrained: the tokenizer has the chat templates {', '.join(sorted(given))}, and none is named"
            " 'default'. Keep the one to use as its chat_template.jinja."
        )
    template = given.get("default") if isinstance(given, dict) else given
    if not template:
        before = _before_a_text(tokenizer)
        template = (f"{{{{ {before!r} }}}}" if before else "") + _PLAIN
    if _CLOCK in template and not template.startswith(_FIXED_CLOCK):
        template = _FIXED_CLOCK + template
    tokenizer.chat_template = {**given, "default": template} if isinstance(given, dict) else template


def lead_in(prompt: str, before: str) -> str:
    """Return what a template should put behind a prompt, so that an answer begins where it begins in its dialogues.

    GPT-OSS's names the channel of an answer and GLM's breaks the line only before one that is there, and DeepSeek-R1's
    opens a thought that no answer of ours closes. Spaces are left alone: they are the beginning of a token.

    Args:
        prompt: a question, rendered to be answered.
        before: what stands before the answer where the same question is answered.
    """
    if before.startswith(prompt):
        missing = before.removeprefix(prompt)
        return missing if missing.strip(" ") else ""
    return _END_OF_THOUGHT if _OPEN_THOUGHT.search(prompt) else ""


def add_lead_in(tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    """Let the template put a text behind prompts; it is saved and exported with it, for other engines, too."""
    given = tokenizer.chat_template
    template = (given["default"] if isinstance(given, dict) else given) + (
        f"{{{{ {text!r} if add_generation_prompt else '' }}}}"
    )
    tokenizer.chat_template = {**given, "default": template} if isinstance(given, dict) else template


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer without a template, where it was saved with one: the plain one would ask something else.

    Raises:
        ValueError: it has none.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer was saved with a chat template and has none: chat_template.jinja is missing or empty. Get"
            " the folder anew."
        )


def _before_a_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the tokens that a tokenizer puts before every text, as they are spelt."""
    plain, whole = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (False, True))
    begin = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return "".join(str(token) for token in tokenizer.convert_ids_to_tokens(whole[:begin]))
