"""One run without Ray: `altgrad train`."""

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from altgrad.training.config import ConfigError, Problem, RunConfig
from altgrad.training.loop import train
from altgrad.training.metrics import Rows
from orchestrator.corpus import corpus_of
from orchestrator.space.spec import flatten, nest
from orchestrator.space.yaml_source import Place, SpaceError, SpaceProblem, parse_yaml
from orchestrator.sweep.verdicts import last_good_step


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file: the fields of a RunConfig as YAML, and ``key=value`` overrides with dotted keys.

    Raises:
        SpaceError: the file cannot be read, is no YAML, or says something that cannot be run.
    """
    try:
        source = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise SpaceError([SpaceProblem(Place(str(path)), (), f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise SpaceError([SpaceProblem(Place(str(path)), (), f"is not UTF-8 text (byte {error.start})")]) from error
    source.check()
    if not isinstance(source.data, dict | None):
        raise SpaceError([SpaceProblem(Place(str(path)), (), "holds no keys and values")])
    values = flatten(source.data or {})
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise ConfigError([Problem((override,), "an override is key=value")])
        values[key] = parse_yaml(text, f"override {override!r}").data
    try:
        return RunConfig.from_dict(nest(values))
    except ConfigError as error:
        raise SpaceError([SpaceProblem(source.place(p.path), p.path, p.message) for p in error.problems]) from error


def train_one(config: RunConfig, rows_file: Path | None, out: Console, err: Console) -> bool:
    """Train one run and print a line a report; with ``rows_file`` every step's rows are kept as Parquet.

    Returns:
        False where the loss stopped being a number.

    Raises:
        FileNotFoundError: there is no folder for ``rows_file``.
    """
    if rows_file is not None and not rows_file.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {rows_file.parent} to keep rows in")
    kept: list[Rows] = []
    healthy = True

    def report(step: int, rows: Rows) -> set[str] | None:
        nonlocal healthy
        kept.append(rows)
        last = {name: column[-1] for name, column in rows.steps.items()}
        stall = "" if math.isnan(last["stall_ratio"]) else f"  stall {last['stall_ratio']:.4f}"
        out.print(
            f"step {step:>6}  loss {last['loss']:.4f}  val {last['val_loss']:.4f}  |grad| {last['grad_norm']:.3f}"
            f"{stall}  effective rank {last['effective_rank_mean']:.1f}",
            highlight=False,
        )
        healthy = math.isfinite(last["loss"]) and math.isfinite(last["val_loss"])
        return None if healthy else set(rows.steps["key"])

    err.print(f"{config.format} {config.optimizer} {config.storage}, {config.steps} steps", highlight=False)
    train([config], report, keys=["run"], corpus=corpus_of(config))
    if rows_file is not None:
        _write(rows_file, [rows.steps for rows in kept])
        _write(rows_file.with_name(f"{rows_file.stem}-layers{rows_file.suffix}"), [rows.layers for rows in kept])
        err.print(f"rows of every step are in {rows_file}", highlight=False)
    if not healthy:
        last = kept[-1].steps
        good = last_good_step(int(last["step"][-1]), last["loss"])
        err.print(f"diverged: the loss is not a number any more; the last good step was {good}")
    return healthy


def _write(path: Path, parts: list[dict]) -> None:
    pq.write_table(pa.concat_tables([pa.table(part) for part in parts]), path)
