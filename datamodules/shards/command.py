"""``fastslm shards build | index | check | stats | reshard``: the options of each, with examples."""

import argparse
import math
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from fastslm.errors import ConfigError
from fastslm.plugins import names_of
from fastslm.processes.children import num_usable_cores

_DESCRIPTION = """\
Convert a corpus to tar shards, and manage shards.

  fastslm shards build LibriSpeech/train-clean-100 --out shards --dev-share 0.02
  fastslm shards check 'shards/*.tar'
  fastslm fit --config configs/hta.yaml --data WebDatasetModule \\
      --data.train_shards 'shards/train-*.tar' --data.val_shards 'shards/dev-*.tar'
"""
_BUILD_EXAMPLES = """\
examples:
  fastslm shards build train.jsonl --out shards                          a NeMo manifest; audio becomes 16 kHz mono FLAC
  fastslm shards build data/train --out shards --join speaker            a Kaldi folder; recordings of 1 to 60 minutes
  fastslm shards build LibriSpeech/dev-clean --out shards --join chapter --join-seconds 60 1800
  fastslm shards build cv/ko/train.tsv --out shards --language ko --shuffle
  fastslm shards build 'fleurs/train-*.parquet' --out shards --column text=raw_transcription
  fastslm shards build st.jsonl --out shards --task ast --target-language German --column translation=de
  fastslm shards build cuts.jsonl.gz --out shards --split-seconds 1800   cut longer ones in the pauses between segments
  fastslm shards build train.jsonl --out shards --part 3/10              one of ten jobs that share the work

After a kill, run the same command again to continue: finished shards are kept. Utterances
that cannot be used are counted by reason and listed in OUT/broken.jsonl; a build stops when their share is too large.
"""


def _build_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "build",
        help="convert a corpus to shards: NeMo manifest, Kaldi folder, LibriSpeech tree, CSV/TSV (Common Voice),"
        " Hugging Face data set (save_to_disk or parquet), Lhotse cuts, other WebDataset tars",
        epilog=_BUILD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="files or folders, braces and globs allowed")
    add("--out", required=True, type=Path, metavar="FOLDER", help="where the shards go")
    add("--format", help="kaldi, huggingface, librispeech, webdataset, table, lhotse or nemo; found from the path")
    add("--audio-root", metavar="FOLDER", help="where relative audio paths start (default: the folder of the source)")
    add("--column", action="append", default=[], metavar="NAME=COLUMN", help="which column or field of the source is"
        " audio, text, speaker, language, id, group, offset, duration, task, target_language, messages, segments, or"
        " what a task asks with or is answered by; found by usual names")  # fmt: skip

    what = parser.add_argument_group("samples")
    what.add_argument("--task", choices=names_of("tasks"), help="of samples that do not name one (default: asr)")
    what.add_argument("--language", help="of samples that do not name one")
    what.add_argument("--target-language", help="by name, such as German; of samples of task ast that do not name one")
    what.add_argument("--keep-audio", action="store_true", help="keep the bytes of recordings that are used whole,"
                      " instead of encoding to 16 kHz mono FLAC")  # fmt: skip
    what.add_argument("--split-seconds", type=float, metavar="S", help="cut recordings above this length in the pauses"
                      " between their segments; those without segments are refused and counted")  # fmt: skip
    what.add_argument("--join", choices=("speaker", "chapter"), help="join consecutive utterances into long recordings"
                      " with segments (chapter: or long recording, session, column 'group')")  # fmt: skip
    what.add_argument("--join-seconds", type=float, nargs=2, default=(60.0, 3600.0), metavar=("MIN", "MAX"),
                      help="lengths of joined recordings, drawn between these (default: 60 3600)")  # fmt: skip
    what.add_argument("--speed", type=float, default=1.0, metavar="S", help="speed of the copy, tempo and pitch"
                      " (default: 1); for more training data build copies at 0.9 and 1.1 in other folders")  # fmt: skip
    what.add_argument(
        "--join-pause", type=float, default=0.3, metavar="S", help="silence between utterances (default: 0.3)"
    )

    shards = parser.add_argument_group("shards")
    shards.add_argument(
        "--shard-size", default="500MB", metavar="SIZE", help="such as 500MB, 2GB, 200samples (default: 500MB)"
    )
    shards.add_argument("--name", default="train", help="what the names of the shards begin with (default: train)")
    shards.add_argument("--shuffle", action="store_true", help="shuffle the samples (default: the order of the source)")
    shards.add_argument("--dev-share", type=float, default=0.0, metavar="SHARE", help="about this share of the"
                        " utterances goes to dev-*.tar, by speakers who are then in no train shard")  # fmt: skip
    shards.add_argument(
        "--seed", type=int, default=0, help="seed of shuffling, the dev split and joined lengths (default: 0)"
    )
    shards.add_argument("--part", default="1/1", metavar="I/N", help="make part I of N, from 1; the parts are"
                        " independent jobs with the same --out")  # fmt: skip
    shards.add_argument("--tokenizer", metavar="NAME", help="count text lengths for the index with this tokenizer")
    _add_run_options(parser)
    add("--max-broken-share", type=float, default=0.05, metavar="SHARE", help="stop above this share of unusable"
        " utterances, 0 to 1 (default: 0.05)")  # fmt: skip
    add("--overwrite", action="store_true", help="remove the shards of another build in --out and begin anew")
    parser.set_defaults(run=_run_build)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes (default: all usable cores)")


