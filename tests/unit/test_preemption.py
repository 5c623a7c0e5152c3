"""Signals only set a flag; the ranks decide together."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from promptist.cluster import preemption


@pytest.fixture(autouse=True)
def restore_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
def test_signal_sets_the_flag(name: str) -> None:
    flag = preemption.install()
    assert flag.requested is None
    assert not flag.agreed(lambda mine: mine)
    os.kill(os.getpid(), signal.Signals[name])
    assert flag.requested == name
    assert flag.agreed(lambda mine: mine)


def test_usr1_is_left_to_nccl() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    preemption.install()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_one_rank_is_enough_and_it_stays_agreed() -> None:
    flag = preemption.install()
    sent: list[int] = []

    def others_say(value: int) -> preemption.Callable[[int], int]:
        return lambda mine: sent.append(mine) or max(mine, value)  # type: ignore[func-returns-value]

    assert not flag.agreed(others_say(0))
    assert flag.agreed(others_say(1))
    assert flag.agreed(others_say(0))
    assert sent == [0, 0]


def test_forked_helpers_do_not_act() -> None:
    flag = preemption.install()
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGUSR2)
        os._exit(0 if flag.requested is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
