"""A small plan, and trials as Ray Tune would hand them to a callback."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.plan import Plan, make_plan
from orchestrator.space import load_space

CORPUS = {"corpus": "stdlib", "hash": "c0ffee", "tokens": 1000, "vocabulary": 256}

#: A control and two cells; each pack has two learning rates, and two seeds of both.
SPACE: dict[str, Any] = {
    "name": "small",
    "parameters": {
        "format": {"values": ["fp32", "E4M3", "E5M2"]},
        "lr": {"values": [0.001, 0.01]},
        "seed": {"values": [1, 2]},
    },
    "lanes": ["seed", "lr"],
    "control": {"format": "fp32", "optimizer": "adamw", "storage": "master", "layers": "all"},
    "run": {"steps": 80, "model": {"n_layer": 1, "n_embd": 32, "n_head": 2}},
    "early_terminate": {"type": "asha", "min_iter": 10, "eta": 2},
}


def small_plan(folder: Path, changes: Mapping[str, Any] | None = None) -> Plan:
    """The plan of `SPACE`, with top-level keys replaced."""
    file = folder / "small.yaml"
    file.write_text(json.dumps({**SPACE, **(changes or {})}), encoding="utf-8")
    return make_plan(load_space(file, []), CORPUS)


def tune_trial(pack: str, error_file: Path | None = None) -> Any:
    """What a callback reads of a trial."""
    return SimpleNamespace(config={"pack": pack}, error_file=error_file and str(error_file))
