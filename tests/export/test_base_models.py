"""A base model in validation, in use and exported: the same prompt, the same answer, whatever it says of itself."""

import json

import numpy as np
import pytest
import torch
from tokenizer_kinds import make_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

import fastslm
from fastslm.checkpoint.run import open_run
from fastslm.export.folder import export_model
from fastslm.path.batch import Batch, Sample
from fastslm.path.prompt import messages_of
from fastslm.path.request import Request
from fastslm.training.evaluation import write_answers

AUDIO = (np.random.default_rng(0).standard_normal(50_000) * 2000).astype(np.int16)
SMALL = {
    "vocab_size": 405, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
#: What a base model may say about answers of its own.
OF_ITS_OWN = {
    "do_sample": True, "temperature": 0.7, "top_k": 5, "repetition_penalty": 1.9, "no_repeat_ngram_size": 1,
    "min_new_tokens": 5, "eos_token_id": [7, 8], "suppress_tokens": list(range(200)),
}  # fmt: skip
#: LLM, tokenizer, template and what the tokenizer puts around a text by itself.
BASES = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), "llama", "none", "bos"),
    "llama_chat": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)), "llama", "llama2", "bos"),
    "phi": (lambda: PhiForCausalLM(PhiConfig(**SMALL)), "byte_level", "none", "nothing"),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=405, n_embd=32, n_layer=2, n_head=2, n_positions=512)),
        "byte_level_prefix_space", "llama3", "bos_and_eos",
    ),
    "unigram": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), "unigram", "gemma", "eos"),
}  # fmt: skip
REQUESTS = {"asr": {}, "sqqa": {"text": "Who says </s>, <end_of_turn> or <|AUDIO|>?", "task": "sqqa"}}


@pytest.fixture(scope="module")
def said(tmp_path_factory, make_run, outside):
    """Return of each base model its run, and what its exported folder says without fastslm."""
    folder, runs, jobs = tmp_path_factory.mktemp("bases"), {}, {}
    for name, (build, kind, template, around) in BASES.items():
        torch.manual_seed(0)
        base = folder / f"{name}-base"
        build().save_pretrained(base)
        make_tokenizer(kind, template, around).save_pretrained(base)
        (base / "generation_config.json").write_text(json.dumps(OF_ITS_OWN))
        llm = {
            "class_path": "CausalLM",
            "init_args": {"pretrained": str(base), "dtype": "float32", "lora": {"rank": 2}},
        }
        runs[name] = make_run(folder / name, arguments={"head_width": 16}, llm=llm, max_new_tokens=6)
        export_model(open_run(runs[name]), folder / f"{name}-export")
        for task, request in REQUESTS.items():
            job = {"folder": str(folder / f"{name}-export"), "kind": "speech", "audio": AUDIO, "request": request}
            jobs[f"{name}-{task}"] = job
    return runs, outside(jobs)


@pytest.mark.slow
@pytest.mark.parametrize("task", REQUESTS)
@pytest.mark.parametrize("name", BASES)
def test_prompt_and_answer_are_those_of_validation_and_use(said, one_thread, name, task):
    runs, found = said
    model = fastslm.load(runs[name], device="cpu")
    prompter, question = model.path.prompter, REQUESTS[task].get("text")
    fields = {"task": task, "question": question, "answer": "one", "text": "one"}
    dialogue = prompter.dialogue(messages_of(fields), 1, task)
    prompt = dialogue.input_ids[: dialogue.num_prompt_ids].tolist()
    before, after = model.ids_of(Request(task, question))
    assert found[f"{name}-{task}"]["ids"][0].tolist() == [*before, prompter.audio_id, *after] == prompt

    batch = Batch.of([Sample("a", dialogue, [AUDIO])])
    with torch.no_grad():
        (validated,) = write_answers(model.path, batch, model.path.listen(batch), [0], lambda seconds: 6)
    used = model.ask(AUDIO, question) if question else model.transcribe(AUDIO)
    streamed = model.stream(task=task, prompt=question)
    streamed.push(AUDIO)
    assert validated["hypothesis"] == used.text == streamed.answer().text
    stops = prompter.stop_ids
    outside = [int(i) for i in found[f"{name}-{task}"]["answer"][0] if int(i) not in stops]
    assert outside == list(used.tokens)
    assert len(set(used.tokens)) > 0
