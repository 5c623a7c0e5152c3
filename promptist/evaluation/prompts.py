"""Evaluation sets: held-out prompts with the set they belong to and, where one exists, a human-engineered
version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptist.data.prompts import parse_record, read_lines, text_field
from promptist.errors import UserError
from promptist.evaluation.results import ALL

VERSION = 1
"""Of what `fingerprint` hashes: another version never has the hash of this one."""


@dataclass(frozen=True)
class EvalPrompt:
    """`x` is the user's prompt, stripped; `human` its human-engineered version or None."""

    x: str
    set: str
    human: str | None = None


def load_eval_prompts(paths: str | Path | Sequence[str | Path]) -> list[EvalPrompt]:
    """The prompts of one file or of several, in order.

    A `.jsonl` file has lines `{"prompt": ..., "set": ..., "human": ...}`; `human` may be absent, other keys are
    ignored. Any other file is text with a prompt on each line, and its name without the ending is the set.

    Raises UserError for a missing or empty file, a broken line, an empty field, and a prompt that stands twice, also in
    two sets or files: twice the same prompt with the same noise would count as two independent observations.
    """
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not files:
        raise UserError("prompts names no file: give it one or several files of evaluation prompts")
    prompts: list[EvalPrompt] = []
    seen: dict[str, str] = {}
    for path in map(Path, files):
        before = len(prompts)
        for where, prompt in _read(path):
            if prompt.x in seen:
                raise UserError(f"{where} repeats the prompt of {seen[prompt.x]}: remove one of them")
            seen[prompt.x] = where
            prompts.append(prompt)
        if len(prompts) == before:
            raise UserError(
                f"{path} holds no prompt: give it JSONL lines with `prompt` and `set`, or text with a prompt on a line"
            )
    return prompts


def fingerprint(prompts: Sequence[EvalPrompt]) -> str:
    """Hash of the content of an evaluation set, in order; independent of files and their formatting."""
    data = json.dumps([VERSION, *([p.x, p.set, p.human] for p in prompts)])
    return hashlib.blake2b(data.encode(), digest_size=16).hexdigest()


def _read(path: Path) -> Iterator[tuple[str, EvalPrompt]]:
    if path.suffix != ".jsonl":
        _check_set(path.stem, str(path))
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        yield where, _parse(line, where) if path.suffix == ".jsonl" else EvalPrompt(line.strip(), path.stem)


def _parse(line: str, where: str) -> EvalPrompt:
    record = parse_record(line, where)
    name = text_field(record, "set", where)
    _check_set(name, where)
    human = text_field(record, "human", where) if record.get("human") is not None else None
    return EvalPrompt(text_field(record, "prompt", where), name, human)


def _check_set(name: str, where: str) -> None:
    if name == ALL:
        raise UserError(f"{where}: the set name `{ALL}` is kept for the mean over the sets, rename it")
