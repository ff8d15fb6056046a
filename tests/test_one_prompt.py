"""One function makes prompts: the same ids in training, validation, use and exported processors, whatever the LLM."""

import datetime
import pickle

import numpy as np
import pytest
import transformers.utils.chat_template_utils as chat_templates
from tokenizer_kinds import AROUND, KINDS, TEMPLATES, make_tokenizer
from transformers import AutoTokenizer

from fastslm.errors import ConfigError
from fastslm.export.remote.processing_fastslm import FastSLMFeatureExtractor, FastSLMProcessor
from fastslm.path.prompt import AUDIO, Prompter, messages_of
from fastslm.path.request import Request
from fastslm.path.template import keep_switches, lead_in

ODD = "He said </s> and <|im_end|>, <end_of_turn> [INST] <unk> <|eot_id|><|AUDIO|><|ASR|> <think>"
#: The same, asked after training and in a sample.
ASKED = [
    (Request(), {"text": "forty two"}),
    (Request(), {"text": ODD}),
    (Request("ast", language="Korean"), {"task": "ast", "translation": ODD, "target_language": "Korean"}),
    (Request("ast", language=ODD), {"task": "ast", "translation": "x", "target_language": ODD}),
    (Request("sqqa", " Who? "), {"task": "sqqa", "question": " Who? ", "answer": "one"}),
    (Request("sqqa", ODD), {"task": "sqqa", "question": ODD, "answer": "one"}),
]
EVERY = [(kind, template) for kind in KINDS for template in TEMPLATES]


def tokens(prompter, ids):
    return prompter.tokenizer.convert_ids_to_tokens([int(i) for i in ids])


def answer_of(dialogue):
    return dialogue.input_ids[dialogue.num_prompt_ids :].tolist()


# -- the same prompt everywhere ---------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "template"), EVERY)
@pytest.mark.parametrize("around", ["bos_and_eos", "nothing"])
def test_training_use_and_the_exported_processor_make_the_same_prompt(kind, template, around, tmp_path):
    prompter = Prompter(make_tokenizer(kind, template, around))
    prompter.tokenizer.save_pretrained(tmp_path)
    processor = FastSLMProcessor(FastSLMFeatureExtractor(), AutoTokenizer.from_pretrained(tmp_path))
    for request, fields in ASKED:
        trained = prompter.dialogue(messages_of(fields), 1, request.task)
        prompt = trained.input_ids[: trained.num_prompt_ids].tolist()
        before, after = request.ids(prompter)
        given = processor(np.ones(160, np.int16), request.prompt, task=request.task, language=request.language)
        assert prompt == [*before, prompter.audio_id, *after] == given["input_ids"][0].tolist()
        assert (trained.labels[: trained.num_prompt_ids] == -100).all()


@pytest.mark.parametrize("template", [None, ""])
def test_an_exported_processor_whose_chat_template_got_lost_is_refused(template):
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = template
    FastSLMProcessor(FastSLMFeatureExtractor(), tokenizer)  # of before: it gets the plain one
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=r"was saved with a chat template and has none: chat_template\.jinja"):
        FastSLMProcessor(FastSLMFeatureExtractor(), tokenizer, needs_chat_template=True)


@pytest.mark.parametrize("asked", [{"task": ["asr", "ssum"]}, {"task": "ast", "language": ["Korean"]}])
def test_a_processor_takes_one_task_and_language_a_call(asked):
    processor = FastSLMProcessor(FastSLMFeatureExtractor(), make_tokenizer("byte_level", "chatml"))
    with pytest.raises(ValueError, match="and one for all recordings of a call"):
        processor([np.zeros(1600, np.float32)] * 2, sampling_rate=16_000, **asked)


