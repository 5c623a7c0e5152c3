"""Submission without a scheduler: the batch scripts, what is refused beforehand, the names of a sweep, dry runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import plans, submit
from jobs.plans import Stage
from promptist import config as configs
from promptist.cluster.site import ClusterConfig, Resources, gpu_hours, load_site, nodes_of_ranks, seconds
from promptist.cluster.submission import slurm_time
from promptist.errors import UserError
from promptist.rl.config import PPOJob
from promptist.sft.config import SFTJob
from tests.conftest import REPOSITORY
from tests.helpers_submit import TinyConfigs, make_tiny_configs

GOLDEN = Path(__file__).parents[1] / "golden"
REFRESH = "PROMPTIST_REFRESH_GOLDEN"  # set to 1, the tests write the scripts that they else compare with
SITE = ClusterConfig(
    partition="gpu",
    account="art",
    environment=["module load mpich"],
    directives={"mail-type": "FAIL", "exclusive": None},
    signal_lead_s=120,
    parallel=2,
    sft=Resources(nodes=1, tasks_per_node=2, gpus_per_node=2, cpus_per_task=8, mem_gb=62.5, time="12:30:00"),
    ppo=Resources(nodes=2, tasks_per_node=2, gpus_per_node=2, cpus_per_task=4, time="1-00:00:00"),
    eval=Resources(gpus_per_node=1, time="2:00:00"),
    reduce=Resources(partition="cpu", time="0:30:00"),
)
HET = Resources(1, 2, gpus_per_node=4, cpus_per_task=4, partition="small", constraint="v100", time="1-00:00:00")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyConfigs:
    return make_tiny_configs(tmp_path_factory.mktemp("tiny"))


def het_site() -> ClusterConfig:
    return ClusterConfig(**{**vars(SITE), "ppo_reward": HET})


def stages_of(case: str, tiny: TinyConfigs) -> list[Stage]:
    het = ["roles.reward_per_node=null", "roles.reward_nodes=1"]
    if case == "sft":
        return plans.plan_training("sft", tiny.sft, [], SITE)
    if case == "ppo":
        return plans.plan_training("ppo", tiny.ppo, [], SITE)
    if case == "ppo-het":
        return plans.plan_training("ppo", tiny.ppo, het, het_site())
    if case == "ppo-sweep":
        return plans.plan_training("ppo", tiny.ppo, [], SITE, ["ppo.kl_coef=0.1,0.2", "run.seed=1,2"])
    if case == "eval":
        return plans.plan_evaluation(tiny.eval, [], SITE)
    return plans.plan_evaluation(tiny.eval, [], SITE, shards=3)


# name of the golden file: (what is planned, which stage, jobs it waits for)
SCRIPTS = {
    "sft": ("sft", 0, ()),
    "ppo": ("ppo", 0, ()),
    "ppo-after-sft": ("ppo", 0, ("12",)),
    "ppo-het": ("ppo-het", 0, ()),
    "ppo-sweep": ("ppo-sweep", 0, ()),
    "eval": ("eval", 0, ()),
    "eval-array": ("shards", 0, ()),
    "reduce": ("shards", 1, ("13",)),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_batch_script(name: str, tiny: TinyConfigs) -> None:
    """Against the file that a person has read; and bash finds no fault in it."""
    case, stage, after = SCRIPTS[name]
    text = stages_of(case, tiny)[stage].submission.text(after)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    known = {str(tiny.runs.parent): "/shared/tiny", sys.executable: "/site/python", str(Path.cwd()): "/site/promptist"}
    for path, shown in known.items():
        text = text.replace(path, shown)
    golden = GOLDEN / f"{name}.sh"
    if os.environ.get(REFRESH) == "1":
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text("utf-8"), f"{REFRESH}=1 writes it anew"


def test_script_of_an_array_is_what_submitit_submits(
    tiny: TinyConfigs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch replaced by a program that gives every script the number 7; the same text must reach it as is kept."""
    (tmp_path / "sbatch").write_text('#!/bin/sh\ncp "$1" "$SEEN"\necho Submitted batch job 7\n')
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 0\n")
    for name in ("sbatch", "squeue", "srun"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.sh"))
    jobs = submit.sft(tiny.sft, [f"run.root={tmp_path}/runs"], site=SITE, sweep=["run.seed=1,2"])
    assert [job.job_id for job in jobs] == ["7_0", "7_1"]
    assert [job.num_tasks for job in jobs] == [2, 2]
    (folder,) = (tmp_path / "runs").glob("tiny-sft.sweep-*/submission")
    assert (folder / "submit.sh").read_text() == (tmp_path / "seen.sh").read_text()
    names = ["tiny-sft-seed1", "tiny-sft-seed2"]
    kept = [tmp_path / "runs" / name / "submission" for name in names]
    assert (folder / "submit.configs").read_text().split() == [str(own / "sft.yaml") for own in kept]
    for number, own in enumerate(kept):
        job = configs.load(SFTJob, own / "sft.yaml")
        assert (job.run.name, job.run.seed) == (names[number], number + 1)
        assert "--array" not in (own / "submit.sh").read_text()
        record = json.loads((own / "submit.json").read_text())
        assert record["jobs"] == [f"7_{number}"]
        assert record["command"] == shlex.join(sys.orig_argv)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
        assert record["commit"] == (commit.stdout.strip() or None)
        assert (own / "diff.patch").exists() and (own / "submit.pkl").exists()


def test_nothing_is_left_in_the_queue_where_a_stage_is_refused(
    tiny: TinyConfigs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = '#!/bin/sh\nif grep -q dependency "$1"; then echo "sbatch: error: no more jobs" >&2; exit 1; fi\n'
    (tmp_path / "sbatch").write_text(refusing + "echo Submitted batch job 8\n")
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "scancel").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/cancelled\n")
    for name in ("sbatch", "squeue", "scancel"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    overrides = [f"run.root={tmp_path}/runs"]
    with pytest.raises(UserError, match=r"sbatch refuses tiny-ppo: .*no more jobs"):
        submit.pipeline(tiny.sft, tiny.ppo, tiny.eval, overrides, site=SITE)
    assert (tmp_path / "cancelled").read_text() == "8\n"


def test_pipeline_is_one_chain(tiny: TinyConfigs) -> None:
    overrides = ["ppo:run.seed=3", "sft:sft.steps=2"]
    stages = plans.plan_pipeline(tiny.sft, tiny.ppo, tiny.eval, overrides, SITE, shards=2)
    assert [stage.kind for stage in stages] == ["sft", "ppo", "eval", "reduce"]
    sft, ppo, evaluation = (stage.submission.works[0].job for stage in stages[:3])
    assert (sft.sft.steps, ppo.run.seed, sft.run.seed) == (2, 3, 5)
    assert ppo.model.path == str(tiny.runs / "tiny-sft" / "export")
    paths = {row.name: row.path for row in evaluation.methods}
    assert paths == {"user": None, "sft": str(tiny.runs / "tiny-sft"), "ppo": str(tiny.runs / "tiny-ppo")}
    assert [work.arguments for work in stages[2].submission.works] == [("shard=1/2",), ("shard=2/2",)]
    assert stages[3].submission.works[0].arguments == ("reduce=2",)


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        (["run.seed=1,2"], ["tiny-ppo-seed1", "tiny-ppo-seed2"]),
        (
            ["ppo.kl_coef=0.1,0.2", "run.seed=1,2"],
            ["tiny-ppo-kl_coef0.1-seed1", "tiny-ppo-kl_coef0.1-seed2", "tiny-ppo-kl_coef0.2-seed1",
             "tiny-ppo-kl_coef0.2-seed2"],
        ),
        (["optimizer.lr=1e-3", "value_optimizer.lr=1e-4"], ["tiny-ppo-optimizer.lr1e-3-value_optimizer.lr1e-4"]),
        (["optimizer.betas=[0.9,0.95],[0.8,0.9]"], ["tiny-ppo-betas_0.9_0.95_", "tiny-ppo-betas_0.8_0.9_"]),
    ],
)  # fmt: skip
def test_names_of_a_sweep(sweep: list[str], names: list[str], tiny: TinyConfigs) -> None:
    runs = plans.sweep_overrides("ppo", tiny.ppo, ["ppo.batch=16"], sweep)
    jobs = [configs.load(PPOJob, tiny.ppo, own) for own in runs]
    assert [job.run.name for job in jobs] == names
    assert {job.ppo.batch for job in jobs} == {16}


