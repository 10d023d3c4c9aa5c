"""`altgrad init`: a search space from a few words, written for people to read on and change."""

import json
import math
import re
import shlex
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from altgrad.quantization.formats import FORMAT_REGISTRY
from orchestrator.space import SpaceError, SweepSpec, load_space
from orchestrator.space.yaml_source import KeyPath
from orchestrator.sweep.stopping import rung_steps

#: What each optimizer is, for the comment above its name.
_OPTIMIZERS = {
    "adamw": "what everybody uses",
    "manifold_adamw": "steps measured in the grid's own spacing",
    "muon": "orthogonalised momentum, every singular value of a step alike",
    "grid": "whole rungs of the grid",
}
#: Where weights may live.
_STORAGES = {
    "master": "float32 weights, rounded for use",
    "nearest": "no masters, the weights are rounded after each step",
    "stochastic": "no masters, and rounded up or down at random",
}
#: More than these is taken for a slip of the hand.
_MOST_SEEDS, _MOST_STEPS, _MOST_LAYERS, _MOST_WIDTH = 1_000, 10**9, 1_000, 100_000
#: The flag behind a key of the file; the longest that fits counts.
_FLAGS: dict[KeyPath, str] = {
    (): "--formats, --optimizers, --storage",
    ("name",): "FILE",
    ("parameters", "format"): "--formats",
    ("parameters", "optimizer"): "--optimizers",
    ("parameters", "storage"): "--storage",
    ("parameters", "lr"): "--lr",
    ("parameters", "seed"): "--seeds",
    ("run", "steps"): "--steps",
    ("run", "model"): "--model",
    ("run", "corpus"): "--corpus",
}


class InitError(ValueError):
    """Flags of which no search space can be made."""


@dataclass(frozen=True)
class Wish:
    """What was asked for; lists are words with commas between them, as they were typed."""

    formats: str
    optimizers: str
    storage: str
    #: How often each configuration is repeated.
    seeds: int
    steps: int
    #: Peak learning rates.
    lr: str
    #: Layers and width, such as ``4x128``.
    model: str
    corpus: str


def write_space(file: Path, wish: Wish, force: bool = False) -> SweepSpec:
    """Write a search space that loads.

    Args:
        file: where; its name without the suffix names the sweep.
        wish: what to study.
        force: replace a file that is there.

    Returns:
        The space as it was understood.

    Raises:
        InitError: the file is there, or a flag says something that cannot be run; nothing is written.
        OSError: it cannot be written.
    """
    if file.exists() and not force:
        raise InitError(f"{file} is there already; name another file, or replace it with --force")
    if not file.absolute().parent.is_dir():
        raise InitError(f"there is no folder {file.parent} to write {file.name} into; make it first")
    text = space_text(file, wish)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.yaml"
        draft.write_text(text, encoding="utf-8")
        try:
            spec = load_space(draft)
        except SpaceError as error:
            raise InitError("\n".join(_explained(error))) from None
    file.write_text(text, encoding="utf-8")
    return spec


def space_text(file: Path, wish: Wish) -> str:
    """The search space as text; what its values mean is not looked at.

    Raises:
        InitError: a flag has another form than it must.
    """
    if not str(file).isprintable():
        raise InitError(f"FILE: the name has characters that cannot be shown: {str(file)!r}")
    if wish.seeds < 1:
        raise InitError(f"--seeds: at least one run of each configuration, got {wish.seeds}")
    if wish.seeds > _MOST_SEEDS:
        raise InitError(f"--seeds: at most {_MOST_SEEDS:,} runs of each configuration, got {wish.seeds:,}")
    if wish.steps > _MOST_STEPS:
        raise InitError(f"--steps: at most {_MOST_STEPS:,}, got {wish.steps:,}")
    formats, optimizers = _words("--formats", wish.formats), _words("--optimizers", wish.optimizers)
    storages, rates = _words("--storage", wish.storage), _words("--lr", wish.lr)
    if "grid" in optimizers and "nearest" not in storages:
        raise InitError("--storage: the optimizer grid keeps its weights on the grid; add nearest, or leave out grid")
    blocks = [
        _head(file, formats, optimizers),
        _parameters(formats, optimizers, storages, rates, wish.seeds),
        _rules(formats, optimizers, storages),
        _run(wish),
        _stopping(wish.steps, len(rates)),
    ]
    return "\n".join("\n".join(block) + "\n" for block in map(list, blocks) if block)