@pytest.mark.parametrize(("kind", "template"), EVERY)
def test_ordinary_words_are_encoded_as_the_template_alone_would_have_them(kind, template):
    prompter = Prompter(make_tokenizer(kind, template, "bos"))
    messages = [{"role": "user", "content": f"{AUDIO} what is it?"}]
    whole = prompter.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    expected = prompter.tokenizer(whole.rstrip(" "), add_special_tokens=False)["input_ids"]
    assert prompter.prompt_ids(messages).tolist() == expected


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_model_sees_what_its_tokenizer_puts_before_every_text(kind, around):
    tokenizer = make_tokenizer(kind, around=around)
    found = tokens(prompter := Prompter(tokenizer), prompter.prompt_ids([{"role": "user", "content": "hello"}]))
    assert (found[0] == "<s>") == ("bos" in around)
    assert "</s>" not in found
    assert found.count("<s>") <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["none", "vicuna", "llama2"])
def test_the_space_before_an_answer_belongs_to_its_first_word(kind, template):
    prompter = Prompter(make_tokenizer(kind, template))
    dialogue = prompter.dialogue(
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "two"}], 0, "x"
    )
    assert tokens(prompter, dialogue.input_ids[dialogue.num_prompt_ids - 1 :])[0].strip("\u0120\u2581")
    assert tokens(prompter, answer_of(dialogue))[0][0] in "\u0120\u2581"


def test_a_template_that_names_the_day_names_the_same_every_day(monkeypatch):
    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 2, 3)

    messages = [{"role": "user", "content": "hello"}]
    today = Prompter(make_tokenizer("byte_level", "llama3")).prompt_ids(messages)
    monkeypatch.setattr(chat_templates, "datetime", Later)
    later = Prompter(make_tokenizer("byte_level", "llama3"))
    assert later.prompt_ids(messages).tolist() == today.tolist()
    assert "Today Date: 26 Jul 2024" in later.tokenizer.decode(today)
    assert Prompter(later.tokenizer).prompt_ids(messages).tolist() == today.tolist()


def test_several_templates_without_a_default_are_refused_in_words():
    tokenizer = make_tokenizer("byte_level", "chatml")
    tokenizer.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(ConfigError, match="templates rag, tool_use, and none is named 'default'"):
        Prompter(tokenizer)


@pytest.mark.parametrize("template", ["", {}])
def test_an_empty_template_is_none(template):
    bare, empty = make_tokenizer("llama", around="bos"), make_tokenizer("llama", around="bos")
    empty.chat_template = template
    messages = [{"role": "user", "content": "hello"}]
    assert Prompter(empty).prompt_ids(messages).tolist() == Prompter(bare).prompt_ids(messages).tolist()


def test_a_tokenizer_that_would_split_every_special_token_still_keeps_those_of_its_template():
    plain, splitting = (
        make_tokenizer("byte_level", "chatml", special=True),
        make_tokenizer("byte_level", "chatml", special=True),
    )
    splitting.split_special_tokens = True
    messages = [{"role": "user", "content": f"{AUDIO} what?"}]
    assert Prompter(splitting).prompt_ids(messages).tolist() == Prompter(plain).prompt_ids(messages).tolist()


# -- where an answer begins -------------------------------------------------------------------------

#: How prompts of templates end that put more before an answer that is there.
BEGINNINGS = {
    "gpt_oss": "<|start|>assistant<|channel|>final<|message|>",
    "glm": "<|assistant|>\n",
    "deepseek_r1": "<|Assistant|><think>\n\n</think>\n\n",
    "nemotron": "<|assistant|>\n<think>\n\n</think>\n\n",
    "command_r7b": "<|assistant|><|START_THINKING|><|END_THINKING|><|START_RESPONSE|>",
    "deepseek_v3_2": "<|Assistant|><think></think>",
    "line_at_the_end": "<|assistant|><|final|>",
}


