"""What a report says of one run, read once from its plan, its journal and its dataset."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from orchestrator.results.cells import Cell, Place
from orchestrator.results.consolidate import MANIFEST_PATH
from orchestrator.results.journal import Journal, load_plan
from orchestrator.results.matrix import Matrix, Savings, matrix, savings
from orchestrator.results.paired import Benefit, benefits
from orchestrator.results.planned import choices, label, parameter, with_role
from orchestrator.results.queries import query
from orchestrator.results.regret import Regret, regret
from orchestrator.results.report.wording import place_name, spoken
from orchestrator.results.store import Store

#: Metrics that a report shows a matrix of, besides the plan's own; those that a run never measured are left out.
FURTHER_METRICS = ("val_loss", "best_val_loss", "loss", "stall_ratio", "effective_rank_mean", "stable_rank_mean")


class Lane(NamedTuple):
    """One trial of a setting."""

    key: str
    #: What tells it from the others, such as ``seed=1``.
    replicate: str
    pack: str
    #: The pack that its ranks are held against; None for a control.
    control_pack: str | None


class Setting(NamedTuple):
    """One cell at one choice of the nuisance parameters; its lanes are its replicates."""

    place: Place
    nuisance: dict[str, Any]
    lanes: list[Lane]
    #: It stands for its cell in the matrix.
    chosen: bool

    @property
    def name(self) -> str:
        """Such as ``E4M3 · adamw · master · lr=0.003``."""
        return " · ".join(filter(None, (place_name(self.place), spoken(self.nuisance))))


@dataclass(frozen=True)
class ReportedRun:
    """One run, as far as a report needs it."""

    #: What the report calls it.
    name: str
    store: Store
    plan: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    matrix: Matrix
    benefits: Sequence[Benefit]
    savings: Savings
    regret: Regret
    #: The rows of the table of trials.
    trials: Sequence[Mapping[str, Any]]
    #: Chunks that could not be read and whose rows are missing.
    damaged: int

    @cached_property
    def settings(self) -> list[Setting]:
        """Every setting of the plan, in its order."""
        return _settings(self.plan, self.matrix)

    @cached_property
    def shown_settings(self) -> list[Setting]:
        """The setting of each cell that curves are drawn of: the chosen one, or the first where none has a number."""
        chosen = {setting.place: setting for setting in self.settings if setting.chosen}
        first = {setting.place: setting for setting in reversed(self.settings)}
        return [chosen.get(place, setting) for place, setting in reversed(first.items())]

    @cached_property
    def further_matrices(self) -> list[Matrix]:
        """Matrices of other metrics that have a number anywhere."""
        wanted = [metric for metric in FURTHER_METRICS if metric != self.matrix.metric]
        found = [matrix(self.store, metric=metric) for metric in wanted]
        return [each for each in found if any(cell.mean is not None for cell in each.cells.values())]

    @property
    def best(self) -> Cell | None:
        """The best cell; None where none has a number."""
        return next((cell for cell in self.matrix.cells.values() if cell.best), None)

    @property
    def most_replicates(self) -> int:
        """Replicates behind the surest cell."""
        return max((cell.n for cell in self.matrix.cells.values()), default=0)

    @property
    def unfinished(self) -> int:
        """Trials that have not ended."""
        return sum(trial["reason"] is None for trial in self.trials)

    @property
    def last_heard(self) -> str | None:
        """UTC time of the journal's last record; None where it is empty."""
        return str(self.records[-1]["time"]) if self.records else None


def read_run(name: str, store: Store) -> ReportedRun:
    """Everything of one consolidated run.

    Raises:
        FileNotFoundError: the folder has no plan, or was never consolidated.
        ValueError: its plan's metric is none that steps have.
    """
    plan = load_plan(store)
    built = matrix(store, metric=plan["metric"]["name"])
    manifest = json.loads(store.read_bytes(MANIFEST_PATH)) if store.exists(MANIFEST_PATH) else {}
    return ReportedRun(
        name=name,
        store=store,
        plan=plan,
        records=Journal(store).read(),
        matrix=built,
        benefits=benefits(built),
        savings=savings(store),
        regret=regret(store),
        trials=query(store, "SELECT * FROM trials").to_pylist(),
        damaged=len(manifest.get("damaged", [])),
    )


def _settings(plan: Mapping[str, Any], of: Matrix) -> list[Setting]:
    replicates = with_role(plan, "replicate")
    planned = choices(plan, of.nuisance_parameters, lambda pack, lane: _place(of, pack, lane))
    found = []
    for place, in_cell in planned.items():
        for choice in in_cell:
            lanes = [
                Lane(
                    lane["key"],
                    spoken({name: parameter(name, pack, lane) for name in replicates}),
                    pack["pack"],
                    pack["control_pack"],
                )
                for pack, lane in choice.lanes
            ]
            found.append(Setting(place, choice.nuisance, lanes, of.cells[place].nuisance == choice.nuisance))
    return found


def _place(of: Matrix, pack: Mapping[str, Any], lane: Mapping[str, Any]) -> Place:
    row, *column = (parameter(name, pack, lane) for name in (of.row_parameter, *of.column_parameters))
    return label(row), tuple(map(label, column))
