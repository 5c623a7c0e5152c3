"""The rows of the comparison: where the prompt that gets painted comes from.

`user` paints the plain prompt, `human` the human-engineered prompt of the evaluation set (prompts without one
have no such row), `model` the rewrite of a policy by the beam search of `promptist optimize`. Every model row
uses the same decoder, so that rows differ in weights only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptist.errors import UserError
from promptist.evaluation.prompts import EvalPrompt
from promptist.evaluation.statistics import ALL

KINDS = ("user", "human", "model")
_LABELS = {"user": "User input", "human": "Human-engineered", "sft": "SFT", "ppo": "PPO"}


@dataclass
class MethodConfig:
    """One row. `path` is for kind `model` only: a run folder with an `export/`, or a Hugging Face model
    folder.
    """

    name: str = "user"
    kind: str = "model"
    path: str | None = None


def label(method: str) -> str:
    """What a reader sees for the method `method`."""
    return _LABELS.get(method, method)


def check_methods(methods: Sequence[MethodConfig]) -> None:
    """Raise UserError for a list of rows that makes no sense; whether the models are there, `model_folder`
    tells.
    """
    names = [m.name for m in methods]
    for method in methods:
        if not method.name or not all(c.isalnum() or c in "-_." for c in method.name):
            raise UserError(f"methods: the name {method.name!r} must be of letters, digits, '-', '_' and '.'")
        if names.count(method.name) > 1:
            raise UserError(f"methods: the name {method.name!r} stands twice, give each row its own")
        if method.kind not in KINDS:
            raise UserError(
                f"methods: {method.name!r} has kind {method.kind!r}, use one of {', '.join(KINDS)}"
            )
        if (method.kind == "model") == (method.name in ("user", "human")) or method.name == ALL:
            raise UserError(
                f"methods: {method.name!r} has kind {method.kind!r}; the rows of kind user and human bear "
                f"their kind as name and no model row does, nor is one called {ALL!r}"
            )
        if (method.kind == "model") != bool(method.path):
            wants = "needs a `path` to a model or run folder" if method.kind == "model" else "takes no `path`"
            raise UserError(f"methods: {method.name!r} of kind {method.kind} {wants}")
    if "user" not in names:
        raise UserError("methods: add the row {name: user, kind: user}, every reward is measured against it")


def model_folder(path: str | Path) -> Path:
    """The Hugging Face folder meant by `path`: itself, or the `export/` of a run folder."""
    path = Path(path)
    for folder in (path, path / "export"):
        if (folder / "config.json").is_file():
            return folder
    if (path / "config.yaml").is_file():
        raise UserError(f"run {path} has no exported model yet: let it finish, or export a checkpoint of it")
    raise UserError(
        f"{path} is no model: it has neither config.json nor export/config.json; give a model or run folder"
    )


def model_fingerprint(folder: Path) -> str:
    """Hash of the content of a model folder's files: a retrained model of the same name gets new rewrites."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()


def applies(method: MethodConfig, prompt: EvalPrompt) -> bool:
    return method.kind != "human" or prompt.human is not None
