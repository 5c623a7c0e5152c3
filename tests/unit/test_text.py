"""The text format, with a small byte-level BPE and, where present, GPT-2's own vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptist.data import text
from promptist.errors import UserError

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SAME_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


def spell(tokenizer: Any, ids: list[int]) -> str:
    """Byte-level BPE read back by hand: each character of a token stands for one byte (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    table = {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
    return bytes(table[c] for t in tokenizer.convert_ids_to_tokens(ids) for c in t).decode("utf-8")


def test_prompt_is_the_stripped_text_and_the_separator(tiny_tokenizer: Any) -> None:
    assert spell(tiny_tokenizer, text.prompt_ids(tiny_tokenizer, "  a red boat\n")) == "a red boat Rephrase:"


def test_response_starts_with_a_space_and_ends_with_eos(tiny_tokenizer: Any) -> None:
    ids = text.response_ids(tiny_tokenizer, " a red boat, oil painting ")
    assert spell(tiny_tokenizer, ids[:-1]) == " a red boat, oil painting"
    assert ids[-1] == tiny_tokenizer.eos_token_id
    assert ids.count(tiny_tokenizer.eos_token_id) == 1


def test_empty_response_is_eos_alone_and_paints_the_prompt(tiny_tokenizer: Any) -> None:
    assert text.response_ids(tiny_tokenizer, "  ") == [tiny_tokenizer.eos_token_id]
    assert text.decode_response(tiny_tokenizer, [tiny_tokenizer.eos_token_id]) == ""
    assert text.effective_prompt(" a red boat", " ") == "a red boat"
    assert text.effective_prompt("a red boat", "a ship ") == "a ship"


@SAME_FIXTURE
@given(y=WORDS)
def test_response_round_trip(tiny_tokenizer: Any, y: str) -> None:
    assert text.decode_response(tiny_tokenizer, text.response_ids(tiny_tokenizer, y)) == y.strip()


def test_decoding_stops_at_the_first_eos_and_needs_none(tiny_tokenizer: Any) -> None:
    ids = text.response_ids(tiny_tokenizer, "a boat")
    assert text.decode_response(tiny_tokenizer, ids + ids) == "a boat"
    assert text.decode_response(tiny_tokenizer, ids[:-1]) == "a boat"


def test_spaces_before_punctuation_stay(tiny_tokenizer: Any) -> None:
    """transformers' clean-up would give "a boat, it's": another prompt than the policy wrote."""
    assert (
        text.decode_response(tiny_tokenizer, text.response_ids(tiny_tokenizer, "a boat , it 's"))
        == "a boat , it 's"
    )


def test_typed_eos_is_text_not_an_end(tiny_tokenizer: Any) -> None:
    ids = text.response_ids(tiny_tokenizer, "a<|endoftext|>b")
    assert ids.count(tiny_tokenizer.eos_token_id) == 1
    assert tiny_tokenizer.eos_token_id not in text.prompt_ids(tiny_tokenizer, "a<|endoftext|>b")


def test_pad_is_eos(tiny_tokenizer: Any) -> None:
    assert tiny_tokenizer.pad_token_id == tiny_tokenizer.eos_token_id


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing-here does not exist"):
        text.load_tokenizer(tmp_path / "nothing-here")


def test_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no tokenizer could be loaded from {tmp_path}"):
        text.load_tokenizer(tmp_path)


def test_tokenizer_without_eos_is_refused(tiny_tokenizer_folder: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_file=str(tiny_tokenizer_folder / "tokenizer.json")).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="has no eos_token"):
        text.load_tokenizer(tmp_path)


def test_gpt2_vocabulary(data_folder: Path, tmp_path: Path) -> None:
    """Known ids of GPT-2 tokens, and real prompts there and back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    source = data_folder / "gpt2-tokenizer"
    if not source.is_dir():
        pytest.skip(f"no GPT-2 tokenizer in {data_folder}")
    vocab = json.loads((source / "vocab.json").read_text("utf-8"))
    lines = (source / "merges.txt").read_text("utf-8").splitlines()[1:]
    merges = [(a, b) for a, b in (line.split(" ") for line in lines) if a + b in vocab]
    raw = Tokenizer(models.BPE(vocab, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    tokenizer = text.load_tokenizer(tmp_path)
    # "a", " cat", " R", "eph", "rase", ":" as in the model card's vocabulary
    expected = [vocab[t] for t in ("a", "Ġcat", "ĠReph", "rase", ":") if t in vocab]
    ids = text.prompt_ids(tokenizer, "a cat")
    assert ids[:2] == [64, 3797]
    assert spell(tokenizer, ids) == "a cat Rephrase:"
    assert expected[0] == ids[0]
    prompts = (data_folder / "prompts" / "imagereward_benchmark.txt").read_text("utf-8").split("\n")[:200]
    for prompt in prompts:
        assert text.decode_response(tokenizer, text.response_ids(tokenizer, prompt)) == prompt.strip()
