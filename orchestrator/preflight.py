"""What a sweep will need before it is started: room on a disk, and memory on a GPU.

Both are estimates of everything that is planned, as if nothing were stopped. Their constants are measured; tests hold
them against real runs.
"""

import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from altgrad.quantization.formats import FORMAT_REGISTRY
from altgrad.training.config import RunConfig
from altgrad.training.shapes import matrix_names, parameter_shapes
from orchestrator.plan import Pack, Plan
from orchestrator.quantities import size
from orchestrator.results.journal import SweepState
from orchestrator.results.store import Store

#: Bytes of a row: a step's and a matrix's, each once in a chunk and once in the dataset.
_STEP_ROW, _LAYER_ROW = 2 * 75, 2 * 22
#: Bytes of a chunk of both tables without its rows, with its line of the journal.
_REPORT = 18_000
#: Bytes of a pack: its events, and what its files in the dataset hold beside rows.
_PACK = 30_000
#: Bytes that W&B keeps of a trial, of each of its reports (with histograms), and of a row.
_WANDB_TRIAL, _WANDB_REPORT, _WANDB_ROW = 45_000, 9_000, 1_250
#: Checkpoints of a pack at most: those kept, and the one being written.
_CHECKPOINTS = 3
#: Bytes of device memory that a process takes before it holds a tensor: CUDA's context and the libraries' workspaces.
_PROCESS = 768 * 2**20
#: What an estimate of device memory is multiplied by where a share of a GPU is chosen by it.
_MARGIN = 1.25
#: Shares of a GPU that ``gpu: auto`` chooses from.
SHARES = (0.125, 0.25, 0.5, 1.0)


class PreflightError(RuntimeError):
    """A plan that this disk or this device cannot hold."""


@dataclass(frozen=True)
class Disk:
    """Bytes that a sweep writes."""

    #: Rows as trials write them, and the dataset made from them.
    rows: int
    #: What W&B keeps on disk.
    wandb: int
    #: Checkpoints of the packs that run at once; those of a pack that has ended are deleted.
    checkpoints: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.rows + self.wandb + self.checkpoints

    def __str__(self) -> str:
        parts = {"rows": self.rows, "W&B": self.wandb, "checkpoints": self.checkpoints}
        named = ", ".join(f"{name} {size(n)}" for name, n in parts.items() if n)
        return f"about {size(self.total)} ({named})"


def packs_at_once(plan: Plan) -> int:
    """Packs that this machine runs side by side."""
    return max(1, int((os.cpu_count() or 1) / plan.spec.resources.cpu))


def disk(plan: Plan, state: SweepState | None = None, at_once: int | None = None) -> Disk:
    """What a sweep will write from where it stands.

    Args:
        plan: what is run.
        state: where it stands; None is the start.
        at_once: packs that run side by side; None is all of them.
    """
    lanes = state.lanes if state else {}
    rows = wandb = 0
    checkpoints: list[int] = []
    for pack in plan.packs:
        known = [lanes.get(lane.key) for lane in pack.lanes]
        left = [lane for lane, found in zip(pack.lanes, known, strict=True) if not found or found.status != "finished"]
        if not left:
            continue
        config = left[0].config
        done = max((found.step or 0 for found in known if found), default=0)
        steps = max(0, config.steps - done)
        of_lane = steps * (_STEP_ROW + _LAYER_ROW * len(matrix_names(config.model)))
        reports = math.ceil(steps / config.report_interval)
        rows += len(left) * of_lane + reports * _REPORT + _PACK
        wandb_rows = steps // plan.spec.wandb.interval
        wandb += len(left) * (_WANDB_TRIAL + reports * _WANDB_REPORT + wandb_rows * _WANDB_ROW)
        checkpoints.append(sum(checkpoint_size(lane.config, plan.corpus["vocabulary"]) for lane in left))
    largest = sorted(checkpoints, reverse=True)[:at_once]
    return Disk(rows, 0 if plan.spec.wandb.mode == "disabled" else wandb, _CHECKPOINTS * sum(largest))


def check_disk(plan: Plan, state: SweepState, store: Store, at_once: int | None) -> str | None:
    """Hold a sweep against the room that its folder has; one that is not local is not looked at.

    Returns:
        A warning where it is tight.

    Raises:
        PreflightError: not even half of the estimate fits.
    """
    if "://" in store.uri:
        return None
    need, free = disk(plan, state, at_once), shutil.disk_usage(nearest_folder(Path(store.uri))).free
    if need.total <= free / 2:
        return None
    found = f"the sweep writes {need}, and {store.uri} has {size(free)} left"
    way_out = "make room, choose another --storage, or plan less (fewer trials or steps, wandb.mode=disabled)"
    if need.total > 2 * free:
        raise PreflightError(f"{found}: {way_out}")
    return f"room is tight: {found}; if it runs out, {way_out}, and resume"


