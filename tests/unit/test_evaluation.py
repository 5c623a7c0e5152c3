"""The evaluation's work: what is painted, with which noise, what is done again after a kill, and by whom."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from promptist.cluster.preemption import Preemption
from promptist.cluster.roles import World
from promptist.config import load
from promptist.errors import UserError
from promptist.evaluation import timings
from promptist.evaluation.entries import entries_of, plain_texts
from promptist.evaluation.evaluate import Tools, unfinished, work
from promptist.evaluation.lengths import CLIP, GPT2, Ruler
from promptist.evaluation.measures import Scoring, build_table
from promptist.evaluation.methods import MethodConfig, check_methods, model_fingerprint, model_folder
from promptist.evaluation.plan import Plan
from promptist.evaluation.prompts import EvalPrompt, load_eval_prompts
from promptist.evaluation.shards import Shard
from promptist.evaluation.store import Store
from promptist.evaluation.table import MEASUREMENTS, PICTURES, TEXTS, Table, read_table, write_table
from promptist.reward.messages import ImageRequest, Measurement
from promptist.reward.terms import TermsConfig

ALONE = World(0, 1, "train", 0, 1, 0, roles=("train",), hosts=("here",), nodes=(0,))
PROMPTS = [EvalPrompt(f"a red boat {i}", "in" if i < 5 else "out", "art" if i < 5 else None) for i in range(9)]


class Cut(Exception):
    """The job was killed."""


@dataclass
class FakePainter:
    """Numbers that depend on the request alone; keeps what it paints, is killed after `limit` batches."""

    folder: Path
    limit: int = 10**9
    batches: list[list[ImageRequest]] = field(default_factory=list)

    def __call__(self, requests: list[ImageRequest]) -> list[Measurement]:
        if len(self.batches) >= self.limit:
            raise Cut
        self.batches.append(requests)
        return [self._measure(r) for r in requests]

    def _measure(self, r: ImageRequest) -> Measurement:
        number = int(hashlib.sha256(f"{r.prompt}|{r.source}|{r.k}".encode()).hexdigest()[:8], 16) / 2**32
        picture = None
        if r.keep_picture:
            picture = f"images/{hashlib.sha256(f'{r.prompt}{r.k}'.encode()).hexdigest()[:12]}.png"
            (self.folder / "images").mkdir(exist_ok=True)
            (self.folder / picture).write_bytes(b"")
        return Measurement(number, 5 + number, {}, picture)

    @property
    def painted(self) -> list[ImageRequest]:
        return [request for batch in self.batches for request in batch]


@dataclass
class FakeModels:
    asked: list[tuple[str, str]] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)

    def rewrite(self, folder: Path, prompts: list[str]) -> tuple[list[str], list[float]]:
        self.asked += [(folder.name, x) for x in prompts]
        style = (folder / "config.json").read_text()
        return ["" if x.endswith("3") else f"{x}, {style}" for x in prompts], [0.5] * len(prompts)

    def log_ratios(self, folder: Path, reference: Path, rewrites: dict[str, str]) -> dict[str, float]:
        assert reference.name == "sft"
        self.compared += [f"{folder.name}: {x}" for x in rewrites]
        return {x: len(y) / 8 for x, y in rewrites.items()}

    def count(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]


METHODS = ("sft", "ppo", "ppo-2")
FILES = (MEASUREMENTS, TEXTS, PICTURES)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Folders of an SFT model and two PPO models."""
    for name, style in zip(METHODS, ("oil paint", "golden hour", "lens flare"), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(style)
    return tmp_path


@pytest.fixture
def plan(models: Path) -> Plan:
    return make_plan(models)


def make_plan(models: Path) -> Plan:
    methods = [
        MethodConfig("user", "user"),
        MethodConfig("human", "human"),
        MethodConfig("sft", "model", str(models / "sft")),
        MethodConfig("ppo", "model", paths=[str(models / "ppo"), str(models / "ppo-2")]),
        MethodConfig("suffix", "suffix", text="pixel art"),
        MethodConfig("best-of", "best_of"),
    ]
    entries = entries_of(methods, [str(models / "sft")], models / "exports")
    rulers = (Ruler(GPT2, "g", "tokenizer-1"), Ruler(CLIP, "c", "tokenizer-2", 5))
    return Plan(PROMPTS, entries, plain_texts(methods, PROMPTS), images=3, pictures=1, batch=4, rulers=rulers)


SCORING = Scoring(TermsConfig(), {}, lambda x, y: {"empty": float(not y)})


def run(
    plan: Plan,
    folder: Path,
    painter: FakePainter | None = None,
    world: World = ALONE,
    paint_id: str = "p",
    shard: Shard = Shard(),  # noqa: B008  # frozen
    stop: Preemption | None = None,
) -> tuple[Table | None, FakePainter, FakeModels]:
    """Work on a shard as the job does; the table, written as well, where that finished the plan."""
    folder.mkdir(exist_ok=True)
    painter, models = painter or FakePainter(folder), FakeModels()
    writer = f"attempt_{len(list((folder / 'finished').glob('*.jsonl')))}_rank_{world.rank}"
    world.barrier_all()
    store, clock = Store(folder / "finished", writer), timings.Clock(folder, writer)
    world.barrier_all()
    part = shard.part(plan.prompts)
    count = {ruler.fingerprint: models.count for ruler in plan.rulers}
    tools = Tools(models.rewrite, models.log_ratios, count, lambda: (painter, paint_id))
    found = work(plan, part, folder, store, world, tools, clock, stop or Preemption())
    if found is None or world.rank > 0 or unfinished(plan, plan.prompts, store, found, folder):
        return None, painter, models
    write_table(folder, build_table(plan, store, found, SCORING, {}))
    return read_table(folder), painter, models


def same_bytes(folder: Path, other: Path) -> bool:
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def test_the_table(plan: Plan, tmp_path: Path) -> None:
    table, painter, models = run(plan, tmp_path / "e")
    assert table is not None
    texts = Counter((t.method, t.replica) for t in table.texts)
    assert texts == {**{(m, 0): 9 for m in ("user", "sft", "ppo", "suffix", "best-of")}, ("ppo", 1): 9, ("human", 0): 5}
    pictures = Counter((m.method, m.replica) for m in table.measures if m.metric == "cosine")
    assert pictures == {row: (1 if row[0] == "best-of" else 3) * n for row, n in texts.items()}
    rewrites = {t.replica: t.rewrite for t in table.texts if t.method == "ppo" and t.prompt.endswith("4")}
    assert rewrites == {0: "a red boat 4, golden hour", 1: "a red boat 4, lens flare"}
    assert {t.rewrite for t in table.texts if t.method == "suffix" and t.prompt.endswith("4")} == {
        "a red boat 4, pixel art"
    }
    assert {t.set for t in table.texts if t.method == "human"} == {"in"}
    assert {p.seed for p in table.pictures} == {0}
    assert all(len(batch) <= plan.batch for batch in painter.batches)
    assert Counter(models.compared) == Counter(f"{name}: {p.x}" for name in METHODS for p in PROMPTS)
    assert table.value("kl", "ppo", "a red boat 3", 1) == 0 and table.value("kl", "sft", "a red boat 4") > 0
    assert (
        table.value("gpt2_tokens", "ppo", "a red boat 4") == 6 and table.value("over_clip", "ppo", "a red boat 4") == 1
    )
    assert table.value("over_clip", "ppo", "a red boat 3") == 0


def test_timings_say_who_took_how_long(plan: Plan, tmp_path: Path) -> None:
    _, painter, _ = run(plan, tmp_path / "e")
    found = timings.summarise(tmp_path / "e")
    assert found["rewrite"]["ppo"] == {"count": 18, "total_s": 9.0, "p50_s": 0.5, "p95_s": 0.5}
    assert sum(of["count"] for of in found["picture"].values()) == len(painter.painted)
    # The plain prompt counts for the user's row, also where PPO left it alone and where the best of it is chosen.
    assert {m: of["count"] for m, of in found["picture"].items()} == {
        "user": 27, "human": 15, "sft": 24, "ppo": 48, "suffix": 27
    }  # fmt: skip
    assert set(found["log_ratio"]) == {"sft", "ppo"} and not list((tmp_path / "e").glob("*timings*.parquet"))
    (tmp_path / "e" / "timings" / "killed.jsonl").write_text('{"kind": "rewrite", "meth')
    assert timings.summarise(tmp_path / "e") == found


def test_every_method_shares_noise_and_is_compared_with_the_users_prompt(plan: Plan, tmp_path: Path) -> None:
    _, painter, _ = run(plan, tmp_path / "e")
    sources = {p.x for p in PROMPTS}
    assert {r.source for r in painter.painted} == sources
    assert {r.namespace for r in painter.painted} == {"eval"}
    for x in sources:
        keys = {
            y: sorted(r.k for r in painter.painted if (r.source, r.prompt) == (x, y)) for y in (x, f"{x}, golden hour")
        }
        assert keys[x] == [0, 1, 2]
        assert keys[f"{x}, golden hour"] in ([0, 1, 2], [])  # [] where the model left the prompt alone


def test_an_empty_rewrite_is_the_plain_prompt_and_painted_once(plan: Plan, tmp_path: Path) -> None:
    table, painter, _ = run(plan, tmp_path / "e")
    assert table is not None
    assert {t.rewrite for t in table.texts if t.method == "ppo" and t.prompt == "a red boat 3"} == {""}
    x = "a red boat 3"
    assert table.value("aesthetic", "ppo", x, 0, 1) == table.value("aesthetic", "user", x, 0, 1)
    assert max(Counter((r.prompt, r.source, r.k) for r in painter.painted).values()) == 1


def test_the_best_plain_picture_is_kept_whichever_it_is(plan: Plan, tmp_path: Path) -> None:
    table, painter, _ = run(plan, tmp_path / "e")
    assert table is not None
    assert all(r.keep_picture == (r.plain or r.k < 1) for r in painter.painted)
    plain = {p.x: [table.value("aesthetic", "user", p.x, 0, k) for k in range(3)] for p in PROMPTS}
    for picture in (p for p in table.pictures if p.method == "best-of"):
        best = max(range(3), key=lambda k, x=picture.prompt: table.value("reward", "user", x, 0, k) + plain[x][k])
        assert table.value("aesthetic", "best-of", picture.prompt, 0, 0) == plain[picture.prompt][best]
        kept = hashlib.sha256(f"{picture.prompt}{best}".encode()).hexdigest()[:12]
        assert picture.path == f"images/{kept}.png"


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_resumed_work_is_done_once_and_gives_the_same_bytes(plan: Plan, tmp_path: Path, limit: int) -> None:
    _, whole, _ = run(plan, tmp_path / "whole")
    folder = tmp_path / "cut"
    folder.mkdir()
    first = FakePainter(folder, limit)
    with pytest.raises(Cut):
        run(plan, folder, first)
    with open(folder / "finished" / "attempt_0_rank_0.jsonl", "ab") as file:
        file.write(b'{"painter": "p", "painted": "a red bo')  # the line that was being written
    _, second, models = run(plan, folder)
    assert models.asked == models.compared == []
    assert Counter(first.painted + second.painted) == Counter(whole.painted)
    assert same_bytes(folder, tmp_path / "whole")
    _, third, _ = run(plan, folder)
    assert third.painted == []


def test_changes_do_only_what_is_new(plan: Plan, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    run(plan, folder)
    more = replace(plan, images=4)
    _, painter, fake = run(more, folder)
    assert {r.k for r in painter.painted} == {3} and fake.asked == fake.compared == []

    (models / "ppo" / "config.json").write_text("pixel sort")  # trained again
    more = replace(make_plan(models), images=4)
    table, painter, fake = run(more, folder)
    assert {name for name, _ in fake.asked} == {"ppo"} and len(fake.compared) == 9
    assert {r.prompt for r in painter.painted} == {f"{p.x}, pixel sort" for p in PROMPTS if not p.x.endswith("3")}
    assert table is not None and any("pixel sort" in t.rewrite for t in table.texts)

    (models / "sft" / "config.json").write_text("oil  paint")  # the reference was: all log-ratios, and its own rewrites
    _, _, fake = run(replace(make_plan(models), images=4), folder)
    assert {name for name, _ in fake.asked} == {"sft"} and len(fake.compared) == 27

    next((folder / "images").glob("*.png")).unlink()
    _, painter, _ = run(more, folder)
    assert len(painter.painted) == 1

    _, painter, _ = run(more, folder, paint_id="another diffusion model")
    assert len(painter.painted) == len(set(painter.painted)) > 50


class ThreadComm:
    """As much of an MPI communicator as the evaluation uses, between threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, box: dict[int, Any]) -> None:
        self.rank, self.barrier, self.box = rank, barrier, box

    def Ibarrier(self) -> Any:
        self.barrier.wait(timeout=30)
        return self

    def Test(self) -> bool:
        return True

    def gather(self, value: Any, root: int) -> list[Any] | None:
        self.box[self.rank] = value
        self.barrier.wait(timeout=30)
        return [self.box[r] for r in sorted(self.box)] if self.rank == root else None

    def bcast(self, value: Any, root: int) -> Any:
        self.barrier.wait(timeout=30)
        if self.rank == root:
            self.box[root] = value
        self.barrier.wait(timeout=30)
        return self.box[root]


def test_the_number_of_ranks_changes_no_byte(plan: Plan, tmp_path: Path) -> None:
    run(plan, tmp_path / "one")
    size, folder = 3, tmp_path / "three"
    folder.mkdir()
    barrier, box = threading.Barrier(size), {}  # type: ignore[var-annotated]
    painters = [FakePainter(folder) for _ in range(size)]

    def rank(r: int) -> None:
        world = World(
            r, size, "train", r, size, r, roles=("train",) * size, hosts=("here",) * size, nodes=(0,) * size,
            comm=ThreadComm(r, barrier, box),
        )  # fmt: skip
        run(plan, folder, painters[r], world)

    threads = [threading.Thread(target=rank, args=(r,)) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert same_bytes(folder, tmp_path / "one")
    sources = [{r.source for r in p.painted} for p in painters]
    assert not (sources[0] & sources[1] | sources[1] & sources[2] | sources[0] & sources[2])
    _, painter, _ = run(plan, folder)  # one rank takes over what three did
    assert painter.painted == []


@pytest.mark.parametrize("of", [3, 16])
def test_the_number_of_shards_changes_no_byte_and_none_does_another_ones_work(
    plan: Plan, tmp_path: Path, of: int
) -> None:
    _, whole, _ = run(plan, tmp_path / "one")
    folder, painted = tmp_path / "shards", []
    for number in range(of, 0, -1):  # in any order
        table, painter, _ = run(plan, folder, shard=Shard(number, of))
        assert (table is None) == (number > 1)
        painted += painter.painted
    assert Counter(painted) == Counter(whole.painted)
    assert same_bytes(folder, tmp_path / "one")
    _, painter, _ = run(plan, folder)  # a plain run takes over what shards did
    assert painter.painted == []


def test_a_signal_ends_the_work_after_the_batch_at_hand(plan: Plan, tmp_path: Path) -> None:
    stop, folder = Preemption(), tmp_path / "e"
    folder.mkdir()

    class Signalled(FakePainter):
        def __call__(self, requests: list[ImageRequest]) -> list[Measurement]:
            if len(self.batches) == 1:
                stop.requested = "SIGUSR2"  # arrives while the second batch is painted
            return super().__call__(requests)

    table, first, _ = run(plan, folder, Signalled(folder), stop=stop)
    assert table is None and len(first.batches) == 2
    table, second, models = run(plan, folder)
    assert table is not None and models.asked == []
    _, whole, _ = run(plan, tmp_path / "whole")
    assert Counter(first.painted + second.painted) == Counter(whole.painted)


def test_a_full_disk_is_a_sentence(plan: Plan, tmp_path: Path) -> None:
    def full(requests: list[ImageRequest]) -> list[Measurement]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="is full"):
        run(plan, tmp_path / "e", full)  # type: ignore[arg-type]


def test_store_keeps_what_ranks_wrote(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Store(tmp_path, "rank_00000").add_rewrites("m", {"x": "ü \u2028 y"})
    other = Store(tmp_path, "attempt_0002_rank_00004")
    other.add_images({("p", "y", "x", 2): Measurement(0.1, 5.0, {"pick": 1.5}, None)})
    Store(tmp_path, "attempt_0002_rank_00005").add_ratios("m", "r", {"x": 0.1 + 0.2})
    Store(tmp_path, "attempt_0002_rank_00006").add_lengths("t", {"ü y": 3})
    (tmp_path / "attempt_0003_rank_00000.jsonl").write_text('{"model": "m", "x": "z"}\n\0\0\n{"model": "m", "x"')
    again = Store(tmp_path, "attempt_0004_rank_00000")
    assert again.ratios == {("m", "r", "x"): 0.1 + 0.2} and again.lengths == {("t", "ü y"): 3}
    assert again.rewrites == {("m", "x"): "ü \u2028 y"}
    assert again.images == {("p", "y", "x", 2): Measurement(0.1, 5.0, {"pick": 1.5}, None)}
    assert caplog.text.count("broken line") == 2
    fresh = Store(tmp_path / "elsewhere", "rank")
    fresh.merge(other.added)
    assert fresh.images == again.images and fresh.added == []


# ---- bad input


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no prompt"),
        ('{"prompt": "a"}\n', ":1 has no `set`"),
        ('{"prompt": " ", "set": "s"}\n', "`prompt` must be non-empty"),
        ('{"prompt": "a", "set": "s"}\n{"prompt": "a ", "set": "t"}\n', ":2 repeats the prompt of"),
        ('{"prompt": "a", "set": "all"}\n', "rename it"),
        ('{"prompt": "a", "set": "s", "human": ""}\n', "`human` must be non-empty"),
        ("a boat\n", "not valid JSON"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        load_eval_prompts(path)


def test_prompt_file(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    lines = [
        {"prompt": " a boat\u2028", "set": "in", "human": "a boat, art "},
        {"prompt": "cat", "set": "label"},
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert load_eval_prompts(path) == [
        EvalPrompt("a boat", "in", "a boat, art"),
        EvalPrompt("cat", "label", None),
    ]


USER = MethodConfig("user", "user")


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ([], "add the row"),
        ([MethodConfig("sft", "model", "x")], "add the row"),
        ([USER, MethodConfig("sft", "model")], "needs a `path`"),
        ([USER, MethodConfig("human", "human", "x")], "takes no `path`"),
        ([USER, MethodConfig("a", "model", "x"), MethodConfig("a", "model", "y")], "stands twice"),
        ([USER, MethodConfig("a", "other", "x")], "use one of"),
        ([USER, MethodConfig("a/b", "model", "x")], "letters"),
        ([USER, MethodConfig("all", "model", "x")], "nor is one called"),
        ([USER, MethodConfig("people", "human")], "bear their kind"),
    ],
)
def test_bad_methods(methods: list[MethodConfig], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_methods(methods)


def test_model_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model"):
        model_folder(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="no exported model yet"):
        model_folder(tmp_path)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    assert model_folder(tmp_path) == tmp_path / "export" == model_folder(tmp_path / "export")
    before = model_fingerprint(tmp_path / "export")
    (tmp_path / "export" / "model.safetensors").write_bytes(b"1")
    assert model_fingerprint(tmp_path / "export") != before


def test_demo_config_loads() -> None:
    from jobs.evaluate import EvalJob

    path = Path(__file__).parents[2] / "configs" / "demo" / "eval.yaml"
    job = load(EvalJob, path, ["images=5"])
    assert {"user", "human", "sft", "ppo"} <= {m.name for m in job.methods}
    for override, words in (
        ("images=0", "at least 1"),
        ("pictures=9", "keep at least 1"),
        ("imags=3", "did you mean"),
    ):
        with pytest.raises(UserError, match=words):
            load(EvalJob, path, [override])
