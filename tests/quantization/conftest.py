"""What compiled programs need in order to be tested as such."""

from collections.abc import Iterator

import pytest
import torch

from altgrad.quantization import fused


@pytest.fixture(scope="module")
def honest_compilation() -> Iterator[None]:
    """Programs of this module alone, and an error where PyTorch would quietly run one eagerly instead."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()


@pytest.fixture
def compiler() -> None:
    """Skips where there is none: programs that run eagerly are no test of compiled ones."""
    engine = fused.engine("cpu")
    if engine.name == "eager":
        pytest.skip(f"kernels run eagerly here: {engine.reason}")
