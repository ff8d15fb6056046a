"""What a folder of shards was built from and how far the build is: refuses to mix shards of different inputs."""

import contextlib
import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import soundfile
from filelock import FileLock, Timeout

from fastslm.errors import DataError
from fastslm.files import PARTIAL, open_file, sealed, unsealed, write_atomically
from fastslm.redaction import redacted_values

from .part import Part
from .shard_file import guarded, remove_partials, remove_shard
from .utterance import Finding, Noted, Refused

#: Changes when the same input and options would give other shards, or other samples to a part.
FORMAT_VERSION = 4
_STATE, _DONE = ".build", ".done.json"
_RECIPE = re.compile(r"build(-p\d+of\d+)?\.json")
_PART = re.compile(r"-p(\d+)of(\d+)[-.]")
#: Reasons that a disk or a network may give today, and not tomorrow, without a trace in size and time.
_PASSING = frozenset(("missing file", "unreadable file"))
_FINDINGS = ("broken", "notes")
_LIST = re.compile(rf"({'|'.join(_FINDINGS)})(-p\d+of\d+)?\.jsonl")


def fingerprint(*values: object) -> str:
    """Return 16 hex digits over values."""
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass
class ShardRecord:
    """A finished shard, as a build remembers it.

    Attributes:
        name: of its file, whether or not anything was left to write.
        plan: fingerprint of what it was to hold.
        num_bytes: size of the file; 0 where every sample was refused and there is none.
        content: digest of what is in it, to know it from a shard of another build; empty where none was noted.
        num_samples: in it.
        seconds: of audio in it.
        refused: what was left out.
        noted: what is doubtful in it.
    """

    name: str
    plan: str
    num_bytes: int = 0
    content: str = ""
    num_samples: int = 0
    seconds: float = 0.0
    refused: list[Refused] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)


