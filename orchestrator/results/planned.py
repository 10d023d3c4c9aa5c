"""What a plan lays down: the parameters of its lanes, and which lanes are replicates of one another."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

PackAndLane = tuple[Mapping[str, Any], Mapping[str, Any]]
Group = TypeVar("Group", bound=Hashable)


class Choice(NamedTuple):
    """One choice of the nuisance parameters, and the lanes that are its replicates."""

    nuisance: dict[str, Any]
    lanes: list[PackAndLane]


def with_role(plan: Mapping[str, Any], role: str) -> list[str]:
    """The parameters with a role: ``scientific``, ``nuisance`` or ``replicate``."""
    return [name for name, known in plan["roles"].items() if known == role]


def choices(
    plan: Mapping[str, Any],
    nuisance: Sequence[str],
    group: Callable[[Mapping[str, Any], Mapping[str, Any]], Group],
) -> dict[Group, list[Choice]]:
    """The choices of the nuisance parameters in each group of lanes; all in the plan's order."""
    found: dict[Group, dict[str, Choice]] = {}
    for pack in plan["packs"]:
        for lane in pack["lanes"]:
            chosen = {name: parameter(name, pack, lane) for name in nuisance}
            in_group = found.setdefault(group(pack, lane), {})
            in_group.setdefault(json.dumps(chosen), Choice(chosen, [])).lanes.append((pack, lane))
    return {place: list(in_group.values()) for place, in_group in found.items()}


def parameter(name: str, pack: Mapping[str, Any], lane: Mapping[str, Any]) -> Any:
    """A parameter's value: the lane's own, where the pack does not name a scientific one; dots lead into the config.

    Raises:
        ValueError: no such parameter.
    """
    if name in pack["scientific"]:
        return pack["scientific"][name]
    value: Any = lane["config"]
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = [*pack["scientific"], *pack["nuisance"], *lane["config"]]
            raise ValueError(f"unknown parameter {name!r}; known: {', '.join(dict.fromkeys(known))}")
        value = value[part]
    return value


def label(value: Any) -> str:
    """A parameter's value as the matrix shows it: rules of layers as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
