"""What is done about failures: by kind, by what failed before, and over all packs together."""

import errno
import itertools
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweep.retries import (
    Action,
    Brake,
    Failure,
    Kind,
    PackError,
    decide,
    failure_from,
    is_told_again,
    kind_of,
    words_of,
)

KINDS: tuple[Kind, ...] = get_args(Kind)


@pytest.mark.parametrize("max_failures", [0, 1, 2])
@pytest.mark.parametrize("newest", KINDS)
def test_every_short_history_is_decided_by_its_own_kind_alone(newest: Kind, max_failures: int) -> None:
    expected: dict[Kind, list[Action]] = {
        "lost": ["retry"] * 4,
        "application": ["retry"] * max_failures + ["give_up"] * 4,
        "gpu_memory": ["give_up"] * 4,
        "host_memory": ["retry_alone"] + ["give_up"] * 4,
        "disk_full": ["end_sweep"] * 4,
    }
    for length in range(4):
        for before in itertools.product(KINDS, repeat=length):
            assert decide([*before, newest], max_failures) == expected[newest][before.count(newest)]


@given(st.lists(st.sampled_from(KINDS), max_size=30), st.integers(0, 5))
def test_a_lost_worker_is_replaced_whatever_failed_before(before: list[Kind], max_failures: int) -> None:
    assert decide([*before, "lost"], max_failures) == "retry"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("CUDA is not what failed"), "application"),
        (RuntimeError("out of memory, says somebody"), "application"),
        (OSError(errno.EACCES, "Permission denied"), "application"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"), "disk_full"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "gpu_memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might ..."), "gpu_memory"),
        (MemoryError(), "host_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "host_memory"),
    ],
    ids=str,
)
def test_what_a_worker_says_of_its_error_is_what_the_driver_hears(error: Exception, kind: Kind) -> None:
    assert kind_of(error) == kind
    text = f"Failure # 1 (occurred at x)\nray::ImplicitFunc.train() (pid=1)\n  File\n{PackError.__module__}.PackError: "
    found = failure_from(text + words_of(error) + "\n")
    assert found.kind == kind
    assert found.message == f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


LOST = """\
The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
\tpid: 13606
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits. Some common causes include: (1) the process was killed by the OOM killer due to high memory usage.
"""
NODE = """\
The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
The actor died because its node has died. Node Id: 6718ef7a1206908
\tThe actor's node was terminated unexpectedly.
"""
TASK = "\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1, ip=192.0.2.2, actor_id=a4)\n  File\n"
MEMORY = """\
1 worker(s) were killed due to the node running low on memory. Memory on the node was 1.54GB used / 23.54GB limit
OOM kill reason: Memory usage 1653559296B exceeded threshold of 505530208B
Refer to the documentation: https://docs.ray.io/
"""


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (LOST, "lost", LOST.splitlines()[-1]),
        ("The actor a1 is unavailable: no route.", "lost", "The actor a1 is unavailable: no route."),
        ("", "lost", "unknown error"),
        (MEMORY, "host_memory", MEMORY.splitlines()[0]),
        (TASK + "a.b.ConfigError: no format", "application", "ConfigError: no format"),
        (TASK + "E: its node has died\na.b.E: x", "application", "E: x"),
        (TASK + "ModuleNotFoundError: altgrad", "application", "ModuleNotFoundError: altgrad"),
        (LOST + "Failure # 2 (occurred at x)\n" + MEMORY, "host_memory", MEMORY.splitlines()[0]),
        (MEMORY + "Failure # 2 (occurred at x)\n" + LOST, "lost", LOST.splitlines()[-1]),
        (TASK + "x.PackError: gpu_memory: E: y\nFailure # 2 (occurred at x)\n" + LOST, "lost", LOST.splitlines()[-1]),
        (NODE, "lost", NODE.splitlines()[-2]),
        ("PackError: a code that nobody knows: x", "lost", "PackError: a code that nobody knows: x"),
    ],
)
def test_the_last_error_in_what_tune_wrote_down_counts(text: str, kind: Kind, message: str) -> None:
    assert failure_from(text) == (kind, message)


