"""Checkpoints as Hugging Face folders: whose weights, whose decoding, once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from promptist import config as configs
from promptist.cluster import checkpoint
from promptist.errors import UserError
from promptist.evaluation.entries import EXPORTS, check_models, entries_of, runs_of
from promptist.evaluation.methods import MethodConfig
from promptist.export import checkpoints_of, export_checkpoint, is_checkpoint
from promptist.models.elastic import TAG
from promptist.optimize import Promptist, RewriteSettings
from promptist.rl.config import PPOJob
from tests.helpers_ppo import make_tiny_job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PPO run with checkpoints of steps 2, 4 and a damaged 6, as DeepSpeed lays out ZeRO 0 to 2."""
    folder = tmp_path_factory.mktemp("ppo")
    job = configs.load(PPOJob, make_tiny_job(folder))
    run = Path(job.run.root) / job.run.name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(configs.to_yaml(job))
    (run / "metrics.jsonl").write_text("")
    for step in (2, 4, 6):
        checkpoint.save(run / "checkpoints", step, lambda path, step=step: write_engine(job, path, step))
    (run / "checkpoints" / "step_000006" / "policy" / TAG / "mp_rank_00_model_states.pt").write_bytes(b"half")
    return run


def write_engine(job: PPOJob, path: Path, step: int) -> None:
    for name in ("policy", "value"):
        (path / name / TAG).mkdir(parents=True)
        torch.save(
            {"module": moved(job.model.path, step).state_dict()}, path / name / TAG / "mp_rank_00_model_states.pt"
        )


def moved(model: str, step: int) -> GPT2LMHeadModel:
    """The start, with one bias that says which step this is."""
    found = GPT2LMHeadModel.from_pretrained(model)
    with torch.no_grad():
        found.transformer.ln_f.bias.fill_(step)
    return found


def test_an_export_has_the_checkpoints_weights_and_the_runs_decoding(run: Path, tmp_path: Path) -> None:
    job = configs.load(PPOJob, run / "config.yaml")
    folder = export_checkpoint(run / "checkpoints" / "step_000004", tmp_path)
    assert folder.parent == tmp_path and folder.name.startswith("step_000004-")
    found, expected = GPT2LMHeadModel.from_pretrained(folder).state_dict(), moved(job.model.path, 4).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    settings = RewriteSettings.of_folder(folder)
    assert (settings.decoding, settings.max_new_tokens) == (job.ppo.validation_decoding, job.ppo.validation_new_tokens)
    assert Promptist.from_pretrained(folder, "cpu")("a red boat")


def test_an_export_is_made_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = export_checkpoint(run / "checkpoints" / "step_000004", tmp_path)
    second = export_checkpoint(run / "checkpoints" / "step_000002", tmp_path)
    assert first != second and len(list(tmp_path.iterdir())) == 2

    def refuse(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("promptist.models.elastic.read_weights", refuse)
    assert export_checkpoint(run / "checkpoints" / "step_000004", tmp_path) == first
    shutil.copytree(run, tmp_path / "moved")  # the same content elsewhere is the same model
    assert export_checkpoint(tmp_path / "moved" / "checkpoints" / "step_000004", tmp_path) == first


def test_another_process_may_be_faster(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "checkpoints" / "step_000004"
    final = export_checkpoint(path, tmp_path / "a")
    from promptist.models import policy

    export = policy.export_policy

    def meanwhile(module: object, state: object, tokenizer: object, folder: Path) -> None:
        export(module, state, tokenizer, folder)  # type: ignore[arg-type]
        shutil.copytree(final, tmp_path / "b" / final.name)

    monkeypatch.setattr(policy, "export_policy", meanwhile)
    assert export_checkpoint(path, tmp_path / "b") == tmp_path / "b" / final.name
    assert [p.name for p in (tmp_path / "b").iterdir()] == [final.name]


def test_a_row_per_checkpoint(run: Path, tmp_path: Path) -> None:
    job = configs.load(PPOJob, run / "config.yaml")
    methods = [MethodConfig("user", "user"), MethodConfig("ppo", "checkpoints", str(run))]
    entries = entries_of(methods, [job.model.path], tmp_path / EXPORTS)
    assert [(e.method, e.replica, e.kind) for e in entries] == [
        ("user", 0, "user"), ("ppo@2", 0, "model"), ("ppo@4", 0, "model")
    ]  # fmt: skip
    assert len({e.model for e in entries}) == 3 and {e.reference for e in entries[1:]} != {""}
    assert all(e.folder and e.folder.parent == tmp_path / EXPORTS for e in entries[1:])
    single = MethodConfig("ppo", "model", str(run / "checkpoints" / "step_000002"))
    assert entries_of([single], [], tmp_path / EXPORTS)[0].model == entries[1].model
    assert runs_of([*methods, single], "metrics.jsonl") == {"ppo": [str(run), str(run)]}


def test_what_is_no_checkpoint(run: Path, tmp_path: Path) -> None:
    assert [p.name for p in checkpoints_of(run)] == ["step_000002", "step_000004"]
    assert not is_checkpoint(run) and not is_checkpoint(run / "checkpoints" / "step_000008")
    with pytest.raises(UserError, match="is damaged"):
        export_checkpoint(run / "checkpoints" / "step_000006", tmp_path)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        checkpoints_of(tmp_path)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        check_models([MethodConfig("ppo", "checkpoints", str(tmp_path))], [])
    shutil.copytree(run, tmp_path / "moved")
    text = (run / "config.yaml").read_text()
    (tmp_path / "moved" / "config.yaml").write_text(text.replace(f"{run.parents[1]}/policy", f"{tmp_path}/gone"))
    with pytest.raises(UserError, match="gone does not exist"):
        export_checkpoint(tmp_path / "moved" / "checkpoints" / "step_000002", tmp_path)
