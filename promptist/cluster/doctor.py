"""`promptist doctor`: inside an allocation, looks at everything that a job of this config is going to need.

    srun --mpi=pmi2 -n 3 python -m mpi4py -m promptist.cli doctor configs/demo/ppo.yaml

The ranks take up the checks together, one after the other. Rank 0 prints a line per finding, equal ones of several
ranks once. A check that does not end is given up, and a rank that does not answer is left behind: nothing here waits
without a limit.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from promptist.cluster.checks import CHECKS, Check, Found, Patient
from promptist.cluster.launch import rendezvous
from promptist.cluster.logs import listed
from promptist.cluster.needs import load_job
from promptist.cluster.roles import World, join_world
from promptist.errors import EXIT_BAD_INPUT, UserError

_ANSWER, _GO_ON = 7001, 7002  # tags of messages to and from rank 0
_GRACE_S = 15.0
_ALONE_S = 60.0
_POLL_S = 0.01


@dataclass(frozen=True)
class Finding:
    """What a check found on a rank."""

    rank: int
    ok: bool
    text: str
    same: str = ""
    given_up: bool = False


def main(config: Path, overrides: Sequence[str], timeout_s: float = 300.0) -> int:
    """Print the findings; 0 where all is well, else 64. `timeout_s` bounds each check.

    UserError for a broken config, or ranks that cannot be given roles. Collective.
    """
    kind, job = load_job(config, list(overrides))
    world = join_world(getattr(job, "roles", None))
    patient = Patient(kind, job, world, Path(job.run.root) / job.run.name, _meeting(kind, world))
    world.barrier_all()  # they may have taken different times to get here
    _quiet()
    results: list[Finding] = []
    for number, check in enumerate(CHECKS):
        own = examine(check, patient, timeout_s) if check.concerns(patient) else None
        everyone = _exchange(world, number, own, timeout_s + _GRACE_S)
        if world.rank == 0:
            found = compare([finding for finding in everyone if finding is not None])
            for line in report(check, found, world):
                print(line, flush=True)
            results += found
    if world.rank > 0:
        return 0  # rank 0 says how it went
    failed = [finding for finding in results if not finding.ok]
    bad = f"{len(failed)} of {len(results)} findings {'is' if len(failed) == 1 else 'are'} not as needed"
    print(bad if failed else "all is well", flush=True)
    if any(finding.given_up for finding in failed):
        _leave(world)
    if failed and world.comm is not None:
        # Every rank is on its way out: an abort of the world, with what launchers say about it, is not needed.
        from mpi4py import MPI

        MPI.Finalize()
    return EXIT_BAD_INPUT if failed else 0


def examine(check: Check, patient: Patient, timeout_s: float) -> Finding:
    """Run one check, for at most `timeout_s`."""
    box: list[Finding] = []
    rank = patient.world.rank

    def run() -> None:
        try:
            found: Found = check.run(patient)
            box.append(Finding(rank, True, found.text, found.same))
        except UserError as error:
            box.append(Finding(rank, False, str(error)))
        except Exception as error:  # whatever torch, CUDA, a file system raises: it is what the doctor is looking for
            said = " ".join(str(error).split())[:400]
            box.append(Finding(rank, False, f"{type(error).__name__}: {said}"))

    thread = threading.Thread(target=run, name=check.name, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if box:
        return box[0]
    return Finding(rank, False, f"no end after {timeout_s:.0f} s: the job would hang here, too", given_up=True)


def compare(findings: Sequence[Finding]) -> list[Finding]:
    """With a finding more where ranks differ in what must be the same."""
    by_value: dict[str, list[int]] = {}
    for finding in findings:
        if finding.same:
            by_value.setdefault(finding.same, []).append(finding.rank)
    if len(by_value) < 2:
        return list(findings)
    groups = " / ".join(listed(ranks) for ranks in by_value.values())
    text = f"ranks {groups} do not have the same models or settings ({', '.join(v[:8] for v in by_value)})"
    return [*findings, Finding(min(ranks[0] for ranks in by_value.values()), False, text)]


def report(check: Check, findings: Sequence[Finding], world: World) -> list[str]:
    """One line per finding, those that say the same of several ranks as one."""
    merged: dict[tuple[bool, str], list[int]] = {}
    for finding in findings:
        merged.setdefault((finding.ok, finding.text), []).append(finding.rank)
    lines = []
    for (ok, text), ranks in merged.items():
        hosts = list(dict.fromkeys(world.hosts[rank] for rank in ranks))
        who = f"rank{'s' if len(ranks) > 1 else ''} {listed(sorted(ranks))} on {', '.join(hosts[:3])}"
        who += f" and {len(hosts) - 3} more" if len(hosts) > 3 else ""
        place = "" if world.size == 1 or check.everywhere else f"{who}: "
        lines.append(f"{'ok  ' if ok else 'FAIL'}  {check.name:11}  {place}{text}")
    return lines


def _exchange(world: World, number: int, own: Finding | None, deadline_s: float) -> list[Finding | None]:
    """All findings of check `number` on rank 0, where a rank that does not answer in time counts as failed; elsewhere
    waits until rank 0 has them."""
    if world.comm is None:
        return [own]
    from mpi4py import MPI

    comm, limit = world.comm, time.monotonic() + deadline_s
    if world.rank > 0:
        comm.isend((number, own), dest=0, tag=_ANSWER).wait()
        # Rank 0 may have to wait for another rank until that is given up, and have begun later than this one.
        while (message := comm.improbe(source=0, tag=_GO_ON)) is None:
            if time.monotonic() > limit + deadline_s + _ALONE_S:
                raise UserError(f"rank {world.rank}: rank 0 no longer answers")
            time.sleep(_POLL_S)
        message.recv()
        return [own]
    answers: dict[int, Finding | None] = {0: own}
    while len(answers) < world.size and time.monotonic() < limit:
        status = MPI.Status()
        message = comm.improbe(source=MPI.ANY_SOURCE, tag=_ANSWER, status=status)
        if message is None:
            time.sleep(_POLL_S)
            continue
        about, finding = message.recv()
        if about == number:  # else an answer that came too late
            answers[status.Get_source()] = finding
    for rank in range(1, world.size):
        if rank not in answers:
            text = f"no answer within {deadline_s:.0f} s"
            answers[rank] = Finding(rank, False, text, given_up=True)
        comm.isend(number, dest=rank, tag=_GO_ON).Free()
    return list(answers.values())


def _meeting(kind: str, world: World) -> dict[str, str] | None:
    """Where the training ranks find each other, agreed on now: checks may be given up, and must not speak MPI."""
    if kind == "evaluate" or not world.trains or world.group_size == 1:
        return None
    return rendezvous(world)


def _quiet() -> None:
    """Libraries speak of their own affairs on every rank; what goes wrong is in the findings."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("huggingface_hub", "diffusers", "open_clip", "promptist"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _leave(world: World) -> NoReturn:
    """End a process, or a world, in which something still hangs."""
    sys.stdout.flush()
    sys.stderr.flush()
    if world.comm is not None:
        time.sleep(0.5)  # the last lines are forwarded
        world.comm.Abort(EXIT_BAD_INPUT)
    os._exit(EXIT_BAD_INPUT)
