"""What a run cannot show: how few replicates, how few steps, which model, which text, which machine."""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.results.intervals import LEAST_REPLICATES
from orchestrator.results.queries import query
from orchestrator.results.report.device import held
from orchestrator.results.report.run import ReportedRun
from orchestrator.results.report.wording import shown

#: Tokens a weight that a compute-optimal run sees (Hoffmann et al. 2022, arXiv 2203.15556).
_OPTIMAL_TOKENS = 20


def limits(run: ReportedRun) -> list[str]:
    """One sentence a limit."""
    return [*_replicates(run), _training(run), _corpus(run), _device(run), *_tuning(run), *_lengths(run)]


def weights(run: ReportedRun) -> list[int]:
    """Elements of each trial's matrices, where they were measured."""
    each = "SELECT DISTINCT key, matrix, elements FROM layers"
    found = query(run.store, f"SELECT sum(elements) AS n FROM ({each}) GROUP BY key")
    return [int(n) for n in found["n"].to_pylist() if n is not None]


def tokens(config: Mapping[str, Any]) -> int | None:
    """Tokens that a trial trains on if it runs to its end; None where its config does not say."""
    try:
        return int(config["steps"] * config["batch_size"] * config["model"]["block_size"])
    except KeyError:
        return None


def _replicates(run: ReportedRun) -> list[str]:
    n = run.most_replicates
    if n >= LEAST_REPLICATES:
        cells = sum(cell.mean is not None for cell in run.matrix.cells.values())
        return [
            f"Intervals are Student's t over at most {n} replicates and assume that their errors are normal. "
            f"They are not corrected for the {cells} cells compared: the best of many is partly luck."
        ]
    return [
        f"At most {n} replicate{'' if n == 1 else 's'} a cell: no intervals, and the order of close cells is not "
        f"evidence. Widen the sweep to {LEAST_REPLICATES} seeds or more."
    ]


def _training(run: ReportedRun) -> str:
    configs = [lane["config"] for pack in run.plan["packs"] for lane in pack["lanes"]]
    sizes, seen = weights(run), [n for n in map(tokens, configs) if n is not None]
    model = f"a model of {_span(sizes)} weights in matrices" if sizes else "a model"
    said = f"{_span(config['steps'] for config in configs)} steps of {model}"
    if seen:
        said += f", {_span(seen)} tokens a trial"
    if seen and sizes:
        ratio = max(seen) / min(sizes)
        said += f": at most {ratio:.1f} tokens a weight, where compute-optimal training takes about {_OPTIMAL_TOKENS}"
    return f"{said}. What holds here need not hold for longer training or larger models."


def _span(counts: Iterable[int]) -> str:
    """The smallest and the largest, or the one that all are."""
    known = sorted(set(counts))
    return " to ".join(shown(count) for count in dict.fromkeys((known[0], known[-1])))


def _corpus(run: ReportedRun) -> str:
    corpus = run.plan["corpus"]
    kind = "Python source" if corpus["corpus"] == "stdlib" else "one text"
    return (
        f"One corpus, {corpus['corpus']} ({kind}, {shown(corpus['tokens'])} tokens, {corpus['vocabulary']} different): "
        "losses are comparable with each other, not with those of other texts or tokenisations."
    )


def _device(run: ReportedRun) -> str:
    device = held(run.plan, run.records).device
    where = f" on {device}" if device else ""
    return (
        f"Formats are simulated{where}: values are rounded to their grids exactly, products are summed in float32. "
        "Speeds say nothing of hardware that computes in 8 bits."
    )


def _tuning(run: ReportedRun) -> list[str]:
    """How many cells chose a nuisance value at the end of what was offered, and that choosing flatters."""
    if not run.matrix.nuisance_parameters:
        return []
    offered: dict[str, set[float]] = {name: set() for name in run.matrix.nuisance_parameters}
    for setting in run.settings:
        for name, value in setting.nuisance.items():
            if isinstance(value, (int, float)):
                offered[name].add(value)
    chosen = [setting for setting in run.settings if setting.chosen]
    said = []
    for name, values in offered.items():
        if len(values) > 1:
            edge = sum(setting.nuisance[name] in (min(values), max(values)) for setting in chosen)
            few = ", ".join(f"{value:g}" for value in sorted(values))
            said.append(f"{name} was tuned over {few}: {edge} of {len(chosen)} cells chose an end of that range.")
    return [*said, f"Settings are chosen by the same {run.matrix.metric} that is shown, which flatters every cell."]


def _lengths(run: ReportedRun) -> list[str]:
    ends = [cell.last_step for cell in run.matrix.cells.values() if cell.last_step is not None]
    if not ends or len(set(ends)) == 1:
        return []
    short = sum(step < max(ends) for step in ends)
    why = "theirs ended there, or have not come further"
    return [f"{short} of {len(ends)} cells show the mean of an earlier step than {max(ends):,}: {why}."]
