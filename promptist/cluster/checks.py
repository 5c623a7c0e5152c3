"""What `promptist doctor` looks at on each rank. A check returns what it found, or raises a UserError with the fix.

Checks run in a thread that may be given up, so none of them speaks MPI.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from promptist.cluster import slurm
from promptist.cluster.checkpoint import COMPLETE, find_latest
from promptist.cluster.logs import listed
from promptist.cluster.metrics import METRICS, read_metrics
from promptist.cluster.needs import needs_of, painter_needs
from promptist.cluster.prefetch import readable
from promptist.cluster.roles import World
from promptist.errors import UserError

_REDUCED = 16 * 2**20  # float32 numbers: 64 MiB
_ADAM_BYTES = 12  # per trained parameter: both moments and the float32 master copy
_PHASES = ("time/update", "time/validate")  # a stop waits for their end; in the other phases for a chunk's


@dataclass(frozen=True)
class Patient:
    """This rank: the job it would run (`kind` sft, ppo or evaluate), its place, its run folder (which need not exist).

    `meeting`: variables by which the training ranks find each other; None where only one trains.
    """

    kind: str
    job: Any
    world: World
    run: Path
    meeting: dict[str, str] | None = None

    @property
    def trains(self) -> bool:
        return self.kind != "evaluate" and self.world.trains

    @property
    def paints(self) -> bool:
        return self.kind == "evaluate" or (self.kind == "ppo" and self.world.rewards)

    @property
    def first_of_node(self) -> bool:
        """Whether this is the first rank of its role on its node."""
        world = self.world
        return not any(
            world.nodes[r] == world.nodes[world.rank] and world.roles[r] == world.role for r in range(world.rank)
        )


@dataclass(frozen=True)
class Found:
    """`text` for the line; `same`: what must be equal on all ranks that the check concerns."""

    text: str
    same: str = ""


@dataclass(frozen=True)
class Check:
    """`concerns`: which ranks run it; `everywhere`: one rank speaks for all."""

    name: str
    concerns: Callable[[Patient], bool]
    run: Callable[[Patient], Found]
    everywhere: bool = False


def mpi(patient: Patient) -> Found:
    world = patient.world
    if world.comm is None:
        return Found("not in use: one process")
    from mpi4py import MPI

    level = MPI.Query_thread()
    names = {getattr(MPI, f"THREAD_{n}"): n for n in ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")}
    library = " ".join(MPI.Get_library_version().split("\n")[0].rstrip("\0").split())
    if level < MPI.THREAD_FUNNELED:
        raise UserError(
            f"{library} gives thread level {names[level]}: use one built with threads, or unset MPI4PY_RC_THREADS"
        )
    nodes = len(set(world.nodes))
    where = f"{nodes} node{'s' if nodes > 1 else ''}"
    return Found(f"{world.size} ranks on {where}, thread level {names[level]}, {library}")


def roles(patient: Patient) -> Found:
    """Also whether the batch divides."""
    job, world = patient.job, patient.world
    if patient.kind == "ppo":
        job.per_rank(len(world.train_ranks))
    elif patient.kind == "sft":
        job.micro_batches(world.size)
    train = "evaluate" if patient.kind == "evaluate" else "train"
    words = {"both": "train and paint", "train": train, "reward": "paint"}
    parts = []
    for node in dict.fromkeys(world.nodes):
        ranks = [r for r in range(world.size) if world.nodes[r] == node]
        duties = [(word, [r for r in ranks if world.roles[r] == role]) for role, word in words.items()]
        told = "; ".join(f"{word} {listed(who)}" for word, who in duties if who)
        parts.append(f"{world.hosts[ranks[0]]}: {told}")
    return Found(" | ".join(parts))


def inputs(patient: Patient) -> Found:
    """What the job itself looks at before it makes its run folder."""
    if patient.kind == "ppo":
        from promptist.rl.inputs import check_inputs as check_ppo

        check_ppo(patient.job)
    elif patient.kind == "sft":
        from promptist.sft.trainer import check_inputs as check_sft

        check_sft(patient.job)
    else:
        from jobs.evaluate import read_inputs

        read_inputs(patient.job)
    return Found("config and data files can be read")


def model_files(patient: Patient) -> Found:
    needed = needs_of(patient.job)
    painters = {need.key for need in painter_needs(patient.job)}
    others = patient.trains or patient.kind == "evaluate"
    mine = [need for need in needed if (patient.paints if need.key in painters else others)]
    lost = []
    for need in mine:
        try:
            need.find()
        except UserError as error:
            lost.append(f"{need.key}: {error}")
    if lost:
        raise UserError("; ".join(lost))
    asks = any(need.fetch is not None for need in mine) and os.environ.get("HF_HUB_OFFLINE", "") in ("", "0")
    note = "; HF_HUB_OFFLINE is not set: each start asks the hub for news" if asks else ""
    return Found(f"{', '.join(need.key for need in mine)} present{note}")


def gpu(patient: Patient) -> Found:
    import torch

    from promptist.cluster.launch import pick_device

    wanted = patient.job.reward.diffusion.device if patient.paints else "auto"
    if torch.cuda.device_count() == 0:
        if wanted.startswith("cuda"):
            raise UserError(
                f"reward.diffusion.device is {wanted} and this rank sees no GPU: ask the scheduler for one per rank, "
                "or set it to auto or cpu"
            )
        return Found("none: computes on the CPU")
    device = pick_device(patient.world, wanted) if wanted in ("auto", "cpu", "cuda") else torch.device(wanted)
    if device.type == "cpu":
        return Found("not used: reward.diffusion.device is cpu")
    free, total = torch.cuda.mem_get_info(device)
    properties = torch.cuda.get_device_properties(device)
    return Found(f"{properties.name} {str(properties.uuid)[:8]}, {readable(free)} of {readable(total)} free")


def all_reduce(patient: Patient) -> Found:
    """Sums 64 MiB over the training ranks: the right sum, and how fast."""
    import torch
    import torch.distributed as dist

    from promptist.cluster.launch import pick_device

    if patient.meeting is None:
        return Found("one training rank, nothing to add up")
    device = pick_device(patient.world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ.update(patient.meeting)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=5))
    try:
        ranks, rank = dist.get_world_size(), dist.get_rank()
        # Small whole numbers: every order of summation gives the same float.
        mine = (torch.arange(_REDUCED, device=device) % 1000).float() + rank
        expected = ranks * (torch.arange(_REDUCED, device=device) % 1000).float() + ranks * (ranks - 1) / 2
        times = []
        for _ in range(4):
            buffer = mine.clone()
            dist.barrier()
            _settle(device)
            began = time.perf_counter()
            dist.all_reduce(buffer)
            _settle(device)
            times.append(time.perf_counter() - began)
            if not torch.equal(buffer, expected):
                raise UserError(f"the sum over {ranks} ranks by {backend} is wrong: a network card or a GPU is broken")
    finally:
        dist.destroy_process_group()
    seconds = min(times[1:])  # the first one connects
    bus = 4 * _REDUCED / seconds * 2 * (ranks - 1) / ranks
    text = f"64 MiB over {ranks} ranks by {backend}, sum right, {1000 * seconds:.1f} ms"
    return Found(f"{text}: {readable(bus)}/s of bus bandwidth")


def xformers(patient: Patient) -> Found:
    if patient.job.reward.diffusion.attention != "xformers":
        return Found(f"not asked for: reward.diffusion.attention is {patient.job.reward.diffusion.attention}")
    try:
        import xformers as package
        import xformers.ops
    except Exception as error:  # a wheel for another torch fails in many ways
        raise UserError(
            f"reward.diffusion.attention is xformers, which cannot be imported ({type(error).__name__}: "
            f"{str(error)[:100]}): install promptist[xformers], or set it to sdpa"
        ) from error
    return Found(f"xformers {package.__version__}")


def reward(patient: Patient) -> Found:
    """One picture through Stable Diffusion, CLIP, the aesthetic head and held-out scorers, as the job does it."""
    from promptist.reward.messages import ImageRequest
    from promptist.reward.model import RewardModel
    from promptist.reward.service import on_own_device

    began = time.perf_counter()
    reward = on_own_device(patient.job.reward, patient.world)
    model = RewardModel(reward, held_out=getattr(patient.job, "held_out", []))
    loaded = time.perf_counter()
    request = ImageRequest("a red boat on the beach", "a red boat on the beach", "valid", 0)
    model.measure([request])  # the first batch compiles and allocates
    first = time.perf_counter()
    measured = model.measure([request])[0]
    seconds = time.perf_counter() - first
    others = "".join(f", {name} {value:.3g}" for name, value in measured.extra.items())
    return Found(
        f"a batch of {model.batch} in {seconds:.2f} s after {loaded - began:.1f} s of loading; of “{request.prompt}”: "
        f"cosine {measured.cosine:.3f}, aesthetic {measured.aesthetic:.2f}{others}",
        same=model.fingerprint,
    )


def disk(patient: Patient) -> Found:
    """Room for two checkpoints where the run folder is, or is to be; the first is kept until the second is whole."""
    there = next(path for path in (patient.run, *patient.run.absolute().parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{there} cannot be written ({error.strerror}): set run.root to a place that can") from error
    free = shutil.disk_usage(there).free
    if patient.kind == "evaluate":
        return Found(f"{readable(free)} free in {there}")
    needed, source = checkpoint_bytes(patient)
    text = f"two checkpoints need {readable(2 * needed)} ({source}), {readable(free)} are free in {there}"
    if free < 2 * needed:
        raise UserError(f"{text}: free some space, or set run.root to a larger disk")
    return Found(text)


def checkpoint_bytes(patient: Patient) -> tuple[int, str]:
    """Size of a checkpoint and where that is known from: the run's newest one, else the number of parameters.

    Each trained network: its weights in their dtype, and for each trained parameter Adam's two moments and a float32
    copy.
    """
    newest = find_latest(patient.run / "checkpoints", hashes=False)
    if newest is not None:
        files = json.loads((newest / COMPLETE).read_text("utf-8"))["files"]
        return sum(file["size"] for file in files.values()), f"as {newest.name}"
    import torch
    from transformers import AutoModelForCausalLM

    from promptist.models.policy import DTYPES, freeze_lower_blocks, read_architecture
    from promptist.models.value import ValueConfig, ValueModel

    job, total, counts = patient.job, 0, []
    with torch.device("meta"):
        architecture = read_architecture(job.model)
        networks = [AutoModelForCausalLM.from_config(architecture)]
        freeze_lower_blocks(networks[0], job.model.trainable_blocks)
        if patient.kind == "ppo":
            networks.append(ValueModel(AutoModelForCausalLM.from_config(architecture).base_model, ValueConfig()))
    for network in networks:
        parameters = list(network.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        count = sum(p.numel() for p in parameters)
        total += count * DTYPES[job.model.dtype].itemsize + trained * _ADAM_BYTES
        counts.append(f"{count:,}")
    return total, f"{' + '.join(counts)} parameters with Adam's state"


def signal_lead(patient: Patient) -> Found:
    """Whether the scheduler will say in time that the job has to stop."""
    job = slurm.job_key()
    assert job is not None  # `concerns`
    done = subprocess.run(
        ["scontrol", "write", "batch_script", job, "-"], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        return Found(f"job {job} has no batch script to look at: give sbatch or srun --signal=USR2@SECONDS")
    found = re.search(r"^#SBATCH\s+--signal[= ](\S+)", done.stdout, re.MULTILINE)
    if found is None:
        return Found(
            f"the script of job {job} asks for none ahead of its time limit, though an option of sbatch may have: the "
            "job's own needs #SBATCH --signal=USR2@600"
        )
    match = re.fullmatch(r"(?:R:)?(?:SIG)?(USR2|TERM|12|15)(?:@(\d+))?", found.group(1))
    if match is None:
        raise UserError(
            f"the script of job {job} asks for --signal={found.group(1)}: make it USR2@SECONDS, without B:, which "
            "would reach the batch script alone"
        )
    lead_s = int(match.group(2) or 60)
    longest_s = longest_step(patient.run)
    if longest_s is None:
        return Found(f"{lead_s} s ahead of the time limit; how long a step and a save take, the run does not know yet")
    text = f"{lead_s} s ahead of the time limit; the longest phase and a save took {longest_s:.0f} s so far"
    if lead_s < longest_s:
        raise UserError(f"{text}: raise it in --signal=USR2@{2 * longest_s:.0f}")
    return Found(text)


def longest_step(run: Path) -> float | None:
    """Seconds between the moments at which a run can stop, and of a save, at most so far; None before the first."""
    if not (run / METRICS).is_file():
        return None
    longest = 0.0
    for record in read_metrics(run / METRICS):
        phases = [float(record[name]) for name in _PHASES if record.get(name) is not None]
        step = max(phases, default=float(record.get("time/step") or 0))
        longest = max(longest, step + float(record.get("time/save") or 0))
    return longest or None


def _settle(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


CHECKS = (
    Check("MPI", lambda p: p.world.rank == 0, mpi, everywhere=True),
    Check("roles", lambda p: p.world.rank == 0, roles, everywhere=True),
    Check("inputs", lambda p: p.world.leads, inputs, everywhere=True),
    Check("model files", lambda p: p.first_of_node, model_files),
    Check("GPU", lambda p: True, gpu),
    Check("all-reduce", lambda p: p.trains, all_reduce),
    Check("xformers", lambda p: p.paints and p.first_of_node, xformers),
    Check("reward", lambda p: p.paints, reward),
    Check("disk", lambda p: p.world.leads, disk),
    Check("signal", lambda p: p.world.leads and slurm.job_key() is not None, signal_lead, everywhere=True),
)
