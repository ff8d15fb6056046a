"""Dialogues to ids and labels: what is predicted, where generation starts, and what is refused."""

import unicodedata
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fastslm.errors import ConfigError, DataError
from fastslm.path.prompt import AUDIO, SPECIAL_TOKENS, Prompter, messages_of

# What Qwen3's template does to dialogues without tools: an empty thought when thinking is off, none in the history.
QWEN3_LIKE = (
    "{%- for message in messages %}"
    "{%- set content = message.content.split('</think>')[-1].lstrip('\\n') if message.role == 'assistant'"
    " else message.content %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
SHORT = "{% for m in messages %}<|im_start|>{{ m.role }}\nWORDS<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


def small_tokenizer(template=None, eos="<|im_end|>", normalizer=None, **settings):
    """Return a byte-level BPE made on the spot, as GPT-2's and Qwen's are: a word takes the space before it along."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["assistant: one two three user: hello assistant: two three"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, chat_template=template, **settings)


@pytest.fixture
def prompter(demo_tokenizer):
    """Return a prompter on a tokenizer that spells text exactly; the shipped one puts a space before each line."""
    return Prompter(small_tokenizer(demo_tokenizer.chat_template))


def predicted(prompter, dialogue):
    """Return the runs of predicted ids, as text."""
    runs, previous = [], -2
    for i in (dialogue.labels != -100).nonzero()[0]:
        if i != previous + 1:
            runs.append([])
        runs[-1].append(int(dialogue.labels[i]))
        previous = i
    return [prompter.tokenizer.decode(run) for run in runs]


def prompt_of(prompter, dialogue):
    return prompter.tokenizer.decode(dialogue.input_ids[: dialogue.num_prompt_ids])


def turns(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *messages] if system else messages


# -- from fields to messages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "user", "assistant"),
    [
        (
            {"text": " forty two "},
            "<|ASR|><|audio_bos|><|AUDIO|><|audio_eos|>\nTranscribe the audio clip into text.",
            "forty two",
        ),
        (
            {"task": "ast", "translation": "vierzig", "target_language": "German"},
            "<|AST|><|audio_bos|><|AUDIO|><|audio_eos|>\nTranslate the audio clip into German.",
            "vierzig",
        ),
        (
            {"task": "ssum", "text": "long", "summary": "short"},
            "<|SSUM|><|audio_bos|><|AUDIO|><|audio_eos|>\nSummarize the audio clip.",
            "short",
        ),
        (
            {"task": "sqqa", "question": "How many {x}?", "answer": "two"},
            "<|SQQA|><|audio_bos|><|AUDIO|><|audio_eos|>\nHow many {x}?",
            "two",
        ),
        (
            {"task": None, "text": "one"},
            "<|ASR|><|audio_bos|><|AUDIO|><|audio_eos|>\nTranscribe the audio clip into text.",
            "one",
        ),
    ],
)
def test_a_task_is_the_question_of_the_release_and_the_field_that_answers_it(fields, user, assistant):
    assert messages_of(fields) == turns(user, assistant)


def test_messages_are_taken_as_they_are():
    messages = turns(f"{AUDIO} what?", "this", "and?", "that", system="Be short.")
    assert messages_of({"messages": messages, "text": "ignored"}) == messages


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "needs the field 'text', which is missing or empty"),
        ({"text": " \n"}, "needs the field 'text', which is missing or empty"),
        ({"text": None}, "needs the field 'text', which is missing or empty"),
        ({"text": float("nan")}, "the field 'text' must be text, and is nan"),
        ({"text": ["one"]}, "the field 'text' must be text"),
        ({"text": "one \ud83d"}, "half a character at position 4"),
        ({"task": "asrr", "text": "one"}, "unknown task 'asrr'.*Did you mean 'asr'"),
        ({"task": "ssum", "text": "one"}, "needs the field 'summary'"),
        ({"task": "sqqa", "answer": "one"}, "needs the field 'question'"),
        ({"messages": []}, "must end with an assistant turn"),
        ({"messages": "hello"}, "must be a list of turns"),
        ({"messages": ["hello"]}, "must be a list of turns"),
        ({"messages": [{"role": "user", "content": "x"}]}, "must end with an assistant turn"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "must end with an assistant turn"),
        ({"messages": [{"role": "assistant"}]}, "'content' of turn 1 of 'messages' must be text"),
        ({"messages": [{"content": "x"}, {"role": "assistant", "content": "y"}]}, "'role' of turn 1"),
        ({"messages": [{"role": "assistant", "content": [{"type": "text"}]}]}, "'content' of turn 1"),
        ({"messages": [{"role": "User", "content": "x"}]}, "is 'User', and not"),
        (
            {"messages": [{"role": "user<|im_end|>", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "'role' of turn 1 of 'messages' is 'user<|im_end|>'",
        ),
    ],
)
def test_fields_that_make_no_dialogue_are_refused_in_words(fields, words):
    with pytest.raises(DataError, match=words):
        messages_of(fields)


# -- from messages to ids and labels ----------------------------------------------------------------


def test_the_answer_and_the_token_that_ends_it_are_predicted_and_nothing_else(prompter):
    dialogue = prompter.dialogue(messages_of({"text": "forty two"}), 1, "asr")
    assert predicted(prompter, dialogue) == ["forty two<|im_end|>"]
    assert prompter.tokenizer.decode(dialogue.input_ids) == (
        "<|im_start|>user\n<|ASR|><|audio_bos|><|AUDIO|><|audio_eos|>\nTranscribe the audio clip into text.<|im_end|>\n"
        "<|im_start|>assistant\nforty two<|im_end|>"
    )
    assert (dialogue.reference, dialogue.task) == ("forty two", "asr")


def test_generation_starts_from_the_rendered_prompt(prompter):
    messages = messages_of({"text": "forty two"})
    dialogue = prompter.dialogue(messages, 1, "asr")
    rendered = prompter.tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    expected = prompter.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert dialogue.input_ids[: dialogue.num_prompt_ids].tolist() == expected
    assert (dialogue.labels[: dialogue.num_prompt_ids] == -100).all()
    assert (dialogue.labels[dialogue.num_prompt_ids :] != -100).all()


def test_labels_are_the_ids_themselves(prompter):
    dialogue = prompter.dialogue(turns("hi", "one", "and", "two"), 0, "dialogue")
    kept = dialogue.labels != -100
    assert (dialogue.labels[kept] == dialogue.input_ids[kept]).all()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs", "Co", "Cn"]), min_size=1).filter(str.strip))
def test_whatever_the_answer_its_labels_spell_it(prompter, answer):
    dialogue = prompter.dialogue(turns("hello", answer), 0, "dialogue")
    assert predicted(prompter, dialogue) == [answer.strip() + "<|im_end|>"]


@pytest.mark.parametrize("answer", ["as", "assistant", "user", "a", "im_end", "one", "\n", "what is it"])
def test_every_answer_of_a_dialogue_is_predicted_where_it_stands(prompter, answer):
    messages = turns("what is it", answer, "and the user?", "two", "three", "four", system="an assistant")
    dialogue = prompter.dialogue(messages, 0, "dialogue")
    assert predicted(prompter, dialogue) == [f"{answer.strip()}<|im_end|>", "two<|im_end|>", "four<|im_end|>"]
    assert prompt_of(prompter, dialogue).endswith("three<|im_end|>\n<|im_start|>assistant\n")


def test_placeholders_are_counted_over_all_turns(prompter):
    messages = turns(f"{AUDIO} or {AUDIO}?", "the first", f"and {AUDIO}?", "neither")
    dialogue = prompter.dialogue(messages, 3, "dialogue")
    assert (dialogue.input_ids == prompter.audio_id).sum() == 3


@pytest.mark.parametrize(("content", "num_recordings"), [("no audio", 1), (AUDIO, 0), (AUDIO, 2), (AUDIO * 2, 1)])
def test_placeholders_that_do_not_match_the_recordings_are_refused(prompter, content, num_recordings):
    with pytest.raises(DataError, match=f"marks {content.count(AUDIO)} recordings .* holds {num_recordings}"):
        prompter.dialogue(turns(content, "one"), num_recordings, "asr")


def test_the_special_tokens_are_added_once_and_in_the_order_of_the_release(demo_tokenizer):
    before = len(demo_tokenizer)
    Prompter(demo_tokenizer)
    again = Prompter(demo_tokenizer)
    ids = again.tokenizer("".join(SPECIAL_TOKENS), add_special_tokens=False)["input_ids"]
    assert ids == list(range(before, before + 9))


# -- other tokenizers -------------------------------------------------------------------------------


def test_a_tokenizer_without_a_template_gets_a_plain_one():
    prompter = Prompter(small_tokenizer(eos="<|endoftext|>"))
    dialogue = prompter.dialogue(turns("hello", "one two"), 0, "dialogue")
    assert prompter.tokenizer.decode(dialogue.input_ids) == "user: hello\nassistant: one two<|endoftext|>"
    assert prompter.stop_ids == [prompter.tokenizer.eos_token_id]


def test_a_word_that_takes_the_prompts_last_space_along_is_predicted_whole():
    prompter = Prompter(small_tokenizer(eos="<|endoftext|>"))
    dialogue = prompter.dialogue(turns("hello", "two three"), 0, "dialogue")
    assert prompt_of(prompter, dialogue) == "user: hello\nassistant:"
    assert predicted(prompter, dialogue) == [" two three<|endoftext|>"]


def test_a_plain_dialogue_predicts_every_answer():
    prompter = Prompter(small_tokenizer(eos="<|endoftext|>"))
    dialogue = prompter.dialogue(turns("hello", "one", "hello", "two"), 0, "dialogue")
    assert [run.strip() for run in predicted(prompter, dialogue)] == ["one<|endoftext|>", "two<|endoftext|>"]


@pytest.mark.parametrize(("thinking", "thought"), [(False, "<think>\n\n</think>\n\n"), (True, "")])
def test_an_empty_thought_stands_in_the_prompt_only_when_thinking_is_off(thinking, thought):
    prompter = Prompter(small_tokenizer(QWEN3_LIKE), enable_thinking=thinking)
    dialogue = prompter.dialogue(turns("hello", "one", "hello", "two"), 0, "dialogue")
    assert predicted(prompter, dialogue) == ["one<|im_end|>", "two<|im_end|>"]
    assert prompt_of(prompter, dialogue) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
        f"<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n{thought}"
    )


def test_a_thought_in_an_earlier_answer_that_the_template_removes_is_refused():
    prompter = Prompter(small_tokenizer(QWEN3_LIKE))
    with pytest.raises(DataError, match="rewrites the assistant's words"):
        prompter.dialogue(turns("hello", "<think>hm</think>one", "hello", "two"), 0, "dialogue")


def test_the_token_that_ends_a_turn_may_differ_from_the_one_that_ends_a_text():
    tokenizer = small_tokenizer(QWEN3_LIKE, eos="<|endoftext|>", additional_special_tokens=["<|im_end|>"])
    prompter = Prompter(tokenizer)
    dialogue = prompter.dialogue(turns("hello", "one", "hello", "two"), 0, "dialogue")
    assert predicted(prompter, dialogue) == ["one<|im_end|>", "two<|im_end|>"]
    assert prompter.tokenizer.convert_ids_to_tokens(prompter.stop_ids) == ["<|endoftext|>", "<|im_end|>"]


def test_a_normalizer_does_not_shift_the_labels():
    prompter = Prompter(small_tokenizer(QWEN3_LIKE, normalizer=normalizers.NFC()))
    decomposed = unicodedata.normalize("NFD", "d\u00e9j\u00e0 vu \ud55c\uad6d\uc5b4")
    dialogue = prompter.dialogue(turns("voil\u0061\u0300", decomposed, "h\u00e9", decomposed), 0, "dialogue")
    assert predicted(prompter, dialogue) == [unicodedata.normalize("NFC", decomposed) + "<|im_end|>"] * 2


def test_a_template_may_strip_what_it_renders():
    prompter = Prompter(small_tokenizer(SHORT.replace("WORDS", "{{ m.content | trim }}")))
    dialogue = prompter.dialogue(turns(" hello\n", " one ", "hello", " two "), 0, "dialogue")
    assert predicted(prompter, dialogue) == ["one<|im_end|>", "two<|im_end|>"]


def test_space_around_an_earlier_answer_is_no_part_of_it():
    prompter = Prompter(small_tokenizer(QWEN3_LIKE))
    dialogue = prompter.dialogue(turns("hello", " one\n", "hello", " two\n"), 0, "dialogue")
    assert predicted(prompter, dialogue) == ["one<|im_end|>", "two<|im_end|>"]


def test_a_template_may_put_the_words_of_the_system_into_the_last_question():
    """As Mistral's do."""
    prompter = Prompter(
        small_tokenizer(
            "{% set said = messages | rejectattr('role', 'equalto', 'system') | list %}{% for m in said %}"
            "{% if m.role == 'user' %}[INST]{% if loop.last and messages[0].role == 'system' %}"
            "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content }}[/INST]"
            "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        )
    )
    messages = [{"role": "system", "content": "brief"}, *turns("hello", "one", "again", "two")]
    dialogue = prompter.dialogue(messages, 0, "dialogue")
    assert prompt_of(prompter, dialogue) == "[INST]hello[/INST]one<|im_end|>[INST]brief\n\nagain[/INST]"
    assert predicted(prompter, dialogue) == ["one<|im_end|>", "two<|im_end|>"]


@pytest.mark.parametrize("body", ["", "{{ m.content | upper }}", "{{ m.content if m.role == 'user' }}"])
def test_a_template_that_shows_no_answer_is_refused_before_any_sample(body):
    with pytest.raises(ConfigError, match="the chat template leaves out or rewrites an answer"):
        Prompter(small_tokenizer(SHORT.replace("WORDS", body)))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{{ m.content | replace('hell', 'HELL') }}", "rewrites the user's words 'hello'"),
        ("{{ m.content | replace('one', '1') }}", "rewrites the assistant's words 'one'"),
        ("{{ m.content if m.role == 'user' or loop.last }}", "leaves out or repeats a turn"),
        ("{{ m.content }} {{ m.content }}", "leaves out or repeats a turn"),
        ("{{ raise_exception('no') if m.content == 'one' else m.content }}", "refuses the dialogue: no"),
    ],
)
def test_a_template_that_rewrites_the_dialogue_is_refused(body, words):
    prompter = Prompter(small_tokenizer(SHORT.replace("WORDS", body)))
    with pytest.raises(DataError, match=words):
        prompter.dialogue(turns("hello", "one", "hello", "two"), 0, "dialogue")


