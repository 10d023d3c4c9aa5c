"""Ctrl-C and SIGTERM: at once, or in order where somebody sees to it; the second one always at once."""

import signal
from pathlib import Path
from unittest.mock import Mock

import pytest

from orchestrator import attended
from orchestrator.results.store import Store
from orchestrator.signals import caught_signals

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_interrupts_and_is_remembered(number: signal.Signals) -> None:
    with caught_signals() as caught:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert caught.signal is number


@pytest.mark.parametrize("second", BOTH)
@pytest.mark.parametrize("first", BOTH)
def test_where_somebody_sees_to_it_only_the_second_interrupts(first: signal.Signals, second: signal.Signals) -> None:
    with caught_signals() as caught, caught.patience():
        signal.raise_signal(first)
        assert caught.signal is first
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
        assert caught.signal is first


def test_patience_ends() -> None:
    with caught_signals() as caught:
        with caught.patience():
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_whoever_answered_before_does_so_afterwards_and_a_listener_in_between_is_replaced() -> None:
    before = [signal.getsignal(number) for number in BOTH]
    with caught_signals() as caught:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        caught.listen()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in BOTH] == before


@pytest.mark.parametrize("number", BOTH)
def test_a_sweep_listens_before_it_completes_its_journal(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attended, "missing_records", lambda *_: signal.raise_signal(number))
    assert attended.run_attended(Mock(), Store.open(str(tmp_path)), Mock(), None) == 128 + number
    assert "interrupted; go on with: altgrad resume" in capsys.readouterr().err
