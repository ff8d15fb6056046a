"""What SGLang's Transformers backend does with a model that takes audio, in our words and without SGLang.

From the source of SGLang 0.5.23: how it builds the model and finds its weights (``srt/models/transformers.py``,
``srt/models/utils.py``), and how it makes a request (``srt/multimodal/processors/transformers_auto.py`` and
``base_processor.py``, ``srt/managers/mm_utils.py``).
"""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

#: How names in a folder begin, and in its model; the longest that fits. Those of images are left out.
_RENAMED = {
    "language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head.",
    "model.layers.": "model.language_model.layers.", "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.norm.": "model.language_model.norm.", "model.transformer.": "model.", "model.model.": "model.",
    "model.lm_head.": "lm_head.", "transformer.": "model.", "gpt_neox.": "model.", "embed_out.": "lm_head.",
    "model.": "model.", "lm_head.": "lm_head.", "": "model.",
}  # fmt: skip
#: What it keeps of a processor's output as audio; all else is dropped.
_AUDIO_NAMES = {
    "audio_features", "audio_feature_lens", "input_features", "input_features_mask", "audio_attention_mask",
    "feature_attention_mask",
}  # fmt: skip


class Server:
    """An exported folder, loaded.

    Args:
        folder: its path.
        dtype: that of the command line, which is the default one while the model is built.
    """

    def __init__(self, folder, dtype=torch.float32):
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        self.config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        text = self.config.text_config
        text._attn_implementation = "sglang_like"
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with _parameters_on_meta():
                model = AutoModel.from_config(self.config, torch_dtype=dtype, trust_remote_code=True)
            _replace_linear(model)
            width = model.get_input_embeddings().weight.shape[1]
            model.set_input_embeddings(nn.Embedding(text.vocab_size, width))
            self.whole = nn.ModuleDict({"model": model, "lm_head": nn.Linear(width, text.vocab_size, bias=False)})
        finally:
            torch.set_default_dtype(before)
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
        for parameter in self.whole.parameters():
            nn.init.constant_(parameter, float("nan"))
        if text.tie_word_embeddings:
            self.whole["lm_head"].weight = model.get_input_embeddings().weight
        self.left_over = self._load(folder)
        self.not_loaded = [name for name, value in self.whole.named_parameters() if value.isnan().any()]

    def _load(self, folder):
        places = dict(self.whole.named_parameters()) | dict(self.whole.named_buffers())
        left_over = []
        for file in sorted(folder.glob("*.safetensors")):
            for name, value in load_file(file).items():
                begin = max((b for b in _RENAMED if name.startswith(b)), key=len)
                place = places.get(_RENAMED[begin] + name.removeprefix(begin))
                if place is None or place.shape != value.shape:
                    left_over.append(name)
                else:
                    place.data.copy_(value)
        return left_over

    def request(self, prompt, recordings):
        """Return a request's ids and features.

        Args:
            prompt: text, or ids, which it makes text of.
            recordings: float32 in -1..1, a list.
        """
        text = prompt if isinstance(prompt, str) else self.processor.tokenizer.decode(prompt)
        assert text.split(self.processor.audio_token)[1:], "it would make a prompt of its own"
        out = self.processor(text=[text], padding=True, return_tensors="pt", audios=recordings)
        item = {name: value for name, value in out.items() if name in _AUDIO_NAMES}
        assert len(item["input_features"]) != len(recordings), "it would make a request of each row"
        return SimpleNamespace(ids=out["input_ids"].flatten(), item=item)

    @torch.no_grad()
    def generate(self, requests, limit, least=0):
        """Return greedy answers to requests, all prefilled in one step, without what ends them."""
        cache = {layer: {} for layer in range(self.config.text_config.num_hidden_layers)}
        audio = {}
        for request in requests:  # features of a step are put together along their first axis
            for name, value in request.item.items():
                audio[name] = torch.cat([audio[name], value]) if name in audio else value
        lengths = [len(request.ids) for request in requests]
        ids, answers = torch.cat([request.ids for request in requests]), [[] for _ in requests]
        positions = torch.cat([torch.arange(length) for length in lengths])
        for step in range(limit):
            hidden = self.whole["model"](
                input_ids=ids[None], inputs_embeds=None, use_cache=False, position_ids=positions[None],
                return_dict=False, forward_batch=lengths, attention_instances=cache, **audio,
            )[0][0]  # fmt: skip
            logits = self.whole["lm_head"](hidden[torch.tensor(lengths).cumsum(0) - 1]).float()
            if step < least:
                logits[:, self.config.stop_ids] = -torch.inf
            ids, audio = logits.argmax(-1), {}
            positions = positions[torch.tensor(lengths).cumsum(0) - 1] + 1
            lengths = [1] * len(requests)
            for answer, token in zip(answers, ids.tolist(), strict=True):
                answer.append(token)
            if all(set(answer) & set(self.config.stop_ids) for answer in answers):
                break
        ends = [next((i for i, t in enumerate(a) if t in self.config.stop_ids), len(a)) for a in answers]
        return [answer[:end] for answer, end in zip(answers, ends, strict=True)]


def _attention(module, *states, scaling=None, forward_batch=(), attention_instances=None, **_others):
    """Attend within each request of a step, to what is cached of it and, causally, to its new tokens."""
    cache, out = attention_instances[module.layer_idx], []
    parts = zip(*(one.split(forward_batch, 2) for one in states[:3]), strict=True)
    for request, (q, k, v) in enumerate(parts):
        if request in cache:
            k, v = (torch.cat(pair, 2) for pair in zip(cache[request], (k, v), strict=True))
        cache[request] = k, v
        causal = q.shape[2] == k.shape[2]
        out.append(F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling, enable_gqa=True))
    return torch.cat(out, 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS["sglang_like"] = _attention


@contextmanager
def _parameters_on_meta():
    register = nn.Module.register_parameter

    def register_without_values(module, name, parameter):
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = register_without_values
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _replace_linear(module):
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):  # in the default dtype, whatever the old one had
            setattr(module, name, nn.Linear(child.in_features, child.out_features, child.bias is not None))
        else:
            _replace_linear(child)
