"""Going on with another number of training ranks: recorded rollouts and SFT steps give the losses of an undisturbed
run, and whole jobs, killed at two ranks, come to their end at one and at three.

Few starts of Python, each with many cases: loading torch and DeepSpeed takes longer than the work.
"""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from promptist.cluster import checkpoint
from promptist.models import elastic
from tests.conftest import Finished, Mpirun, run_command
from tests.distributed.test_sft import write_config
from tests.helpers_elastic import Replay
from tests.helpers_ppo import deterministic, make_tiny_job

pytestmark = pytest.mark.distributed

TIMEOUT_S = 600
"""Many times what the longest takes alone on two cores: machines are shared."""
SAVED, LAST = 2, 7
"""Iterations at which the checkpoint stands and the run ends: five updates (or SFT steps) are compared."""
STAGES, SFT_STAGE = (1, 3), 2
"""ZeRO stages of PPO, and of SFT."""
RANKS = (1, 3)
"""How many go on from what two ranks saved."""
TOLERANCE = 1e-5
"""Losses, float32."""

def steps(path: Path) -> list[list[float]]:
    """[loss, gradient norm, learning rate] of each recorded optimiser step."""
    found: list[list[float]] = json.loads(path.read_text("utf-8"))
    return found


def assert_same_steps(found: list[list[float]], expected: list[list[float]]) -> None:
    assert len(found) == len(expected) > 0
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a[0] == pytest.approx(b[0], abs=TOLERANCE), (i, found, expected)
        assert a[1] == pytest.approx(b[1], rel=1e-3, abs=TOLERANCE), (i, found, expected)
        assert a[2] == b[2], (i, found, expected)


def copy_run(runs: Path, name: str, new: str) -> None:
    """A run folder under another name, as far as it is."""
    shutil.copytree(runs / name, runs / new)
    config = runs / new / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(f"name: {name}", f"name: {new}"), encoding="utf-8")


class World:
    """Where things are."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.ppo = make_tiny_job(
            folder / "ppo",
            run={"name": "a"},
            checkpoint={"every": SAVED, "keep_last": 9},
            optimizer={"lr": 1e-2, "weight_decay": 0.1, "schedule": "linear", "warmup_steps": 3},
            ppo={"iterations": LAST, "batch": 12, "validate_every": 0},
            reward={"terms": {"slope": 20.0, "offset": 5.6, "images": 1, "bank": 4}},
            logging={"samples_every": 0},
        )
        (folder / "sft").mkdir()
        self.sft = write_config(
            folder / "sft",
            tokenizer,
            sft={"steps": LAST, "batch": 12},
            optimizer={"lr": 1e-2, "weight_decay": 0.1},
            checkpoint={"every": SAVED, "keep_last": 2},
        )
        self.ppo_runs, self.sft_runs = folder / "ppo" / "runs", folder / "sft" / "runs"

    def arguments(self, *words: str) -> list[str]:
        """Of `tests/helpers_elastic.py`."""
        return [str(self.ppo), str(self.sft), *words]

    def replay(
        self, stage: int, saved: Path, out: str, last: int = LAST, threshold: int = 0, again: str = ""
    ) -> str:
        """The word for a replay of the undisturbed run's rollouts from `saved` on."""
        first = checkpoint.step_of(saved.with_suffix("")) + 1
        rollouts = self.ppo_runs / f"calm{stage}" / "rollouts"
        folder = self.ppo_runs / again if again else ""
        written = self.ppo_runs / f"{out}.json"
        return Replay(*map(str, (stage, saved, rollouts, first, last, threshold, folder, written))).word()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> World:
    return World(tmp_path_factory.mktemp("elastic"), tiny_tokenizer_folder)


@pytest.fixture(scope="module")
def two(world: World, mpirun: Mpirun) -> dict[str, Path]:
    """Runs of two training ranks, and the universal forms of three of their checkpoints `SAVED`.

    PPO `calm1` and `calm3` (ZeRO stages) and SFT `whole` came through undisturbed; SFT `killed` and PPO `killed3_1`
    died after step 3. PPO `killed1_3` is `calm1` as if it had died at its end, with no later checkpoint than `SAVED`.
    """
    sft = [f"sft:whole:{SFT_STAGE}:0", f"sft:killed:{SFT_STAGE}:3"]
    words = ["ppo:calm1:1:0", "ppo:calm3:3:0", *sft, "ppo:killed3_1:3:3"]
    died = mpirun(3, "tests.helpers_elastic", world.arguments(*words), timeout_s=TIMEOUT_S)
    assert died.returncode != 0
    assert (world.sft_runs / "killed" / "steps.json").exists(), died.stderr[-5000:]
    shutil.copytree(world.sft_runs / "killed", world.sft_runs / "unconverted")
    runs = [world.ppo_runs / "calm1", world.ppo_runs / "killed3_1", world.sft_runs / "killed"]
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(lambda run: elastic.convert(checkpoint.path_of(run / "checkpoints", SAVED)), runs)
        converted = dict(zip(("ppo1", "ppo3", "sft"), found, strict=True))
    copy_run(world.ppo_runs, "calm1", "killed1_3")
    later = [f"checkpoints/step_{step:06d}" for step in range(SAVED + 1, LAST + 1)]
    for left in ("done.json", "export", "export-best", *later):
        path = world.ppo_runs / "killed1_3" / left
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
    for ranks in RANKS:
        shutil.copytree(world.sft_runs / "killed", world.sft_runs / f"killed_{ranks}")
    return converted


