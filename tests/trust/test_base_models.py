"""A folder or name that is no base model of its kind: one sentence that says what it is, and what to do."""

import json
import shutil

import pytest

from fastslm.errors import ConfigError
from fastslm.modules.encoders.whisper import WhisperEncoder
from fastslm.modules.llms.causal_lm import CausalLM

KEYS = {CausalLM: "model.llm.pretrained", WhisperEncoder: "model.encoder.pretrained"}
PARTS = pytest.mark.parametrize("part", KEYS)


@pytest.fixture
def folder(tmp_path):
    """Return a maker of a folder of files by name, JSON where the contents are no bytes."""

    def make(files):
        made = tmp_path / "model"
        made.mkdir()
        for name, contents in files.items():
            made.joinpath(name).parent.mkdir(exist_ok=True)
            made.joinpath(name).write_bytes(contents if isinstance(contents, bytes) else json.dumps(contents).encode())
        return made

    return make


CT2 = {
    "model.bin": b"\6\0\0\0\x10\0WhisperSpec\0", "vocabulary.json": ["a"], "tokenizer.json": {},
    "config.json": {"alignment_heads": [[1, 0]], "lang_ids": [50259], "suppress_ids": []},
}  # fmt: skip


@PARTS
@pytest.mark.parametrize(
    ("files", "words"),
    [
        (CT2, r"CTranslate2.*transformers"),
        ({name: CT2[name] for name in ("model.bin", "vocabulary.json")}, "CTranslate2"),
        ({"model.bin": b"", "vocabulary.txt": b"a", "config.json": {}}, "CTranslate2"),
        ({"weights.npz": b"PK", "config.json": {"n_mels": 80}}, "MLX.*transformers"),
        (
            {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n", "config.json": {}},
            "model.safetensors as a pointer of Git LFS.*git lfs pull",
        ),
        (
            {"pytorch_model.bin": b"version https://git-lfs.github.com/spec/v1\n", "config.json": {}},
            "pytorch_model.bin as a pointer of Git LFS.*git lfs pull",
        ),
        ({"model-Q4_K_M.gguf": b"GGUF\3\0\0\0"}, r"llama\.cpp \(GGUF\).*it was made from"),
        ({"model.gguf": b"GGUF\3\0\0\0", "config.json": {"model_type": "llama"}}, "GGUF"),
        (
            {"adapter_config.json": {"base_model_name_or_path": "a/b"}, "adapter_model.safetensors": b""},
            "adapter.*merge",
        ),
        (
            {"adapter_config.json": {}, "config.json": {"model_type": "qwen3"}},
            "adapter of PEFT beside the model.*merge",
        ),
        ({"config.json": {"model_type": "qwen3", "_attn_implementation": "a/b"}}, "code of the hub.*never run"),
        ({"config.json": {"model_type": "qwen3", "dtype": "float99"}}, "float99"),
        (
            {"config.json": {"model_type": "llama", "num_hidden_layers": 10**8}},
            "100,000,000 num_hidden_layers.*damaged",
        ),
        ({"config.json": {"model_type": "whisper", "encoder_layers": 10**8}}, "100,000,000 encoder_layers.*damaged"),
        ({"config.yaml": b"a: 1", "checkpoints/last.ckpt": b""}, r"run of fastslm.*--init_from"),
        ({"config.json": {"model_type": "fastslm"}, "model.safetensors": b""}, r"exported.*fastslm transcribe"),
        ({"config.json": {"model_type": "fastslm_speech"}, "model.safetensors": b""}, r"exported.*fastslm transcribe"),
        ({"model.onnx": b"a"}, "ONNX"),
        ({"whisper.nemo": b"a"}, "NeMo"),
        ({"consolidated.00.pth": b"a", "params.json": {}}, r"no config\.json"),
        ({"model.safetensors": b"a"}, r"no config\.json"),
        ({}, "is empty"),
        ({"config.json": b"{"}, r"config\.json"),
        ({"config.json": [1]}, r"config\.json"),
        ({"config.json": {"hidden_size": 5}}, r"config\.json.*model_type"),
        ({"config.json": {"model_type": "strange"}}, "strange"),
    ],
)
def test_a_folder_of_another_kind_is_named(part, files, words, folder):
    made = folder(files)
    with pytest.raises(ConfigError, match=f"{KEYS[part]}: .*{words}") as refused:
        part(str(made))
    assert str(made) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 600


@PARTS
@pytest.mark.parametrize(
    ("head", "words"),
    [(b"GGUF\3\0\0\0", r"llama\.cpp \(GGUF\)"), (b"PK\3\4", "is a file.*folder"), (b"", "is a file.*folder")],
)
def test_a_file_is_no_folder(part, head, words, tmp_path):
    (tmp_path / "model.gguf").write_bytes(head)
    with pytest.raises(ConfigError, match=f"{KEYS[part]}: .*{words}"):
        part(str(tmp_path / "model.gguf"))


@PARTS
def test_pointers_of_formats_that_are_not_read_may_remain(part, tiny_llm, tiny_encoder, tmp_path):
    made = shutil.copytree(tiny_llm if part is CausalLM else tiny_encoder, tmp_path / "model")
    for name in ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "consolidated.safetensors"):
        (made / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    part(str(made)).load()


def test_an_encoder_is_no_llm_and_an_llm_no_encoder(tiny_encoder, tiny_waveform, tiny_llm):
    for encoder in (tiny_encoder, tiny_waveform):
        with pytest.raises(ConfigError, match=r"model\.llm\.pretrained: .* is no LLM.*model\.encoder\.pretrained"):
            CausalLM(str(encoder))
    with pytest.raises(ConfigError, match=r"model\.encoder\.pretrained: .*'qwen3'.*LLM.*model\.llm\.pretrained"):
        WhisperEncoder(str(tiny_llm))


@PARTS
def test_weights_that_are_cut_off_are_named(part, tiny_encoder, tiny_llm, tmp_path):
    made = shutil.copytree(tiny_encoder if part is WhisperEncoder else tiny_llm, tmp_path / "model")
    weights = made / "model.safetensors"
    for contents in (weights.read_bytes()[:-100], b"no header at all"):
        weights.write_bytes(contents)
        with pytest.raises(ConfigError, match=f"{KEYS[part]}: cannot load '{made}': .*damaged or cut off.*again"):
            part(str(made)).load()


@PARTS
@pytest.mark.parametrize("method", ["awq", "compressed-tensors"])
def test_quantized_weights_that_cannot_be_loaded_are_one_sentence(part, method, tiny_llm, tiny_encoder, tmp_path):
    made = shutil.copytree(tiny_llm if part is CausalLM else tiny_encoder, tmp_path / "model")
    config = json.loads((made / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"{KEYS[part]}: cannot load .*quantized: give the model that"):
        part(str(made)).load()


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",), ("chat_template.jinja",)])
def test_an_llm_without_its_tokenizer_is_named(tiny_llm, tmp_path, kept):
    made = shutil.copytree(tiny_llm, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if name not in kept:
            (made / name).unlink()
    with pytest.raises(ConfigError, match=r"model\.llm\.pretrained: no tokenizer at .*tokenizer\.json.* is missing"):
        CausalLM(str(made))


@PARTS
@pytest.mark.parametrize("name", ["owner/no-such-model", "no-such-model"])
def test_a_name_of_the_hub_without_a_network_says_how_to_get_it(part, name):
    with pytest.raises(ConfigError, match=f"{KEYS[part]}: .*'{name}'.*hf download {name}"):
        part(name)


@PARTS
def test_a_model_of_the_hub_with_an_adapter_beside_it_is_refused(part, tiny_llm, tiny_encoder, tmp_path, hub):
    """Transformers would load the base model that the adapter names, with the adapter in it."""
    made = shutil.copytree(tiny_llm if part is CausalLM else tiny_encoder, tmp_path / "model")
    hub("owner/plain", made)
    part("owner/plain")
    (made / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/other"}')
    hub("owner/adapted", made)
    with pytest.raises(ConfigError, match=f"{KEYS[part]}: owner/adapted holds an adapter of PEFT.*Merge it"):
        part("owner/adapted")


@PARTS
def test_overrides_name_no_code_of_the_hub(part, tiny_llm, tiny_encoder):
    folder, overrides = tiny_llm if part is CausalLM else tiny_encoder, {"_attn_implementation": "owner/kernel"}
    with pytest.raises(ConfigError, match="overrides: unknown '_attn_implementation'"):
        part(str(folder), initialize="random", overrides=overrides)
