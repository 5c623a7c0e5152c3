"""Beam search of transformers 4.56.2, run by tests/unit/test_decoding_oracle.py in a process of its own.

    python transformers_beam.py FOLDER

FOLDER holds a GPT-2 (`config.json`, `model.safetensors`) and `cases.json`; `answers.json` is written beside
them. The path of the oracle's packages must come first in PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from transformers import GPT2LMHeadModel
from transformers.generation.beam_search import BeamSearchScorer

early_groups = 0  # (prompt, group) pairs done before the last step


def count_early_groups(limit: int) -> None:
    """Make the scorer count the groups that become done with tokens still to come, up to `limit` tokens in
    all."""
    original = BeamSearchScorer.__dict__.get("counted_process", BeamSearchScorer.process)

    def process(self, input_ids, *args, **kwargs):
        global early_groups
        before = self._done.sum().item()
        result = original(self, input_ids, *args, **kwargs)
        if input_ids.shape[1] + 1 < limit:
            early_groups += self._done.sum().item() - before
        return result

    BeamSearchScorer.counted_process = original
    BeamSearchScorer.process = process


def answer(model: GPT2LMHeadModel, case: dict) -> dict:
    global early_groups
    early_groups = 0
    prompts = torch.tensor(case["input_ids"])
    count_early_groups(prompts.shape[1] + case["max_new_tokens"])
    grouped = (
        {"num_beam_groups": case["groups"], "diversity_penalty": case["diversity_penalty"]}
        if case["groups"] > 1
        else {}
    )
    result = model.generate(
        prompts,
        attention_mask=torch.tensor(case["attention_mask"]),
        max_new_tokens=case["max_new_tokens"],
        do_sample=False,
        num_beams=case["beams"],
        num_return_sequences=case["beams"],
        length_penalty=case["length_penalty"],
        early_stopping=case["early_stopping"],
        eos_token_id=case["eos_id"],
        pad_token_id=case["pad_id"],
        return_dict_in_generate=True,
        output_scores=True,
        **grouped,
    )
    return {
        "sequences": result.sequences[:, prompts.shape[1] :].tolist(),
        "scores": result.sequences_scores.tolist(),
        "early_groups": early_groups,
    }


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    model = GPT2LMHeadModel.from_pretrained(folder, torch_dtype=torch.float64).eval()
    # Group search casts the logits to float32 itself, but its record of scores does not survive float64 ones.
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.float())
    cases = json.loads((folder / "cases.json").read_text())
    answers = {"version": transformers.__version__, "answers": [answer(model, case) for case in cases]}
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
