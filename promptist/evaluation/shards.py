"""Shards of an evaluation: which prompts belong to one, the note that one is finished, and what the reducer asks of the
notes.

A note names everything that decided the shard's numbers. So the same command can tell without loading a model that
nothing is left to do, and the reducer that all shards measured the same thing with the same models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from promptist.cluster.run_folder import write_atomically
from promptist.errors import UserError

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

    `inputs`: what the shard was computed from (`inputs_of`); `painter`: fingerprint of the reward model that
    measured, empty where the shard has no prompt; `decoder`: settings of the model rows.
    """

    inputs: dict[str, Any]
    painter: str
    decoder: dict[str, Any] | None

    def write(self, run: Path, shard: Shard) -> None:
        write_atomically(note_path(run, shard), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, run: Path, shard: Shard) -> Note | None:
        """None where the shard has not been finished."""
        try:
            return cls(**json.loads(note_path(run, shard).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def note_path(run: Path, shard: Shard) -> Path:
    return run / FOLDER / f"shard_{shard.number:04d}_of_{shard.of:04d}.json"


def inputs_of(prompts: str, methods: Sequence[MethodConfig], models: dict[str, str], images: int, pictures: int,
              reward: RewardConfig) -> dict[str, Any]:  # fmt: skip
    """All that a shard's numbers follow from, as JSON.

    `prompts` and `models` (by row) are fingerprints. The reward model goes in by its settings and by size and time of
    its files: to hash gigabytes in every shard only to see that it is finished would take longer than to load them.
    """
    painter = {**_painter(reward), "files": _files_stamp(reward)}
    rows = [{**asdict(m), "model": models.get(m.name)} for m in methods]
    inputs = {"prompts": prompts, "methods": rows, "images": images, "pictures": pictures, "reward": painter}
    result: dict[str, Any] = json.loads(json.dumps(inputs))  # as it will be read back
    return result


def collect_notes(run: Path, of: int, expected: dict[str, Any]) -> list[Note]:
    """The notes of all `of` shards, in order. `expected`: the inputs that the config at hand decides by itself (no
    models).

    UserError where shards are missing, or were computed from another config, or from other models than the rest.
    """
    shards = [Shard(i + 1, of) for i in range(of)]
    notes = [Note.read(run, shard) for shard in shards]
    found = [note for note in notes if note is not None]
    if len(found) < of:
        missing = [str(s) for s, note in zip(shards, notes, strict=True) if note is None]
        raise UserError(_again(run, missing, "not finished"))
    for name, value in expected.items():
        stale = [str(s) for s, note in zip(shards, found, strict=True) if _decided(note, name) != value]
        if stale:
            raise UserError(_again(run, stale, f"computed from other {name} than this config's"))
    painters = [note.painter for note in found if note.painter]
    for what, values in (("models", [note.inputs["methods"] for note in found]), ("reward models", painters)):
        if any(value != values[0] for value in values):
            raise UserError(
                f"the {of} shards of {run} were computed by different {what}: run them all again, which does again "
                "only what has changed"
            )
    return found


def config_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """The part of `inputs_of` that a config and its prompt file decide, whatever lies in the model folders by now."""
    return {
        "prompts": inputs["prompts"],
        "methods": [{k: v for k, v in row.items() if k != "model"} for row in inputs["methods"]],
        "numbers of images": (inputs["images"], inputs["pictures"]),
        "reward settings": {name: inputs["reward"][name] for name in ("clip", "aesthetic")},
        # The device is the shards' business; that it was the same for all, the painter's fingerprint tells.
        "diffusion settings": {k: v for k, v in inputs["reward"]["diffusion"].items() if k != "device"},
    }


def _decided(note: Note, name: str) -> Any:
    return config_inputs(note.inputs)[name]


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


def _files_stamp(reward: RewardConfig) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in (reward.diffusion.path, reward.clip.model, reward.clip.pretrained, reward.aesthetic.path):
        path = Path(name or "").expanduser()
        files = [path] if path.is_file() else sorted(path.rglob("*")) if name and path.is_dir() else []
        for file in files:
            state = file.stat()
            if file.is_file():
                digest.update(f"{file} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
