"""What the recorded ranks say about rank warnings: the tables of ``docs/rank_warnings.md``.

python -m tests.training.rank_tables prints them in a few seconds. Every warning in them comes from `RankWatch`.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from altgrad.training.callbacks import RankWatch
from altgrad.training.config import RankConfig
from tests.training.rank_runs import Measure, Trace, load_traces

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
ALPHAS = (1.0, 0.5, 0.3, 0.1)
INTERVALS = (20, 100)
MEASURES: tuple[Measure, ...] = ("effective", "stable")
DEFAULT = RankConfig()


class Rule(NamedTuple):
    """When a rank is worth a warning."""

    config: RankConfig = DEFAULT
    measure: Measure = "effective"
    #: Held against the run's own first check after the warm-up instead of the control.
    own_start: bool = False

    def judges(self, step: int) -> bool:
        """The warm-up is over."""
        return step >= self.config.warmup_steps


class Pair(NamedTuple):
    """A run, and the float32 run that it is held against."""

    trace: Trace
    control: Trace

    def __str__(self) -> str:
        return f"{self.trace.run.name} against {self.control.run.name}"


class Warned(NamedTuple):
    """The steps at which a sick run's collapse began and was first warned of."""

    onset: int
    #: None where it never was, or where it had been before it began, so that a warning means nothing.
    first: int | None


def pairs(traces: Iterable[Trace], among: Callable[[Trace], bool]) -> list[Pair]:
    """Every chosen run with every control of the same model that is not the run itself."""
    traces = list(traces)
    return [
        Pair(trace, control)
        for trace in traces
        for control in traces
        if among(trace) and control.run.is_control and trace is not control and trace.run.model == control.run.model
    ]


def warnings(pair: Pair, rule: Rule) -> Iterator[tuple[int, list[str]]]:
    """Step and warned matrices of every check of a run, by the real watch."""
    watch = RankWatch(rule.config, pair.trace.run.names)
    control = dict(pair.control.checks(rule.measure, rule.config.interval))
    for step, ranks in pair.trace.checks(rule.measure, rule.config.interval):
        alarms = watch.check(step, ranks, None if rule.own_start else control[step])
        yield step, [alarm.matrix for alarm in alarms]


def ratios(pair: Pair, rule: Rule, matrix: str) -> Iterator[tuple[int, float]]:
    """Step and unsmoothed ratio to the reference of one matrix, at every check that is judged."""
    checks = pair.trace.checks(rule.measure, rule.config.interval)
    judged = [(step, ranks) for step, ranks in checks if rule.judges(step)]
    control = dict(pair.control.checks(rule.measure, rule.config.interval))
    for step, ranks in judged:
        yield step, ranks[matrix] / (judged[0][1] if rule.own_start else control[step])[matrix]


def crossing(pair: Pair, rule: Rule, matrix: str) -> int | None:
    """The check at which the unsmoothed ratio first falls below what the matrix may lose."""
    least = 1 - RankWatch(rule.config, pair.trace.run.names).threshold(matrix)
    return next((step for step, ratio in ratios(pair, rule, matrix) if ratio < least), None)


def first_warning(pair: Pair, rule: Rule) -> Warned:
    """When a sick run is caught: by the planted matrix alone, or by any where the whole run is sick."""
    plant = pair.trace.run.plant
    onset = plant.onset if plant else 0
    found = [step for step, warned in warnings(pair, rule) if (plant.matrix in warned if plant else warned)]
    return Warned(onset, found[0] if found and found[0] > onset else None)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def percent(share: float) -> str:
    """A share with as many digits as it deserves."""
    return f"{share:.1%}".replace(".0%", "%")


def held(all_pairs: list[Pair], rule: Rule) -> list[Pair]:
    """The pairs that a rule tells apart: against its own start, a run counts once."""
    return list({pair.trace.run.name: pair for pair in all_pairs}.values()) if rule.own_start else all_pairs


class Evidence:
    """All pairs of runs, ready to be judged by one rule after another."""

    def __init__(self, traces: Iterable[Trace]) -> None:
        traces = list(traces)
        self.healthy = pairs(traces, lambda trace: trace.run.is_healthy)
        self.planted = pairs(traces, lambda trace: trace.run.plant is not None)
        self.hot = pairs(traces, lambda trace: not trace.run.is_healthy and trace.run.plant is None)

    def judged(self, rule: Rule) -> list[str]:
        """False alarms of a rule, what it catches, and when."""
        healthy = held(self.healthy, rule)
        found = [[len(warned) for step, warned in warnings(pair, rule) if rule.judges(step)] for pair in healthy]
        checks = sum(len(run) * len(pair.trace.run.names) for pair, run in zip(healthy, found, strict=True))
        planted = [first_warning(pair, rule) for pair in held(self.planted, rule)]
        hot = [first_warning(pair, rule) for pair in held(self.hot, rule)]
        return [
            f"{sum(any(run) for run in found)} of {len(healthy)}",
            f"{sum(map(sum, found)):,} of {checks:,}",
            f"{sum(w.first is not None for w in planted)} of {len(planted)}",
            _delays(planted),
            f"{sum(w.first is not None for w in hot)} of {len(hot)}",
            _delays(hot),
        ]


