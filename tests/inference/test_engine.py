"""Reading in chunks and writing token by token, against transformers' own generation and against counting by hand."""

import itertools
import math
import shutil

import pytest
import torch
from transformers import DynamicCache, Gemma2Config, Gemma2ForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel

from fastslm.contracts import KVCache, LanguageModel
from fastslm.errors import ConfigError
from fastslm.inference import engine
from fastslm.inference.beam import beam_search
from fastslm.inference.engine import Decoding, Memory, read, write
from fastslm.modules.llms.causal_lm import CausalLM
from fastslm.path.finite import check_logits

STOP = [2]


@pytest.fixture(scope="module")
def llm(tiny_llm):
    made = CausalLM(str(tiny_llm))
    made.load()
    return made.eval().requires_grad_(False)


@pytest.fixture(params=["sliding", "gpt2"], scope="module")
def other_llm(request, tmp_path_factory, tiny_llm):
    """Return an LLM that forgets what is 8 positions back, and one with learned positions."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param == "sliding":
        config = Gemma2Config(
            vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, sliding_window=8, pad_token_id=0, eos_token_id=2, bos_token_id=1,
        )  # fmt: skip
        model = Gemma2ForCausalLM(config)
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=32, n_layer=2, n_head=2, n_positions=256))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_llm / name, folder / name)
    made = CausalLM(str(folder))
    made.load()
    return made.eval().requires_grad_(False)


def prompt(llm, length, seed=0):
    ids = torch.randint(3, 400, (1, length), generator=torch.Generator().manual_seed(seed))
    return llm.embed(ids)


def greedy_of_transformers(llm, embeddings, num, mask=None):
    mask = torch.ones(embeddings.shape[:2], dtype=torch.int64) if mask is None else mask
    return [[i for i in row if i not in STOP] for row in llm.generate(embeddings, mask, num, STOP).tolist()]


def small_chunks(monkeypatch, size):
    monkeypatch.setattr(engine, "_CHUNK_POSITIONS", size)
    monkeypatch.setattr(engine, "_LEAST_CHUNK", 1)


@pytest.mark.parametrize("size", [1, 2, 7, 40, 41])
def test_reading_in_chunks_equals_reading_at_once(llm, monkeypatch, size):
    embeddings = prompt(llm, 41)
    expected = llm(embeddings, None, torch.tensor([40]))
    small_chunks(monkeypatch, size)
    torch.testing.assert_close(read(llm, embeddings, llm.new_cache()), expected, rtol=1e-5, atol=1e-5)


def test_reading_in_chunks_equals_reading_at_once_in_other_llms(other_llm, monkeypatch):
    embeddings = prompt(other_llm, 41)
    expected = other_llm(embeddings, None, torch.tensor([40]))
    small_chunks(monkeypatch, 6)
    torch.testing.assert_close(read(other_llm, embeddings, other_llm.new_cache()), expected, rtol=1e-5, atol=1e-5)


def test_padded_prompts_are_read_in_chunks_as_they_are_alone(llm, monkeypatch):
    prompts = [prompt(llm, length, length)[0] for length in (3, 30, 17)]
    embeddings, mask = torch.zeros(3, 30, 32), torch.zeros(3, 30, dtype=torch.int64)
    for row, one in enumerate(prompts):
        embeddings[row, 30 - len(one) :], mask[row, 30 - len(one) :] = one, 1
    small_chunks(monkeypatch, 4)  # whole chunks of the first row are padding
    logits = read(llm, embeddings, llm.new_cache(), mask)
    for row, one in enumerate(prompts):
        alone = read(llm, one[None], llm.new_cache())[0]
        torch.testing.assert_close(logits[row], alone, rtol=1e-4, atol=1e-5)


def test_chunks_shrink_as_more_has_been_read_so_that_attention_stays_bounded():
    for num_read in (0, 1000, 6000, 48_000, 57_600):
        size = engine.chunk_positions(num_read, 1)
        assert size >= 16
        assert size * (num_read + size) <= engine._CHUNK_ELEMENTS
    assert engine.chunk_positions(0, 1) == 512
    assert engine.chunk_positions(6000, 8) < engine.chunk_positions(6000, 1)


def test_logits_are_made_for_the_last_position_only(llm, monkeypatch):
    shapes = []
    head = llm.causal_lm.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    small_chunks(monkeypatch, 16)
    read(llm, prompt(llm, 41), llm.new_cache())
    handle.remove()
    assert [shape[-2] for shape in shapes] == [1, 1, 1]


def test_greedy_answers_are_those_of_transformers(llm, other_llm):
    for model in (llm, other_llm):
        embeddings = prompt(model, 19)
        answer = Memory(model, STOP).answer(embeddings[0], 30, Decoding())
        assert [answer.ids] == greedy_of_transformers(model, embeddings, 30)


def written(llm, prompts, limits, decoding, stop_ids=STOP):
    """Return the answers to prompts in one batch, and how many there were to look at."""
    longest = max(map(len, prompts))
    embeddings, mask = torch.zeros(4, longest, 32), torch.zeros(4, longest, dtype=torch.int64)
    for row, one in enumerate(prompts):
        embeddings[row, longest - len(one) :], mask[row, longest - len(one) :] = one, 1
    cache = llm.new_cache()
    with torch.inference_mode():
        logits = read(llm, embeddings, cache, mask)
        *before, answers = write(llm, cache, logits, limits, stop_ids, decoding, mask)
    return answers, 1 + len(before)


def test_answers_of_a_batch_are_those_alone_whatever_their_limits(llm):
    prompts, limits = [prompt(llm, length, length)[0] for length in (5, 23, 11, 8)], (4, 40, 12, 1)
    answers, _ = written(llm, prompts, limits, Decoding())
    for one, limit, answer in zip(prompts, limits, answers, strict=True):
        assert answer.ids == Memory(llm, STOP).answer(one, limit, Decoding()).ids
        assert len(answer.ids) == limit or answer.end == "stop"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("at_once", [2, 5, 64])
def test_tokens_that_are_asked_for_together_make_the_same_answers(llm, monkeypatch, at_once, temperature):
    prompts, limits = [prompt(llm, length, length)[0] for length in (5, 23, 11, 8)], (4, 40, 12, 1)
    decoding = Decoding(temperature=temperature)
    asked, ask = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: asked.append(0) or ask(tensor))
    stop_ids = [written(llm, prompts, limits, decoding)[0][1].ids[17]]
    asked.clear()
    expected = written(llm, prompts, limits, decoding, stop_ids)
    one_by_one = len(asked)
    monkeypatch.setitem(engine._AT_ONCE, "cpu", at_once)
    asked.clear()
    assert written(llm, prompts, limits, decoding, stop_ids) == expected
    assert len(asked) <= 3 + one_by_one // at_once


def test_an_answer_says_what_ended_it(llm):
    embeddings = prompt(llm, 9)[0]
    first, second, *_ = Memory(llm, []).answer(embeddings, 8, Decoding()).ids
    assert Memory(llm, []).answer(embeddings, 8, Decoding()).end == "limit"
    stopped = Memory(llm, [second]).answer(embeddings, 8, Decoding())
    assert (stopped.ids, stopped.end) == ([] if first == second else [first], "stop")


def test_an_answer_leaves_the_memory_as_it_was(llm, other_llm):
    for model, beams in itertools.product((llm, other_llm), (1, 3)):
        memory = Memory(model, STOP)
        memory.read(prompt(model, 12)[0])
        question, other = prompt(model, 5, 1)[0], prompt(model, 4, 2)[0]
        first = memory.answer(question, 9, Decoding(beams=beams))
        between = memory.answer(other, 9, Decoding(beams=beams))
        assert memory.cache.num_positions == 12
        assert memory.answer(question, 9, Decoding(beams=beams)).ids == first.ids
        assert memory.answer(other, 9, Decoding(beams=beams)).ids == between.ids
        whole = torch.cat([prompt(model, 12)[0], question])
        assert Memory(model, STOP).answer(whole, 9, Decoding(beams=beams)).ids == first.ids


def test_draws_repeat_with_their_seed_and_differ_without(llm):
    embeddings = prompt(llm, 9)[0]
    draws = [Memory(llm, STOP).answer(embeddings, 12, Decoding(temperature=1.5, seed=s)).ids for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    nearly_greedy = Memory(llm, STOP).answer(embeddings, 12, Decoding(temperature=1.5, top_p=1e-6)).ids
    assert nearly_greedy == Memory(llm, STOP).answer(embeddings, 12, Decoding()).ids


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
def test_at_next_to_no_temperature_the_likeliest_is_drawn(temperature):
    draw = engine._Draw(Decoding(temperature=temperature), 1, torch.device("cpu"))
    assert draw(torch.tensor([[1.0, 3.0, 2.0, -torch.inf]]), [0]).tolist() == [1]


def test_draws_follow_the_probabilities():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    draw = engine._Draw(Decoding(temperature=1.0, top_p=0.79), 4000, torch.device("cpu"))
    draw.generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    drawn = draw(logits, range(4000))
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "settings", [{"beams": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"beams": 2, "temperature": 0.5}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError):
        Decoding(**settings)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_the_roomy_cache_holds_what_transformers_own_holds(llm):
    ours, theirs = llm.new_cache(), DynamicCache(config=llm.causal_lm.config)
    generator = torch.Generator().manual_seed(0)
    for length in (1, 300, 1, 1, 40, 700):
        embeddings = torch.randn(2, length, 32, generator=generator)
        mine = llm.extend(embeddings, None, ours)
        expected = llm.causal_lm(inputs_embeds=embeddings, past_key_values=theirs, use_cache=True).logits[:, -1]
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
    for our_layer, their_layer in zip(ours.layers_of.layers, theirs.layers, strict=True):
        assert torch.equal(our_layer.keys, their_layer.keys)
        assert torch.equal(our_layer.values, their_layer.values)


def test_adding_one_position_copies_nothing_that_is_held(llm):
    cache = llm.new_cache()
    llm.extend(prompt(llm, 500), None, cache)
    before = [layer.keys.data_ptr() for layer in cache.layers_of.layers]
    for i in range(20):
        llm.extend(prompt(llm, 1, i), None, cache)
    assert [layer.keys.data_ptr() for layer in cache.layers_of.layers] == before


def test_a_cache_can_be_cut_selected_and_copied(llm):
    embeddings = prompt(llm, 20)
    cache = llm.new_cache()
    llm.extend(embeddings[:, :10], None, cache)
    copy = cache.copy()
    llm.extend(prompt(llm, 7, 5), None, cache)
    cache.cut(10)
    expected = llm.extend(embeddings[:, 10:], None, cache)
    torch.testing.assert_close(llm.extend(embeddings[:, 10:], None, copy), expected)
    copy.cut(10)
    copy.select(torch.tensor([0, 0, 0]))
    three = llm.extend(embeddings[:, 10:].expand(3, -1, -1), None, copy)
    torch.testing.assert_close(three, expected.expand(3, -1), rtol=1e-5, atol=1e-5)


# -- beams -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beams", "seed"), list(itertools.product([2, 4], range(4))))
def test_beam_search_finds_what_transformers_finds(llm, beams, seed):
    embeddings = prompt(llm, 15, seed)
    ranked = llm.extend(embeddings, None, llm.new_cache())[0].argsort(descending=True)
    stops = [int(ranked[3])]  # a stop id that is likely, so that beams end at different lengths
    settings = GenerationConfig(
        max_new_tokens=12, num_beams=beams, do_sample=False, eos_token_id=stops, pad_token_id=0, length_penalty=1.0
    )
    mask = torch.ones(1, 15, dtype=torch.int64)
    expected = llm.causal_lm.generate(inputs_embeds=embeddings, attention_mask=mask, generation_config=settings)[0]
    answer = Memory(llm, stops).answer(embeddings[0], 12, Decoding(beams=beams))
    found = answer.ids + (stops if answer.end == "stop" else [])
    assert found == [i for i in expected.tolist() if i != 0]


class ThreeWords(LanguageModel):
    """Words 0 (stop), 1 and 2 with given probabilities after each history."""

    width, context_length = 3, 100

    def __init__(self, shares):
        super().__init__()
        self.shares = shares

    def load(self):
        pass

    def generate(self, *arguments):
        raise NotImplementedError

    def forward(self, *arguments):
        raise NotImplementedError

    def embed(self, input_ids):
        return torch.nn.functional.one_hot(input_ids, 3).float()

    def new_cache(self):
        return Histories()

    def extend(self, embeddings, attention_mask, cache):
        ids = embeddings.argmax(-1).tolist()
        cache.rows = [past + new for past, new in zip(cache.rows or [[]] * len(ids), ids, strict=True)]
        return torch.log(torch.tensor([self.shares[tuple(row[1:])] for row in cache.rows]))


class Histories(KVCache):
    rows = None

    @property
    def num_positions(self):
        return len(self.rows[0]) if self.rows else 0

    can_cut = True

    def cut(self, num_positions):
        self.rows = [row[:num_positions] for row in self.rows]

    def select(self, rows):
        self.rows = [list(self.rows[i]) for i in rows.tolist()]

    def copy(self):
        made = Histories()
        made.rows = self.rows and [list(row) for row in self.rows]
        return made


def test_wide_beam_search_finds_the_best_of_all_answers():
    generator = torch.Generator().manual_seed(3)
    histories = [h for n in range(4) for h in itertools.product((1, 2), repeat=n)]
    for _ in range(20):
        shares = {h: torch.softmax(2 * torch.randn(3, generator=generator), 0).tolist() for h in histories}
        every = {}
        for history in histories:
            log = sum(math.log(shares[history[:i]][word]) for i, word in enumerate(history))
            every[(*history, 0)] = (log + math.log(shares[history][0])) / (len(history) + 1)
            if len(history) == 3:
                for last in (1, 2):
                    every[(*history, last)] = (log + math.log(shares[history][last])) / 4
        best = max(every, key=every.get)
        llm, cache = ThreeWords(shares), Histories()
        logits = llm.extend(llm.embed(torch.tensor([[1]])), None, cache)
        answer = beam_search(llm, cache, logits, 4, [0], 16)
        assert (*answer.ids, *([0] if answer.end == "stop" else [])) == best


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused_and_those_of_tokens_ruled_out_are_not(llm, value):
    ruled_out = torch.tensor([[0.5, -math.inf]])
    check_logits(ruled_out, ruled_out)
    with pytest.raises(ConfigError, match=r"no numbers in float16\..* bfloat16 or float32"):
        check_logits(torch.tensor([[0.5, value]]), ruled_out.half())
    with pytest.raises(ConfigError, match=r"no numbers in float32\."):
        Memory(llm, STOP).answer(torch.full((4, llm.width), value), 2, Decoding())
