"""Measurements since the last checkpoint, so that a run that was stopped or killed need not paint them again.

A checkpoint holds no rollout: rewrites are a pure function of weights, seed and iteration, and decoding them again is
cheap. Painting is not. Every measurement is therefore written down as it arrives, in a file per training rank, and kept
until a checkpoint makes it superfluous. Entries are addressed by content (generator fingerprint, namespace, painted
text, x, k), as those of `PlainCache`: should a rewrite come out differently the second time (GPUs), its pictures are
painted.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

from promptist.errors import UserError
from promptist.reward.client import Meter, RewardClient, Ticket, Wrapped, measured
from promptist.reward.messages import ImageRequest, Measurement


class InFlight:
    """The record of one training rank; `begin(iteration)` before each iteration's measurements."""

    def __init__(self, folder: str | Path, fingerprint: str, rank: int = 0, ranks: int = 1) -> None:
        """The store in `folder`, which is made, of training rank `rank` of `ranks`."""
        self.folder, self.fingerprint = Path(folder), fingerprint
        self.iteration: int | None = None
        self._rank, self._ranks = rank, ranks
        self._own = self.folder / f"{rank:05d}.jsonl"
        self._known: dict[tuple[int, str], Measurement] = {}  # by iteration and address, of attempts before this one
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {self.folder} cannot be made ({error.strerror}); free the path") from error

    def begin(self, iteration: int) -> None:
        """The first call says where the run starts or resumes: what all ranks measured from there on is known, each
        measurement for the iteration that asked for it. An undisturbed run thus paints all it counts as painted."""
        if self.iteration is None:
            for path in sorted(self.folder.glob("*.jsonl")):
                for entry in _entries(path):
                    if entry["iteration"] >= iteration:
                        self._known[entry["iteration"], entry["key"]] = Measurement(**entry["measurement"])
            _cut_torn_line(self._own)
        self.iteration = iteration

    def get(self, request: ImageRequest) -> Measurement | None:
        """What an attempt before this one measured; a request that keeps its picture needs one that was kept."""
        found = self._known.get((self.iteration or 0, self._key(request)))
        return None if found is None or (request.keep_picture and found.picture is None) else found

    def put(self, measurements: Sequence[tuple[ImageRequest, Measurement]]) -> None:
        """Write down new measurements; UserError on a full disk."""
        lines = []
        for request, measurement in measurements:
            address = {"iteration": self.iteration or 0, "key": self._key(request)}
            entry = {**address, "measurement": asdict(measurement)}
            lines.append(json.dumps(entry) + "\n")
        if not lines:
            return
        try:
            with open(self._own, "ab") as stream:
                stream.write("".join(lines).encode())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the disk is full: {self._own} could not be written; checkpoints are untouched, free some space "
                "and run the same command again"
            ) from error

    def forget(self, step: int) -> None:
        """Checkpoint `step` is committed: measurements of the iterations before it are of no more use. Call after a
        barrier: rank 0 removes the files of ranks that exist no more."""
        self._known = {place: found for place, found in self._known.items() if place[0] >= step}
        kept = [entry for entry in _entries(self._own) if entry["iteration"] >= step]
        temporary = self._own.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        os.replace(temporary, self._own)
        if self._rank == 0:
            for path in self.folder.glob("*.jsonl"):
                if int(path.stem) >= self._ranks:
                    path.unlink()

    def _key(self, request: ImageRequest) -> str:
        address = [self.fingerprint, request.namespace, request.prompt, request.source, request.k]
        return blake2b(json.dumps(address).encode(), digest_size=16).hexdigest()


class RecordedRewards(Wrapped):
    """A client whose measurements survive the process. Those of an attempt before count as painted: the metrics of a
    resumed run are those of an undisturbed one."""

    def __init__(self, client: RewardClient, record: InFlight) -> None:
        super().__init__(client)
        self.record = record
        self._open: list[Ticket] = []  # asked of the client, not yet written down
        self._known = 0
        self._known_truncated = 0
        self._meter = Meter()

    @property
    def images(self) -> int:
        """Pictures painted for this rank since the last checkpoint or the start, in whichever attempt."""
        return self.client.images + self._known

    def begin(self, iteration: int) -> None:
        """An iteration starts."""
        self.record.begin(iteration)
        super().begin(iteration)

    def submit(self, requests: Sequence[ImageRequest]) -> list[Ticket]:
        """Tickets of recorded measurements are ready at once; the rest goes to the client."""
        tickets = []
        for request in requests:
            found = self.record.get(request)
            if found is None:
                [ticket] = self.client.submit([request])
                self._open.append(ticket)
            else:
                ticket = Ticket(request, found)
                self._known += 1
                self._known_truncated += found.truncated
            tickets.append(ticket)
        return tickets

    def collect(self, tickets: Sequence[Ticket]) -> list[Measurement]:
        """The measurements of `tickets`; all that have arrived are written down, those of other tickets too."""
        results = self.client.collect(tickets)
        self._write_down()
        return results

    def metrics(self) -> dict[str, float]:
        """The client's figures, with the recorded pictures among the painted ones."""
        figures = self.client.metrics()
        known = self._meter.read(self._known, 0.0, self._known_truncated)
        for name in ("reward/images", "reward/images_per_s", "reward/truncated"):
            figures[name] += known[name]
        return figures

    def committed(self, step: int) -> None:
        """Checkpoint `step` is there: forget what it makes superfluous."""
        self.record.forget(step)
        super().committed(step)

    def close(self) -> None:
        """Let the reward ranks go and write down what they were still painting."""
        super().close()
        self._write_down()

    def _write_down(self) -> None:
        arrived = [ticket for ticket in self._open if ticket.measurement is not None]
        self.record.put([(ticket.request, measured(ticket)) for ticket in arrived])
        self._open = [ticket for ticket in self._open if ticket not in arrived]


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Whole entries; a line that is torn or damaged is as good as none, its picture is painted again."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            entry = json.loads(line)
            entry["iteration"], entry["key"], entry["measurement"]["cosine"]
        except (ValueError, KeyError, TypeError):
            continue
        yield entry


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
