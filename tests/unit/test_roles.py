"""Who trains and who paints."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptist.cluster.launch import init_training, pick_device, share_cores
from promptist.cluster.roles import RolesConfig, World, assign, share_of_cores
from promptist.errors import UserError

NODES = st.lists(st.integers(0, 4), min_size=2, max_size=24)


def place(size: int = 1, local_rank: int = 0, role: str = "train", cores: int = 1) -> World:
    return World(0, size, role, 0, 1, local_rank, (role,) * size, ("host",) * size, (0,) * size, cores)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "config", "expected"),
    [
        ([0], RolesConfig(), "b"),
        ([0], RolesConfig(reward_per_node=1), "b"),
        ([0], RolesConfig(reward_nodes=1), "b"),
        ([0, 0, 0], RolesConfig(reward_per_node=1), "ttr"),
        ([0, 0, 0, 0], RolesConfig(reward_per_node=2), "ttrr"),
        ([0, 0, 0, 1, 1, 1], RolesConfig(reward_per_node=1), "ttrttr"),
        ([0, 1, 0, 1, 0, 1], RolesConfig(reward_per_node=1), "ttttrr"),  # cyclic placement
        ([0, 0, 1, 1, 2, 2], RolesConfig(reward_nodes=1), "ttttrr"),
        ([0, 0, 1, 1, 2, 2], RolesConfig(reward_nodes=2), "ttrrrr"),
        ([5, 2, 5, 2], RolesConfig(reward_nodes=1), "trtr"),  # nodes count by first appearance
        ([0, 0, 1], RolesConfig(reward_per_node=1), "trr"),
    ],
)
def test_table(nodes: list[int], config: RolesConfig, expected: str) -> None:
    assert "".join(role[0] for role in assign(nodes, config)) == expected


@given(NODES, st.integers(1, 6))
def test_per_node_counts(nodes: list[int], k: int) -> None:
    sizes = {n: nodes.count(n) for n in set(nodes)}
    if all(size <= k for size in sizes.values()):
        with pytest.raises(UserError, match="none trains"):
            assign(nodes, RolesConfig(reward_per_node=k))
        return
    roles = assign(nodes, RolesConfig(reward_per_node=k))
    for node, size in sizes.items():
        of_node = [role for role, n in zip(roles, nodes, strict=True) if n == node]
        assert of_node == ["train"] * max(size - k, 0) + ["reward"] * min(size, k)


@given(NODES, st.integers(1, 6))
def test_whole_nodes(nodes: list[int], n: int) -> None:
    if len(set(nodes)) <= n:
        with pytest.raises(UserError, match="none trains"):
            assign(nodes, RolesConfig(reward_nodes=n))
        return
    roles = assign(nodes, RolesConfig(reward_nodes=n))
    by_node = {node: {r for r, m in zip(roles, nodes, strict=True) if m == node} for node in set(nodes)}
    assert all(len(r) == 1 for r in by_node.values())
    assert sum(r == {"reward"} for r in by_node.values()) == n


def test_several_processes_without_reward_rank() -> None:
    with pytest.raises(UserError, match=r"3 processes but no reward rank: set roles\.reward_per_node"):
        assign([0, 0, 0], RolesConfig())


def test_bad_configs() -> None:
    with pytest.raises(UserError, match="both set"):
        RolesConfig(reward_per_node=1, reward_nodes=1)
    with pytest.raises(UserError, match=r"roles\.reward_nodes must be at least 1, not 0"):
        RolesConfig(reward_nodes=0)


def test_world_views() -> None:
    world = World(1, 4, "train", 0, 2, 1, ("reward", "train", "train", "reward"), ("h",) * 4, (0,) * 4)
    assert world.train_ranks == (1, 2)
    assert world.reward_ranks == (0, 3)
    assert world.leads
    assert world.trains
    assert not world.rewards
    alone = place(role="both")
    assert alone.train_ranks == alone.reward_ranks == (0,)
    alone.barrier()
    alone.barrier_all()
    assert alone.share(3) == alone.share_all(3) == 3


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device(place()).type == "cpu"
    with pytest.raises(UserError, match="shows no GPU"):
        pick_device(place(), "cuda")
    with pytest.raises(UserError, match="auto, cpu or cuda"):
        pick_device(place(), "tpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_device(place(local_rank=3)) == torch.device("cuda", 3)
    assert pick_device(place(local_rank=3), "cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="4 GPUs: start at most one rank per GPU"):
        pick_device(place(local_rank=4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device(place(local_rank=3)) == torch.device("cuda", 0)


def test_each_rank_gets_its_share_of_the_cores() -> None:
    both = frozenset({0, 1})
    assert share_of_cores([0], [frozenset(range(8))], 0) == 8
    assert [share_of_cores([0, 0], [both, both], rank) for rank in (0, 1)] == [1, 1]
    assert share_of_cores([0, 0, 1], [both, both, both], 2) == 2  # core 0 of another node is another core
    bound = [frozenset({0, 1, 2}), frozenset({3, 4, 5})]  # srun --cpu-bind
    assert [share_of_cores([0, 0], bound, rank) for rank in (0, 1)] == [3, 3]
    assert share_of_cores([0] * 3, [both] * 3, 1) == 1  # never none


def test_threads_follow_the_cores_unless_omp_num_threads_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    share_cores(place(cores=2))
    assert chosen == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    share_cores(place(cores=2))
    share_cores(place(cores=16))  # torch knows better where it takes fewer, e.g. no hyper-threads
    assert chosen == [2]


def test_reward_ranks_paint_on_their_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from promptist.reward.aesthetic import AestheticConfig
    from promptist.reward.diffusion import DiffusionConfig
    from promptist.reward.model import RewardConfig
    from promptist.reward.service import on_own_device

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for asked, got in (("auto", "cuda:2"), ("cuda", "cuda:2"), ("cuda:1", "cuda:1"), ("cpu", "cpu")):
        config = RewardConfig(DiffusionConfig("sd", device=asked), AestheticConfig("head"))
        assert on_own_device(config, place(role="reward", local_rank=2)).diffusion.device == got


def test_reward_ranks_stay_out_of_torch() -> None:
    with pytest.raises(RuntimeError, match="reward ranks"):
        init_training(place(role="reward"))


def test_launcher_whose_processes_do_not_see_each_other() -> None:
    """srun without the right --mpi starts N worlds of one rank: each would train alone and overwrite the
    others."""
    code = "from promptist.cluster.roles import join_world, RolesConfig; join_world(RolesConfig())"
    env = {**os.environ, "SLURM_STEP_NUM_TASKS": "4"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert "the launcher started 4 processes but each sees" in done.stderr
    done = subprocess.run([sys.executable, "-c", code + ".rank"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
