"""Messages between ranks: msgpack bytes in MPI buffers, received by matched probe.

A blocking MPI call spins on a core, and reward work takes seconds, so nothing here blocks: `receive` looks
once, `send` keeps its buffer until MPI is done with it. Matched probes (`Improbe`) are safe beside other
threads that use MPI.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from promptist.reward.messages import Message, decode, encode

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

TAG = 20230
"""Every message of the reward service carries it; nothing else in the suite may."""
POLL_S = 0.002
"""Pause between two looks: far below a diffusion batch, far above a look."""


class Mailbox:
    """Non-blocking messages over a communicator."""

    def __init__(self, comm: Intracomm) -> None:
        self._comm = comm
        self._sending: list[tuple[Any, bytes]] = []

    def send(self, rank: int, message: Message) -> None:
        """Start sending `message` to world rank `rank`."""
        from mpi4py import MPI

        data = encode(message)
        self._sending.append((self._comm.Isend([data, MPI.BYTE], dest=rank, tag=TAG), data))

    def receive(self) -> tuple[int, Message] | None:
        """(sender, message) if one has arrived."""
        from mpi4py import MPI

        status = MPI.Status()
        found = self._comm.Improbe(source=MPI.ANY_SOURCE, tag=TAG, status=status)
        if found is None:
            return None
        data = bytearray(status.Get_count(MPI.BYTE))
        found.Recv([data, MPI.BYTE])
        return status.Get_source(), decode(data)

    def settle(self) -> bool:
        """Let go of buffers that are sent; whether all are."""
        self._sending = [(request, data) for request, data in self._sending if not request.Test()]
        return not self._sending

    def drain(self) -> None:
        """Wait, politely, until everything is sent."""
        while not self.settle():
            time.sleep(POLL_S)
