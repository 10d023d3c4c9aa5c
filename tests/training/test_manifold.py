"""What decision 0009 says of ManifoldAdamW, on the first steps of a real run."""

from collections.abc import Callable

import pytest
import torch
from manifold_steps import Followed, cosine, follow, kinds, norm_ratio, rungs_by_binade
from small_runs import small
from torch import Tensor

from altgrad.training.config import ModelConfig
from altgrad.training.corpus import Corpus

GRADIENT = ("gradient M=0", "gradient M=3", "gradient M=3, no eps")
UPDATE = "update M=3"


@pytest.fixture(scope="module")
def followed(corpus: Corpus) -> Followed:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = ModelConfig(n_layer=2, n_head=2, n_embd=64, block_size=32)
    config = small(format="E4M3", steps=60, model=model, lr=1e-3)
    (found,) = follow(config, corpus, kinds([0, 3]), at=[60])
    torch.set_num_threads(before)
    return found


def median(found: Followed, kind: str, measure: Callable[[Tensor, Tensor], float]) -> float:
    """Over the matrices, of a measure of a kind's update against AdamW's."""
    pairs = [(update, found.updates["adamw"][name]) for name, update in found.updates[kind].items()]
    return float(torch.tensor([measure(*pair) for pair in pairs]).median())


@pytest.mark.parametrize("kind", GRADIENT)
def test_preconditioning_the_gradient_is_nearly_undone(kind: str, followed: Followed) -> None:
    assert median(followed, kind, cosine) > 0.9
    assert 0.8 < median(followed, kind, norm_ratio) < 1.25


def test_preconditioning_the_update_is_another_direction(followed: Followed) -> None:
    assert median(followed, UPDATE, cosine) < 0.85


def rungs(found: Followed, kind: str) -> Tensor:
    """Median rungs moved in three binades, large weights first, over those of the first."""
    pairs = [(weight, found.updates[kind][name]) for name, weight in found.weights.items()]
    by_binade = torch.tensor([rungs_by_binade(*pair, lr=1.0)[:3] for pair in pairs]).median(0).values
    return by_binade / by_binade[0]


@pytest.mark.parametrize("kind", ["adamw", *GRADIENT])
def test_without_spacing_each_smaller_binade_moves_about_twice_as_many_rungs(kind: str, followed: Followed) -> None:
    found = rungs(followed, kind)
    step = found[1:] / found[:-1]
    assert ((step > 1.5) & (step < 2.7)).all(), found


def test_the_update_form_moves_as_many_rungs_in_every_binade(followed: Followed) -> None:
    found = rungs(followed, UPDATE)
    assert ((found > 0.75) & (found < 1.33)).all(), found
