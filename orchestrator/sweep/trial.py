"""What runs on a worker: one pack of lanes, from its plan to its rows. The only file that reports to Ray Tune."""

import contextlib
import dataclasses
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import tune

from altgrad.training.checkpoint import Checkpoint
from altgrad.training.config import CorpusError, RunConfig
from altgrad.training.corpus import Corpus
from altgrad.training.loop import train
from altgrad.training.metrics import Rows
from orchestrator.corpus import corpus_of
from orchestrator.results.holes import first_missing
from orchestrator.results.journal import Journal, SweepState, load_plan
from orchestrator.results.store import ChunkWriter, Store, next_attempt
from orchestrator.sweep.checkpoint_folders import ASKED
from orchestrator.sweep.checkpoints import Latest, latest_checkpoint, save_checkpoint
from orchestrator.sweep.control import ControlRanks
from orchestrator.sweep.decided import DecidedBefore, decided_before
from orchestrator.sweep.halving import nuisance_setting
from orchestrator.sweep.pack_rules import PackRules
from orchestrator.sweep.retries import PackError, words_of
from orchestrator.sweep.stopping import Decision, LanePolicy
from orchestrator.sweep.tracking import Tracker
from orchestrator.sweep.verdicts import LaneJudge, Verdict, event_columns, lane_rows


def run_pack(config: Mapping[str, Any]) -> None:
    """Train one pack of a sweep: the trainable of Ray Tune.

    Args:
        config: ``pack`` (its id), ``store`` (URI of the run's folder), ``threads`` (of PyTorch), ``device``,
            ``wandb`` (mode), ``wandb_folder``, ``wandb_interval``.

    Raises:
        PackError: the pack could not be trained. The whole traceback is in the attempt's ``error.txt``.
    """
    torch.set_num_threads(config["threads"])
    store = Store.open(config["store"])
    attempt = next_attempt(store, config["pack"])
    try:
        _train_pack(config, store, attempt)
    except Exception as error:
        # Where the disk is full there is no room to say so.
        with contextlib.suppress(OSError):
            store.write_bytes(f"packs/{config['pack']}/attempt-{attempt}/error.txt", traceback.format_exc().encode())
        raise PackError(words_of(error)) from error


def _train_pack(config: Mapping[str, Any], store: Store, attempt: int) -> None:
    plan = load_plan(store)
    pack = next(pack for pack in plan["packs"] if pack["pack"] == config["pack"])
    lanes = {lane["key"]: RunConfig.from_dict(lane["config"]) for lane in pack["lanes"]}
    corpus = _checked_corpus(next(iter(lanes.values())), plan["corpus"])
    known = SweepState.from_records(plan, Journal(store).read()).lanes
    # Rows that a damaged chunk held are measured again: nothing that comes after them may be the beginning.
    found = latest_checkpoint(store, pack["pack"], before=first_missing(store, pack["pack"], known))
    decided = decided_before([known[key] for key in lanes])
    wandb = plan["space"]["wandb"]
    tracker = Tracker(
        config["wandb"],
        Path(config["wandb_folder"]),
        wandb["project"],
        wandb["entity"],
        plan["name"],
        config["wandb_interval"],
    )
    try:
        run = PackRun(store, plan, pack, attempt, lanes, tracker, found, decided)
        train(
            list(lanes.values()),
            run.report,
            keys=list(lanes),
            corpus=corpus,
            device=config["device"],
            save=run.save,
            wanted=run.checkpoint_wanted,
            resume=found.checkpoint,
        )
    finally:
        tracker.close()


def _checked_corpus(config: RunConfig, planned: Mapping[str, Any]) -> Corpus:
    # The plan has the path as it was seen from where the sweep was planned; this process may stand elsewhere.
    config = dataclasses.replace(config, corpus=planned["corpus"])
    corpus = corpus_of(config)
    if corpus.hash != planned["hash"]:
        raise CorpusError(
            f"the corpus {config.corpus!r} of this machine has hash {corpus.hash[:12]}, the plan has "
            f"{planned['hash'][:12]}: every node must see the same text (for 'stdlib', the same Python)"
        )
    return corpus


