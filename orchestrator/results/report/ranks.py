"""Ranks of every matrix at every check, beside the control's, and where a warning was given."""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from orchestrator.results.queries import query
from orchestrator.results.report.curves import rounded, values
from orchestrator.results.report.run import ReportedRun, Setting
from orchestrator.results.report.wording import spoken

#: Matrix, step, effective rank, and its ratio to the control's.
Row = tuple[str, int, float, float | None]
#: Most columns of a heat map; checks that share one are shown by their smallest.
_MOST_CHECKS = 40
#: Settings with warnings that are kept besides those that stand for their cell.
_MOST_WARNED = 60


class Health(NamedTuple):
    """The ranks of one setting's matrices, averaged over its replicates."""

    setting: Setting
    #: It is the setting that its cell's curves are drawn of.
    shown: bool
    #: Whether values are effective ranks over the control's at the same step, or effective ranks themselves.
    is_ratio: bool
    matrices: list[str]
    steps: list[int]
    #: By matrix and step; None where nothing was measured.
    values: list[list[float | None]]
    #: Warnings by matrix and step, over all replicates.
    warnings: list[list[int]]

    @property
    def warned(self) -> int:
        """All warnings of the setting."""
        return sum(map(sum, self.warnings))

    @property
    def lowest(self) -> tuple[float, str, int]:
        """The smallest value, and the matrix and step where it was measured."""
        found = [
            (value, matrix, step)
            for matrix, row in zip(self.matrices, self.values, strict=True)
            for step, value in zip(self.steps, row, strict=True)
            if value is not None
        ]
        return min(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        row, column = self.setting.place
        plain = {"row": row, "column": list(column), "title": self.setting.name}
        known = {name: value for name, value in self._asdict().items() if name != "setting"}
        return {**plain, **known, "warned": self.warned}


def ranks(run: ReportedRun) -> list[Health]:
    """The health of each cell's setting and of those with warnings, most worrying first."""
    rows, warned = _measured(run), _warnings(run)
    found = []
    for i, setting in enumerate(run.settings):
        if rows[i]:
            found.append(_health(setting, setting in run.shown_settings, rows[i], warned[i]))
    found.sort(key=_worry)
    spare = set(itertools.islice((id(each) for each in found if each.warned), _MOST_WARNED))
    return [each for each in found if each.shown or id(each) in spare]


def _worry(health: Health) -> tuple[int, float]:
    return -health.warned, health.lowest[0] if health.is_ratio else math.inf


def _measured(run: ReportedRun) -> dict[int, list[Row]]:
    """By setting: matrix, step, mean effective rank, and its mean ratio to the control's."""
    twins = _twins(run.settings)
    lanes = [(lane.key, i, twins[lane.key]) for i, setting in enumerate(run.settings) for lane in setting.lanes]
    sql = f"""
        WITH lanes(key, setting, twin) AS (VALUES {values(lanes)}),
        checks AS (
            SELECT setting, twin, matrix, step, effective_rank AS rank
            FROM layers JOIN lanes USING (key) WHERE isfinite(effective_rank)
        ),
        controls AS (SELECT setting, matrix, step, avg(rank) AS control FROM checks GROUP BY ALL)
        SELECT own.setting, own.matrix, own.step, avg(rank) AS rank, avg(rank / control) AS ratio
        FROM checks own
        LEFT JOIN controls ON own.twin = controls.setting AND own.matrix = controls.matrix AND own.step = controls.step
        GROUP BY own.setting, own.matrix, own.step ORDER BY own.step
    """
    found: dict[int, list[Row]] = defaultdict(list)
    for row in query(run.store, sql).to_pylist():
        found[row["setting"]].append((row["matrix"], row["step"], row["rank"], row["ratio"]))
    return found


def _twins(settings: Sequence[Setting]) -> dict[str, int]:
    """By key: the number of the setting that the lane is held against; -1 where there is none."""
    controls = {(lane.pack, spoken(each.nuisance)): i for i, each in enumerate(settings) for lane in each.lanes}
    packs = {lane.pack: i for i, each in enumerate(settings) for lane in each.lanes}
    return {
        lane.key: controls.get((lane.control_pack or "", spoken(each.nuisance)), packs.get(lane.control_pack or "", -1))
        for each in settings
        for lane in each.lanes
    }


def _warnings(run: ReportedRun) -> dict[int, Counter[tuple[str, int]]]:
    """By setting: how many warnings there were at a matrix and step."""
    number = {lane.key: i for i, setting in enumerate(run.settings) for lane in setting.lanes}
    found: dict[int, Counter[tuple[str, int]]] = defaultdict(Counter)
    sql = "SELECT key, matrix, step FROM events WHERE kind = 'rank_warning' AND matrix IS NOT NULL"
    for row in query(run.store, sql).to_pylist():
        found[number.get(row["key"], -1)][row["matrix"], row["step"]] += 1
    return found


def _health(setting: Setting, shown: bool, rows: Sequence[Row], warned: Counter[tuple[str, int]]) -> Health:
    is_ratio = any(ratio is not None for *_, ratio in rows)
    matrices = sorted({matrix for matrix, *_ in rows}, key=_natural)
    checks = sorted({step for _, step, *_ in rows})
    width = math.ceil(len(checks) / _MOST_CHECKS)
    bins = [checks[i : i + width] for i in range(0, len(checks), width)]
    bin_of = {step: i for i, steps in enumerate(bins) for step in steps}
    lowest: dict[tuple[str, int], float] = {}
    for matrix, step, rank, ratio in rows:
        if (value := ratio if is_ratio else rank) is not None:
            at = matrix, bin_of[step]
            lowest[at] = min(value, lowest.get(at, value))
    counts: Counter[tuple[str, int]] = Counter()
    for (matrix, step), n in warned.items():
        counts[matrix, bin_of.get(step, len(bins) - 1)] += n
    columns = range(len(bins))
    return Health(
        setting=setting,
        shown=shown,
        is_ratio=is_ratio,
        matrices=matrices,
        steps=[steps[-1] for steps in bins],
        values=[[rounded(lowest[m, i]) if (m, i) in lowest else None for i in columns] for m in matrices],
        warnings=[[counts[m, i] for i in columns] for m in matrices],
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts the tenth layer behind the second."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
