"""What the person watching sees: one small picture of a sweep, redrawn several times a second."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import RenderableType
from rich.spinner import Spinner

from orchestrator.picture import Picture, label, standing, training
from orchestrator.plan import Pack, Plan
from orchestrator.quantities import clock
from orchestrator.results.schema import END_REASONS
from orchestrator.sweep.halving import nuisance_setting
from orchestrator.sweep.stopping import rung_steps


class Progress:
    """The state of a sweep as its driver hears of it; draws itself as a rich renderable."""

    def __init__(self, plan: Plan, ended: Mapping[str, str]) -> None:
        """``ended``: reason by key of trials that ended before, in a sweep that is resumed."""
        self._name = plan.spec.name
        self._packs = {pack.pack: pack for pack in plan.packs}
        self._keys = {lane.key: pack.pack for pack in plan.packs for lane in pack.lanes}
        plain = plan.to_dict()
        self._settings = {lane.key: nuisance_setting(plain, lane.config) for pack in plan.packs for lane in pack.lanes}
        self._ended = dict(ended)
        self._running: dict[str, Mapping[str, Any]] = {}
        self._rungs: dict[int, set[str]] = {}
        rules, steps = plan.spec.early_terminate, plan.packs[0].lanes[0].config.steps
        if rules.type == "asha":
            self._rungs = {rung: set() for rung in rung_steps(rules.min_iter, rules.eta, steps)}
        self._metric = plan.spec.metric
        #: The best report's rank (lower is better) and what is shown of it.
        self._best: tuple[tuple[bool, float], str] | None = None
        self._steps_done = 0
        self._seen_steps: Counter[str] = Counter()
        self._began = time.monotonic()
        #: When the first trial was placed: the pace is taken from then on.
        self._first: float | None = None
        self._note = "starting"
        self._spinner = Spinner("dots")
        #: Told of every trial's end, where nobody watches the picture.
        self.echo: Callable[[str], None] | None = None

    def say(self, note: str) -> None:
        """What is being done while no trial runs."""
        self._note = note

    def started(self, pack: str) -> None:
        """A pack was placed on a worker."""
        self._running[pack] = {"step": 0}
        if self._first is None:
            self._first = time.monotonic()

    def reported(self, pack: str, result: Mapping[str, Any]) -> None:
        """A pack reported: ``step``, the step its attempt was ``resumed_at``, the keys of the lanes ``alive``, ends and
        audits (``ended``), and the metric where a lane lives.
        """
        self._running[pack] = result
        step = int(result["step"])
        before = max(self._seen_steps[pack], int(result["resumed_at"]))
        self._steps_done += max(0, step - before) * int(result.get("lanes") or 1)
        self._seen_steps[pack] = step
        for rung, reached in self._rungs.items():
            if step >= rung:
                reached.add(pack)
        value = result.get(self._metric.name)
        if value is not None and value == value:
            settings = self._averaged(result)
            rank = settings > 1, value if self._metric.goal == "minimize" else -value
            if self._best is None or rank < self._best[0]:
                self._best = rank, standing(value, step, settings, _label(self._packs[pack]))

    def _averaged(self, result: Mapping[str, Any]) -> int:
        """Settings that a report's mean is over: those of the living lanes that no audit spared."""
        audited = {end["key"] for end in result["ended"] if end.get("audited")}
        return len({self._settings[key] for key in result["alive"] if key not in audited})

    def ended(self, key: str, reason: str) -> None:
        """A trial ended."""
        self._ended[key] = reason
        if self.echo:
            pack = self._packs[self._keys[key]]
            seed = next(lane.config.seed for lane in pack.lanes if lane.key == key)
            self.echo(f"{len(self._ended)}/{len(self._keys)}  {reason}  {_label(pack)} seed={seed}")

    def left(self, pack: str) -> None:
        """A pack no longer runs."""
        self._running.pop(pack, None)

    def retried(self, pack: str, why: str) -> None:
        """A pack failed and waits for its next attempt."""
        self.left(pack)
        if self.echo:
            self.echo(f"to be tried again  {_label(self._packs[pack])}: {why}")

    def counts(self) -> dict[str, int]:
        """Trials by state, in the order of their life."""
        reasons = Counter(self._ended.values())
        running = sum(pack in self._running for key, pack in self._keys.items() if key not in self._ended)
        waiting = len(self._keys) - len(self._ended) - running
        states = {"waiting": waiting, "running": running} | {reason: reasons[reason] for reason in END_REASONS}
        return {state: n for state, n in states.items() if n}

    def seconds_left(self) -> float | None:
        """What the steps that are still planned take at the pace so far: stopping, also inside packs, shortens it."""
        if self._first is None or not self._steps_done:
            return None
        elapsed = time.monotonic() - self._first
        left = sum(
            pack.lanes[0].config.steps - self._seen_steps[name]
            for name, pack in self._packs.items()
            for lane in pack.lanes
            if lane.key not in self._ended
        )
        return left * elapsed / self._steps_done

    def __rich__(self) -> RenderableType:
        left = self.seconds_left()
        eta = f"at most {clock(left)} left" if left and self._running else self._note
        best = [self._best[1]] if self._best else []
        return Picture(
            name=self._name,
            note=f"{clock(time.monotonic() - self._began)}, {eta}",
            counts=self.counts(),
            ended=len(self._ended),
            total=len(self._keys),
            rungs={rung: len(packs) for rung, packs in self._rungs.items()},
            lines={"best": best, "now": [*map(self._at_work, self._running)] or [self._note]},
            mark=self._spinner,
        )

    def _at_work(self, name: str) -> str:
        result, pack = self._running[name], self._packs[name]
        value, warnings = result.get(self._metric.name), result.get("warnings", 0)
        settings = 1 if value is None else self._averaged(result)
        steps, metric = pack.lanes[0].config.steps, self._metric.name
        return training(result["step"], steps, metric, value, settings, warnings, _label(pack))


def _label(pack: Pack) -> str:
    return label(pack.cell, pack.nuisance)
