"""`promptist compare A B`: who is better at what, by how much and how sure, in words, from finished evaluations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from promptist.errors import UserError
from promptist.evaluation.methods import label
from promptist.evaluation.results import ALL, METRICS, Difference, Results, default_pairs, held_out
from promptist.evaluation.statistics import analyse
from promptist.evaluation.table import MEASUREMENTS, Table, read_table
from promptist.evaluation.words import compare, digits_of, interval, metric_name, signed, trainings


@dataclass(frozen=True)
class Side:
    """A method of a finished evaluation."""

    folder: Path
    method: str
    table: Table


def newest_evaluation(root: Path) -> Path | None:
    """The folder below `root` whose table of measurements is the newest; None without any."""
    found = [path for path in root.glob(f"*/{MEASUREMENTS}") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def sides(words: tuple[str, str], folder: Path | None, root: Path) -> tuple[Side, Side]:
    """What the two arguments mean: `METHOD` of the evaluation `folder` (None: the newest below `root`), or
    `EVAL:METHOD`. UserError where one is not there."""
    tables: dict[Path, Table] = {}

    def side(word: str) -> Side:
        named, colon, method = word.rpartition(":")
        where = Path(named) if colon else folder or newest_evaluation(root)
        if where is None:
            raise UserError(
                f"there is no finished evaluation below {root}: run jobs.evaluate first, or name one with --in EVAL"
            )
        where = where.resolve()
        if where not in tables:
            tables[where] = read_table(where)
        if method not in tables[where].methods:
            raise UserError(f"{where} has no method {method!r}, but {', '.join(tables[where].methods)}")
        return Side(where, method, tables[where])

    return side(words[0]), side(words[1])


def results_of(ours: Side, theirs: Side) -> tuple[Results, str, str]:
    """The statistics and the names under which the two methods stand in them.

    Within an evaluation they are those of its report, the pair added where the report does not compare it; so the
    correction counts all that the evaluation compares. Over two evaluations the family is the pair, and each against
    the user input. UserError where both sides are the same, or cannot be compared.
    """
    if ours.folder == theirs.folder:
        if ours.method == theirs.method:
            raise UserError(f"{ours.method} is named twice: name two methods to compare")
        table, names = ours.table, (ours.method, theirs.method)
        pairs = default_pairs(table.methods)
        if names not in pairs and names[::-1] not in pairs:
            pairs = [names, *pairs]
    else:
        table, names = join(ours, theirs)
        pairs = [names, *((name, "user") for name in names if name != "user")] if "user" not in names else [names]
    return analyse(table, int(table.meta.get("seed", 0)), pairs, corpus=False), *names


def join(ours: Side, theirs: Side) -> tuple[Table, tuple[str, str]]:
    """One table of both methods on the prompts and noises that both evaluations have, with the user input of the
    first. UserError where the two were not measured in the same way."""
    for key, what in (("painter", "painted and scored by different models"), ("terms", "scored by different terms")):
        if ours.table.meta.get(key) != theirs.table.meta.get(key):
            raise UserError(
                f"{ours.folder} and {theirs.folder} were {what} ({key} {ours.table.meta.get(key)} and "
                f"{theirs.table.meta.get(key)}): compare methods of evaluations with the same `reward` config"
            )
    prompts = {p for p, name in ours.table.set_of.items() if theirs.table.set_of.get(p) == name}
    if not prompts:
        raise UserError(
            f"{ours.folder} and {theirs.folder} share no prompt of the same set: evaluate both on the same `prompts`"
        )
    seeds = _seeds(ours.table) & _seeds(theirs.table)
    if not seeds:
        raise UserError(f"{ours.folder} and {theirs.folder} share no noise: give both the same `images`")
    names = [side.method for side in (ours, theirs)]
    if names[0] == names[1]:
        if names[0] == "user":
            raise UserError("the user input is named twice: name two methods to compare")
        short = ours.folder.name != theirs.folder.name
        names = [f"{side.folder.name if short else side.folder}:{side.method}" for side in (ours, theirs)]
    joined = Table([], [], [], ours.table.meta)
    wanted = {"user": (ours.table, "user")} | {
        name: (side.table, side.method) for name, side in zip(names, (ours, theirs), strict=True) if name != "user"
    }
    for name, (table, method) in wanted.items():
        joined.measures.extend(
            replace(m, method=name)
            for m in table.measures
            if m.method == method and m.prompt in prompts and (m.seed is None or m.seed in seeds)
        )
        joined.texts.extend(replace(t, method=name) for t in table.texts if t.method == method and t.prompt in prompts)
    return joined, (names[0], names[1])


def _seeds(table: Table) -> set[int]:
    return {m.seed for m in table.measures if m.method == "user" and m.seed is not None}


def report(ours: Side, theirs: Side, metric: str | None = None) -> str:
    """The whole answer of `promptist compare`; `metric` alone, or the reward by set and the other scores over all.

    UserError for a metric that was not measured of both.
    """
    results, method, baseline = results_of(ours, theirs)
    known = [m for m in results.metrics if _pair(results, method, baseline, m, results.whole)]
    if metric is not None and metric not in known:
        raise UserError(f"{metric!r} was not measured of both {method} and {baseline}, but {', '.join(known)}")
    main = metric or ("reward" if "reward" in known else known[0])
    rest = [] if metric else [m for m in (*METRICS, *held_out(results.metrics)) if m in known and m != main]

    lines = [f"{label(method)} and {label(baseline)}, {_where(ours, theirs)}", "", _heading(main)]
    lines += [f"  {_named(name, results)}: {_line(d)}" for name, d in _groups(results, method, baseline, main)]
    for other in rest:
        found = _pair(results, method, baseline, other, results.whole)
        if found is not None:
            lines += ["", _heading(other), f"  {_line(found)}"]
    unsure = [_unsure(m, _groups(results, method, baseline, m)) for m in (main, *rest)]
    lines += ["", f"Not sure: {'; '.join(filter(None, unsure)) or 'nothing of these metrics'}."]
    lines += trainings(_of_pair(results, method, baseline))
    count = results.comparisons[main]
    lines.append(
        f"Corrected for {count} comparisons of each metric: with 95 % confidence all {count} intervals hold together."
        if count > 1
        else "This is the only comparison: nothing had to be corrected."
    )
    return "\n".join(lines)


def _where(ours: Side, theirs: Side) -> str:
    painter = str(ours.table.meta.get("painter", "?"))[:12]
    folders = dict.fromkeys(str(side.folder) for side in (ours, theirs))
    return f"in {' and '.join(folders)} (painter {painter})"


def _heading(metric: str) -> str:
    words = metric_name(metric)
    return words[0].upper() + words[1:]


def _named(name: str, results: Results) -> str:
    return name if name in results.sets else "all sets"


def _pair(results: Results, method: str, baseline: str, metric: str, name: str) -> Difference | None:
    """The difference of two methods in whichever direction it was computed."""
    found = results.difference(method, baseline, metric, name)
    return found or results.difference(baseline, method, metric, name)


def _groups(results: Results, method: str, baseline: str, metric: str) -> list[tuple[str, Difference]]:
    found = [(name, _pair(results, method, baseline, metric, name)) for name in results.groups]
    return [(name, d) for name, d in found if d is not None]


def _line(d: Difference) -> str:
    digits = digits_of(d.metric)
    sentence = compare(d)
    if d.replicas > 1:
        sentence += f" By training: {', '.join(signed(v, digits) for v in d.by_replica)}."
    if d.in_units is not None and d.metric == "cosine":
        mean, ends = d.in_units
        sentence += f" That is {signed(mean)} (corrected {interval(ends)}) of its standard deviation over user prompts."
    return sentence + (f" p = {d.p_corrected:.2g}, corrected." if d.p_corrected == d.p_corrected else "")


def _unsure(metric: str, groups: list[tuple[str, Difference]]) -> str:
    """On which sets a metric cannot be told; empty where it can on all."""
    names = ["all sets" if name == ALL else name for name, d in groups if not d.sure]
    where = "anywhere" if len(names) == len(groups) else f"on {', '.join(names)}"
    return f"{metric_name(metric)} {where}" if names else ""


def _of_pair(results: Results, method: str, baseline: str) -> Results:
    levels = [level for level in results.levels if level.method in (method, baseline)]
    return replace(results, levels=levels)
