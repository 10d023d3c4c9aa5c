"""What a search space says, resolved: frozen objects that know their own plain data."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from altgrad.training.config import RunConfig

Role = Literal["scientific", "nuisance", "replicate"]
Distribution = Literal["uniform", "log_uniform_values", "int_uniform"]

#: Parameters that span the matrix unless a file says otherwise.
SCIENTIFIC: tuple[str, ...] = ("format", "optimizer", "storage", "layers", "precondition")
#: What the others are held against, where a file does not say.
DEFAULT_CONTROL: Mapping[str, Any] = {"format": "fp32", "optimizer": "adamw", "storage": "master", "layers": "all"}


def canonical_json(value: Any) -> str:
    """One text for equal data: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested maps as one map of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, key = name.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[key] = value
    return nested


#: Every field of a RunConfig by its dotted name, with its default.
RUN_FIELDS: Mapping[str, Any] = flatten(RunConfig().to_dict())


def in_field_order(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields in RunConfig's own order, so that the order in a file changes nothing."""
    return {name: values[name] for name in RUN_FIELDS if name in values}


@dataclass(frozen=True)
class Metric:
    """The number by which packs are compared; it is in every report."""

    name: Literal["val_loss", "loss"] = "val_loss"
    goal: Literal["minimize", "maximize"] = "minimize"


@dataclass(frozen=True)
class EarlyTerminate:
    """When a pack or one of its lanes ends before its last step."""

    type: Literal["none", "asha"] = "none"
    #: Packs compete within their own cell of the matrix, or all with all.
    scope: Literal["cell", "sweep"] = "cell"
    #: Step of the first rung.
    min_iter: int = field(default=50, metadata={"least": 1})
    #: One in ``eta`` goes on at a rung, and each rung lies ``eta`` times further.
    eta: float = field(default=2.0, metadata={"above": 1})
    #: Checks in a row with a rank warning that end a lane.
    rank_collapse_patience: int = field(default=2, metadata={"least": 1})
    #: A lane whose stall ratio is at or above this does not learn any more.
    stall_limit: float = field(default=0.9999, metadata={"above": 0, "most": 1})
    #: Reports in a row at the limit that end a lane.
    stall_patience: int = field(default=3, metadata={"least": 1})
    #: The share of what is to be stopped that runs on to its end, to measure what stopping costs.
    audit: float = field(default=0.0, metadata={"least": 0, "most": 1})


@dataclass(frozen=True)
class Resources:
    """What Ray sets aside for each pack; parts of a GPU are allowed."""

    cpu: float = field(default=1.0, metadata={"above": 0})
    #: ``auto`` is settled when the sweep starts: 0 without a GPU, else the smallest share that holds the largest pack.
    gpu: float | Literal["auto"] = field(default="auto", metadata={"least": 0})


@dataclass(frozen=True)
class WandbConfig:
    """Where runs appear in Weights & Biases."""

    project: str = "altgrad"
    entity: str | None = None
    #: ``auto`` is online where a key is found, else offline.
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    #: Steps from one row there to the next; reports and the last rank check before each have one too.
    interval: int = field(default=10, metadata={"least": 1})


@dataclass(frozen=True)
class Parameter:
    """One axis of the space: a RunConfig field and the values it takes."""

    #: Dotted name of the field, such as ``model.n_layer``.
    name: str
    #: Spans the matrix, is tuned inside each cell, or repeats a run (Deep Learning Tuning Playbook, Google 2023).
    role: Role
    #: The values in their order; empty where they are drawn from a distribution.
    values: tuple[Any, ...] = ()
    distribution: Distribution | None = None
    #: Ends of the distribution, both included; 0 without one.
    min: float = 0
    max: float = 0

    def draw(self, u: float) -> Any:
        """The value at ``u`` in [0, 1) of the parameter's range.

        Drawn floats keep six significant digits: they read well, and the last bits of the platform's ``exp`` do not
        reach a trial's key.
        """
        if self.distribution is None:
            return self.values[int(u * len(self.values))]
        if self.distribution == "int_uniform":
            return int(self.min) + int(u * (self.max - self.min + 1))
        if self.distribution == "uniform":
            value = self.min + u * (self.max - self.min)
        else:
            value = math.exp(math.log(self.min) + u * (math.log(self.max) - math.log(self.min)))
        return min(max(float(f"{value:.6g}"), self.min), self.max)

    def to_dict(self) -> dict[str, Any]:
        """Plain data as it stands in a file."""
        if self.distribution is None:
            return {"values": list(self.values), "role": self.role}
        return {"distribution": self.distribution, "min": self.min, "max": self.max, "role": self.role}


@dataclass(frozen=True)
class Exclusion:
    """Combinations without meaning: those that take one of the listed values of every parameter named."""

    values: Mapping[str, tuple[Any, ...]]
    why: str = ""

    def matches(self, assignment: Mapping[str, Any]) -> bool:
        """Whether a combination (parameter name to value) is one of them."""
        return all(assignment.get(name) in values for name, values in self.values.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain data as it stands in a file."""
        listed = {name: list(values) for name, values in self.values.items()}
        return listed | ({"why": self.why} if self.why else {})


@dataclass(frozen=True)
class SweepSpec:
    """A search space, checked and with every default filled in."""

    #: Names the sweep and its folder.
    name: str
    #: In the order of RunConfig's fields, whatever the order in the file.
    parameters: tuple[Parameter, ...]
    #: The fixed part of every run: nested RunConfig fields.
    run: Mapping[str, Any]
    #: Parameters whose values train side by side in one pack.
    lanes: tuple[str, ...]
    #: What the others are held against: dotted RunConfig names to values.
    control: Mapping[str, Any]
    exclude: tuple[Exclusion, ...] = ()
    description: str = ""
    metric: Metric = field(default_factory=Metric)
    method: Literal["grid", "random"] = "grid"
    #: Seed of the random method.
    seed: int = field(default=0, metadata={"least": 0})
    early_terminate: EarlyTerminate = field(default_factory=EarlyTerminate)
    #: Most trials (lanes), controls included; None is no limit.
    run_cap: int | None = field(default=None, metadata={"least": 1})
    resources: Resources = field(default_factory=Resources)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    #: How often a pack is tried again after an error of the program; a worker that was lost is always replaced.
    max_failures: int = field(default=2, metadata={"least": 0})
    #: Attempts that fail in a row, all packs together and none coming further, that end the sweep; 0 is no limit.
    max_consecutive_failures: int = field(default=10, metadata={"least": 0})
    #: What was added to the file's own words, as sentences for whoever runs it.
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def roles(self) -> dict[str, Role]:
        """The role of each parameter."""
        return {parameter.name: parameter.role for parameter in self.parameters}

    def to_dict(self) -> dict[str, Any]:
        """Plain data: a search space file of the same meaning, with nothing left to defaults."""
        return {
            "name": self.name,
            "description": self.description,
            "metric": dataclasses.asdict(self.metric),
            "method": self.method,
            "seed": self.seed,
            "parameters": {parameter.name: parameter.to_dict() for parameter in self.parameters},
            "run": nest(flatten(self.run)),
            "lanes": list(self.lanes),
            "control": dict(self.control),
            "exclude": [rule.to_dict() for rule in self.exclude],
            "early_terminate": dataclasses.asdict(self.early_terminate),
            "run_cap": self.run_cap,
            "resources": dataclasses.asdict(self.resources),
            "wandb": dataclasses.asdict(self.wandb),
            "max_failures": self.max_failures,
            "max_consecutive_failures": self.max_consecutive_failures,
        }


#: The top-level keys of a search space file.
SPEC_KEYS: tuple[str, ...] = tuple(each.name for each in dataclasses.fields(SweepSpec) if each.name != "notes")
