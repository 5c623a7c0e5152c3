"""Compare trained policies and ways to decode them on validation prompts: reward, relevance kept, diversity, hiding.

    python benchmarks/remedies.py runs/demo-sft:best runs/demo-sft:8 runs/demo-ppo runs/mini-ppo-remedies
        [--config configs/miniature/ppo.yaml] [--prompts FILE ...] [--images 2] [--out FILE.json]

A row is `FOLDER[:DECODER]`: a run or model folder, decoded as its `promptist.json` says; `:best` the demo's beam
search, `:N` diverse beam search with N beams in N groups, one of them picked by the hash of the prompt, `:pP`
samples with top_p P, their draws fixed by the prompt. Prompts are those of `data.valid` of the config (never
a test set), or of files with one prompt a line, or JSONL. All rows paint under the noises 0, 1, ... of the namespace
"valid". Measurements are kept in `--store` and not painted again.

Printed: score (gain + relevance hinge) and its difference to the plain prompt, aesthetic gain, change of the raw cosine
against the plain prompt's picture in standard deviations of plain prompts' cosines, each with its standard error over
prompts; share of the most frequent set of modifiers, different sets, share of rewrites that hide the content, share
left as is. The modifiers that hide are those of the miniature world.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from promptist.config import load
from promptist.data.modifiers import modifiers
from promptist.data.prompts import read_prompts
from promptist.data.text import effective_prompt
from promptist.decoding.config import DecodingConfig
from promptist.evaluation.methods import model_folder
from promptist.optimize import Promptist, RewriteSettings
from promptist.reward.messages import ImageRequest, Measurement
from promptist.reward.model import RewardModel
from promptist.reward.terms import combine
from promptist.rl.config import PPOJob
from promptist.synthetic.grammar import MODIFIERS

NEW_TOKENS = 30  # of a rewrite by diverse beams, as the longest rollout of the miniature
HIDING = [modifier.phrase for modifier in MODIFIERS if modifier.sort == "hide"]
COLUMNS = (
    "row", "score", "- plain", "se", "gain", "cosine/sd", "se", "top set", "sets", "hiding", "as is"
)  # fmt: skip


class Paintings:
    """Measurements by (painted text, x, k) in a JSONL file; what is missing is painted."""

    def __init__(self, config: Any, path: Path) -> None:
        self._model = RewardModel(config)
        self._path = path
        self._known: dict[tuple[str, str, str, int], Measurement] = {}
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                entry = json.loads(line)
                self._known[tuple(entry["key"])] = Measurement(**entry["measurement"])

    def __call__(self, pairs: Sequence[tuple[str, str]], images: int) -> list[list[Measurement]]:
        """`[[measurement of k], ...]` of each (painted text, x)."""
        prints = self._model.fingerprint
        keys = {(prints, y, x, k): ImageRequest(y, x, "valid", k) for y, x in pairs for k in range(images)}
        missing = [key for key in keys if key not in self._known]
        with open(self._path, "a", encoding="utf-8") as stream:
            for start in range(0, len(missing), self._model.batch):
                part = missing[start : start + self._model.batch]
                for key, found in zip(part, self._model.measure([keys[key] for key in part]), strict=True):
                    self._known[key] = found
                    stream.write(json.dumps({"key": key, "measurement": asdict(found)}) + "\n")
                stream.flush()
        return [[self._known[prints, y, x, k] for k in range(images)] for y, x in pairs]


def rewrites_of(row: str, prompts: list[str]) -> list[str]:
    """What the row `FOLDER[:DECODER]` paints for each prompt."""
    folder, _, decoder = row.partition(":")
    settings = None
    if decoder == "best":
        settings = RewriteSettings()
    elif decoder.startswith("p"):
        settings = RewriteSettings(DecodingConfig("sample", top_p=float(decoder[1:])), NEW_TOKENS, "hash")
    elif decoder:
        beams = int(decoder)
        settings = RewriteSettings(DecodingConfig("diverse_beam", beams, beams), NEW_TOKENS, "hash")
    promptist = Promptist.from_pretrained(model_folder(folder), device="cpu", settings=settings)
    return [effective_prompt(x, y) for x, y in zip(prompts, promptist.rewrites(prompts), strict=True)]


def figures(
    prompts: list[str], painted: list[str], of_y: list[list[Measurement]], of_x: list[list[Measurement]], terms: Any
) -> dict[str, float]:
    scores, plain, changes = [], [], []
    for y, x in zip(of_y, of_x, strict=True):
        aesthetic_x = [m.aesthetic for m in x]
        scores.append(combine([m.cosine for m in y], [m.aesthetic for m in y], aesthetic_x, terms))
        plain.append(combine([m.cosine for m in x], aesthetic_x, aesthetic_x, terms).score)
        changes.append(fmean(m.cosine for m in y) - fmean(m.cosine for m in x))
    spread = stdev(fmean(m.cosine for m in x) for x in of_x)
    gains = [score.score - own for score, own in zip(scores, plain, strict=True)]
    sets = Counter(modifiers(x, y) for x, y in zip(prompts, painted, strict=True))
    n, root = len(prompts), math.sqrt(len(prompts))
    return {
        "score": fmean(s.score for s in scores),
        "difference": fmean(gains),
        "difference_se": stdev(gains) / root,
        "gain": fmean(s.aesthetic for s in scores),
        "cosine_sd": fmean(changes) / spread,
        "cosine_sd_se": stdev(changes) / root / spread,
        "top_set": max(sets.values()) / n,
        "sets": len(sets) / n,
        "hiding": sum(any(phrase in y for phrase in HIDING) for y in painted) / n,
        "as_is": sum(x == y for x, y in zip(prompts, painted, strict=True)) / n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="+", metavar="FOLDER[:DECODER]")
    parser.add_argument("--config", type=Path, default=Path("configs/miniature/ppo.yaml"))
    parser.add_argument("--prompts", type=Path, nargs="+", help="default: data.valid of the config")
    parser.add_argument("--images", type=int, default=1, help="pictures per prompt")
    parser.add_argument("--store", type=Path, default=Path("runs/mini-remedies.jsonl"))
    parser.add_argument("--out", type=Path, help="write figures and texts as JSON")
    options = parser.parse_args()
    job = load(PPOJob, options.config)
    files = options.prompts or [Path(job.data.valid)]
    prompts = list(dict.fromkeys(prompt.text for file in files for prompt in read_prompts(file)))
    texts = {row: rewrites_of(row, prompts) for row in options.rows}
    paint, terms = Paintings(job.reward, options.store), job.reward.terms
    of_x = paint([(x, x) for x in prompts], options.images)
    print(f"{len(prompts)} prompts, {options.images} pictures each")
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    results = {}
    for row, painted in [("user", prompts), *texts.items()]:
        found = figures(prompts, painted, paint(list(zip(painted, prompts, strict=True)), options.images), of_x, terms)
        results[row] = {"figures": found, "texts": dict(zip(prompts, painted, strict=True))}
        signed = [f"{found[k]:+.2f}" for k in ("score", "difference", "difference_se", "gain", "cosine_sd")]
        shares = [f"{found[k]:.0%}" for k in ("top_set", "sets", "hiding", "as_is")]
        print("| " + " | ".join([row, *signed, f"{found['cosine_sd_se']:.2f}", *shares]) + " |", flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