class BuildFolder:
    """The folder that a build (or one part of it) writes.

    Args:
        folder: made if need be.
        part: which part of the build this is.
    """

    def __init__(self, folder: Path, part: Part = Part()) -> None:  # noqa: B008 -- frozen
        self.folder, self.part = folder, part
        self.state = folder / _STATE
        self.recipe = folder / f"build{part.suffix}.json"
        with guarded(folder):
            self.state.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other builds of the same part out.

        Raises:
            DataError: one is at work.
        """
        lock = FileLock(self.state / f"lock{self.part.suffix}", timeout=0)
        with guarded(self.folder):
            try:
                lock.acquire()
            except Timeout:  # an OSError too
                raise DataError(f"{self.folder}: another build is at work in this folder; wait for it.") from None
        try:
            for name in _FINDINGS:
                if not _is_findings(path := self._findings(name)):
                    raise DataError(
                        f"{path}: no build has written this file, and its list is called so. Give another --out."
                    )
            yield
        finally:
            lock.release()

    def begin(self, source: str, files: str, options: Mapping[str, Any], names: Sequence[str], overwrite: bool) -> None:
        """Note what is built, or check that it is the same as before; clear away what a kill has left.

        Args:
            source: fingerprint of what the sources say, the same in all parts.
            files: fingerprint of the audio files of this part.
            options: all that decides what the shards hold.
            names: of the shards of this part.
            overwrite: remove shards of another build instead of refusing.

        Raises:
            DataError: the folder holds shards of another input or other options, or of no known build.
        """
        versions = {name: importlib.metadata.version(name) for name in ("soundfile", "soxr")}
        versions["libsndfile"] = soundfile.__libsndfile_version__
        now = {
            "format_version": FORMAT_VERSION, "source": source, "options": dict(options), "versions": versions,
            "files": files,
        }  # fmt: skip
        now = json.loads(json.dumps(now))
        found = {recipe: _read_recipe(recipe, overwrite) for recipe in self._recipes()}
        if overwrite:
            self._clear()
        else:
            for recipe, before in found.items():
                self._compare(recipe, before, now)
        if not self.recipe.exists():
            if strangers := [name for name in names if (self.folder / name).exists()]:
                raise DataError(
                    f"{self.folder} already holds {strangers[0]}, which this build has not made. Give another --out."
                )
            self._write(self.recipe, now)
        self._remove_unplanned(names)
        remove_partials(self.folder, names)

    def _recipes(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("build*.json") if _RECIPE.fullmatch(path.name))

    def _compare(self, recipe: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        own = recipe == self.recipe
        what = {"format_version": "this program", "source": "the sources", "files": "the audio files"}
        changed = [text for name, text in what.items() if before.get(name) != now[name] and (own or name != "files")]
        for name in ("options", "versions"):
            old, new = before.get(name, {}), now[name]
            different = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            changed += [f"{key.replace('_', '-')} (was {old.get(key)!r}, is {new.get(key)!r})" for key in different]
        if changed:
            raise DataError(
                f"{self.folder} holds shards of another build: since then there has changed: {', '.join(changed)}."
                " Shards of both together would lose and repeat samples. Give another --out, or add --overwrite (in a"
                " build of parts: to each) to remove the old shards and begin anew."
            )

    def others(self) -> list[Noted]:
        """Return a note where tars lie in the folder that no part of the build has made."""
        made = {marker.name.removesuffix(_DONE) for marker in self.state.glob(f"*{_DONE}")}
        others = sorted(path.name for path in self.folder.glob("[!.]*.tar") if path.name not in made)
        detail = f"{len(others)} that this build has not made, and *.tar reads: {', '.join(others[:3])}"
        return [Noted(str(self.folder), "?", "other tars in --out", detail)] if others else []

    def _remove_unplanned(self, names: Sequence[str]) -> None:
        """Remove shards of a plan that had more of them: recordings were usable then that are not now."""
        for marker in self._markers():
            name = marker.name.removesuffix(_DONE)
            if name not in names:
                print(f"{self.folder / name}: this build no longer makes it; removed.", file=sys.stderr)
                remove_shard(self.folder / name)
                marker.unlink()

    def _clear(self) -> None:
        """Remove what was made, by a build of any number of parts; another part of this one clears away its own."""
        for marker in self.state.glob(f"*-*{_DONE}"):
            if not self._is_of_another_part(marker):
                remove_shard(self.folder / marker.name.removesuffix(_DONE))
                marker.unlink(missing_ok=True)  # all parts do this at once
        for path in [*self.folder.glob(f".*-*{PARTIAL}"), *self._recipes()]:
            if not self._is_of_another_part(path):
                path.unlink(missing_ok=True)
        for path in self.folder.glob("*.jsonl"):
            if _LIST.fullmatch(path.name) and not self._is_of_another_part(path) and _is_findings(path):
                path.unlink(missing_ok=True)

    def _is_of_another_part(self, path: Path) -> bool:
        match = _PART.search(path.name)
        return match is not None and int(match[2]) == self.part.of and int(match[1]) != self.part.number

    def _markers(self) -> list[Path]:
        return sorted(self.state.glob(f"*{self.part.suffix}-*{_DONE}"))

    def _marker(self, name: str) -> Path:
        return self.state / f"{name}{_DONE}"

    def done(self, name: str, plan: str) -> ShardRecord | None:
        """Return a finished shard; None where it has to be made, or made again because it is not as planned."""
        try:
            content = _content(self._marker(name))
        except FileNotFoundError:
            return None
        try:
            values = unsealed(json.loads(content))
            findings = {"refused": [Refused(**item) for item in values["refused"]]}
            record = ShardRecord(**{**values, **findings, "noted": [Noted(**item) for item in values["noted"]]})
        except (ValueError, KeyError, TypeError):  # damaged, or of a version that noted less
            return None
        if record.plan != plan or any(item.reason in _PASSING for item in record.refused):
            return None
        shard = self.folder / name
        whole = shard.stat().st_size == record.num_bytes if shard.exists() else record.num_bytes == 0
        return record if whole else None

    def finish(self, record: ShardRecord) -> None:
        """Note that a shard is whole."""
        self._write(self._marker(record.name), sealed(redacted_values(asdict(record))))  # the seal is of what is read

    def conclude(self, totals: Mapping[str, Any]) -> None:
        """Write what the build came to into the recipe."""
        recipe = _read_recipe(self.recipe, overwrite=False)
        self._write(self.recipe, {**recipe, "totals": dict(totals)})

    def write_findings(self, name: str, findings: Sequence[Finding]) -> Path:
        """Write what is to be said of utterances, one JSON a line, and return the file."""
        path = self._findings(name)
        self._write_text(path, "".join(json.dumps(redacted_values(asdict(item))) + "\n" for item in findings))
        return path

    def _findings(self, name: str) -> Path:
        return self.folder / f"{name}{self.part.suffix}.jsonl"

    def _write(self, path: Path, value: Mapping[str, Any]) -> None:
        self._write_text(path, json.dumps(redacted_values(value), indent=1) + "\n")

    def _write_text(self, path: Path, text: str) -> None:
        with guarded(path):
            write_atomically(path, text, folder=self.state)


def shards_made(folder: Path) -> set[str]:
    """Return the names of the shards that builds noted to have made in a folder, but for those that came to nothing."""
    markers = (folder / _STATE).glob(f"*{_DONE}")
    return {marker.name.removesuffix(_DONE) for marker in markers if b'"num_bytes": 0,' not in _content(marker)}


def _content(note: Path) -> bytes:
    with open_file(note) as file:
        return file.read()


def _read_recipe(path: Path, overwrite: bool) -> dict[str, Any]:
    """Return what a build has noted of itself; nothing where that is damaged or gone and to be overwritten.

    Raises:
        DataError: it is damaged, or the file is somebody else's.
    """
    with guarded(path):
        try:
            data = _content(path)
        except FileNotFoundError:
            if overwrite:  # another part has cleared it away
                return {}
            raise
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        if overwrite:
            return {}
        raise DataError(
            f"{path}: is damaged, so that nobody can tell what the shards beside it were built from. Give another"
            " --out, or add --overwrite to remove them and begin anew."
        ) from None
    if not isinstance(values, dict) or "format_version" not in values:
        raise DataError(f"{path}: no build has written this file, and one would be called so. Give another --out.")
    return values


def _is_findings(path: Path) -> bool:
    """Say whether a file is a list of findings, and not somebody else's; so is one that is not there."""
    with guarded(path):
        try:
            with open(path, "rb") as file:
                first = file.readline(1 << 20)
        except FileNotFoundError:  # or another part has cleared it away
            return True
    try:
        return not first.strip() or {"where", "key", "reason"} <= json.loads(first).keys()
    except (ValueError, AttributeError, RecursionError):
        return False
