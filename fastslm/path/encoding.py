"""Encodes rendered dialogues: a template's control tokens are tokens, the same strings in people's words are text."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastslm.path.batch import Int64Array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: An added token that is no word of a language: such as <think>, [INST], <|im_end|>.
_BRACKETED = re.compile(r"[<\[{(|\uff5c].*[>\]})|\uff5c]", re.DOTALL)
#: Added tokens that are text whatever they are: runs of spaces or line breaks, and the bytes of byte fallback.
_TEXT = re.compile(r"\s+|<0x[0-9A-F]{2}>")
#: Characters that stand in for control tokens; nobody's words keep them where stand-ins are used.
_STAND_INS = 0xF0000
_RESERVED = re.compile("[\U000f0000-\U0010ffff]")

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text.

    Attributes:
        ids: ``[L]``.
        starts: place in the text of each token's first character ``[L]``.
        ends: one past that of its last ``[L]``.
        spelt: control tokens that people's words spelt out, and that were read as text.
        unknown: characters, or words, that the tokenizer does not know and reads as its token for these.
    """

    ids: Int64Array
    starts: Int64Array
    ends: Int64Array
    spelt: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class TextEncoder:
    """A tokenizer that knows whose words it reads.

    Control tokens are the added tokens that are special, stand in brackets, or are no words and named by the chat
    template. In the words of people they are encoded as any other text is.

    Args:
        tokenizer: a fast one, with its chat template.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        special, template = set(tokenizer.all_special_ids), tokenizer.get_chat_template()
        self.controls: dict[int, str] = {
            index: token.content
            for index, token in tokenizer.added_tokens_decoder.items()
            if not _TEXT.fullmatch(token.content)
            and (
                index in special
                or token.special
                or _BRACKETED.fullmatch(token.content)
                or (token.content in template and not token.content.strip().isalnum())
            )
        }
        longest_first = sorted(self.controls.values(), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._ids = np.array(list(self.controls), np.int64)
        self._guarded: Any = None
        self._vocabulary: Any = None

    def control_at(self, text: str) -> str:
        """Return the control token that a text begins with, space before it left out; "" if there is none."""
        found = self._pattern.match(text.lstrip())
        return found[0] if found else ""

    def __call__(self, text: str, words: Sequence[Span]) -> Encoded:
        """Return the ids of a text.

        Args:
            text: a rendered dialogue.
            words: where in it words of people stand, in order; all else is the template's.
        """
        found = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=False, truncation=False
        )
        ids, offsets = found["input_ids"], found["offset_mapping"]
        spelt, unknown = self._looked_at(_encoded(ids, offsets), text, words)
        if not spelt:
            return _encoded(ids, offsets, unknown=unknown)
        if self._guarded is None:
            self._guarded = self._make_guarded()
        chunks, cursor = [], 0
        for begin, end in [*words, (len(text), len(text))]:
            chunks += [self._pattern.sub(lambda control: self._names[control[0]], text[cursor:begin])]
            chunks += [_RESERVED.sub("\ufffd", text[begin:end])]
            cursor = end
        again = self._guarded.encode("".join(chunks), add_special_tokens=False)
        return _encoded(again.ids, again.offsets, spelt, unknown)

    def _looked_at(self, encoded: Encoded, text: str, words: Sequence[Span]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the control tokens that were found where people's words stand, and what is not known anywhere."""
        spelt, unknown = [], []
        for i in np.flatnonzero(np.isin(encoded.ids, self._ids)):
            token = text[encoded.starts[i] : encoded.ends[i]]  # with the spaces that some take along
            start = encoded.starts[i] + len(token) - len(token.lstrip())
            end = start + len(token.strip())
            if encoded.ids[i] == self.tokenizer.unk_token_id and token.strip() != self.tokenizer.unk_token:
                unknown += self._not_known(token.strip())
            elif any(start < last and first < end for first, last in words):
                spelt.append(self.controls[int(encoded.ids[i])])
        return tuple(spelt), tuple(unknown)

    def _not_known(self, token: str) -> list[str]:
        """Return the characters of a token that are not known; the token itself where it is a word of known ones."""
        if self._vocabulary is None:
            self._vocabulary = self.tokenizer.get_vocab().keys()
        return [character for character in token if character not in self._vocabulary] or [token]

    def _make_guarded(self) -> Any:
        """Return the tokenizer with other names for its control tokens, each as long as before.

        Leaving them out would not do: their ids would be others', and a unigram model spells some of them by itself.
        """
        names = {c: chr(_STAND_INS + i) + chr(0x10FFFD) * (len(c) - 1) for i, c in enumerate(self.controls.values())}
        self._names = names
        backend = self.tokenizer.backend_tokenizer
        data = json.loads(backend.to_str())
        data["truncation"] = data["padding"] = None
        for token in data["added_tokens"]:
            if token["content"] in names:
                token |= {"content": names[token["content"]], "normalized": False}
        model = data["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(entry, entry): index for entry, index in model["vocab"].items()}
        else:  # a unigram model
            model["vocab"] = [[names.get(entry, entry), score] for entry, score in model["vocab"]]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if not names.keys() & _entries(pair)]
        return type(backend).from_str(json.dumps(data))


def _entries(pair: str | Sequence[str]) -> set[str]:
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return {first, second, first + second}


def _encoded(
    ids: Sequence[int], offsets: Sequence[Span], spelt: tuple[str, ...] = (), unknown: tuple[str, ...] = ()
) -> Encoded:
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    return Encoded(np.array(ids, np.int64), starts, ends, spelt, unknown)
