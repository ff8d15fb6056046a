"""The checkpoint of a run on tiny models, written without training."""

import torch


def settings_of(encoder, llm, *, mel_range="window", **changes):
    """Return the ``model`` part of a resolved configuration: windows of 2 s, 4 tokens each."""
    settings = {
        "encoder": {
            "class_path": "fastslm.modules.encoders.whisper.WhisperEncoder",
            "init_args": {
                "pretrained": str(encoder),
                "initialize": "pretrained",
                "overrides": None,
                "dtype": "float32",
                "mel_range": mel_range,
            },
        },
        "abstractor": {"class_path": "fastslm.modules.abstractors.hta.HTA", "init_args": {"head_width": 16}},
        "llm": {
            "class_path": "fastslm.modules.llms.causal_lm.CausalLM",
            "init_args": {
                "pretrained": str(llm),
                "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "targets": "all-linear"},
                "context_length": 4096,
            },
        },
        "window_seconds": 2.0,
        "tokens_per_window": 4,
        "tail": "proportional",
        "encoder_batch_windows": 3,
        "alignment_weight": 0.0,
        "enable_thinking": False,
        "train_parts": ["abstractor", "projector", "lora"],
        "max_new_tokens": None,
        "new_tokens_per_second": 4.0,
        "optimizer": {"learning_rate": 0.001},
    }
    return settings | changes


def write_run(folder, settings):
    """Write a run folder with ``last.ckpt`` as a fit does; weights are random and the speech tokens large.

    Large, so that the audio changes what the random LLM says.
    """
    from fastslm.checkpoint.run import build_path

    torch.manual_seed(1)
    path = build_path(settings)
    with torch.no_grad():
        for name, parameter in path.named_parameters():
            if ".lora_B" in name or "projector" in name:
                parameter.normal_(std=0.3)
    kept = ("abstractor.", "alignment.")
    state = {f"path.{n}": p.detach() for n, p in path.named_parameters() if n.startswith(kept) or ".lora_" in n}
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    contents = {"state_dict": state, "fastslm_config": {"model": settings, "run_folder": str(folder)}}
    torch.save(contents, folder / "checkpoints" / "last.ckpt")
    return folder
