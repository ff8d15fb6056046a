"""``fastslm import-release``: the command line of the importer."""

from collections.abc import Sequence
from pathlib import Path

from fastslm.commands.parser import command_parser

_EXAMPLE = """\
example:
  fastslm import-release Stage3_FastSLM.pt runs/release --llm Qwen/Qwen3-4B
  fastslm transcribe talk.mp3 --model runs/release

Every key of the file is used and listed in OUT/released_keys.tsv; a key too many or too few refuses the import.
Encoder and LLM are compared with their base models: equal ones are named in the configuration, others stored in OUT.
"""


def main(arguments: Sequence[str]) -> int:
    """Import a released checkpoint and print what became of its keys; the exit status is 2 when it is refused."""
    description = "Turn the authors' checkpoint into a run folder that every other command takes."
    parser = command_parser("import-release", description, _EXAMPLE)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="Stage3_FastSLM.pt, a plain state dict")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the run, new or empty")
    parser.add_argument("--llm", default="Qwen/Qwen3-4B", metavar="NAME", help="hub name or folder [%(default)s]")
    parser.add_argument(
        "--encoder", default="openai/whisper-large-v3", metavar="NAME", help="hub name or folder [%(default)s]"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        default="bfloat16",
        help="of encoder and LLM when the model is used [%(default)s]",
    )
    parser.add_argument(
        "--lora-alpha", type=float, default=64.0, metavar="A", help="scale of the adapters [%(default)g, as released]"
    )
    given = parser.parse_args(arguments[1:])

    from fastslm.release.importer import KEY_LIST, import_release

    imported = import_release(
        given.checkpoint,
        given.out,
        encoder=given.encoder,
        llm=given.llm,
        dtype=given.dtype,
        lora_alpha=given.lora_alpha,
    )
    print(imported.table())
    rows, ids = imported.vocabulary
    print(
        f"  added tokens: {', '.join(f'{token} {i}' for token, i in ids.items())}, rows of an embedding table of {rows}"
    )
    print(f"The run is in {imported.folder}; every key is listed in {imported.folder / KEY_LIST}.")
    return 0
