"""Decoding against searches written out in plain Python, transformers' own `generate` and the model without
a cache."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from promptist.decoding.config import DecodingConfig
from promptist.decoding.decode import Decoded, decode, pad_batch
from promptist.decoding.sampling import draw
from promptist.errors import UserError

VOCABULARY, EOS = 40, 3


def small_model(dtype: torch.dtype = torch.float64, seed: int = 0, eos_bonus: float = 1.0) -> GPT2LMHeadModel:
    """A random GPT-2 with peaked predictions and an EOS that is likely enough to be met."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = GPT2Config(**sizes, initializer_range=0.25, bos_token_id=EOS, eos_token_id=EOS)
    model = GPT2LMHeadModel(config).to(dtype).eval()
    with torch.no_grad():
        row = model.transformer.wte.weight[EOS]
        model.transformer.ln_f.bias += eos_bonus * row / row.square().sum()
    return model


def some_prompts(count: int, longest: int, seed: int = 1) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [
        generator.integers(0, VOCABULARY, generator.integers(1, longest + 1)).tolist() for _ in range(count)
    ]


def run(
    model: Any, rows: list[list[int]], new: int, config: DecodingConfig, count: int, **options: Any
) -> Decoded:
    batch, width = options.pop("batch", len(rows)), options.pop("width", max(len(row) for row in rows))
    input_ids, mask = pad_batch(rows, batch, width, EOS)
    return decode(model, input_ids, mask, new, config, EOS, EOS, count, **options)