def _run_build(options: argparse.Namespace) -> int:
    from .build import BuildOptions, ShardSize, build, summary
    from .listing import ListingOptions
    from .naming import parse_columns
    from .part import Part
    from .sources import SourceOptions
    from .transcode import AudioOptions
    from .translations import language_name
    from .wording import counted, length

    _check_numbers(options)
    if options.target_language:
        options.target_language = language_name(options.target_language, "--target-language")
    defaults = {name: getattr(options, name) for name in ("task", "language", "target_language")}
    listing = ListingOptions(
        {name: value for name, value in defaults.items() if value},
        options.join,
        options.dev_share,
        options.seed,
        Part.parse(options.part),
    )
    totals = build(
        options.sources,
        options.format,
        SourceOptions(options.audio_root, parse_columns(options.column)),
        BuildOptions(
            listing,
            AudioOptions(options.keep_audio, options.join_pause, options.speed),
            options.split_seconds,
            tuple(options.join_seconds),
            ShardSize.parse(options.shard_size),
            options.shuffle,
            options.name,
            options.tokenizer,
        ),
        options.out,
        _num_workers(options),
        options.max_broken_share,
        options.overwrite,
    )
    splits = totals.num_samples
    of_each = f" ({', '.join(f'{count} {name}' for name, count in splits.items())})" if len(splits) > 1 else ""
    print(
        f"{counted(sum(splits.values()), 'sample')}{of_each}, {length(3600 * totals.hours)} of audio, in"
        f" {counted(totals.num_shards, 'shard')} in {options.out}"
    )
    if totals.refused:
        print(f"{len(totals.refused)} of {totals.num_listed} utterances left out; all are in {totals.broken_file}")
        print(summary(totals.refused))
    if totals.noted:
        print(f"To be looked at, and kept: {len(totals.noted)} notes; all are in {totals.notes_file}")
        print(summary(totals.noted))
    return 0


def _check_numbers(options: argparse.Namespace) -> None:
    shortest, longest = options.join_seconds
    rules = (
        (0.0 <= options.dev_share < 1.0, f"--dev-share {options.dev_share:g}", "must be 0 or more and below 1"),
        (0.0 <= options.max_broken_share <= 1.0, f"--max-broken-share {options.max_broken_share:g}", "is outside 0..1"),
        (options.split_seconds is None or options.split_seconds >= 0.1, "--split-seconds", "must be at least 0.1"),
        (
            0.0 < shortest <= longest < math.inf,
            f"--join-seconds {shortest:g} {longest:g}",
            "must be above 0 and MIN at most MAX",
        ),
        (0.0 <= options.join_pause <= longest, f"--join-pause {options.join_pause:g}", f"is outside 0 to {longest:g}"),
        (0.5 <= options.speed <= 2.0, f"--speed {options.speed:g}", "is outside 0.5 to 2"),
        (options.speed == 1.0 or not options.keep_audio, f"--speed {options.speed:g}", "excludes --keep-audio"),
        (
            re.fullmatch(r"[^\s./\0][^./\0\n]*", options.name),
            f"--name {options.name!r}",
            "must be one word or more, without a dot or slash",
        ),
        (options.name != "dev" or not options.dev_share, "--name dev", "is what --dev-share calls its shards"),
    )
    for holds, what, rule in rules:
        if not holds:
            raise ConfigError(f"{what}: {rule}.")


def _num_workers(options: argparse.Namespace) -> int:
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: must be at least 1.")
    return options.workers or num_usable_cores()


class _Terminated(KeyboardInterrupt):
    """SIGTERM came, which ends the work as Ctrl-C does, and with a status of its own."""


def _on_terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def main(arguments: Sequence[str]) -> int:
    """Run ``fastslm shards ...`` and return its exit status; a user's mistake gives one message."""
    from . import check, index, reshard, stats

    parser = argparse.ArgumentParser(
        "fastslm shards", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    try:
        _build_parser(commands)
        for name, module in {"index": index, "check": check, "stats": stats, "reshard": reshard}.items():
            subparser = commands.add_parser(
                name, help=module.HELP, epilog=module.EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            subparser.set_defaults(run=module.run)
            shards_help = "tars or folders of tars, braces and globs allowed"
            subparser.add_argument("shards", nargs="+", metavar="SHARD", help=shards_help)
            module.add_options(subparser)
            _add_run_options(subparser)
        options = parser.parse_args(arguments[1:])
    except SystemExit as done:  # argparse has said why
        return int(done.code or 0)
    run: Callable[[argparse.Namespace], int] = options.run
    before = signal.signal(signal.SIGTERM, _on_terminate)
    try:
        if options.run is not _run_build:
            options.workers = _num_workers(options)
        return run(options)
    except KeyboardInterrupt as stopped:
        print("\nfastslm: stopped. Finished shards are kept; the same command goes on from there.", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stopped, _Terminated) else signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
