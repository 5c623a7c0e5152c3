"""Our beam searches against those of transformers 4.56.2, token for token, on the same random GPT-2 in
float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from promptist.decoding.config import DecodingConfig
from promptist.decoding.decode import decode, pad_batch

VOCABULARY, EOS, PROMPTS, WIDTH, NEW = 60, 7, 8, 9, 14
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "oracles" / "transformers_beam.py"


def oracle_packages() -> Path:
    return Path(os.environ.get("PROMPTIST_ORACLES", ROOT / ".venv" / "oracles")) / "transformers-4.56.2"


def likely_eos_model(seed: int, bonus: float) -> GPT2LMHeadModel:
    """A random GPT-2 with a peaked distribution in which EOS gets a constant bonus of `bonus` nats, by the
    last norm's bias."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=40,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.25,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        row = model.transformer.wte.weight[EOS]
        model.transformer.ln_f.bias += bonus * row / row.square().sum()
    return model


def make_cases() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    cases = []
    shapes = [(8, 8), (8, 4), (8, 1)]
    for number, ((beams, groups), penalty, early) in enumerate(
        product(shapes, (1.0, 0.0, -1.0), (False, True))
    ):
        lengths = torch.randint(1, WIDTH + 1, (PROMPTS,), generator=generator)
        rows = [torch.randint(0, VOCABULARY, (int(n),), generator=generator).tolist() for n in lengths]
        pad = EOS if number % 3 else 5  # GPT-2's pad is its EOS; a pad of its own must work, too
        input_ids, mask = pad_batch(rows, PROMPTS, WIDTH, pad)
        cases.append(
            {
                "input_ids": input_ids.tolist(),
                "attention_mask": mask.tolist(),
                "max_new_tokens": NEW,
                "beams": beams,
                "groups": groups,
                "diversity_penalty": 1.0 if number % 2 else 0.4,
                "length_penalty": penalty,
                "early_stopping": early,
                "eos_id": EOS,
                "pad_id": pad,
            }
        )
    return cases


def ours(model: GPT2LMHeadModel, case: dict[str, Any]) -> Any:
    config = DecodingConfig(
        method="diverse_beam" if case["groups"] > 1 else "beam",
        **{
            key: case[key]
            for key in ("beams", "groups", "diversity_penalty", "length_penalty", "early_stopping")
        },
    )
    prompts, mask = torch.tensor(case["input_ids"]), torch.tensor(case["attention_mask"])
    return decode(model, prompts, mask, NEW, config, case["eos_id"], case["pad_id"], num_return=case["beams"])


@pytest.mark.skipif(
    not oracle_packages().is_dir(), reason="transformers 4.56.2 is not installed: run `make oracles`"
)
def test_equal_to_transformers_4_56_2(tmp_path: Path) -> None:
    model, cases = likely_eos_model(seed=0, bonus=2.0), make_cases()
    model.save_pretrained(tmp_path)
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    environment = os.environ | {
        "PYTHONPATH": str(oracle_packages()),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], check=True, env=environment, timeout=300)
    theirs = json.loads((tmp_path / "answers.json").read_text())
    assert theirs["version"] == "4.56.2"

    sequences = ended = early = 0
    for case, answer in zip(cases, theirs["answers"], strict=True):
        result = ours(model, case)
        name = {key: case[key] for key in ("beams", "groups", "length_penalty", "early_stopping", "pad_id")}
        for row, (expected, score) in enumerate(zip(answer["sequences"], answer["scores"], strict=True)):
            place = divmod(row, case["beams"])
            got, length = result.sequences[place].tolist(), int(result.lengths[place])
            expected = expected + [case["pad_id"]] * (NEW - len(expected))
            assert got == expected, f"{name}, prompt {place[0]}, response {place[1]}"
            assert float(result.scores[place]) == pytest.approx(score, rel=1e-5, abs=1e-5), name
            assert bool(result.finished[place]) == (EOS in expected[:length])
            assert length == (expected.index(EOS) + 1 if EOS in expected else NEW)
            sequences += 1
            ended += bool(result.finished[place])
        early += answer["early_groups"]
    assert sequences >= 1000
    assert 0.05 * sequences < ended < 0.99 * sequences
    assert early > 50, "the oracle saw too few groups finish early for this test to mean anything"
    print(f"{sequences} sequences, {ended} ended by EOS, {early} groups done early")
