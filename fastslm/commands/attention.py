"""``fastslm attention``: draws where the tokens of a recording look."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastslm.commands.parser import command_parser
from fastslm.configuration.figures import check_figure

if TYPE_CHECKING:
    from fastslm.attention.collect import AttentionMaps, Shares
    from fastslm.path.batch import Int16Array
    from fastslm.path.model import SpeechLM

_DESCRIPTION = """\
Plot what the tokens of a recording attend to: time in seconds on the x axis, one panel per scale, and below them the
share of attention that each scale gets, against the duration of the audio.

    fastslm attention talk.flac --model runs/hta --out talk.png

Rows: the stage tokens of each scale; the final tokens through the stage tokens; the blocks of refinement. Weights are
the mean over heads. Shares are measured on the first part of the recording, up to each duration.
"""
_DURATIONS = 12


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit status is 2 for a mistake."""
    parser = command_parser("attention", _DESCRIPTION)
    parser.add_argument("file", help="audio of any length, in any format that fastslm reads")
    parser.add_argument(
        "--model", "--ckpt", type=Path, required=True, metavar="RUN", help="a run folder, or a checkpoint in one"
    )
    parser.add_argument("--out", type=Path, metavar="PNG", help="default: the audio's name with -attention.png, here")
    parser.add_argument("--windows", type=int, default=4, metavar="N", help="first windows to draw (default: 4)")
    options = parser.parse_args(arguments[1:])
    if options.windows < 1:
        parser.error(f"--windows {options.windows}: must be at least 1")
    return _draw(options)


def _draw(options: argparse.Namespace) -> int:
    from fastslm.attention.collect import mean_shares
    from fastslm.attention.draw import draw_attention
    from fastslm.audio.rate import SAMPLE_RATE_HZ
    from fastslm.checkpoint.run import open_run
    from fastslm.errors import DataError
    from fastslm.inference.audio import open_audio

    figure = options.out or Path(f"{Path(options.file).stem}-attention.png")
    check_figure(figure, "--out")
    try:
        audio: Int16Array = np.concatenate(list(open_audio(options.file).blocks()))
    except DataError as error:
        raise DataError(f"{options.file}: {error}") from error
    run = open_run(options.model)
    path = run.path
    maps = listen(path, [audio], options.windows)
    duration = len(audio) / SAMPLE_RATE_HZ
    drawn = draw_attention(
        maps,
        range(min(len(maps), options.windows)),
        window_seconds=path.listener.window_samples / SAMPLE_RATE_HZ,
        duration_seconds=duration,
        shares=shares_by_duration(path, audio, maps),
        title=f"{Path(options.file).name} ({duration:.1f} s), {type(path.abstractor).__name__} at step {run.step}",
        path=figure,
    )
    for row, shares in mean_shares([(maps, window) for window in range(len(maps))]).items():
        print(f"{row:24} " + "  ".join(f"{scale} {share:.1%}" for scale, share in shares.items()))
    print(f"figure: {drawn}")
    return 0


def listen(path: "SpeechLM", recordings: Sequence["Int16Array"], max_maps: int) -> "AttentionMaps":
    """Return what the compressor looks at in recordings ``[N]``, window by window.

    Args:
        path: with weights.
        recordings: int16 audio, none of it empty.
        max_maps: windows whose maps are kept.
    """
    import torch

    from fastslm.attention.collect import AttentionMaps

    maps = AttentionMaps(path.abstractor, max_maps)
    audio = torch.from_numpy(np.concatenate(recordings)).to(next(path.abstractor.parameters()).device)
    with torch.no_grad(), maps.recording():
        path.listener(audio, path.listener.cut([len(recording) for recording in recordings]))
    return maps


def shares_by_duration(path: "SpeechLM", audio: "Int16Array", maps: "AttentionMaps") -> list[tuple[float, "Shares"]]:
    """Return durations in seconds with the shares in that much of a recording, from its start.

    Args:
        path: with weights.
        audio: the recording ``[N]``.
        maps: of all its windows; only the cut window at the end of each duration is listened to again, as a recording
            of its own.
    """
    from fastslm.attention.collect import mean_shares
    from fastslm.audio.rate import SAMPLE_RATE_HZ

    size = path.listener.window_samples
    ends = np.unique(np.geomspace(min(SAMPLE_RATE_HZ, len(audio)), len(audio), _DURATIONS).round().astype(int)).tolist()
    starts = [(end - 1) // size * size for end in ends]
    cut = listen(path, [audio[start:end] for start, end in zip(starts, ends, strict=True)], max_maps=0)
    return [
        (end / SAMPLE_RATE_HZ, mean_shares([*((maps, window) for window in range(start // size)), (cut, i)]))
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
