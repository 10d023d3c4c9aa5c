"""One frozen description of a run, and the only door through which a dict becomes one."""

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from altgrad.quantization.formats import FORMAT_REGISTRY

LAYER_PRESETS: tuple[str, ...] = ("all", "attention", "mlp", "no_head", "head")
OPTIMIZER_NAMES: tuple[str, ...] = ("adamw", "manifold_adamw", "muon", "grid")


class Problem(NamedTuple):
    """One thing wrong with a configuration."""

    #: Where: the keys from the outermost in, list positions as numbers.
    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.message}" if self.path else self.message


class ConfigError(ValueError):
    """A configuration that cannot be run; carries every problem found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[Problem]]]:
        """By its problems and not by its message, so that it arrives whole from another process."""
        return ConfigError, (self.problems,)


class CorpusError(ValueError):
    """A corpus that cannot be read or is too small."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the GPT; the defaults are nanoGPT's CPU setting."""

    n_layer: int = 4
    n_head: int = 4
    #: Width of the residual stream; a multiple of ``n_head``.
    n_embd: int = 128
    #: Tokens a sequence.
    block_size: int = 64
    #: Biases in linear layers and layer norms.
    bias: bool = False
    #: The output head shares the token embedding's weights.
    tied_head: bool = True


@dataclass(frozen=True)
class LayerRule:
    """Matrices whose name matches get this format; the first rule that matches wins."""

    #: Shell pattern over matrix names, such as ``*.attn.*``; a tied head answers to ``lm_head`` and ``wte``.
    match: str
    #: A format's name; None is the run's own format.
    format: str | None = None


