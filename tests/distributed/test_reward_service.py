"""The reward service over MPI: the same numbers for any number of ranks; bad ends name rank and prompt."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

PRELUDE = textwrap.dedent(
    """
    import json, os, sys, time
    from promptist.cluster.roles import RolesConfig, join_world
    from promptist.errors import run_main
    from promptist.reward.messages import ImageRequest, Measurement
    from promptist.reward.remote import RemoteRewards
    from promptist.reward.service import serve

    class Fake:
        batch, fingerprint = 4, "fake"
        def measure(self, requests):
            for r in requests:
                if r.prompt == "bad":
                    raise ValueError("cannot paint this")
                if r.prompt == "stuck":
                    time.sleep(600)
            time.sleep(0.05)
            return [Measurement(len(r.prompt) + r.k / 7, 1 / (1 + r.k)) for r in requests]

    world = join_world(RolesConfig(reward_per_node=int(sys.argv[1])))

    def asked(n, rank):
        return [ImageRequest(f"{i} of {rank}, oil", f"{i} of {rank}", "train", i % 4) for i in range(n)]
    """
)

REAL = PRELUDE + textwrap.dedent(
    """
    from omegaconf import OmegaConf
    from promptist.reward.model import RewardConfig, RewardModel
    from promptist.reward.service import connect
    section, run, out = json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RewardConfig), section))
    if world.role == "reward":
        images = serve(world, RewardModel(config, run))
        open(f"{out}/served_{world.rank}.json", "w").write(json.dumps(images))
    else:
        client = connect(world, config, run)
        values = []
        for iteration in range(2):
            client.begin(iteration)
            # 8 prompts in all, shared out over the training ranks: the same rows whatever their number.
            rows = range(world.group_rank, 8, world.group_size)
            tickets = {}
            for row in rows:
                x = f"a red boat {row}"
                ks = (row % 3, 3)
                tickets[row] = client.submit(
                    [ImageRequest(p, x, "train", k, k == 3) for p in (x + ", golden hour", x) for k in ks]
                )
            client.flush()
            for row, mine in tickets.items():
                measured = client.collect(mine)
                values.append([iteration, row, [[m.cosine, m.aesthetic, m.picture] for m in measured]])
            world.barrier()
        open(f"{out}/values_{world.rank}.json", "w").write(json.dumps([values, client.metrics()]))
        client.close()
    """
)


def values_of(folder: Path) -> tuple[list[Any], list[dict[str, float]]]:
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("values_*.json"))]
    return sorted(value for values, _ in parts for value in values), [metrics for _, metrics in parts]


def test_same_bits_for_any_number_of_ranks(mpirun: Any, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from promptist.reward.messages import ImageRequest
    from promptist.reward.model import RewardConfig, RewardModel
    from tests.helpers_reward import make_tiny_reward

    section = make_tiny_reward(tmp_path / "world")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RewardConfig), section))
    assert isinstance(config, RewardConfig)
    alone = RewardModel(config, tmp_path / "run alone")
    rows = {}
    for row in range(8):
        x = f"a red boat {row}"
        ks = (row % 3, 3)
        prompts = (x + ", golden hour", x)
        measured = alone.measure([ImageRequest(p, x, "train", k, k == 3) for p in prompts for k in ks])
        rows[row] = [[m.cosine, m.aesthetic, m.picture] for m in measured]
    expected = [[iteration, row, rows[row]] for iteration in range(2) for row in range(8)]

    for ranks, rewarding in ((3, 1), (3, 2)):  # two ranks train, then one
        out, run = tmp_path / f"{rewarding} painting", tmp_path / f"run with {rewarding}"
        out.mkdir()
        mpirun(ranks, REAL, [rewarding, json.dumps(section), run, out], timeout_s=240).ok()
        found, metrics = values_of(out)
        assert found == expected
        # Per iteration 32 pictures; the 16 plain ones of the second iteration are known by then.
        assert sum(m["reward/images"] for m in metrics) == 48
        assert all(m["reward/hit_rate"] == 0.5 for m in metrics)
        served = [json.loads(path.read_text()) for path in out.glob("served_*.json")]
        assert len(served) == rewarding
        assert sum(served) == 48
        for m in metrics:
            busy = [value for key, value in m.items() if key.startswith("reward/busy_rank_")]
            assert len(busy) == rewarding
            assert all(0 <= share <= 1 for share in busy)
        for _, _, values in found:
            assert all((run / picture).is_file() for _, _, picture in values if picture)


def test_work_is_shared_and_painted_while_the_trainer_computes(mpirun: Any, tmp_path: Path) -> None:
    """40 batches of 0.05 s over two reward ranks, the trainer busy: nothing is left to wait for."""
    code = PRELUDE + textwrap.dedent(
        """
        if world.role == "reward":
            images = serve(world, Fake())
            assert 40 <= images <= 120, images
        else:
            client = RemoteRewards(world.comm, world.reward_ranks, window=2, deadline_s=60)
            assert client.fingerprint == "fake"
            tickets = client.submit(asked(160, 0))
            # The trainer computes and does not look at its client: the work goes on all the same.
            until = time.monotonic() + 60
            while client.images < 160 and time.monotonic() < until:
                time.sleep(0.1)
            assert client.images == 160, "the reward ranks waited for the trainer"
            values = client.collect(tickets)
            assert [m.cosine for m in values] == [len(r.prompt) + r.k / 7 for r in asked(160, 0)]
            assert client.waited_s < 0.5
            client.close()
        """
    )
    mpirun(3, code, [2], timeout_s=90).ok()


def test_part_filled_batches_wait_for_flush_or_collect(mpirun: Any) -> None:
    code = PRELUDE + textwrap.dedent(
        """
        def painted(client, count):
            until = time.monotonic() + 30
            while client.images < count and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(0.5)  # no more than that
            assert client.images == count, client.images

        if world.role == "reward":
            assert serve(world, Fake()) == 6
        else:
            client = RemoteRewards(world.comm, world.reward_ranks, deadline_s=60)
            first = client.submit(asked(2, 0))
            client.fingerprint
            time.sleep(1)
            assert client.images == 0, "a part-filled batch left without flush"
            second = client.submit(asked(3, 1))  # fills one batch of 4; one request stays behind
            painted(client, 4)
            client.flush()
            painted(client, 5)
            client.collect(first + second)
            client.collect(client.submit(asked(1, 2)))
            client.close()
        """
    )
    mpirun(2, code, [1], timeout_s=60).ok()


def test_a_failing_prompt_stops_the_run_and_is_named(mpirun: Any) -> None:
    code = PRELUDE + textwrap.dedent(
        """
        def main(argv):
            if world.role == "reward":
                serve(world, Fake())
                return
            client = RemoteRewards(world.comm, world.reward_ranks, deadline_s=60)
            requests = asked(6, world.rank)
            if world.rank == 1:
                requests[2] = ImageRequest("bad", "a prompt", "train", 0)
            client.collect(client.submit(requests))
            time.sleep(60)  # rank 0 is well and goes on; the abort must reach it

        sys.exit(run_main(main))
        """
    )
    ended = mpirun(3, code, [1], timeout_s=60)
    assert ended.returncode != 0
    assert "reward rank 2 failed on the prompt 'bad': ValueError: cannot paint this" in ended.stderr


def test_a_silent_reward_rank_is_named(mpirun: Any) -> None:
    code = PRELUDE + textwrap.dedent(
        """
        def main(argv):
            if world.role == "reward":
                serve(world, Fake())
                return
            client = RemoteRewards(world.comm, world.reward_ranks, deadline_s=2)
            client.collect(client.submit([ImageRequest("stuck", "x", "train", 0)]))

        sys.exit(run_main(main))
        """
    )
    ended = mpirun(2, code, [1], timeout_s=60)
    assert ended.returncode != 0
    assert "reward rank 1 has been silent for 2 s (reward.deadline_s)" in ended.stderr
    assert "'stuck'" in ended.stderr


def test_reward_ranks_with_other_models_are_found_out(mpirun: Any) -> None:
    code = PRELUDE + textwrap.dedent(
        """
        def main(argv):
            if world.role == "reward":
                model = Fake()
                model.fingerprint = f"generator {world.rank}"
                serve(world, model)
                return
            client = RemoteRewards(world.comm, world.reward_ranks, deadline_s=60)
            while True:
                client.poll()
                time.sleep(0.1)

        sys.exit(run_main(main))
        """
    )
    ended = mpirun(3, code, [2], timeout_s=60)
    assert ended.returncode != 0
    assert "another generator" in ended.stderr
