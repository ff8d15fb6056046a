"""Chat templates of others are tried with limits before anything is asked with them."""

import pytest
from tokenizer_kinds import TEMPLATES

from fastslm.inference import template_trial
from fastslm.inference.template_trial import try_template

QUESTION = {"role": "user", "content": "Who?"}
ASKED = [[QUESTION], [QUESTION, {"role": "assistant", "content": "He"}]]
SHOWN = "{% for m in messages %}{{ m.content }}{% endfor %}"
BOMBS = {
    "product": "{{ 'a' * 10000000000 }}",
    "width": "{{ '%0999999999d' % 1 }}",
    "long": "{{ 'a' * 2000000 }}",
    "loops": "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "power": "{{ 9 ** (9 ** 9) }}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_that_takes_too_much_is_refused(bomb, monkeypatch):
    monkeypatch.setattr(template_trial, "_SECONDS", 1)
    with pytest.raises(ValueError, match="the chat template takes more than 1 s or 1024 MiB for a short prompt"):
        try_template(SHOWN + BOMBS[bomb], ASKED)


@pytest.mark.parametrize(
    "template",
    [
        SHOWN,
        *(text if isinstance(text, str) else text["default"] for text, _ in TEMPLATES.values() if text),
        "{% generation %}{% for m in messages %}{{ m | tojson(indent=2) }}{% break %}{% endfor %}{% endgeneration %}",
    ],
)
def test_templates_of_models_render(template):
    assert template_trial._status(template, ASKED, {"bos_token": "<s>", "eos_token": "</s>"}) == 0


def test_a_template_that_fails_is_left_to_whoever_asks_with_it():
    try_template("{{ raise_exception('no') }}", ASKED)
