"""Plain data -> SweepSpec, strictly: every problem is noted with its place, none is guessed away."""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from altgrad.training.config import LANE_FIELDS, nearest_name
from orchestrator.space.checks import canonical, checked, known_only, resolve, section, shown
from orchestrator.space.spec import (
    DEFAULT_CONTROL,
    RUN_FIELDS,
    SCIENTIFIC,
    SPEC_KEYS,
    Exclusion,
    Parameter,
    Role,
    SweepSpec,
    in_field_order,
    nest,
)
from orchestrator.space.yaml_source import KeyPath, Source

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Fields that cannot be parameters, and why.
_ONE_A_SWEEP = dict.fromkeys(("corpus", "tokens", "text_column"), "a sweep has one corpus")
_ONE_A_SWEEP |= {"checkpoint_interval": "it changes no numbers"}
#: Groups of RunConfig fields, such as ``model``.
_GROUPS = frozenset(name.partition(".")[0] for name in RUN_FIELDS if "." in name)


def read_spec(source: Source, replaced: Mapping[str, Sequence[Any]] | None = None) -> SweepSpec:
    """Build the spec from ``source.data``.

    Args:
        source: The data, and where it was written.
        replaced: Values that parameters had in the file before they were overridden; ``exclude`` may name them still.

    Raises:
        SpaceError: unknown keys, wrong types, impossible values: all of them at once.
    """
    if source.data is None:
        source.problem((), "is empty; a search space has at least a name and parameters")
    elif not isinstance(source.data, Mapping):
        source.problem((), f"expected keys and values, got {shown(source.data)}")
    source.check()
    known_only(source, (), source.data, SPEC_KEYS)
    scalars = ("description", "method", "seed", "run_cap", "max_failures", "max_consecutive_failures")
    top = _read_name(source) | _scalars(source, scalars)
    top |= {key: _section(source, key) for key in ("metric", "early_terminate", "resources", "wandb")}
    parameters = _parameters(source)
    run = _run(source, [parameter.name for parameter in parameters])
    if top["method"] == "random" and source.data.get("run_cap") is None:
        source.problem(("method",), "random needs run_cap: the most trials to draw")
    for parameter in parameters:
        if parameter.distribution and top["method"] == "grid":
            source.problem(
                ("parameters", parameter.name), "a grid needs values; method: random draws from distributions"
            )
    lanes = _lanes(source, parameters)
    control, notes = _control(source, parameters, lanes)
    exclude = _exclude(source, parameters, replaced or {})
    source.check()
    return SweepSpec(**top, parameters=parameters, run=run, lanes=lanes, control=control, exclude=exclude, notes=notes)


def _read_name(source: Source) -> dict[str, str]:
    name = source.data.get("name")
    if "name" not in source.data:
        source.problem(("name",), "is missing")
    elif not isinstance(name, str) or not _NAME.fullmatch(name):
        message = f"expected up to 64 letters, digits, '.', '_' or '-', the first a letter or digit, got {shown(name)}"
        source.problem(("name",), message)
    return {"name": str(name)}


def _scalars(source: Source, keys: Sequence[str]) -> dict[str, Any]:
    """The named top-level fields that are no sections, with their defaults."""
    hints, fields = typing.get_type_hints(SweepSpec), {f.name: f for f in dataclasses.fields(SweepSpec)}
    return {
        key: checked(source, (key,), source.data[key], hints[key], fields[key].metadata)
        if key in source.data
        else fields[key].default
        for key in keys
    }


def _section(source: Source, key: str) -> Any:
    """A section whose keys are the fields of one dataclass."""
    cls = typing.get_type_hints(SweepSpec)[key]
    given, hints = section(source, key), typing.get_type_hints(cls)
    known_only(source, (key,), given, list(hints))
    return cls(
        **{
            field.name: checked(source, (key, field.name), given[field.name], hints[field.name], field.metadata)
            for field in dataclasses.fields(cls)
            if field.name in given
        }
    )


def _parameters(source: Source) -> tuple[Parameter, ...]:
    given = section(source, "parameters")
    if source.data.get("parameters", {}) == {}:
        source.problem(("parameters",), "an empty grid; name at least one parameter, such as format: {values: [E4M3]}")
    found = {}
    for name, body in given.items():
        at: KeyPath = ("parameters", name)
        if name in _ONE_A_SWEEP:
            source.problem(at, f"cannot be a parameter: {_ONE_A_SWEEP[name]}; put it into run")
        elif name in RUN_FIELDS:
            found[name] = _parameter(source, at, name, body)
        else:
            source.problem(at, f"unknown key; {nearest_name(name, RUN_FIELDS)}")
    return tuple(in_field_order(found).values())


