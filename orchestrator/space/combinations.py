"""SweepSpec -> its combinations, grouped into packs that share everything but their lanes."""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from altgrad.training.config import RunConfig
from orchestrator.space.spec import RUN_FIELDS, Parameter, SweepSpec, canonical_json, flatten, in_field_order, nest

#: RunConfig fields by dotted name: what a combination sets beyond the spec's fixed part.
Assignment = Mapping[str, Any]

#: Draws in a row that bring nothing new after which a random search counts as exhausted.
_FRUITLESS_DRAWS = 1000


class Draft(NamedTuple):
    """A pack before its lanes have keys."""

    scientific: dict[str, Any]
    nuisance: dict[str, Any]
    control: bool
    lanes: tuple[Assignment, ...]
    #: Position of the control it is held against among all drafts; its own for a control.
    twin: int


def config_of(spec: SweepSpec, assignment: Assignment) -> RunConfig:
    """The resolved config of one lane.

    Raises:
        ConfigError: the combination cannot be run.
    """
    return RunConfig.from_dict(nest({**flatten(spec.run), **assignment}))


def drafts(spec: SweepSpec) -> list[Draft]:
    """All packs: the controls in front, then the others in the order of their values.

    A trial's control is the same trial with the values that ``spec.control`` names; trials that differ only in those
    share one. So every trial has its control, whether or not the grid holds it or ``exclude`` names it, and none is
    run twice. A random search ends before the draw whose trials, their controls included, would exceed ``run_cap``.
    """
    controls: dict[str, Assignment] = {}
    others: list[Draft] = []
    trials = 0
    for group in combinations(spec):
        packs = [(outer, _lanes(spec, outer)) for outer in group]
        held_against = {canonical_json(twin): twin for _, lanes in packs for twin in _twins(spec, lanes)}
        new = {text: twin for text, twin in held_against.items() if text not in controls}
        new_others = [_draft(spec, outer, lanes) for outer, lanes in packs if not _is_control(spec, outer)]
        trials += len(new) + sum(len(draft.lanes) for draft in new_others)
        if spec.method == "random" and spec.run_cap is not None and trials > spec.run_cap:
            break
        controls |= new
        others += new_others
    packed: dict[str, list[Assignment]] = {}
    for twin in controls.values():
        packed.setdefault(_outer_name(spec, twin), []).append(twin)
    position = {name: i for i, name in enumerate(packed)}
    every = [*(_control(spec, lanes) for lanes in packed.values()), *others]
    return [draft._replace(twin=position[_outer_name(spec, next(_twins(spec, draft.lanes)))]) for draft in every]


def combinations(spec: SweepSpec) -> Iterator[Sequence[Assignment]]:
    """Combinations of all parameters but the lanes, those left out by ``exclude`` excepted.

    What comes together in a list is planned together: one combination of a grid, the replicates of one random draw.
    """
    outer = [parameter for parameter in spec.parameters if parameter.name not in spec.lanes]
    if spec.method == "grid":
        for combination in _product(outer):
            if _lanes(spec, combination):
                yield [combination]
        return
    # Only random() itself gives the same numbers in every Python version.
    uniform = random.Random(spec.seed).random
    drawn = [parameter for parameter in outer if parameter.role != "replicate"]
    repeated = list(_product([parameter for parameter in outer if parameter.role == "replicate"]))
    seen: set[str] = set()
    fruitless = 0
    while fruitless < _FRUITLESS_DRAWS:
        draw = {parameter.name: parameter.draw(uniform()) for parameter in drawn}
        text = canonical_json(draw)
        group = [] if text in seen else [{**draw, **replicate} for replicate in repeated]
        group = [combination for combination in group if _lanes(spec, combination)]
        seen.add(text)
        fruitless = 0 if group else fruitless + 1
        if group:
            yield group


def excluded_cells(spec: SweepSpec) -> list[tuple[dict[str, Any], str]]:
    """Cells of the matrix of which ``exclude`` leaves nothing, as their scientific values and the rule's reason."""
    listed = {parameter.name: parameter for parameter in spec.parameters if parameter.values}
    found = []
    for cell in _product([parameter for parameter in listed.values() if parameter.role == "scientific"]):
        inside = [rule for rule in spec.exclude if all(cell.get(k, v[0]) in v for k, v in rule.values.items())]
        named = {name for rule in inside for name in rule.values} - set(cell)
        combined = ({**cell, **others} for others in _product([listed[name] for name in listed if name in named]))
        if inside and all(any(rule.matches(combination) for rule in inside) for combination in combined):
            whole = next((rule for rule in inside if set(rule.values) <= set(cell)), inside[0])
            found.append((cell, whole.why))
    return found


def grid_size(spec: SweepSpec) -> int:
    """Trials of the whole grid before ``exclude`` and without added controls; distributions count as one value."""
    return math.prod(max(1, len(parameter.values)) for parameter in spec.parameters)


def _product(parameters: list[Parameter]) -> Iterator[dict[str, Any]]:
    names = [parameter.name for parameter in parameters]
    for values in itertools.product(*(parameter.values for parameter in parameters)):
        yield dict(zip(names, values, strict=True))


def _lanes(spec: SweepSpec, outer: Assignment) -> tuple[Assignment, ...]:
    """The lanes of a pack that ``exclude`` leaves."""
    every = ({**outer, **lane} for lane in _product(_lane_parameters(spec)))
    return tuple(lane for lane in every if not any(rule.matches(lane) for rule in spec.exclude))


def _lane_parameters(spec: SweepSpec) -> list[Parameter]:
    return [parameter for parameter in spec.parameters if parameter.name in spec.lanes]


def _twins(spec: SweepSpec, lanes: Iterable[Assignment]) -> Iterator[Assignment]:
    """What each lane is held against."""
    return ({**lane, **spec.control} for lane in lanes)


def _outer_name(spec: SweepSpec, lane: Assignment) -> str:
    """The same for all lanes of a pack, and for no other pack's."""
    return canonical_json({name: value for name, value in lane.items() if name not in spec.lanes})


def _fixed(spec: SweepSpec) -> dict[str, Any]:
    return {**RUN_FIELDS, **flatten(spec.run)}


def _is_control(spec: SweepSpec, outer: Assignment) -> bool:
    """Whether a pack has every value that the control names."""
    own = {**_fixed(spec), **outer}
    return all(own[name] == value for name, value in spec.control.items())


def _draft(spec: SweepSpec, outer: Assignment, lanes: Sequence[Assignment]) -> Draft:
    shared = {name: value for name, value in outer.items() if name not in spec.lanes}
    scientific, nuisance = (
        {name: value for name, value in shared.items() if spec.roles.get(name) == role}
        for role in ("scientific", "nuisance")
    )
    return Draft(scientific, nuisance, False, tuple(lanes), -1)


def _control(spec: SweepSpec, lanes: Sequence[Assignment]) -> Draft:
    """The pack of a control, its lanes in the order of their values like any other's."""
    inner = _lane_parameters(spec)
    ordered = sorted(lanes, key=lambda lane: [parameter.values.index(lane[parameter.name]) for parameter in inner])
    draft, fixed = _draft(spec, ordered[0], ordered), _fixed(spec)
    parameters = {parameter.name: parameter for parameter in spec.parameters}
    # What the control does to fields beyond the grid tells its cell from one that agrees with it inside the grid.
    beyond = {}
    for name, value in spec.control.items():
        values = parameters[name].values if name in parameters else (fixed[name],)
        if name not in draft.scientific and values and value not in values:
            beyond[name] = value
    return draft._replace(scientific=in_field_order(draft.scientific | beyond), control=True)
