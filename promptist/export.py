"""A checkpoint of an SFT or PPO run as a Hugging Face folder, past DeepSpeed and without the run's ranks.

What a run exports at its end is one model; the evaluation compares others, too: every checkpoint of a run for the
curve of reward over KL, or the one at a step that a user names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

from promptist.cluster import checkpoint
from promptist.errors import UserError

CHECKPOINTS = "checkpoints"
_NO_PART_OF_THE_SHAPE = (".safetensors", ".bin", ".pt")


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is that of a checkpoint, `RUN/checkpoints/step_000024`, by its name and content."""
    path = Path(path)
    return bool(re.fullmatch(r"step_\d{6,}", path.name)) and (path / checkpoint.COMPLETE).is_file()


def checkpoints_of(run: str | Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first (sizes compared, contents not); UserError without any."""
    folder = Path(run) / CHECKPOINTS
    found = [path for path in sorted(folder.glob("step_*")) if is_checkpoint(path)]
    whole = sorted((p for p in found if checkpoint.flaw(p, hashes=False) is None), key=checkpoint.step_of)
    if not whole:
        raise UserError(f"{folder} holds no complete checkpoint: name a run folder with checkpoints")
    return whole


def export_checkpoint(path: str | Path, into: Path) -> Path:
    """The policy of the checkpoint `path` as a Hugging Face folder below `into`; returns that folder.

    The folder's name is a hash of what it is made from, so an export that is there is left alone, also by another
    process that makes the same one at this moment. Architecture and tokenizer are those of the run's `model.path`,
    decoding is that of the run's own export. UserError for a damaged checkpoint and a model that is no longer there.
    """
    from promptist.cluster.needs import load_job
    from promptist.models.elastic import read_weights
    from promptist.models.policy import DTYPES, export_policy, read_architecture

    path = Path(path)
    run = path.parent.parent
    kind, job = load_job(run / "config.yaml")
    if kind == "evaluate":
        raise UserError(f"{run} is an evaluation, which trains nothing: name a checkpoint of an SFT or PPO run")
    architecture = read_architecture(job.model)
    checkpoint.check(path, hashes=False)
    final = into / _name(path, kind, job)
    if (final / "config.json").is_file():
        return final

    import torch
    from transformers import AutoModelForCausalLM

    from promptist.data.text import load_tokenizer

    checkpoint.check(path)
    dtype = DTYPES[job.model.dtype]
    weights = {name: tensor.to(dtype) for name, tensor in read_weights(path / "policy").items()}
    with torch.device("meta"):  # the shape alone: all weights come from the checkpoint
        module = AutoModelForCausalLM.from_config(architecture, dtype=dtype)
    into.mkdir(parents=True, exist_ok=True)
    own = into / f"{final.name}.{socket.gethostname()}.{os.getpid()}"
    export_policy(module, weights, load_tokenizer(job.model.path), own)
    if kind == "ppo":
        from promptist.rl.progress import write_settings

        write_settings(job, own)
    try:
        os.rename(own, final)
    except OSError:
        # Another process was faster.
        shutil.rmtree(own)
        if not (final / "config.json").is_file():
            raise
    return final


def _name(path: Path, kind: str, job: Any) -> str:
    """`step_000024-1f0c...`: a hash of the policy's files, of the model that it started from but for its weights, and
    of what decides how it decodes."""
    record = json.loads((path / checkpoint.COMPLETE).read_text("utf-8"))
    policy = {name: file["sha256"] for name, file in record["files"].items() if name.startswith("policy/")}
    if not policy:
        raise UserError(f"the checkpoint {path} holds no policy: name one of an SFT or PPO run")
    digest = hashlib.blake2b(json.dumps([kind, job.model.dtype, policy], sort_keys=True).encode(), digest_size=12)
    if kind == "ppo":
        digest.update(repr(_decoding(job)).encode())
    start = Path(job.model.path)
    digest.update(str(start).encode())  # a hub's name where it is no folder
    for file in sorted(start.iterdir()) if start.is_dir() else ():
        if file.is_file() and file.suffix not in _NO_PART_OF_THE_SHAPE:
            digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return f"{path.name}-{digest.hexdigest()}"


def _decoding(job: Any) -> list[tuple[str, Any]]:
    return sorted((name, value) for name, value in vars(job.ppo).items() if name.startswith("validation_"))
