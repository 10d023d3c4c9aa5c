"""Names and shapes of a model's parameters, as they follow from its config alone."""

from altgrad.training.config import ModelConfig

#: Matrices that stand between tokens and the model's own space.
EMBEDDINGS = ("wte", "wpe", "lm_head")


def parameter_shapes(model: ModelConfig, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Name and shape, without lanes, of every parameter, in the order of the forward pass.

    Matrices are ``(in, out)``, except the embeddings, which are ``(V, C)`` and ``(T, C)``.
    """
    width = model.n_embd
    shapes: dict[str, tuple[int, ...]] = {"wte": (vocabulary, width), "wpe": (model.block_size, width)}

    def norm(name: str) -> None:
        shapes[name] = (width,)
        if model.bias:
            shapes[f"{name}.bias"] = (width,)

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[name] = (inputs, outputs)
        if model.bias:
            shapes[f"{name}.bias"] = (outputs,)

    for i in range(model.n_layer):
        norm(f"h.{i}.ln_1")
        linear(f"h.{i}.attn.c_attn", width, 3 * width)
        linear(f"h.{i}.attn.c_proj", width, width)
        norm(f"h.{i}.ln_2")
        linear(f"h.{i}.mlp.c_fc", width, 4 * width)
        linear(f"h.{i}.mlp.c_proj", 4 * width, width)
    norm("ln_f")
    if not model.tied_head:
        shapes["lm_head"] = (width, vocabulary)
    return shapes


def matrix_names(model: ModelConfig) -> tuple[str, ...]:
    """The matrices, which can be quantized; everything else is a vector."""
    return tuple(name for name, shape in parameter_shapes(model, vocabulary=1).items() if len(shape) == 2)


def aliases(model: ModelConfig, name: str) -> tuple[str, ...]:
    """The names that a matrix answers to: a tied embedding is the head too."""
    return (name, "lm_head") if name == "wte" and model.tied_head else (name,)