class PackRun:
    """What listens to the loop: keeps every row, judges every lane, and tells Ray Tune the few numbers it needs."""

    def __init__(
        self,
        store: Store,
        plan: Mapping[str, Any],
        pack: Mapping[str, Any],
        attempt: int,
        lanes: Mapping[str, RunConfig],
        tracker: Tracker,
        found: Latest,
        decided: DecidedBefore | None = None,
    ) -> None:
        """``decided``: how every lane ended, where a pack that was finished trains again."""
        self._store, self._pack, self._lanes, self._tracker = store, pack["pack"], lanes, tracker
        self._attempt = attempt
        self._writer = ChunkWriter(store, self._pack, attempt)
        #: What is wrong with the checkpoints that were passed over, by folder.
        self._damaged = found.damaged
        resume = found.checkpoint
        self._metric = plan["metric"]["name"]
        self._started = time.monotonic()
        #: Steps done before this attempt.
        self._done = resume.step if resume else 0
        #: Ends of lanes and audits, as records: those that the checkpoint remembers, for a journal that lost them, and
        #: later ones.
        self._ended: list[dict[str, Any]] = list(resume.extra.get("ended", ())) if resume else []
        #: The driver asked for a checkpoint: from then on every report has one.
        self._asked = False
        audited = [end["key"] for end in self._ended if end.get("audited")]
        self._rules = decided or PackRules(plan, pack, lanes, self._done, audited)
        rules = plan["space"]["early_terminate"]
        policy = LanePolicy(**{field.name: rules[field.name] for field in dataclasses.fields(LanePolicy)})
        control = _control(store, plan, pack)
        #: The lanes still alive.
        self._judges = {
            key: LaneJudge(config, policy, partial(control.at, nuisance_setting(plan, config)) if control else None)
            for key, config in lanes.items()
            if resume is None or key in resume.keys
        }
        for key, judge in self._judges.items():
            if resume is not None:
                judge.restore(resume.extra["judges"][key])
            tracker.start(key, f"{pack['cell']} seed={lanes[key].seed}", lanes[key].to_dict(), tags=[pack["cell"]])

    def report(self, step: int, rows: Rows) -> set[str]:
        """Keep the rows, judge the lanes, report; the keys of lanes that end here."""
        verdicts = {key: judge.judge(step, *lane_rows(rows, key)) for key, judge in self._judges.items()}
        values = {key: getattr(verdict.report, self._metric) for key, verdict in verdicts.items()}
        decisions = self._rules.decide(step, {key: verdict.decision for key, verdict in verdicts.items()}, values)
        ended = {key: decision for key, decision in decisions.items() if not decision.audited}
        self._ended += [_end_record(key, decision) for key, decision in decisions.items() if decision.audited]
        self._judges = {key: judge for key, judge in self._judges.items() if key not in ended}
        for key, verdict in verdicts.items():
            self._keep_events(key, verdict._replace(decision=decisions.get(key)))
        # Rows of steps come last: where they are, everything of the report is.
        self._writer.append("layers", rows.layers)
        self._writer.append("steps", rows.steps)
        self._tracker.log(rows.steps, rows.layers)
        ends = [_end_record(key, decision) for key, decision in ended.items()]
        if step == next(iter(self._lanes.values())).steps:
            ends += [_completed_record(key, step) for key in self._judges]
        for end in ends:
            of = verdicts[end["key"]].report
            self._tracker.finish(end["key"], end["reason"], {"step": step, "loss": of.loss, "val_loss": of.val_loss})
        self._ended += ends
        tune.report(self._result(step, verdicts))
        return set(ended)

    def _result(self, step: int, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
        """What Ray Tune and the driver hear of a report; a key named ``done`` would mean something to Tune."""
        result: dict[str, Any] = {
            "step": step,
            "resumed_at": self._done,
            "attempt": self._attempt,
            "seconds": time.monotonic() - self._started,
            "lanes": len(self._judges),
            "warnings": sum(len(check.warnings) for v in verdicts.values() for check in v.report.rank_checks),
            "alive": list(self._judges),
            "ended": list(self._ended),
            "damaged": [{"checkpoint": folder, "message": why} for folder, why in self._damaged.items()],
        }
        mean = self._rules.mean({key: getattr(verdicts[key].report, self._metric) for key in self._judges})
        if mean is not None:
            result[self._metric] = mean
        elif self._rules.judged:
            result["lost"] = True
        return result

    def checkpoint_wanted(self) -> bool:
        """Whether the driver asks for a checkpoint, because it is about to leave."""
        self._asked = self._asked or self._store.exists(ASKED)
        return self._asked

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, with the judges' memory in it, and how the lanes that are not in it ended."""
        extra = {"judges": {key: judge.state() for key, judge in self._judges.items()}, "ended": list(self._ended)}
        whole = dataclasses.replace(checkpoint, extra=extra)
        save_checkpoint(self._store, self._pack, self._attempt, whole, self._damaged)
        if self._asked:
            tune.report({"saved": checkpoint.step})

    def _keep_events(self, key: str, verdict: Verdict) -> None:
        events = event_columns(key, verdict, datetime.now(UTC).replace(tzinfo=None))
        self._writer.append("events", events)
        for kind, matrix, message in zip(events["kind"], events["matrix"], events["message"], strict=True):
            self._tracker.alert(key, kind, f"{kind} {matrix or ''}".strip(), message)


def _control(store: Store, plan: Mapping[str, Any], pack: Mapping[str, Any]) -> ControlRanks | None:
    """The ranks that a pack is held against; None for a control, and where runs are held against their own start."""
    for other in plan["packs"]:
        if other["pack"] == pack["control_pack"]:
            configs = {lane["key"]: RunConfig.from_dict(lane["config"]) for lane in other["lanes"]}
            settings = {key: nuisance_setting(plan, config) for key, config in configs.items()}
            return ControlRanks(store, other["pack"], settings)
    return None


def _end_record(key: str, decision: Decision) -> dict[str, Any]:
    return {"key": key, **dataclasses.asdict(decision)}


def _completed_record(key: str, step: int) -> dict[str, Any]:
    return {"key": key, "reason": "completed", "step": step, "message": f"all {step} steps"}
