"""What a run cost: device-hours, tokens a second, and where they went."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from orchestrator.results.queries import query
from orchestrator.results.report.device import Held, held
from orchestrator.results.report.run import ReportedRun
from orchestrator.results.report.wording import column_name, duration, shown


class Spent(NamedTuple):
    """What some of the trials took."""

    what: str
    trials: int
    #: Seconds that their packs trained, all attempts together.
    seconds: float
    #: Tokens trained on.
    tokens: int

    @property
    def tokens_per_second(self) -> float | None:
        """Of a pack while it trains, compiling and validation included; None where no time was recorded."""
        return self.tokens / self.seconds if self.seconds else None


class Cost(NamedTuple):
    """What a run took."""

    #: What each pack held of its machine.
    held: Held
    total: Spent
    #: By column of the matrix.
    columns: list[Spent]
    #: Seconds from the start to the last record, times without a driver left out; None where nothing was recorded.
    wall_seconds: float | None
    #: Attempts beyond the first, over all packs.
    retries: int

    @property
    def sentence(self) -> str:
        """The whole cost in a sentence or two."""
        if self.device_hours is None:
            what = (
                f"{self.total.seconds / 3600:.3g} hours of packs training (what each held of a device is not recorded)"
            )
        else:
            what = f"{self.device_hours:.3g} {self.held.unit}-hours ({self.held.each})"
        clock = "" if self.wall_seconds is None else f" in {duration(self.wall_seconds)} by the clock"
        pace = self.total.tokens_per_second
        lanes = "a pack with its lanes side by side, compiling and validation included"
        speed = "" if pace is None else f", {pace:,.0f} tokens/s {lanes}"
        again = f" {self.retries} attempts were made again." if self.retries else ""
        return f"{what}{clock}; {shown(self.total.tokens)} tokens{speed}.{again}"

    @property
    def device_hours(self) -> float | None:
        """Hours times devices held; None where the share is not known."""
        share = self.held.share
        return None if share is None else self.total.seconds * share / 3600


def cost(run: ReportedRun) -> Cost:
    """The cost of a run so far."""
    tokens = dict(_tokens(run))
    packs = {trial["pack"]: trial for trial in run.trials}
    trained: dict[str, list[str]] = defaultdict(list)
    for trial in run.trials:
        trained[trial["pack"]].append(trial["key"])
    column = {lane.key: setting.place[1] for setting in run.settings for lane in setting.lanes}

    def spent(what: str, names: Sequence[str]) -> Spent:
        keys = [key for name in names for key in trained[name]]
        seconds = sum(packs[name]["seconds"] or 0.0 for name in names)
        return Spent(what, len(keys), seconds, sum(tokens.get(key, 0) for key in keys))

    columns: dict[tuple[str, ...], list[str]] = {place: [] for place in run.matrix.columns}
    for name in packs:
        columns.setdefault(column[trained[name][0]], []).append(name)
    return Cost(
        held=held(run.plan, run.records),
        total=spent("all", list(packs)),
        columns=[spent(column_name(place), names) for place, names in columns.items() if names],
        wall_seconds=_wall_seconds(run),
        retries=sum(max(0, (pack["attempts"] or 0) - 1) for pack in packs.values()),
    )


def _tokens(run: ReportedRun) -> list[tuple[str, int]]:
    found = query(run.store, "SELECT key, max(tokens) AS tokens FROM steps WHERE tokens IS NOT NULL GROUP BY key")
    return list(zip(found["key"].to_pylist(), found["tokens"].to_pylist(), strict=True))


def _wall_seconds(run: ReportedRun) -> float | None:
    """Each driver's time from its start to its last record."""
    total, began, last = 0.0, None, None
    for record in run.records:
        now = datetime.fromisoformat(record["time"])
        if record["event"] == "sweep_started":
            total += (last - began).total_seconds() if began and last else 0.0
            began = now
        last = now
    return total + (last - began).total_seconds() if began and last else None
