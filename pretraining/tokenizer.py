"""Makes the small byte-level BPE tokenizer of the embedded LLM: any text is legal, number words are one token each.

python -m pretraining.tokenizer --out fastslm/demo/llm
"""

from pathlib import Path

from jsonargparse import auto_cli
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastslm.datamodules._spoken_numbers import number_words
from fastslm.prompt import TASKS

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(out: Path = Path("fastslm/demo/llm"), vocabulary: int = 512) -> None:
    """Train and save the tokenizer.

    Args:
        out: folder for tokenizer.json and its companions.
        vocabulary: most entries before the special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = [f"{prefix}{number_words(n)}" for n in range(100) for prefix in ("", " ")] * 20
    prompts = [prompt for prompt, _ in TASKS.values()]
    tokenizer.train_from_iterator([*numbers, *prompts * 5, *["user", "assistant", "system"] * 50], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(out)


if __name__ == "__main__":
    auto_cli(make)
