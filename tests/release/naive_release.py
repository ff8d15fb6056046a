"""The released model once more, naive, written from its description: one recording, float64, by released name.

Nothing of fastslm is used here.
"""

import math

import torch
import torch.nn.functional as F

HEAD_WIDTH = 64  # of the speech side: 20 heads at 1280
SAMPLES_OF_A_SECOND = 16_000


class Weights(dict):
    """A released state dict, float64, read by name below a prefix."""

    def __call__(self, prefix):
        return Weights({n.removeprefix(prefix): v for n, v in self.items() if n.startswith(prefix)})

    def linear(self, name, x):
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if f"{name}.bias" in self else y

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-5)

    def conv(self, name, x, stride):
        return F.conv1d(x.T[None], self[f"{name}.weight"], self[f"{name}.bias"], stride, 1)[0].T


def heads(x):
    return x.reshape(len(x), -1, HEAD_WIDTH).transpose(0, 1)


def attention(q, k, v):
    scores = heads(q) @ heads(k).transpose(1, 2) / math.sqrt(HEAD_WIDTH)
    return (scores.softmax(-1) @ heads(v)).transpose(0, 1).flatten(1)


def sinusoids(length, width):
    rates = torch.tensor([10_000 ** (-i / (width / 2 - 1)) for i in range(width // 2)], dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def mel_windows(samples, num_mel_bins, window_frames):
    """One spectrogram of the whole recording, at least 1 s of it, cut; the last window ends with zeros."""
    from transformers import WhisperFeatureExtractor

    wave = samples.astype("float64") / 32768.0
    wave = torch.from_numpy(wave)
    wave = F.pad(wave, (0, max(0, SAMPLES_OF_A_SECOND - len(wave))))
    filters = torch.from_numpy(WhisperFeatureExtractor(feature_size=num_mel_bins).mel_filters).double()
    window = torch.hann_window(400, dtype=torch.float64)
    padded = F.pad(wave[None, None], (200, 200), mode="reflect")[0, 0]
    frames = padded.unfold(0, 400, 160)[: len(wave) // 160]  # the last frame of the transform is dropped
    power = torch.fft.rfft(frames * window).abs() ** 2
    log = (power @ filters).clamp_min(1e-10).log10()
    log = torch.maximum(log, log.max() - 8.0)
    mel = (log + 4.0) / 4.0
    count = math.ceil(len(mel) / window_frames)
    return F.pad(mel, (0, 0, 0, count * window_frames - len(mel))).reshape(count, window_frames, -1)


def encode(weights, mel):
    """OpenAI's Whisper encoder of one window."""
    x = F.gelu(weights.conv("conv1", mel, 1))
    x = F.gelu(weights.conv("conv2", x, 2)) + weights["positional_embedding"]
    block = 0
    while f"blocks.{block}.attn_ln.weight" in weights:
        w = weights(f"blocks.{block}.")
        y = w.norm("attn_ln", x)
        y = attention(w.linear("attn.query", y), w.linear("attn.key", y), w.linear("attn.value", y))
        x = x + w.linear("attn.out", y)
        x = x + w.linear("mlp.2", F.gelu(w.linear("mlp.0", w.norm("mlp_ln", x))))
        block += 1
    return weights.norm("ln_post", x)


def compress(w, x):
    query = w["query"][0]
    values = w.norm("kv_ln", x)
    q = w.norm("q_ln", query) + sinusoids(len(query), x.shape[1])
    return w.linear("out_proj", attention(q, values + sinusoids(len(x), x.shape[1]), values))


def down(w, x):
    return w.norm("ln_post", F.gelu(w.conv("conv2", F.gelu(w.conv("conv1", x, 1)), 2)))


def hta(weights, x1):
    x2 = down(weights("stage1."), x1)
    x3 = down(weights("stage2."), x2)
    stages = [compress(weights(f"compressor{i}."), x) for i, x in ((1, x1), (2, x2), (3, x3))]
    y = compress(weights("compressor."), torch.cat(stages))
    everything = torch.cat([x1, x2, x3])
    for block in (0, 1):
        w = weights(f"out_attn.{block}.")
        z = w.norm("norm1", y)
        a = attention(w.linear("attn.q", z), w.linear("attn.k", z), w.linear("attn.v", z))
        y = y + w.linear("attn.out_proj", a)
        z = w.norm("norm2", y)
        c = w("cross_attn.")
        y = y + c.linear("out_proj", attention(c.linear("q", z), c.linear("k", everything), c.linear("v", everything)))
    return weights.linear("llm_proj", y)


def speech_tokens(state, samples, num_mel_bins, window_frames):
    """Return the speech tokens ``[n, D_llm]`` of a recording, every window's side by side."""
    speech = Weights({n: v.double() for n, v in state.items()})("encoder.")
    windows = mel_windows(samples, num_mel_bins, window_frames)
    return torch.cat([hta(speech, encode(speech("whisper."), mel)) for mel in windows])


def llm_logits(state, config, embeddings, alpha):
    """Qwen3 with adapters on every linear layer, by the names of the released state dict; logits ``[S, V]``."""
    weights = Weights({n: v.double() for n, v in state.items()})("llm.base_model.model.model.")

    def rms(name, x):
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weights[name]

    def adapted(name, x):
        down, up = weights[f"{name}.lora_A.default.weight"], weights[f"{name}.lora_B.default.weight"]
        return x @ weights[f"{name}.base_layer.weight"].T + (alpha / len(down)) * (x @ down.T @ up.T)

    def rotate(x):
        half = config.head_dim // 2
        rates = config.rope_parameters["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(x.shape[0], dtype=torch.float64)[:, None, None] * rates
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    x = embeddings.double()
    length = len(x)
    past = torch.ones(length, length, dtype=torch.bool).tril()
    for layer in range(config.num_hidden_layers):
        at = f"layers.{layer}."
        z = rms(f"{at}input_layernorm.weight", x)
        q, k, v = (adapted(f"{at}self_attn.{p}_proj", z).reshape(length, -1, config.head_dim) for p in ("q", "k", "v"))
        q = rotate(rms(f"{at}self_attn.q_norm.weight", q))
        k = rotate(rms(f"{at}self_attn.k_norm.weight", k))
        share = config.num_attention_heads // config.num_key_value_heads
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(config.head_dim)
        seen = scores.masked_fill(~past, -torch.inf).softmax(-1)
        x = x + adapted(f"{at}self_attn.o_proj", torch.einsum("hqk,khd->qhd", seen, v).flatten(1))
        z = rms(f"{at}post_attention_layernorm.weight", x)
        z = F.silu(adapted(f"{at}mlp.gate_proj", z)) * adapted(f"{at}mlp.up_proj", z)
        x = x + adapted(f"{at}mlp.down_proj", z)
    return rms("norm.weight", x) @ weights["embed_tokens.weight"].T
