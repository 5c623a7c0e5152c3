"""Checkpoints that are either there or not.

    checkpoints/step_000200/{policy/ value/ rank_00000.json ... state.json complete.json}

All training ranks write into `step_000200.tmp`, every file is hashed and synced, the first rank writes
`complete.json` (world size, files, sizes, SHA-256) and renames the folder: that rename is the only commit
point. What is found at start is the newest folder whose `complete.json` holds true; nothing else ever stores
a path to a checkpoint.

Beside it there may be `step_000200.universal`, the same state in a form for any number of training ranks
(`promptist/models/elastic.py`), committed in the same way. It is made from the checkpoint, never instead of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptist.errors import UserError, is_disk_full

log = logging.getLogger(__name__)

FORMAT = 1
COMPLETE, STATE = "complete.json", "state.json"
UNIVERSAL = ".universal"
_STEP = re.compile(r"step_(\d{6,})")
_SUMS = "sums_{rank:05d}.json"
_CHUNK = 1 << 22
_PASSING = (errno.ESTALE, errno.ETIMEDOUT)  # of a network file system: nothing is wrong with the checkpoint


@dataclass
class CheckpointConfig:
    """Save after every `every` steps; keep the newest `keep_last` and the best."""

    every: int = 10
    keep_last: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.every, int) and self.every < 1:
            raise UserError(f"checkpoint.every must be at least 1, not {self.every}")
        if isinstance(self.keep_last, int) and self.keep_last < 2:
            raise UserError(
                f"checkpoint.keep_last must be at least 2, not {self.keep_last}: the newest may be damaged"
            )


def alone() -> None:
    """The barrier of one process."""


def save(
    folder: Path,
    step: int,
    write: Callable[[Path], None],
    *,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = alone,
    state: dict[str, Any] | None = None,
    rank_state: dict[str, Any] | None = None,
) -> Path:
    """Write checkpoint `step` below `folder`; returns its final path. Collective over the training ranks.

    `write(path)` writes this rank's files (engines, rollouts) below `path`, which exists. `state` (JSON, from
    rank 0) becomes `state.json`, `rank_state` this rank's `rank_NNNNN.json`. A step that is there and intact
    is left alone. Raises UserError on a full disk; whatever fails, earlier checkpoints are untouched.
    """
    final = path_of(folder, step)
    temporary = _temporary(final)
    present = final.exists() and flaw(final) is None
    barrier()  # all have looked before rank 0 touches anything
    if present:
        return final
    with _full_disk_told(final):
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(folder)
            temporary.mkdir()
        barrier()
        write(temporary)
        if rank_state is not None:
            _write_json(temporary / f"rank_{rank:05d}.json", rank_state)
        if rank == 0:
            _write_json(temporary / STATE, {**(state or {}), "step": step})
        barrier()  # all files are there
        files = _files(temporary)
        barrier()  # all have the same list, before the first sums file joins it
        sums = {name: _sync_and_hash(temporary / name) for name in files[rank::world_size]}
        _write_json(temporary / _SUMS.format(rank=rank), sums)
        barrier()
        if rank == 0:
            _commit(temporary, final, _collect_sums(temporary, world_size), step=step, world_size=world_size)
        barrier()
    return final


def save_universal(path: Path, write: Callable[[Path], None]) -> Path:
    """Commit `step_000200.universal` of the checkpoint `path`, as `save` commits; returns its path. In one process.

    `write(folder)` writes all its files below `folder`, which exists; `path` itself is only read. Raises UserError
    on a full disk.
    """
    final = path.with_name(path.name + UNIVERSAL)
    temporary = _temporary(final)
    with _full_disk_told(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            write(temporary)
            files = {name: _sync_and_hash(temporary / name) for name in _files(temporary)}
            _commit(
                temporary,
                final,
                files,
                step=step_of(path),
                world_size=world_size(path),
                source=_hash(path / COMPLETE),
            )
        except BaseException:
            # A whole model's worth of disk space: not left lying until the next save.
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


def find_universal(path: Path) -> Path | None:
    """The intact `step_000200.universal` that was made from this very checkpoint `path`, else None.

    A damaged one, or one of an earlier step 200, is skipped with a sentence in the log.
    """
    found = path.with_name(path.name + UNIVERSAL)
    if not found.is_dir():
        return None
    reason = flaw(found)
    if reason is None and _read_json(found / COMPLETE).get("source") != _hash(path / COMPLETE):
        reason = f"it was made from another {path.name}"
    if reason is None:
        return found
    log.warning("%s is skipped: %s", found, reason)
    return None


def find_latest(folder: Path, hashes: bool = True) -> Path | None:
    """The newest intact checkpoint below `folder`, None if there is none. (Call on one rank and share the
    answer.)

    Unfinished and damaged ones are skipped, each with a sentence in the log. Sizes are always compared,
    contents with `hashes`.
    """
    for path in sorted(_steps(folder), key=step_of, reverse=True):
        reason = flaw(path, hashes)
        if reason is None:
            return path
        log.warning("checkpoint %s is skipped: %s", path, reason)
    return None


def find_to_resume(folder: Path) -> Path | None:
    """As `find_latest`, for a run that goes on: None only where nothing was ever committed.

    Raises UserError where checkpoints are there and none is intact: starting again from nothing would throw away
    what the run has logged.
    """
    found = find_latest(folder)
    if found is None and (damaged := list(_steps(folder))):
        newest = max(damaged, key=step_of)
        raise UserError(
            f"no checkpoint in {folder} is intact ({newest.name}: {flaw(newest)}): put back a copy of one, or delete "
            "the run folder to start afresh"
        )
    return found


def check(path: Path, hashes: bool = True) -> Path:
    """`path`, if it is an intact checkpoint; else UserError saying what is wrong with it."""
    if not path.is_dir():
        raise UserError(f"the checkpoint {path} does not exist")
    reason = flaw(path, hashes)
    if reason is not None:
        raise UserError(f"the checkpoint {path} is damaged: {reason}; name another one")
    return path


def flaw(path: Path, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint, None if nothing is."""
    try:
        record = json.loads((path / COMPLETE).read_text("utf-8"))
        files, version = dict(record["files"]), record["format"]
    except FileNotFoundError:
        return f"it has no {COMPLETE}, so it was never finished"
    except OSError as error:
        if error.errno in _PASSING:
            raise
        return f"its {COMPLETE} cannot be read ({error})"
    except (ValueError, KeyError, TypeError) as error:
        return f"its {COMPLETE} cannot be read ({error})"
    if version != FORMAT:
        return f"its format is {version}, this version reads {FORMAT}"
    for name, expected in files.items():
        try:
            size = (path / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if size != expected["size"]:
            return f"{name} has {size} bytes instead of {expected['size']}"
    if not hashes:
        return None
    # Tens of gigabytes at full size, while all GPUs wait; hashing lets go of the interpreter.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: _differs(path / name, files[name]), files)
        return next((reason for reason in found if reason), None)


def _differs(path: Path, expected: dict[str, Any]) -> str | None:
    try:
        same = _hash(path) == expected["sha256"]
    except OSError as error:
        if error.errno in _PASSING:
            raise
        return f"{path.name} cannot be read ({error.strerror})"
    return None if same else f"the content of {path.name} does not match its checksum"


def read_state(path: Path) -> dict[str, Any]:
    """`state.json`; its `step` is the number of finished steps."""
    return _read_json(path / STATE)


def read_rank_state(path: Path, rank: int) -> dict[str, Any]:
    """`rank_NNNNN.json` of a training rank."""
    return _read_json(path / f"rank_{rank:05d}.json")


def world_size(path: Path) -> int:
    """How many training ranks wrote the checkpoint."""
    return int(_read_json(path / COMPLETE)["world_size"])


def step_of(path: Path) -> int:
    """200 of `.../step_000200`."""
    match = _STEP.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path} is not a checkpoint folder: its name must look like step_000200")
    return int(match.group(1))