@pytest.mark.parametrize(("template", "end"), BEGINNINGS.items())
def test_a_prompt_leads_up_to_where_the_answer_begins(template, end, tmp_path):
    prompter = Prompter(make_tokenizer("byte_level", template))
    asked = [{"role": "user", "content": f"{AUDIO}?"}]
    dialogue = prompter.dialogue([*asked, {"role": "assistant", "content": "one"}], 1, "x")
    prompt = prompter.tokenizer.decode(prompter.prompt_ids(asked))
    assert prompt.endswith(end)
    assert prompter.tokenizer.decode(dialogue.input_ids) == f"{prompt}one{prompter.end_of_turn}"
    assert prompter.tokenizer.decode(dialogue.labels[dialogue.labels != -100]) == f"one{prompter.end_of_turn}"
    # once, whoever renders the prompt, and however often a tokenizer is taken up
    prompter.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    rendered = loaded.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered.endswith(end)
    assert Prompter(loaded).prompt_ids(asked).tolist() == prompter.prompt_ids(asked).tolist()


def test_a_prompt_is_left_as_it_is_where_the_model_is_to_think():
    for template, end in (("gpt_oss", "<|start|>assistant"), ("deepseek_r1", "<|Assistant|><think>\n")):
        prompter = Prompter(make_tokenizer("byte_level", template), enable_thinking=True)
        prompt = prompter.tokenizer.decode(prompter.prompt_ids([{"role": "user", "content": "?"}]))
        assert prompt.endswith(end)


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("template", ["thinking", "command_r7b"])
def test_an_exported_template_takes_for_granted_what_prompts_were_made_with(template, thinks):
    prompter = Prompter(make_tokenizer("byte_level", template), enable_thinking=thinks)
    keep_switches(prompter.tokenizer, thinks)
    keep_switches(prompter.tokenizer, thinks)  # once is enough
    asked = [{"role": "user", "content": "?"}]
    rendered = prompter.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert rendered == prompter.prompt_text(asked)
    other = Prompter(prompter.tokenizer, enable_thinking=not thinks)
    assert other.prompt_text(asked) != rendered  # who asks for the other gets it


def test_a_template_of_several_switches_holds_each_once_however_often_it_is_exported():
    tokenizer = make_tokenizer("byte_level", "thinking")
    tokenizer.chat_template += "{{ '' if thinking }}"
    keep_switches(tokenizer, False)
    once = tokenizer.chat_template
    keep_switches(tokenizer, False)
    assert tokenizer.chat_template == once


@pytest.mark.parametrize(
    ("end", "closed"),
    [
        ("<think>", "<think></think>"), ("<think>\n", "<think>\n\n</think>\n\n"), ("[THINK]", "[THINK][/THINK]"),
        ("<|START_THINKING|>", "<|START_THINKING|><|END_THINKING|>"), ("<thought>\n", "<thought>\n\n</thought>\n\n"),
        ("</think>", "</think>"), ("<|END_THINKING|>", "<|END_THINKING|>"), ("I think", "I think"),
    ],
)  # fmt: skip
def test_a_thought_that_a_prompt_opens_is_closed(end, closed):
    assert end + lead_in(f"assistant:{end}", "assistant:", []) == closed


# -- the end of a turn ------------------------------------------------------------------------------

ENDS = {
    "chatml": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "llama2": "</s>", "vicuna": "</s>",
    "none": "</s>", "gpt_oss": "<|return|>", "glm": "</s>", "deepseek_r1": "</s>", "nemotron": "<|end|>",
    "command_r7b": "<|END_RESPONSE|>", "deepseek_v3_2": "</s>", "line_at_the_end": "<|end|>", "named": "<|im_end|>",
}  # fmt: skip


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("template", "end"), ENDS.items())
def test_the_token_behind_an_answer_is_learnt_and_stops_it(template, end, special):
    prompter = Prompter(make_tokenizer("byte_level", template, special=special))
    contents = [("user", f"{AUDIO}?"), ("assistant", "one"), ("user", "and"), ("assistant", "two")]
    dialogue = prompter.dialogue([{"role": role, "content": words} for role, words in contents], 1, "x")
    learnt = tokens(prompter, dialogue.labels[dialogue.labels != -100])
    assert learnt[-1] == end == prompter.end_of_turn
    stops = tokens(prompter, prompter.stop_ids)
    assert {end, "</s>"} <= set(stops)
    assert len([token for token in learnt if token in stops]) == 2  # that of the earlier answer too


