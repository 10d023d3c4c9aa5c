"""Everything that a report says of one run, worked out once for the page and for the card."""

from dataclasses import dataclass

from orchestrator.results.matrix import LOSSES
from orchestrator.results.report.answer import answer
from orchestrator.results.report.cost import Cost, cost
from orchestrator.results.report.curves import DISCRETE, LEARNING, Line, curves
from orchestrator.results.report.ends import End, ends, saved
from orchestrator.results.report.heat import Heat, heat
from orchestrator.results.report.limits import limits
from orchestrator.results.report.ranks import Health, ranks
from orchestrator.results.report.repeat import Repeat, repeat
from orchestrator.results.report.run import ReportedRun


@dataclass(frozen=True)
class Told:
    """One run and what there is to say of it, section by section."""

    run: ReportedRun
    answer: list[str]
    #: Of the plan's own metric first.
    heats: list[Heat]
    learning: list[Line]
    discrete: list[Line]
    ranks: list[Health]
    ends: list[End]
    saved: list[str]
    cost: Cost
    limits: list[str]
    repeat: Repeat

    @property
    def metrics(self) -> list[tuple[int, str]]:
        """What `heats` are of, numbered."""
        return [(i, each.matrix.metric) for i, each in enumerate(self.heats)]


def tell(run: ReportedRun) -> Told:
    """Work out every section."""
    return Told(
        run=run,
        answer=answer(run),
        heats=[heat(run.matrix), *(heat(each, each.metric in LOSSES) for each in run.further_matrices)],
        learning=curves(run, LEARNING),
        discrete=curves(run, DISCRETE),
        ranks=ranks(run),
        ends=ends(run),
        saved=saved(run),
        cost=cost(run),
        limits=limits(run),
        repeat=repeat(run),
    )
