"""A folder or name that is no base model of its kind: one sentence that says what it is, and what to do."""

import json
import shutil
from pathlib import Path

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
        ({"model-Q4_K_M.gguf": b"GGUF\3\0\0\0"}, r"llama\.cpp \(GGUF\).*it was made from"),
        ({"model.gguf": b"GGUF\3\0\0\0", "config.json": {"model_type": "llama"}}, "GGUF"),
        (
            {"adapter_config.json": {"base_model_name_or_path": "a/b"}, "adapter_model.safetensors": b""},
            "adapter.*merge",
        ),
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


def test_an_encoder_is_no_llm_and_an_llm_no_encoder(tiny_encoder, tiny_waveform, tiny_llm):
    for encoder in (tiny_encoder, tiny_waveform):
        with pytest.raises(ConfigError, match=r"model\.llm\.pretrained: .* is no LLM.*model\.encoder\.pretrained"):
            CausalLM(str(encoder))
    with pytest.raises(ConfigError, match=r"model\.encoder\.pretrained: .*'qwen3'.*LLM.*model\.llm\.pretrained"):
        WhisperEncoder(str(tiny_llm))


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


@pytest.fixture
def with_values(tiny_llm, tiny_encoder, tmp_path):
    """Return a maker of a tiny base model of a part, in whose config.json these values stand as well."""

    def make(part, **values):
        made = shutil.copytree(tiny_llm if part is CausalLM else tiny_encoder, tmp_path / "model")
        config = json.loads((made / "config.json").read_text()) | values
        (made / "config.json").write_text(json.dumps(config))
        return str(made)

    return make


@PARTS
@pytest.mark.parametrize("initialize", ["pretrained", "random"])
def test_no_kernel_of_the_hub_is_fetched_because_a_configuration_names_one(part, initialize, with_values):
    named = {"_attn_implementation": "owner/kernel", "_experts_implementation": "owner/kernel"}
    overrides = {"_attn_implementation": "owner/kernel"} if initialize == "random" else None
    made = part(with_values(part, **named), initialize=initialize, overrides=overrides)
    made.load()
    model = made.inner if part is WhisperEncoder else made.causal_lm
    assert model.config._attn_implementation == "sdpa"


@PARTS
def test_weights_that_are_quantized_are_named(part, with_values):
    made = part(with_values(part, quantization_config={"quant_method": "awq", "bits": 4}))
    with pytest.raises(ConfigError, match=f"{KEYS[part]}: cannot load .* quantized.*Give the model that it was made"):
        made.load()


@PARTS
@pytest.mark.parametrize(
    ("name", "value"), [("dtype", "float99"), ("quantization_config", [1]), ("vocab_size", "x"), ("hidden_act", "x")]
)
def test_a_damaged_value_of_a_configuration_is_one_sentence(part, name, value, with_values):
    name = {"hidden_act": "activation_function"}.get(name, name) if part is WhisperEncoder else name
    with pytest.raises(ConfigError, match=f"{KEYS[part]}: .*model.*'?{value if isinstance(value, str) else 'list'}"):
        part(with_values(part, **{name: value})).load()


@PARTS
def test_a_base_model_with_an_adapter_beside_it_is_refused(part, with_values):
    folder = with_values(part)
    Path(folder, "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"{KEYS[part]}: .* holds an adapter of PEFT.*Merge it"):
        part(folder)
