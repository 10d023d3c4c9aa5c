"""SweepSpec + corpus -> the plan of a sweep: trials with stable keys, in packs, controls first."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from altgrad.training.config import RunConfig
from orchestrator.space.combinations import Assignment, Draft, config_of, drafts, excluded_cells
from orchestrator.space.reader import read_spec
from orchestrator.space.spec import SCIENTIFIC, SweepSpec, canonical_json
from orchestrator.space.yaml_source import Source

#: Raised by one whenever `Plan.to_dict` changes its form.
SCHEMA_VERSION = 1
#: Fields that no number depends on, given the corpus hash.
KEYLESS_FIELDS = frozenset({"checkpoint_interval", "corpus", "text_column"})


def trial_key(config: RunConfig, corpus_hash: str) -> str:
    """The name of a trial for all time: 16 hex digits over everything that decides its numbers.

    Equal for equal configs whatever the order or the spelling of their values, on every platform and Python version.

    Args:
        config: The resolved config.
        corpus_hash: Hash of the corpus; it stands in for the corpus's path.
    """
    resolved = RunConfig.from_dict(config.to_dict()).to_dict()
    decisive = {name: value for name, value in resolved.items() if name not in KEYLESS_FIELDS}
    return _digest({"config": decisive, "corpus": corpus_hash})[:16]


@dataclass(frozen=True)
class Trial:
    """One lane: one run of one config."""

    key: str
    config: RunConfig


@dataclass(frozen=True)
class Pack:
    """Lanes that train side by side: what is placed, retried and compared as one."""

    #: Its name: ``p`` with its place in the plan, and 8 hex digits over its lanes' keys.
    pack: str
    #: Its cell of the matrix: the scientific values as one label.
    cell: str
    scientific: dict[str, Any]
    #: Nuisance values that its lanes share.
    nuisance: dict[str, Any]
    #: Others are held against it.
    control: bool
    #: The pack it is held against; None for a control, and where ranks are held against a run's own start.
    control_pack: str | None
    lanes: tuple[Trial, ...]


@dataclass(frozen=True)
class ExcludedCell:
    """A cell of the matrix in which nothing is run."""

    cell: str
    scientific: dict[str, Any]
    #: The reason that the search space gives.
    why: str


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep is going to run, in the order in which it is started."""

    spec: SweepSpec
    #: ``corpus`` (as named), ``hash``, ``tokens``, ``vocabulary``.
    corpus: dict[str, Any]
    packs: tuple[Pack, ...]
    excluded: tuple[ExcludedCell, ...]

    @property
    def spec_hash(self) -> str:
        """16 hex digits over the space (its name and description apart) and the corpus."""
        space = {key: value for key, value in self.spec.to_dict().items() if key not in ("name", "description")}
        return _digest({"space": space, "corpus": self.corpus["hash"]})[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``plan.json``; `from_dict` takes it back."""
        space = self.spec.to_dict()
        return {
            "name": self.spec.name,
            "description": self.spec.description,
            "spec_hash": self.spec_hash,
            "schema_version": SCHEMA_VERSION,
            "corpus": dict(self.corpus),
            "metric": space["metric"],
            "roles": self.spec.roles,
            "packs": [_pack_to_dict(pack) for pack in self.packs],
            "excluded": [asdict(cell) for cell in self.excluded],
            "space": space,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """Rebuild a plan from what `to_dict` gave.

        Raises:
            ValueError: another version of the form.
            SpaceError: its space is not one.
            ConfigError: a lane's config is not one.
        """
        if values["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"plan has schema_version {values['schema_version']}, this program reads {SCHEMA_VERSION}")
        packs = tuple(
            Pack(**{**pack, "lanes": tuple(Trial(t["key"], RunConfig.from_dict(t["config"])) for t in pack["lanes"])})
            for pack in values["packs"]
        )
        excluded = tuple(ExcludedCell(**cell) for cell in values["excluded"])
        return cls(read_spec(Source("plan.json", values["space"])), dict(values["corpus"]), packs, excluded)


def make_plan(spec: SweepSpec, corpus: Mapping[str, Any]) -> Plan:
    """Lay out every trial of a search space.

    Args:
        spec: From `orchestrator.space.load_space`.
        corpus: ``corpus`` (as named), ``hash``, ``tokens``, ``vocabulary``; only the hash enters keys.

    Raises:
        ConfigError: the spec, built by hand, holds a combination that cannot be run.
    """
    packs: list[Pack] = []
    for index, draft in enumerate(drafts(spec)):
        lanes = tuple(_trial(spec, assignment, corpus["hash"]) for assignment in draft.lanes)
        name = pack_name(index, [lane.key for lane in lanes])
        # Controls stand in front, so the one that a pack is held against has its name by now.
        is_held = not draft.control and lanes[0].config.ranks.reference == "control"
        packs.append(_pack(name, draft, packs[draft.twin].pack if is_held else None, lanes))
    run = [pack.scientific for pack in packs]
    excluded = tuple(
        ExcludedCell(cell_label(scientific), scientific, why)
        for scientific, why in excluded_cells(spec)
        if scientific not in run
    )
    return Plan(spec, dict(corpus), tuple(packs), excluded)


def pack_name(index: int, keys: Sequence[str]) -> str:
    """The name of the pack at a place of the plan (from 0) that holds the trials with these keys."""
    return f"p{index:03d}-{_digest(list(keys))[:8]}"


def cell_label(scientific: Mapping[str, Any]) -> str:
    """Scientific values as one short label.

    >>> cell_label({"format": "E5M2", "optimizer": "adamw", "layers": [{"match": "lm_head", "format": "bf16"}]})
    'E5M2 adamw lm_head:bf16'
    >>> cell_label({"format": "E5M2", "model.n_layer": 4})
    'E5M2 model.n_layer=4'
    """
    labels = (_label(value) if name in SCIENTIFIC else f"{name}={_label(value)}" for name, value in scientific.items())
    return " ".join(labels) or "run"


def _label(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_label, value))
    if isinstance(value, Mapping):
        return value["match"] if value["format"] is None else f"{value['match']}:{value['format']}"
    return str(value)


def _trial(spec: SweepSpec, assignment: Assignment, corpus_hash: str) -> Trial:
    config = config_of(spec, assignment)
    return Trial(trial_key(config, corpus_hash), config)


def _pack(name: str, draft: Draft, control_pack: str | None, lanes: tuple[Trial, ...]) -> Pack:
    label = cell_label(draft.scientific)
    return Pack(name, label, draft.scientific, draft.nuisance, draft.control, control_pack, lanes)


def _pack_to_dict(pack: Pack) -> dict[str, Any]:
    lanes = [{"key": lane.key, "config": lane.config.to_dict()} for lane in pack.lanes]
    return {
        "pack": pack.pack,
        "cell": pack.cell,
        "scientific": pack.scientific,
        "nuisance": pack.nuisance,
        "control": pack.control,
        "control_pack": pack.control_pack,
        "lanes": lanes,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
