"""How often the intervals and verdicts of the matrix are right, on sweeps drawn from a known truth.

A sweep here has cells of several settings (of the nuisance parameters) that are all equally good, so that whichever is
chosen the truth is zero. Of the variance of a result a share is its seed's, the same for all settings and cells, and
the rest its own. The functions judged are the ones that make the matrix.
"""

import argparse
import json
import math
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import positive
from orchestrator.results.cells import Cell, Place, Setting, Trial, best_setting, build_cell, mark_best
from orchestrator.results.matrix import Matrix
from orchestrator.results.paired import benefits

REPLICATES = (3, 5, 10)
SETTINGS = (1, 2, 4, 8)
#: Cells of a matrix in which several verdicts are judged together.
CELLS = 16


def drawn_cell(place: Place, results: np.ndarray) -> Cell:
    """A cell of these results ``(settings, seeds)``, the setting chosen by its mean."""
    settings = [
        Setting({"lr": i}, [Trial("completed", 1, value, f"seed={seed}") for seed, value in enumerate(values)])
        for i, values in enumerate(results.tolist())
    ]
    return build_cell(place, settings, best_setting(settings, "minimize"), control=False)


def drawn_sweep(n: int, columns: dict[str, int], rows: int, rng: np.random.Generator, of_seed: float = 0.5) -> Matrix:
    """A matrix in which nothing makes a difference.

    Args:
        n: replicates of each setting.
        columns: optimizers, and how many settings each has to choose from.
        rows: formats.
        rng: where the results come from.
        of_seed: the share of a result's variance that is its seed's.
    """
    seeds = math.sqrt(of_seed) * rng.standard_normal(n)
    cells = {
        (str(row), (name,)): drawn_cell(
            (str(row), (name,)), seeds + math.sqrt(1 - of_seed) * rng.standard_normal((settings, n))
        )
        for row in range(rows)
        for name, settings in columns.items()
    }
    return Matrix(
        name="drawn",
        metric="val_loss",
        goal="minimize",
        objective="val_loss",
        row_parameter="format",
        column_parameters=("optimizer",),
        nuisance_parameters=("lr",),
        fixed={},
        rows=[str(row) for row in range(rows)],
        columns=[(name,) for name in columns],
        cells=mark_best(cells, "minimize"),
    )


def adamw_cells(sweeps: Sequence[Matrix]) -> list[Cell]:
    """AdamW's cells of all of them."""
    return [cell for sweep in sweeps for cell in sweep.cells.values() if cell.column == ("adamw",)]


def covered(sweeps: Sequence[Matrix]) -> float:
    """The share of AdamW's cells whose interval holds the truth, zero."""
    return float(np.mean([abs(cell.mean or 0.0) <= (cell.interval or 0.0) for cell in adamw_cells(sweeps)]))


def flattered(sweeps: Sequence[Matrix]) -> float:
    """By how much those cells' means are too good, in standard deviations of a single result."""
    return -float(np.mean([cell.mean for cell in adamw_cells(sweeps)]))


def false_verdicts(sweeps: Sequence[Matrix]) -> float:
    """The share of comparisons with AdamW that tell something apart."""
    return float(np.mean([each.verdict != "indistinct" for sweep in sweeps for each in benefits(sweep)]))


def any_false(sweeps: Sequence[Matrix]) -> float:
    """The share of sweeps in which a verdict is left after Holm's correction."""
    return float(np.mean([any((each.holm or 0.0) <= 0.05 for each in benefits(sweep)) for sweep in sweeps]))


def kept_best(sweeps: Sequence[Matrix]) -> float:
    """The share of sweeps whose first cell, as good as any, is marked as the best or as not distinguishable from it."""
    return float(np.mean([(cell := next(iter(sweep.cells.values()))).best or cell.indistinct for sweep in sweeps]))


def figures(n: int, settings: int, sweeps: int, rng: np.random.Generator, of_seed: float) -> dict[str, float]:
    """All shares for cells of ``n`` replicates that choose among so many settings.

    ``false_verdicts_one_sided`` is where the other optimizer chooses among as many and AdamW has no choice.
    """
    alike, alone = {"adamw": settings, "other": settings}, {"adamw": 1, "other": settings}
    even = [drawn_sweep(n, alike, 1, rng, of_seed) for _ in range(sweeps)]
    uneven = [drawn_sweep(n, alone, 1, rng, of_seed) for _ in range(sweeps)]
    wide = [drawn_sweep(n, alike, CELLS // 2, rng, of_seed) for _ in range(math.ceil(sweeps / 4))]
    return {
        "covered": covered(even),
        "flattered": flattered(even),
        "false_verdicts": false_verdicts(even),
        "false_verdicts_one_sided": false_verdicts(uneven),
        "any_false_holm": any_false(wide),
        "kept_best": kept_best(wide),
    }


def share(text: str) -> float:
    """A number from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a number from 0 to 1 is needed, got {text!r}")
    return value


def main() -> None:
    """Print the table, and with ``--json`` one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=positive, default=4000, metavar="N", help="drawn for each row")
    parser.add_argument("--of-seed", type=share, default=0.5, metavar="SHARE", help="of the variance, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rng = np.random.default_rng(asked.seed)
    found = {f"{n}x{k}": figures(n, k, asked.sweeps, rng, asked.of_seed) for n in REPLICATES for k in SETTINGS}
    table = Table("n x settings", *next(iter(found.values())))
    for name, shares in found.items():
        table.add_row(
            name, *(f"{share:.2f}" if key == "flattered" else f"{share:.1%}" for key, share in shares.items())
        )
    Console(width=160).print(table)
    if asked.json:
        print(json.dumps({"sweeps": asked.sweeps, "seed": asked.seed, "of_seed": asked.of_seed, "figures": found}))


if __name__ == "__main__":
    main()
