"""What every reader of a plan counts on: the keys of ``plan.json`` and the kinds of their values."""

from collections.abc import Mapping
from typing import Any

from orchestrator.results.planned import parameter

_KINDS = {str: "text", int: "a whole number", bool: "true or false", dict: "a map", list: "a list"}

_PACK = {
    "pack": str,
    "cell": str,
    "scientific": dict,
    "nuisance": dict,
    "control": bool,
    "lanes": [{"key": str, "config": {"steps": int}}],
}
_PLAN = {
    "name": str,
    "description": str,
    "spec_hash": str,
    "corpus": {"corpus": str, "hash": str, "tokens": int, "vocabulary": int},
    "metric": {"name": str, "goal": str},
    "roles": dict,
    "packs": [_PACK],
    "excluded": [{"scientific": dict, "why": str}],
    "space": {"early_terminate": {"scope": str}},
}


def check_shape(plan: Mapping[str, Any]) -> None:
    """Refuse a plan that cannot be read; fields of a lane's config that are not known here are none of its business.

    Raises:
        ValueError: what it lacks, or what has another form, and where; or it has no trials.
    """
    _check(plan, _PLAN, "")
    if not plan["packs"]:
        raise ValueError("it is a plan without trials")
    for number, pack in enumerate(plan["packs"]):
        if not pack["lanes"]:
            raise ValueError(f"packs[{number}] is without trials")
        for lane in pack["lanes"]:
            for name in plan["roles"]:
                parameter(name, pack, lane)


def _check(value: Any, shape: Any, at: str) -> None:
    """``shape``: a kind; a map of shapes, of which others may stand beside; or a list with the shape of its items."""
    kind: Any = shape if isinstance(shape, type) else type(shape)
    if type(value) is not kind:
        raise ValueError(f"expected {_KINDS[kind]} for {at}, got {value!r:.60}")
    if isinstance(shape, dict):
        for key, inner in shape.items():
            path = f"{at}.{key}" if at else key
            if key not in value:
                raise ValueError(f"it lacks {path!r}")
            _check(value[key], inner, path)
    elif isinstance(shape, list):
        for number, item in enumerate(value):
            _check(item, shape[0], f"{at}[{number}]")
