"""The models that rewrite: how they decode, and their rewrites and log-ratios with few models in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptist.cluster.launch import pick_device
from promptist.cluster.roles import World
from promptist.errors import UserError
from promptist.evaluation.timings import Stopwatch

if TYPE_CHECKING:
    from promptist.optimize import Promptist, RewriteSettings


def decoders_of(folders: Mapping[str, Sequence[Path]], same: bool) -> dict[str, Any]:
    """method -> how its models decode: as `promptist optimize` does, or as their folders' promptist.json says.

    UserError where those of one method differ, and, with `same`, where any do: the rows would then differ in more than
    their weights.
    """
    from promptist.optimize import RewriteSettings

    found: dict[str, tuple[Path, RewriteSettings]] = {}
    for method, own in folders.items():
        for folder in own:
            settings = RewriteSettings.of_folder(folder)
            for other in list(found) if same else [method]:
                if other in found and found[other][1] != settings:
                    advice = "" if other == method else ", or set decoders=own to compare models with their decoders"
                    raise UserError(
                        f"{folder} and {found[other][0]} decode differently: give both the same promptist.json{advice}"
                    )
            found.setdefault(method, (folder, settings))
    return {method: asdict(settings) for method, (_, settings) in found.items()}


class Policies:
    """Rewrites and log-ratios by the decoder of `promptist optimize`, one policy and one reference in memory at a
    time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._policies: dict[Path, Promptist] = {}
        self._references: dict[Path, tuple[Any, Any]] = {}

    def rewrite(self, folder: Path, prompts: list[str]) -> tuple[list[str], list[float]]:
        """One rewrite per prompt, and the seconds that each took."""
        policy, stopwatch = self._policy(folder), Stopwatch()
        return policy.rewrites(prompts, stopwatch.lap), stopwatch.seconds

    def log_ratios(self, folder: Path, reference: Path, rewrites: Mapping[str, str]) -> dict[str, float]:
        """As `kl.log_ratios`."""
        from promptist.data.text import load_tokenizer
        from promptist.evaluation.kl import log_ratios
        from promptist.models.policy import ModelConfig, load_reference

        policy = self._policy(folder)
        if reference not in self._references:
            self._references.clear()
            model = load_reference(ModelConfig(str(reference))).to(policy.model.device)
            self._references[reference] = model, load_tokenizer(reference)
        return log_ratios(policy, *self._references[reference], rewrites)

    def _policy(self, folder: Path) -> Promptist:
        from promptist.optimize import Promptist

        if folder not in self._policies:
            self._policies.clear()
            self._policies[folder] = Promptist.from_pretrained(folder, device=str(pick_device(self._world)))
        return self._policies[folder]
