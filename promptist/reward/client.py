"""The training side's view of the reward: requests become tickets at once, measurements later."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from promptist.reward.cache import PlainCache
from promptist.reward.messages import ImageRequest, Measurement


class RewardError(RuntimeError):
    """A picture could not be measured, or a reward rank fell silent. It stops the run; it never becomes a
    score.
    """


@dataclass(eq=False, slots=True)
class Ticket:
    """A request under way; `measurement` is there once it has been painted."""

    request: ImageRequest
    measurement: Measurement | None = None


class RewardClient(Protocol):
    """What a trainer sees of the reward ranks.

    `images`: pictures painted so far for this training rank; `waited_s`: seconds spent blocked in `collect`.
    """

    @property
    def images(self) -> int: ...

    @property
    def waited_s(self) -> float: ...

    def begin(self, iteration: int) -> None:
        """An iteration starts, on all training ranks."""

    def submit(self, requests: Sequence[ImageRequest]) -> list[Ticket]:
        """Ask for pictures; never blocks. Requests of several calls share diffusion batches; the last,
        part-filled one waits for more until `flush` or `collect`.
        """

    def flush(self) -> None:
        """Nothing more comes for now: paint the part-filled batch, too."""

    def poll(self) -> None:
        """Raise RewardError if something has failed meanwhile; never blocks."""

    def collect(self, tickets: Sequence[Ticket]) -> list[Measurement]:
        """The measurements of `tickets`, in order; waits for them. RewardError names the rank and the prompt
        at fault.
        """

    def metrics(self) -> dict[str, float]:
        """Figures since the last call, as `reward/...`."""

    def committed(self, step: int) -> None:
        """Checkpoint `step` has been committed, on all training ranks."""

    def close(self) -> None:
        """Let the reward ranks go. Tickets that were not collected are dropped."""


class Measurer(Protocol):
    """What a client needs of `RewardModel`; tests put fakes in its place."""

    batch: int
    fingerprint: str

    def measure(self, requests: Sequence[ImageRequest]) -> list[Measurement]: ...


def culprit(model: Measurer, requests: Sequence[ImageRequest], error: Exception) -> ImageRequest:
    """The request of a failed batch that is to blame: the one the error names, else the first that fails
    alone, else the first.
    """
    named = getattr(error, "request", None)
    if isinstance(named, ImageRequest):
        return named
    for request in requests:
        try:
            model.measure([request])
        except Exception:
            return request
    return requests[0]


class LocalRewards:
    """One process plays both roles: `collect` paints. Nothing overlaps."""

    def __init__(self, model: Measurer) -> None:
        self.model = model
        self.images = 0
        self.waited_s = 0.0
        self.fingerprint = model.fingerprint
        self._truncated = 0
        self._queue: deque[Ticket] = deque()
        self._meter = Meter()

    def begin(self, iteration: int) -> None:
        """Nothing to do."""

    def submit(self, requests: Sequence[ImageRequest]) -> list[Ticket]:
        """Queue the requests."""
        tickets = [Ticket(request) for request in requests]
        self._queue.extend(tickets)
        return tickets

    def flush(self) -> None:
        """Nothing to do: `collect` paints part-filled batches."""

    def poll(self) -> None:
        """Nothing to do."""

    def collect(self, tickets: Sequence[Ticket]) -> list[Measurement]:
        """Paint the queue, batch by batch, until all `tickets` are measured."""
        start = time.perf_counter()
        for ticket in tickets:
            while ticket.measurement is None:
                if not self._queue:
                    raise ValueError(f"the ticket for {ticket.request.prompt!r} is not of this client")
                self._paint([self._queue.popleft() for _ in range(min(self.model.batch, len(self._queue)))])
        self.waited_s += time.perf_counter() - start
        return [measured(ticket) for ticket in tickets]

    def _paint(self, batch: list[Ticket]) -> None:
        requests = [ticket.request for ticket in batch]
        try:
            results = self.model.measure(requests)
        except Exception as error:
            prompt = culprit(self.model, requests, error).prompt
            raise RewardError(
                f"measuring the prompt {prompt!r} failed: {type(error).__name__}: {error}"
            ) from error
        for ticket, result in zip(batch, results, strict=True):
            ticket.measurement = result
        self.images += len(batch)
        self._truncated += sum(result.truncated for result in results)

    def metrics(self) -> dict[str, float]:
        """Figures since the last call."""
        return self._meter.read(self.images, self.waited_s, self._truncated)

    def committed(self, step: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Drop what was not collected."""
        self._queue.clear()


