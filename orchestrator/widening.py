"""A plan taken further: a wider search space adds what is new, and leaves what was planned where it is."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from orchestrator.plan import KEYLESS_FIELDS, Pack, Plan, Trial, pack_name
from orchestrator.space.spec import RUN_FIELDS, SweepSpec, canonical_json, flatten

#: Keys of a space that say which trials there are; what the others say holds from when they are changed.
_DECIDE_TRIALS = frozenset(
    {"name", "description", "metric", "method", "seed", "parameters", "run", "control", "exclude", "run_cap"}
)
#: Trials and values named in a message.
_MOST_NAMED = 3


class NotWiderError(ValueError):
    """A search space that does not hold every trial of the plan it is to take further."""


class Widened(NamedTuple):
    """A plan taken further."""

    plan: Plan
    #: Packs that it adds.
    packs: tuple[Pack, ...]
    #: Trials that were planned before.
    known: int
    #: Rules that changed and hold from now on, such as ``max_failures: 2 -> 5``.
    rules: tuple[str, ...]

    @property
    def trials(self) -> int:
        """Trials that it adds."""
        return sum(len(pack.lanes) for pack in self.packs)

    def __str__(self) -> str:
        added = f"widened: {self.trials} new trials in {len(self.packs)} packs; {self.known} known"
        rules = f"changed from now on: {', '.join(self.rules)}"
        return "\n".join([added] * bool(self.packs) + [rules] * bool(self.rules))


def widen(held: Plan, wanted: Plan) -> Widened:
    """Lay out the trials of ``wanted`` that ``held`` lacks in packs of their own, behind those that are there.

    Packs that are there keep their names and their lanes, so that their rows, checkpoints and records stay theirs;
    their labels follow the roles of the wider space.

    Raises:
        NotWiderError: the space has another corpus, metric or control, lacks trials, or would tear a pack apart.
    """
    _check_same_question(held, wanted)
    homes = {lane.key: pack for pack in wanted.packs for lane in pack.lanes}
    lanes = {lane.key: lane for pack in wanted.packs for lane in pack.lanes}
    if missing := [(pack, lane) for pack in held.packs for lane in pack.lanes if lane.key not in homes]:
        raise NotWiderError(_what_is_missing(held, wanted, missing))
    packs = [_relabelled(pack, wanted, homes, lanes) for pack in held.packs]
    known = {lane.key for pack in packs for lane in pack.lanes}
    #: The pack in which a lane of a control of ``wanted`` trains, by that control and the setting that the lane has.
    trains_in: dict[tuple[str | None, str], str] = {}
    for pack in packs:
        _register(pack, wanted.spec, homes, trains_in)
    for home in wanted.packs:
        groups: dict[str | None, list[Trial]] = {}
        for lane in home.lanes:
            if lane.key not in known:
                held_against = home.control_pack and trains_in[home.control_pack, _setting(wanted.spec, lane)]
                groups.setdefault(held_against, []).append(lane)
        for held_against, group in groups.items():
            name = pack_name(len(packs), [lane.key for lane in group])
            added = dataclasses.replace(home, pack=name, control_pack=held_against, lanes=tuple(group))
            packs.append(dataclasses.replace(added, nuisance=_shared(wanted.spec, added)))
            _register(added, wanted.spec, homes, trains_in)
    plan = Plan(wanted.spec, wanted.corpus, tuple(packs), wanted.excluded)
    return Widened(plan, tuple(packs[len(held.packs) :]), len(known), tuple(_changed_rules(held.spec, wanted.spec)))


def _check_same_question(held: Plan, wanted: Plan) -> None:
    """Refuse what would make old and new trials incomparable."""
    if held.corpus["hash"] != wanted.corpus["hash"]:
        corpora = (f"{plan.corpus['corpus']} (hash {plan.corpus['hash'][:12]})" for plan in (held, wanted))
        raise NotWiderError("it trains on {}, this one on {}".format(*corpora))
    before, now = ({"metric": s.to_dict()["metric"], "control": dict(s.control)} for s in (held.spec, wanted.spec))
    now["control"] = {name: now["control"].get(name) for name in before["control"]}
    if changed := list(_differences(before, now)):
        raise NotWiderError(f"its trials were compared by another metric or control ({', '.join(changed)})")


def _relabelled(pack: Pack, wanted: Plan, homes: dict[str, Pack], lanes: dict[str, Trial]) -> Pack:
    """A pack as it is, under the roles of the wider space.

    Raises:
        NotWiderError: its lanes belong to different cells or settings there, or to a control's where they did not.
    """
    own = [homes[lane.key] for lane in pack.lanes]
    if len(parts := {canonical_json([home.scientific, home.nuisance]) for home in own}) > 1:
        raise NotWiderError(
            f"{pack.pack} ({pack.cell}) would be torn into {len(parts)} packs: keep the roles and lanes"
        )
    if {home.control for home in own} != {pack.control}:
        becomes = "would no longer be" if pack.control else "would become"
        raise NotWiderError(f"{pack.pack} ({pack.cell}) {becomes} a control: keep the control")
    same = dataclasses.replace(pack, lanes=tuple(lanes[lane.key] for lane in pack.lanes))
    same = dataclasses.replace(same, cell=own[0].cell, scientific=own[0].scientific)
    return dataclasses.replace(same, nuisance=_shared(wanted.spec, same))


def _register(
    pack: Pack, spec: SweepSpec, homes: dict[str, Pack], trains_in: dict[tuple[str | None, str], str]
) -> None:
    for lane in pack.lanes if pack.control else ():
        trains_in.setdefault((homes[lane.key].pack, _setting(spec, lane)), pack.pack)


def _nuisance(spec: SweepSpec, lane: Trial) -> dict[str, Any]:
    fields = flatten(lane.config.to_dict())
    return {name: fields[name] for name, role in spec.roles.items() if role == "nuisance"}


def _setting(spec: SweepSpec, lane: Trial) -> str:
    """What tells a lane from others of its pack, replicates apart."""
    return canonical_json({name: value for name, value in _nuisance(spec, lane).items() if name in spec.lanes})


def _shared(spec: SweepSpec, pack: Pack) -> dict[str, Any]:
    """The nuisance values in which all lanes of a pack agree."""
    first, *others = (_nuisance(spec, lane) for lane in pack.lanes)
    return {name: value for name, value in first.items() if all(other[name] == value for other in others)}


def _what_is_missing(held: Plan, wanted: Plan, missing: list[tuple[Pack, Trial]]) -> str:
    total = sum(len(pack.lanes) for pack in held.packs)
    named = [_named(held.spec, pack, lane) for pack, lane in missing[:_MOST_NAMED]]
    share = (
        f"none of its {total} trials is" if len(missing) == total else f"{len(missing)} of its {total} trials are not"
    )
    more = ", ..." if len(missing) > _MOST_NAMED else ""
    why = "; ".join(_lacking(held.spec, wanted.spec)) or "exclude, run_cap, method or control leave them out"
    return f"{share} in this space ({', '.join(named)}{more}): {why}"


def _named(spec: SweepSpec, pack: Pack, lane: Trial) -> str:
    fields = flatten(lane.config.to_dict())
    rest = [f"{name}={fields[name]}" for name, role in spec.roles.items() if role != "scientific"]
    return " ".join([pack.cell, *rest])


def _lacking(held: SweepSpec, wanted: SweepSpec) -> Iterator[str]:
    """The values that the space had and lacks now, field by field."""
    for name in RUN_FIELDS:
        before, now = _values(held, name), _values(wanted, name)
        lost = [value for value in before if value not in now]
        if name in KEYLESS_FIELDS or not lost:
            continue
        if len(before) == len(now) == 1:
            yield f"{name} is {_shown(now[0])}, it was {_shown(lost[0])}"
        else:
            more = ", ..." if len(lost) > _MOST_NAMED else ""
            yield f"{name} lacks {', '.join(map(_shown, lost[:_MOST_NAMED]))}{more}"


def _values(spec: SweepSpec, name: str) -> tuple[Any, ...]:
    """The values that a field takes; a distribution counts as one."""
    for parameter in spec.parameters:
        if parameter.name == name:
            return parameter.values or (parameter.to_dict(),)
    return ({**RUN_FIELDS, **flatten(spec.run)}[name],)


def _changed_rules(held: SweepSpec, wanted: SweepSpec) -> Iterator[str]:
    """What holds from now on and enters no key."""
    before, now = (
        {key: value for key, value in spec.to_dict().items() if key not in _DECIDE_TRIALS}
        | {"checkpoint_interval": _values(spec, "checkpoint_interval")[0]}
        for spec in (held, wanted)
    )
    yield from _differences(before, now)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    old, new = flatten(before), flatten(now)
    for name, value in new.items():
        if old.get(name) != value:
            yield f"{name}: {_shown(old.get(name))} -> {_shown(value)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)
