"""CLIP-style BPE of the miniature world, trained on its own corpus, for both image models."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from promptist import rng as counter_rng
from promptist.synthetic.scenes import corpus

CONTEXT = 32  # tokens of both text encoders, start and end included: the miniature's 77
CORPUS_LINES = 20_000
CLIP_MERGES, GPT2_VOCABULARY = 500, 1024


def train_clip_merges(seed: int) -> list[str]:
    """Merge rules of a CLIP-style BPE (words end in ``</w>``), in order of rank."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(vocab_size=CLIP_MERGES + 64, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(corpus(CORPUS_LINES, counter_rng.generator(seed, "clip-corpus")), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def clip_vocabulary(merges: list[str]) -> dict[str, int]:
    """Token to id, laid out as open_clip lays it out: bytes, bytes at a word's end, merges, start, end."""
    from open_clip.tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<start_of_text>", "<end_of_text>"]
    return {token: index for index, token in enumerate(tokens)}


def write_open_clip_bpe(merges: list[str], path: Path) -> None:
    """The file open_clip's SimpleTokenizer reads. No newline at its end: it would count as a merge, shifting ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write("\n".join(["#version: miniature", *merges]).encode())


def diffusers_tokenizer(merges: list[str]):  # type: ignore[no-untyped-def]
    """The same vocabulary as a transformers CLIPTokenizer, for the diffusion pipeline's text encoder."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(
        vocab=clip_vocabulary(merges),
        merges=[tuple(merge.split()) for merge in merges],
        bos_token="<start_of_text>",
        eos_token="<end_of_text>",
        unk_token="<end_of_text>",
        pad_token="<end_of_text>",
        model_max_length=CONTEXT,
    )
