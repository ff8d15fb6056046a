"""The shipped contract of LLMs: ours keeps it, and each promise that one breaks is noticed."""

import inspect

import pytest
import torch

from fastslm.modules.llms.causal_lm import CausalLM, LoRA
from fastslm.testing import LanguageModelContract


class TestCausalLM(LanguageModelContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_llm):
        type(self).build = staticmethod(lambda: CausalLM(str(tiny_llm)))


class TestCausalLMWithLoRA(LanguageModelContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_llm):
        type(self).build = staticmethod(lambda: CausalLM(str(tiny_llm), lora=LoRA(rank=2)))


class WrongWidth(CausalLM):
    def embed(self, input_ids):
        return super().embed(input_ids)[..., :-1]


class PositionsIgnored(CausalLM):
    def forward(self, embeddings, attention_mask, positions):
        return super().forward(embeddings, attention_mask, positions.sort().values)


class SeesPadding(CausalLM):
    def forward(self, embeddings, attention_mask, positions):
        return super().forward(embeddings + embeddings.mean(1, keepdim=True), attention_mask, positions)


class Detached(CausalLM):
    def forward(self, embeddings, attention_mask, positions):
        return super().forward(embeddings.detach(), attention_mask, positions) + 0 * embeddings.sum()


class MeanLoss(CausalLM):
    def forward(self, embeddings, attention_mask, positions, labels=None):
        given = super().forward(embeddings, attention_mask, positions, labels=labels)
        return given if labels is None else given / len(labels)


class SecondBest(CausalLM):
    def generate(self, embeddings, attention_mask, max_new_tokens, stop_ids):
        return super().generate(embeddings, attention_mask, max_new_tokens, stop_ids) + 1


class OneStop(CausalLM):
    def generate(self, embeddings, attention_mask, max_new_tokens, stop_ids):
        return super().generate(embeddings, attention_mask, max_new_tokens, stop_ids[:1])


class PadsWithTheLast(CausalLM):
    def generate(self, embeddings, attention_mask, max_new_tokens, stop_ids):
        answers = super().generate(embeddings, attention_mask, max_new_tokens, stop_ids)
        for answer in answers:
            end = next((i + 1 for i, token in enumerate(answer.tolist()) if token in stop_ids), len(answer))
            answer[end:] = stop_ids[-1]
        return torch.nn.functional.pad(answers, (0, max_new_tokens - answers.shape[1]), value=stop_ids[-1])


class ForgetfulCache(CausalLM):
    def extend(self, embeddings, attention_mask, cache):
        fresh = self.new_cache()
        cache.add(embeddings.shape[1])
        mask = None if attention_mask is None else attention_mask[:, -embeddings.shape[1] :]
        return super().extend(embeddings, mask, fresh)


class SeesSiblings(CausalLM):
    def branch(self, embeddings, parents, wanted, cache):
        return super().branch(embeddings, range(-1, len(parents) - 1), wanted, cache)


class LoadsAgain(CausalLM):
    def load(self):
        self.causal_lm = None
        super().load()
        torch.nn.init.normal_(self.causal_lm.get_input_embeddings().weight)


BROKEN = [
    WrongWidth, PositionsIgnored, SeesPadding, Detached, MeanLoss, SecondBest, OneStop, PadsWithTheLast, ForgetfulCache,
    SeesSiblings, LoadsAgain,
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_each_promise_that_is_broken_fails_a_test(broken, tiny_llm):
    class Contract(LanguageModelContract):
        build = staticmethod(lambda: broken(str(tiny_llm)))

    failed = []
    for name, test in inspect.getmembers(Contract(), inspect.ismethod):
        if name.startswith("test_"):
            try:
                test()
            except Exception:
                failed.append(name)
                break  # one is enough
    assert failed
