"""What is doubtful in a row: columns that say something of the audio or its text and were not taken."""

from collections.abc import Iterator, Mapping

from ..naming import USUAL_NAMES
from ..times import untaken
from ..utterance import Noted, Utterance, letters_of, stem

_MEANT_OTHERWISE = ("normalized_text",)  # it is another spelling of the same words


def doubts(utterance: Utterance, columns: Mapping[str, str]) -> list[Noted]:
    """Return the notes of a row; what ``--column`` names is no doubt."""
    remarks = [*untaken(utterance)]
    remarks += [] if "text" in columns else other_text(utterance)
    remarks += [] if "audio" in columns else _other_audio(utterance)
    return Noted.of(utterance, remarks)


def other_text(utterance: Utterance) -> Iterator[str]:
    """Remark on a second text that says something else."""
    text = utterance.fields.get("text")
    for name in USUAL_NAMES["text"][1:]:
        other = utterance.fields.get(name)
        if name in _MEANT_OTHERWISE or not (isinstance(text, str) and isinstance(other, str) and other.strip()):
            continue
        if letters_of(other) != letters_of(text):
            yield f"two texts: {text!r:.60} is taken, and {name} says {other!r:.60}; say which: --column text={name}"
            return


def _other_audio(utterance: Utterance) -> Iterator[str]:
    if not utterance.audio or utterance.audio[0].cell is not None:
        return
    taken = utterance.audio[0].path
    for name in USUAL_NAMES["audio"]:
        other = utterance.fields.get(name)
        if isinstance(other, str) and other and stem(other) != stem(taken):
            yield f"two recordings: {taken} is taken, and {name} says {other!r:.80}; say which: --column audio={name}"
            return
