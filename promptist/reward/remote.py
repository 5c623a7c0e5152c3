"""A training rank's connection to the reward ranks.

Who moves the messages: a daemon thread, not calls of the trainer. Painting takes seconds and a trainer's own
work (decoding, forward passes) comes in stretches of seconds without a natural place to look; with `poll`
calls alone a reward rank would sit idle whenever its window ran dry within such a stretch. The thread sleeps
between looks and needs the interpreter for microseconds, while torch's kernels run without it. The price is
an MPI library with MPI_THREAD_MULTIPLE, which mpi4py asks for by default; it is checked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from promptist.errors import UserError
from promptist.reward.client import Meter, RewardError, Ticket, measured
from promptist.reward.mailbox import POLL_S, Mailbox
from promptist.reward.messages import Failure, ImageRequest, Measurement, Message, Ready, Result, Stop, Task

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

STARTUP_S = 1800.0
"""How long reward ranks may take to load their models."""


@dataclass
class _Peer:
    """What this training rank knows of one reward rank."""

    rank: int
    ready: Ready | None = None
    tasks: dict[int, list[Ticket]] = field(default_factory=dict)
    since: float = 0.0  # when it was last heard of, or got work after being idle
    truncated: int = 0
    busy_s: float = 0.0
    alive_s: float = 0.0
    read: tuple[float, float] = (0.0, 0.0)  # busy_s, alive_s at the last metrics()


class RemoteRewards:
    """`RewardClient` over MPI. Every training rank has one and talks to all reward ranks.

    Work leaves in tasks of one diffusion batch, at most `window` in flight per reward rank, to the least
    loaded first; results are matched by id. A reward rank that holds work of ours and says nothing for
    `deadline_s` seconds stops the run: the deadline covers the tasks of other training ranks in front of
    ours, too.
    """

    def __init__(
        self,
        comm: Intracomm,
        reward_ranks: Sequence[int],
        *,
        window: int = 2,
        deadline_s: float = 600.0,
        startup_s: float = STARTUP_S,
    ) -> None:
        """`comm`: all ranks; `reward_ranks`: those that `serve`. UserError without MPI_THREAD_MULTIPLE."""
        _check_threads()
        self.images = 0
        self.waited_s = 0.0
        self.window, self.deadline_s, self.startup_s = window, deadline_s, startup_s
        # Each training rank prefers another reward rank among equally loaded ones, so that they do not all
        # start with one.
        turn = comm.Get_rank() % len(reward_ranks)
        self._peers = {rank: _Peer(rank) for rank in [*reward_ranks[turn:], *reward_ranks[:turn]]}
        self._mailbox = Mailbox(comm)
        self._queue: deque[Ticket] = deque()
        self._due = 0  # tickets at the queue's head that go out even in a part-filled batch
        self._next_id = 0
        self._closing = False
        self._error: Exception | None = None
        self._started = time.monotonic()
        self._meter = Meter()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="reward-dispatch", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------ the trainer's
    # thread

    @property
    def fingerprint(self) -> str:
        """The generator's fingerprint; waits for the first reward rank to be ready."""
        with self._changed:
            while not (ready := self._first_ready()):
                self._check()
                self._changed.wait(0.5)
            return ready.fingerprint

    def begin(self, iteration: int) -> None:
        """Nothing to do."""

    def submit(self, requests: Sequence[ImageRequest]) -> list[Ticket]:
        """Hand the requests to the dispatcher; never blocks."""
        tickets = [Ticket(request) for request in requests]
        with self._changed:
            self._check()
            self._queue.extend(tickets)
            self._changed.notify_all()
        return tickets

    def flush(self) -> None:
        """Send the part-filled batch, too."""
        with self._changed:
            self._due = len(self._queue)
            self._changed.notify_all()

    def poll(self) -> None:
        """Raise RewardError if something has failed meanwhile."""
        with self._changed:
            self._check()

    def collect(self, tickets: Sequence[Ticket]) -> list[Measurement]:
        """Wait for `tickets`; RewardError names the rank and the prompt at fault."""
        start = time.perf_counter()
        with self._changed:
            if any(ticket.measurement is None for ticket in tickets):
                self._due = len(self._queue)
                self._changed.notify_all()
            while any(ticket.measurement is None for ticket in tickets):
                self._check()
                self._changed.wait(0.5)
        self.waited_s += time.perf_counter() - start
        return [measured(ticket) for ticket in tickets]

    def metrics(self) -> dict[str, float]:
        """Figures since the last call, with `reward/busy_rank_R`, the share of its time reward rank R
        measured (for all).
        """
        with self._changed:
            figures = self._meter.read(
                self.images, self.waited_s, sum(peer.truncated for peer in self._peers.values())
            )
            for peer in sorted(self._peers.values(), key=lambda peer: peer.rank):
                busy, alive = peer.busy_s - peer.read[0], peer.alive_s - peer.read[1]
                peer.read = (peer.busy_s, peer.alive_s)
                figures[f"reward/busy_rank_{peer.rank}"] = busy / alive if alive > 0 else 0.0
            return figures

    def committed(self, step: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Let the reward ranks go, once what is in flight is back. After an error, only end the thread."""
        with self._changed:
            self._closing = True
            self._queue.clear()
            self._changed.notify_all()
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise RuntimeError("the reward client is closed")

    # -------------------------------------------------------------------------------------- the dispatcher's
    # thread

    def _run(self) -> None:
        try:
            while not self._finished():
                with self._changed:
                    moved = self._step()
                    if not moved and not self._expects_messages():
                        self._changed.wait(0.5)
                if not moved:
                    time.sleep(POLL_S)
            for rank in self._peers:
                self._mailbox.send(rank, Stop())
            self._mailbox.drain()
        except Exception as error:  # whatever it is, the trainer must hear of it
            with self._changed:
                self._error = (
                    error
                    if isinstance(error, RewardError)
                    else RewardError(f"the reward dispatcher failed: {error!r}")
                )
                self._error.__cause__ = error.__cause__
                self._changed.notify_all()

    def _finished(self) -> bool:
        """Closing, and nothing can arrive any more."""
        return self._closing and all(peer.ready and not peer.tasks for peer in self._peers.values())

    def _expects_messages(self) -> bool:
        return not self._mailbox.settle() or any(
            peer.tasks or not peer.ready for peer in self._peers.values()
        )

    def _step(self) -> bool:
        """Take in and send out what can be; whether anything moved."""
        moved = False
        while (arrived := self._mailbox.receive()) is not None:
            self._take(*arrived)
            moved = True
        while self._dispatch():
            moved = True
        self._mailbox.settle()
        self._check_deadlines()
        return moved

    def _take(self, rank: int, message: Message) -> None:
        peer = self._peers[rank]
        peer.since = time.monotonic()
        if isinstance(message, Result):
            for ticket, measurement in zip(peer.tasks.pop(message.id), message.measurements, strict=True):
                ticket.measurement = measurement
            self.images += len(message.measurements)
            peer.truncated += sum(m.truncated for m in message.measurements)
            peer.busy_s, peer.alive_s = message.busy_s, message.alive_s
        elif isinstance(message, Failure):
            raise RewardError(f"reward rank {rank} failed on the prompt {message.prompt!r}: {message.detail}")
        elif isinstance(message, Ready):
            first = self._first_ready()
            if first is not None and first != message:
                raise RewardError(
                    f"reward rank {rank} has another generator than the first one ({message} "
                    f"against {first}); "
                    "all reward ranks need the same config, model files and kind of device"
                )
            peer.ready = message
        else:
            raise RewardError(
                f"reward rank {rank} sent a {type(message).__name__}, which only training ranks send"
            )
        self._changed.notify_all()

    def _dispatch(self) -> bool:
        """Send one task, if there is one and a reward rank has room."""
        free = [peer for peer in self._peers.values() if peer.ready and len(peer.tasks) < self.window]
        if not free or not self._queue:
            return False
        peer = min(free, key=lambda peer: len(peer.tasks))  # the first of equals
        assert peer.ready is not None
        if len(self._queue) < peer.ready.batch and not self._due:
            return False
        tickets = [self._queue.popleft() for _ in range(min(peer.ready.batch, len(self._queue)))]
        self._due = max(0, self._due - len(tickets))
        if not peer.tasks:
            peer.since = time.monotonic()
        peer.tasks[self._next_id] = tickets
        self._mailbox.send(peer.rank, Task(self._next_id, tuple(ticket.request for ticket in tickets)))
        self._next_id += 1
        return True

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for peer in self._peers.values():
            if peer.tasks and now - peer.since > self.deadline_s:
                oldest = peer.tasks[min(peer.tasks)][0].request
                raise RewardError(
                    f"reward rank {peer.rank} has been silent for {self.deadline_s:g} s "
                    "(reward.deadline_s) with the batch "
                    f"of the prompt {oldest.prompt!r}; look into its log, or raise the deadline if "
                    "it is only slow"
                )
            if not peer.ready and now - self._started > self.startup_s:
                raise RewardError(
                    f"reward rank {peer.rank} has not loaded its models within {self.startup_s:g} "
                    "s; look into its log"
                )

    def _first_ready(self) -> Ready | None:
        return next((peer.ready for peer in self._peers.values() if peer.ready), None)


def _check_threads() -> None:
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise UserError(
            "this MPI library was initialised without MPI_THREAD_MULTIPLE, which the exchange with "
            "reward ranks needs; "
            "leave mpi4py.rc.thread_level at `multiple` and use an MPI built with threads"
        )
