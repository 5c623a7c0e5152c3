"""Evaluation sets: held-out prompts with the set they belong to and, where one exists, a human-engineered
version.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from promptist.data.prompts import parse_record, read_lines, text_field
from promptist.errors import UserError
from promptist.evaluation.statistics import ALL


@dataclass(frozen=True)
class EvalPrompt:
    """`x` is the user's prompt, stripped; `human` its human-engineered version or None."""

    x: str
    set: str
    human: str | None = None


def load_eval_prompts(path: str | Path) -> list[EvalPrompt]:
    """Read JSONL lines `{"prompt": ..., "set": ..., "human": ...}`; `human` may be absent, other keys are
    ignored.

    Raises UserError for a missing or empty file, a broken line, an empty field, and a prompt that stands
    twice: twice the same prompt with the same noise would count as two independent observations.
    """
    path = Path(path)
    prompts: list[EvalPrompt] = []
    seen: dict[str, int] = {}
    for number, line in read_lines(path):
        prompt = _parse(line, f"{path}:{number}")
        if prompt.x in seen:
            raise UserError(
                f"{path}:{number} repeats the prompt of line {seen[prompt.x]}: remove one of them"
            )
        seen[prompt.x] = number
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{path} holds no prompt: give it JSONL lines with `prompt` and `set`")
    return prompts


def fingerprint(prompts: list[EvalPrompt]) -> str:
    """Hash of the content of an evaluation set, in order; independent of the file's formatting."""
    data = json.dumps([[p.x, p.set, p.human] for p in prompts])
    return hashlib.blake2b(data.encode(), digest_size=16).hexdigest()


def _parse(line: str, where: str) -> EvalPrompt:
    record = parse_record(line, where)
    name = text_field(record, "set", where)
    if name == ALL:
        raise UserError(f"{where}: the set name `{ALL}` is kept for the mean over the sets, rename it")
    human = text_field(record, "human", where) if record.get("human") is not None else None
    return EvalPrompt(text_field(record, "prompt", where), name, human)
