"""``fastslm evaluate``: word errors of a model and of other systems on named sets, after Whisper's normaliser."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastslm.commands.transcribe import add_letters_option
from fastslm.errors import ConfigError
from fastslm.evaluation.normalise import NORMALISERS
from fastslm.evaluation.report import SetResult, markdown, write
from fastslm.evaluation.score import Transcript, check_installed, compare
from fastslm.evaluation.transcripts import are_transcripts, matched, read_transcripts

from ..reading.store import Store
from .answers import Answering, transcribe_set
from .recordings import EvaluationSet, parse_sets, read_set

_DESCRIPTION = """\
Score a model, or transcripts of another system, against the transcripts in shards: word error rate after
Whisper's normaliser, overall and by length of recording, with 95 % intervals. SYSTEM is a run folder, checkpoint or
exported folder; or transcripts made elsewhere, a .jsonl file or a folder of NAME.txt. DATA is NAME=SHARDS or SHARDS."""

_EPILOG = """\
examples:
  fastslm evaluate runs/hta dev='shards/dev-*.tar' --out evaluation
  fastslm evaluate runs/hta clean=ls/test-clean other=ls/test-other --beside whisper=whisper.jsonl
  fastslm evaluate whisper-texts/ dev='shards/dev-*.tar'          transcripts of another system alone
  fastslm evaluate exported/ long=talks/ --section-minutes 5      hours of audio, five minutes at a time

