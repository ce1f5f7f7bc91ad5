"""The layer table."""

from functools import cache
from typing import NamedTuple

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax.models.layers import Conv, Dense


class Row(NamedTuple):
    """A layer, the shape that it puts out, and how many parameters it holds."""

    layer: str
    output_shape: tuple[int, ...]
    parameters: int


class LayerSummary(tuple[Row, ...]):
    """The rows of a network, first to last; prints as a table."""

    @property
    def parameters(self) -> int:
        """How many parameters the whole network holds."""
        return sum(row.parameters for row in self)

    def __str__(self) -> str:
        cells = [("layer", "output shape", "parameters")]
        cells += [(row.layer, str(row.output_shape), f"{row.parameters:,}") for row in self]
        cells += [("total", "", f"{self.parameters:,}")]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in cells]
        return "\n".join(lines)


def layer_summary(model: nn.Module, input_shape: tuple[int, ...]) -> LayerSummary:
    """What each direct part of a model puts out for an input of (N, H, W, C), and its parameters.

    Only shapes are computed: no arithmetic, nothing compiled.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def record(next_call, args, kwargs, context):
        y = next_call(*args, **kwargs)
        if context.method_name == "__call__" and len(context.module.path) == 1:
            shapes[context.module.path[0]] = y.shape
        return y

    def init():
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), jnp.zeros(input_shape))

    params = jax.eval_shape(init).get("params", {})
    size = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    return LayerSummary(Row(name, shape, size.get(name, 0)) for name, shape in shapes.items())


def multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """How many multiplications, each with its addition, a forward pass takes in convolutions and dense layers.

    By XLA's own cost analysis of each of them as it is lowered (half its FLOP), for an input of (N, H, W, C). XLA
    does not count what falls on padding; tables that do give 1 to 4 % more. Nothing is computed nor compiled.
    """
    calls: list[tuple[nn.Module, tuple[int, ...]]] = []

    def record(next_call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and isinstance(module, (Conv, Dense)):
            calls.append((module.clone(parent=None, name=None), args[0].shape))
        return next_call(*args, **kwargs)

    def init():
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), jnp.zeros(input_shape))

    jax.eval_shape(init)
    return sum(flop(module, shape) for module, shape in calls) // 2


@cache
def flop(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """The FLOP of a convolution or a dense layer without its bias, as XLA counts them."""
    x = jax.ShapeDtypeStruct(input_shape, jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    bias = variables["params"].pop("bias", None)

    def run(variables, x):
        if bias is not None:  # a constant 0, which is folded away
            variables = {"params": variables["params"] | {"bias": jnp.zeros(bias.shape)}}
        return module.apply(variables, x)

    cost = jax.jit(run).lower(variables, x).cost_analysis()
    return int(cost["flops"])
