"""Strict checks of plain data, against type hints and against RunConfig."""

import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from altgrad.training.config import ConfigError, Problem, RunConfig, nearest_name
from orchestrator.space.spec import flatten, nest
from orchestrator.space.yaml_source import KeyPath, Source

_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def shown(value: Any) -> str:
    """A value as messages show it."""
    kind = {bool: "true or false", int: "number", float: "number", str: "text", dict: "map"}.get(type(value))
    return "nothing" if value is None else f"{value!r} ({kind or type(value).__name__})"


def known_only(source: Source, at: KeyPath, given: Iterable[str], known: Iterable[str]) -> None:
    """Note every key that is not known, with the nearest that is."""
    known = list(known)
    for key in given:
        if key not in known:
            source.problem((*at, key), f"unknown key; {nearest_name(key, known)}")


def section(source: Source, key: str) -> Mapping[str, Any]:
    """A top-level map; empty where the file has none, a problem where it is something else."""
    given = source.data.get(key, {})
    if isinstance(given, Mapping):
        return given
    source.problem(
        (key,), "is empty; leave it out" if given is None else f"expected keys and values, got {shown(given)}"
    )
    return {}


def checked(source: Source, at: KeyPath, value: Any, hint: Any, limits: Mapping[str, float] | None = None) -> Any:
    """``value`` as ``hint`` says (a scalar, perhaps optional or beside words, or a Literal), within ``limits``.

    Args:
        source: Takes the problems.
        at: Where the value stands.
        value: Plain data.
        hint: The type.
        limits: ``least``, ``above``, ``most`` of a number.
    """
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if not isinstance(value, str) or value not in choices:
            source.problem(at, f"unknown value {shown(value)}; {nearest_name(str(value), choices)}")
        return value
    words: tuple[str, ...] = ()
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None and type(None) in typing.get_args(hint):
            return None
        hint, *others = (option for option in typing.get_args(hint) if option is not type(None))
        words = tuple(word for option in others for word in typing.get_args(option))
    if value in words:
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        source.problem(at, f"expected {' or '.join([_KINDS[hint], *words])}, got {shown(value)}")
    elif hint is float and not math.isfinite(value):
        source.problem(at, f"must be a finite number, got {value}")
    elif limits:
        _within(source, at, value, limits)
    return value


def _within(source: Source, at: KeyPath, value: float, limits: Mapping[str, float]) -> None:
    if "least" in limits and value < limits["least"]:
        source.problem(at, f"must be at least {limits['least']}, got {value}")
    if "above" in limits and value <= limits["above"]:
        source.problem(at, f"must be above {limits['above']}, got {value}")
    if "most" in limits and value > limits["most"]:
        source.problem(at, f"must be at most {limits['most']}, got {value}")


def resolve(name: str, value: Any) -> tuple[Any, list[Problem]]:
    """A RunConfig field's value as the config would hold it, and what is wrong with it whatever stands beside it.

    Args:
        name: Dotted name of the field.
        value: Plain data.

    Returns:
        The value as plain data (``1`` is ``1.0`` for a float field, rules have all their keys), and problems with
        paths relative to the value.
    """
    own = tuple(name.split("."))
    # A number of heads is right or wrong only beside a width, and that is a question for whole combinations.
    company = {"model.n_embd": value} if name == "model.n_head" else {}
    try:
        config = RunConfig.from_dict(nest({**company, name: value}))
    except ConfigError as error:
        problems = [Problem(p.path[len(own) :], p.message) for p in error.problems if p.path[: len(own)] == own]
        return value, problems
    return flatten(config.to_dict())[name], []


def canonical(source: Source, at: KeyPath, name: str, value: Any) -> Any:
    """`resolve`, with the problems noted at ``at``."""
    resolved, problems = resolve(name, value)
    for problem in problems:
        source.problem((*at, *problem.path), problem.message)
    return resolved