def next_logprobs(model: Any, tokens: list[int]) -> Tensor:
    """Log-probabilities of the token after `tokens`, from one full pass without cache or padding: float32
    [V]."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1].float().log_softmax(-1)


# --- diverse beam search --------------------------------------------------------------------------


def plain_python_group_search(
    model: Any, prompt: list[int], new: int, config: DecodingConfig
) -> list[tuple[float, list[int]]]:
    """Algorithm 1 of Vijayakumar et al. with the bookkeeping of transformers 4.56.2, for one prompt and no
    cleverness."""
    size = config.beams // config.groups
    beams = [[(0.0 if i == 0 else -1e9, prompt) for i in range(size)] for _ in range(config.groups)]
    heaps: list[list[tuple[float, list[int]]]] = [[] for _ in range(config.groups)]
    done = [False] * config.groups
    for length in range(1, new + 1):
        chosen: list[int] = []
        for group in range(config.groups):
            if done[group]:
                chosen += [EOS] * size  # pad is EOS
                continue
            candidates = []
            for score, tokens in beams[group]:
                counts = torch.tensor([chosen.count(token) for token in range(VOCABULARY)])
                values = next_logprobs(model, tokens) - config.diversity_penalty * counts + score
                candidates += [(value, tokens, token) for token, value in enumerate(values.tolist())]
            candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * size]
            beams[group] = []
            for rank, (score, tokens, token) in enumerate(candidates):
                if token == EOS:
                    if rank < size:
                        heaps[group].append(
                            (score / length**config.length_penalty, [*tokens[len(prompt) :], EOS])
                        )
                elif len(beams[group]) < size:
                    beams[group].append((score, [*tokens, token]))
            heaps[group] = sorted(heaps[group], key=lambda h: -h[0])[:size]
            chosen += [tokens[-1] for _, tokens in beams[group]]
            if len(heaps[group]) == size:
                reachable = candidates[0][0] / length**config.length_penalty
                done[group] = config.early_stopping or heaps[group][-1][0] >= reachable
    for group in range(config.groups):
        if not done[group]:
            heaps[group] += [(s / new**config.length_penalty, t[len(prompt) :]) for s, t in beams[group]]
            heaps[group] = sorted(heaps[group], key=lambda h: -h[0])[:size]
    return sorted((h for heap in heaps for h in heap), key=lambda h: -h[0])


@pytest.mark.parametrize(("beams", "groups"), [(4, 4), (6, 3)])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [1.0, -1.0])
def test_diverse_beam_search_is_the_written_out_one(
    beams: int, groups: int, length_penalty: float, early_stopping: bool
) -> None:
    model, new = small_model(eos_bonus=0.5), 7
    config = DecodingConfig(
        beams=beams, groups=groups, length_penalty=length_penalty, early_stopping=early_stopping
    )
    rows = some_prompts(3, 6)
    decoded = run(model, rows, new, config, beams)
    ended = 0
    for place, row in enumerate(rows):
        for response, (score, tokens) in enumerate(plain_python_group_search(model, row, new, config)):
            length = int(decoded.lengths[place, response])
            assert decoded.sequences[place, response, :length].tolist() == tokens
            assert decoded.sequences[place, response, length:].tolist() == [EOS] * (new - length)
            assert float(decoded.scores[place, response]) == pytest.approx(score, abs=1e-5)
            assert bool(decoded.finished[place, response]) == (tokens[-1] == EOS)
            ended += tokens[-1] == EOS
    assert 0 < ended < len(rows) * beams


# --- plain beam search and greedy, against transformers of this environment -----------------------


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0])
def test_beam_search_is_that_of_transformers(length_penalty: float, early_stopping: bool) -> None:
    model, rows, new = small_model(eos_bonus=-1.0), some_prompts(6, 8), 10
    input_ids, mask = pad_batch(rows, 6, 8, EOS)
    expected = model.generate(
        input_ids,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=False,
        num_beams=5,
        num_return_sequences=5,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        pad_token_id=EOS,
        eos_token_id=EOS,
    )[:, 8:]
    config = DecodingConfig(
        method="beam", beams=5, groups=1, length_penalty=length_penalty, early_stopping=early_stopping
    )
    decoded = decode(model, input_ids, mask, new, config, EOS, EOS, 5)
    assert 0 < int(decoded.finished.sum()) < 30  # both ends: EOS and the length limit
    assert torch.equal(decoded.sequences.flatten(0, 1)[:, : expected.shape[1]], expected)
    assert bool((decoded.sequences.flatten(0, 1)[:, expected.shape[1] :] == EOS).all())


def test_greedy_takes_the_most_probable_token() -> None:
    model, rows, new = small_model(), some_prompts(5, 8), 12
    decoded = run(model, rows, new, DecodingConfig(method="greedy"), 1)
    for place, row in enumerate(rows):
        tokens, score = list(row), 0.0
        while len(tokens) < len(row) + new and (len(tokens) == len(row) or tokens[-1] != EOS):
            logprobs = next_logprobs(model, tokens)
            tokens.append(int(logprobs.argmax()))
            score += float(logprobs.max())
        length = int(decoded.lengths[place, 0])
        assert decoded.sequences[place, 0, :length].tolist() == tokens[len(row) :]
        assert float(decoded.scores[place, 0]) == pytest.approx(score, abs=1e-5)
        assert bool(decoded.finished[place, 0]) == (tokens[-1] == EOS)


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    logits = np.array([1.0, 3.0, -2.0, 2.5, 0.0, 2.0])
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    ranked = np.argsort(-expected)
    nucleus = ranked[: int(np.searchsorted(expected[ranked].cumsum(), top_p - 1e-12) + 1)]
    expected = np.where(np.isin(np.arange(6), nucleus), expected, 0)
    expected /= expected.sum()
    count = 200_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # every quantile once: no sampling noise
    logprobs = torch.tensor(logits, dtype=torch.float32).log_softmax(0).expand(count, -1)
    drawn = np.bincount(draw(logprobs, grid, temperature, top_p).numpy(), minlength=6) / count
    assert drawn == pytest.approx(expected, abs=1e-4)
    assert bool((drawn[expected == 0] == 0).all())


def test_a_sample_and_its_score_belong_to_the_model() -> None:
    model, rows = small_model(), some_prompts(3, 6)
    keys = [(5, "sample", 0, row) for row in range(3)]
    decoded = run(model, rows, 9, DecodingConfig(method="sample", temperature=1.5), 4, keys=keys)
    for place, row in enumerate(rows):
        for response in range(4):
            tokens = decoded.sequences[place, response, : decoded.lengths[place, response]].tolist()
            score = sum(
                float(next_logprobs(model, row + tokens[:end])[tokens[end]]) for end in range(len(tokens))
            )
            assert float(decoded.scores[place, response]) == pytest.approx(score, abs=1e-4)
            assert EOS not in tokens[:-1]
    assert len({tuple(tokens) for tokens in decoded.sequences.flatten(0, 1).tolist()}) > 6


def test_samples_depend_on_their_key_alone() -> None:
    model, rows, config = small_model(), some_prompts(3, 6), DecodingConfig(method="sample")
    keys = [("run", 7, row) for row in range(3)]
    first = run(model, rows, 9, config, 4, keys=keys)
    turned = run(model, rows[::-1], 9, config, 6, keys=keys[::-1])
    assert torch.equal(first.sequences, turned.sequences.flip(0)[:, :4])
    other = run(model, rows, 9, config, 4, keys=[("run", 8, row) for row in range(3)])
    assert not torch.equal(first.sequences, other.sequences)


# --- independence of the batch, padding, the model's state ----------------------------------------

EVERY_METHOD = [
    DecodingConfig(),
    DecodingConfig(beams=8, groups=4),
    DecodingConfig(method="beam", groups=1, length_penalty=-1.0),
    DecodingConfig(method="sample", top_p=0.9),
    DecodingConfig(method="greedy"),
]


@pytest.mark.parametrize("config", EVERY_METHOD, ids=lambda c: f"{c.method}-{c.groups}")
def test_a_row_does_not_depend_on_its_neighbours(config: DecodingConfig) -> None:
    """Bit for bit in float32, at any place of the batch and with padding rows or none."""
    model, rows = small_model(torch.float32), some_prompts(8, 10)
    count = 1 if config.method == "greedy" else 4

    def decoded(places: list[int]) -> list[Decoded]:
        keys = [("k", place) for place in places] if config.method == "sample" else None
        found = run(model, [rows[place] for place in places], 12, config, count, batch=8, width=10, keys=keys)
        return [Decoded(*(part[i] for part in found)) for i in range(len(places))]

    together = decoded(list(range(8)))
    for places in ([5], [7, 6, 5, 4, 3, 2, 1, 0], [2, 2, 0], [3, 1, 4, 1, 5, 2, 6, 5]):
        for place, alone in zip(places, decoded(places), strict=True):
            for ours, theirs in zip(alone, together[place], strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("config", EVERY_METHOD, ids=lambda c: f"{c.method}-{c.groups}")
def test_wider_padding_changes_nothing(config: DecodingConfig) -> None:
    model, rows = small_model(), some_prompts(4, 6)
    count = 1 if config.method == "greedy" else 4
    keys = [("k", place) for place in range(4)] if config.method == "sample" else None
    narrow, wide = (run(model, rows, 10, config, count, width=width, keys=keys) for width in (6, 19))
    assert torch.equal(narrow.sequences, wide.sequences)
    torch.testing.assert_close(narrow.scores, wide.scores, atol=1e-5, rtol=1e-5)


def test_eager_attention_decodes_the_same() -> None:
    model, rows = small_model(), some_prompts(4, 6)
    with_sdpa = run(model, rows, 10, DecodingConfig(), 8)
    model.set_attn_implementation("eager")
    assert torch.equal(with_sdpa.sequences, run(model, rows, 10, DecodingConfig(), 8).sequences)


def test_a_model_in_training_decodes_without_dropout_and_stays_in_training() -> None:
    model, rows = small_model(), some_prompts(4, 6)
    expected = run(model, rows, 10, DecodingConfig(), 8)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    decoded = run(model.train(), rows, 10, DecodingConfig(), 8)
    assert torch.equal(decoded.sequences, expected.sequences)
    assert model.training and not decoded.scores.requires_grad
    with pytest.raises(UserError):
        run(model, rows, 1000, DecodingConfig(), 8)
    assert model.training and torch.is_grad_enabled()


def test_best_first_and_the_prompt_is_read_once() -> None:
    model, rows, read = small_model(), some_prompts(3, 6), []
    model.transformer.wte.register_forward_hook(
        lambda module, inputs, output: read.append(tuple(inputs[0].shape))
    )
    decoded = run(model, rows, 5, DecodingConfig(), 8, width=6)
    assert read[0] == (3, 6) and set(read[1:]) == {(24, 1)}
    assert all(a >= b for scores in decoded.scores.tolist() for a, b in pairwise(scores))


def test_the_search_leaves_when_every_group_is_done() -> None:
    model, steps = small_model(eos_bonus=30.0), []
    model.lm_head.register_forward_hook(lambda *_: steps.append(1))
    decoded = run(model, some_prompts(3, 6), 40, DecodingConfig(diversity_penalty=0.1), 8)
    assert bool(decoded.finished.all()) and int(decoded.lengths.max()) == 1
    assert len(steps) <= 4


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"method": "beams"}, "method"),
        ({"beams": 0}, "beams"),
        ({"beams": 8, "groups": 3}, "multiple"),
        ({"groups": 1}, "groups"),
        ({"method": "beam", "groups": 8}, "groups"),
        ({"diversity_penalty": 0.0}, "diversity_penalty"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_a_wrong_number_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        DecodingConfig(**values)


def test_bad_calls() -> None:
    model, rows = small_model(), some_prompts(2, 6)
    with pytest.raises(UserError, match=r"64 positions.*shorten the prompt to 4 tokens"):
        run(model, [[1] * 6], 60, DecodingConfig(), 8)
    with pytest.raises(UserError, match="1 to 8 responses"):
        run(model, rows, 5, DecodingConfig(), 9)
    with pytest.raises(UserError, match="1 to 1 responses"):
        run(model, rows, 5, DecodingConfig(method="greedy"), 2)
    with pytest.raises(UserError, match="at least 1"):
        run(model, rows, 0, DecodingConfig(), 1)
    with pytest.raises(ValueError, match="keys"):
        run(model, rows, 5, DecodingConfig(method="sample"), 2)
    with pytest.raises(ValueError, match="left-padded"):
        decode(model, torch.ones(1, 2).long(), torch.tensor([[1, 0]]), 5, DecodingConfig(), EOS, EOS, 1)


def test_pad_batch() -> None:
    input_ids, mask = pad_batch([[4, 5], [6]], batch=3, length=3, pad=9)
    assert input_ids.tolist() == [[9, 4, 5], [9, 9, 6], [9, 4, 5]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1], [0, 1, 1]]
    for rows in ([], [[1]] * 4, [[]], [[1, 2, 3, 4]]):
        with pytest.raises(ValueError, match="fit"):
            pad_batch(rows, batch=3, length=3, pad=9)
