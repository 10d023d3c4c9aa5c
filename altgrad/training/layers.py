"""Which matrix gets which format."""

import fnmatch
from collections.abc import Sequence

from altgrad.quantization.formats import FORMAT_REGISTRY, FP8Format
from altgrad.training.config import ConfigError, LayerRule, Problem, RunConfig
from altgrad.training.shapes import aliases, matrix_names

_PRESETS: dict[str, tuple[LayerRule, ...]] = {
    "all": (LayerRule("*"),),
    "attention": (LayerRule("*.attn.*"),),
    "mlp": (LayerRule("*.mlp.*"),),
    "no_head": (LayerRule("lm_head", "fp32"), LayerRule("*")),
    "head": (LayerRule("lm_head"),),
}


def layer_formats(config: RunConfig) -> dict[str, FP8Format]:
    """The format of every matrix; float32 where no rule matches.

    Raises:
        ConfigError: a rule matches no matrix, which would train something unquantized by a typo.
    """
    rules = _PRESETS[config.layers] if isinstance(config.layers, str) else config.layers
    names = {name: aliases(config.model, name) for name in matrix_names(config.model)}
    problems = [
        Problem(("layers", i, "match"), f"{rule.match!r} matches no matrix; there are {', '.join(names)}")
        for i, rule in enumerate(rules)
        if not any(_matches(rule, known) for known in names.values())
    ]
    if problems:
        raise ConfigError(problems)

    def format_of(known: Sequence[str]) -> FP8Format:
        for rule in rules:
            if _matches(rule, known):
                return FORMAT_REGISTRY[rule.format or config.format]
        return FORMAT_REGISTRY["fp32"]

    return {name: format_of(known) for name, known in names.items()}


def _matches(rule: LayerRule, names: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, rule.match) for name in names)
