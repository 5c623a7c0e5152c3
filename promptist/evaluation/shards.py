"""Shards of an evaluation: which prompts belong to one, the note that one is finished, and what the reducer asks of the
notes.

A note names everything that decided the shard's numbers. So the same command can tell without loading a model that
nothing is left to do, and the reducer that all shards measured the same thing with the same models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from promptist.cluster.run_folder import write_atomically
from promptist.errors import UserError
from promptist.evaluation.plan import Entry

if TYPE_CHECKING:
    from promptist.evaluation.methods import MethodConfig
    from promptist.reward.model import RewardConfig

FOLDER = "finished"
T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `of` parts; 1 of 1 is the whole evaluation."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/16`; UserError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or not 1 <= int(match.group(1)) <= int(match.group(2)):
            raise UserError(f"shard is {text!r}: write the number of this shard and how many there are, 1/16 to 16/16")
        return cls(int(match.group(1)), int(match.group(2)))

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this shard: dealt in turn, so that every set of prompts is spread over all shards."""
        return items[self.number - 1 :: self.of]

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True)
class Note:
    """What `finished/shard_0003_of_0016.json` says.

    `inputs`: what the shard was computed from (`Inputs`); `painter`: fingerprint of the reward model that measured,
    empty where the shard has no prompt; `decoders`: settings of the model rows by method; `rulers`: how lengths were
    measured.
    """

    inputs: dict[str, Any]
    painter: str
    decoders: dict[str, Any]
    rulers: list[dict[str, Any]]

    def write(self, run: Path, shard: Shard) -> None:
        write_atomically(note_path(run, shard), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, run: Path, shard: Shard) -> Note | None:
        """None where the shard has not been finished."""
        try:
            return cls(**json.loads(note_path(run, shard).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def entries(self) -> list[Entry]:
        """The rows that the shard computed, without their folders."""
        return [Entry(**row) for row in self.inputs["entries"]]


@dataclass(frozen=True)
class Inputs:
    """All that a shard's numbers follow from, models apart.

    `prompts` is a fingerprint; `texts`: what the methods without a model make of the prompts; `references` as in the
    config. Terms are not among them: another slope changes metrics, but nothing that a shard records.
    """

    prompts: str
    methods: Sequence[MethodConfig]
    texts: Mapping[str, Mapping[str, str]]
    references: Sequence[str]
    images: int
    pictures: int
    reward: RewardConfig
    held_out: Sequence[Any]

    def as_json(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """As JSON, with the rows and the fingerprints of their models.

        The reward model goes in by its settings and by size and time of its files: to hash gigabytes in every shard
        only to see that it is finished would take longer than to load them.
        """
        scorers = [asdict(scorer) for scorer in self.held_out]
        painter = _painter(self.reward)
        inputs = {
            "prompts": self.prompts,
            "methods": [asdict(method) for method in self.methods],
            "entries": [_row(entry) for entry in entries],
            "texts": hashlib.blake2b(json.dumps(self.texts, sort_keys=True).encode(), digest_size=16).hexdigest(),
            "references": list(self.references),
            "images": self.images,
            "pictures": self.pictures,
            "reward": painter,
            "held_out": [{k: v for k, v in scorer.items() if k != "terms"} for scorer in scorers],
            "files": _files_stamp([painter, scorers]),
        }
        result: dict[str, Any] = json.loads(json.dumps(inputs))  # as it will be read back
        return result


def note_path(run: Path, shard: Shard) -> Path:
    return run / FOLDER / f"shard_{shard.number:04d}_of_{shard.of:04d}.json"


def collect_notes(run: Path, of: int, inputs: Inputs) -> list[Note]:
    """The notes of all `of` shards, in order.

    UserError where shards are missing, or were computed from another config than `inputs`, or from other models than
    the rest.
    """
    shards = [Shard(i + 1, of) for i in range(of)]
    notes = [Note.read(run, shard) for shard in shards]
    found = [note for note in notes if note is not None]
    if len(found) < of:
        missing = [str(s) for s, note in zip(shards, notes, strict=True) if note is None]
        raise UserError(_again(run, missing, "not finished"))
    for name, value in _decided(inputs.as_json([])).items():
        stale = [str(s) for s, note in zip(shards, found, strict=True) if _decided(note.inputs)[name] != value]
        if stale:
            raise UserError(_again(run, stale, f"computed from other {name} than this config's"))
    painters = [note.painter for note in found if note.painter]
    for what, values in (("models", [note.inputs["entries"] for note in found]), ("reward models", painters)):
        if any(value != values[0] for value in values):
            raise UserError(
                f"the {of} shards of {run} were computed by different {what}: run them all again, which does again "
                "only what has changed"
            )
    return found


def _decided(inputs: dict[str, Any]) -> dict[str, Any]:
    """The part of `Inputs.as_json` that a config and its files of text decide, whatever lies in the model folders by
    now; by the name under which an error speaks of it."""
    return {
        "prompts": inputs["prompts"],
        "methods": inputs["methods"],
        "rewrites of methods without a model": inputs["texts"],
        "references": inputs["references"],
        "numbers of images": (inputs["images"], inputs["pictures"]),
        "reward settings": {name: inputs["reward"][name] for name in ("clip", "aesthetic")},
        # The device is the shards' business; that it was the same for all, the painter's fingerprint tells.
        "diffusion settings": {k: v for k, v in inputs["reward"]["diffusion"].items() if k != "device"},
        "held-out scorers": inputs["held_out"],
    }


def _row(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in ("method", "replica", "kind", "model", "reference")}


def _again(run: Path, shards: list[str], why: str) -> str:
    many = len(shards) > 1
    listed = ", ".join(shards[:8]) + (f" and {len(shards) - 8} more" if len(shards) > 8 else "")
    return (
        f"shard{'s' if many else ''} {listed} of {run} {'are' if many else 'is'} {why}: run "
        f"`python -m jobs.evaluate CONFIG shard={shards[0]}`{' and the others' if many else ''}, then reduce again"
    )


def _painter(reward: RewardConfig) -> dict[str, Any]:
    parts = {name: asdict(getattr(reward, name)) for name in ("diffusion", "clip", "aesthetic")}
    parts["diffusion"].pop("safety_checker")
    return parts


def _files_stamp(settings: Any) -> str:
    """Hash of path, size and time of every file that a text in `settings` names, or that lies in a folder it names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in _texts(settings):
        path = Path(name).expanduser()
        files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
        for file in files:
            state = file.stat()
            if file.is_file():
                digest.update(f"{file} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _texts(settings: Any) -> Iterator[str]:
    if isinstance(settings, dict):
        settings = list(settings.values())
    if isinstance(settings, list):
        for value in settings:
            yield from _texts(value)
    elif isinstance(settings, str) and settings:
        yield settings
