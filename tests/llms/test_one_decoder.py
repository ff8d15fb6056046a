"""Of every family: new rows of the embedding table, and the same answers in validation and in use."""

import json

import pytest
import torch
from families import FAMILIES, write
from tokenizer_kinds import KINDS, TEMPLATES, make_tokenizer

from fastslm.inference.engine import Decoding, Memory
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
