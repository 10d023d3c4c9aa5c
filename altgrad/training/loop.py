"""The training loop. Start reading here: `train` calls `train_step`, and that is all there is.

Shapes: L lanes, S matrices of the model, n matrices of a stack.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from altgrad.training.checkpoint import Checkpoint
from altgrad.training.config import RunConfig
from altgrad.training.corpus import Corpus, load_corpus
from altgrad.training.lane_optimizer import LaneNumbers
from altgrad.training.lanes import Lanes
from altgrad.training.metrics import Rows
from altgrad.training.move import COLUMNS, move
from altgrad.training.precision import FLOW_SHARES

#: Hears of every report: (step, rows since the last one) -> keys of lanes that end here, or None.
Report = Callable[[int, Rows], "set[str] | None"]
#: Keeps a checkpoint.
Save = Callable[[Checkpoint], None]


def train(
    configs: Sequence[RunConfig],
    report: Report,
    *,
    keys: Sequence[str] | None = None,
    corpus: Corpus | None = None,
    device: torch.device | str = "cpu",
    save: Save | None = None,
    wanted: Callable[[], bool] | None = None,
    resume: Checkpoint | None = None,
) -> None:
    """Train lanes side by side, from the start or from a checkpoint, until all are done or ended.

    Args:
        configs: one a lane; they may differ in `LANE_FIELDS` only.
        report: called every ``report_interval`` steps and at the last.
        keys: names of the lanes in rows; ``lane0``, ``lane1``, ... by default.
        corpus: read from the configs where not given.
        device: where to train.
        save: called with checkpoints, after a report.
        wanted: asked after a report whether there is to be a checkpoint though none is due.
        resume: a checkpoint to go on from.

    Raises:
        ConfigError: lanes that cannot share a program, layer rules that match nothing.
        CorpusError: the corpus cannot be read or is too short.
    """
    keys = list(keys or (f"lane{i}" for i in range(len(configs))))
    config = configs[0]
    corpus = corpus or load_corpus(config.corpus, config.tokens, config.text_column)
    by_key = dict(zip(keys, configs, strict=True))
    lanes = Lanes(keys if resume is None else resume.keys, by_key, corpus, torch.device(device))
    first = 1
    if resume is not None:
        lanes.load(resume.tensors)
        first = resume.step + 1
    for step in range(first, config.steps + 1):
        train_step(lanes, step)
        if step % config.report_interval and step != config.steps:
            continue
        rows = lanes.recorder.rows({"val_loss": evaluate(lanes)})
        ended = report(step, rows) or set()
        kept = [key for key in lanes.keys if key not in ended]
        if not kept:
            return
        if len(kept) < len(lanes.keys):
            lanes = lanes.without(ended, by_key)
        # Due where an interval has passed since the last report.
        due = config.checkpoint_interval and step % config.checkpoint_interval < config.report_interval
        if save is not None and step < config.steps and ((wanted is not None and wanted()) or due):
            save(Checkpoint(step, lanes.keys, {name: tensor.clone() for name, tensor in lanes.tensors().items()}))


def train_step(lanes: Lanes, step: int) -> None:
    """One optimizer step of every lane (``step`` counts from 1), measured into ``lanes.recorder``."""
    inputs, targets = lanes.batches.train(step)
    lanes.begin(step, training=True)
    losses = lanes.loss(lanes.weights(), inputs, targets)
    losses.sum().backward()
    with torch.no_grad():
        numbers = LaneNumbers(lanes.configs, step, lanes.device)
        norms, total = lanes.take_gradients()
        factor = (numbers.grad_clip / (total.float() + 1e-6)).clamp_max(1.0)
        columns = move(lanes.parts, lanes.programs, numbers, factor, step, lanes.config.ranks.interval)
        layers = dict(zip(COLUMNS, columns.index_select(1, lanes.order), strict=True))
        layers |= {"grad_norm": norms} | _flow_columns(lanes)
        tokens = torch.full_like(total, float(step * inputs[0].numel()))
        lanes.recorder.add(
            step, {"loss": losses.detach(), "lr": numbers.lr, "grad_norm": total, "tokens": tokens}, layers
        )


def evaluate(lanes: Lanes) -> Tensor:
    """Validation loss of each lane with quantized weights and activations, scales at rest: ``(L,)``."""
    lanes.begin(0, training=False)
    with torch.no_grad():
        batches = lanes.batches.validation(lanes.config.eval_batches)
        losses = [lanes.loss(lanes.weights(), inputs, targets) for inputs, targets in batches]
        return torch.stack(losses, dim=-1).mean(-1)


def _flow_columns(lanes: Lanes) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    for kind, flows in (("activation", lanes.activations), ("gradient", lanes.gradients)):
        shares = torch.stack([flow.shares for flow in flows], dim=1)
        columns |= zip((f"{kind}_{share}" for share in FLOW_SHARES), shares, strict=True)
    return columns
