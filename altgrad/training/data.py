"""Tokens to batches. A batch is a function of a lane's seed and the step alone, so resuming needs no state."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from altgrad.training.corpus import Corpus, check_length


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for the device."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


class Batches:
    """Batches of every lane, on the device."""

    def __init__(self, corpus: Corpus, seeds: Sequence[int], batch: int, block: int, device: torch.device) -> None:
        """Raises CorpusError where the corpus is shorter than a block."""
        check_length(corpus, block)
        self._train = torch.from_numpy(corpus.train).to(device)
        self._validation = torch.from_numpy(corpus.validation).to(device)
        self._seeds, self._batch, self._block = tuple(seeds), batch, block
        self._window = torch.arange(block + 1, device=device)

    def train(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, each int64 of shape ``(lanes, batch, block)``."""
        last = len(self._train) - self._block
        starts = [_generator(seed, step).integers(0, last, size=self._batch) for seed in self._seeds]
        return self._cut(self._train, torch.from_numpy(np.stack(starts)))

    def validation(self, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Evenly spaced windows, the same for every lane and at every step, so that losses can be compared in pairs."""
        last = len(self._validation) - self._block - 1
        starts = torch.linspace(0, last, batches * self._batch, dtype=torch.float64).long()
        for part in starts.view(batches, 1, self._batch):
            yield self._cut(self._validation, part.expand(len(self._seeds), -1))

    def _cut(self, ids: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        windows = ids[sent(starts, ids.device).unsqueeze(-1) + self._window].long()
        return windows[..., :-1], windows[..., 1:]


def _generator(seed: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, step]))
