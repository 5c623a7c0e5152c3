"""Lengths in tokens against the tokenizers themselves and against what the painter calls too long."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from promptist.errors import UserError
from promptist.evaluation.lengths import CLIP, GPT2, encoder_ruler, language_ruler
from tests.helpers_reward import TEXT_TOKENS, make_tiny_reward

TEXTS = ["a red boat", "", "boat " * 11, "boat " * 12, "<|endoftext|> a boat", "ü, \u2028 boat"]


def test_language_model(tiny_tokenizer_folder: Path) -> None:
    ruler, count = language_ruler(tiny_tokenizer_folder)
    assert (ruler.metric, ruler.source, ruler.limit) == (GPT2, str(tiny_tokenizer_folder), None)
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    assert count(TEXTS[:4]) == [len(tokenizer.tokenize(text)) for text in TEXTS[:4]]
    assert count(TEXTS[4:5])[0] > 5  # the characters that a user typed, not the end of the text
    again = language_ruler(tiny_tokenizer_folder)
    again[1](["other"])
    assert again[0] == ruler == language_ruler(str(tiny_tokenizer_folder))[0]


def test_text_encoder_counts_as_the_painter_cuts(tmp_path: Path) -> None:
    from promptist.config import load
    from promptist.reward.diffusion import DiffusionConfig, Painter

    config = make_tiny_reward(tmp_path)["diffusion"]
    (tmp_path / "d.yaml").write_text("\n".join(f"{key}: {value}" for key, value in config.items()))
    painter = Painter(load(DiffusionConfig, tmp_path / "d.yaml"))
    ruler, count = encoder_ruler(config["path"])
    assert (ruler.metric, ruler.limit) == (CLIP, TEXT_TOKENS)
    lengths = count(TEXTS)
    assert lengths[:4] == [6, 2, 24, 26]  # a red boa-t, between start and end
    assert [n > TEXT_TOKENS for n in lengths] == [painter.cuts(text) for text in TEXTS]
    assert {True, False} == {painter.cuts(text) for text in TEXTS}


def test_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer could be loaded from the diffusion pipeline"):
        encoder_ruler(str(tmp_path))