def path_of(folder: Path, step: int) -> Path:
    """`folder/step_000200` of 200."""
    return folder / f"step_{step:06d}"


def keep_last(folder: Path, k: int, best: int | None = None) -> list[Path]:
    """Delete all finished checkpoints but the newest `k` and that of step `best`; returns the deleted ones.

    A universal form goes with its checkpoint. Only complete ones count, so a damaged newest never pushes out an intact
    one. Call on one rank, after `save`.
    """
    complete = [p for p in sorted(_steps(folder), key=step_of, reverse=True) if flaw(p, hashes=False) is None]
    doomed = [p for p in complete[k:] if step_of(p) != best]
    for path in doomed:
        _remove(path)
    for path in folder.glob(f"step_*{UNIVERSAL}"):
        if not path.with_suffix("").exists():
            _remove(path)
    _remove_leftovers(folder)  # a crash during an earlier call may have left half a deletion
    return doomed


def _collect_sums(temporary: Path, ranks: int) -> dict[str, Any]:
    """Size and hash of every file, as the ranks found them."""
    files: dict[str, Any] = {}
    for rank in range(ranks):
        sums = temporary / _SUMS.format(rank=rank)
        files.update(_read_json(sums))
        sums.unlink()
    return files


def _commit(temporary: Path, final: Path, files: dict[str, Any], **record: Any) -> None:
    """Write `complete.json`, sync what is not yet synced and rename; `record` is what it says besides the files."""
    if sorted(files) != _files(temporary):
        raise RuntimeError(f"the files of {temporary} changed while they were hashed")
    _write_json(temporary / COMPLETE, {"format": FORMAT, **record, "files": dict(sorted(files.items()))})
    _sync(temporary / COMPLETE)
    for directory, _, _ in os.walk(temporary, topdown=False):
        _sync(Path(directory))
    if final.exists():  # damaged: an intact one was left alone
        _remove(final)
    os.rename(temporary, final)
    _sync(final.parent)


def _temporary(final: Path) -> Path:
    return final.with_name(final.name + ".tmp")


def _remove(path: Path) -> None:
    """Delete a folder so that a crash half-way leaves nothing that looks like a checkpoint."""
    aside = path.with_name(f"{path.name}.old.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
    shutil.rmtree(aside)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob("step_*.tmp"):
        shutil.rmtree(path)


def _steps(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (p for p in folder.iterdir() if _STEP.fullmatch(p.name) and p.is_dir())


def _files(root: Path) -> list[str]:
    """All files below `root`, as sorted relative POSIX paths."""
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def _sync_and_hash(path: Path) -> dict[str, Any]:
    _sync(path)
    return {"size": path.stat().st_size, "sha256": _hash(path)}


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"the checkpoint {path.parent} has no {path.name}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return value


@contextmanager
def _full_disk_told(final: Path) -> Iterator[None]:
    """A full disk while `final` is written becomes one sentence."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise UserError(
                f"the disk is full: checkpoint {final.name} could not be written to {final.parent}; earlier "
                "checkpoints are untouched, free some space and run the same command again"
            ) from error
        raise
