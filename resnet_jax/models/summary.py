"""The layer table."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax.models.layers import Conv, Dense
from resnet_jax.ops import plain

LeafPath = tuple[str, ...]  # of a leaf of the variables, such as ("params", "stage1", "block1", "conv1", "kernel")


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


def variable_shapes(model: nn.Module, in_channels: int) -> dict[str, Any]:
    """The model's variables as shapes: nothing is computed."""
    size = 64  # any that is large enough: no shape depends on it
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, in_channels))))


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
    does not count what falls on padding; tables that do give 1 to 8 % more. Nothing is computed nor compiled.
    """
    calls: list[int] = []

    def record(next_call, args, kwargs, context):
        module, called = context.module, context.method_name == "__call__"
        if called and isinstance(module, Conv):
            kernel = (*module.kernel_size, args[0].shape[-1] // module.groups, module.features)
            calls.append(conv_flop(module.strides, module.padding, module.groups, args[0].shape, kernel))
        elif called and isinstance(module, Dense):
            calls.append(flop(jnp.dot, args[0].shape, (args[0].shape[-1], module.features)))
        return next_call(*args, **kwargs)

    def init():
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), jnp.zeros(input_shape))

    jax.eval_shape(init)
    return sum(calls) // 2


@cache
def conv_flop(stride: int, pad: int, groups: int, x: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """The FLOP of a convolution, of these shapes, without its bias."""
    return flop(partial(plain.conv, (stride, stride), ((pad, pad), (pad, pad)), groups, bias=None), x, kernel)


def flop(run: Callable[..., jax.Array], *shapes: tuple[int, ...]) -> int:
    """The FLOP of a function of arrays, as XLA counts them."""
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    cost: Any = jax.jit(run).lower(*arrays).cost_analysis()
    return int(cost["flops"])
