"""Checkpoints: there or not, whatever breaks, and wherever the process dies."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from promptist.cluster import checkpoint
from promptist.cluster.checkpoint import CheckpointConfig, find_latest, find_to_resume, keep_last, save
from promptist.errors import UserError

MUTATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def content(step: int, rank: int = 0) -> bytes:
    return f"weights of step {step}, rank {rank}".encode() * 50


def write_rank(step: int, rank: int = 0) -> Any:
    def write(path: Path) -> None:
        for engine in ("policy", "value"):
            (path / engine).mkdir(exist_ok=True)
            (path / engine / f"shard_{rank}.pt").write_bytes(content(step, rank))

    return write


def store(folder: Path, step: int) -> Path:
    return save(folder, step, write_rank(step), state={"kl": 0.2}, rank_state={"row": step})


def test_round_trip(tmp_path: Path) -> None:
    path = store(tmp_path / "checkpoints", 200)
    assert path == tmp_path / "checkpoints" / "step_000200"
    assert find_latest(path.parent) == path == checkpoint.check(path)
    assert checkpoint.read_state(path) == {"kl": 0.2, "step": 200}
    assert checkpoint.read_rank_state(path, 0) == {"row": 200}
    assert checkpoint.world_size(path) == 1
    assert (path / "policy" / "shard_0.pt").read_bytes() == content(200)
    files = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    record = json.loads((path / "complete.json").read_text())
    assert set(record["files"]) == files - {"complete.json"}
    assert files == {
        "policy/shard_0.pt",
        "value/shard_0.pt",
        "rank_00000.json",
        "state.json",
        "complete.json",
    }
    assert [p.name for p in path.parent.iterdir()] == ["step_000200"]


def test_several_ranks(tmp_path: Path) -> None:
    """Three ranks in threads; one is slow, so that a missing barrier leaves its file out."""
    barrier, slow = threading.Barrier(3, timeout=20), threading.Event()
    problems: list[BaseException] = []

    def wait() -> None:
        barrier.wait()

    def rank_main(rank: int) -> None:
        def write(path: Path) -> None:
            if rank == 2:
                slow.wait(0.3)
            write_rank(7, rank)(path)

        try:
            save(tmp_path, 7, write, rank=rank, world_size=3, barrier=wait, rank_state={"r": rank})
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    path = find_latest(tmp_path)
    assert path is not None
    assert checkpoint.world_size(path) == 3
    assert [checkpoint.read_rank_state(path, r)["r"] for r in range(3)] == [0, 1, 2]
    assert len(json.loads((path / "complete.json").read_text())["files"]) == 2 * 3 + 3 + 1


def damage(path: Path, how: str) -> None:
    shard = path / "value" / "shard_0.pt"
    if how == "missing":
        shard.unlink()
    elif how == "short":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif how == "flipped":
        shard.write_bytes(b"X" + shard.read_bytes()[1:])
    elif how == "unfinished":
        (path / "complete.json").unlink()
    elif how == "torn":
        (path / "complete.json").write_text("{")
    elif how == "newer":
        record = json.loads((path / "complete.json").read_text())
        (path / "complete.json").write_text(json.dumps({**record, "format": 99}))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing", "value/shard_0.pt is missing"),
        ("short", "bytes instead of"),
        ("flipped", "does not match its checksum"),
        ("unfinished", "has no complete.json"),
        ("torn", "complete.json cannot be read"),
        ("newer", "its format is 99"),
    ],
)
def test_damaged_ones_are_skipped_with_a_sentence_and_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, sentence: str
) -> None:
    first, second = store(tmp_path, 10), store(tmp_path, 20)
    damage(second, how)
    with caplog.at_level(logging.WARNING):
        assert find_latest(tmp_path) == first
    assert sentence in caplog.text
    assert "step_000020 is skipped" in caplog.text
    with pytest.raises(UserError, match="step_000020 is damaged"):
        checkpoint.check(second)
    damage_unseen_by_size = how == "flipped"
    assert (find_latest(tmp_path, hashes=False) == second) == damage_unseen_by_size


def test_a_run_does_not_start_afresh_beside_damaged_checkpoints(tmp_path: Path) -> None:
    assert find_to_resume(tmp_path) is None
    (tmp_path / "step_000030.tmp").mkdir()  # killed while it wrote its first: nothing was lost
    assert find_to_resume(tmp_path) is None
    first, second = store(tmp_path, 10), store(tmp_path, 20)
    damage(second, "flipped")
    assert find_to_resume(tmp_path) == first
    damage(first, "short")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact \(step_000020: the content of .* checksum\)"):
        find_to_resume(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    assert find_latest(tmp_path / "none") is None
    (tmp_path / "step_000010.tmp").mkdir()
    (tmp_path / "notes.txt").touch()
    assert find_latest(tmp_path) is None
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.check(tmp_path / "step_000001")


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    store(tmp_path, 999_999)
    newest = store(tmp_path, 1_000_000)
    assert find_latest(tmp_path) == newest


def test_saving_an_intact_step_again_changes_nothing(tmp_path: Path) -> None:
    path = store(tmp_path, 5)

    def must_not_run(folder: Path) -> None:
        raise AssertionError

    assert save(tmp_path, 5, must_not_run) == path


@pytest.mark.parametrize("how", ["short", "flipped"])
def test_saving_a_damaged_step_again_replaces_it(tmp_path: Path, how: str) -> None:
    damage(store(tmp_path, 5), how)
    assert find_latest(tmp_path) is None
    assert find_latest(store(tmp_path, 5).parent) == tmp_path / "step_000005"
    assert [p.name for p in tmp_path.iterdir()] == ["step_000005"]


def test_retention(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        store(tmp_path, step)
    damage(tmp_path / "step_000050", "unfinished")
    assert [p.name for p in keep_last(tmp_path, 2, best=10)] == ["step_000020"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_000010", "step_000030", "step_000040", "step_000050",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError(
            "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"
        ),
        RuntimeError("basic_ios::clear: iostream error"),  # torch.save on a full tmpfs
    ],
)
def test_full_disk_is_one_sentence_and_keeps_the_earlier_one(tmp_path: Path, error: Exception) -> None:
    first = store(tmp_path, 10)

    def fill(path: Path) -> None:
        (path / "half").write_bytes(b"x")
        raise error

    with pytest.raises(UserError, match="the disk is full: checkpoint step_000020 could not be written"):
        save(tmp_path, 20, fill)
    assert find_latest(tmp_path) == first
    assert find_latest(store(tmp_path, 20).parent) == tmp_path / "step_000020"
    assert not list(tmp_path.glob("*.tmp"))


def test_other_errors_stay_themselves(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        save(tmp_path, 1, fail)


def die_at(n: int, folder: Path, then: Any) -> bool:
    """Run `then` in a child that dies like by SIGKILL just before its n-th change below `folder`; whether it
    died.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in MUTATIONS and str(args[0]).startswith(str(folder)):
                seen += 1
                if seen == n:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            then()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_death_at_any_moment_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    """Save step 30 over a damaged step 30, then drop step 10: killed before each single change on disk."""

    def work(folder: Path) -> None:
        store(folder, 30)
        keep_last(folder, 1)

    template = tmp_path / "template"
    store(template, 10)
    damage(store(template, 30), "short")
    found, n = [], 0
    while True:
        n += 1
        folder = tmp_path / f"death_{n}"
        shutil.copytree(template, folder)
        died = die_at(n, folder, lambda folder=folder: work(folder))
        latest = find_latest(folder)
        assert latest is not None, f"nothing left after death {n}"
        step = checkpoint.step_of(latest)
        assert (latest / "policy" / "shard_0.pt").read_bytes() == content(step)
        found.append(step)
        work(folder)  # and the next attempt gets through
        assert [p.name for p in folder.iterdir()] == ["step_000030"]
        if not died:
            break
    assert found == sorted(found)  # one commit point: once the new one is there it stays
    assert found[0] == 10
    assert found[-1] == 30
    assert n > 20


def test_everything_is_synced_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def watched_sync(descriptor: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def watched_rename(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "rename", watched_rename)
    path = store(tmp_path, 1)
    at = events.index("rename")
    temporary = f"{path}.tmp"
    expected = {f"{temporary}/{p.relative_to(path)}" for p in path.rglob("*")} | {temporary}
    assert set(events[:at]) == expected
    assert events[at + 1 :] == [str(tmp_path)]


def test_bad_configs() -> None:
    with pytest.raises(UserError, match=r"checkpoint\.every must be at least 1, not 0"):
        CheckpointConfig(every=0)
    with pytest.raises(UserError, match=r"checkpoint\.keep_last must be at least 2, not 1"):
        CheckpointConfig(keep_last=1)
    with pytest.raises(UserError, match="must look like step_000200"):
        checkpoint.step_of(Path("best"))