def test_sizes() -> None:
    assert nodes_of_ranks([SITE.ppo]) == [0, 0, 1, 1]
    assert nodes_of_ranks([SITE.ppo, HET]) == [0, 0, 1, 1, 2, 2]
    assert gpu_hours([SITE.ppo, HET]) == (2 * 2 + 1 * 4) * 24
    assert gpu_hours([SITE.sft]) == 2 * 12.5
    for text, length in (("0:10:00", 600), ("12:30:05", 45005), ("1-02:00:00", 93600), ("72:00:00", 259200)):
        assert seconds(text) == length
        assert seconds(slurm_time(length)) == length


def test_shipped_sites_fit_the_configs_they_name() -> None:
    site = load_site("configs/cluster/example.yaml")
    job = configs.load(PPOJob, "configs/paper/ppo.yaml")
    roles = plans.assign(nodes_of_ranks(site.of("ppo")), job.roles)
    assert (roles.count("train"), roles.count("reward")) == (16, 16)
    assert job.per_rank(16) == 32
    assert configs.load(SFTJob, "configs/paper/sft.yaml").micro_batches(site.sft.tasks) == 4
    demo = configs.load(PPOJob, "configs/demo/ppo.yaml")
    virtual = load_site("configs/cluster/testbed.yaml", ["ppo.time=0:20:00", "ppo.nodes=1"])
    assert virtual.ppo.time == "0:20:00"
    assert plans.assign(nodes_of_ranks(virtual.of("ppo")), demo.roles).count("train") == 2


