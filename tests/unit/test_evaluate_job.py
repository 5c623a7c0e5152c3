"""The evaluation job as users start it: whole, in shards, shards at the same time, stopped, reduced without a model."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.evaluate import EvalJob, main
from promptist.cluster import preemption
from promptist.cluster.needs import needs_of
from promptist.cluster.status import finished_shards
from promptist.config import load
from promptist.errors import EXIT_STOPPED, UserError
from promptist.evaluation.shards import Shard
from promptist.evaluation.table import MEASUREMENTS, PICTURES, TEXTS, read_table
from promptist.reward.messages import ImageRequest, Measurement
from promptist.reward.model import RewardModel
from promptist.rl.config import PPOJob
from tests.conftest import REPOSITORY
from tests.helpers_evaluation import MODELS, make_tiny_evaluation

PROMPTS, BATCH = 5, 3
RESULTS = (
    MEASUREMENTS, TEXTS, PICTURES, "evaluation.json", "results.json", "results.csv", "results.md", "prompts.csv",
    "grid.png", "report.html",
)  # fmt: skip
"""All that an evaluation leaves to read, but for its timings."""


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The job logs and catches signals in this process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    caught = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    for number, handler in caught.items():
        signal.signal(number, handler)
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    """The config of a tiny evaluation."""
    return make_tiny_evaluation(tmp_path_factory.mktemp("eval"), tiny_tokenizer_folder, PROMPTS)


@pytest.fixture
def config(world: Path) -> Iterator[Path]:
    """The same without any run."""
    shutil.rmtree(world.parent / "runs", ignore_errors=True)
    yield world
    shutil.rmtree(world.parent / "runs", ignore_errors=True)


@pytest.fixture(scope="module")
def whole(world: Path) -> dict[str, bytes]:
    """The results of a plain run."""
    assert main([str(world), f"run.root={world.parent / 'whole'}"]) == 0
    return results(world.parent / "whole" / "tiny-eval")


def results(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in RESULTS}


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from promptist.optimize import Promptist

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(RewardModel, "__init__", refuse)
    monkeypatch.setattr(Promptist, "from_pretrained", refuse)


def run_of(config: Path) -> Path:
    return config.parent / "runs" / "tiny-eval"


def watch(monkeypatch: pytest.MonkeyPatch) -> list[ImageRequest]:
    """What is painted in this process from now on."""
    measure, seen = RewardModel.measure, []

    def watched(self: RewardModel, requests: list[ImageRequest]) -> list[Measurement]:
        seen.extend(requests)
        return measure(self, requests)

    monkeypatch.setattr(RewardModel, "measure", watched)
    return seen


def measured(run: Path) -> int:
    lines = [line for path in (run / "finished").glob("*.jsonl") for line in path.read_text().splitlines()]
    return sum("painter" in json.loads(line) for line in lines)


def test_a_plain_run_and_the_same_again(config: Path, whole: dict[str, bytes], request: pytest.FixtureRequest) -> None:
    assert main([str(config)]) == 0
    run = run_of(config)
    assert results(run) == whole
    meta = json.loads((run / "evaluation.json").read_text())
    assert meta["decoder"]["decoding"]["beams"] == 8 and meta["decoder"]["decoding"]["length_penalty"] == -1.0
    assert set(meta["models"]) == {"sft", "ppo"} and len({*meta["models"]["ppo"], *meta["models"]["sft"]}) == 3
    table = read_table(run)
    assert {"version": 2, **table.meta} == meta
    assert {m.model for m in table.measures if m.method == "ppo"} == set(meta["models"]["ppo"])
    assert (run / "report.html").stat().st_size > 5000
    assert (run / "done.json").is_file()
    before = measured(run)
    request.getfixturevalue("no_models")
    assert main([str(config), "images=2"]) == 0  # nothing left to do
    assert results(run) == whole and measured(run) == before
    with pytest.raises(UserError, match="is no model"):
        main([str(config), f"methods.2.path={config.parent}"])


def test_the_table_has_every_row_and_metric(config: Path, whole: dict[str, bytes]) -> None:
    table = read_table(config.parent / "whole" / "tiny-eval")
    assert table.methods == ["user", "human", "sft", "ppo", "suffix", "random", "other", "best-of"]
    assert table.sets == ["in", "out"] and table.replicas("ppo") == [0, 1]
    per_picture = {"cosine", "aesthetic", "relevance", "gain", "reward", "v1.aesthetic", "v1.gain"}
    per_picture |= {f"rival.{name}" for name in ("cosine", "aesthetic", "relevance", "gain", "reward")}
    assert {m.metric for m in table.measures if m.seed is not None} == per_picture
    texts = {
        "words_kept",
        "swapped",
        "numbers_kept",
        "negations_kept",
        "empty",
        "gpt2_tokens",
        "clip_tokens",
        "over_clip",
    }
    assert {m.metric for m in table.measures if m.seed is None} == texts | {"kl"}
    assert {m.method for m in table.measures if m.metric == "kl"} == {"sft", "ppo"}
    assert set(table.scores("kl", "sft").values.flat) == {0.0}
    assert all(table.scores("kl", "ppo").values.flat)
    assert table.scores("gain", "user").values.max() == 0 == table.scores("rival.gain", "user").values.min()
    assert {m["metric"]: m["limit"] for m in table.meta["lengths"]} == {"gpt2_tokens": None, "clip_tokens": 24}
    seconds = json.loads((config.parent / "whole" / "tiny-eval" / "timings.json").read_text())
    assert seconds["rewrite"]["ppo"]["count"] == 2 * PROMPTS and seconds["picture"]["user"]["count"] == 2 * PROMPTS


def test_sixteen_shards_of_which_some_are_interrupted_give_the_same_bytes(
    config: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, batches = RewardModel.measure, []

    def signalled(self: RewardModel, requests: list[ImageRequest]) -> list[Measurement]:
        batches.append(requests)
        if len(batches) % 4 == 2:
            os.kill(os.getpid(), signal.SIGUSR2)
        return measure(self, requests)

    monkeypatch.setattr(RewardModel, "measure", signalled)
    stopped = 0
    for number in range(16, 0, -1):
        while main([str(config), f"shard={number}/16"]) == EXIT_STOPPED:
            stopped += 1
    assert stopped >= 3
    assert main([str(config), "reduce=16"]) == 0
    assert results(run_of(config)) == whole


def test_shards_give_the_same_bytes_and_the_reducer_loads_no_model(
    config: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    run = run_of(config)
    for number in (2, 1):
        assert main([str(config), f"shard={number}/3"]) == 0
    assert not (run / "done.json").exists() and not (run / MEASUREMENTS).exists()
    assert finished_shards(run) == (2, 3)
    with pytest.raises(UserError, match=r"shard 3/3 of .* is not finished: run `.* CONFIG shard=3/3`"):
        main([str(config), "reduce=3"])
    assert main([str(config), "shard=3/3"]) == 0
    recorded = load(EvalJob, run / "config.yaml")
    assert recorded.shard is None and recorded.reduce is None

    request.getfixturevalue("no_models")
    capsys.readouterr()
    assert main([str(config), "shard=2/3"]) == 0
    assert f"shard 2/3 of {run} is finished" in capsys.readouterr().out
    for name in MODELS:
        (config.parent / name).rename(config.parent / f"{name}.away")
    try:
        assert main([str(config), "reduce=3"]) == 0
    finally:
        for name in MODELS:
            (config.parent / f"{name}.away").rename(config.parent / name)
    assert results(run) == whole
    assert (run / "report.html").is_file() and json.loads((run / "done.json").read_text())["prompts"] == PROMPTS


def test_what_the_reducer_refuses(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(config)
    for number in (1, 2):
        assert main([str(config), f"shard={number}/2"]) == 0
    with pytest.raises(UserError, match=r"shards 1/16, 2/16, .* and 8 more of .* are not finished"):
        main([str(config), "reduce=16"])
    with pytest.raises(UserError, match="computed from other numbers of images"):
        main([str(config), "reduce=2", "images=3"])
    with pytest.raises(UserError, match="computed from other diffusion settings"):
        main([str(config), "reduce=2", "reward.diffusion.steps=3"])
    with pytest.raises(UserError, match="computed from other held-out scorers"):
        main([str(config), "reduce=2", "held_out.0.name=judge"])
    elsewhere = config.parent / "elsewhere.jsonl"
    made = elsewhere.read_text()
    elsewhere.write_text(made.replace("oil", "old oil", 1))
    try:
        with pytest.raises(UserError, match="computed from other rewrites of methods without a model"):
            main([str(config), "reduce=2"])
    finally:
        elsewhere.write_text(made)
    # One shard goes on with models that were trained again.
    settings = [config.parent / name / "promptist.json" for name in MODELS]
    for path in settings:
        path.write_text('{"max_new_tokens": 4}')
    try:
        before = measured(run)
        assert main([str(config), "shard=2/2"]) == 0
        assert measured(run) > before
        with pytest.raises(UserError, match="were computed by different models"):
            main([str(config), "reduce=2"])
        assert main([str(config), "shard=1/2"]) == 0
        assert main([str(config), "reduce=2"]) == 0
    finally:
        for path in settings:
            path.write_text('{"max_new_tokens": 12}')
    # What a shard recorded is lost, and a kept picture is.
    next((run / "images").rglob("*.png")).unlink()
    with pytest.raises(UserError, match=r"shard ./2 of .* is no longer there: run .*shard=./2"):
        main([str(config), "reduce=2"])


ENDS = """
import os, signal, sys
from promptist.errors import run_main
from promptist.reward.messages import ImageRequest, Measurement
from promptist.reward.model import RewardModel
from jobs.evaluate import main
measure, batches = RewardModel.measure, 0
def ends(self, requests):
    global batches
    batches += 1
    if batches == {batch}:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(self, requests)