class Wrapped:
    """A client around another one, which it leaves everything to."""

    def __init__(self, client: RewardClient) -> None:
        self.client = client

    @property
    def images(self) -> int:
        """Pictures painted so far."""
        return self.client.images

    @property
    def waited_s(self) -> float:
        """Seconds spent blocked in `collect`."""
        return self.client.waited_s

    def begin(self, iteration: int) -> None:
        """An iteration starts."""
        self.client.begin(iteration)

    def submit(self, requests: Sequence[ImageRequest]) -> list[Ticket]:
        """Ask for pictures."""
        return self.client.submit(requests)

    def flush(self) -> None:
        """Paint the part-filled batch, too."""
        self.client.flush()

    def poll(self) -> None:
        """Raise RewardError if something has failed meanwhile."""
        self.client.poll()

    def collect(self, tickets: Sequence[Ticket]) -> list[Measurement]:
        """The measurements of `tickets`."""
        return self.client.collect(tickets)

    def metrics(self) -> dict[str, float]:
        """Figures since the last call."""
        return self.client.metrics()

    def committed(self, step: int) -> None:
        """Checkpoint `step` has been committed."""
        self.client.committed(step)

    def close(self) -> None:
        """Let the reward ranks go."""
        self.client.close()


class CachedRewards(Wrapped):
    """A client behind a `PlainCache`: pictures of plain prompts that the run has painted before are not
    painted again (and do not count among its `images`).

    A plain picture that is asked for again while it is being painted shares the ticket and counts as a hit,
    so that the hit rate does not depend on timing.
    """

    def __init__(self, client: RewardClient, cache: PlainCache) -> None:
        super().__init__(client)
        self.cache = cache
        self._painting: dict[str, Ticket] = {}
        self._seen = (0, 0)

    def begin(self, iteration: int) -> None:
        """Take in what the other ranks cached in the iterations before."""
        self.cache.begin(iteration)
        super().begin(iteration)

    def submit(self, requests: Sequence[ImageRequest]) -> list[Ticket]:
        """Tickets of known plain pictures are ready at once; the rest goes to the reward ranks."""
        tickets = []
        for request in requests:
            ticket = self._known(request) if request.plain else None
            if ticket is None:
                [ticket] = self.client.submit([request])
                if request.plain:
                    self._painting[self.cache.key(request)] = ticket
            tickets.append(ticket)
        return tickets

    def _known(self, request: ImageRequest) -> Ticket | None:
        found = self.cache.get(request)
        if found is not None:
            return Ticket(request, found)
        painting = self._painting.get(self.cache.key(request))
        if painting is None or (request.keep_picture and not painting.request.keep_picture):
            return None
        self.cache.hits += 1
        return painting

    def collect(self, tickets: Sequence[Ticket]) -> list[Measurement]:
        """The measurements of `tickets`; new plain ones enter the cache."""
        results = self.client.collect(tickets)
        for ticket, result in zip(tickets, results, strict=True):
            if ticket.request.plain and self._painting.get(key := self.cache.key(ticket.request)) is ticket:
                del self._painting[key]
                self.cache.put(ticket.request, result)
        return results

    def metrics(self) -> dict[str, float]:
        """The client's figures and `reward/hit_rate`, the share of plain pictures that were known (0 where
        none was asked for).
        """
        hits, lookups = self.cache.hits - self._seen[0], self.cache.lookups - self._seen[1]
        self._seen = (self.cache.hits, self.cache.lookups)
        return {**self.client.metrics(), "reward/hit_rate": hits / lookups if lookups else 0.0}


class Meter:
    """Differences of running totals between two readings."""

    def __init__(self) -> None:
        self._last = (time.perf_counter(), 0, 0.0, 0)

    def read(self, images: int, waited_s: float, truncated: int) -> dict[str, float]:
        """`reward/images`, `images_per_s`, `waited_s` and `truncated` since the last reading."""
        now = time.perf_counter()
        then, images_before, waited_before, truncated_before = self._last
        self._last = (now, images, waited_s, truncated)
        return {
            "reward/images": images - images_before,
            "reward/images_per_s": (images - images_before) / max(now - then, 1e-9),
            "reward/waited_s": waited_s - waited_before,
            "reward/truncated": truncated - truncated_before,
        }


def measured(ticket: Ticket) -> Measurement:
    """The measurement of a finished ticket."""
    assert ticket.measurement is not None
    return ticket.measurement
