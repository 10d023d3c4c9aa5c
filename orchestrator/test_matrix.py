"""Writes TEST_MATRIX.md: what can be studied, what is measured, and what is tested where.

Nothing in it is typed by hand: every row comes from a registry, a schema, a search space, or the tests themselves.
``python -m orchestrator.test_matrix`` prints it, ``--write`` writes it.
"""

import argparse
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from altgrad.quantization.formats import FORMAT_REGISTRY, FP8Format
from altgrad.training.callbacks import RankWatch
from altgrad.training.config import LAYER_PRESETS, ConfigError, ModelConfig, RankConfig, RunConfig
from altgrad.training.layers import layer_formats
from altgrad.training.optimizer import OPTIMIZERS
from altgrad.training.shapes import aliases, matrix_names
from orchestrator.facts.decisions import examples
from orchestrator.facts.markdown import code, escape, number, prose, table
from orchestrator.facts.sources import doc_comments, first_line
from orchestrator.facts.steering import optimizer_forms, steering_fields
from orchestrator.facts.tested_where import reach
from orchestrator.plan import Plan, cell_label, make_plan
from orchestrator.results import schema
from orchestrator.results.matrix import STOPPED
from orchestrator.space import EarlyTerminate, Parameter, SweepSpec, load_space
from orchestrator.sweep.tracking import ALERTS

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "TEST_MATRIX.md"
COMMAND = "python -m orchestrator.test_matrix --write"

YES, NO = "✓", ""
_STORAGES: tuple[str, ...] = typing.get_args(typing.get_type_hints(RunConfig)["storage"])


def document() -> str:
    """The whole of TEST_MATRIX.md."""
    sections = [introduction, formats, combinations, optimizers, storages, layers, spaces, metrics, endings, tests]
    return "\n\n".join("\n\n".join(section()) for section in sections) + "\n"


def introduction() -> Iterator[str]:
    """What this page is, and where it comes from."""
    yield "# Test matrix"
    yield (
        "What can be studied, what is measured, and what is tested where. This page is generated from the program: "
        f"change the program, run `{COMMAND}`, commit both. A test fails while the two differ."
    )


def formats() -> Iterator[str]:
    """Every number format."""
    yield "## Formats"
    yield (
        f"{len(FORMAT_REGISTRY)} formats, each a handful of numbers in one rounding expression. "
        "+0 and -0 count as one value."
    )
    header = ["name", "bits", "E", "M", "bias", "largest", "smallest > 0", "finite values", "specials"]
    yield table(header, (_format_row(each) for each in FORMAT_REGISTRY.values()))


def _format_row(each: FP8Format) -> list[str]:
    specials = [name for name, there in (("inf", each.has_inf), ("NaN", each.has_nan)) if there]
    numbers = [each.bits, each.exponent_bits, each.mantissa_bits, each.bias]
    ends = [number(each.max_representable_value), number(each.min_positive_value), f"{each.finite_values:,}"]
    return [each.name, *map(str, numbers), *ends, ", ".join(specials) or "none"]


def combinations() -> Iterator[str]:
    """Which format runs under which optimizer and storage: the answers of RunConfig itself."""
    yield "### What can run together"
    yield "Format by optimizer and storage. A letter stands for the reason why there is no such run."
    pairs = [(optimizer, storage) for optimizer in OPTIMIZERS for storage in _STORAGES]
    refusals: dict[str, str] = {}
    rows = []
    for name in FORMAT_REGISTRY:
        marks = (_mark(refusal(name, *pair), refusals) for pair in pairs)
        rows.append([name, *marks])
    yield table(["format", *map(" ".join, pairs)], rows)
    yield "\n".join(f"- {letter}: {escape(why)}" for why, letter in refusals.items())


def refusal(format: str, optimizer: str, storage: str) -> str | None:
    """Why there is no run of a combination; None where there is one."""
    try:
        RunConfig.from_dict({"format": format, "optimizer": optimizer, "storage": storage})
    except ConfigError as error:
        # What it got instead is the combination itself.
        return re.sub(r", got '?\w+'?$", "", error.problems[0].message)
    return None


def _mark(why: str | None, refusals: dict[str, str]) -> str:
    return YES if why is None else refusals.setdefault(why, chr(ord("a") + len(refusals)))


