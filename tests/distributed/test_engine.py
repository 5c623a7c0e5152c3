"""DeepSpeed engines against a plain single-process torch loop: every ZeRO stage, one and two ranks, uneven
ragged rows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Finished, Mpirun
from tests.helpers_models import write_tiny_gpt2

pytestmark = pytest.mark.distributed

SETUP = """
import copy, sys
from pathlib import Path
import torch, torch.distributed as dist
from promptist.cluster.roles import join_world
from promptist.cluster.launch import init_training
from promptist.errors import UserError
world = join_world()
init_training(world, "cpu")
from promptist.models import engine as E
from promptist.models.policy import ModelConfig, export_policy, forward_logprobs, load_policy
from promptist.models.tokens import TokenSum, length_mask
from promptist.models.value import ValueConfig, forward_values, load_value
from tests.helpers_models import ragged_batch
E.PERSISTENCE_THRESHOLD = 0  # else ZeRO-3 would keep this tiny model whole
model_folder, work = sys.argv[1], Path(sys.argv[2])
CONFIG = ModelConfig(path=model_folder)
OPTIMIZER = E.OptimizerConfig(name="adamw", lr=1e-2, eps=1e-3, weight_decay=0.1, schedule="linear",
                              warmup_steps=2, grad_clip=0.5)
STEPS, ROWS, MICRO = 6, 8, 2
rank, size = world.group_rank, world.group_size
ACCUMULATION = ROWS // size // MICRO

def rows_of(step):
    return ragged_batch(260, rows=ROWS, seed=100 + step)

def local_parts(step):
    ids, prompts, responses, width = rows_of(step)
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    chunks = zip(*(t[mine].split(MICRO) for t in (ids, prompts, responses)))
    return [(*chunk, width) for chunk in chunks], int(responses[mine].sum())

def nll(engine):
    def loss(part):
        lp = forward_logprobs(engine, *part)
        return TokenSum(-lp.sum(), part[2].sum(), {"square": lp.detach().square().sum()})
    return loss

def make(stage, module=None):
    module = module or load_policy(CONFIG)
    return E.build_engine(module, OPTIMIZER, E.ZeroConfig(stage=stage, micro_batch=MICRO), STEPS,
    ACCUMULATION)

def step(engine, index):
    parts, count = local_parts(index)
    return E.global_step(engine, parts, nll(engine), count, index)

def refused(kind, words, call):
    try:
        call()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"went through: {words}")

def say(*words):
    if rank == 0:
        print(*words, flush=True)
"""

REFERENCE = """
def reference():
    # Plain torch, whole batch at once, written without the code under test's optimiser, schedule or clipping.
    model = load_policy(CONFIG)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay":
    0.0}],
                                  lr=1e-2, betas=(0.9, 0.95), eps=1e-3)
    history = []
    for index in range(STEPS):
        rate = 1e-2 * [0.5, 1.0, 1.0, 0.75, 0.5, 0.25][index]
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = rows_of(index)
        lp = forward_logprobs(model, *batch)
        loss = -lp.sum() / batch[2].sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        square = lp.detach().square().sum() / batch[2].sum()
        history.append((float(loss.detach()), float(square), float(norm), rate))
    return model.state_dict(), history

expected, history = reference()
assert min(h[2] for h in history) > 0.5, "the clip must bite"
for stage in (0, 1, 2, 3):
    engine = make(stage)
    for index in range(STEPS):
        result = step(engine, index)
        loss, square, norm, rate = history[index]
        where = (stage, index, result, history[index])
        assert abs(result.loss - loss) < 1e-5 and abs(result.stats["square"] - square) < 1e-4, where
        assert abs(result.grad_norm / norm - 1) < 1e-4 and abs(result.lr - rate) < 1e-9, where
    state = E.consolidated_state_dict(engine)
    assert (state is None) == (rank != 0)
    if rank == 0:
        worst = max(float((state[k] - expected[k]).abs().max()) for k in expected)
        assert worst < 2e-6, (stage, worst)
        say("equal", stage, worst)
