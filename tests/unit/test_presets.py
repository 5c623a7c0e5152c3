"""The presets of paper and released code load, are complete, and name the source of every value."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.evaluate import EvalJob
from promptist import config as configs
from promptist.errors import UserError
from promptist.rl.config import PPOJob
from promptist.sft.config import SFTJob

ROOT = Path(__file__).parents[2]
PRESETS: dict[str, type] = {
    "configs/paper/sft.yaml": SFTJob,
    "configs/paper/ppo.yaml": PPOJob,
    "configs/paper/eval.yaml": EvalJob,
    "configs/released/ppo.yaml": PPOJob,
}
# What a reader would first compare with the publication, written down a second time, by hand.
PAPER_PPO = {
    "ppo.batch": 512, "ppo.epochs": 4, "ppo.iterations": 3000, "ppo.clip": 0.2, "ppo.value_clip": 0.2,
    "ppo.value_coef": 2.3, "ppo.kl_coef": 0.2, "ppo.gamma": 1.0, "ppo.lam": 0.95, "ppo.new_tokens_min": 15,
    "ppo.new_tokens_max": 75, "decoding.method": "diverse_beam", "decoding.beams": 8, "decoding.groups": 8,
    "decoding.diversity_penalty": 1.0, "optimizer.lr": 5e-5, "optimizer.betas": [0.9, 0.95],
    "optimizer.eps": 1e-6, "optimizer.weight_decay": 1e-6, "reward.terms.slope": 20.0,
    "reward.terms.offset": 5.6, "reward.terms.images": 3, "reward.diffusion.steps": 20,
    "reward.diffusion.guidance": 7.5, "reward.diffusion.size": 512, "reward.clip.model": "ViT-L-14-quickgelu",
    "reward.clip.pretrained": "openai", "model.trainable_blocks": None,
}  # fmt: skip
PAPER_SFT = {
    "model.path": "gpt2-xl", "sft.batch": 256, "sft.steps": 15000, "optimizer.lr": 5e-5,
    "data.max_length": 512,
    "optimizer.betas": [0.9, 0.999], "optimizer.eps": 1e-6, "optimizer.weight_decay": 0.1,
}  # fmt: skip
PAPER_EVAL = {
    "images": 3, "reference": ["runs/paper-sft"], "held_out.0.head": "weights/sa_0_4_vit_l_14_linear.pth",
    "held_out.1.head": "weights/ava+logos-l14-linearMSE.pth", "held_out.2.pickscore": "yuvalkirstain/PickScore_v1",
    "held_out.2.processor": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}  # fmt: skip
RELEASED_PPO = {
    "ppo.batch": 256, "ppo.epochs": 4, "decoding.beams": 16, "decoding.groups": 16, "reward.terms.images": 2,
    "model.trainable_blocks": 2, "ppo.kl_coef": 0.2, "run.seed": 1000, "optimizer.warmup_steps": 100,
    "optimizer.grad_clip": 0.0,
}  # fmt: skip


VALUE = re.compile(r"\s*(- )?\w+:\s+\S.*")


def unsourced(text: str) -> list[str]:
    """Lines that set a value but whose comment names neither paper, nor code, nor us."""
    bad = []
    for line in text.splitlines():
        content, _, comment = line.partition("  #")
        if VALUE.fullmatch(content) and not re.search(r"\b(paper|code|ours)\b", comment):
            bad.append(line)
    return bad


def value_lines(text: str) -> int:
    return sum(bool(VALUE.fullmatch(line.partition("  #")[0])) for line in text.splitlines())


@pytest.mark.parametrize("path", PRESETS)
def test_loads_into_the_job_that_reads_it(path: str) -> None:
    assert isinstance(configs.load(PRESETS[path], ROOT / path), PRESETS[path])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("configs/paper/ppo.yaml", PAPER_PPO),
        ("configs/paper/sft.yaml", PAPER_SFT),
        ("configs/paper/eval.yaml", PAPER_EVAL),
        ("configs/released/ppo.yaml", RELEASED_PPO),
    ],
)
def test_says_what_the_publication_says(path: str, expected: dict[str, Any]) -> None:
    flat = configs.flatten(configs.load(PRESETS[path], ROOT / path))
    assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize("path", PRESETS)
def test_every_value_names_its_source(path: str) -> None:
    text = (ROOT / path).read_text("utf-8")
    assert unsourced(text) == []
    # Oracle for the line pattern: as many value lines as the YAML parser finds leaves.
    assert value_lines(text) == len(configs.flatten(yaml.safe_load(text)))


def test_a_value_without_source_is_found() -> None:
    text = "a:\n  b: 1  # ours\n  c: [1, 2]\n  - d: 2  # because\n# e: 1\n"
    assert unsourced(text) == ["  c: [1, 2]", "  - d: 2  # because"]


@pytest.mark.parametrize("path", PRESETS)
def test_leaves_no_default_unsaid(path: str) -> None:
    """A preset states its numbers itself: a changed default in the code must not change a published one."""
    stated = set(configs.flatten(yaml.safe_load((ROOT / path).read_text("utf-8"))))
    loaded = configs.flatten(configs.load(PRESETS[path], ROOT / path))
    # Alternatives that are switched off, and keys that the chosen method does not read.
    unread = {"roles.reward_nodes", "roles.reward_per_node", "value_optimizer"}
    sampling = re.compile(r"decoding\.(temperature|top_p|early_stopping|diversity_penalty)$")
    unread |= {key for key in loaded if sampling.search(key)}
    if PRESETS[path] is SFTJob:
        unread |= {"logging.samples", "logging.samples_every"}
    if PRESETS[path] is EvalJob:
        unread |= {"shard", "reduce"}  # they belong on the command line
        kinds = re.compile(r"methods\.\d+\.(path|paths|text|pairs)$|held_out\.\d+\.\w+$")  # keys of other kinds
        unread |= {key for key in loaded if kinds.match(key) and not loaded[key]}
    assert set(loaded) - stated - unread == set()


@pytest.mark.parametrize("ranks", [1, 4, 16, 32])
@pytest.mark.parametrize("path", ["configs/paper/ppo.yaml", "configs/released/ppo.yaml"])
def test_batch_divides_over_the_usual_numbers_of_ranks(path: str, ranks: int) -> None:
    job = configs.load(PPOJob, ROOT / path)
    assert job.per_rank(ranks) * ranks == job.ppo.batch
    with pytest.raises(UserError, match="training ranks"):
        job.per_rank(7)


def test_evaluation_measures_what_training_rewards() -> None:
    training = configs.load(PPOJob, ROOT / "configs/paper/ppo.yaml").reward
    evaluation = configs.load(EvalJob, ROOT / "configs/paper/eval.yaml").reward
    assert configs.differences(training, evaluation) == []


def test_differences_are_documented() -> None:
    """docs/presets.md has one table row for each key in which the two PPO presets differ, and no other."""
    paper, released = (
        configs.load(PPOJob, ROOT / f"configs/{name}/ppo.yaml") for name in ("paper", "released")
    )
    documented = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs/presets.md").read_text("utf-8"), re.M)
    keys = configs.differences(paper, released)
    different = {re.sub(r"^data\.prompts\..*", "data.prompts", key) for key in keys}
    assert sorted(documented) == sorted(different)


def test_presets_cover_every_section() -> None:
    for path, cls in PRESETS.items():
        stated = yaml.safe_load((ROOT / path).read_text("utf-8"))
        sections = {field.name for field in dataclasses.fields(cls)}
        assert sections - set(stated) <= {"value_optimizer", "roles", "shard", "reduce"}, path