RewardModel.measure = ends
sys.exit(run_main(main))
"""
"""The job, killed in batch number `batch`."""


def test_two_shards_at_once_of_which_one_is_killed(
    config: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(config)
    shards = [
        subprocess.Popen(
            [sys.executable, "-c", ENDS.format(batch=batch), str(config), f"shard={number}/2"],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number, batch in ((1, 2), (2, -1))
    ]  # fmt: skip
    said = [shard.communicate(timeout=600)[1] for shard in shards]
    assert [shard.returncode for shard in shards] == [-signal.SIGKILL, 0], said
    assert sorted(p.name for p in (run / "logs").iterdir()) == ["attempt_1", "attempt_2"]
    assert finished_shards(run) == (1, 2)

    before, seen = measured(run), watch(monkeypatch)
    assert main([str(config), "shard=1/2"]) == 0
    assert 0 < len(seen) == measured(run) - before
    assert main([str(config), "reduce=2"]) == 0
    assert results(run) == whole


def test_a_signal_stops_a_shard_and_the_same_command_goes_on(
    config: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, measure, seen = run_of(config), RewardModel.measure, []

    def signalled(self: RewardModel, requests: list[ImageRequest]) -> list[Measurement]:
        if seen:
            os.kill(os.getpid(), signal.SIGUSR2)
        seen.extend(requests)
        return measure(self, requests)

    with monkeypatch.context() as patch:
        patch.setattr(RewardModel, "measure", signalled)
        assert main([str(config), "shard=1/1"]) == EXIT_STOPPED
    assert measured(run) == 2 * BATCH  # the batch at hand was finished
    assert finished_shards(run) is None

    again = watch(monkeypatch)
    assert main([str(config), "shard=1/1"]) == 0
    assert len({*seen, *again}) == len(seen) + len(again) == measured(run)
    assert main([str(config), "reduce=1"]) == 0
    assert results(run) == whole


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/b", "1/4/2", "-1/4"])
def test_bad_shards(text: str) -> None:
    with pytest.raises(UserError, match="1/16 to 16/16"):
        Shard.parse(text)


def test_bad_combinations(config: Path) -> None:
    for overrides, words in (
        (["shard=1/2", "reduce=2"], "both set"),
        (["reduce=0"], "at least 1"),
        (["shard=7"], "1/16 to 16/16"),
        (["images=1", "pictures=1"], "'best-of' chooses among the plain pictures"),
        (["decoders=any"], "decoders"),
        (["prompts=[]"], "prompts is empty"),
        (["prompts=[1]"], "prompts must be a path"),
        (["held_out.1.name=rival"], "two held-out scorers are called rival"),
        ([f"held_out.1.head={config.parent}/reward/aesthetic.safetensors"], "v1 is the training reward itself"),
    ):
        with pytest.raises(UserError, match=words):
            load(EvalJob, config, overrides)


def test_what_it_loads_is_known_before_it_starts(config: Path) -> None:
    job = load(EvalJob, config, ["methods.1={name: run, kind: checkpoints, path: /nowhere}"])
    needs = needs_of(job)
    assert [need.key for need in needs if not need.key.startswith(("reward", "held_out"))] == [
        "methods.1.path", "methods.2.path", "methods.3.path", "methods.3.path", "reference"
    ]  # fmt: skip
    lost = []
    for need in needs:
        try:
            assert need.find().exists()
        except UserError as error:
            lost.append((need.key, str(error)))
    assert [key for key, _ in lost] == ["methods.1.path"] and "no complete checkpoint" in lost[0][1]


def test_training_knows_no_held_out_scorer(tmp_path: Path) -> None:
    config = tmp_path / "ppo.yaml"
    config.write_text(f"base: {REPOSITORY}/configs/demo/ppo.yaml\nheld_out: [{{name: v1, head: x}}]\n")
    with pytest.raises(UserError, match="unknown key `held_out`"):
        load(PPOJob, config)


def test_what_is_refused_before_anything_is_painted(config: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("no_models")
    for overrides, words in (
        ([f"disjoint_from=[{config.parent}/elsewhere.jsonl]"], "which is an evaluation prompt"),
        (["reference=[a,b]"], "is no model"),
        ([f"reference={config.parent}"], "is no model"),
        ([f"methods.2.paths=[{','.join(str(config.parent / name) for name in MODELS)}]", "methods.2.path=null",
          f"reference=[{config.parent}/sft,{config.parent}/ppo]"], "names 2 models and 'sft' has more replicas"),
        (["lexicon=/nowhere.yaml"], "/nowhere.yaml"),
        (["methods.6.path=/nowhere.jsonl"], "/nowhere.jsonl"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            main([str(config), *overrides])


def test_decoders_that_differ(config: Path) -> None:
    settings = config.parent / "sft" / "promptist.json"
    settings.write_text('{"max_new_tokens": 9}')
    try:
        with pytest.raises(UserError, match=r"decode differently.*set decoders=own"):
            main([str(config)])
        assert main([str(config), "decoders=own", "images=1", "methods.7.kind=suffix", "methods.7.text=art"]) == 0
    finally:
        settings.write_text('{"max_new_tokens": 12}')
    meta = read_table(run_of(config)).meta
    assert meta["decoder"] is None
    assert {name: own["max_new_tokens"] for name, own in meta["decoders"].items()} == {"sft": 9, "ppo": 12}
