"""Addresses that no sweep can use are refused in words, before anything is asked of them."""

import pytest

from orchestrator.sweep.address import check_address


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_a_sweep_is_not_run_from_outside_the_cluster(address: str) -> None:
    with pytest.raises(ValueError, match="give host:port or auto there, or send the command with ray job submit"):
        check_address(address)


@pytest.mark.parametrize("address", ["", "local", "nonsense", ":6379", "head:", "head:port", "head 1:6379", "::1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="no address; give host:port, or auto"):
        check_address(address)
