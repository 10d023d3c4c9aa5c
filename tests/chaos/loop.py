"""Fault after fault, with everything checked after each: what a run goes through, and what must be left of it."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.terminal import ENVIRONMENT
from tests.chaos.faults import AT_REST, Disk, kill_a_worker
from tests.chaos.invariants import Kept, broken_at_the_end, broken_on_the_way
from tests.chaos.two_nodes import Nodes
from tests.sweeps import PATIENCE, altgrad, environment

SPACE = Path(__file__).parent / "space.yaml"
#: Reports of an undisturbed run of the space: two packs of 24.
REPORTS = 48
#: Faults of a sweep that runs, by name.
LIVE = ("worker", "driver", "node", "disk")
FAULTS = (*LIVE, *AT_REST)
#: Of a fault that found nothing to hit.
TOO_LATE = "it came too late"
#: Where a command did not come to an end.
NO_CODE = 999
_MEGABYTES = 64


@dataclass(frozen=True)
class Cycle:
    """One fault, and what came of it."""

    number: int
    fault: str
    #: What was done, in words.
    done: str
    #: Exit code of the command that ran meanwhile or afterwards.
    code: int
    #: The run has ended; the next cycle begins another.
    ended: bool
    seconds: float
    #: What does not hold, as sentences.
    broken: tuple[str, ...]

    def __str__(self) -> str:
        state = "ended" if self.ended else "goes on"
        said = f"cycle {self.number:3}  {self.fault:<10} {self.done}; exit {self.code}, {state}, {self.seconds:.0f} s"
        return "\n".join([said, *(f"    BROKEN: {why}" for why in self.broken)])


@dataclass(frozen=True)
class Launch:
    """How the command is run in a cycle."""

    #: On the two nodes; otherwise with a Ray of its own.
    on_cluster: bool
    #: Where the fault was one of files: SIGTERM comes before the end.
    stopped: bool
    #: When the fault comes, as a share of the reports that are still to come.
    moment: float


class Chaos:
    """A run in a folder, made anew whenever the last has ended, and the faults that it is put through.

    A seed decides which fault comes, after how many reports, and what it hits; the machine decides the exact moment.
    """

    def __init__(self, folder: Path, seed: int, nodes: Nodes, faults: Collection[str] = FAULTS) -> None:
        """Run the space undisturbed first, to know what is right. ``faults``: those to draw from."""
        self._folder, self._seed, self._nodes, self._faults = folder, seed, nodes, faults
        self._disks = Disk.is_possible(folder / "trial-disk")
        self._disk: Disk | None = None
        self._runs = self._cycles = 0
        done = altgrad("sweep", SPACE, "--storage", folder, "--name", "undisturbed", cwd=folder, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        self._undisturbed = Kept.read(folder / "undisturbed")
        self._run: Path | None = None
        self._ended = False

    @property
    def without(self) -> tuple[str, ...]:
        """Faults that this machine does not permit."""
        return () if self._disks else ("disk",)

    def cycles(self, faults: Sequence[str | None]) -> Iterator[Cycle]:
        """One cycle for each fault; where None stands, one is drawn of those that are possible then."""
        try:
            for fault in faults:
                yield self._cycle(fault)
        finally:
            self._leave()

    def _cycle(self, fault: str | None) -> Cycle:
        began = time.monotonic()
        self._cycles += 1
        # Each cycle has its own, so that what one draws does not depend on how many files another had to choose from.
        chance = random.Random(f"{self._seed} {self._cycles}")
        launch = Launch(chance.random() < 0.7, chance.random() < 0.6, chance.random())
        fault = fault or chance.choice(self._possible())
        # Only a run that began on a small disk can fill it, and a run that has ended can only lose what it has.
        if (fault == "disk" and self._disk is None) or (self._ended and fault != "chunk"):
            self._leave()
        if self._run is None:
            self._begin(on_a_disk=fault == "disk")
        assert self._run is not None
        done = AT_REST[fault](self._run, chance) if fault in AT_REST else None
        try:
            code, met, said = self._launch(fault, launch, chance)
        except (subprocess.TimeoutExpired, TimeoutError) as error:
            code, met, said = NO_CODE, str(error), ""
        self._ended = code == 0
        check = broken_at_the_end if self._ended else broken_on_the_way
        broken = [*check(Kept.read(self._run), self._undisturbed), *_unseemly(fault, code, said)]
        cycle = Cycle(
            self._cycles,
            fault,
            "; ".join(filter(None, [done, met])) or TOO_LATE,
            code,
            self._ended,
            time.monotonic() - began,
            tuple(broken),
        )
        if broken:
            shutil.copytree(self._run, self._folder / f"broken-{self._cycles}", symlinks=True)
            self._leave()
        return cycle

    def _possible(self) -> list[str]:
        possible = [*LIVE]
        if self._run is not None:
            possible += ["chunk"] if self._ended else AT_REST
        return [fault for fault in possible if fault in self._faults and (fault != "disk" or self._disks)]

    def _begin(self, on_a_disk: bool) -> None:
        self._runs += 1
        storage = self._folder / f"storage-{self._runs}"
        if on_a_disk:
            self._disk = Disk(storage, _MEGABYTES)
        self._run = storage / "chaos"

    def _leave(self) -> None:
        """Put the run away."""
        if self._run is not None:
            if self._disk is not None:
                self._disk.drop()
            shutil.rmtree(self._run.parent, ignore_errors=True)
        self._run, self._disk, self._ended = None, None, False

    def _launch(self, fault: str, launch: "Launch", chance: random.Random) -> tuple[int, str, str]:
        """Start or resume the run, let the fault meet it, and wait for its end.

        Returns:
            The exit code, what was done meanwhile, and what the command said.
        """
        assert self._run is not None
        on_cluster = fault == "node" or launch.on_cluster
        words = ["sweep", str(SPACE), "--storage", str(self._run.parent), "--name", self._run.name]
        words += ["--address", self._nodes.address] if on_cluster else []
        before = _reports(self._run)
        moment = before + 1 + int(launch.moment * max(REPORTS - 6 - before, 0))
        with (self._folder / "said.txt").open("w+") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", *words],
                cwd=self._folder,
                env=environment(self._folder),
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            try:
                met = self._meet(process, fault, moment, on_cluster, launch.stopped, chance)
                code = process.wait(PATIENCE)
            finally:
                process.kill()
                process.wait()
                self._restore(fault)
            said.seek(0)
            return code, met, said.read()

    def _meet(
        self,
        process: subprocess.Popen,
        fault: str,
        moment: int,
        on_cluster: bool,
        stopped: bool,
        chance: random.Random,
    ) -> str:
        """Wait for the moment and do what is to be done then; says what it was, nothing where the run was over."""
        where = "on two nodes" if on_cluster else "on one machine"
        if fault in AT_REST and not stopped:
            return f"resumed {where}"
        if not self._wait(process, moment):
            return ""
        met = self._strike(fault, process, self._nodes.pid if on_cluster else process.pid, chance)
        return f"{met} {where} after {moment} reports" if met else ""

    def _strike(self, fault: str, process: subprocess.Popen, ancestor: int, chance: random.Random) -> str | None:
        match fault:
            case "worker":
                return kill_a_worker(ancestor, chance)
            case "driver":
                process.kill()
                return "SIGKILL"
            case "node":
                self._nodes.lose_second()
                return "SIGKILL to all of the second node"
            case "disk":
                assert self._disk is not None
                self._disk.fill()
                return "disk full"
            case _:
                process.terminate()
                return "SIGTERM"

    def _wait(self, process: subprocess.Popen, moment: int) -> bool:
        """Whether the run came to its ``moment``-th report before it ended."""
        assert self._run is not None
        deadline = time.monotonic() + PATIENCE
        while _reports(self._run) < moment:
            if process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {moment}-th report within {PATIENCE} s")
            time.sleep(0.01)
        return True

    def _restore(self, fault: str) -> None:
        if fault == "node":
            self._nodes.add_second()
        if self._disk is not None:
            self._disk.free()


def _reports(run: Path) -> int:
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b'"event":"reported"') if journal.exists() else 0


def _unseemly(fault: str, code: int, said: str) -> Iterator[str]:
    """What a command must not do, whatever meets it."""
    codes = {"driver": -signal.SIGKILL, "disk": ENVIRONMENT} | dict.fromkeys(AT_REST, 128 + signal.SIGTERM)
    fitting = {0, codes.get(fault, 0)}
    if code not in fitting:
        yield f"exit code {code}, not one of {sorted(fitting)}"
    if "Traceback" in said:
        yield "a traceback was printed"
    if code not in fitting or "Traceback" in said:
        yield f"it said: {said[-3000:]}"
