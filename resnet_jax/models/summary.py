"""The layer table."""

from typing import NamedTuple

import jax
from flax import linen as nn
from jax import numpy as jnp


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
