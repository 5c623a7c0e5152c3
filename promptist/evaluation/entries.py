"""From the rows of a config to those of a plan: where their models lie, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from promptist.cluster import checkpoint
from promptist.errors import UserError
from promptist.evaluation.methods import MethodConfig, model_fingerprint, model_folder, texts_of
from promptist.evaluation.plan import Entry
from promptist.evaluation.prompts import EvalPrompt
from promptist.export import checkpoints_of, export_checkpoint, is_checkpoint

EXPORTS = "models"
"""Folder of the exported checkpoints below the run folder of the evaluation."""


def entries_of(methods: Sequence[MethodConfig], references: Sequence[str], exports: Path) -> list[Entry]:
    """The rows, in order: one per replica of a model, one per checkpoint (`ppo@24`). Reads whole model files.

    `references`: the model against which log-ratios are taken, one for all replicas or one for each; none for no
    log-ratios. Checkpoints are exported below `exports`. UserError where something is no model.
    """
    seen: dict[Path, str] = {}

    def entry(method: str, replica: int, path: str | Path) -> Entry:
        folder = source(path, exports)
        reference = _of_replica(references, replica, method)
        against = None if reference is None else source(reference, exports)
        for place in {folder, against} - {None} - seen.keys():
            assert place is not None
            seen[place] = model_fingerprint(place)
        return Entry(method, replica, "model", seen[folder], seen[against] if against else "", folder, against)

    entries = []
    for method in methods:
        if method.kind == "checkpoints":
            assert method.path is not None  # check_methods
            found = checkpoints_of(method.path)
            entries += [entry(f"{method.name}@{checkpoint.step_of(path)}", 0, path) for path in found]
        elif method.kind == "model":
            entries += [entry(method.name, replica, path) for replica, path in enumerate(method.models)]
        else:
            entries.append(Entry(method.name, kind=method.kind))
    return entries


def check_models(methods: Sequence[MethodConfig], references: Sequence[str]) -> None:
    """UserError where a path of a row, or a reference, is no model: quickly, nothing is exported or hashed."""
    for method in methods:
        for replica, path in enumerate(method.models):
            _of_replica(references, replica, method.name)
            _ = is_checkpoint(path) or model_folder(path)
        if method.kind == "checkpoints":
            checkpoints_of(method.path or "")
    for path in references:
        _ = is_checkpoint(path) or model_folder(path)


def source(path: str | Path, exports: Path) -> Path:
    """The Hugging Face folder meant by a path: that of a run or model, or the export of a checkpoint below
    `exports`."""
    return export_checkpoint(path, exports) if is_checkpoint(path) else model_folder(path)


def plain_texts(methods: Sequence[MethodConfig], prompts: Sequence[EvalPrompt]) -> dict[str, dict[str, str]]:
    """What the methods without a model make of each prompt: method -> x -> y, x itself where that is what they show.

    UserError as `methods.texts_of`.
    """
    texts: dict[str, dict[str, str]] = {}
    for method in methods:
        if method.kind in ("user", "best_of"):
            texts[method.name] = {prompt.x: prompt.x for prompt in prompts}
        elif method.kind not in ("model", "checkpoints"):
            texts[method.name] = texts_of(method, prompts)
    return texts


def runs_of(methods: Sequence[MethodConfig], metrics: str) -> Mapping[str, list[str]]:
    """method -> the folders of the runs that trained its models, as far as they are runs with a file `metrics`."""
    found: dict[str, list[str]] = {}
    for method in methods:
        for path in [*method.models, *([method.path] if method.kind == "checkpoints" and method.path else [])]:
            above = (Path(path), *Path(path).parents[:2])  # RUN, RUN/export, RUN/checkpoints/step_000024
            run = next((place for place in above if (place / metrics).is_file()), None)
            if run is not None:
                found.setdefault(method.name, []).append(str(run))
    return found


def _of_replica(references: Sequence[str], replica: int, method: str) -> str | None:
    if len(references) <= 1:
        return references[0] if references else None
    if replica >= len(references):
        raise UserError(
            f"`reference` names {len(references)} models and {method!r} has more replicas: name one for each, or one "
            "for all"
        )
    return references[replica]