def test_a_template_of_one_question_makes_samples_with_more_unusable_and_no_others():
    one = "{{ raise_exception('one turn only') if messages | length > 2 }}" + SHORT.replace("WORDS", "{{ m.content }}")
    prompter = Prompter(small_tokenizer(one))
    assert prompter.end_of_turn == "<|im_end|>"
    assert prompter.dialogue(turns("hello", "one"), 0, "dialogue").reference == "one"
    with pytest.raises(DataError, match="refuses the dialogue: one turn only"):
        prompter.dialogue(turns("hello", "one", "hello", "two"), 0, "dialogue")


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(ConfigError, match="no eos_token"):
        Prompter(small_tokenizer(eos=None))


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="slow"):
        Prompter(SimpleNamespace(is_fast=False))


def test_a_tokenizer_saved_with_the_special_tokens_gives_the_same_ids(tmp_path, demo_tokenizer):
    prompter = Prompter(demo_tokenizer)
    demo_tokenizer.save_pretrained(tmp_path)
    again = Prompter(AutoTokenizer.from_pretrained(tmp_path))
    messages = messages_of({"text": "forty two"})
    assert (
        again.dialogue(messages, 1, "asr").input_ids.tolist()
        == prompter.dialogue(messages, 1, "asr").input_ids.tolist()
    )
