"""Encoders against transformers' own models and feature extractors, on small folders of random weights."""

import copy
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fastslm.errors import ConfigError
from fastslm.modules.abstractors.avg_pool import AvgPool
from fastslm.modules.encoders.mel import CONTEXT_SAMPLES, HOP_SAMPLES, LogMel, pad_with_context, slaney_mel_filters
from fastslm.modules.encoders.parakeet import ParakeetEncoder, log_mel
from fastslm.modules.encoders.waveform import WaveformEncoder
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM
from fastslm.path.parts import load_encoder
from fastslm.training.lightning_module import SpeechLMModule

WINDOW = 16_000
LENGTHS = (1, 200, 399, 400, 401, 640, 719, 720, 1280, 1439, 1440, 5000, 15_999, 16_000)
WAVEFORM = {
    "wav2vec2-layer": ("Wav2Vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "wav2vec2-group": ("Wav2Vec2", {"feat_extract_norm": "group"}),
    "hubert-layer": ("Hubert", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "hubert-group": ("Hubert", {"feat_extract_norm": "group"}),
    "hubert-batch-norm": ("Hubert", {"feat_extract_norm": "layer", "conv_pos_batch_norm": True}),
    "wavlm-layer": ("WavLM", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "wavlm-group": ("WavLM", {"feat_extract_norm": "group"}),
    "unispeech-group": ("UniSpeech", {"feat_extract_norm": "group"}),
    "unispeech-sat-layer": ("UniSpeechSat", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "data2vec": ("Data2VecAudio", {"conv_pos_kernel_size": 19}),
    "conformer-relative": ("Wav2Vec2Conformer", {"feat_extract_norm": "layer", "position_embeddings_type": "relative"}),
    "conformer-rotary": ("Wav2Vec2Conformer", {"feat_extract_norm": "layer", "position_embeddings_type": "rotary"}),
}
#: The kinds that differ most; the others are for the slow tests.
QUICK = ("wav2vec2-layer", "hubert-group", "parakeet", "whisper")
ALL_NAMES = (*WAVEFORM, "parakeet", "whisper")
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL_NAMES]
FINAL_NORM = [name for name in WAVEFORM if ("layer" in name and "batch" not in name) or "conformer" in name]


def audio(num_samples, seed=0):
    """Return int16 noise that grows and falls, off zero as cheap microphones are."""
    rng = np.random.default_rng(seed)
    envelope = 10 ** (np.sin(np.linspace(0, 9, num_samples)) - 1)
    return torch.from_numpy((rng.standard_normal(num_samples) * envelope * 8000 + 300).astype(np.int16))


def rows(lengths, num_samples=None):
    """Return audio of these lengths as padded rows ``[W, N]`` and ``[W]``."""
    padded = torch.zeros(len(lengths), num_samples or max(lengths), dtype=torch.int16)
    for row, length in zip(padded, lengths, strict=True):
        row[:length] = audio(length, seed=length)
    return padded, torch.tensor(lengths)


def shaken(model):
    """Move weights away from where they start: too small for audio to matter, and norms that do nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point() or "inv_freq" in name:
                continue
            if tensor.ndim == 1:
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
            elif "bias" in name or "embed" in name:
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
            else:
                tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
    return model


def make(folder, name, **changes):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    if name == "whisper":
        config = transformers.WhisperConfig(
            vocab_size=16, num_mel_bins=80, d_model=32, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=64,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64, max_source_positions=100, pad_token_id=0,
            max_target_positions=8, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None,
            begin_suppress_tokens=None, **changes,
        )  # fmt: skip
        model = transformers.WhisperForConditionalGeneration(config)
    elif name.startswith("parakeet"):
        encoder = {**sizes, "num_mel_bins": 80, "subsampling_conv_channels": 8, **changes}
        kind = {"parakeet": "CTC", "parakeet-tdt": "TDT"}[name]
        config = getattr(transformers, f"Parakeet{kind}Config")(vocab_size=16, pad_token_id=15, encoder_config=encoder)
        model = getattr(transformers, f"ParakeetFor{kind}")(config)
        transformers.ParakeetFeatureExtractor(feature_size=80).save_pretrained(folder)
    else:
        family, settings = WAVEFORM[name]
        # 16 channels to a group (published models have 48 and more): below that oneDNN's bfloat16 convolution is wrong
        # on processors with AMX (torch 2.13).
        settings = {
            **sizes, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
            "vocab_size": 16, **settings, **changes,
        }  # fmt: skip
        if family == "Data2VecAudio":
            settings["num_conv_pos_embeddings"] = 3
        config = getattr(transformers, f"{family}Config")(**settings)
        model = getattr(transformers, f"{family}ForCTC")(config)
        layer = settings.get("feat_extract_norm") != "group"
        transformers.Wav2Vec2FeatureExtractor(do_normalize=layer, return_attention_mask=layer).save_pretrained(folder)
    shaken(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Return a maker of folders, each made once: ``folder_of("hubert-layer")``."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = make(tmp_path_factory.mktemp(name), name)
        return str(made[name])

    return of


@pytest.fixture
def encoder_of(folder_of):
    """Return a maker of loaded encoders in evaluation mode: ``encoder_of("hubert-layer", layers="all")``."""

    def of(name, **settings):
        made = class_of(name)(folder_of(name), **settings)
        made.load()
        return made.eval()

    return of


def class_of(name):
    return {"parakeet": ParakeetEncoder, "whisper": WhisperEncoder}.get(name.split("-")[0], WaveformEncoder)


@torch.no_grad()
def of_transformers(folder, name, samples, **options):
    """Return what transformers' own extractor and model make of one recording without padding."""
    import transformers

    floats = samples.numpy().astype(np.float32) / 32768.0
    if name == "whisper":
        extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=1)
        features = extractor(floats, sampling_rate=16_000, return_tensors="pt")
        model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).model.encoder.eval()
        positions = features["input_features"].shape[-1] // 2
        model.embed_positions = nn.Embedding.from_pretrained(model.embed_positions.weight[:positions])
        model.config.max_source_positions = model.max_source_positions = positions
    elif name == "parakeet":
        extractor = transformers.ParakeetFeatureExtractor.from_pretrained(folder)
        features = extractor(floats, sampling_rate=16_000, return_tensors="pt")
        model = transformers.ParakeetForCTC.from_pretrained(folder).encoder.eval()
    else:
        extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
        features = extractor(floats, sampling_rate=16_000, return_tensors="pt", return_attention_mask=False)
        model = transformers.AutoModel.from_pretrained(folder).eval()
    return model(**features, **options)


@torch.no_grad()
def run(encoder, lengths, num_samples=None, **arguments):
    samples, counts = rows(lengths, num_samples)
    return encoder(samples, counts, **arguments)


# -- parity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("length", [1440, 11_111, WINDOW])
def test_frames_of_a_padded_window_are_those_that_transformers_gives_it_alone(folder_of, encoder_of, name, length):
    encoder = encoder_of(name)
    num_frames = int(encoder.num_frames(torch.tensor(length)))
    expected = of_transformers(folder_of(name), name, audio(length, seed=length)).last_hidden_state[0]
    ours = run(encoder, [length], WINDOW)[0]
    assert ours.shape == (encoder.num_frames(torch.tensor(WINDOW)), encoder.width)
    torch.testing.assert_close(ours[:num_frames], expected[:num_frames], atol=1e-4, rtol=0)
    if name != "whisper":  # whose frames of silence are frames like others
        assert len(expected) - num_frames in (0, 1)  # Parakeet's extractor adds a column of padding


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("length", [320, 1599, 16_000, 163_333])
def test_features_are_those_of_parakeets_extractor(num_mel_bins, length):
    from transformers import ParakeetFeatureExtractor

    samples = audio(length)
    extractor = ParakeetFeatureExtractor(feature_size=num_mel_bins)
    expected = extractor(samples.numpy().astype(np.float32) / 32768.0, sampling_rate=16_000, return_tensors="pt")
    ours = log_mel(samples[None], torch.tensor([length]), num_mel_bins)[0]
    assert ours.shape == (num_mel_bins, length // 160)
    torch.testing.assert_close(ours, expected["input_features"][0, : length // 160].T, atol=5e-4, rtol=0)


def test_features_do_not_depend_on_how_many_spectra_are_there_at_once(monkeypatch):
    samples, counts = rows([16_000, 4000])
    whole = log_mel(samples, counts, 80)
    monkeypatch.setattr(sys.modules[ParakeetEncoder.__module__], "_MAX_SPECTRA", 14)
    torch.testing.assert_close(log_mel(samples, counts, 80), whole, atol=1e-5, rtol=0)


def test_silence_has_features_of_zero_and_the_shortest_window_finite_ones():
    silence = log_mel(torch.zeros(2, 16_000, dtype=torch.int16), torch.tensor([16_000, 1]), 80)
    assert not silence.any()
    assert not log_mel(audio(100)[None], torch.tensor([100]), 80).any()


@pytest.mark.parametrize(("num_mel_bins", "fft_samples"), [(80, 400), (128, 512)])
def test_mel_filters_are_those_of_transformers(num_mel_bins, fft_samples):
    from transformers.audio_utils import mel_filter_bank

    expected = mel_filter_bank(fft_samples // 2 + 1, num_mel_bins, 0.0, 8000.0, 16_000, "slaney", "slaney")
    torch.testing.assert_close(
        slaney_mel_filters(num_mel_bins, fft_samples), torch.from_numpy(expected).float(), atol=1e-7, rtol=0
    )


def test_the_front_end_is_float32_whatever_surrounds_it():
    samples, counts = rows([8000])
    expected = log_mel(samples, counts, 90)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            ours = log_mel(samples, counts, 91), log_mel(samples, counts, 90)  # 91: not in a cache yet
    finally:
        torch.set_default_dtype(torch.float32)
    assert ours[0].dtype == torch.float32
    assert torch.equal(ours[1], expected)
    assert torch.equal(ours[0], log_mel(samples, counts, 91))


# -- lengths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hubert-layer", "parakeet", "whisper"])
def test_counts_are_the_real_shapes(encoder_of, name):
    encoder = encoder_of(name)
    counts = encoder.num_frames(torch.tensor(LENGTHS))
    assert counts.dtype == torch.int64
    assert (counts >= 1).all()
    assert (counts.diff() >= 0).all()
    for length, count in zip(LENGTHS, counts, strict=True):
        frames = run(encoder, [length])
        assert frames.shape == (1, count, 32)
        assert frames.isfinite().all()


@pytest.mark.parametrize(
    ("name", "rate", "frames"), [("hubert-layer", 320, 1499), ("parakeet", 1280, 375), ("whisper", 320, 1500)]
)
def test_frames_of_30_seconds(encoder_of, name, rate, frames):
    encoder = encoder_of(name)
    assert encoder.samples_per_frame == rate
    assert int(encoder.num_frames(torch.tensor(480_000))) == frames
    if name != "whisper":  # this one has positions for 2 s
        assert run(encoder, [480_000]).shape[1] == frames


def test_what_an_encoder_says_of_itself(encoder_of):
    hubert, parakeet, whisper = (encoder_of(name) for name in ("hubert-layer", "parakeet", "whisper"))
    assert (hubert.feature_bins, hubert.max_window_seconds, hubert.needs_summary) == (None, None, False)
    assert (parakeet.feature_bins, parakeet.max_window_seconds, parakeet.samples_per_feature) == (80, None, 160)
    assert (whisper.feature_bins, whisper.max_window_seconds, whisper.margin_samples) == (80, 2.0, 0)


# -- independence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_rows_do_not_see_each_other_nor_padding_how_much_there_is(encoder_of, name):
    encoder = encoder_of(name)
    lengths = [WINDOW, 1, 700, 5000, 12_345]
    together = run(encoder, lengths, WINDOW)
    for row, length in zip(together, lengths, strict=True):
        count = int(encoder.num_frames(torch.tensor(length)))
        for num_samples in (WINDOW,) if name == "whisper" else (WINDOW, length, length + 1000, 20_000):
            alone = run(encoder, [length], num_samples)[0]
            torch.testing.assert_close(row[:count], alone[:count], atol=2e-5, rtol=0)


def test_drawn_weights_are_those_of_the_cpu_where_lightning_builds_on_another_device(folder_of):
    """Each kind of device draws other numbers from a seed; here one without any stands for a GPU."""
    used, trained = (class_of("whisper")(folder_of("whisper"), initialize="random") for _ in range(2))
    load_encoder(used)
    with torch.device("meta"):
        load_encoder(trained)
    after = trained.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in used.state_dict().items())


@pytest.mark.parametrize("name", ["hubert-group", "conformer-relative", "parakeet"])
def test_rows_do_not_see_each_other_while_the_encoder_trains(folder_of, name):
    encoder = class_of(name)(folder_of(name))
    encoder.load()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "activation_dropout", "hidden_dropout", "dropout"):
        if hasattr(encoder.config, name):
            setattr(encoder.config, name, 0.0)
    for module in encoder.train().modules():
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    before = copy.deepcopy(encoder.state_dict())
    together = run(encoder, [WINDOW, 5000], WINDOW)
    alone = run(encoder, [5000], WINDOW)[0]
    count = int(encoder.num_frames(torch.tensor(5000)))
    torch.testing.assert_close(together[1, :count], alone[:count], atol=2e-5, rtol=0)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_nothing_random_acts_in_a_frozen_encoder(encoder_of, name):
    encoder = encoder_of(name)
    assert torch.equal(run(encoder, [WINDOW]), run(encoder, [WINDOW]))
    assert getattr(encoder.config, "layerdrop", 0.0) == 0.0 or name == "whisper"
    assert not getattr(encoder.config, "apply_spec_augment", False)


@pytest.mark.parametrize("trains", [True, False])
def test_dropout_acts_in_an_encoder_that_trains(folder_of, tiny_llm, trains):
    encoder = class_of("parakeet")(folder_of("parakeet"))
    assert encoder.config.dropout > 0.0
    parts = ["projector", "encoder"] if trains else ["projector"]
    module = SpeechLMModule(
        encoder, AvgPool, CausalLM(str(tiny_llm)), window_seconds=2.0, tokens_per_window=4, train_parts=parts
    )
    module.configure_model()
    samples, counts = rows([WINDOW])
    assert torch.equal(encoder(samples, counts), encoder(samples, counts)) is not trains
    assert module.path.llm.training


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_weight_and_short_windows_train(folder_of, name):
    encoder = class_of(name)(folder_of(name))
    encoder.load()
    encoder.train()
    samples, counts = rows([WINDOW, 1, 3000])
    frames = encoder(samples, counts)
    (frames * torch.randn_like(frames)).sum().backward()
    missing = [key for key, weight in encoder.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not missing
    assert all(w.grad.isfinite().all() for w in encoder.parameters() if w.grad is not None)


# -- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_layers_are_the_hidden_states_of_transformers_and_the_last_is_the_output(folder_of, encoder_of, name):
    outputs = of_transformers(folder_of(name), name, audio(WINDOW, seed=WINDOW), output_hidden_states=True)
    every = run(encoder_of(name, layers="all"), [WINDOW])
    count = every.shape[2]
    assert every.shape == (1, 3, count, 32)
    for number in (1, 2):
        hidden = outputs.hidden_states[number][0, :count]
        torch.testing.assert_close(every[0, number - 1], hidden, atol=1e-4, rtol=0)
    assert torch.equal(every[:, -1], run(encoder_of(name), [WINDOW]))
    assert torch.equal(run(encoder_of(name, layers=[2]), [WINDOW]), every[:, 1:2])
    if name in WAVEFORM:  # what the last layer gives before a final norm is not what is returned
        raw = outputs.hidden_states[3][0, :count]
        assert torch.allclose(raw, every[0, -1], atol=1e-4) == (name not in FINAL_NORM)


@pytest.mark.parametrize("layers", [[0], [4], [2, 1], [1, 1], [-1], ["1"]])
def test_layers_that_are_not_there_are_refused(folder_of, layers):
    with pytest.raises(ConfigError, match=r"model\.encoder\.layers"):
        WaveformEncoder(folder_of("hubert-layer"), layers=layers)


# -- dtype ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_bfloat16(encoder_of, name):
    exact = run(encoder_of(name), [WINDOW, 1, 5000])
    encoder = encoder_of(name, dtype="bfloat16")
    rounded = run(encoder, [WINDOW, 1, 5000])
    assert rounded.dtype == encoder.dtype == torch.bfloat16
    assert rounded.isfinite().all()
    assert (rounded[0].float() - exact[0]).norm() < 0.05 * exact[0].norm()


def test_the_dtype_follows_the_device(folder_of):
    encoder = ParakeetEncoder(folder_of("parakeet"))
    encoder.settle(torch.device("cpu"))
    assert encoder.dtype == torch.float32
    planned = ParakeetEncoder(folder_of("parakeet"))
    planned.settle(torch.device("cuda"))
    assert torch.cuda.is_available() or planned.dtype == torch.bfloat16
    fixed = ParakeetEncoder(folder_of("parakeet"), dtype="float16")
    fixed.settle(torch.device("cpu"))
    assert fixed.dtype == torch.float16


@pytest.mark.parametrize("name", ["hubert-group", "wavlm-layer", "parakeet", "whisper"])
def test_autocast_does_not_reach_the_front_end(encoder_of, name):
    exact = run(encoder_of(name), [WINDOW])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(encoder_of(name), [WINDOW])
    assert (mixed.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("name", ["hubert-group", "wavlm-layer", "parakeet", "whisper"])
def test_frozen_weights_in_the_dtype_of_mixed_precision_compute_outside_of_it(encoder_of, name):
    for dtype, trains, outside in (("bfloat16", False, True), ("bfloat16", True, False), ("float32", False, False)):
        encoder, seen = encoder_of(name, dtype=dtype).requires_grad_(trains), []
        norm = next(module for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm))
        norm.register_forward_pre_hook(lambda *_, seen=seen: seen.append(torch.is_autocast_enabled("cpu")))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            frames = run(encoder, [WINDOW])
        assert seen
        assert set(seen) == {not outside}
        if outside:
            exact = run(encoder_of(name), [WINDOW])
            assert (frames.float() - exact).norm() < 0.05 * exact.norm()


# -- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_weights_of_heads_and_decoders_are_left_out_silently(folder_of, name, caplog, capfd):
    encoder = class_of(name)(folder_of(name))
    encoder.load()
    before = encoder.inner
    encoder.load()
    assert encoder.inner is before
    assert not [key for key in encoder.state_dict() if "head" in key or "decoder" in key]
    printed = capfd.readouterr()
    assert "UNEXPECTED" not in caplog.text + printed.out + printed.err


@pytest.mark.parametrize("name", ["parakeet", "whisper", "hubert-layer"])
def test_checkpoints_name_the_weights_below_one_attribute(encoder_of, name):
    inner = "whisper." if name == "whisper" else "model."
    assert all(key.startswith(inner) for key in encoder_of(name).state_dict())


@pytest.mark.parametrize("name", ALL)
def test_a_saved_encoder_alone_loads_the_same(encoder_of, name, tmp_path):
    encoder = encoder_of(name)
    encoder.inner.save_pretrained(tmp_path)
    settings = {"normalize": encoder.normalize} if hasattr(encoder, "normalize") else {}
    again = class_of(name)(str(tmp_path), **settings)
    again.load()
    assert torch.equal(run(again.eval(), [WINDOW]), run(encoder, [WINDOW]))


def test_old_names_of_the_positions_weights_are_known(folder_of, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder_of("wav2vec2-layer"), tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in state.items()
    }
    assert old.keys() != state.keys()
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, expected = WaveformEncoder(str(tmp_path)), WaveformEncoder(folder_of("wav2vec2-layer"))
    loaded.load()
    expected.load()
    assert torch.equal(run(loaded.eval(), [3000]), run(expected.eval(), [3000]))


def test_a_tdt_folder_has_an_encoder_too(tmp_path):
    encoder = ParakeetEncoder(str(make(tmp_path, "parakeet-tdt")))
    encoder.load()
    assert run(encoder.eval(), [3000]).isfinite().all()


@pytest.mark.parametrize("name", ["hubert-layer", "parakeet", "whisper"])
def test_missing_weights_are_refused(folder_of, name, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder_of(name), tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    gone = next(key for key in state if "layers.1." in key and "decoder" not in key)
    save_file({k: v for k, v in state.items() if k != gone}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 weights, such as"):
        class_of(name)(str(tmp_path)).load()


@pytest.mark.parametrize("name", ALL)
def test_random_weights_of_another_size(folder_of, name):
    layers = "encoder_layers" if name == "whisper" else "num_hidden_layers"
    encoder = class_of(name)(folder_of(name), initialize="random", overrides={layers: 1}, dtype="bfloat16")
    encoder.load()
    encoder.eval()
    frames = run(encoder, [5000])
    assert frames.dtype == torch.bfloat16
    assert frames.isfinite().all()
    assert not any("layers.1." in key for key in encoder.state_dict() if "conv" not in key and "subsampling" not in key)


@pytest.mark.parametrize("name", ALL)
def test_an_architecture_without_weights_takes_the_state_dict(folder_of, encoder_of, name):
    loaded = encoder_of(name, layers=[1, 3])
    made = type(loaded).of_config(copy.deepcopy(loaded.config), **json.loads(json.dumps(loaded.export_arguments())))
    assert made.state_dict().keys() == loaded.state_dict().keys()
    made.load_state_dict(loaded.state_dict(), strict=True)
    made.load()  # nothing to bring
    assert torch.equal(run(made.eval(), [WINDOW, 300]), run(loaded, [WINDOW, 300]))


@pytest.mark.parametrize("name", ["parakeet", "whisper", "hubert-group"])
def test_of_config_takes_the_configuration_of_a_whole_model(folder_of, encoder_of, name):
    from transformers import AutoConfig

    made = class_of(name).of_config(AutoConfig.from_pretrained(folder_of(name)))
    assert made.state_dict().keys() == encoder_of(name).state_dict().keys()


@pytest.mark.parametrize("name", ALL)
def test_it_survives_inside_a_model_that_is_saved_and_loaded(encoder_of, name, tmp_path):
    from transformers import PreTrainedConfig, PreTrainedModel

    loaded = encoder_of(name)
    source, arguments = loaded.export_config(), loaded.export_arguments()

    class OuterConfig(PreTrainedConfig):
        model_type = "outer"

    class Outer(PreTrainedModel):
        config_class = OuterConfig

        def __init__(self, config):
            super().__init__(config)
            self.encoder = type(loaded).of_config(source, **arguments)
            self.post_init()

        def _init_weights(self, module):
            pass

    outer = Outer(OuterConfig())
    outer.encoder.load_state_dict(loaded.state_dict())
    outer.save_pretrained(tmp_path)
    again = Outer.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(run(again.encoder, [WINDOW, 300]), run(loaded, [WINDOW, 300]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_it_runs_without_memory(folder_of, name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    encoder = class_of(name)(folder_of(name), initialize="random")
    with torch.device("meta"):
        encoder.load()
    assert all(weight.is_meta for weight in encoder.parameters())
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for module in encoder.modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in list(tensors.items()):
                if tensor is not None:
                    with mode:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    tensors[key] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
    with mode:
        samples = torch.zeros(2, WINDOW, dtype=torch.int16)
        frames = encoder(samples, torch.full((2,), WINDOW))
        frames.sum().backward()
    assert frames.shape == (2, int(encoder.num_frames(torch.tensor(WINDOW))), 32)


def test_constants_made_while_planning_are_real():
    from torch._subclasses.fake_tensor import FakeTensorMode

    samples = torch.zeros(1, 1600, dtype=torch.int16)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta"):
        log_mel(torch.zeros(1, 1600, dtype=torch.int16, device="cpu"), torch.tensor([1600], device="cpu"), 77)
        LogMel(77)(torch.zeros(1, 1600, dtype=torch.int16, device="cpu"))
    assert type(log_mel(samples, torch.tensor([1600]), 77)) is torch.Tensor
    assert type(LogMel(77)(samples)) is torch.Tensor


# -- options and messages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        (WaveformEncoder, "whisper", "is a 'whisper' model, not a wav2vec 2.0, HuBERT"),
        (ParakeetEncoder, "hubert-layer", "is a 'hubert' model, not a Parakeet one"),
        (WhisperEncoder, "parakeet", "is a 'parakeet_ctc' model, not a Whisper one"),
    ],
)
def test_another_architecture_is_refused(folder_of, kind, name, text):
    with pytest.raises(ConfigError, match=text):
        kind(folder_of(name))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        WaveformEncoder(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="is empty"):
        WaveformEncoder(str(tmp_path))


def test_overrides_are_checked(folder_of):
    folder = folder_of("parakeet")
    with pytest.raises(ConfigError, match="only with initialize: random"):
        ParakeetEncoder(folder, overrides={"num_hidden_layers": 1})
    with pytest.raises(ConfigError, match=r"unknown 'num_hiden_layers'.* Did you mean 'num_hidden_layers'"):
        ParakeetEncoder(folder, initialize="random", overrides={"num_hiden_layers": 1})
    with pytest.raises(ConfigError, match="num_hidden_layers cannot be 'two'"):
        ParakeetEncoder(folder, initialize="random", overrides={"num_hidden_layers": "two"})


def test_a_model_with_an_adapter_that_shortens_frames_is_refused(tmp_path):
    make(tmp_path, "wav2vec2-group", add_adapter=True)
    with pytest.raises(ConfigError, match="add_adapter"):
        WaveformEncoder(str(tmp_path))


def test_another_front_end_of_parakeet_is_refused(folder_of, tmp_path):
    shutil.copytree(folder_of("parakeet"), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preemphasis": 0.9}))
    with pytest.raises(ConfigError, match=r"preemphasis 0\.9"):
        ParakeetEncoder(str(tmp_path))


@pytest.mark.parametrize(("name", "published"), [("hubert-layer", True), ("hubert-group", False)])
def test_normalising_is_what_the_folder_says_or_what_its_kind_does(folder_of, tmp_path, name, published):
    shutil.copytree(folder_of(name), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": not published}))
    assert WaveformEncoder(str(tmp_path)).normalize is not published
    assert WaveformEncoder(str(tmp_path), normalize=published).normalize is published
    path.unlink()
    assert WaveformEncoder(str(tmp_path)).normalize is published


@pytest.mark.parametrize("name", ["parakeet", "whisper"])
def test_masks_hide_features(encoder_of, name):
    class Masks:
        def hide(self, features):
            self.seen = features
            return torch.zeros_like(features)

    encoder, masks = encoder_of(name), Masks()
    samples, counts = rows([WINDOW])
    with torch.no_grad():
        hidden = encoder(samples, counts, masks=masks)
    assert masks.seen.shape == (1, encoder.feature_bins, WINDOW // encoder.samples_per_feature)
    assert (hidden - run(encoder, [WINDOW])).abs().max() > 1.0


# -- Whisper's range over the recording ----------------------------------------------------------------------------


def of_release(samples, window_samples):
    """Return the windows of the release's recipe: one spectrogram of the whole recording, then cut, then zeros."""
    floats = samples.float() / 32768.0
    spectrum = torch.stft(floats, 400, 160, window=torch.hann_window(400), return_complex=True)
    log_power = (slaney_mel_filters(80).T @ spectrum[..., :-1].abs().square()).clamp_min(1e-10).log10()
    mel = (torch.maximum(log_power, log_power.max() - 8.0) + 4.0) / 4.0
    frames = window_samples // HOP_SAMPLES
    mel = torch.nn.functional.pad(mel, (0, -mel.shape[-1] % frames))
    return mel.unflatten(-1, (-1, frames)).movedim(1, 0)


@pytest.mark.parametrize("num_samples", [16_000, 32_000, 33_000, 40_123])
def test_windows_are_cut_from_one_spectrogram_of_the_recording(encoder_of, num_samples):
    encoder = encoder_of("whisper", mel_range="recording")
    assert (encoder.margin_samples, encoder.min_rest_samples, encoder.needs_summary) == (200, 160, True)
    samples = audio(num_samples)
    expected = of_release(samples, WINDOW)
    mirrored = torch.cat([samples[1:201].flip(0), samples, samples[-201:-1].flip(0)])
    mirrored = torch.nn.functional.pad(mirrored, (0, WINDOW))
    starts = range(0, num_samples // 160 * 160, WINDOW)
    taken = torch.stack([mirrored[start : start + WINDOW + 400] for start in starts])
    counts = torch.tensor([min(WINDOW, num_samples - start) for start in starts])
    surveys = encoder.survey(taken, counts)
    assert surveys.shape == (len(starts), 1)
    summary = encoder.combine(surveys)
    assert summary.shape == (1,)
    with torch.no_grad():
        ours = encoder(taken, counts, summary.expand(len(starts), 1))
        frames = encoder._encode(expected)
    torch.testing.assert_close(ours, frames, atol=1e-4, rtol=0)


def test_a_window_without_a_column_counts_as_silence(encoder_of):
    encoder = encoder_of("whisper", mel_range="recording")
    survey = encoder.survey(audio(WINDOW + 400)[None], torch.tensor([159]))
    assert survey.tolist() == [[-10.0]]


def test_a_window_is_the_same_as_with_the_front_end_before(encoder_of):
    encoder = encoder_of("whisper")
    samples, counts = rows([5000], WINDOW)
    mel = encoder.mel(pad_with_context(audio(5000, seed=5000), WINDOW)[None])
    with torch.no_grad():
        assert torch.equal(encoder(samples, counts), encoder._encode(mel))
    assert CONTEXT_SAMPLES == 200