def nearest_folder(place: Path) -> Path:
    """The folder itself, or the one in which it would be made."""
    return next(folder for folder in (place, *place.absolute().parents) if folder.exists())


def pack_memory(configs: Sequence[RunConfig], vocabulary: int) -> int:
    """Bytes of device memory that a pack takes while it trains, at most.

    A process, and for each lane ``P * p + 4 * B * T * ((20 n + 12) C + 4 V)``. The second part are the activations of
    B * T tokens in n layers of width C, and the logits over V tokens, forward and backward; attention is taken to keep
    no matrix of T by T, as PyTorch's kernels for GPUs do. Of p bytes for each of P parameters, 12 are the weight and
    its gradient, in its stack and fresh from the backward pass; 8 are Adam's moments (4 the momentum of muon or grid);
    4 pass in the step. Codes add 16 to those and 4 for themselves and the directions of flips, and 4 more where the
    working weight stands beside a master.
    """
    return _PROCESS + sum(_lane_memory(config, vocabulary) for config in configs)


def check_memory(packs: Iterable[Pack], vocabulary: int, memory: int, share: float) -> None:
    """Refuse packs that a share of a device cannot hold.

    Args:
        packs: what is run.
        vocabulary: different tokens of the corpus.
        memory: bytes of the smallest device.
        share: of it for each pack; more than one is several devices, of which a pack uses one.

    Raises:
        PreflightError: one does not fit.
    """
    pack, need = _largest(packs, vocabulary)
    have = memory * min(share, 1.0)
    if need <= have:
        return
    way_out = "fewer lanes a pack (lanes: []), a smaller batch or model, or a larger GPU"
    if share < 1:
        way_out = f"a larger resources.gpu, or {way_out}"
    lanes = f"{len(pack.lanes)} lane{'s' if len(pack.lanes) > 1 else ''}"
    raise PreflightError(
        f"{pack.pack} ({pack.cell}, {lanes}) takes about {size(need)} of GPU memory, and resources.gpu: {share:g} of "
        f"{size(memory)} is {size(have)}: {way_out}"
    )


def automatic_share(packs: Iterable[Pack], vocabulary: int, memory: int) -> float:
    """What ``gpu: auto`` is on devices of ``memory`` bytes: the smallest of `SHARES` that holds every pack with room.

    Raises:
        PreflightError: a whole device does not hold one.
    """
    packs = list(packs)
    check_memory(packs, vocabulary, memory, 1.0)
    need = _MARGIN * _largest(packs, vocabulary)[1]
    return next((share for share in SHARES if need <= share * memory), 1.0)


def estimates(plan: Plan) -> list[str]:
    """What a whole sweep will need, a line each."""
    pack, need = _largest(plan.packs, plan.corpus["vocabulary"])
    return [f"disk: {disk(plan, None, packs_at_once(plan))}", f"GPU memory: at most {size(need)} a pack ({pack.pack})"]


def _largest(packs: Iterable[Pack], vocabulary: int) -> tuple[Pack, int]:
    """The pack that takes the most device memory, and how much."""
    sized = ((pack, pack_memory([lane.config for lane in pack.lanes], vocabulary)) for pack in packs)
    return max(sized, key=lambda found: found[1])


def _parameters(config: RunConfig, vocabulary: int) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(config.model, vocabulary).values())


def _has_codes(config: RunConfig) -> bool:
    rules = () if isinstance(config.layers, str) else config.layers
    formats = {config.format, *(rule.format for rule in rules if rule.format)}
    return "weights" in config.tensors and any(FORMAT_REGISTRY[name].bits == 8 for name in formats)


#: Bytes a parameter of what an optimizer keeps.
_MOMENTS: Mapping[str, int] = {"adamw": 8, "manifold_adamw": 8, "muon": 4, "grid": 4}


def checkpoint_size(config: RunConfig, vocabulary: int) -> int:
    """Bytes of one lane in a checkpoint; 0 where none is ever taken."""
    if not 0 < config.checkpoint_interval < config.steps:
        return 0
    codes = _has_codes(config)
    weight = 1 if codes and config.storage != "master" else 4
    return _parameters(config, vocabulary) * (weight + _MOMENTS[config.optimizer] + codes)


def _lane_memory(config: RunConfig, vocabulary: int) -> int:
    codes = _has_codes(config)
    per_parameter = 12 + _MOMENTS[config.optimizer] + (20 if codes else 4)
    per_parameter += 4 if codes and config.storage == "master" else 0
    tokens, model = config.batch_size * config.model.block_size, config.model
    activations = 4 * tokens * ((20 * model.n_layer + 12) * model.n_embd + 4 * vocabulary)
    return _parameters(config, vocabulary) * per_parameter + activations
