"""What a PPO job reads, looked at before its run folder is made: the folder records the config, and a resumed run
may not change it. A wrong path must not be recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from promptist.data.prompts import Prompt, read_prompts, read_sources
from promptist.errors import UserError
from promptist.models.policy import read_architecture
from promptist.rl.config import PPOJob


def check_inputs(job: PPOJob) -> None:
    """UserError where the model, a prompt file or a part of the reward is missing, or the lengths do not fit."""
    check_positions(job, read_architecture(job.model))
    read_sources(job.data.prompts)
    read_valid(job)
    reward = job.reward
    for key, path in (
        ("reward.diffusion.path", reward.diffusion.path),
        ("reward.clip.model", reward.clip.model),
        ("reward.aesthetic.path", reward.aesthetic.path),
    ):
        # Other names are asked of a hub, or of open_clip, when they are loaded.
        is_path = key == "reward.aesthetic.path" or path.startswith((".", "/", "~")) or path.count("/") > 1
        if is_path and not Path(path).expanduser().exists():
            raise UserError(f"{key} = {path!r} does not exist; set it to where the model is")


def read_valid(job: PPOJob) -> list[Prompt]:
    """The prompts of `data.valid`; UserError if it is missing, empty or broken."""
    if not job.data.valid:
        raise UserError("data.valid is empty: name a file of prompts to validate on")
    return read_prompts(job.data.valid)


def check_positions(job: PPOJob, architecture: Any) -> None:
    """UserError where the longest prompt and rewrite together do not fit the model's positions."""
    available = getattr(architecture, "max_position_embeddings", None)
    new_tokens = max(job.ppo.new_tokens_max, job.ppo.validation_new_tokens)
    needed = job.data.max_prompt_tokens + new_tokens
    if available is not None and needed > available:
        raise UserError(
            f"data.max_prompt_tokens = {job.data.max_prompt_tokens} and {new_tokens} new tokens need "
            f"{needed} positions, but the model in {job.model.path} has {available}; lower one of them"
        )