def run_main(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert submit.main([str(part) for part in argv]) == 0
    return capsys.readouterr().out


def test_dry_run_shows_all_and_changes_nothing(
    tiny: TinyConfigs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no SLURM needed where there is none
    site = tmp_path / "site.yaml"
    site.write_text(configs.to_yaml(SITE), encoding="utf-8")
    before = sorted(tiny.runs.parent.rglob("*"))
    shown = run_main(
        capsys, "ppo", tiny.ppo, "--cluster", site, "ppo.batch=16", "--dry-run", "cluster.ppo.nodes=4",
        "--sweep", "run.seed=1,2",
    )  # fmt: skip
    assert sorted(tiny.runs.parent.rglob("*")) == before
    assert "2 tasks, each 8 ranks on 4 nodes: 4 train, 4 reward; at most 384 GPU-hours" in shown
    assert "#SBATCH --array=0-1%2" in shown and "#SBATCH --nodes=4" in shown
    assert "batch: 16" in shown
    (changes,) = re.findall(r"as above but for\n((?:\w.*\n)+)", shown)
    assert changes.split("In all")[0].splitlines() == ["run.name: tiny-ppo-seed2", "run.seed: 2"]
    chain = run_main(
        capsys, "pipeline", "--sft", tiny.sft, "--ppo", tiny.ppo, "--eval", tiny.eval, "--shards", 2, "--dry-run",
        "--cluster", site,
    )  # fmt: skip
    assert re.findall(r"--dependency=(\S+)", chain) == ["afterok:sft-job", "afterok:ppo-job", "afterok:eval-job"]
    assert chain.count("#SBATCH --kill-on-invalid-dep=yes") == 3
    assert "In all at most 125 GPU-hours" in chain  # 2 x 12.5 + 4 x 24 + 2 x 2


BAD = {
    # what is wrong: (kind, overrides, cluster overrides, more options, words of the sentence)
    "unknown key": ("ppo", ["ppo.kl=1"], [], {}, r"unknown key `ppo.kl`"),
    "batch of ppo": ("ppo", ["ppo.batch=6"], [], {}, r"zero.micro_batch = 2 does not divide the 3 rewrites"),
    "batch of sft": ("sft", ["sft.batch=6"], [], {}, r"sft.batch = 6 is not a multiple of 4"),
    "no reward ranks": ("ppo", ["roles.reward_per_node=null"], [], {}, r"4 processes but no reward rank"),
    "no training ranks": ("ppo", ["roles.reward_per_node=2"], [], {}, r"none trains"),
    "zero stage": ("sft", ["zero.stage=4"], [], {}, r"zero.stage is 4"),
    "prompts": ("ppo", ["data.valid=/nowhere/valid.txt"], [], {}, r"/nowhere/valid.txt"),
    "pairs": ("sft", ["data.train=/nowhere/x.jsonl"], [], {}, r"data.train = '/nowhere/x.jsonl' is not a file"),
    "model": ("ppo", ["model.path=/nowhere/model"], [], {}, r"model folder /nowhere/model does not exist"),
    "reward model": ("ppo", ["reward.aesthetic.path=/nowhere/a.pth"], [], {}, r"reward.aesthetic.path = '/nowhere/a"),
    "rows": ("eval", ["methods.1.path=/nowhere/run"], [], {}, r"/nowhere/run is no model"),
    "shard": ("eval", ["shard=1/2"], [], {}, r"give --shards N instead"),
    "number of shards": ("eval", [], [], {"shards": 0}, r"--shards must be at least 1"),
    "time": ("ppo", [], ["ppo.time=90"], {}, r"ppo.time in the cluster config must have the form H:MM:SS"),
    "no time": ("ppo", [], ["ppo.time=0:00:00"], {}, r"ppo.time in the cluster config is '0:00:00'"),
    "signal lead": ("sft", [], ["signal_lead_s=30000"], {}, r"more than half of the time limit of sft \(12:30:00\)"),
    "partition": ("sft", [], ["partition=a b"], {}, r"partition in the cluster config must be a name"),
    "unknown site key": ("sft", [], ["sft.node=2"], {}, r"did you mean `sft.nodes`"),
    "ours": ("sft", [], ["directives.array=3"], {}, r"`array` is set by the submission itself"),
    "ranks and GPUs": ("sft", [], ["sft.tasks_per_node=4"], {}, r"at most one rank per GPU"),
    "mpi": ("ppo", [], ["mpi=none"], {}, r"mpi in the cluster config is none, but ppo has several tasks"),
    "het and cores": ("ppo", [], ["ppo_reward.nodes=1"], {}, r"ppo_reward.cpus_per_task = 1 .* the same"),
    "het and roles": ("ppo", [], ["ppo_reward.cpus_per_task=4"], {}, r"reward_per_node=null roles.reward_nodes=1"),
    "het array": (
        "ppo", ["roles.reward_per_node=null", "roles.reward_nodes=1"], ["ppo_reward.cpus_per_task=4"],
        {"sweep": ["run.seed=1,2"]}, r"no arrays of heterogeneous jobs",
    ),
    "sweep form": ("ppo", [], [], {"sweep": ["run.seed"]}, r"--sweep takes key=value,value"),
    "sweep twice": ("ppo", [], [], {"sweep": ["run.seed=1,1"]}, r"would be called tiny-ppo-seed1"),
    "sweep of names": ("ppo", [], [], {"sweep": ["run.name=a,b"]}, r"run.name is made from the values"),
    "sweep value": ("ppo", [], [], {"sweep": ["ppo.batch=8,6"]}, r"does not divide"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_refused_before_submission(what: str, tiny: TinyConfigs, tmp_path: Path) -> None:
    kind, overrides, cluster, more, words = BAD[what]
    file = tmp_path / "site.yaml"
    file.write_text(configs.to_yaml(SITE), encoding="utf-8")

    def plan() -> None:
        site = load_site(file, cluster)
        if kind == "eval":
            plans.plan_evaluation(tiny.eval, overrides, site, **more)
        else:
            plans.plan_training(kind, tiny.sft if kind == "sft" else tiny.ppo, overrides, site, **more)

    with pytest.raises(UserError, match=words) as caught:
        plan()
    assert "\n" not in str(caught.value)


def test_pipeline_refuses_what_it_does_not_make(tiny: TinyConfigs) -> None:
    three = (tiny.sft, tiny.ppo, tiny.eval)
    for overrides, words in (
        (["run.name=same"], "runs of their own"),
        (["train:run.seed=1"], "which is no stage"),
        (["eval:methods=[{name: user, kind: user}]"], "no row named ppo"),
        (["eval:methods.1.name=other", "eval:methods.1.path=/nowhere/run"], "/nowhere/run is no model"),
        (["sft:data.valid=/nowhere/x.jsonl"], "/nowhere/x.jsonl"),
        (["ppo:ppo.validation_new_tokens=60"], "rows sft and ppo would decode differently"),
    ):
        with pytest.raises(UserError, match=words):
            plans.plan_pipeline(*three, overrides, SITE)


def test_signal_lead_covers_what_the_run_has_needed(tiny: TinyConfigs, tmp_path: Path) -> None:
    root = f"run.root={tmp_path}"
    run = tmp_path / "tiny-ppo"
    run.mkdir()
    lines = [
        {"step": 1, "time/decode": 900, "time/update": 20, "time/save": 20},
        {"step": 2, "time/update": 30, "time/validate": 40, "time/save": 15},
        {"step": 3, "time/update": 50, "time/save": 51},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"signal_lead_s = 120 .* 121 s"):  # 30 + 40 + 51
        plans.plan_training("ppo", tiny.ppo, [root], SITE)
    plans.plan_training("ppo", tiny.ppo, [root], ClusterConfig(**{**vars(SITE), "signal_lead_s": 121}))


def test_another_config_than_the_run_has_is_refused(tiny: TinyConfigs, tmp_path: Path) -> None:
    root = f"run.root={tmp_path}"
    job = configs.load(PPOJob, tiny.ppo, [root])
    (tmp_path / "tiny-ppo").mkdir()
    (tmp_path / "tiny-ppo" / "config.yaml").write_text(configs.to_yaml(job))
    plans.plan_training("ppo", tiny.ppo, [root, "checkpoint.every=1"], SITE)
    with pytest.raises(UserError, match=r"ppo.kl_coef was 0.2 and is now 0.3"):
        plans.plan_training("ppo", tiny.ppo, [root, "ppo.kl_coef=0.3"], SITE)


def test_site_is_named(tiny: TinyConfigs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(submit.CLUSTER, raising=False)
    with pytest.raises(UserError, match=r"--cluster FILE"):
        submit.main(["sft", str(tiny.sft)])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"sbatch is not on PATH.*--local"):
        submit.sft(tiny.sft, site=SITE)


def test_local_wants_one_node(tiny: TinyConfigs) -> None:
    with pytest.raises(UserError, match=r"cluster.ppo.nodes=1"):
        submit.ppo(tiny.ppo, site=SITE, local=True)
