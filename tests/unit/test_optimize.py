"""Rewriting with an exported folder: settings, independence of the batch, empty and over-long prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from promptist.data.text import decode_response, load_tokenizer, prompt_ids
from promptist.decoding.config import DecodingConfig
from promptist.decoding.decode import decode
from promptist.decoding.pick import place_of
from promptist.errors import UserError
from promptist.optimize import Promptist, RewriteSettings

POSITIONS = 64
QUICK = RewriteSettings(max_new_tokens=10)
PROMPTS = ["a red boat", "the sea", "a boat on the red sea, detailed", "  oil painting of a boat ", "boat"]


@pytest.fixture(scope="module")
def folder(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float32 GPT-2 with the tiny tokenizer, in one Hugging Face folder."""
    path = tmp_path_factory.mktemp("export")
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    torch.manual_seed(0)
    sizes = {"n_positions": POSITIONS, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    eos = tokenizer.eos_token_id
    config = GPT2Config(vocab_size=len(tokenizer), **sizes, bos_token_id=eos, eos_token_id=eos)
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def load(folder: Path, settings: RewriteSettings | None = QUICK) -> Promptist:
    return Promptist.from_pretrained(folder, device="cpu", settings=settings)


def test_rewrites_are_those_of_transformers_beam_search(folder: Path) -> None:
    promptist = load(folder)
    model, tokenizer = promptist.model, promptist.tokenizer
    for x in PROMPTS:
        ids = torch.tensor([prompt_ids(tokenizer, x)])
        options = {"num_beams": 8, "length_penalty": -1.0, "max_new_tokens": 10, "do_sample": False}
        eos = tokenizer.eos_token_id
        output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=eos, **options)
        expected = decode_response(tokenizer, output[0, ids.shape[1] :].tolist())
        assert promptist(x) == (expected or x.strip())


def test_a_text_gets_one_rewrite_whatever_the_batch(folder: Path) -> None:
    promptist = load(folder)
    alone = [promptist(x) for x in PROMPTS]
    assert promptist(PROMPTS) == alone
    assert promptist(PROMPTS[::-1] + PROMPTS[:2]) == alone[::-1] + alone[:2]
    assert promptist([]) == []


def test_an_empty_rewrite_leaves_the_prompt_as_it_is(folder: Path) -> None:
    promptist = load(folder)
    final, embedding = promptist.model.transformer.ln_f, promptist.model.transformer.wte.weight
    row = embedding[promptist.tokenizer.eos_token_id]
    with torch.no_grad():
        final.bias += 50 * row / row.square().sum()
    assert promptist.rewrites(["  a red boat "]) == [""]
    assert promptist("  a red boat ") == "a red boat"


def test_hash_takes_one_of_the_beams_of_each_prompt(folder: Path) -> None:
    """The rewrite is a beam that `generate` returns, the one that text and seed name, alone and in any batch."""
    decoding = DecodingConfig(method="beam", beams=4, groups=1, length_penalty=1.0)
    settings = [RewriteSettings(decoding, 10, "hash", seed) for seed in (0, 1)]
    promptist = load(folder, settings[0])
    model, tokenizer = promptist.model, promptist.tokenizer
    eos, beams = tokenizer.eos_token_id, []
    for x in PROMPTS:
        ids = torch.tensor([prompt_ids(tokenizer, x)])
        options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 10, "do_sample": False}
        output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=eos, **options)
        beams.append([decode_response(tokenizer, row[ids.shape[1] :].tolist()) for row in output])
    found = promptist.rewrites(PROMPTS)
    assert found == [of[place_of("hash", 4, 0, x)] for of, x in zip(beams, PROMPTS, strict=True)]
    assert found != [of[0] for of in beams]
    assert [promptist.rewrites([x])[0] for x in PROMPTS] == found
    assert load(folder, settings[1]).rewrites(PROMPTS) != found


def test_hash_fixes_the_draws_of_a_sample(folder: Path) -> None:
    """What one prompt alone draws with the counters of its text, in any batch and at any time."""
    decoding = DecodingConfig(method="sample", temperature=0.8, top_p=0.9)
    promptist = load(folder, RewriteSettings(decoding, 10, "hash", 3))
    eos, expected = promptist.tokenizer.eos_token_id, []
    for x in PROMPTS:
        ids = torch.tensor([prompt_ids(promptist.tokenizer, x)])
        key = ("pick-rewrite", 3, x.strip())
        found = decode(promptist.model, ids, torch.ones_like(ids), 10, decoding, eos, eos, 1, [key])
        expected.append(decode_response(promptist.tokenizer, found.sequences[0, 0, : found.lengths[0, 0]].tolist()))
    assert promptist.rewrites(PROMPTS) == expected
    assert [promptist.rewrites([x])[0] for x in PROMPTS] == expected
    assert load(folder, RewriteSettings(decoding, 10, "hash", 4)).rewrites(PROMPTS) != expected


def test_progress_counts_every_prompt(folder: Path) -> None:
    seen: list[int] = []
    load(folder).rewrites(PROMPTS, progress=seen.append)
    assert sum(seen) == len(PROMPTS)


def test_settings_come_from_the_folder(folder: Path, tmp_path: Path) -> None:
    assert load(folder, settings=None).settings == RewriteSettings(
        DecodingConfig(method="beam", beams=8, groups=1, length_penalty=-1.0), max_new_tokens=75
    )
    (tmp_path / "promptist.json").write_text(
        json.dumps({"decoding": {"method": "greedy"}, "max_new_tokens": 9})
    )
    assert RewriteSettings.of_folder(tmp_path) == RewriteSettings(DecodingConfig(method="greedy"), 9)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"new_tokens": 5}',
        '{"decoding": {"beam": 5}}',
        '{"decoding": {"method": "sample"}}',
        '{"decoding": {"beams": 0}}',
        '{"max_new_tokens": 0}',
        '{"pick": "any"}',
        '{"pick": "hash", "decoding": {"method": "greedy"}}',
        '{"max_new_tokens": "ten"}',
    ],
)
def test_broken_settings_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "promptist.json").write_text(text)
    with pytest.raises(UserError, match=r"promptist\.json"):
        RewriteSettings.of_folder(tmp_path)


def test_bad_prompts_and_folders(folder: Path, tmp_path: Path) -> None:
    promptist = load(folder)
    with pytest.raises(UserError, match="empty"):
        promptist(["a red boat", "  "])
    with pytest.raises(UserError, match=r"\d+ tokens long, and the model takes 54"):
        promptist("a red boat on the sea " * 30)
    with pytest.raises(UserError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="device"):
        Promptist.from_pretrained(folder, device="no-such-device")
