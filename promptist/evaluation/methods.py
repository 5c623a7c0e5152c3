"""The rows of the comparison: where the prompt that gets painted comes from.

| kind | what is painted for the prompt x |
| --- | --- |
| `user` | x itself |
| `human` | the human-engineered prompt of the evaluation set (prompts without one have no such row) |
| `model` | the rewrite by the model in `path`, or by each of `paths`: trainings of one method with different seeds |
| `checkpoints` | the same for every checkpoint of the run `path`; each is a row of its own, such as `ppo@24` |
| `suffix` | x with `text` behind it, the same for every x |
| `random` | x with modifiers behind it that are drawn, by x alone, as the targets of the pair file `pairs` have them |
| `best_of` | of the pictures of x that kind `user` has anyway, the one with the best training score: nothing new |
| `file` | the rewrite that the JSONL file `path` has for x: `{"prompt": ..., "rewrite": ...}`, made elsewhere |

Every model row uses the same decoder, so that rows differ in weights only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from promptist.data.prompts import parse_record, read_lines, text_field
from promptist.errors import UserError
from promptist.evaluation.prompts import EvalPrompt
from promptist.evaluation.random_modifiers import read_pool
from promptist.evaluation.results import ALL

# By kind, the keys of which a row has exactly one (and no other), and what that key is to be.
_KEYS: dict[str, tuple[tuple[str, ...], str]] = {
    "user": ((), ""),
    "human": ((), ""),
    "model": (("path", "paths"), "a `path` to a model or run folder, or `paths` to several trainings, not both"),
    "checkpoints": (("path",), "a `path` to a run folder"),
    "suffix": (("text",), "a `text` to put behind every prompt"),
    "random": (("pairs",), "`pairs`: a JSONL file of pairs to draw modifiers from"),
    "best_of": ((), ""),
    "file": (("path",), "a `path` to a JSONL file of rewrites"),
}
KINDS = tuple(_KEYS)
_LABELS = {
    "user": "User input",
    "human": "Human-engineered",
    "sft": "SFT",
    "ppo": "PPO",
    "suffix": "Fixed suffix",
    "random": "Random modifiers",
    "best-of": "Best plain picture",
}


@dataclass
class MethodConfig:
    """One row, or one for every checkpoint of a run; which keys belong to which kind, `_KEYS` tells.

    `path`: a run folder with an `export/`, a checkpoint `RUN/checkpoints/step_000024` or a Hugging Face model folder
    (`model`), a run folder (`checkpoints`), a JSONL file (`file`). `paths`: the same method trained with several seeds.
    """

    name: str = "user"
    kind: str = "model"
    path: str | None = None
    paths: list[str] = field(default_factory=list)
    text: str | None = None
    pairs: str | None = None

    @property
    def models(self) -> list[str]:
        """The paths of the models of a row of kind `model`, one per replica; none for other kinds."""
        return ([self.path] if self.path else list(self.paths)) if self.kind == "model" else []


def label(method: str) -> str:
    """What a reader sees for the method `method`; `ppo@24` is the checkpoint of step 24."""
    name, at, step = method.rpartition("@")
    return f"{label(name)}, step {step}" if at else _LABELS.get(method, method)


def check_methods(methods: Sequence[MethodConfig]) -> None:
    """Raise UserError for a list of rows that makes no sense; whether models and files are there, `model_folder` and
    `texts_of` tell.
    """
    names = [m.name for m in methods]
    for method in methods:
        if not method.name or not all(c.isalnum() or c in "-_." for c in method.name):
            raise UserError(f"methods: the name {method.name!r} must be of letters, digits, '-', '_' and '.'")
        if names.count(method.name) > 1:
            raise UserError(f"methods: the name {method.name!r} stands twice, give each row its own")
        if method.kind not in KINDS:
            raise UserError(f"methods: {method.name!r} has kind {method.kind!r}, use one of {', '.join(KINDS)}")
        own = method.kind in ("user", "human")
        if (own and method.name != method.kind) or (not own and method.name in ("user", "human")) or method.name == ALL:
            raise UserError(
                f"methods: {method.name!r} has kind {method.kind!r}; the rows of kind user and human bear "
                f"their kind as name and no other row does, nor is one called {ALL!r}"
            )
        _check_keys(method)
    if "user" not in names:
        raise UserError("methods: add the row {name: user, kind: user}, every reward is measured against it")


def _check_keys(method: MethodConfig) -> None:
    row = f"methods: {method.name!r} of kind {method.kind}"
    allowed, wants = _KEYS[method.kind]
    given = [key for key in ("path", "paths", "text", "pairs") if getattr(method, key)]
    for key in given:
        if key not in allowed:
            raise UserError(f"{row} takes no `{key}`")
    if allowed and len(given) != 1:
        raise UserError(f"{row} needs {wants}")
    if len({*method.paths, ""}) <= len(method.paths):
        raise UserError(f"{row}: an entry of `paths` is empty or stands twice; each is a training of its own")


def texts_of(method: MethodConfig, prompts: Sequence[EvalPrompt]) -> dict[str, str]:
    """x -> y of a row whose text needs no model, for the prompts that have it; "" where it leaves the prompt as it is
    (kinds `user` and `best_of`).

    ValueError for the kinds `model` and `checkpoints`. UserError for files that cannot be read or lack a prompt.
    """
    if method.kind in ("user", "best_of"):
        return {prompt.x: "" for prompt in prompts}
    if method.kind == "human":
        return {prompt.x: prompt.human for prompt in prompts if prompt.human is not None}
    if method.kind == "suffix" and method.text:
        return {prompt.x: append(prompt.x, method.text) for prompt in prompts}
    if method.kind == "random" and method.pairs:
        pool = read_pool(method.pairs)
        return {prompt.x: append(prompt.x, ", ".join(pool.draw(prompt.x))) for prompt in prompts}
    if method.kind == "file" and method.path:
        return _from_file(Path(method.path), prompts)
    raise ValueError(f"the texts of {method.name}, kind {method.kind}, do not come from the config alone")


def append(x: str, text: str) -> str:
    """x, a comma, and `text`; commas and full stops between them are not doubled. "" (as it is) for no text."""
    text = text.strip().lstrip(",.; ")
    return f"{x.strip().rstrip(',.; ')}, {text}".removeprefix(", ") if text else ""


def _from_file(path: Path, prompts: Sequence[EvalPrompt]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        record = parse_record(line, where)
        x, y = text_field(record, "prompt", where), record.get("rewrite")
        if not isinstance(y, str):
            raise UserError(f'{where} has no text `rewrite` ("" leaves the prompt as it is)')
        if found.setdefault(x, y.strip()) != y.strip():
            raise UserError(f"{where} has another rewrite of {x!r} than a line before: leave one of them")
    missing = [prompt.x for prompt in prompts if prompt.x not in found]
    if missing:
        raise UserError(
            f"{path} lacks the rewrites of {len(missing)} of the evaluation's {len(prompts)} prompts, the first is "
            f"{missing[0]!r}: add them"
        )
    return {prompt.x: found[prompt.x] for prompt in prompts}


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