def _parameter(source: Source, at: KeyPath, name: str, body: Any) -> Parameter:
    role: Role = "scientific" if name in SCIENTIFIC else "replicate" if name == "seed" else "nuisance"
    if not isinstance(body, Mapping):
        source.problem(at, f"expected {{value: ...}}, {{values: [...]}} or {{distribution: ...}}, got {shown(body)}")
        return Parameter(name, role)
    known_only(source, at, body, ["value", "values", "distribution", "min", "max", "role"])
    if "role" in body:
        role = checked(source, (*at, "role"), body["role"], Role)
    drawn = body.get("distribution", "categorical") != "categorical"
    ways = [key for key in ("value", "values", "distribution") if key in body and (key != "distribution" or drawn)]
    if len(ways) != 1:
        source.problem(at, f"needs exactly one of value, values and distribution, got {' and '.join(ways) or 'none'}")
        return Parameter(name, role)
    if drawn:
        return _distribution(source, at, name, role, body)
    for key in sorted({"min", "max"} & set(body)):
        source.problem((*at, key), "needs a distribution")
    if "value" in body:
        return Parameter(name, role, (canonical(source, (*at, "value"), name, body["value"]),))
    return Parameter(name, role, _values(source, (*at, "values"), name, body["values"]))


def _values(source: Source, at: KeyPath, name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list):
        source.problem(at, f"expected a list, got {shown(values)}; a single one is written value: ...")
        return ()
    if not values:
        source.problem(at, "an empty grid; list at least one value")
    before, found = len(source.problems), []
    for i, value in enumerate(values):
        found.append(canonical(source, (*at, i), name, value))
        if len(source.problems) == before and found[-1] in found[:-1]:
            source.problem((*at, i), f"duplicate value {value!r}")
    return tuple(found)


def _distribution(source: Source, at: KeyPath, name: str, role: Role, body: Mapping[str, Any]) -> Parameter:
    choices = Literal["uniform", "log_uniform_values", "int_uniform", "categorical"]
    before, kind = len(source.problems), body["distribution"]
    checked(source, (*at, "distribution"), kind, choices)
    field_type = type(RUN_FIELDS[name])
    if field_type not in (int, float):
        source.problem((*at, "distribution"), f"{name} is no number; list its values")
    elif field_type is int and kind != "int_uniform":
        source.problem((*at, "distribution"), f"{name} is a whole number; use int_uniform")
    elif role == "replicate":
        source.problem((*at, "distribution"), "replicates are all run, not drawn; list their values")
    ends: list[Any] = []
    for key in ("min", "max"):
        if key not in body:
            source.problem((*at, key), "is missing")
        elif len(source.problems) == before:
            end = checked(source, (*at, key), body[key], int if kind == "int_uniform" else float)
            ends += [end] if len(source.problems) > before else [canonical(source, (*at, key), name, end)]
    if len(source.problems) > before:
        return Parameter(name, role)
    if ends[0] >= ends[1]:
        source.problem((*at, "max"), f"must be above min, got min={ends[0]}, max={ends[1]}")
    if kind == "log_uniform_values" and ends[0] <= 0:
        source.problem((*at, "min"), f"must be above zero on a log scale, got {ends[0]}")
    return Parameter(name, role, (), kind, *ends)


def _run(source: Source, parameters: Sequence[str]) -> dict[str, Any]:
    """The fixed fields, nested."""
    flat = {}
    for path, value in _leaves(section(source, "run")):
        at, name = ("run", *path), ".".join(path)
        if any("." in key for key in path):
            source.problem(at, "unknown key; in run, groups are nested: {model: {n_layer: 2}}")
        elif name in parameters:
            source.problem(at, "stands in parameters too; give it in one place")
        else:
            flat[name] = canonical(source, at, name, value)
    return nest(in_field_order(flat))