def optimizers() -> Iterator[str]:
    """The optimizers, and what of a run's config reaches them."""
    yield "## Optimizers"
    rows = []
    for name, each in OPTIMIZERS.items():
        arguments = [_argument(p) for p in inspect.signature(each).parameters.values()]
        rows.append([name, code(f"{each.__name__}({', '.join(arguments)})"), prose(first_line(each))])
    yield table(["name", "class", "what it is"], rows)
    yield (
        "What of a run steers them on a quantized matrix, found by changing one field at a time and comparing the "
        "weights after a few steps. Vectors (the norms) are moved by adamw under all of them."
    )
    forms = optimizer_forms()
    steered = {form: steering_fields(config) for form, config in forms.items()}
    comments, defaults = doc_comments(RunConfig), RunConfig().to_dict()
    fields = [name for name in defaults if any(name in found for found in steered.values())]
    rows = [
        [code(name), code(defaults[name]), *(YES if name in steered[form] else NO for form in forms)]
        + [prose(comments.get(name, ""))]
        for name in fields
    ]
    yield table(["field", "default", *forms, "meaning"], rows)


def _argument(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is inspect.Parameter.empty else f"={parameter.default!r}"
    return f"{parameter.name}{default}"


def storages() -> Iterator[str]:
    """Where weights live."""
    yield "## Storage"
    yield prose(doc_comments(RunConfig)["storage"])
    rows = []
    for storage in _STORAGES:
        able = [(o, f) for o in OPTIMIZERS for f in FORMAT_REGISTRY if refusal(f, o, storage) is None]
        rows.append([storage, *(", ".join(dict.fromkeys(names)) for names in zip(*able, strict=True))])
    yield table(["storage", "optimizers", "formats"], rows)


def layers() -> Iterator[str]:
    """Which matrices each preset quantizes, and when a falling rank of theirs is a warning."""
    model, ranks = ModelConfig(), RankConfig()
    yield "## Layers"
    head = "Its head is tied: one matrix is `wte` and `lm_head` at once." if model.tied_head else "Its head is untied."
    shape = f"{model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, block {model.block_size}"
    yield (
        f"The matrices of the default model ({shape}), and which of them each preset quantizes. {head} "
        "A search space may list rules of its own instead (`{match, format}`, the first that matches wins)."
    )
    names = {name: aliases(model, name) for name in matrix_names(model)}
    watch = RankWatch(ranks, names)
    found = {preset: layer_formats(RunConfig(layers=preset)) for preset in LAYER_PRESETS}
    rows: dict[tuple[str, ...], int] = {}
    for name, known in names.items():
        marks = (NO if found[preset][name].is_identity else YES for preset in LAYER_PRESETS)
        matrix = " = ".join(code(re.sub(r"\d+", "*", alias)) for alias in known)
        row = (matrix, *marks, f"{watch.threshold(name):.0%}")
        rows[row] = rows.get(row, 0) + 1
    header = ["matrix", "how many", *LAYER_PRESETS, "may lose"]
    yield table(header, ([matrix, str(count), *rest] for (matrix, *rest), count in rows.items()))
    yield (
        f"*May lose*: how far a matrix's effective rank may fall below its reference before it is a warning. It is "
        f"{ranks.warn_threshold:.0%}, and {ranks.warn_threshold * ranks.critical_multiplier:.0%} for critical matrices "
        f"({', '.join(map(code, ranks.critical_layers))})."
    )


def spaces() -> Iterator[str]:
    """The search spaces that come with the project."""
    yield "## Search spaces"
    for path in sorted((ROOT / "search_spaces").glob("*.yaml")):
        spec = load_space(path)
        yield from _space(path, spec, make_plan(spec, {"corpus": "", "hash": "", "tokens": 0, "vocabulary": 0}))


def _space(path: Path, spec: SweepSpec, plan: Plan) -> Iterator[str]:
    place = path.relative_to(ROOT).as_posix()
    trials = sum(len(pack.lanes) for pack in plan.packs)
    cells = len({pack.cell for pack in plan.packs})
    yield f"### {spec.name}"
    yield f"{escape(spec.description)} ([`{place}`]({place}))"
    yield (
        f"**{trials:,} trials** in {len(plan.packs):,} packs and {cells:,} cells, "
        f"{plan.packs[0].lanes[0].config.steps:,} steps each. Cells left out: {len(plan.excluded):,}."
    )
    yield table(["axis", "role", "values"], ([code(p.name), p.role, _values(p)] for p in spec.parameters))
    control = ", ".join(f"{name} {label(value)}" for name, value in spec.control.items())
    yield "\n".join(
        [
            f"- Method: {spec.method}, by {escape(spec.metric.name)} ({spec.metric.goal}).",
            f"- Side by side in a pack: {', '.join(spec.lanes) or 'nothing'}.",
            f"- Control: {escape(control)}.",
            f"- Stopping: {_stopping(spec.early_terminate)}.",
            f"- Resources of a pack: {_amount(spec.resources.cpu)} CPU, {_amount(spec.resources.gpu)} GPU.",
        ]
    )
    if spec.exclude:
        rules = ([_rule(rule.values), escape(rule.why) or NO] for rule in spec.exclude)
        yield table(["left out", "why"], rules)


def _values(parameter: Parameter) -> str:
    if parameter.distribution:
        return f"{parameter.distribution.replace('_', ' ')} from {parameter.min:g} to {parameter.max:g}"
    return ", ".join(code(label(value)) for value in parameter.values)


def _amount(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _stopping(rules: EarlyTerminate) -> str:
    if rules.type == "none":
        return "only trials that are lost by themselves"
    among = "of a cell" if rules.scope == "cell" else "of the sweep"
    return f"{rules.type} among the packs {among}, from step {rules.min_iter:,}; one in {rules.eta:g} goes on"


def _rule(values: Mapping[str, Sequence[Any]]) -> str:
    return "; ".join(f"{name} {', '.join(code(label(value)) for value in listed)}" for name, listed in values.items())


def metrics() -> Iterator[str]:
    """Every column of every table."""
    yield "## Metrics"
    yield prose((schema.__doc__ or "").partition("\n\n")[2].strip())
    tables: dict[tuple[str, str, str], set[str]] = {}
    for name, fields in schema.SCHEMAS.items():
        for field in fields:
            tables.setdefault((field.name, str(field.type), field.metadata[b"doc"].decode()), set()).add(name)
    rows = [
        [code(name), kind, *(YES if each in found else NO for each in schema.SCHEMAS), prose(meaning)]
        for (name, kind, meaning), found in tables.items()
    ]
    yield table(["column", "type", *schema.SCHEMAS, "meaning"], rows)


def endings() -> Iterator[str]:
    """How trials end, what is an event, and by which limits."""
    yield "## Events and endings"
    yield prose(doc_comments(schema)["END_REASONS"])
    said = examples()
    rows = [
        [code(kind), YES if kind in schema.END_REASONS else NO, YES if kind in STOPPED else NO]
        + [ALERTS.get(kind, NO).lower(), escape(said.get(kind, NO))]
        for kind in schema.EVENT_KINDS
    ]
    header = ["event", "ends a trial", "saves its steps", "W&B alert", "an event of this kind says, for example"]
    yield table(header, rows)
    yield "The limits, under `early_terminate` of a search space and `ranks` of a run:"
    yield table(["key", "default", "meaning"], [*_limits(EarlyTerminate), *_limits(RankConfig)])


def _limits(cls: type) -> Iterator[list[str]]:
    group, comments = "ranks" if cls is RankConfig else "early_terminate", doc_comments(cls)
    for each in dataclasses.fields(cls):
        default = ", ".join(each.default) if isinstance(each.default, tuple) else each.default
        yield [code(f"{group}.{each.name}"), code(default), prose(comments.get(each.name, ""))]


def tests() -> Iterator[str]:
    """Which test files reach which modules."""
    yield "## What is tested where"
    yield (
        "For each module, the test files (under `tests/`) that import it or name it, themselves or through a helper "
        "beside them, and whether the examples in its docstrings are run. Where none does, the modules that use it."
    )
    rows = []
    for name, found in reach(ROOT).items():
        where = [*map(code, found.tests), *(["its own examples"] if found.doctests else [])]
        through = f"only through {', '.join(map(code, found.users))}" if found.users else "no test names it"
        rows.append([code(name), ", ".join(where) or through])
    yield table(["module", "tested in"], rows)


def label(value: Any) -> str:
    """A parameter's value as the matrix labels it."""
    return cell_label({"layers": value})


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.test_matrix", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--write", action="store_true", help=f"write {PATH.name} instead of printing it")
    if parser.parse_args(arguments).write:
        PATH.write_text(document(), encoding="utf-8")
    else:
        print(document(), end="")


if __name__ == "__main__":
    main()
