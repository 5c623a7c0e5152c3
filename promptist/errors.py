"""Errors a user can fix, and the one way a job's process ends.

Exit codes: 0 done, 64 (`EXIT_BAD_INPUT`) bad input, never requeued, 75 (`EXIT_STOPPED`) stopped by a signal
after saving (the same command goes on), 1 anything else, 130 interrupted.

A scheduler does not always see them: an abort of the MPI world ends the other ranks by signals, and the launcher
reports the worst. So where the environment variable `PROMPTIST_ENDING` names a file, the first rank that does not end
with 0 writes code and sentence there; `promptist/cluster/finish.py` reads them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence

EXIT_BAD_INPUT = 64
EXIT_STOPPED = 75  # sysexits.h: a temporary failure, try again
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130

# Bad input is mostly seen by all ranks at the same moment. The others give rank 0 this head start; its abort
# ends them, and the user reads the sentence once.
_HEAD_START_S = 3.0
# An abort may outrun what was just written: mpirun stops forwarding the output of a world that it tears down (seen on
# a busy machine). The last words get this long to arrive.
_LAST_WORDS_S = 0.5

ENDING = "PROMPTIST_ENDING"
"""Environment variable: the file that takes the code and sentence of a bad end."""


class UserError(Exception):
    """Bad input: one sentence that names the thing and the fix."""


def run_main(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Call `main(argv)` and turn its end into an exit code: `sys.exit(run_main(main))`.

    `argv` is `sys.argv[1:]` by default. `UserError` becomes `error: <sentence>` on stderr and code 64; any
    other exception a traceback and code 1. Where MPI is already initialised with more than one rank, a bad
    end aborts the whole world: the other ranks would wait for this one for ever. `EXIT_STOPPED` is agreed on by all
    ranks and aborts nothing.
    """
    sentence = ""
    try:
        code = main(list(sys.argv[1:] if argv is None else argv)) or 0
    except UserError as error:
        sentence = str(error)
        logging.getLogger(__name__).debug("bad input", exc_info=True)
        code = EXIT_BAD_INPUT
        if _mpi_rank() > 0:
            time.sleep(_HEAD_START_S)
        print(f"error: {error}", file=sys.stderr, flush=True)
    except SystemExit as leave:
        code = _exit_code(leave)
        sentence = leave.code if isinstance(leave.code, str) else ""
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
        print("interrupted", file=sys.stderr, flush=True)
    except Exception as error:
        code, sentence = EXIT_FAILURE, f"{type(error).__name__}: {error}"
        if is_disk_full(error):  # would be full the next time, too
            code = EXIT_BAD_INPUT
            sentence = f"the disk is full ({error}): free some space and run the same command again"
            print(f"error: {sentence}", file=sys.stderr, flush=True)
        logging.getLogger(__name__).debug("failed", exc_info=True)
        traceback.print_exc()
    if code != 0:
        record_ending(code, sentence)
    if code == EXIT_STOPPED:
        _leave_world()
    elif code != 0:
        _abort_world(code)
    return code


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk; also when a library wraps it (torch, safetensors)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if not isinstance(error, UserError) and re.search(
            r"No space left|Disk quota exceeded|PytorchStreamWriter failed writing|iostream error", str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def record_ending(code: int, sentence: str) -> None:
    """Write how this process ends to the file `PROMPTIST_ENDING` names, unless another rank was first."""
    path = os.environ.get(ENDING)
    if not path:
        return
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump({"code": code, "sentence": sentence}, file)
    except FileExistsError:
        pass
    except OSError as error:
        # A full disk must not hide the reason for which the process ends: an empty file often still finds room.
        print(f"{path} could not be written ({error.strerror})", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            open(f"{path}.{code}", "x").close()


def _exit_code(leave: SystemExit) -> int:
    """Python's own reading of `SystemExit.code`."""
    if leave.code is None or isinstance(leave.code, int):
        return leave.code or 0
    print(leave.code, file=sys.stderr, flush=True)
    return EXIT_FAILURE


def _mpi_rank() -> int:
    """World rank, 0 where MPI has not been initialised."""
    mpi = _initialised_mpi()
    return mpi.COMM_WORLD.Get_rank() if mpi else 0


def _abort_world(code: int) -> None:
    mpi = _initialised_mpi()
    if mpi and mpi.COMM_WORLD.Get_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        logging.shutdown()
        time.sleep(_LAST_WORDS_S)
        mpi.COMM_WORLD.Abort(code)


def _leave_world() -> None:
    """Finalise MPI: `python -m mpi4py` would abort the world of a process that ends with a code of its own."""
    mpi = _initialised_mpi()
    if mpi:
        mpi.Finalize()


def _initialised_mpi():  # type: ignore[no-untyped-def]
    """`mpi4py.MPI` if this process uses it already, else None: importing it here would initialise it."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return None
    return mpi
