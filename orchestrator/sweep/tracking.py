"""Weights & Biases, fed by the same rows that go to Parquet, from inside the trial's process.

W&B is a window onto a sweep and never its record, so its trouble is never the trial's: see `Tracker`.
"""

import contextlib
import logging
import math
import netrc as netrc_file
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

logger = logging.getLogger(__name__)

Column = Sequence[Any] | np.ndarray

#: What may be asked for; ``auto`` is decided by `choose_mode`.
REQUESTS: tuple[str, ...] = ("auto", "online", "offline", "disabled")
#: Columns of ``layers`` shown as histograms over a lane's matrices.
HISTOGRAMS: tuple[str, ...] = ("flips", "stall_ratio", "stable_rank", "effective_rank")
#: Kinds of events that raise an alert, and how loud.
ALERTS: Mapping[str, str] = {"rank_warning": "WARN", "diverged": "ERROR"}

#: W&B's own names (and older aliases) for its modes.
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
#: Says whose row it is; everything else in ``steps`` is a measurement.
_IDENTITY = frozenset({"key", "pack", "attempt", "step"})
#: Longest tag, and longest title of an alert, that W&B takes.
_LONGEST = 63
#: Off: everything that W&B measures, prints or looks up by itself. It records what this program already keeps, and an
#: init takes 6 ms without it, 35 ms with it. The timeouts bound how long a W&B that does not answer holds a trial up;
#: what was not uploaded stays in the folder for ``wandb sync``.
_SETTINGS: Mapping[str, Any] = {
    "silent": True,
    "console": "off",
    "symlink": False,
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "label_disable": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_disable_viewer": True,
    "x_save_requirements": False,
    "x_log_level": logging.ERROR,
    "init_timeout": 20.0,
    "finish_timeout": 60.0,
}


def choose_mode(requested: str, environ: Mapping[str, str], netrc: Path | None = None) -> str:
    """Decide W&B's mode before W&B is asked: an offline start after a failed online one hangs (wandb #9865).

    Args:
        requested: One of `REQUESTS`. Anything but ``auto`` is taken at its word.
        environ: The environment. ``WANDB_MODE`` wins over ``auto``; ``WANDB_BASE_URL`` names another server.
        netrc: File with the key that ``wandb login`` stored; None is the one that W&B would read.

    Returns:
        ``online``, ``offline`` or ``disabled``. ``auto`` is online exactly where a key for the server is at hand.

    Raises:
        ValueError: ``requested`` or ``WANDB_MODE`` is no known mode.
    """
    if requested not in REQUESTS:
        raise ValueError(f"unknown W&B mode {requested!r}; one of {', '.join(REQUESTS)}")
    if requested != "auto":
        return requested
    if forced := environ.get("WANDB_MODE"):
        if forced not in _MODES:
            raise ValueError(f"unknown WANDB_MODE {forced!r} in the environment; one of {', '.join(_MODES)}")
        return _MODES[forced]
    host = urlsplit(environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    netrc = netrc or Path(environ.get("NETRC") or "~/.netrc").expanduser()
    return "online" if environ.get("WANDB_API_KEY") or _has_login(netrc, host) else "offline"


class Tracker:
    """One W&B run for each lane of a pack, several of them live at once in one process.

    No method raises on W&B's account. After the first trouble a warning is logged once and the tracker stays quiet
    to its end; the trial and its Parquet rows are not touched by it. In mode ``disabled`` nothing happens at all, and
    wandb is not imported.

    A run's id is made of the sweep's name and the lane's key. So a lane that is retried goes on in its own run when
    W&B is online; offline, each attempt leaves a folder of its own for ``wandb sync``.

    Args:
        mode: What `choose_mode` returned.
        folder: Everything that W&B writes goes under it: ``wandb/`` for the runs, ``wandb/cache/`` for the rest.
        project: W&B project; None leaves it to W&B's own settings.
        entity: W&B user or team; None likewise.
        group: The sweep's name.
        interval: Steps from one row of a run to the next. W&B takes about a millisecond of CPU a row, which for many
            lanes is more than a step.
    """

    def __init__(
        self, mode: str, folder: Path, project: str | None, entity: str | None, group: str, interval: int
    ) -> None:
        self._mode = mode
        self._folder = folder.absolute()
        self._project = project
        self._entity = entity
        self._group = group
        self._interval = interval
        self._quiet = mode == "disabled"
        self._runs: dict[str, Any] = {}
        self._alerted: set[tuple[str, str, str]] = set()

    def start(self, key: str, name: str, config: Mapping[str, Any], tags: Sequence[str] = ()) -> None:
        """Open the run of one lane.

        Args:
            key: The lane's key; names the run in every other call.
            name: What a person reads in the list of runs.
            config: The lane's resolved config, as plain data. It is stored in the run's files: no secrets.
            tags: Labels to filter by; cut at 63 characters.
        """
        if self._quiet:
            return
        with self._contained("start a run"):
            self._keep_inside()
            self._runs[key] = run = _wandb().init(
                mode=self._mode,
                dir=str(self._folder),
                project=self._project,
                entity=self._entity,
                group=self._group,
                id=f"{self._group}-{key}",
                name=name,
                config=dict(config),
                tags=[tag[:_LONGEST] for tag in tags if tag],
                reinit="create_new",
                resume="allow" if self._mode == "online" else None,
                settings=dict(_SETTINGS),
            )
            run.define_metric("step", hidden=True)
            run.define_metric("*", step_metric="step")

    def log(self, steps: Mapping[str, Column], layers: Mapping[str, Column]) -> None:
        """Send a batch of rows: every scalar, and one histogram over matrices for each of `HISTOGRAMS`.

        Sent are the steps that the interval divides, the last one, and those that have a histogram.

        Args:
            steps: Columns of the ``steps`` table (lists or arrays of one length), lanes mixed. NaN and None are
                undefined and left out; so is text. Rows of lanes without a live run are skipped.
            layers: Columns of the ``layers`` table. A histogram is taken at the last step of the batch at which its
                column is defined, and joins that step's row.
        """
        if self._quiet:
            return
        with self._contained("log"):
            histogram = _wandb().Histogram
            rows = _scalars(steps)
            for key, run in self._runs.items():
                history = rows.get(key, {})
                last = max(history, default=None)
                sent = {step for step in history if step % self._interval == 0 or step == last}
                for step, column, values in _last_values(key, layers):
                    history.setdefault(step, {"step": step})[f"matrices/{column}"] = histogram(values)
                    sent.add(step)
                for step in sorted(sent):
                    run.log(history[step])

    def alert(self, key: str, kind: str, title: str, text: str) -> None:
        """Raise an alert on a lane's run, at most once for each title; kinds not in `ALERTS` raise none.

        Args:
            key: The lane's key.
            kind: Kind of the event row.
            title: What happened and where. It names the matrix, so that a matrix warns once in a run; cut at 63
                characters.
            text: The event's sentence.
        """
        if self._quiet or kind not in ALERTS or key not in self._runs or (key, kind, title) in self._alerted:
            return
        self._alerted.add((key, kind, title))
        with self._contained("raise an alert"):
            self._runs[key].alert(title=title[:_LONGEST], text=text, level=ALERTS[kind])

    def finish(self, key: str, reason: str, summary: Mapping[str, Any]) -> None:
        """Close a lane's run. Only the reason ``failed`` marks it failed in W&B: any other end is a result.

        Args:
            key: The lane's key; a lane without a live run is no error.
            reason: How it ended, one of ``END_REASONS``.
            summary: Last numbers, by name; undefined ones are left out.
        """
        if self._quiet or key not in self._runs:
            return
        run = self._runs.pop(key)
        with self._contained("finish a run"):
            run.summary.update({name: value for name, value in summary.items() if not _undefined(value)})
            run.summary.update({"reason": reason})
            run.finish(exit_code=int(reason == "failed"))

    def close(self) -> None:
        """Close what is still open: lanes that end from outside (stopped, interrupted) and so without a reason here."""
        while self._runs and not self._quiet:
            _, run = self._runs.popitem()
            with self._contained("close a run"):
                run.finish(exit_code=0)

    def _keep_inside(self) -> None:
        """Make the folder, and tell wandb to write nowhere else.

        W&B answers an unwritable folder by moving to the temporary directory; that is refused here.
        """
        cache = self._folder / "wandb" / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(self._folder, os.R_OK | os.W_OK):
            raise PermissionError(f"{self._folder} cannot be written")
        # wandb and the process that it starts take these from the environment only.
        os.environ |= {f"WANDB_{name}_DIR": str(cache) for name in ("CACHE", "DATA", "ARTIFACT")}
        os.environ |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}

    @contextlib.contextmanager
    def _contained(self, doing: str) -> Iterator[None]:
        """Turn W&B's trouble into one warning and silence.

        wandb raises its own errors, those of the operating system, of pydantic, of protobuf, and several plain
        ``Exception`` classes of its service connection (closed mailbox, abandoned handle, failed attach) that share
        no base class. So this one place catches them all. A trial being stopped (``SystemExit``) passes through.
        """
        try:
            yield
        except Exception as trouble:  # noqa: BLE001
            self._quiet = True
            self._runs.clear()
            why = f"{type(trouble).__name__}: {trouble}"
            logger.warning("W&B could not %s and is left out from here on: %s", doing, why)