def _head(file: Path, formats: Sequence[str], optimizers: Sequence[str]) -> Iterator[str]:
    name = shlex.quote(str(file))
    which = f"{_listed(formats)} under {_listed(optimizers)}"
    yield from _comment(f"{which}: how well do they train, and where do they fail?")
    yield "#"
    yield f"# Look at it first:         altgrad plan {name}"
    yield f"# Run it:                   altgrad sweep {name}"
    yield f"# Change it on the way in:  altgrad sweep {name} steps=100"
    yield "#"
    yield "# A search space is a set of parameters. Every combination of their values is a trial that is run."
    yield "# Widened later (one more seed, another format), the same command runs only what is new."
    yield f"name: {_value(file.stem)}"
    yield f"description: {json.dumps(f'{which}, against float32.', ensure_ascii=False)}"
    yield ""
    yield "# What trials are compared by: validation loss in nats a token, the smaller the better."
    yield "metric: {name: val_loss, goal: minimize}"


def _parameters(
    formats: Sequence[str], optimizers: Sequence[str], storages: Sequence[str], rates: Sequence[str], seeds: int
) -> Iterator[str]:
    yield "# Each parameter is a field of a run (altgrad/training/config.py lists them all) and the values it takes."
    yield "parameters:"
    yield from _about_formats(formats)
    yield f"  format: {_values(formats)}"
    yield from _about(_OPTIMIZERS, optimizers)
    yield f"  optimizer: {_values(optimizers)}"
    yield from _about(_STORAGES, storages)
    yield f"  storage: {_values(storages)}"
    if len(rates) > 1:
        yield "  # The peak learning rate is not what is asked about: each cell of the matrix keeps the best of these."
    else:
        yield "  # One peak learning rate for all; list several, and each cell of the matrix keeps the best of them."
    yield f"  lr: {_values(rates, 'nuisance')}"
    if seeds < 3:
        yield "  # Runs told apart by nothing but their random numbers. From three on there are confidence intervals."
    else:
        yield "  # Runs told apart by nothing but their random numbers: from them come the confidence intervals."
    yield f"  seed: {_values([*map(str, range(1, seeds + 1))])}"
    yield ""
    yield "# The seeds of one configuration train side by side in one program, and are stopped or kept on their mean."
    yield "lanes: [seed]"
    yield ""
    yield "# What all others are held against; added where the parameters above do not have it."
    yield "control: {format: fp32, optimizer: adamw, storage: master, layers: all}"


def _about_formats(names: Sequence[str]) -> Iterator[str]:
    known = [FORMAT_REGISTRY[name] for name in names if name in FORMAT_REGISTRY]
    for each in (each for each in known if each.bits == 8):
        bits = f"{each.exponent_bits} exponent and {each.mantissa_bits} mantissa bits"
        yield f"  # {each.name}: {bits}, up to {each.max_representable_value:g}."
    if {"E0M7", "E1M6"} <= set(names):
        yield "  # E0M7 and E1M6 are the same grid up to a factor of two, so their rows must agree: a check on it all."


def _about(meanings: dict[str, str], names: Sequence[str]) -> Iterator[str]:
    if told := [f"{name}: {meanings[name]}" for name in names if name in meanings]:
        yield from _comment(f"{'. '.join(told)}.", "  ")


