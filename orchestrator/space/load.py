"""A file and overrides -> SweepSpec: the only door through which a search space comes in."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from altgrad.training.config import ConfigError, Problem, nearest_name
from orchestrator.space.checks import resolve
from orchestrator.space.combinations import Assignment, combinations, config_of, drafts, grid_size
from orchestrator.space.reader import read_spec
from orchestrator.space.spec import RUN_FIELDS, SPEC_KEYS, SweepSpec, canonical_json
from orchestrator.space.yaml_source import KeyPath, Place, Source, SpaceError, SpaceProblem, parse_yaml

#: A larger grid is refused before its combinations are looked at one by one.
MOST_TRIALS = 100_000


def load_space(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a search space file and check it to the last combination.

    Args:
        path: A YAML 1.2 file.
        overrides: ``key=value`` with dotted keys and values in YAML. A parameter's name fixes that parameter (a list
            gives it several values); next come the file's own keys (``early_terminate.scope=cell``), then RunConfig
            fields for ``run``. A later one wins.

    Raises:
        SpaceError: the file cannot be read, is no YAML, or says something that cannot be run.
    """
    source = parse_yaml(_text(path), str(path))
    source.places.setdefault((), Place(str(path), 1))
    replaced: dict[str, list[Any]] = {}
    if isinstance(source.data, dict):
        for override in overrides:
            replaced |= _override(source, override)
    spec = read_spec(source, replaced)
    _check_combinations(source, spec)
    return spec


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = sorted(other.name for other in path.parent.glob("*.y*ml"))
        message = f"no such file; {nearest_name(path.name, siblings)}" if siblings else "no such file"
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text (byte {error.start})"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    raise SpaceError([SpaceProblem(Place(str(path)), (), message)])


def _override(source: Source, override: str) -> dict[str, list[Any]]:
    """Write one override into the data; returns the values of the parameter that it replaces, if it does."""
    place = Place(f"override {override!r}")
    key, sign, text = override.partition("=")
    parameters = source.data.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    if not sign:
        source.problems.append(SpaceProblem(place, (), "expected key=value"))
        return {}
    try:
        parsed = parse_yaml(text, place.source)
        parsed.check()
    except SpaceError as error:
        source.problems += [SpaceProblem(place, (), problem.message) for problem in error.problems]
        return {}
    if key in parameters:
        return _fix_parameter(source, key, parsed.data, place)
    target = _target(key)
    if target is None:
        hint = nearest_name(key, [*parameters, *SPEC_KEYS, *RUN_FIELDS])
        source.problems.append(SpaceProblem(place, (), f"unknown key {key!r}; {hint}"))
    else:
        source.replace(target, parsed.data, place)
    return {}


def _target(key: str) -> KeyPath | None:
    """Where a dotted key that is no parameter belongs in the file."""
    parts = tuple(key.split("."))
    if parts[0] == "parameters" and len(parts) > 2:
        # A parameter's own name may hold dots: parameters.model.n_layer.values.
        return ("parameters", ".".join(parts[1:-1]), parts[-1])
    if parts[0] in SPEC_KEYS:
        return parts
    return ("run", *parts) if any(name.partition(".")[0] == parts[0] for name in RUN_FIELDS) else None


def _fix_parameter(source: Source, name: str, value: Any, place: Place) -> dict[str, list[Any]]:
    body = source.data["parameters"][name]
    body = body if isinstance(body, dict) else {}
    # A list may itself be one value, such as rules for layers.
    several = isinstance(value, list) and bool(resolve(name, value)[1])
    role = {"role": body["role"]} if "role" in body else {}
    role_place = source.place(("parameters", name, "role"))
    source.replace(("parameters", name), {"values" if several else "value": value, **role}, place)
    source.places[("parameters", name, "role")] = role_place
    before = body.get("values", [body["value"]] if "value" in body else [])
    return {name: before if isinstance(before, list) else []}


def _check_combinations(source: Source, spec: SweepSpec) -> None:
    """What can only be seen of whole combinations."""
    if spec.method == "grid" and (size := grid_size(spec)) > MOST_TRIALS:
        source.problem(
            ("parameters",),
            f"the grid has {size:,} combinations, more than {MOST_TRIALS:,}; draw some with method: random",
        )
        source.check()
    if next(combinations(spec), None) is None:
        source.problem(("exclude",), "every combination is excluded")
        source.check()
    packs = drafts(spec)
    trials = sum(len(pack.lanes) for pack in packs)
    if not packs:
        source.problem(
            ("run_cap",), f"the first draw with its control has more than {spec.run_cap} trials; raise run_cap"
        )
    elif spec.run_cap is not None and trials > spec.run_cap:
        way_out = "raise run_cap, list fewer values, or draw some of them with method: random"
        source.problem(
            ("run_cap",), f"the grid has {trials} trials with its controls, more than {spec.run_cap}; {way_out}"
        )
    source.check()
    lanes = [lane for pack in packs for lane in pack.lanes]
    controls = sum(len(pack.lanes) for pack in packs if pack.control)
    for problem, refused in _refusals(spec, lanes).items():
        _explain(source, spec, problem, lanes, refused, controls)
    source.check()


def _refusals(spec: SweepSpec, lanes: Sequence[Assignment]) -> Mapping[Problem, set[int]]:
    """What RunConfig refuses, and the positions of the lanes it refuses for it."""
    found: dict[Problem, set[int]] = defaultdict(set)
    for i, lane in enumerate(lanes):
        try:
            config_of(spec, lane)
        except ConfigError as error:
            for problem in error.problems:
                found[problem].add(i)
    return found


def _explain(
    source: Source, spec: SweepSpec, problem: Problem, lanes: Sequence[Assignment], refused: set[int], controls: int
) -> None:
    """Say which combinations are meant, and what ``exclude`` would have to say; where all are, say where it is set.

    Args:
        source: Takes the problems.
        spec: The space.
        problem: What RunConfig refuses.
        lanes: Every trial of the sweep, those of the controls first.
        refused: Positions of the trials that it refuses.
        controls: How many trials are the controls'.
    """
    name = ".".join(map(str, problem.path))
    if len(refused) == len(lanes):
        at: KeyPath = ("parameters", name) if name in spec.roles else ("run", *problem.path)
        source.problem(at, f"no combination can run: {problem.message}")
        return
    left = {i for i in refused if i >= controls}
    if not left:
        source.problem(("control",), f"cannot run: {problem}")
    at = ("exclude",) if "exclude" in source.data else ("parameters",)
    while left:
        rule = _smallest_rule(lanes, refused, min(left))
        covered = {i for i in left if rule.items() <= lanes[i].items()}
        texts = (f"{name}: {v if isinstance(v, str) else canonical_json(v)}" for name, v in rule.items())
        way_out = f"add to exclude: - {{{', '.join(texts)}}}"
        source.problem(at, f"{problem.message}; trials that cannot run: {len(covered)}; {way_out}")
        left -= covered


def _smallest_rule(lanes: Sequence[Assignment], refused: set[int], example: int) -> dict[str, Any]:
    """Of one refused lane, a set of values that no lane has without being refused, and none of which can be spared."""
    rule = dict(lanes[example])
    for name in list(rule):
        shorter = {key: value for key, value in rule.items() if key != name}
        if all(i in refused for i, lane in enumerate(lanes) if shorter.items() <= lane.items()):
            rule = shorter
    return rule
