"""The chat template that prompts are made with: the tokenizer's own, or a plain one; the same on every day."""

import re
from collections.abc import Iterable
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
#: What templates call the switch between thinking and answering at once.
_SWITCHES = ("enable_thinking", "thinking", "reasoning")
#: ``<think>``, ``<thought>``, ``[THINK]``, ``<|START_THINKING|>`` at the end of a prompt.
_OPEN_THOUGHT = re.compile(
    r"([<\[]\|?)(START_)?((?!END_)[a-z_:]*(?:think|thought|reason)[a-z_:]*)(\|?[>\]])(\s*)\Z", re.IGNORECASE
)
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
    _set_template(tokenizer, template)


def switches(enable_thinking: bool) -> dict[str, bool]:
    """Return what a template is rendered with, whatever it calls the switch."""
    return dict.fromkeys(_SWITCHES, enable_thinking)


def lead_in(prompt: str, before: str, controls: Iterable[str]) -> str:
    """Return what a template should put behind a prompt, so that an answer begins where it begins in its dialogues.

    GPT-OSS's names the channel of an answer and GLM's breaks the line only before one that is there, and DeepSeek-R1's
    opens a thought that no answer of ours closes. Spaces are left alone: they are the beginning of a token.

    Args:
        prompt: a question, rendered to be answered.
        before: what stands before the answer where the same question is answered.
        controls: control tokens, none of which is cut.
    """
    if before.startswith(prompt):
        missing = before.removeprefix(prompt)
        return (missing if missing.strip(" ") else "") + _end_of_thought(prompt + missing)
    missing = before[_num_shared(prompt, before, controls) :]
    return _end_of_thought(prompt) + (missing if missing.strip() and not prompt.endswith(missing) else "")


def _end_of_thought(prompt: str) -> str:
    """Return what closes the thought that a prompt opens at its end; "" where there is none."""
    found = _OPEN_THOUGHT.search(prompt)
    if found is None:
        return ""
    left, start, name, right, space = found.groups()
    closing = f"{left}{'END_' if start else '/'}{name}{right}"
    return f"\n{closing}\n\n" if "\n" in space else closing


def _num_shared(one: str, other: str, controls: Iterable[str]) -> int:
    """Return how many characters two texts begin with alike, up to the beginning of a control token."""
    length = next((i for i, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1), len(other))
    for text in (one, other):
        for control in controls:
            begin = text.find(control, max(0, length - len(control) + 1), length + len(control) - 1)
            length = min(length, begin) if begin >= 0 else length
    return length


def add_lead_in(tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    """Let the template put a text behind prompts; it is saved and exported with it, for other engines, too."""
    template = _template_of(tokenizer).removesuffix("\n")  # which is dropped at the end of a template, and only there
    _set_template(tokenizer, f"{template}{{{{ {text!r} if add_generation_prompt else '' }}}}")


def keep_switches(tokenizer: "PreTrainedTokenizerBase", enable_thinking: bool) -> None:
    """Let the template take for granted what prompts are made with: other engines render it without these switches."""
    template = _template_of(tokenizer)
    for name in _SWITCHES:
        if re.search(rf"\b{name}\b", template):
            given = f"{{% if {name} is not defined %}}{{% set {name} = {str(enable_thinking).lower()} %}}{{% endif %}}"
            template = template if given in template else given + template
    _set_template(tokenizer, template)


def _template_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    given = tokenizer.chat_template
    return str(given["default"] if isinstance(given, dict) else given)


def _set_template(tokenizer: "PreTrainedTokenizerBase", template: str) -> None:
    given = tokenizer.chat_template
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
