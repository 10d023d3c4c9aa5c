"""Muon against singular value decompositions, torch's own, and AdamW where it leaves parameters to it."""

import pytest
import torch
from small_runs import assert_same_rows, lane_rows, run, small
from torch import Tensor

from altgrad.training.config import RunConfig
from altgrad.training.corpus import Corpus
from altgrad.training.lane_optimizer import LaneNumbers, schedule
from altgrad.training.lanes import Lanes
from altgrad.training.muon import orthogonalize
from altgrad.training.optimizer import AdamW, Muon

SHAPES = [(8, 8), (16, 48), (48, 16), (1, 5), (64, 2)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestOrthogonalize:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_keeps_singular_vectors_and_evens_out_singular_values(self, shape: tuple[int, int]) -> None:
        left, right = (torch.linalg.qr(random(size, min(shape), seed=size))[0] for size in shape)
        values = torch.logspace(0, -1.5, min(shape))
        turned = left.T @ orthogonalize(left @ torch.diag(values) @ right.T) @ right
        evened = turned.diagonal()
        assert ((evened > 0.5) & (evened < 1.3)).all()
        torch.testing.assert_close(turned, torch.diag(evened), rtol=0, atol=1e-4)

    def test_knows_no_scale_and_no_side(self) -> None:
        x = random(6, 20)
        torch.testing.assert_close(orthogonalize(x * 2.0**-40), orthogonalize(x * 2.0**-10))
        torch.testing.assert_close(orthogonalize(x.mT), orthogonalize(x).mT)

    def test_treats_each_matrix_of_a_batch_by_itself(self) -> None:
        batch = random(5, 3, 16, 32)
        batch[1, 1], batch[2, 0] = 0.0, torch.nan
        result = orthogonalize(batch)
        for i in range(5):
            for j in range(3):
                assert torch.equal(result[i, j].nan_to_num(9), orthogonalize(batch[i, j]).nan_to_num(9))
        assert (result[1, 1] == 0).all()
        assert result[2, 0].isnan().all()


class TestPublicClass:
    @pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
    def test_moves_matrices_as_torchs_does(self, shape: tuple[int, int]) -> None:
        """torch orthogonalizes in bfloat16, which is good to a few per cent of a step."""
        ours, theirs = (random(*shape).requires_grad_() for _ in range(2))
        optimizer = Muon([ours], lr=0.02, weight_decay=0.1, momentum=0.9)
        settings = {"weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
        reference = torch.optim.Muon([theirs], lr=0.02, **settings)
        for step in range(20):
            ours.grad = random(*shape, seed=step)
            theirs.grad = ours.grad.clone()
            before = ours.detach().clone()
            optimizer.step()
            reference.step()
            moved, expected = ours.detach() - before, theirs.detach() - before
            assert (moved - expected).norm() < 0.03 * expected.norm()
            with torch.no_grad():
                theirs.copy_(ours)

    def test_leaves_vectors_and_embeddings_to_adamw(self) -> None:
        settings = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.3}
        make = lambda: [random(7).requires_grad_(), random(9, 4).requires_grad_()]  # noqa: E731
        ours, theirs = make(), make()
        optimizer = Muon([{"params": ours[:1]}, {"params": ours[1:], "orthogonal": False}], **settings)
        reference = AdamW(theirs, **settings)
        for step in range(5):
            for a, b in zip(ours, theirs, strict=True):
                a.grad = random(*a.shape, seed=step)
                b.grad = a.grad.clone()
            optimizer.step()
            reference.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def test_goes_on_from_its_state(self) -> None:
        def stepped(optimizer: Muon, weight: Tensor, steps: range) -> None:
            for step in steps:
                weight.grad = random(*weight.shape, seed=step)
                optimizer.step()

        whole, parts = (random(6, 8).requires_grad_() for _ in range(2))
        stepped(Muon([whole]), whole, range(6))
        first = Muon([parts])
        stepped(first, parts, range(3))
        second = Muon([parts])
        second.load_state_dict(first.state_dict())
        stepped(second, parts, range(3, 6))
        assert torch.equal(whole, parts)


def one_lane(corpus: Corpus, **changes: object) -> Lanes:
    return Lanes(["a"], {"a": small(optimizer="muon", **changes)}, corpus, torch.device("cpu"))


class TestLaneTrainer:
    def follow(self, lanes: Lanes, name: str, **group: object) -> tuple[Tensor, Tensor]:
        """Ten steps of one parameter in the trainer and in the public class."""
        config: RunConfig = lanes.configs[0]
        part = next(part for part in lanes.parts if name in part.stack.names)
        theirs = part.stack.stored[0, 0].clone().requires_grad_()
        decay = config.weight_decay if theirs.dim() == 2 else 0.0
        settings = {"betas": (config.beta1, config.beta2), "eps": config.eps, "weight_decay": decay}
        public = Muon([{"params": [theirs], **group}], config.lr, momentum=config.muon_momentum, **settings)
        for step in range(1, 11):
            part.stack.gradient.normal_(generator=torch.Generator().manual_seed(step))
            theirs.grad = part.stack.gradient[0, 0].clone()
            part.optimizer.step(part.stack, part.stack.gradient, LaneNumbers(lanes.configs, step, lanes.device))
            public.param_groups[0]["lr"] = config.lr * schedule(config, step)
            public.step()
        return part.stack.stored[0, 0], theirs.detach()

    @pytest.mark.parametrize("name", ["h.0.attn.c_proj", "h.1.mlp.c_fc", "h.0.ln_1"])
    def test_is_the_public_one(self, name: str, corpus: Corpus) -> None:
        ours, theirs = self.follow(one_lane(corpus, muon_momentum=0.8), name)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", ["wte", "wpe", "lm_head"])
    def test_embeddings_and_head_are_adamws(self, name: str, corpus: Corpus) -> None:
        model = {"model": small().model.__class__(n_layer=1, n_head=2, n_embd=32, block_size=32, tied_head=False)}
        lanes = one_lane(corpus, **model)
        ours, theirs = self.follow(lanes, name, orthogonal=False)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
        # wpe is as large as attn.c_proj here, and stands in a stack of its own all the same.
        assert all(len({n in ("wte", "wpe", "lm_head") for n in part.stack.names}) == 1 for part in lanes.parts)

    @pytest.mark.parametrize("storage", ["master", "nearest", "stochastic"])
    def test_learns_in_every_storage(self, storage: str, corpus: Corpus) -> None:
        rows = lane_rows(run([small(optimizer="muon", storage=storage, lr=1e-2)], corpus), "lane0")
        assert rows["steps/loss"][-5:].mean() < rows["steps/loss"][:5].mean() - 0.5

    def test_e0m7_and_e1m6_train_alike(self, corpus: Corpus) -> None:
        rows = run([small(optimizer="muon", storage="stochastic", format=name) for name in ("E0M7", "E1M6")], corpus)
        assert_same_rows(lane_rows(rows, "lane0"), lane_rows(rows, "lane1"), but=("key", "format", "scale"))
