"""The model card of an exported folder: what it is, what it was trained on, what was measured, whose licences hold."""

import json
from pathlib import Path
from typing import Any

import yaml

from fastslm.audio.rate import SAMPLE_RATE_HZ
from fastslm.checkpoint.run import Run, speech_settings
from fastslm.path.prompt import RELEASED_TASKS
from fastslm.redaction import redacted
from fastslm.tasks import tasks
from fastslm.training.history import read_history

_UNKNOWN = "not stated there"


def model_card(run: Run, name: str, *, merged: bool, llm_only: bool = False) -> str:
    """Return README.md with its front matter; what is not known is said to be unknown.

    Args:
        run: what was trained.
        name: of the folder.
        merged: the adapters are in the LLM's weights.
        llm_only: the folder holds the LLM alone.
    """
    from huggingface_hub import ModelCardData

    model = run.config["model"]
    bases = {part: str(_arguments(model[part]).get("pretrained")) for part in ("encoder", "llm")}
    licences = {part: base_licence(base) for part, base in bases.items()}
    common = licences["llm"] if len(set(licences.values())) == 1 else None
    data = ModelCardData(
        license=common or "other",
        license_name=None if common else "see-the-base-models",
        library_name="transformers",
        pipeline_tag="text-generation" if llm_only else "automatic-speech-recognition",
        base_model=[base for base in bases.values() if _on_hub(base)] or None,
        tags=["fastslm", "speech-language-model", *([] if llm_only else ["long-form-audio", "custom_code"])],
        ignore_metadata_errors=True,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        _summary(run, merged=merged, llm_only=llm_only),
        "## Use\n\n" + (_LLM_USE if llm_only else _USE.replace("NAME", name) + _further_tasks()),
        "## Training data\n\n" + _data(run),
        "## Metrics\n\n" + _metrics(run),
        "## Licences\n\n" + _licences(bases, licences, llm_only),
        "## Configuration\n\nAs resolved for training:\n\n```yaml\n"
        + yaml.safe_dump({"model": model}, sort_keys=False)
        + "```",
    ]
    return redacted("\n\n".join(sections) + "\n")


_USE = """\
Audio of any length, 16 kHz mono; needs `transformers` and `torch`, and no fastslm:

```python
import soundfile
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("NAME", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("NAME", trust_remote_code=True)
audio, rate = soundfile.read("talk.wav", dtype="float32")
inputs = processor(audio, sampling_rate=rate).to(model.device)
print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0])
```

`processor(..., task="ast", language="Korean")` translates, `task="ssum"` summarises, `task="sqqa", text="..."`
answers a question, as far as the model was trained to. Without `max_new_tokens` the limit follows the length of the
audio. `transformers.pipeline("automatic-speech-recognition", model="NAME", trust_remote_code=True)` takes whole
recordings too; leave out `chunk_length_s`."""


def _further_tasks() -> str:
    names = [name for name in tasks() if name not in RELEASED_TASKS]
    return f" Further tasks: {', '.join(names)}." if names else ""


_LLM_USE = """\
The language model alone, a stock folder of its architecture. It reads speech as prompt embeddings that the whole model
makes; see "Serving" in fastslm's documentation."""


def _summary(run: Run, *, merged: bool, llm_only: bool) -> str:
    model, path = run.settings, run.path
    seconds = path.listener.window_samples / SAMPLE_RATE_HZ
    tokens = path.abstractor.budget.tokens_per_window
    train_parts = model.get("train_parts", ())
    lora = getattr(path.llm, "lora", None)  # what it was built with: a configuration may name more
    lines = [
        "A speech language model trained with [fastslm](https://arxiv.org/abs/2601.06199): a frozen speech encoder, a"
        " compressor, an LLM."
        if not llm_only
        else "The LLM of a speech language model trained with fastslm, adapters merged.",
        "",
        f"- speech encoder: `{_arguments(model['encoder']).get('pretrained')}`"
        + (" (trained along)" if path.holds_encoder else " (frozen)"),
        f"- compressor: {type(path.abstractor).__name__}, {tokens} tokens for {seconds:g} s of audio"
        f" ({tokens / seconds:.2f} tokens/s)",
        f"- LLM: `{_arguments(model['llm']).get('pretrained')}`"
        + (f", LoRA rank {lora.rank}, {'merged' if merged else 'not merged (needs peft)'}" if lora is not None else ""),
        f"- trained parts: {', '.join(train_parts)}; optimizer steps: {run.step or 'not known (imported)'}",
    ]
    return "\n".join(lines)


def _arguments(part: Any) -> dict[str, Any]:
    return (part or {}).get("init_args") or {}


def _data(run: Run) -> str:
    data = run.config.get("data")
    if not data:
        return "Not recorded in the checkpoint that this model comes from."
    arguments = {k: v for k, v in _arguments(data).items() if v is not None}
    kind = str(data.get("class_path", "")).rpartition(".")[2]
    return f"`{kind}` with these settings:\n\n```yaml\n{yaml.safe_dump(arguments, sort_keys=False)}```"


def measured(run: Run) -> dict[str, tuple[float, int]]:
    """Return a run's last validation and test values up to its checkpoint, with their steps.

    They are those of its metrics.csv, or without one those in the checkpoint.
    """
    kinds = ("val/", "test/")
    found = {name: (value, run.step) for name, value in run.metrics.items() if name.startswith(kinds)}
    for name, points in read_history(run.folder).items():
        before = [(step, value) for step, value in points if step <= run.step]
        if before and name.startswith(kinds):
            step, value = before[-1]
            found[name] = (value, step)
    return found


def _metrics(run: Run) -> str:
    metrics = measured(run)
    if not metrics:
        return "None were recorded beside the checkpoint."
    rows = ["| metric | value | step |", "|---|--:|--:|"]
    for name, (value, step) in sorted(metrics.items()):
        shown = f"{value:.2%}" if name.endswith(("/wer", "/cer")) else f"{value:.4f}"
        rows.append(f"| {name} | {shown} | {step} |")
    first, own = speech_settings(run.settings).rates[0], run.path.abstractor.budget.tokens_per_window
    rate = "" if own == first else f" They were measured at {first} tokens for a window, and this folder has {own}."
    return "\n".join(rows) + f"\n\nError rates are corpus rates over whole recordings of the data above, greedy.{rate}"


def _licences(bases: dict[str, str], licences: dict[str, str | None], llm_only: bool) -> str:
    names = {"encoder": "speech encoder", "llm": "LLM"}
    rows = [
        f"- {names[part]} `{base}`: {licences[part] or f'{_UNKNOWN}; ask its publisher'}"
        for part, base in bases.items()
        if not (llm_only and part == "encoder")
    ]
    rows.append("- the Python files in this folder: Apache-2.0 (fastslm)" if not llm_only else "")
    rows.append("The weights here derive from these models, so their licences hold, and those of the training data.")
    return "\n".join(row for row in rows if row)


def _on_hub(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "~", "fastslm:")) and not Path(base).exists()


def base_licence(base: str) -> str | None:
    """Return the licence that a base model's own card states, or None: nothing is guessed.

    Args:
        base: hub name, folder, or ``fastslm:...`` for a folder of this package.
    """
    from huggingface_hub import ModelCard, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    if base.startswith("fastslm:"):
        return "apache-2.0"
    card = Path(base) / "README.md"
    if _on_hub(base):
        try:
            card = Path(hf_hub_download(base, "README.md"))
        except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError):
            return None  # offline, or no card
    if not card.is_file():
        return None
    try:
        stated = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")
    except (ValueError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return json.dumps(stated) if isinstance(stated, list) else stated
