"""What people do with the models and processors of transformers works with exported ones, or is refused in words."""

import pytest
from transformers import AutoProcessor

from fastslm.export.folder import export_model

QUESTION = {"type": "text", "text": "Who speaks?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("exported") / "out"
    export_model(run, folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("content", [[{"type": "audio", "path": "a.wav"}, QUESTION], [QUESTION]], ids=["audio", "text"])
@pytest.mark.parametrize("several", [False, True])
def test_turns_of_parts_are_refused_with_the_call_that_asks_about_a_recording(processor, content, several):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    for tokenize in (False, True):
        with pytest.raises(ValueError, match=r'one has parts\. Ask .* by processor\(audio, .*task="sqqa", text='):
            processor.apply_chat_template([turns] if several else turns, tokenize=tokenize, return_dict=True)


def test_turns_of_text_become_what_the_tokenizer_makes_of_them(processor):
    turns = [{"role": "user", "content": "Who speaks?"}]
    for given in (turns, [turns, turns]):
        expected = processor.tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
        assert processor.apply_chat_template(given, add_generation_prompt=True) == expected
