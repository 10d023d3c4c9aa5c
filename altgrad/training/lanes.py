"""The state of a program: every lane's weights, codes, moments and observers.

Shapes: L lanes, S matrices of the model, n matrices of a stack.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from altgrad.quantization.formats import FORMAT_REGISTRY, FP8Format
from altgrad.training.compiling import compiled, is_compiled
from altgrad.training.config import LANE_FIELDS, ConfigError, Problem, RunConfig
from altgrad.training.corpus import Corpus
from altgrad.training.data import Batches
from altgrad.training.layers import layer_formats
from altgrad.training.metrics import Recorder
from altgrad.training.model import cross_entropy, forward, initial_parameters
from altgrad.training.move import EAGER, compiled_programs
from altgrad.training.part import Part, by_name
from altgrad.training.precision import Flow
from altgrad.training.products import Product, has_bf16_products, is_exact_in_bf16, product_of
from altgrad.training.shapes import EMBEDDINGS
from altgrad.training.weights import Stack

Formats = dict[str, tuple[FP8Format, ...]]
#: Formats of what flows, one row a matrix, in a row one a lane.
Flowing = list[Sequence[FP8Format]]

#: An activation is read twice, for its scale and under it: without this a GELU is computed twice. Measured on CPUs.
_KEPT = {"realize_reads_threshold": 0}


class Lanes:
    """All lanes of a program, ready for a step."""

    def __init__(
        self, keys: Sequence[str], by_key: Mapping[str, RunConfig], corpus: Corpus, device: torch.device
    ) -> None:
        """Lanes as at step 0.

        Raises:
            ConfigError: the lanes cannot share a program, or a layer rule matches nothing.
            CorpusError: the corpus is too short.
        """
        self.keys = tuple(keys)
        self.configs = [by_key[key] for key in keys]
        #: What all lanes share.
        self.config = self.configs[0]
        _check_shared(self.configs)
        self.corpus, self.device = corpus, device
        seeds = [config.seed for config in self.configs]
        self.batches = Batches(corpus, seeds, self.config.batch_size, self.config.model.block_size, device)
        by_lane = [layer_formats(config) for config in self.configs]
        formats: Formats = {name: tuple(lane[name] for lane in by_lane) for name in by_lane[0]}
        #: The matrices in the order of the model.
        self.matrices = tuple(formats)
        self.parts = self._parts(formats, initial_parameters(self.config.model, corpus.vocabulary, seeds))
        #: What flows into each matrix, and the gradients that flow back out of it, in the order of the model.
        entering, leaving = self._flowing(formats)
        self.activations = [Flow(flowing, self.config, device) for flowing in entering]
        self.gradients = [Flow(flowing, self.config, device) for flowing in leaving]
        #: How each matrix multiplies, in the order of the model.
        self.products = self._products(formats, entering, leaving)
        self.recorder = self._recorder(formats)
        self.loss, self.programs = self._loss, EAGER
        if is_compiled(self.config, device):
            self.loss, self.programs = compiled(self._loss, **_KEPT), compiled_programs()

    def _parts(self, formats: Formats, values: Mapping[str, Tensor]) -> list[Part]:
        """Parameters of one shape, with the same formats and the same optimizer, make one part."""
        members: dict[tuple, list[str]] = {}
        for name, value in values.items():
            members.setdefault((value.shape, formats.get(name), name in EMBEDDINGS), []).append(name)
        place = {name: i for i, name in enumerate(self.matrices)}
        return [
            Part(
                Stack(names, values, self.device),
                formats.get(names[0], ()),
                [place[name] for name in names if name in place],
                self.configs,
            )
            for names in members.values()
        ]

    def _flowing(self, formats: Formats) -> tuple[Flowing, Flowing]:
        """Formats of activations and gradients, one row a matrix; nothing flows through the position embeddings."""
        full = (FORMAT_REGISTRY["fp32"],) * len(self.configs)
        entering: Flowing = [full if name == "wpe" else lanes for name, lanes in formats.items()]
        leaving: Flowing = [
            [FORMAT_REGISTRY[c.gradient_format] if f.bits == 8 else f for f, c in zip(lanes, self.configs, strict=True)]
            for lanes in entering
        ]
        kinds = self.config.tensors
        nothing: Flowing = [full] * len(formats)
        return entering if "activations" in kinds else nothing, leaving if "gradients" in kinds else nothing

    def _products(self, formats: Formats, entering: Flowing, leaving: Flowing) -> list[Product]:
        use_bf16 = self.config.products == "bf16" and has_bf16_products(self.device.type)

        def exact(lanes: Sequence[FP8Format]) -> list[bool]:
            return [use_bf16 and is_exact_in_bf16(f, self.config) for f in lanes]

        full = (FORMAT_REGISTRY["fp32"],) * len(self.configs)
        weights = list(formats.values()) if "weights" in self.config.tensors else [full] * len(formats)
        return [product_of(*map(exact, row)) for row in zip(entering, weights, leaving, strict=True)]

    def _recorder(self, formats: Formats) -> Recorder:
        stacked = [name for part in self.parts if part.ranks for name in part.stack.names]
        sizes = {name: float(part.stack.stored[0, 0].numel()) for part in self.parts for name in part.stack.names}
        #: Takes matrices from the order of the parts to that of the model.
        self.order = torch.tensor([stacked.index(name) for name in self.matrices], device=self.device)
        elements = torch.tensor([sizes[name] for name in self.matrices], dtype=torch.float64, device=self.device)
        return Recorder(self.keys, self.matrices, [[f.name for f in lanes] for lanes in formats.values()], elements)

    def begin(self, step: int, training: bool) -> None:
        """Start a pass over the model."""
        slot = self.activations[0].scaler.slot(step)
        for flow in (*self.activations, *self.gradients):
            flow.begin(slot, training)

    def weights(self) -> dict[str, Tensor]:
        """The working weights by name, ``(L, *shape)``."""
        return {name: leaf for part in self.parts for name, leaf in part.stack.leaves().items()}

    def take_gradients(self) -> tuple[Tensor, Tensor]:
        """Collect the gradients of the last backward pass; their norms, float64 ``(S, L)`` and ``(L,)``."""
        squares: dict[str, Tensor] = {}
        for part in self.parts:
            squares |= dict(zip(part.stack.names, part.take_gradient(), strict=True))
        total = torch.stack([squares[name] for name in sorted(squares)], dim=-1).sum(-1)
        return torch.stack([squares[name] for name in self.matrices]).sqrt(), total.sqrt()

    def _loss(self, weights: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each lane, ``(L,)``."""

        def enter(name: str, x: Tensor) -> Tensor:
            return self.activations[self.matrices.index(name)].enter(x)

        def leave(name: str, x: Tensor) -> Tensor:
            return self.gradients[self.matrices.index(name)].leave(x)

        def multiply(name: str, x: Tensor, w: Tensor) -> Tensor:
            return self.products[self.matrices.index(name)](x, w)

        return cross_entropy(forward(weights, inputs, self.config.model, enter, leave, multiply), targets)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a later step depends on, by parameter, lanes first: views of what is live, codes apart."""
        state = self._flow_tensors()
        for part in self.parts:
            state |= part.tensors()
        return state

    def _flow_tensors(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for kind, flows in (("activations", self.activations), ("gradients", self.gradients)):
            for name, flow in zip(self.matrices, flows, strict=True):
                state |= by_name([name], {f"{kind}.{k}": tensor for k, tensor in flow.scaler.tensors().items()})
        return state

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state of `tensors` from elsewhere.

        Raises:
            ValueError: it is the state of another program.
        """
        own = self.tensors()
        # Values say all that codes say.
        given = {name: tensors.get(name, tensors.get(name.replace("/codes", "/stored"))) for name in own}
        if missing := [name for name, tensor in given.items() if tensor is None]:
            raise ValueError(f"the state of another program: it lacks {', '.join(sorted(missing))}")
        if unlike := [name for name, tensor in given.items() if tensor is not None and tensor.shape != own[name].shape]:
            raise ValueError(f"the state of another program: unlike shapes of {', '.join(unlike)}")
        with torch.no_grad():
            for name, tensor in self._flow_tensors().items():
                tensor.copy_(tensors[name])
            for part in self.parts:
                part.load(tensors)

    def without(self, ended: set[str], by_key: Mapping[str, RunConfig]) -> "Lanes":
        """The same program without some lanes."""
        kept = [i for i, key in enumerate(self.keys) if key not in ended]
        lanes = Lanes([self.keys[i] for i in kept], by_key, self.corpus, self.device)
        index = torch.tensor(kept, device=self.device)
        lanes.load({name: tensor.index_select(0, index) for name, tensor in self.tensors().items()})
        return lanes


def _check_shared(configs: Sequence[RunConfig]) -> None:
    first = configs[0].to_dict()
    differing = {
        key
        for config in configs[1:]
        for key, value in config.to_dict().items()
        if key not in LANE_FIELDS and value != first[key]
    }
    if differing:
        raise ConfigError([Problem((key,), "must be the same in all lanes of a program") for key in sorted(differing)])