Writes results.json (with every recording), report.md, wer.png and the answers to --out. When run again, it
continues with the recordings that have no answer yet. Needs: pip install 'fastslm[evaluate]'.
exit status: 0 all scored; 1 some recordings failed and count as empty; 2 nothing could be scored; 130 interrupted."""


#: Options that make a model's transcripts others, and their defaults, which say that they were not given.
_OF_A_MODEL = {"beam": 1, "section_minutes": None, "max_new_tokens": None, "letters": False}


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    try:
        return _run(_parser().parse_intermixed_args(list(arguments[1:])))
    except KeyboardInterrupt:
        print("Interrupted: run it again to go on.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fastslm evaluate", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("system", metavar="SYSTEM", help="model, or transcripts of another system")
    add("data", nargs="+", metavar="DATA", help="NAME=SHARDS, such as clean='shards/test-*.tar', or a folder of tars")
    add("--out", type=Path, default=Path("evaluation"), metavar="DIR", help="where results go (default: evaluation)")
    add("--name", metavar="NAME", help="name of SYSTEM in the tables (default: its last folder)")
    add("--beside", action="append", default=[], metavar="NAME=PATH", help="also score transcripts of another system")
    add("--language", default="", metavar="NAME", help="language of recordings that do not name one (English)")
    add("--normaliser", choices=NORMALISERS, help="for all recordings (default: by language; english"
        " turns number words into digits)")  # fmt: skip
    add("--hub-dataset", action="append", default=[], metavar="NAME=OWNER/DATASET:TASK", help="write .eval_results for"
        " set NAME, which the hub shows on the model's page under that data set and task")  # fmt: skip
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: the first GPU if there is one)")
    add("--beam", type=int, default=1, metavar="N", help="beam search over N hypotheses (default: greedy)")
    add("--section-minutes", type=float, metavar="M", help="transcribe M minutes at a time, for hours of audio")
    add("--max-new-tokens", type=int, metavar="N", help="longest transcript (default: follows the audio)")
    add_letters_option(parser)
    add("--batch-size", type=int, default=8, metavar="N", help="largest number of recordings in a batch (default: 8)")
    add("--overwrite", action="store_true", help="transcribe again what has an answer in --out")
    return parser


def _run(options: argparse.Namespace) -> int:
    check_installed()
    sets = parse_sets(options.data)
    card = {name: _hub_task(value) for name, value in _named(options.hub_dataset, "--hub-dataset", sets).items()}
    beside = {name: read_transcripts(Path(path)) for name, path in _named(options.beside, "--beside").items()}
    store = Store()
    data = [read_set(name, patterns, store, options.language, options.normaliser) for name, patterns in sets.items()]
    for each in data:
        for reason, count in each.left_out.items():
            print(f"{each.name}: {count} samples left out: {reason}.", file=sys.stderr)
        doubts = {"is not known here": each.unknown_languages, "is not written in their script": each.other_scripts}
        for doubt, languages in doubts.items():
            for language, count in languages.items():
                print(
                    f"{each.name}: language {language or 'English'!r} of {count} recordings {doubt}; errors are counted"
                    " by word. Name it by its code in the shards, or give --normaliser.",
                    file=sys.stderr,
                )
    system = Path(options.system)
    name = options.name or os.path.basename(os.path.realpath(system))
    if name in beside:
        raise ConfigError(f"--beside {name}: is the name of SYSTEM, too. Give another, or --name.")
    foreign = are_transcripts(system)
    given = []  # scored before anything is transcribed, which may take hours
    if foreign:
        _refuse_options_of_a_model(options)
        texts = read_transcripts(system)
        given += [_scored(name, each, texts, str(system)) for each in data]
    given += [_scored(other, each, found, other) for other, found in beside.items() for each in data]
    results, num_failed = [], 0
    answering = None if foreign else Answering.of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    if answering is not None:
        for each in data:
            transcripts, failed = transcribe_set(answering, each, options.out / "answers" / f"{each.name}.jsonl")
            num_failed += failed
            results.append(_result(name, each, transcripts))
    results += given
    unscored = write(results, options.out, card)
    for each_set in unscored:
        print(f"{each_set}: nothing is said in this set, so --hub-dataset {each_set} writes nothing.", file=sys.stderr)
    print(markdown(results), end="")
    cards = [f".eval_results/{each.name}.yaml" for each in data if each.name in card and each.name not in unscored]
    written = ", ".join(["results.json", "report.md", "wer.png", *cards])
    print(f"Written to {options.out}: {written}.", file=sys.stderr)
    return 1 if num_failed else 0


def _refuse_options_of_a_model(options: argparse.Namespace) -> None:
    given = [name for name, default in _OF_A_MODEL.items() if getattr(options, name) != default]
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{named}: SYSTEM {options.system} is transcripts, which no model makes. Leave it out.")


def _named(given: Sequence[str], option: str, among: Mapping[str, object] | None = None) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not (separator and name and value):
            raise ConfigError(f"{option} {each}: must be NAME=VALUE.")
        if among is not None and name not in among:
            raise ConfigError(f"{option} {each}: there is no set {name!r}; the sets are {', '.join(among)}.")
        if name in found:
            raise ConfigError(f"{option} {each}: {name!r} is given twice.")
        found[name] = value
    return found


def _hub_task(value: str) -> tuple[str, str]:
    dataset, separator, task = value.partition(":")
    if not (separator and task and dataset.count("/") == 1):
        raise ConfigError(f"--hub-dataset {value}: must be OWNER/DATASET:TASK, as the hub names a benchmark's task.")
    return dataset, task


def _scored(system: str, data: EvaluationSet, texts: Mapping[str, str], place: str) -> SetResult:
    found = matched(texts, [recording.key for recording in data.recordings], f"{place}, set {data.name}")
    result = _result(
        system,
        data,
        [Transcript(r.key, r.reference, found[r.key], r.seconds, None, r.normaliser) for r in data.recordings],
    )
    if not any(count.errors for count in result.counts):
        print(
            f"{place}: all transcripts of set {data.name} are the references, word for word; if the system wrote"
            " others, call them 'pred_text' in its rows.",
            file=sys.stderr,
        )
    return result


def _result(system: str, data: EvaluationSet, transcripts: Sequence[Transcript]) -> SetResult:
    mixed = sum(each.normaliser == "english" and _apostrophes_differ(each) for each in transcripts)
    if mixed:
        print(
            f"{system}: in {mixed} recordings of set {data.name} one text has \u2019 for an apostrophe and the other ',"
            " which count as errors. Write ' in both.",
            file=sys.stderr,
        )
    return SetResult(system, data.name, data.normalisers, [*map(compare, transcripts)])


def _apostrophes_differ(transcript: Transcript) -> bool:
    texts = transcript.reference, transcript.hypothesis
    return any("\u2019" in one and "'" in other for one, other in (texts, texts[::-1]))