def _delays(found: Iterable[Warned]) -> str:
    """Median and longest delay of those that are caught."""
    delays = [warned.first - warned.onset for warned in found if warned.first is not None]
    return f"{statistics.median(delays):.0f}, {max(delays)}" if delays else "none"


JUDGED = ("healthy runs warned", "healthy checks warned", "planted caught", "after", "hot caught", "after")


def threshold_table(evidence: Evidence, measure: Measure, own_start: bool) -> str:
    """One threshold for all matrices, over a range, and the defaults."""
    rules = {percent(t): replace(DEFAULT, warn_threshold=t, critical_multiplier=1.0) for t in THRESHOLDS}
    critical = DEFAULT.warn_threshold * DEFAULT.critical_multiplier
    default = f"{percent(DEFAULT.warn_threshold)}, critical {percent(critical)}"
    rows = [
        [label, *evidence.judged(Rule(config, measure, own_start))]
        for label, config in [*rules.items(), (f"**{default}**", DEFAULT)]
    ]
    return table(["threshold", *JUDGED], rows)


def smoothing_table(evidence: Evidence) -> str:
    """Smoothing and interval, at the default thresholds, effective rank against the control."""
    rows = []
    for interval in INTERVALS:
        for alpha in ALPHAS:
            config = replace(DEFAULT, interval=interval, alpha=alpha)
            mark = "**" if config == DEFAULT else ""
            rows.append([f"{mark}{interval}{mark}", f"{mark}{alpha:g}{mark}", *evidence.judged(Rule(config))])
    return table(["interval", "`alpha`", *JUDGED], rows)


def spread_table(evidence: Evidence) -> str:
    """The most that any healthy run lost at any recorded check, unsmoothed; a tied and an untied ``wte`` are two."""
    fine = replace(DEFAULT, interval=INTERVALS[0])
    rules = [Rule(fine, measure, own) for own in (False, True) for measure in MEASURES]
    lost: dict[tuple[str, float], list[float]] = {}
    for i, rule in enumerate(rules):
        for pair in held(evidence.healthy, rule):
            watch = RankWatch(fine, pair.trace.run.names)
            for matrix in pair.trace.run.names:
                row = lost.setdefault((matrix, watch.threshold(matrix)), [0.0] * len(rules))
                row[i] = max(row[i], *(1 - ratio for _, ratio in ratios(pair, rule, matrix)))
    rows = [[f"`{matrix}`", *map(percent, (allowed, *losses))] for (matrix, allowed), losses in lost.items()]
    header = ("matrix", "default", "effective, control", "stable, control", "effective, own start", "stable, own start")
    return table(header, rows)


def seeds_table(evidence: Evidence) -> str:
    """The most that healthy runs of a format lost in any matrix, apart by what they were held against."""
    fine = replace(DEFAULT, interval=INTERVALS[0])
    lost: dict[tuple[str, str], list[float]] = {}
    for pair in evidence.healthy:
        run, control = pair.trace.run, pair.control.run
        row = lost.setdefault((run.format, "same seed" if run.seed == control.seed else "another seed"), [0.0, 0.0])
        for i, measure in enumerate(MEASURES):
            least = min(ratio for name in run.names for _, ratio in ratios(pair, Rule(fine, measure), name))
            row[i] = max(row[i], 1 - least)
    rows = [[*key, *map(percent, losses)] for key, losses in sorted(lost.items())]
    return table(["format", "control", "effective", "stable"], rows)


def planted_table(evidence: Evidence) -> str:
    """Every planted collapse against the control of its own seed, with what it did to the loss by the end."""
    rows = []
    for pair in evidence.planted:
        run, end = pair.trace.run, len(pair.trace.val_loss) - 1
        if run.plant and run.seed == pair.control.run.seed:
            label = f"`{run.plant.matrix}`" + ("" if run.model.tied_head else ", untied")
            when = (crossing(pair, Rule(), run.plant.matrix), first_warning(pair, Rule()).first)
            losses = (pair.trace.val_loss[end], pair.control.val_loss[end])
            rows.append([label, run.plant.onset, run.plant.length, *when, *(f"{loss:.2f}" for loss in losses)])
    return table(["matrix", "onset", "length", "beyond its threshold", "warned", "loss", "control's loss"], rows)


def tables() -> dict[str, str]:
    """Every table of the page by its title."""
    evidence = Evidence(load_traces().values())
    by_threshold = {
        f"{measure} rank against {'its own start' if own else 'the control'}": threshold_table(evidence, measure, own)
        for own in (False, True)
        for measure in MEASURES
    }
    return by_threshold | {
        "smoothing and interval": smoothing_table(evidence),
        "spread": spread_table(evidence),
        "seeds": seeds_table(evidence),
        "planted": planted_table(evidence),
    }


if __name__ == "__main__":
    for title, text in tables().items():
        print(f"{title}\n\n{text}")