def _leaves(given: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in given.items():
        if isinstance(value, Mapping) and not above and key in _GROUPS:
            yield from _leaves(value, (key,))
        else:
            yield (*above, key), value


def _lanes(source: Source, parameters: Sequence[Parameter]) -> tuple[str, ...]:
    if "lanes" not in source.data:
        able = LANE_FIELDS - set(DEFAULT_CONTROL)
        return tuple(p.name for p in parameters if p.role == "replicate" and p.name in able)
    names, known = source.data["lanes"], {parameter.name: parameter for parameter in parameters}
    if not isinstance(names, list):
        source.problem(("lanes",), f"expected a list of parameters, got {shown(names)}")
        return ()
    for i, name in enumerate(names):
        at: KeyPath = ("lanes", i)
        if not isinstance(name, str) or name not in known:
            source.problem(at, f"{name!r} is no parameter; {nearest_name(str(name), known)}")
        elif name not in LANE_FIELDS:
            allowed = ", ".join(sorted(LANE_FIELDS))
            source.problem(
                at, f"{name} changes the shape or the schedule of the program; lanes may differ in: {allowed}"
            )
        elif known[name].role == "scientific" or name in DEFAULT_CONTROL:
            source.problem(at, f"{name} spans the matrix, and a pack is one cell of it")
        elif known[name].distribution:
            source.problem(at, f"{name} is drawn from a distribution; lanes need values")
        elif name in names[:i]:
            source.problem(at, f"duplicate value {name!r}")
    return tuple(map(str, names))


def _control(
    source: Source, parameters: Sequence[Parameter], lanes: Sequence[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The whole control, and a sentence about what was added to it."""
    given, known = section(source, "control"), {parameter.name: parameter for parameter in parameters}
    control = {}
    for name, value in given.items():
        at: KeyPath = ("control", name)
        if name not in RUN_FIELDS:
            source.problem(at, f"unknown key; {nearest_name(name, RUN_FIELDS)}")
        elif name in lanes or (name in known and known[name].role == "replicate"):
            source.problem(at, f"the control runs all values of {name}; leave it out")
        elif name in _ONE_A_SWEEP:
            source.problem(at, f"cannot differ from the others: {_ONE_A_SWEEP[name]}")
        else:
            control[name] = canonical(source, at, name, value)
    # The form of a preconditioner is idle under the control's optimizer: one value of it is enough.
    defaults = dict(DEFAULT_CONTROL) | {name: RUN_FIELDS[name] for name in ("precondition",) if name in known}
    added = {name: value for name, value in defaults.items() if name not in given}
    listed = ", ".join(f"{name}: {value}" for name, value in added.items())
    notes = (f"the file leaves the control open; added {{{listed}}}",) if added else ()
    return in_field_order(control | added), notes


def _exclude(
    source: Source, parameters: Sequence[Parameter], replaced: Mapping[str, Sequence[Any]]
) -> tuple[Exclusion, ...]:
    rules, known = source.data.get("exclude", []), {parameter.name: parameter for parameter in parameters}
    if not isinstance(rules, list):
        source.problem(("exclude",), f"expected a list of maps, got {shown(rules)}")
        return ()
    found = []
    for i, rule in enumerate(rules):
        at: KeyPath = ("exclude", i)
        if not isinstance(rule, Mapping) or not set(rule) - {"why"}:
            source.problem(at, f"expected parameters and values, got {shown(rule)}")
            continue
        values = {}
        for name, value in rule.items():
            if name in known:
                values[name] = _excluded_values(source, (*at, name), known[name], value, replaced.get(name, ()))
            elif name != "why":
                source.problem((*at, name), f"is no parameter; {nearest_name(name, [*known, 'why'])}")
        why = checked(source, (*at, "why"), rule.get("why", ""), str)
        # A rule whose values were all overridden away has nothing left to say.
        if all(values.values()):
            found.append(Exclusion(in_field_order(values), why))
    return tuple(found)


def _excluded_values(
    source: Source, at: KeyPath, parameter: Parameter, given: Any, replaced: Sequence[Any]
) -> tuple[Any, ...]:
    """The parameter's values that a rule names; one that the file never listed is a problem."""
    if parameter.distribution:
        source.problem(at, f"{parameter.name} is drawn from a distribution; only listed values can be excluded")
        return ()
    if given == []:
        source.problem(at, "an empty list excludes nothing")
    single = not isinstance(given, list) or not resolve(parameter.name, given)[1]
    listed = [*parameter.values, *(resolve(parameter.name, value)[0] for value in replaced)]
    found = []
    for where, item in [(at, given)] if single else [((*at, i), item) for i, item in enumerate(given)]:
        before, value = len(source.problems), canonical(source, where, parameter.name, item)
        if len(source.problems) == before and value not in listed:
            source.problem(
                where, f"{item!r} is no value of {parameter.name}; {nearest_name(str(item), map(str, listed))}"
            )
        found.append(value)
    return tuple(value for value in found if value in parameter.values)
