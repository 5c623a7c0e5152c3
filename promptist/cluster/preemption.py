"""Being told to stop: a signal sets a flag, the training ranks agree on it between chunks of work.

The handler does nothing else: saving is collective and must not start at an arbitrary bytecode. USR2 is what
the scheduler is asked to send ahead of the time limit (USR1 belongs to NCCL); SIGTERM comes with preemption
and `scancel`.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Stopped(Exception):
    """The training ranks have agreed to stop where nothing is half done: save, and leave."""


class Preemption:
    """The flag of this process and the agreement about it."""

    def __init__(self) -> None:
        self.requested: str | None = None  # name of the signal
        self._pid = os.getpid()
        self._agreed = False

    def agreed(self, all_reduce_max: Callable[[int], int]) -> bool:
        """Whether any training rank was told to stop. Collective: every training rank calls it at the same
        place.

        `all_reduce_max(flag)` returns the greatest flag of all of them. Once true it stays true.
        """
        if not self._agreed:
            self._agreed = all_reduce_max(int(self.requested is not None)) > 0
        return self._agreed

    def check(self, all_reduce_max: Callable[[int], int]) -> None:
        """Raise `Stopped` on all training ranks if any was told to stop (collective, as `agreed`)."""
        if self.agreed(all_reduce_max):
            raise Stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # The scheduler signals every process of the step; forked helpers inherit the handler but must not
        # act.
        if os.getpid() != self._pid:
            return
        self.requested = signal.Signals(number).name


def install() -> Preemption:
    """Catch USR2 and SIGTERM from now on (main thread only)."""
    preemption = Preemption()
    for number in SIGNALS:
        signal.signal(number, preemption._handle)
    return preemption
