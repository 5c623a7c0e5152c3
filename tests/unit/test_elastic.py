"""The universal form of a checkpoint as files: there or not, whatever breaks. What is in it is checked in
`tests/distributed/test_elastic.py`."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from promptist.cluster import checkpoint
from promptist.cluster.checkpoint import find_latest, keep_last, path_of, save
from promptist.errors import UserError
from promptist.models import elastic
from tests.conftest import run_command
from tests.unit.test_checkpoint import content, damage, die_at


def store(folder: Path, step: int = 20) -> Path:
    """A checkpoint of one rank under ZeRO 0, whose conversion is a copy: no DeepSpeed needed."""

    def write(path: Path) -> None:
        for engine in ("policy", "value"):
            (path / engine / elastic.TAG).mkdir(parents=True)
            (path / engine / elastic.TAG / "mp_rank_00_model_states.pt").write_bytes(content(step))
        (path / "value" / "shard_0.pt").write_bytes(content(step))

    return save(folder, step, write, state={"best": 3}, rank_state={"row": step})


def shards(path: Path) -> Path:
    """The same with a rank's shard of the policy's optimiser: DeepSpeed has something to do."""

    def write(folder: Path) -> None:
        (folder / "policy" / elastic.TAG).mkdir(parents=True)
        (folder / "policy" / elastic.TAG / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"not torch's")

    return save(path, 20, write)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_conversion_stands_beside_its_checkpoint_and_is_made_once(tmp_path: Path) -> None:
    path = store(tmp_path)
    before = all_bytes(path)
    assert elastic.universal_of(path) is None
    found = elastic.convert(path)
    assert found == tmp_path / "step_000020.universal" == elastic.universal_of(path)
    assert all_bytes(path) == before
    assert checkpoint.check(found) == found
    copied = all_bytes(found)
    assert copied.pop("complete.json") != before.pop("complete.json")
    assert copied == before
    assert (checkpoint.read_state(found), checkpoint.read_rank_state(found, 0)) == (
        {"best": 3, "step": 20},
        {"row": 20},
    )
    made = found.stat().st_mtime_ns
    assert elastic.convert(path) == found and found.stat().st_mtime_ns == made
    assert find_latest(tmp_path) == path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000020", "step_000020.universal"]


def test_who_loads_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert elastic.find_to_resume(tmp_path, 3, "ppo") is None
    path = store(tmp_path)
    assert elastic.find_to_resume(tmp_path, 1, "ppo") == path
    sentence = (
        "step_000020 was written by 1 training ranks and this run has 3: convert it with "
        "`python -m promptist.cluster.prepare ppo CONFIG --train-ranks 3`"
    )
    with pytest.raises(UserError, match=sentence):
        elastic.find_to_resume(tmp_path, 3, "ppo")
    found = elastic.convert(path)
    assert elastic.find_to_resume(tmp_path, 3, "ppo") == found
    assert elastic.find_to_resume(tmp_path, 1, "ppo") == path  # the same number of ranks again: bit by bit

    damage(found, "short")
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=sentence):
        elastic.find_to_resume(tmp_path, 3, "ppo")
    assert "step_000020.universal is skipped: value/shard_0.pt has" in caplog.text
    assert elastic.find_to_resume(tmp_path, 1, "ppo") == path
    assert elastic.convert(path) == elastic.find_to_resume(tmp_path, 3, "ppo") == found


@pytest.mark.parametrize("how", ["missing", "short", "flipped", "unfinished", "torn"])
def test_a_damaged_conversion_is_none(tmp_path: Path, how: str) -> None:
    path = store(tmp_path)
    found = elastic.convert(path)
    damage(found, how)
    assert elastic.universal_of(path) is None
    assert elastic.convert(path) == found == elastic.universal_of(path)


def test_a_conversion_of_an_earlier_step_20_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = elastic.convert(store(tmp_path))
    shutil.rmtree(path_of(tmp_path, 20))
    path = save(tmp_path, 20, lambda folder: (folder / "policy").mkdir(), state={"best": 4})
    with caplog.at_level(logging.WARNING):
        assert elastic.universal_of(path) is None
    assert "it was made from another step_000020" in caplog.text
    assert checkpoint.read_state(elastic.convert(path))["best"] == 4
    assert found == elastic.universal_of(path)


def test_a_conversion_goes_with_its_checkpoint(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        elastic.convert(store(tmp_path, step))
    assert [p.name for p in keep_last(tmp_path, 2)] == ["step_000010"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_000020", "step_000020.universal", "step_000030", "step_000030.universal",
    ]  # fmt: skip


def test_death_at_any_moment_leaves_all_of_a_conversion_or_none(tmp_path: Path) -> None:
    """Killed before each single change on disk, over a damaged conversion; the checkpoint stays as it was."""
    template = tmp_path / "template"
    damage(elastic.convert(store(template)), "short")
    before = all_bytes(path_of(template, 20))
    found, n = [], 0
    while True:
        n += 1
        folder = tmp_path / f"death_{n}"
        shutil.copytree(template, folder)
        path = path_of(folder, 20)
        died = die_at(n, folder, lambda path=path: elastic.convert(path))
        assert all_bytes(path) == before and find_latest(folder) == path
        found.append(elastic.universal_of(path) is not None)
        assert elastic.universal_of(elastic.convert(path).with_suffix("")) is not None
        keep_last(folder, 2)  # clears away what the dead one left
        assert sorted(p.name for p in folder.iterdir()) == ["step_000020", "step_000020.universal"]
        if not died:
            break
    assert found == sorted(found) and not found[0] and found[-1]
    assert n > 10


@pytest.mark.parametrize(
    ("ending", "kind", "sentence"),
    [
        ((1, "OSError: [Errno 28] No space left on device"), UserError, "the disk is full: checkpoint step_000020.u"),
        ((1, "OSError: [Errno 122] Disk quota exceeded"), UserError, "the disk is full: checkpoint step_000020.u"),
        ((1, "RuntimeError: PytorchStreamWriter failed writing file data/0"), UserError, "the disk is full"),
        ((1, "RuntimeError: basic_ios::clear: iostream error"), UserError, "the disk is full"),  # seen on a full tmpfs
        ((-9, ""), UserError, "was killed, most likely for want of memory"),
        ((1, "concurrent.futures.process.BrokenProcessPool: A process"), UserError, "want of memory"),
        ((1, "KeyError: 'exp_avg'"), RuntimeError, "step_000020 could not be converted: KeyError: 'exp_avg'"),
    ],
)
def test_a_conversion_that_fails_leaves_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: tuple[int, str], kind: type[Exception], sentence: str
) -> None:
    path = shards(tmp_path)
    before = all_bytes(path)

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        half = Path(command[4]) / "policy" / elastic.TAG
        half.mkdir(parents=True)
        (half / "half").write_bytes(b"x")
        return subprocess.CompletedProcess(command, *ending)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(kind, match=sentence):
        elastic.convert(path)
    assert all_bytes(path) == before and elastic.universal_of(path) is None
    assert [p.name for p in tmp_path.iterdir()] == ["step_000020"]


def test_what_deepspeed_says_stays_inside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A shard that is no shard: the real conversion fails, and its last words are in the error alone."""
    path = shards(tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)step_000020 could not be converted: .*Error"):
        elastic.convert(path)
    assert capfd.readouterr() == ("", "")
    assert elastic.universal_of(path) is None


def test_the_module_is_light() -> None:
    """It is imported before a job starts, where nothing of MPI or CUDA may be up and seconds count."""
    heavy = "('torch', 'deepspeed', 'mpi4py')"
    code = f"import sys, promptist.models.elastic; print([m for m in {heavy} if m in sys.modules])"
    assert run_command([sys.executable, "-c", code], 60, env=dict(os.environ)).ok().stdout.strip() == "[]"
