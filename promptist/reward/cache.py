"""Measurements of plain pictures, kept for the whole run.

A user's prompt comes back with another rewrite, and its own pictures need not be painted again. Entries are
addressed by content (generator fingerprint, namespace, x, k) and appended to `RANK.jsonl` files, one per
training rank, in the run folder. Nothing is claimed to be saved: `hit_rate` says what was.

Determinism: a rank sees its own entries at once and those of the other ranks from the next iteration on,
whenever their files happen to be written; and what a run that died wrote after the checkpoint is forgotten on
resume. A resumed run therefore finds exactly what the undisturbed run found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

from promptist.errors import UserError
from promptist.reward.messages import ImageRequest, Measurement


class PlainCache:
    """The cache of one training rank; `begin(iteration)` before each iteration's requests."""

    def __init__(self, folder: str | Path, fingerprint: str, rank: int = 0, ranks: int = 1) -> None:
        """Open (and create) the store in `folder` for training rank `rank` of `ranks`.

        Entries of another generator `fingerprint` are never hits.
        """
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self.iteration: int | None = None
        self.hits = self.lookups = 0
        self._rank, self._ranks = rank, ranks
        self._own = self.folder / f"{rank:05d}.jsonl"
        self._entries: dict[str, Measurement] = {}
        self._offsets: dict[Path, int] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the cache folder {self.folder} cannot be made ({error.strerror}); free the path"
            ) from error

    def begin(self, iteration: int) -> None:
        """Take in what all ranks measured before `iteration`. All ranks must have finished the one before.

        The first call says where the run starts or resumes: later entries of this rank, and those of ranks
        that exist no more, come from a run that died and are forgotten.
        """
        files = sorted(self.folder.glob("*.jsonl"))
        if self.iteration is None:
            for path in files:
                if path == self._own or (self._rank == 0 and int(path.stem) >= self._ranks):
                    _forget_from(path, iteration)
        self.iteration = iteration
        # The own file first: of two ranks' entries of one iteration, a rank went on with its own.
        for path in sorted(files, key=lambda path: (path != self._own, path)):
            for entry, end in _entries(path, self._offsets.get(path, 0)):
                # Files are in the order of iterations: what follows is of this iteration or later, too.
                if entry["iteration"] >= iteration:
                    break
                self._offsets[path] = end
                self._learn(entry["key"], Measurement(**entry["measurement"]))

    def get(self, request: ImageRequest) -> Measurement | None:
        """The measurement of a plain request, or None; a request that keeps its picture needs one that was
        kept.
        """
        if self.iteration is None:
            self.begin(0)
        self.lookups += 1
        found = self._entries.get(self.key(request))
        if found is None or (request.keep_picture and found.picture is None):
            return None
        self.hits += 1
        return found

    def put(self, request: ImageRequest, measurement: Measurement) -> None:
        """Remember a plain request's measurement, in memory and at the end of this rank's file."""
        if self.iteration is None:
            self.begin(0)
        key = self.key(request)
        if not self._learn(key, measurement):
            return
        line = (
            json.dumps({"iteration": self.iteration, "key": key, "measurement": asdict(measurement)}) + "\n"
        )
        # Opened anew for each entry: on NFS the other ranks see what was closed.
        with open(self._own, "ab") as stream:
            stream.write(line.encode())

    def _learn(self, key: str, measurement: Measurement) -> bool:
        """Take the entry in; False where what is known says as much already."""
        known = self._entries.get(key)
        if known is not None and (known.picture is not None or measurement.picture is None):
            return False
        self._entries[key] = measurement
        return True

    @property
    def hit_rate(self) -> float:
        """Share of the lookups so far that were hits; 0 before the first."""
        return self.hits / self.lookups if self.lookups else 0.0

    def key(self, request: ImageRequest) -> str:
        """Address of a plain request's measurement; ValueError for a rewrite."""
        if not request.plain:
            raise ValueError("only pictures of the plain prompt are cached")
        text = json.dumps([self.fingerprint, request.namespace, request.source, request.k])
        return blake2b(text.encode(), digest_size=16).hexdigest()


def _forget_from(path: Path, iteration: int) -> None:
    """Cut the file back to the entries before `iteration`, and with them half a last line."""
    kept = 0
    for entry, end in _entries(path, 0):
        if entry["iteration"] >= iteration:
            break
        kept = end
    if kept < path.stat().st_size:
        os.truncate(path, kept)


def _entries(path: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """(entry, offset behind it) of each whole line from `offset` on; half a last line is not there yet."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                entry = json.loads(line)
                entry["iteration"], entry["key"], entry["measurement"]["cosine"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path} is damaged {offset} bytes from its start; delete the file, its "
                    "pictures will be painted again"
                ) from None
            yield entry, offset
