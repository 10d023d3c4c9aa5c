"""The one list of columns: Arrow schemas of the four tables, each column with its meaning.

Undefined is null. Shares lie in [0, 1]. Times are UTC without zone.
"""

import pyarrow as pa

from orchestrator.results.versions import SCHEMA_VERSION, VERSION_KEY

_STRING, _BOOL, _INT, _FLOAT = pa.string(), pa.bool_(), pa.int64(), pa.float32()
_TIME = pa.timestamp("ms")

_KEY = [
    ("key", _STRING, "The trial (lane): a hash of its resolved config and its corpus."),
    ("pack", _STRING, "The pack of lanes it trained in."),
    ("attempt", _INT, "Which attempt of the pack wrote the row, from 1."),
    ("step", _INT, "Optimizer steps done when the row was measured, from 1."),
]

_DISCRETE = [
    ("updates", _INT, "Elements of quantized matrices with |gradient| > 1e-10 after clipping."),
    ("flips", _INT, "Elements whose code changed over the optimizer step, under the scale frozen before it."),
    ("stall_ratio", _FLOAT, "1 - |flip and update| / |update|; 0 where nothing was updated."),
    ("rescale_flips", _INT, "Elements whose code changed because the scale did."),
    (
        "oscillations",
        _INT,
        "Flips that reverse the element's last flip (arXiv 2203.11086); rescale flips do not count as last.",
    ),
    ("rung_distance", _FLOAT, "Mean absolute rungs moved by the elements that flipped; null where none did."),
    ("weight_saturated", _FLOAT, "Share of quantized weights that lie on the last rung."),
    (
        "weight_underflowed",
        _FLOAT,
        "Share of all weights that were not zero and became zero by rounding, under the old scale.",
    ),
    ("activation_saturated", _FLOAT, "Share of the activations entering the matrix that lie on the last rung."),
    ("activation_underflowed", _FLOAT, "Share of all these activations that became zero by rounding."),
    ("gradient_saturated", _FLOAT, "Share of the gradients leaving the matrix, where quantized, on the last rung."),
    ("gradient_underflowed", _FLOAT, "Share of all these gradients that became zero by rounding."),
]

_STEPS = [
    *_KEY,
    ("loss", _FLOAT, "Training loss of the step's batch, nats a token."),
    ("val_loss", _FLOAT, "Validation loss, nats a token; at reports only."),
    ("lr", _FLOAT, "Learning rate of the step."),
    ("grad_norm", _FLOAT, "Global gradient norm before clipping."),
    ("tokens", _INT, "Tokens trained on so far."),
    *_DISCRETE,
    ("stable_rank_mean", _FLOAT, "Mean stable rank over matrices (subspace iteration)."),
    ("stable_rank_min", _FLOAT, "Smallest stable rank over matrices (subspace iteration)."),
    ("effective_rank_mean", _FLOAT, "Mean effective rank over matrices; at rank checks only."),
    ("effective_rank_min", _FLOAT, "Smallest effective rank over matrices; at rank checks only."),
]

_LAYERS = [
    *_KEY,
    ("matrix", _STRING, "Name of the matrix."),
    ("format", _STRING, "Its number format."),
    ("elements", _INT, "Its number of elements."),
    ("scale", _FLOAT, "Scale of its weights during the step."),
    ("grad_norm", _FLOAT, "Norm of its gradient before clipping."),
    *_DISCRETE,
    ("stable_rank", _FLOAT, "||W||_F^2 / ||W||_2^2 of the stored weights by subspace iteration (arXiv 1906.04659)."),
    ("exact_stable_rank", _FLOAT, "The same from the whole spectrum; at rank checks only."),
    ("effective_rank", _FLOAT, "exp(entropy of the singular values), Roy and Vetterli 2007; at rank checks only."),
    ("spectral_norm", _FLOAT, "Largest singular value; at rank checks only."),
    ("quantized_stable_rank", _FLOAT, "Exact stable rank of the quantized weights; at rank checks only."),
    ("quantized_effective_rank", _FLOAT, "Effective rank of the quantized weights; at rank checks only."),
    ("quantized_spectral_norm", _FLOAT, "Largest singular value of the quantized weights; at rank checks only."),
]

_EVENTS = [
    *_KEY,
    ("time", _TIME, "When it was decided."),
    ("kind", _STRING, "rank_warning, audited, or the reason a lane ended: see EVENT_KINDS."),
    ("matrix", _STRING, "The matrix concerned, if one is."),
    ("value", _FLOAT, "The number the decision was made on."),
    ("reference", _FLOAT, "What it was held against: the control's rank, the rung's cutoff, the limit."),
    ("threshold", _FLOAT, "How far apart the two may be."),
    ("message", _STRING, "The same as a sentence."),
]

_TRIALS = [
    ("key", _STRING, "The trial (lane): a hash of its resolved config and its corpus."),
    ("pack", _STRING, "The pack of lanes it trained in."),
    ("cell", _STRING, "Its scientific parameters as one label: the cell of the matrix it belongs to."),
    ("control", _BOOL, "It belongs to the control that others are held against."),
    ("format", _STRING, "Number format."),
    ("optimizer", _STRING, "Optimizer."),
    ("storage", _STRING, "Where quantized weights live: master, nearest or stochastic."),
    ("layers", _STRING, "Layer preset, or the rules as JSON."),
    ("lr", pa.float64(), "Peak learning rate."),
    ("seed", _INT, "Seed."),
    ("config", _STRING, "The whole resolved config as JSON."),
    ("status", _STRING, "planned, running, finished or failed."),
    ("reason", _STRING, "Why it ended: see END_REASONS; null while it has not."),
    ("audited", _STRING, "Why it would have been stopped, had the audit not let it run on; null elsewhere."),
    ("audited_step", _INT, "At which step that was."),
    ("step", _INT, "Last step with a row."),
    ("steps_planned", _INT, "Steps it was to run."),
    ("loss", _FLOAT, "Training loss at the last step."),
    ("val_loss", _FLOAT, "Last validation loss."),
    ("best_val_loss", _FLOAT, "Smallest validation loss."),
    ("attempts", _INT, "Attempts its pack took."),
    ("seconds", _FLOAT, "Seconds its pack trained, all attempts together."),
    ("error", _STRING, "What went wrong, where it failed."),
]

#: How a trial can end. ``completed`` ran all its steps; ``failed`` is a fault of the program or the machine.
END_REASONS: tuple[str, ...] = ("completed", "asha", "rank_collapse", "stalled", "diverged", "failed")
#: Those of them that cut a trial short, as they are told: what needs somebody first, what is routine last.
TOLD_FIRST: tuple[str, ...] = ("failed", "diverged", "rank_collapse", "stalled", "asha")
#: Kinds of event rows. ``audited``: a trial was to be stopped, and runs on to measure what stopping costs.
EVENT_KINDS: tuple[str, ...] = ("rank_warning", "audited", *END_REASONS)


def _schema(columns: list[tuple[str, pa.DataType, str]]) -> pa.Schema:
    fields = [pa.field(name, kind, metadata={"doc": doc}) for name, kind, doc in columns]
    return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION)})


#: Schema of each table of the dataset, by name.
SCHEMAS: dict[str, pa.Schema] = {
    "trials": _schema(_TRIALS),
    "steps": _schema(_STEPS),
    "layers": _schema(_LAYERS),
    "events": _schema(_EVENTS),
}
#: Tables that trials write while they run; ``trials`` itself is made from the plan and the journal.
CHUNK_TABLES: tuple[str, ...] = ("steps", "layers", "events")