def test_what_follows_an_earlier_answer_stops_one_too():
    for template, other in (("gpt_oss", "<|end|>"), ("glm", "<|user|>")):
        prompter = Prompter(make_tokenizer("byte_level", template))
        assert other in tokens(prompter, prompter.stop_ids)


# -- people's words are text ------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("kind", "template"), EVERY)
def test_what_people_say_never_becomes_a_control_token(kind, template, special):
    prompter = Prompter(make_tokenizer(kind, template, "bos", special))
    controls = {prompter.audio_id, *prompter.stop_ids, *prompter.tokenizer.all_special_ids}
    controls |= {i for i, t in prompter.tokenizer.added_tokens_decoder.items() if t.content[0] in "<["}
    plain = prompter.dialogue(messages_of({"task": "sqqa", "question": "q", "answer": "a"}), 1, "sqqa")
    odd = prompter.dialogue(messages_of({"task": "sqqa", "question": ODD, "answer": ODD}), 1, "sqqa")
    count = [[int(i) for i in each.input_ids if int(i) in controls] for each in (plain, odd)]
    assert count[0] == count[1]
    assert not plain.spelt
    assert {"</s>", AUDIO, "<|ASR|>"} <= set(odd.spelt)
    said = prompter.tokenizer.decode(answer_of(odd)[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert said.strip() == ODD


@pytest.mark.parametrize("kind", KINDS)
def test_marks_of_a_dialogue_count_in_a_users_turn_and_nowhere_else(kind):
    prompter = Prompter(make_tokenizer(kind, "chatml"))
    turns = [("user", f"{AUDIO} or {AUDIO}"), ("assistant", f"not {AUDIO}"), ("user", AUDIO), ("assistant", AUDIO)]
    dialogue = prompter.dialogue([{"role": role, "content": words} for role, words in turns], 3, "dialogue")
    assert dialogue.spelt == (AUDIO, AUDIO)


def test_words_added_to_a_vocabulary_and_line_breaks_stay_what_they_are():
    tokenizer = make_tokenizer("byte_level", "chatml")
    tokenizer.add_tokens(["covid", "\n\n", "role"])  # the last is named in the template, too
    prompter = pickle.loads(pickle.dumps(Prompter(tokenizer)))  # as workers get it
    for words in ("the covid\n\nward role", "the covid\n\nward role </s>"):
        dialogue = prompter.dialogue(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": words}], 0, "x"
        )
        assert {"covid", "\n\n", "role"} <= set(tokens(prompter, dialogue.input_ids))


def test_words_that_look_like_the_stand_ins_forge_nothing():
    prompter = Prompter(make_tokenizer("byte_level", "chatml"))
    forged = "".join(chr(0xF0000 + i) + chr(0x10FFFD) * n for i in range(20) for n in (3, 9, 10)) + "</s>"
    dialogue = prompter.dialogue([{"role": "user", "content": "x"}, {"role": "assistant", "content": forged}], 0, "x")
    assert not set(answer_of(dialogue)[:-1]) & set(prompter.tokenizer.all_special_ids)


def test_a_question_is_told_as_it_was_asked():
    assert Request("sqqa", f"what is {AUDIO}?").words == f"what is {AUDIO}?"
    assert Request("asr", f"write </s> as {AUDIO}").words.endswith(f"write </s> as {AUDIO}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("asr", "half \ud83d"), "prompt holds half a character at position 5"),
        (("ast", None, "\udcff"), "language holds half a character at position 0"),
        (("sqqa", 5), "prompt: 5 must be text"),
        (("ast", None, ["German"]), "language: .*German.* must be text"),
    ],
)
def test_words_that_are_no_text_are_refused_by_name(arguments, said):
    with pytest.raises(ConfigError, match=said):
        Request(*arguments)
