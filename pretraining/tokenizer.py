"""Makes the small byte-level BPE tokenizer of the embedded LLM: any text is legal, a spoken number is one token.

python -m pretraining.tokenizer --out fastslm/demo/llm
"""

import re
from pathlib import Path

from jsonargparse import auto_cli
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastslm.datamodules._spoken_numbers import number_words
from fastslm.prompt import TASKS

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(out: Path = Path("fastslm/demo/llm"), vocabulary: int = 1024) -> None:
    """Train and save the tokenizer.

    Args:
        out: folder for tokenizer.json and its companions.
        vocabulary: most entries before the special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    # "forty two" is one piece, as frequent phrases are in large vocabularies; everything else splits at words.
    tens, ones = ("|".join(number_words(n) for n in numbers) for numbers in (range(20, 100, 10), range(1, 10)))
    phrase = Regex(rf" ?\b(?:{tens})(?: (?:{ones})\b)?| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(phrase, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = [f"{prefix}{number_words(n)}" for n in range(100) for prefix in ("", " ")] * 20
    words = [word for prompt, _ in TASKS.values() for word in re.findall(r" ?[A-Za-z]+", prompt)]
    tokenizer.train_from_iterator([*numbers, *words * 10, *["user", "assistant", "system"] * 50], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(out)


if __name__ == "__main__":
    auto_cli(make)