"""

BEHAVIOUR = """
from promptist.data.text import load_tokenizer
for stage in (1, 3):
    policy = make(stage)
    value = E.build_engine(load_value(CONFIG, ValueConfig(head_init="default")), OPTIMIZER,
                           E.ZeroConfig(stage=stage, micro_batch=MICRO), STEPS, ACCUMULATION)
    for index in range(2):  # two engines take turns
        step(policy, index)
        parts, count = local_parts(index)
        def value_loss(part):
            error = forward_values(value, *part) - 1
            total = error.masked_fill(~length_mask(part[2], part[3]), 0).square().sum()
            return TokenSum(total, part[2].sum(), {})
        E.global_step(value, parts, value_loss, count, index)
    batch = rows_of(50)
    with torch.no_grad():
        through_engine = forward_logprobs(policy, *batch)
        with E.gathered(policy) as module:
            assert all(p.numel() > 0 for p in module.parameters()) and not module.training
            assert torch.equal(forward_logprobs(module, *batch), through_engine)
        assert policy.module.training

    # what save wrote is what load finds: weights, moments, schedule
    folder = work / f"stage{stage}"
    E.save_engine(policy, folder / "policy")
    E.save_engine(value, folder / "value")
    dist.barrier()
    again = make(stage)
    E.load_engine(again, folder / "policy")
    for index in range(2, 4):
        a, b = step(policy, index), step(again, index)
        assert a == b and a.lr != 0, (stage, a, b)
    one, two = E.consolidated_state_dict(policy), E.consolidated_state_dict(again)
    if rank == 0:
        assert all(torch.equal(one[k], two[k]) for k in one)
        export_policy(policy.module, one, load_tokenizer(model_folder), folder / "export")
        exported = load_policy(ModelConfig(path=str(folder / "export")))
        assert all(torch.equal(v, one[k]) for k, v in exported.state_dict().items())
    say("resumed", stage)

    # a loss that is not a number stops every rank, naming the step; other wrong uses, too
    parts, count = local_parts(4)
    for bad, words in ((float("nan"), "step 4: the loss is nan"), (float("inf"), "step 4: the loss is inf")):
        broken = make(stage)
        def poison(part):
            total = -forward_logprobs(broken, *part).sum()
            return TokenSum(total * (bad if rank == 0 else 1.0), part[2].sum(), {})
        refused(UserError, words, lambda: E.global_step(broken, parts, poison, count, 4))
    # the loss is fine but its gradient is not
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()
        @staticmethod
        def backward(ctx, g):
            return g * float("nan")
    broken = make(stage)
    def poison(part):
        return TokenSum(-Root.apply(forward_logprobs(broken, *part)).sum(), part[2].sum(), {})
    refused(UserError, "step 4: the gradient norm", lambda: E.global_step(broken, parts, poison, count, 4))
    short, wrong = make(stage), make(stage)
    refused(ValueError, "an engine that accumulates 2",
            lambda: E.global_step(short, parts[:-1], nll(short), count, 4))
    refused(ValueError, "announced", lambda: E.global_step(wrong, parts, nll(wrong), count + 1, 4))
    say("refused", stage)
empty = make(1)
refused(UserError, "holds no engine state", lambda: E.load_engine(empty, work / "nothing"))
say("no engine state: True")
"""

BFLOAT16 = """
half = ModelConfig(path=model_folder, dtype="bfloat16")
full = make(1)
losses = [step(full, index).loss for index in range(4)]
for stage in (1, 2, 3):
    engine = make(stage, load_policy(half))
    got = [step(engine, index) for index in range(4)]
    assert all(abs(g.loss - l) < 0.05 for g, l in zip(got, losses)), (stage, got, losses)
    assert all(0 < g.grad_norm < 1e3 for g in got), got
    say("bfloat16", stage, [round(g.loss, 3) for g in got], [round(l, 3) for l in losses])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    return write_tiny_gpt2(tmp_path_factory.mktemp("gpt2"), tiny_tokenizer_folder)


@pytest.fixture(scope="module")
def two_ranks(mpirun: Mpirun, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """All that two ranks do, in one start: loading torch and DeepSpeed takes longer than the work."""
    source = SETUP + REFERENCE + BFLOAT16 + BEHAVIOUR
    return mpirun(2, source, [folder, tmp_path_factory.mktemp("engines")], timeout_s=600)


def test_global_step_equals_plain_torch_at_every_stage(
    mpirun: Mpirun, folder: Path, tmp_path: Path, two_ranks: Finished
) -> None:
    alone = mpirun(1, SETUP + REFERENCE, [folder, tmp_path], timeout_s=600).ok()
    for done in (alone, two_ranks):
        assert done.stdout.count("equal") == 4, done.stderr[-5000:]


def test_bfloat16_trains_close_to_float32(two_ranks: Finished) -> None:
    assert two_ranks.stdout.count("bfloat16") == 3, two_ranks.stderr[-5000:]


def test_gather_save_load_export_and_refusals(two_ranks: Finished) -> None:
    done = two_ranks.ok()
    assert done.stdout.count("resumed") == done.stdout.count("refused") == 2
    assert "no engine state: True" in done.stdout
