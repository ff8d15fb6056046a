"""Tokenizers of the kinds that LLMs come with, made on the spot, and chat templates of as many kinds."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = ["user: hello assistant: one two three", "Transcribe the audio clip into text.", "forty two of them"] * 3
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
THOUGHT = "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

#: Each with the added tokens that it needs.
TEMPLATES = {
    "none": (None, []),
    "chatml": (CHATML + OPEN, ["<|im_start|>", "<|im_end|>"]),
    "system": ("<|im_start|>system\nBe brief.<|im_end|>\n" + CHATML + OPEN, ["<|im_start|>", "<|im_end|>"]),
    "thinking": (
        CHATML + OPEN.replace("{% endif %}", THOUGHT + "{% endif %}"),
        ["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ["<start_of_turn>", "<end_of_turn>"],
    ),
    "llama2": (
        "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + m.content +"
        " ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        [],
    ),
    "llama3": (
        "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '<|eot_id|>' }}"
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim +"
        " '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "vicuna": (
        "{% for m in messages %}{{ 'USER: ' + m.content + ' ' if m.role == 'user' else 'ASSISTANT: ' + m.content +"
        " eos_token }}{% endfor %}{{ 'ASSISTANT: ' if add_generation_prompt else '' }}",
        [],
    ),
    "glm": (
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"],
    ),
    "gpt_oss": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>"
        "{{ m.content }}{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"],
    ),
    "deepseek_r1": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|Assistant|>"
        "{{ m.content.split('</think>')[-1] + eos_token }}{% else %}<|User|>{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
        ["<|User|>", "<|Assistant|>", "<think>", "</think>"],
    ),
    "nemotron": (
        "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' and loop.last %}<think>\n{% endif %}"
        "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}",
        ["<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>"],
    ),
    "command_r7b": (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<|START_RESPONSE|>{{ m.content }}"
        "<|END_RESPONSE|>{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{{ '' if reasoning else '<|START_THINKING|><|END_THINKING|>' }}{% endif %}",
        [
            "<|user|>", "<|assistant|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_THINKING|>",
            "<|END_THINKING|>",
        ],
    ),
    "deepseek_v3_2": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|Assistant|></think>{{ m.content + eos_token }}"
        "{% else %}<|User|>{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think></think>{% endif %}",
        ["<|User|>", "<|Assistant|>", "<think>", "</think>"],
    ),
    "line_at_the_end": (
        "{% for m in messages %}<|{{ m.role }}|>{{ '<|final|>' if m.role == 'assistant' else '' }}{{ m.content }}"
        "<|end|>{% endfor %}{{ '<|assistant|>' if add_generation_prompt else '' }}\n",
        ["<|user|>", "<|assistant|>", "<|final|>", "<|end|>"],
    ),
    "named": (
        {"default": CHATML + OPEN, "tool_use": "tools {{ messages[0].content }}"},
        ["<|im_start|>", "<|im_end|>"],
    ),
}  # fmt: skip


def _byte_level(add_prefix_space):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


def _sentencepiece_bpe(prepend):
    """Return what Llama 2 (``prepend``) and Gemma have: spaces as letters, and bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *steps] if prepend else steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if prepend else [])
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][:1]  # bytes are in the vocabulary alone
    return Tokenizer.from_str(json.dumps(made))


def _unigram():
    """Return a unigram model, whose own vocabulary spells ``</s>`` and ``<unk>`` too."""
    letters = [(chr(c), -8.0) for c in (*range(33, 127), 0x2581, 10)]
    words = [(f"\u2581{word}", -3.0) for line in WORDS[:3] for word in line.split()]
    vocabulary = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0, **dict(letters), **dict(words)}
    tokenizer = Tokenizer(models.Unigram(list(vocabulary.items()), unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


KINDS = {
    "byte_level": lambda: _byte_level(False),
    "byte_level_prefix_space": lambda: _byte_level(True),
    "llama": lambda: _sentencepiece_bpe(True),
    "gemma": lambda: _sentencepiece_bpe(False),
    "unigram": _unigram,
}
#: What a tokenizer puts around a text by itself.
AROUND = {"nothing": "$A", "bos": "<s> $A", "bos_and_eos": "<s> $A </s>", "eos": "$A </s>"}


def make_tokenizer(kind, template="none", around="nothing", special=False):
    """Return a tokenizer; ``special`` says whether its template's tokens are in its map of special tokens."""
    backend = KINDS[kind]()
    text, tokens = TEMPLATES[template]
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    inner = [backend.post_processor] if backend.post_processor else []
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    added = processors.TemplateProcessing(single=AROUND[around], special_tokens=ids)
    backend.post_processor = processors.Sequence([*inner, added])
    known = {"unk_token": "<unk>"} if backend.token_to_id("<unk>") is not None else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=text, **known
    )
