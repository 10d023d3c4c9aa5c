"""Search spaces: a YAML file -> a `SweepSpec` that is known to be runnable, or every problem with its line."""

from orchestrator.space.load import load_space
from orchestrator.space.spec import (
    EarlyTerminate,
    Exclusion,
    Metric,
    Parameter,
    Resources,
    SweepSpec,
    WandbConfig,
)
from orchestrator.space.yaml_source import SpaceError, SpaceProblem, dump_yaml

__all__ = [
    "EarlyTerminate",
    "Exclusion",
    "Metric",
    "Parameter",
    "Resources",
    "SpaceError",
    "SpaceProblem",
    "SweepSpec",
    "WandbConfig",
    "dump_yaml",
    "load_space",
]
