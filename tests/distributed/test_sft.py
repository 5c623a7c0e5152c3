"""The SFT job as it is run: two ranks, killed and resumed, ZeRO 1 and 3; and one process alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from promptist.data.pairs import read_pairs
from promptist.data.text import load_tokenizer
from promptist.models.policy import ModelConfig, forward_logprobs, load_policy
from promptist.sft.batches import collate, tokenise
from tests.conftest import Mpirun, run_command, run_one_after_the_other
from tests.helpers_models import write_pairs, write_tiny_gpt2

pytestmark = pytest.mark.distributed

STAGES = (1, 3)
TIMEOUT_S = 300  # seconds when alone; the machine may be busy

# Runs the whole job per stage, then again with a death after step 5: an exception for the first stage, kill
# -9 of one rank for the last. Checkpoints stand at steps 2 and 4, so step 5 is lost.
FIRST = """
import os, signal, sys, time
import jobs.sft as job
from promptist.cluster.metrics import MetricLog
config, stages = sys.argv[1], [int(s) for s in sys.argv[2:]]
for stage in stages:
    assert job.main([config, f"zero.stage={stage}", f"run.name=whole{stage}"]) == 0
plain = MetricLog.log
def dying(self, step, metrics):
    plain(self, step, metrics)
    if step == 5 and stage == stages[-1]:
        if self._active:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    elif step == 5:
        raise RuntimeError("power cut")
MetricLog.log = dying
for stage in stages:
    try:
        job.main([config, f"zero.stage={stage}", f"run.name=killed{stage}"])
    except RuntimeError as error:
        assert str(error) == "power cut"
"""

SECOND = """
import sys
import jobs.sft as job
config, stages = sys.argv[1], sys.argv[2:]
for stage in stages:
    assert job.main([config, f"zero.stage={stage}", f"run.name=killed{stage}"]) == 0
assert job.main([config, f"zero.stage={stages[0]}", f"run.name=whole{stages[0]}"]) == 0
"""


def write_config(folder: Path, tokenizer: Path, **sections: dict[str, Any]) -> Path:
    config: dict[str, dict[str, Any]] = {
        "run": {"root": str(folder / "runs"), "seed": 3},
        "model": {
            "path": str(write_tiny_gpt2(folder / "gpt2", tokenizer, weights=False)),
            "init": "scratch",
        },
        "data": {
            "train": str(write_pairs(folder / "train.jsonl", 37, seed=1)),
            "valid": str(write_pairs(folder / "valid.jsonl", 9, seed=2)),
            "max_length": 64,
        },
        "sft": {"steps": 7, "batch": 8, "validate_every": 2, "under_fit": 0.05},
        "optimizer": {"lr": 0.003, "schedule": "cosine", "warmup_steps": 2},
        "zero": {"micro_batch": 2},
        "checkpoint": {"every": 2, "keep_last": 2},
        "logging": {"tensorboard": False},
    }
    for name, values in sections.items():
        config[name] |= values
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def metrics(run: Path) -> list[dict[str, Any]]:
    """All records without timings, as text: NaN would not equal itself."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def test_bug_resume_finds_what_save_wrote(mpirun: Mpirun, tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    """Killed between checkpoints and resumed: weights of both exports and every metric equal in all bits."""
    config = write_config(tmp_path, tiny_tokenizer_folder)
    runs = tmp_path / "runs"
    assert mpirun(2, FIRST, [config, *STAGES], timeout_s=TIMEOUT_S).returncode != 0  # one rank was killed
    for stage in STAGES:
        killed = runs / f"killed{stage}"
        assert sorted(p.name for p in (killed / "checkpoints").iterdir()) == ["step_000002", "step_000004"]
        assert metrics(killed)[-1]["step"] == 5 and not (killed / "done.json").exists()
    done = mpirun(2, SECOND, [config, *STAGES], timeout_s=TIMEOUT_S).ok()
    assert f"whole{STAGES[0]} is finished" in done.stdout
    for stage in STAGES:
        whole, killed = runs / f"whole{stage}", runs / f"killed{stage}"
        assert "resumed from" in (killed / "logs" / "attempt_2" / "00000.log").read_text("utf-8")
        for export in ("export", "export-best"):
            weights = [(run / export / "model.safetensors").read_bytes() for run in (whole, killed)]
            assert weights[0] == weights[1], (stage, export)
        assert metrics(whole) == metrics(killed) and len(metrics(whole)) == 7
        assert json.loads((whole / "done.json").read_text()) == json.loads((killed / "done.json").read_text())
        assert not list((killed / "candidates").iterdir())
    # the stages differ in how they store numbers, not in the numbers
    for one, three in zip(*(metrics(runs / f"whole{stage}") for stage in STAGES), strict=True):
        assert all(one[k] == pytest.approx(three[k], abs=1e-4) for k in one)


def test_one_process_learns_and_exports(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    """`python -m jobs.sft` without a launcher; the chosen checkpoint obeys the rule read off the metrics."""
    config = write_config(tmp_path, tiny_tokenizer_folder, sft={"steps": 24, "validate_every": 4, "under_fit": 0.02})
    command = [sys.executable, "-m", "jobs.sft", str(config), "run.name=solo", "optimizer.lr=0.01"]
    run_command(command, timeout_s=TIMEOUT_S).ok()
    run = tmp_path / "runs" / "solo"
    validated = [r for r in metrics(run) if "valid/loss" in r]
    assert [r["step"] for r in validated] == [4, 8, 12, 16, 20, 24]
    assert validated[-1]["valid/loss"] < 0.7 * validated[0]["valid/loss"]
    for r in validated:
        low, high = sorted((r["valid/MC"], r["valid/RTP"]))
        assert low <= r["valid/loss"] <= high
    best = min(validated, key=lambda r: r["valid/loss"])
    chosen = next(r for r in validated if r["valid/loss"] <= 1.02 * best["valid/loss"])
    done = json.loads((run / "done.json").read_text())
    assert done["export"] == {"step": chosen["step"], "valid_loss": chosen["valid/loss"]}
    assert done["export-best"] == {"step": best["step"], "valid_loss": best["valid/loss"]}

    tokenizer = load_tokenizer(run / "export-best")
    model = load_policy(ModelConfig(path=str(run / "export-best")))
    examples = tokenise(read_pairs(tmp_path / "valid.jsonl"), tokenizer, 64, "valid")
    batch = collate(examples, int(tokenizer.eos_token_id), torch.device("cpu"))
    with torch.no_grad():
        loss = -forward_logprobs(model, *batch.layout).sum() / batch.response_lengths.sum()
    assert float(loss) == pytest.approx(best["valid/loss"], abs=1e-5)


def test_bad_input_is_one_sentence_and_exit_64(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    config = write_config(tmp_path, tiny_tokenizer_folder)
    expected = {
        "model.path=/no/such/folder": "/no/such/folder does not exist",
        "data.train=none.jsonl": "data.train = 'none.jsonl'",
        "sft.batch=9": "sft.batch = 9",
        "sft.stepz=9": "sft.stepz",
        "data.max_length=65": "64 positions",
    }
    runs = [f"{override} run.name=bad{index}" for index, override in enumerate(expected)]
    ended = run_one_after_the_other("jobs.sft", config, runs, timeout_s=TIMEOUT_S)
    for (override, words), (code, _, stderr) in zip(expected.items(), ended, strict=True):
        assert code == 64 and words in stderr, (override, stderr)
        assert stderr.count("error:") == 1 and "Traceback" not in stderr
    # A corrected command starts afresh: nothing was recorded.
    assert not (tmp_path / "runs").exists()
