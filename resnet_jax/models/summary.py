"""The table of layers, and the number of multiplications of a network."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax.models.layers import Conv, Dense, stride_pair
from resnet_jax.ops import plain

LeafPath = tuple[str, ...]  # the path of a variable, such as ("params", "stage1", "block1", "conv1", "kernel")


class Row(NamedTuple):
    """A layer, the shape of its output, and the number of its parameters."""

    layer: str
    output_shape: tuple[int, ...]
    parameters: int


class LayerSummary(tuple[Row, ...]):
    """The rows of a network, from first to last layer; prints as a table.

    classes: the class of each layer, as the chapter's layer_summary prints it; () if they are unknown.
    """

    classes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """The number of parameters of the whole network."""
        return sum(row.parameters for row in self)

    def __str__(self) -> str:
        classes = self.classes or ("",) * len(self)
        cells = [("layer", "class", "output shape", "parameters")]
        cells += [
            (row.layer, kind, str(row.output_shape), f"{row.parameters:,}")
            for row, kind in zip(self, classes, strict=True)
        ]
        cells += [("total", "", "", f"{self.parameters:,}")]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row[:-1], widths)) + f"  {row[-1]:>{widths[-1]}}" for row in cells]
        return "\n".join(lines)


def variable_shapes(model: nn.Module, in_channels: int) -> dict[str, Any]:
    """The shapes of the model's variables; nothing is computed."""
    size = 64  # large enough for every network; no shape depends on it
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, in_channels))))


def layer_summary(model: nn.Module, input_shape: tuple[int, ...]) -> LayerSummary:
    """The class, the output shape and the number of parameters of each part of a model, for an input (N, H, W, C).

    Only shapes are computed; nothing is compiled or run.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    classes: dict[str, str] = {}

    def record(next_call, args, kwargs, context):
        y = next_call(*args, **kwargs)
        if context.method_name == "__call__" and len(context.module.path) == 1:
            name = context.module.path[0]
            shapes[name], classes[name] = y.shape, type(context.module).__name__
        return y

    def init():
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), jnp.zeros(input_shape))

    params = jax.eval_shape(init).get("params", {})
    size = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    summary = LayerSummary(Row(name, shape, size.get(name, 0)) for name, shape in shapes.items())
    summary.classes = tuple(classes.values())
    return summary


def multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """The number of multiply-adds of a forward pass in Conv and Dense layers, for an input (N, H, W, C).

    It is half the FLOP that XLA's cost analysis reports for each lowered layer. XLA does not count products with
    padding pixels; published tables that count them are 1 to 8 % higher. Nothing is compiled or run.
    """
    calls: list[int] = []

    def record(next_call, args, kwargs, context):
        module, called = context.module, context.method_name == "__call__"
        if called and isinstance(module, Conv):
            kernel = (*module.kernel_size, args[0].shape[-1] // module.groups, module.features)
            calls.append(conv_flop(stride_pair(module.strides), module.padding, module.groups, args[0].shape, kernel))
        elif called and isinstance(module, Dense):
            calls.append(flop(jnp.dot, args[0].shape, (args[0].shape[-1], module.features)))
        return next_call(*args, **kwargs)

    def init():
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), jnp.zeros(input_shape))

    jax.eval_shape(init)
    return sum(calls) // 2


@cache
def conv_flop(strides: tuple[int, int], pad: int, groups: int, x: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """The FLOP of a convolution of these shapes, without its bias."""
    return flop(partial(plain.conv, strides, ((pad, pad), (pad, pad)), groups, bias=None), x, kernel)


def flop(run: Callable[..., jax.Array], *shapes: tuple[int, ...]) -> int:
    """The FLOP of a function of arrays of these shapes, as XLA counts them."""
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    cost: Any = jax.jit(run).lower(*arrays).cost_analysis()
    return int(cost["flops"])