def errors(*texts: str) -> str:
    """Errors one after another, as Tune writes them down."""
    return "".join(f"Failure # {i} (occurred at {i})\n{text}" for i, text in enumerate(texts, start=1))


def dead(actor: str) -> str:
    return LOST.replace("\tpid", f"\tactor_id: {actor}\n\tpid")


@pytest.mark.parametrize(
    ("text", "told_again"),
    [
        (errors(dead("a1")), False),
        (errors(dead("a1"), dead("a1")), True),
        (errors(dead("a1"), dead("a1"), dead("a2")), False),
        (errors(dead("a1"), dead("a2"), dead("a1")), False),
        (errors(TASK + "E: x", TASK + "E: x"), False),
        (errors(LOST, LOST), False),
        ("", False),
    ],
)
def test_a_worker_dies_once_however_often_tune_tells_of_it(text: str, told_again: bool) -> None:
    assert is_told_again(text) == told_again


def test_a_sweep_that_only_fails_is_braked() -> None:
    brake = Brake(3)
    for pack in ("a", "b"):
        brake.started(pack)
        brake.failed(pack, Failure("application", ""))
        assert not brake.pulled
    brake.started("a")
    brake.failed("a", Failure("lost", ""))
    assert brake.pulled


def test_progress_of_any_pack_lets_the_brake_go() -> None:
    brake = Brake(2)
    brake.failed("a", Failure("application", ""))
    brake.reported("b", 10)
    brake.failed("a", Failure("application", ""))
    assert not brake.pulled
    brake.reported("b", 10)
    brake.failed("c", Failure("application", ""))
    assert brake.pulled, "a step that was reached before is no progress"


def test_a_node_that_takes_its_packs_along_counts_once() -> None:
    brake = Brake(2)
    packs = [f"p{i}" for i in range(50)]
    for pack in packs:
        brake.started(pack)
    for pack in packs:
        brake.failed(pack, Failure("lost", ""))
    assert not brake.pulled
    brake.started("p7")
    brake.failed("p7", Failure("lost", ""))
    assert brake.pulled, "an attempt that began after that and was lost too"


def test_workers_that_never_come_to_an_attempt_are_braked() -> None:
    brake = Brake(3)
    brake.failed("a", Failure("lost", ""))
    brake.failed("b", Failure("lost", ""))
    assert not brake.pulled
    brake.failed("a", Failure("lost", ""))
    assert brake.pulled


def test_a_node_that_goes_while_its_workers_start_is_not_held_against_the_sweep() -> None:
    brake = Brake(2)
    for pack in "abcd":
        brake.failed(pack, failure_from(NODE))
    assert not brake.pulled
    brake.started("a")
    brake.failed("a", failure_from(NODE))
    brake.failed("b", failure_from(LOST))
    assert brake.pulled


def test_a_node_that_takes_its_packs_along_after_a_failure_of_another_kind_adds_nothing() -> None:
    brake = Brake(2)
    for pack in ("a", "b", "c"):
        brake.started(pack)
    brake.failed("a", Failure("application", ""))
    brake.failed("b", Failure("lost", ""))
    brake.failed("c", Failure("lost", ""))
    assert not brake.pulled
    brake.started("b")
    brake.failed("b", Failure("lost", ""))
    assert brake.pulled


def test_a_pack_that_takes_its_worker_along_again_and_again_is_braked_though_it_reports() -> None:
    """It goes on from step 40, reports 50, and dies at 57, for ever."""
    brake = Brake(4)
    attempts = 0
    while not brake.pulled:
        brake.started("p")
        brake.reported("p", 50)
        brake.failed("p", Failure("lost", ""))
        attempts += 1
        assert attempts < 10
    assert attempts == 4


@given(st.lists(st.sampled_from(KINDS), max_size=50))
def test_a_limit_of_nought_never_brakes(kinds: list[Kind]) -> None:
    brake = Brake(0)
    for kind in kinds:
        brake.started("p")
        brake.failed("p", Failure(kind, ""))
        assert not brake.pulled