def _wandb() -> Any:
    """The wandb module, imported on first use only: that takes a few tenths of a second."""
    import wandb

    return wandb


def _has_login(path: Path, host: str) -> bool:
    """True if the netrc file holds a password for the host; an unreadable or broken file holds none."""
    try:
        _, _, password = netrc_file.netrc(str(path)).hosts.get(host, ("", "", ""))
    except (OSError, netrc_file.NetrcParseError):
        return False
    return bool(password)


def _undefined(value: Any) -> bool:
    return value is None or (isinstance(value, numbers.Real) and math.isnan(value))


def _scalars(steps: Mapping[str, Column]) -> dict[str, dict[int, dict[str, Any]]]:
    """Rows by lane and step, each with the numbers that are defined."""
    columns = {name: np.asarray(values).tolist() for name, values in steps.items()}
    measured = [(name, values) for name, values in columns.items() if name not in _IDENTITY]
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for i, (key, step) in enumerate(zip(columns.get("key", ()), columns.get("step", ()), strict=True)):
        row = rows.setdefault(key, {}).setdefault(step, {"step": step})
        for name, values in measured:
            if isinstance(values[i], numbers.Real) and not _undefined(values[i]):
                row[name] = values[i]
    return rows


def _last_values(key: str, layers: Mapping[str, Column]) -> Iterator[tuple[int, str, np.ndarray]]:
    """Step, column and finite values over matrices, at the last step where a lane's column has any."""
    mine = np.asarray(layers.get("key", ())) == key
    if not mine.any():
        return
    steps = np.asarray(layers["step"])[mine]
    for column in HISTOGRAMS:
        if column in layers:
            values = np.asarray(layers[column], dtype=float)[mine]
            defined = np.isfinite(values)
            if defined.any():
                last = steps[defined].max()
                yield int(last), column, values[defined & (steps == last)]
