"""A small finished evaluation with several sets, trainings, noises and checkpoints, and runs with metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from promptist.evaluation.table import Measure, Picture, Table, Text, write_table

EVIL = 'a <script>alert("x")</script> & boat'
SCORED = ("cosine", "aesthetic", "relevance", "gain", "reward", "rival.aesthetic", "rival.reward")
META = {
    "seed": 0, "namespace": "eval", "images": 2, "prompts": "abc", "painter": "def", "methods": [], "runs": {},
    "terms": {"slope": 20.0, "offset": 5.6},
    "decoder": {"decoding": {"method": "beam", "beams": 8, "length_penalty": -1.0}, "max_new_tokens": 75},
}  # fmt: skip


def make_evaluation(
    folder: Path,
    gain: float = 0.8,
    prompts: int = 12,
    size: int = 64,
    replicas: int = 2,
    checkpoints: tuple[int, ...] = (8, 16),
    noises: int = 2,
) -> Table:
    """User input, human-engineered (set "in" alone), SFT and PPO (`replicas` trainings each) on the sets "in" and
    "out", `noises` pictures each, all kept; the checkpoints of PPO on top of them, without pictures. PPO leaves the
    second prompt as it is. Aesthetics of PPO are higher by `gain`, that of prompt i by i / 100 more."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    table = Table([], [], [], dict(META))
    for i in range(prompts):
        x, name = EVIL if i == 0 else f"boat {i}", "in" if i % 2 == 0 else "out"
        plain = {k: 5 + float(random.normal(0, 0.1)) for k in range(noises)}
        trained = [(m, r) for m in ("sft", "ppo") for r in range(replicas)]
        rows = [("user", 0), ("human", 0), *trained, *((f"ppo@{step}", 0) for step in checkpoints)]
        for j, (method, replica) in enumerate(rows):
            if method == "human" and i % 2:
                continue
            left = method == "user" or (i == 1 and method.startswith("ppo"))
            text = Text(x, name, method, replica, "" if left else f"{x}, {method} style {replica}")
            table.texts.append(text)
            for k in range(noises):
                added = 0.0 if left else (gain + i / 100 if method == "ppo" else 0.1)
                added += 0.0 if left else float(random.normal(0, 0.05))
                values = (0.3 - 0.01 * j, plain[k] + added, -0.1 * j, added, added - 0.1 * j, 6.0 - j / 10, added / 2)
                table.measures.extend(
                    Measure(x, name, method, replica, k, metric, float(value))
                    for metric, value in zip(SCORED, values, strict=True)
                )
                if "@" not in method:
                    path = f"images/{i}-{method}-{replica}-{k}.png"
                    pixels = random.integers(0, 255, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / path)
                    table.pictures.append(Picture(x, method, replica, k, path))
            if method not in ("user", "human"):
                kl = 0.0 if method == "sft" else float(method.partition("@")[2] or 24) / 8
                table.measures.append(Measure(x, name, method, replica, None, "kl", kl))
    write_table(folder, table)
    return table


def write_runs(folder: Path) -> dict[str, list[str]]:
    """An SFT run and two trainings of PPO that do well."""
    runs: dict[str, list[str]] = {}
    for name in ("sft", "ppo", "ppo-seed1"):
        (folder / name).mkdir()
        lines = []
        for step in range(1, 60):
            record: dict[str, float] = {"step": step}
            if name == "sft":
                record["loss"] = 1 / step
            else:
                record |= {"score": 0.1, "reward": 0.1, "aesthetic": 0.2, "relevance": -0.1, "kl": 0.02 * step}
                record |= {"length": 12.0, "distinct_suffix": 0.5}
            if step % 10 == 0:
                record |= {"valid/loss": 1.01 / step} if name == "sft" else {"valid/score": 0.2}
            lines.append(json.dumps(record) + "\n")
        (folder / name / "metrics.jsonl").write_text("".join(lines))
        config = "sft:\n  steps: 59\n" if name == "sft" else "ppo:\n  iterations: 100\n"
        (folder / name / "config.yaml").write_text(config)
        runs.setdefault(name.partition("-")[0], []).append(str(folder / name))
    return runs


def write_samples(run: Path, step: int, prompts: int = 3) -> None:
    """Samples of one iteration with their pictures; the rewrite of the first is empty, the picture of the last gone."""
    random = np.random.default_rng(step)
    for folder in ("rollouts", "images"):
        (run / folder).mkdir(exist_ok=True)
    lines = []
    for i in range(prompts):
        paths = [f"images/{step}-{i}-{side}.png" for side in "xy"]
        for path in paths if i < prompts - 1 else paths[:1]:
            Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(run / path)
        x = f"{EVIL} {i} of step {step}"
        record = {
            "step": step, "x": x, "y": f"{x}, oil painting" if i else "", "picture_x": paths[0], "picture_y": paths[1],
            "score": 0.5, "aesthetic": 0.625, "relevance": -0.125, "kl": 1.5,
        }  # fmt: skip
        lines.append(json.dumps(record) + "\n")
    (run / "rollouts" / f"step_{step:06d}.samples.jsonl").write_text("".join(lines))