def _rules(formats: Sequence[str], optimizers: Sequence[str], storages: Sequence[str]) -> list[str]:
    """Combinations without a meaning, of those that the parameters have."""
    wide = [name for name in formats if name in FORMAT_REGISTRY and FORMAT_REGISTRY[name].bits != 8]
    rounded = [name for name in storages if name in ("nearest", "stochastic")]
    off_grid = [name for name in storages if name in ("master", "stochastic")]
    rules = []
    if "fp32" in formats and rounded:
        rules.append(f"{{format: fp32, storage: {_choice(rounded)}, why: float32 weights are their own masters}}")
    if "fp32" in formats and "manifold_adamw" in optimizers:
        why = "float32 has no grid that a step could feel"
        rules.append(f"{{format: fp32, optimizer: manifold_adamw, why: {why}}}")
    if "grid" in optimizers and wide:
        why = "grid moves whole rungs of an 8-bit format"
        rules.append(f"{{format: {_choice(wide)}, optimizer: grid, why: {why}}}")
    if "grid" in optimizers and off_grid:
        why = "grid keeps its weights on the grid and rounds by its own rule"
        rules.append(f"{{optimizer: grid, storage: {_choice(off_grid)}, why: {why}}}")
    if not rules:
        return []
    head = ["# Combinations that have no meaning; the matrix shows them with the reason.", "exclude:"]
    return [*head, *(f"  - {rule}" for rule in rules)]


def _run(wish: Wish) -> Iterator[str]:
    report = _report_interval(wish.steps)
    yield "# What every run has in common."
    yield "run:"
    yield f"  model: {_model(wish.model)}"
    yield "  batch_size: 8"
    yield f"  steps: {wish.steps}"
    yield f"  warmup_steps: {max(0, wish.steps) // 10}"
    yield f"  report_interval: {report}  # steps between validations; stopping is decided there"
    yield "  eval_batches: 4"
    yield f"  ranks: {{interval: {report}, warmup_steps: {2 * report}}}"
    if wish.corpus == "stdlib":
        yield "  corpus: stdlib  # the text of Python's own standard library; or a file or a folder of yours"
    else:
        yield f"  corpus: {_value(wish.corpus)}"


def _stopping(steps: int, rates: int) -> Iterator[str]:
    lost = "whose ranks collapse (held against the control), or whose weights no longer move"
    rungs = rung_steps(2 * _report_interval(steps), 2, steps) if rates > 1 else ()
    if rungs:
        at = _listed([*map(str, rungs)])
        yield from _comment(
            f"Give up early on what is losing. At steps {at} the worse half of each cell's learning rates ends. So do "
            f"trials whose loss is no number, {lost}."
        )
        yield f"early_terminate: {{type: asha, scope: cell, min_iter: {rungs[0]}, eta: 2}}"
    else:
        yield from _comment(f"Trials end early whose loss is no number, {lost}.")
        yield "early_terminate: {type: none}"
    yield ""
    yield "resources: {cpu: 1, gpu: auto}  # of each pack"


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 120, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _report_interval(steps: int) -> int:
    return max(1, math.ceil(steps / 10))


def _model(text: str) -> str:
    """Layers and width as the keys of a model; heads of 32 channels, and of 64 in wide ones."""
    found = re.fullmatch(r"([1-9]\d{0,99})x([1-9]\d{0,99})", text, re.ASCII)
    if found is None:
        raise InitError(f"--model: expected LAYERSxWIDTH, such as 4x128, got {text!r}")
    layers, width = map(int, found.groups())
    if layers > _MOST_LAYERS or width > _MOST_WIDTH:
        raise InitError(f"--model: at most {_MOST_LAYERS:,} layers and a width of {_MOST_WIDTH:,}, got {text!r}")
    most = max(1, width // (64 if width >= 384 else 32))
    heads = next(heads for heads in range(most, 0, -1) if width % heads == 0)
    return f"{{n_layer: {layers}, n_head: {heads}, n_embd: {width}, block_size: 64}}"


def _words(flag: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words) or not text.isprintable():
        raise InitError(f"{flag}: expected words with commas between them, got {text!r}")
    return words


def _values(words: Sequence[str], role: str | None = None) -> str:
    return f"{{values: [{', '.join(map(_value, words))}]{f', role: {role}' if role else ''}}}"


def _choice(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"[{', '.join(words)}]"


def _value(word: str) -> str:
    """A word as YAML has it: numbers and names as they are, anything else in quotes."""
    return word if re.fullmatch(r"[\w.+-]*\w", word, re.ASCII) else json.dumps(word, ensure_ascii=False)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _explained(error: SpaceError) -> Iterator[str]:
    """Its problems under the names of the flags: the file that they are in is never written."""
    for problem in error.problems:
        key = max((key for key in _FLAGS if problem.path[: len(key)] == key), key=len)
        yield f"{_FLAGS[key]}: {problem.message}"
