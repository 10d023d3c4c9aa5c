"""The trials of a plan under Ray Tune as its documentation teaches: what `sweep.py` holds a sweep against.

A function trainable for each trial, which reports the scalars of every step; the corpus through `with_parameters`;
loggers, actors and everything else as they are by default.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from altgrad.training.config import RunConfig
from altgrad.training.corpus import Corpus
from altgrad.training.loop import train
from altgrad.training.metrics import Rows
from orchestrator.corpus import corpus_of


def trial(config: dict[str, Any], text: dict[str, Any]) -> None:
    """Train one lane, and report every step's scalars.

    ``text``: the fields of the corpus, whose tokens Ray lends as arrays that cannot be written.
    """
    corpus = Corpus(**{name: x.copy() if isinstance(x, np.ndarray) else x for name, x in text.items()})

    def report(step: int, rows: Rows) -> None:
        names = [name for name in rows.steps if name != "key"]
        for values in zip(*(rows.steps[name].tolist() for name in names), strict=True):
            tune.report(dict(zip(names, values, strict=True)))

    train([RunConfig.from_dict(config["run"])], report, corpus=corpus)


def run(plan: dict[str, Any], folder: Path) -> None:
    """Run every trial of ``altgrad plan --json``, each by itself, with as many at once as there are CPUs."""
    configs = [lane["config"] for pack in plan["packs"] for lane in pack["lanes"]]
    corpus = corpus_of(RunConfig.from_dict(configs[0]))
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, text=vars(corpus)), {"cpu": plan["space"]["resources"]["cpu"]}),
        param_space={"run": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(metric="val_loss", mode="min"),
        run_config=tune.RunConfig(name="plain", storage_path=str(folder.absolute())),
    )
    results = tuner.fit()
    if results.num_errors:
        raise SystemExit(f"{results.num_errors} of {len(results)} trials failed: {results.errors[0]}")


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
