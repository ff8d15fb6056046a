"""Makes the small byte-level BPE tokenizer of the embedded LLM: any text is legal, a number ("forty two") is one token.

python -m pretraining.tokenizer --out fastslm/demo/llm
"""

from pathlib import Path

from jsonargparse import auto_cli
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastslm.datamodules.spoken.numbers import number_words
from fastslm.path.prompt import RELEASED_TASKS
from fastslm.tasks import find_task

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TENS = "|".join(number_words(n) for n in range(20, 100, 10))
_ONES = "|".join(number_words(n) for n in range(1, 10))


def make(out: Path = Path("fastslm/demo/llm"), vocabulary: int = 512) -> None:
    """Train and save the tokenizer.

    Args:
        out: folder for tokenizer.json and its companions.
        vocabulary: most entries before the special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    # A pre-token is a number of two words, a word, or white space. Each gets a space in front, so that a number at the
    # start of a line is the token that it is in the middle.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf" ?(?:{_TENS}) (?:{_ONES})\b| ?\S+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = [number_words(n) for n in range(100)] * 50
    words = [word for name in RELEASED_TASKS for word in find_task(name).prompt.split()]
    words += ["user", "assistant", "system"] * 10
    tokenizer.train_from_iterator([*numbers, *words], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(out)


if __name__ == "__main__":
    auto_cli(make)