@dataclass(frozen=True)
class RankConfig:
    """When a falling effective rank is a warning, and when it ends the run."""

    #: Steps between whole spectra.
    interval: int = 100
    #: No check is made before this step.
    warmup_steps: int = 100
    #: Smoothing of the watched value, 1 is none.
    alpha: float = 0.5
    #: Share of the reference that may be lost before a warning.
    warn_threshold: float = 0.3
    #: Matrices (parts of names) that warn earlier.
    critical_layers: tuple[str, ...] = ("lm_head", "c_proj")
    #: The threshold of critical matrices, as a share of ``warn_threshold``.
    critical_multiplier: float = 0.5
    #: What a rank is held against: the sweep's float32 control at the same step, or the run's own start.
    reference: Literal["control", "initial"] = "control"


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers. Two runs with equal configs and corpora have equal rows on a CPU."""

    #: Number format of the quantized tensors.
    format: str = "E4M3"
    optimizer: Literal["adamw", "manifold_adamw", "muon", "grid"] = "adamw"
    #: Where quantized weights live: float32 masters, or on the grid after rounding each step.
    storage: Literal["master", "nearest", "stochastic"] = "master"
    #: Which matrices are quantized: a preset, or rules of which the first match wins.
    layers: str | tuple[LayerRule, ...] = "all"
    #: Which tensors of those matrices are quantized.
    tensors: tuple[str, ...] = ("weights", "activations")
    #: Format of gradients where ``tensors`` names them; matrices in a wide format have theirs in the same.
    gradient_format: str = "E5M2"
    #: How a tensor is fitted to its format's range.
    scaling: Literal["power_of_two", "amax", "none"] = "power_of_two"
    #: Steps whose largest magnitude sets the scale.
    amax_history: int = 16

    seed: int = 1337
    #: Peak learning rate.
    lr: float = 1e-3
    #: The cosine ends at this share of ``lr``.
    min_lr_ratio: float = 0.1
    #: Steps of linear warm-up.
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    #: Applied to matrices only.
    weight_decay: float = 0.1
    #: Largest global gradient norm; 0 clips nothing.
    grad_clip: float = 1.0
    #: ManifoldAdamW: what the grid's spacing multiplies.
    precondition: Literal["gradient", "update"] = "gradient"
    #: ManifoldAdamW with ``precondition: update``: peak rungs a step of quantized matrices (``lr`` moves the rest).
    rung_lr: float = 0.1
    #: Muon: decay of the momentum of matrices other than the embeddings and the head.
    muon_momentum: float = 0.95
    #: GridOptim: rungs a unit of velocity.
    grid_scale: float = 6.0
    grid_momentum: float = 0.9
    #: GridOptim: most rungs a weight moves in a step.
    rung_clip: int = 10

    steps: int = 2000
    batch_size: int = 12
    #: Steps between reports: validation, the flush of rows, decisions.
    report_interval: int = 100
    #: Validation batches a report.
    eval_batches: int = 20
    #: Steps between checkpoints (taken at reports); 0 takes none.
    checkpoint_interval: int = 500

    #: How two quantized operands are multiplied: as bf16 numbers where the machine can, which is exact, or as float32.
    products: Literal["bf16", "float32"] = "bf16"
    #: Compile the step: last bits may differ from eager. ``auto`` does, on CPUs, where a run is long enough.
    compile: Literal["auto", "always", "never"] = "auto"

    #: ``stdlib``, a text file, a folder of text, a ``.bin`` of uint16 tokens, or a ``.parquet``/``.jsonl`` file.
    corpus: str = "stdlib"
    tokens: Literal["byte", "char"] = "byte"
    #: Column of a Parquet or JSONL corpus.
    text_column: str = "text"

    model: ModelConfig = field(default_factory=ModelConfig)
    ranks: RankConfig = field(default_factory=RankConfig)

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise ConfigError(problems)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Build a config from plain data, strictly.

        Raises:
            ConfigError: unknown keys (with the nearest right one), wrong types, impossible values: all of them at once.
        """
        problems: list[Problem] = []
        arguments = _arguments(cls, values, (), problems)
        malformed = {problem.path[0] for problem in problems if problem.path}
        try:
            config = cls(**{key: value for key, value in arguments.items() if key not in malformed})
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem.path[0] not in malformed]
        if problems:
            raise ConfigError(problems)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` takes back."""
        return typing.cast(dict[str, Any], _plain(dataclasses.asdict(self)))


#: Fields in which the lanes of one program may differ; all others decide its shape or its schedule.
LANE_FIELDS: frozenset[str] = frozenset(
    {"format", "storage", "layers", "gradient_format", "seed", "lr", "min_lr_ratio", "beta1", "beta2", "eps"}
    | {"weight_decay", "grad_clip", "rung_lr", "muon_momentum", "grid_scale", "grid_momentum", "rung_clip"}
)


def nearest_name(name: str, names: typing.Iterable[str]) -> str:
    """A hint naming the closest of ``names``, or all of them where none is close."""
    known = [str(known) for known in names]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    close = close or [known_name for known_name in known if known_name.lower() == name.lower()]
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def _problems(c: RunConfig) -> typing.Iterator[Problem]:
    """What the types alone do not say."""
    for key in ("format", "gradient_format"):
        if getattr(c, key) not in FORMAT_REGISTRY:
            yield Problem(
                (key,), f"unknown format {getattr(c, key)!r}; {nearest_name(getattr(c, key), FORMAT_REGISTRY)}"
            )
    if isinstance(c.layers, str):
        if c.layers not in LAYER_PRESETS:
            yield Problem(("layers",), f"unknown preset {c.layers!r}; {nearest_name(c.layers, LAYER_PRESETS)}")
    else:
        if not c.layers:
            yield Problem(("layers",), "an empty list of rules; name a preset or at least one {match, format}")
        for i, rule in enumerate(c.layers):
            if rule.format is not None and rule.format not in FORMAT_REGISTRY:
                hint = nearest_name(rule.format, FORMAT_REGISTRY)
                yield Problem(("layers", i, "format"), f"unknown format {rule.format!r}; {hint}")
    if not c.tensors:
        yield Problem(("tensors",), "an empty list quantizes nothing; that is format fp32")
    for name in c.tensors:
        if name not in ("weights", "activations", "gradients"):
            hint = nearest_name(name, ("weights", "activations", "gradients"))
            yield Problem(("tensors",), f"unknown tensor kind {name!r}; {hint}")
    if c.format == "fp32" and c.storage != "master":
        yield Problem(("storage",), f"{c.storage!r} has no meaning for fp32: float32 weights are their own masters")
    if c.storage != "master" and c.tensors and "weights" not in c.tensors:
        yield Problem(("storage",), f"{c.storage!r} has no meaning where weights are not quantized")
    if c.optimizer == "grid":
        if c.storage != "nearest":
            yield Problem(
                ("storage",), f"grid keeps weights on the grid by nature: storage must be 'nearest', got {c.storage!r}"
            )
        if c.format in FORMAT_REGISTRY and FORMAT_REGISTRY[c.format].bits != 8:
            yield Problem(("optimizer",), f"grid moves whole rungs of an 8-bit format, got {c.format!r}")
        if "weights" not in c.tensors:
            yield Problem(("tensors",), "grid needs quantized weights")
    if c.model.n_head > 0 and c.model.n_embd % c.model.n_head:
        yield Problem(("model", "n_head"), f"{c.model.n_head} heads do not divide a width of {c.model.n_embd}")
    yield from _out_of_range(c)


def _out_of_range(c: RunConfig) -> typing.Iterator[Problem]:
    whole = {"amax_history": 1, "steps": 1, "batch_size": 1, "report_interval": 1, "eval_batches": 1, "rung_clip": 1}
    whole |= {"warmup_steps": 0, "checkpoint_interval": 0, "seed": 0}
    for key, least in whole.items():
        if getattr(c, key) < least:
            yield Problem((key,), f"must be at least {least}, got {getattr(c, key)}")
    if c.seed >= 1 << 63:
        yield Problem(("seed",), f"must be below 2**63, got {c.seed}")
    for key in ("n_layer", "n_head", "n_embd", "block_size"):
        if getattr(c.model, key) < 1:
            yield Problem(("model", key), f"must be at least 1, got {getattr(c.model, key)}")
    if c.ranks.interval < 1:
        yield Problem(("ranks", "interval"), f"must be at least 1, got {c.ranks.interval}")
    for key in ("lr", "eps", "rung_lr", "grid_scale"):
        if not getattr(c, key) > 0:
            yield Problem((key,), f"must be above zero, got {getattr(c, key)}")
    for key in ("weight_decay", "grad_clip"):
        if not getattr(c, key) >= 0:
            yield Problem((key,), f"must not be negative, got {getattr(c, key)}")
    for key in ("beta1", "beta2", "muon_momentum", "grid_momentum"):
        if not 0 <= getattr(c, key) < 1:
            yield Problem((key,), f"must lie in [0, 1), got {getattr(c, key)}")
    if not 0 <= c.min_lr_ratio <= 1:
        yield Problem(("min_lr_ratio",), f"must lie in [0, 1], got {c.min_lr_ratio}")
    for key in ("alpha", "warn_threshold", "critical_multiplier"):
        if not 0 < getattr(c.ranks, key) <= 1:
            yield Problem(("ranks", key), f"must lie in (0, 1], got {getattr(c.ranks, key)}")


def _arguments(cls: type, values: Any, path: tuple[str | int, ...], problems: list[Problem]) -> dict[str, Any]:
    """Constructor arguments of a dataclass from plain data; what is wrong goes to ``problems``."""
    if not isinstance(values, Mapping):
        problems.append(Problem(path, f"expected keys and values, got {_shown(values)}"))
        return {}
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if key in hints:
            arguments[key] = _coerced(hints[key], value, (*path, key), problems)
        else:
            problems.append(Problem((*path, key), f"unknown key; {nearest_name(str(key), hints)}"))
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    problems.extend(Problem((*path, key), "is missing") for key in sorted(required - set(values)))
    return arguments


def _coerced(hint: Any, value: Any, path: tuple[str | int, ...], problems: list[Problem]) -> Any:
    """``value`` as the type ``hint`` says; anything that would have to be guessed is a problem."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            problems.append(Problem(path, f"unknown value {_shown(value)}; {nearest_name(str(value), choices)}"))
        return value
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if type(None) in options and value is None:
            return None
        is_list = isinstance(value, (list, tuple))
        fitting = [o for o in options if o is not type(None) and (typing.get_origin(o) is tuple) == is_list]
        return _coerced((fitting or options)[0], value, path, problems)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            problems.append(Problem(path, f"expected a list, got {_shown(value)}"))
            return ()
        return tuple(_coerced(typing.get_args(hint)[0], item, (*path, i), problems) for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        before = len(problems)
        arguments = _arguments(hint, value, path, problems)
        return hint(**arguments) if len(problems) == before else None
    return _scalar(hint, value, path, problems)


def _scalar(hint: type, value: Any, path: tuple[str | int, ...], problems: list[Problem]) -> Any:
    if hint is float and type(value) in (int, float):
        number = float(value) if abs(value) <= sys.float_info.max else math.inf
        if not math.isfinite(number):
            problems.append(Problem(path, f"must be a finite number, got {value}"))
        return number
    if type(value) is not hint:
        expected = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[hint]
        problems.append(Problem(path, f"expected {expected}, got {_shown(value)}"))
    return value


def _shown(value: Any) -> str:
    kind = {bool: "true or false", int: "number", float: "number", str: "text"}.get(type(value), type(value).__name__)
    return f"{value!r} ({kind})"


def _plain(value: Any) -> Any:
    """Tuples become lists, so that plain data survives JSON and YAML unchanged."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