@pytest.fixture(scope="module")
def three(world: World, two: dict[str, Path], mpirun: Mpirun) -> None:
    """All that three training ranks do: `killed1_3`, `killed_3`, and replays that save half-way and go on from there.

    Under ZeRO 3 once with weights that DeepSpeed keeps whole on every rank, since they are small, and once without.
    """
    words = [
        "ppo:killed1_3:1:0",
        f"sft:killed_3:{SFT_STAGE}:0",
        world.replay(1, two["ppo1"], "replayed1_3", again="again1"),
        world.replay(3, two["ppo3"], "replayed3_3", again="again3"),
        world.replay(3, two["ppo3"], "persistent", last=SAVED + 1, threshold=100_000),
    ]
    mpirun(4, "tests.helpers_elastic", world.arguments(*words), timeout_s=TIMEOUT_S).ok()


@pytest.fixture(scope="module")
def one(world: World, two: dict[str, Path], three: None) -> Finished:
    """All that one process does; it also goes on from what three ranks saved in turn (`back`)."""
    back = elastic.convert(checkpoint.path_of(world.ppo_runs / "again3", SAVED + 2))
    words = [
        f"refused:unconverted:{SFT_STAGE}",
        "ppo:killed3_1:3:0",
        f"sft:killed_1:{SFT_STAGE}:0",
        world.replay(1, two["ppo1"], "replayed1_1"),
        world.replay(3, two["ppo3"], "replayed3_1"),
        world.replay(3, back, "back"),
    ]
    command = [sys.executable, "-m", "tests.helpers_elastic", *world.arguments(*words)]
    return run_command(command, timeout_s=TIMEOUT_S).ok()


@pytest.mark.parametrize("stage", STAGES)
def test_recorded_rollouts_give_the_same_losses_at_three_ranks_and_at_one(
    world: World, three: None, one: Finished, stage: int
) -> None:
    """Policy and value, every optimiser step of five iterations, against the undisturbed run itself.

    The three ranks saved after two of the iterations and went on from their own checkpoint.
    """
    expected = steps(world.ppo_runs / f"calm{stage}" / "steps.json")
    per_iteration = 2 * 2  # networks, epochs
    assert len(expected) == LAST * per_iteration
    expected = expected[SAVED * per_iteration :]
    # The rate went up and is going down: a schedule that started again would be noticed.
    assert len({rate for _, _, rate in expected}) == 5 * 2
    for ranks in RANKS:
        assert_same_steps(steps(world.ppo_runs / f"replayed{stage}_{ranks}.json"), expected)
    if stage == 3:
        assert_same_steps(steps(world.ppo_runs / "persistent.json"), expected[:per_iteration])
        # Two ranks, three ranks, one: converted twice.
        assert_same_steps(steps(world.ppo_runs / "back.json"), expected[2 * per_iteration :])


def test_sft_goes_on_with_the_same_losses(world: World, three: None, one: Finished) -> None:
    expected, whole = steps(world.sft_runs / "whole" / "steps.json"), deterministic(world.sft_runs / "whole")
    assert len(expected) == LAST
    for ranks in RANKS:
        run = world.sft_runs / f"killed_{ranks}"
        assert_same_steps(steps(run / "steps.json"), expected[SAVED:])
        resumed = deterministic(run)
        assert [line["step"] for line in resumed] == [line["step"] for line in whole] == list(range(1, LAST + 1))
        for a, b in zip(resumed, whole, strict=True):
            valid = [key for key in b if key.startswith("valid/") and b[key] == b[key]]
            assert {key: a[key] for key in valid} == pytest.approx({key: b[key] for key in valid}, abs=TOLERANCE)
        assert (run / "done.json").exists() and (run / "export" / "model.safetensors").exists()


def test_a_killed_job_comes_to_its_end_at_one_and_at_three_ranks(world: World, three: None, one: Finished) -> None:
    """The rewrites may part when a beam flips, so that only the first update after the resume is compared."""
    for stage, ranks in ((1, 3), (3, 1)):
        calm = deterministic(world.ppo_runs / f"calm{stage}")
        run = world.ppo_runs / f"killed{stage}_{ranks}"
        log = (run / "logs" / "attempt_2" / "00000.log").read_text("utf-8")
        assert "resumed from" in log and f"step_{SAVED:06d}.universal" in log
        lines = deterministic(run)
        assert [line["step"] for line in lines] == list(range(LAST + 1))
        first = lines[SAVED + 1]
        for name in ("policy_loss", "value_loss", "kl", "score", "reward", "length"):
            assert first[name] == pytest.approx(calm[SAVED + 1][name], abs=TOLERANCE), name
        assert first["ratio_error"] == 0.0
        newest = checkpoint.find_latest(run / "checkpoints")
        assert newest is not None and checkpoint.step_of(newest) == LAST
        assert checkpoint.world_size(newest) == ranks
        done: dict[str, Any] = json.loads((run / "done.json").read_text("utf-8"))
        assert done["step"] == LAST
        for export in ("export", "export-best"):
            assert (run / export / "model.safetensors").stat().st_size > 0


def test_without_a_conversion_the_job_names_the_command(one: Finished) -> None:
    assert one.stderr.count("error:") == 1
    assert (
        "step_000002 was written by 2 training ranks and this run has 1: convert it with "
        "`python -m promptist.cluster.prepare sft CONFIG --train-ranks 1`, or start 2 as before"
    ) in one.stderr
