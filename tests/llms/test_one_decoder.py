"""Of every family: new rows of the embedding table, and the same answers in validation and in use."""

import json

import pytest
import torch
from families import FAMILIES, write
from tokenizer_kinds import KINDS, TEMPLATES, make_tokenizer

from fastslm.inference.engine import Decoding, Memory, read
from fastslm.inference.engine import write as write_all
from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.path.prompt import Prompter

#: What a base model may say about answers of its own.
OF_ITS_OWN = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.9, "suppress_tokens": list(range(200))}


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(FAMILIES)), ids=list(FAMILIES))
def test_validation_and_use_answer_a_prompt_alike(tmp_path, tiny_llm, place):
    kind, template = list(KINDS)[place % len(KINDS)], list(TEMPLATES)[place % len(TEMPLATES)]
    folder = write(list(FAMILIES)[place], tmp_path / "llm", tiny_llm)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    tokenizer = make_tokenizer(kind, template, "bos")
    tokenizer.add_tokens([f"word{i}" for i in range(704 - len(tokenizer))])  # so that the marks do not fit the table
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(OF_ITS_OWN))
    rows = []
    for seed in range(2):
        llm = CausalLM(str(folder), dtype="float32", lora=LoRA(rank=2, dropout=0.0))
        prompter = Prompter(llm.tokenizer)
        torch.manual_seed(seed)
        llm.load()
        rows.append(llm.embed(torch.tensor([prompter.audio_id, prompter.audio_id + 1])))
    assert torch.equal(*rows)
    assert (rows[0][0] - rows[0][1]).norm() > 0.1 * rows[0][0].norm()
    llm.eval()
    embeddings = llm.embed(
        torch.from_numpy(prompter.prompt_ids([{"role": "user", "content": "hello <|AUDIO|> what?"}]))
    )
    mask = torch.ones(1, len(embeddings), dtype=torch.int64)
    validated = llm.generate(embeddings[None], mask, 8, prompter.stop_ids)[0].tolist()
    used = Memory(llm, prompter.stop_ids).answer(embeddings, 8, Decoding()).ids
    end = next((i for i, token in enumerate(validated) if token in prompter.stop_ids), len(validated))
    assert validated[:end] == used


@pytest.mark.parametrize(
    "name", ["Llama", "Mistral", "Gemma 3 (text)", "Qwen3-Next", "RecurrentGemma", "Jamba", "LFM2"]
)
def test_rows_that_leave_a_batch_and_beams_leave_the_others_as_they_are(family, name):
    """A cache of keys and values, of a sliding window, or of recurrent states keeps chosen rows alike."""
    llm = CausalLM(str(family(name)), dtype="float32")
    llm.load()
    llm.eval()
    limits, longest = [2, 3, 12], 9
    with torch.inference_mode():
        prompts = [llm.embed(torch.randint(3, 400, (longest,))) for _ in limits]
        alone = [Memory(llm, []).answer(one, most, Decoding()).ids for one, most in zip(prompts, limits, strict=True)]
        cache = llm.new_cache()
        *_, together = write_all(llm, cache, read(llm, torch.stack(prompts), cache, None), limits, [], Decoding())
        again, memory = llm.new_cache(), Memory(llm, [])
        logits = read(llm, torch.stack(prompts), again, None)
        again.select(torch.tensor([2, 2, 0]))
        token = torch.stack([row.argmax() for row in logits[[2, 2, 0]]])
        beside = llm.extend(llm.embed(token[:, None]), None, again)
        apart = [
            llm.extend(llm.embed(token[i][None, None]), None, cache_of(llm, prompts[j])) for i, j in ((0, 2), (2, 0))
        ]
        memory.read(prompts[1])
        asked = [memory.answer(prompts[0], 5, Decoding()).ids for _ in range(2)]
    assert [answer.ids for answer in together] == alone
    torch.testing.assert_close(beside[[0, 2]], torch.cat(apart), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(beside[0], beside[1])
    assert asked[0] == asked[1]


def cache_of(llm, prompt):
    cache = llm.new_cache()
    read(llm, prompt[None], cache, None)
    return cache
