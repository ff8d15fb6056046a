"""``fastslm export``: the command line of the exporter."""

from collections.abc import Sequence
from pathlib import Path

from fastslm.commands.parser import command_parser

_DESCRIPTION = """\
Write a trained model as one self-contained Hugging Face folder: configuration, processor,
tokenizer, safetensors, generation settings, model card, and the code that runs it."""
_EXAMPLE = """\
examples:
  fastslm export runs/hta my-model                 separate adapters, bit-identical; loading needs peft
  fastslm export runs/hta my-model --merge-lora    adapters merged into the LLM
  fastslm export runs/hta my-llm --llm-only        the LLM alone, a stock folder for serving engines (docs/serving.md)

The folder needs no fastslm:
  AutoModel.from_pretrained("my-model", trust_remote_code=True)
"""


def main(arguments: Sequence[str]) -> int:
    """Export a run and say where it lies; the exit status is 2 when it cannot be exported."""
    parser = command_parser("export", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    parser.add_argument(
        "--checkpoint", choices=("last", "best"), help="which of a run (default: best, if there is one)"
    )
    parser.add_argument(
        "--tokens-per-window",
        type=int,
        metavar="N",
        help="token rate of the folder, for a run trained at several (default: the first of its list)",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--merge-lora", action="store_true", help="add the adapters to the LLM's weights")
    kind.add_argument("--llm-only", action="store_true", help="the LLM alone, merged, of its own architecture")
    given = parser.parse_args(arguments[1:])

    from fastslm.checkpoint.run import open_run
    from fastslm.export.folder import export_llm, export_model
    from fastslm.inference.load import usable_device

    run = open_run(given.run, given.checkpoint, usable_device(None), tokens_per_window=given.tokens_per_window)
    if given.llm_only:
        export_llm(run, given.out)
    else:
        export_model(run, given.out, merge_lora=given.merge_lora)
    print(f"{run.checkpoint} (step {run.step}) was exported.")
    size = sum(file.stat().st_size for file in given.out.iterdir()) / 2**20
    auto = "AutoModelForCausalLM" if given.llm_only else "AutoModel"
    trust = "" if given.llm_only else ", trust_remote_code=True"
    print(f'{given.out}: {size:,.0f} MiB. Load it with {auto}.from_pretrained("{given.out}"{trust}).')
    print(f"Upload it with: fastslm push {given.out} OWNER/NAME")
    return 0
